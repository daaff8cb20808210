"""What a page holds: one dataclass for each kind of page, and the records that they share. `/api` gives them as JSON."""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable
from urllib.parse import urlencode

from unitscope.atlas.meaning import NamePiece, UnitMeaning
from unitscope.atlas.ties import Tie
from unitscope.drawing import Crop
from unitscope.records import Box, Layer
from unitscope.web.checked_tables import ImageEntry
from unitscope.web.purpose_records import (
    Candidate,
    CertainMistake,
    ClassLayer,
    Confusion,
    ImagePrediction,
    Knockout,
    MistakenUnit,
    OutputUnit,
    UnitCircuit,
    UnitEffects,
)


@runtime_checkable
class Page(Protocol):
    """What every page has: the template that shows it, and its path from the root of the site."""

    template: ClassVar[str]

    @property
    def path(self) -> str: ...


# ── what pages share ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AtlasSummary:
    """What every page says of its atlas.

    `written` is the day and time (UTC) at which it was written; `images_error` says why the source images can't be shown, and is None
    where they can.
    """

    name: str
    model: str
    weights: str
    network_hash: str
    image_source: str
    image_list_hash: str
    read_images: int
    skipped_images: int
    k: int
    sample_size: int
    precision: str
    input_height: int
    input_width: int
    has_labels: bool
    written: str
    images_error: str | None


@dataclass(frozen=True, slots=True)
class PatchSize:
    """What a layer's patches show: `kind` is `field` (receptive field), `effective` or `image`; sizes in network-input pixels."""

    kind: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Example:
    """A value of a unit in an image, and its cell. Boxes are in pixels of the source image as displayed, unclipped.

    `rank` is None for an image of the sample. `patch_box` is what a patch shows: the receptive field or, where that is large, the
    effective receptive field. `visible_box` is the part of the patch that lies on the image and became part of the network's input, which
    as a whole is `input_box`.
    """

    layer: str
    unit: int
    rank: int | None
    value: float
    y: int
    x: int
    source_image: ImageEntry
    receptive_field: Box
    patch_box: Box
    visible_box: Box
    input_box: Box

    def crop(self, patch_kind: str) -> Crop:
        """What a patch of that kind shows: `auto`, `field` or `image`."""
        if patch_kind == "auto":
            return Crop(self.patch_box, self.visible_box)
        box = self.receptive_field if patch_kind == "field" else self.input_box
        return Crop.of(box, self.input_box, (self.source_image.height, self.source_image.width))


@dataclass(frozen=True, slots=True)
class UnitStatistics:
    """A row of the `units` table, with the mean and standard deviation of the unit's sample, and the z-score of its highest value.

    What isn't finite is None. `tie` says which of the unit's ranks tie with images that the peaks don't show; None where none does.
    """

    layer: str
    unit: int
    images: int
    activation_rate: float
    mean: float | None
    std: float | None
    lowest: float | None
    highest: float | None
    nan_images: int
    dead: bool
    tied: int
    sample_mean: float | None
    sample_std: float | None
    z_score: float | None
    tie: Tie | None


@dataclass(frozen=True, slots=True)
class SimilarUnit:
    """A unit whose peaks lie in the same images as another's: how many images they share."""

    layer: str
    unit: int
    shared_images: int


@dataclass(frozen=True, slots=True)
class ConceptUnit:
    """A unit of a name: which kind of name that is, and its evidence: the correlation that it was tested by or, of what is seen, the share of the
    response that it explains; None where there is none."""

    layer: str
    unit: int
    kind: str | None
    evidence: float | None


@dataclass(frozen=True, slots=True)
class ConceptLink:
    """Another name, by its id, and how many units have it."""

    node: str
    name: str
    units: int


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer on the network page, and some of its units."""

    layer: Layer
    patch: PatchSize
    dead_units: int
    no_preference_units: int
    units: list[int]


@dataclass(frozen=True, slots=True)
class DepthCurve:
    """A number for each layer, None where there is none; `is_control` is true for what chance gives, in the colour of its curve."""

    label: str
    colour: int
    is_control: bool
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class DepthPlot:
    """Curves over the layers, from the first to the last, that share an axis from 0 to 1."""

    title: str
    curves: list[DepthCurve]


@dataclass(frozen=True, slots=True)
class TourStop:
    """A unit that the network's page shows first: `stage` is `edge`, `pattern`, `part` or `thing`, `sentence` what was measured of it."""

    stage: str
    layer: str
    unit: int
    patch: PatchSize
    sentence: list[NamePiece]


