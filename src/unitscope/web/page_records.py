"""What a page holds: one dataclass for each kind of page, and the pieces that they share."""

from dataclasses import dataclass
from typing import Any, ClassVar

from unitscope.web.checked_tables import ImageRecord
from unitscope.web.queries import Alike, Example, UnitRecord


@dataclass(frozen=True, slots=True)
class About:
    """What every page says of its atlas. `when` is the day and time (UTC) at which it was written."""

    name: str
    model: str
    weights: str
    network_hash: str
    images: str
    images_hash: str
    read: int
    skipped: int
    k: int
    sample: int
    precision: str
    input_height: int
    input_width: int
    when: str
    missing: str | None


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer in short. `drawn` is what its patches show: field, effective field or image; its size in network-input pixels.

    `no_preference` counts the units all whose peaks tie with other images.
    """

    name: str
    kind: str
    units: int
    map_height: int
    map_width: int
    receptive_field_height: int
    receptive_field_width: int
    activation: str
    drawn: str
    drawn_height: int
    drawn_width: int
    dead: int
    no_preference: int


@dataclass(frozen=True, slots=True)
class Row:
    """A layer on the network page, and the units of its strip."""

    layer: LayerRecord
    strip: list[int]


@dataclass(frozen=True, slots=True)
class NetworkPage:
    """All layers, from shallow to deep; `glance` is some of them, evenly from the first to the last."""

    template: ClassVar[str] = "network.html"
    path: str
    about: About
    glance: list[Row]
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Tile:
    """A unit on the layer page: its statistics, and the labels of its peaks, none where it shows no preference."""

    unit: UnitRecord
    labels: list[str]


@dataclass(frozen=True, slots=True)
class LayerPage:
    """All units of a layer."""

    template: ClassVar[str] = "layer.html"
    path: str
    about: About
    layer: LayerRecord
    before: str | None
    after: str | None
    tiles: list[Tile]
    labels: list[str]


@dataclass(frozen=True, slots=True)
class Band:
    """Examples from one quantile of the sample."""

    name: str
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the sample's values in bins of one width, from its lowest value to the unit's highest."""

    low: float
    high: float
    counts: list[int]


@dataclass(frozen=True, slots=True)
class LabelShare:
    """A label's share among a unit's peaks, and among all images."""

    label: str
    peaks: int
    share: float
    overall: float | None


@dataclass(frozen=True, slots=True)
class UnitPage:
    """One unit: its peaks, how they stand among ordinary values, and what is like it."""

    template: ClassVar[str] = "unit.html"
    path: str
    about: About
    layer: LayerRecord
    unit: UnitRecord
    before: int | None
    after: int | None
    peaks: list[Example]
    bands: list[Band]
    histogram: Histogram | None
    labels: list[LabelShare]
    alike: list[Alike]
    methods: dict[str, str]
    """The methods of attribution that have looked at it, and what each one does."""
    unreadable: dict[str, str]
    """The methods of attribution whose tables can't be read, and why."""


@dataclass(frozen=True, slots=True)
class Excited:
    """The peaks of one layer that lie in an image."""

    layer: LayerRecord
    peaks: list[Example]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """One image, and the units that it is a peak of; `ties` counts those besides that show no preference."""

    template: ClassVar[str] = "image.html"
    path: str
    about: About
    image: ImageRecord
    layers: list[Excited]
    ties: int


@dataclass(frozen=True, slots=True)
class Fond:
    """A unit with some peaks of one label."""

    layer: str
    unit: int
    peaks: int
    of: int


@dataclass(frozen=True, slots=True)
class LabelPage:
    """One label: its images that the atlas mentions, and the units with most peaks among them."""

    template: ClassVar[str] = "label.html"
    path: str
    about: About
    label: str
    count: int
    overall: float
    units: list[Fond]
    images: list[ImageRecord]


@dataclass(frozen=True, slots=True)
class WordsPage:
    """What the words mean."""

    template: ClassVar[str] = "words.html"
    path: str
    about: About


@dataclass(frozen=True, slots=True)
class FiresPage:
    """Where a person puts an image of their own; `off` says why none can be given, where none can."""

    template: ClassVar[str] = "fires.html"
    path: str
    about: About
    most_mb: int
    off: str | None = None


Page = NetworkPage | LayerPage | UnitPage | ImagePage | LabelPage | WordsPage | FiresPage
JSON_PAGES = (NetworkPage, LayerPage, UnitPage, ImagePage, LabelPage)


def units_on(page: Any) -> list[tuple[str, int]]:
    """Layer and number of the units whose blocks a page shows, from the top to the bottom."""
    match page:
        case NetworkPage():
            return [(row.layer.name, unit) for row in (*page.glance, *page.rows) for unit in row.strip]
        case LayerPage():
            return [(page.layer.name, tile.unit.unit) for tile in page.tiles]
        case UnitPage():
            return [(one.layer, one.unit) for one in page.alike]
        case LabelPage():
            return [(one.layer, one.unit) for one in page.units]
    return []