@dataclass(frozen=True, slots=True)
class NetworkPage:
    """All layers, from shallow to deep; `overview` is some of them, evenly from the first to the last; `depth` has curves over the layers;
    `tour` has a few units, from shallow to deep."""

    template: ClassVar[str] = "network.html"
    path: str
    atlas: AtlasSummary
    overview: list[LayerRow]
    layers: list[LayerRow]
    depth: list[DepthPlot]
    tour: list[TourStop]


@dataclass(frozen=True, slots=True)
class SortKey:
    """A column of `UnitStatistics`, or of an added table of units (`TABLE.COLUMN`), by which units can be sorted. `table` is what that table is
    called; empty for those of statistics."""

    column: str
    label: str
    description: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class UnitEntry:
    """A unit on the layer page: its statistics, and the labels that its peaks have more often than images have; none where it shows no
    preference.

    `added` has the numbers of added tables of units by `TABLE.COLUMN`, None where the unit has none. `name` is what the unit is called,
    `belief` how that is said: `perhaps`, `weakly`, or None.
    """

    statistics: UnitStatistics
    labels: list[str]
    added: dict[str, float | None]
    name: str | None
    belief: str | None
    several_facets: bool

    def value_of(self, column: str) -> float | None:
        """What the unit has in the column of a sort key; None of an added table that its layer lacks."""
        value: float | None = self.added.get(column) if "." in column else getattr(self.statistics, column)
        return value


@dataclass(frozen=True, slots=True)
class LayerPage:
    """All units of a layer. `views` are other layers that show the same units, before or after normalisation and activation."""

    template: ClassVar[str] = "layer.html"
    path: str
    atlas: AtlasSummary
    layer: Layer
    patch: PatchSize
    dead_units: int
    no_preference_units: int
    previous_layer: str | None
    next_layer: str | None
    views: list[str]
    sort_keys: list[SortKey]
    units: list[UnitEntry]
    labels: list[str]
    names: list[str]
    table_errors: dict[str, str]


@dataclass(frozen=True, slots=True)
class Band:
    """Examples around one quantile of the sample."""

    name: str
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the sample's values in bins of equal width, from its lowest value to the unit's highest."""

    lowest: float
    highest: float
    counts: list[int]


@dataclass(frozen=True, slots=True)
class LabelShare:
    """A label's share among a unit's peaks; `base_rate` is its share among all images."""

    label: str
    peaks: int
    share: float
    base_rate: float | None


@dataclass(frozen=True, slots=True)
class ColumnValue:
    """One number that an added table has for a unit."""

    name: str
    description: str
    value: float | None


@dataclass(frozen=True, slots=True)
class TableOfUnit:
    """What an added table of units says of one unit."""

    name: str
    description: str
    columns: list[ColumnValue]


@dataclass(frozen=True, slots=True)
class Facet:
    """Some of the candidates of one facet, the highest first; `size` is how many there are."""

    number: int
    size: int
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class UnitPage:
    """One unit: what it is, its peaks, images of the sample to compare them with, and similar units.

    The unit's block has `patch_columns` patches side by side. `meaning` is what is known of it, `sentence` the same in words. `facets` are there where there are several. `troughs` are its lowest cells, none where a rectifier follows; `trough_tie` says which of them tie. `views` are other layers that show the unit, before or after normalisation and activation. Of a dead unit there are neither bands nor a histogram.

    `ceiling` is the most that the activation after the layer passes on, None where that has no bound. `attribution_methods` names the methods that were used on the unit, each with what it does; `heat_methods` those whose strength can be laid over patches, `missing_methods` those that can't; `attribution_errors` those whose
    tables can't be read, each with the reason. `tables` is what added tables of units say of it, `table_errors` why some can't be read.
    `effects` and `circuit` are None where they weren't looked for; `class_position` is that of the class whose score the unit gives.
    """

    template: ClassVar[str] = "unit.html"
    path: str
    atlas: AtlasSummary
    layer: Layer
    patch: PatchSize
    patch_columns: int
    statistics: UnitStatistics
    meaning: UnitMeaning
    sentence: list[NamePiece]
    facets: list[Facet]
    views: list[str]
    previous_unit: int | None
    next_unit: int | None
    peaks: list[Example]
    troughs: list[Example]
    trough_tie: Tie | None
    bands: list[Band]
    histogram: Histogram | None
    labels: list[LabelShare]
    similar_units: list[SimilarUnit]
    ceiling: float | None
    attribution_methods: dict[str, str]
    heat_methods: list[str]
    missing_methods: list[str]
    attribution_errors: dict[str, str]
    tables: list[TableOfUnit]
    table_errors: dict[str, str]
    effects: UnitEffects | None
    circuit: UnitCircuit | None
    class_position: int | None


@dataclass(frozen=True, slots=True)
class LayerPeaks:
    """Some of the `peak_count` peaks of one layer that lie in an image: those of the highest ranks, the higher z-score first among equals.
    `names` has the names of their units, of those that have one."""

    layer: Layer
    peaks: list[Example]
    peak_count: int
    names: dict[int, str]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """One image, what the network takes it for, and the units that it is a peak of.

    Units that show no preference are left out; `no_preference_peaks` counts their peaks in the image. `prediction` is None where the atlas
    doesn't say what the network takes it for; with `has_predictions` it says so of other images, the most certain ones. `can_explain` is true
    where the server can say why the image has its class.
    """

    template: ClassVar[str] = "image.html"
    path: str
    atlas: AtlasSummary
    image: ImageEntry
    layers: list[LayerPeaks]
    no_preference_peaks: int
    prediction: ImagePrediction | None = None
    has_predictions: bool = False
    can_explain: bool = False


@dataclass(frozen=True, slots=True)
class LabelUnit:
    """A unit, how many peaks it has, and how many of them have one label."""

    layer: str
    unit: int
    label_peaks: int
    peaks: int


@dataclass(frozen=True, slots=True)
class LabelPage:
    """One label: its images that the atlas mentions, and the units with most peaks among them.

    `image_count` is how many of all images have the label, `base_rate` their share. `class_position` is that of the class that the label
    means, None where the atlas doesn't say.
    """

    template: ClassVar[str] = "label.html"
    path: str
    atlas: AtlasSummary
    label: str
    image_count: int
    base_rate: float
    units: list[LabelUnit]
    images: list[ImageEntry]
    class_position: int | None = None


LISTED_AT_ONCE = 240
"""Of how many units a list shows blocks at first; a script shows as many more."""


@dataclass(frozen=True, slots=True)
class ConceptPage:
    """One name, a class, a group of classes or another, or, where `is_kind`, a kind of names; and the units that have it, those that go with it
    best first: `unit_count` in all. `kinds` are those that units of this name are of."""

    template: ClassVar[str] = "concept.html"
    path: str
    atlas: AtlasSummary
    node: str
    name: str
    definition: str
    unit_count: int
    units: list[ConceptUnit]
    broader: list[ConceptLink]
    narrower: list[ConceptLink]
    kinds: list[ConceptLink]
    is_kind: bool


@dataclass(frozen=True, slots=True)
class ListedUnit:
    """A unit in a list of units of all layers, and its value in the column that they are sorted by, its highest value where that is their
    number. `name` is what the unit is called and `belief` how that is said, `caption` what stands below its block."""

    layer: str
    unit: int
    name: str | None
    belief: str | None
    dead: bool
    value: float | None
    caption: str


@dataclass(frozen=True, slots=True)
class UnitsPage:
    """Units of all layers, in one list: the first of the `fitting_units` that are asked for, among `network_units`. `names` and `labels` are
    what they can be found by."""

    template: ClassVar[str] = "units.html"
    path: str
    atlas: AtlasSummary
    asked: dict[str, str]
    sort_keys: list[SortKey]
    network_units: int
    fitting_units: int
    units: list[ListedUnit]
    names: list[str]
    labels: list[str]

    @property
    def query(self) -> str:
        """What is asked for, as addresses have it behind the question mark."""
        return urlencode(self.asked)


@dataclass(frozen=True, slots=True)
class ClassLink:
    """A class, how many images have its label, and how many of them are taken for it."""

    position: int
    name: str
    images: int
    right: int


@dataclass(frozen=True, slots=True)
class PredictionsPage:
    """What the network predicts: its mistakes, the most frequent first; the images of which it is most certain and wrong, the most certain
    first; and all classes that images are of, or are taken for. Of many mistakes there are the most frequent and the most certain ones."""

    template: ClassVar[str] = "predictions.html"
    path: str
    atlas: AtlasSummary
    images: int
    labelled: int
    right: int
    mistakes: list[Confusion]
    most_certain: list[CertainMistake]
    classes: list[ClassLink]


@dataclass(frozen=True, slots=True)
class ClassImage:
    """An image of a class, and what the network takes it for; None where the atlas doesn't say."""

    image: ImageEntry
    prediction: ImagePrediction | None


@dataclass(frozen=True, slots=True)
class ClassPage:
    """One of the network's classes: the units that raise it and lower it, what it is taken for, and what is taken for it.

    `output_units` are those whose values are its scores, none where the atlas has no such layer. `label` is the label that its images have, of
    which there are `label_images`; None where labels say nothing of it. `shown_images` are some of its images that have pages.
    """

    template: ClassVar[str] = "class.html"
    path: str
    atlas: AtlasSummary
    position: int
    name: str
    images: int
    right: int
    layers: list[ClassLayer]
    knockouts: list[Knockout]
    taken_for: list[Confusion]
    mistaken: list[Confusion]
    candidates: list[Candidate]
    output_units: list[OutputUnit]
    label: str | None
    label_images: int
    shown_images: list[ClassImage]


@dataclass(frozen=True, slots=True)
class MistakePage:
    """The images of one class that are taken for another.

    `missing_images` are the numbers of those that are shown and of which there is no picture: they aren't among the images of the atlas.
    `can_explain` is true where the server can say why an image has its class.
    """

    template: ClassVar[str] = "mistake.html"
    path: str
    atlas: AtlasSummary
    confusion: Confusion
    units: list[MistakenUnit]
    missing_images: list[int]
    can_explain: bool = False


@dataclass(frozen=True, slots=True)
class PartsPage:
    """The page of an exported site that shows one of many parts, as its address says."""

    template: ClassVar[str] = "parts.html"
    path: str
    atlas: AtlasSummary


@dataclass(frozen=True, slots=True)
class GlossaryPage:
    """What the words mean."""

    template: ClassVar[str] = "glossary.html"
    path: str
    atlas: AtlasSummary


@dataclass(frozen=True, slots=True)
class NotesPage:
    """What a person has noted of units, or a set of units that an address names; a script shows them."""

    template: ClassVar[str] = "notes_page.html"
    path: str
    atlas: AtlasSummary


@dataclass(frozen=True, slots=True)
class ImageSearchPage:
    """Where a person uploads an image to search with. `off_reason` says why none can be uploaded, and is None where one can. `class_names` are
    names of classes to ask for, none where nothing is explained."""

    template: ClassVar[str] = "image_search.html"
    path: str
    atlas: AtlasSummary
    max_upload_mb: int
    off_reason: str | None = None
    class_names: list[str] = field(default_factory=list)


def units_shown_on(page: Page) -> list[tuple[str, int]]:
    """Layer and number of the units whose blocks a page shows, from the top to the bottom."""
    match page:
        case NetworkPage():
            in_rows = [(row.layer.name, unit) for row in (*page.overview, *page.layers) for unit in row.units]
            return [*((stop.layer, stop.unit) for stop in page.tour), *in_rows]
        case LayerPage():
            return [(page.layer.name, entry.statistics.unit) for entry in page.units]
        case UnitPage():
            circuit = [] if page.circuit is None else page.circuit.units()
            return [*circuit, *((similar.layer, similar.unit) for similar in page.similar_units)]
        case ClassPage():
            by_layer = [(unit.layer, unit.unit) for layer in page.layers for unit in (*layer.raising, *layer.lowering)]
            outputs = [(unit.layer, unit.unit) for unit in page.output_units]
            return [*outputs, *((unit.layer, unit.unit) for unit in page.candidates), *by_layer]
        case MistakePage():
            return [(unit.layer, unit.unit) for unit in page.units]
        case ImagePage():
            return [(peak.layer, peak.unit) for layer in page.layers for peak in layer.peaks]
        case LabelPage() | ConceptPage() | UnitsPage():
            return [(unit.layer, unit.unit) for unit in page.units[:LISTED_AT_ONCE]]
    return []
