"""Kinds of names, such as colours, edges and parts: what they hold, and the words by which a person looks for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unitscope.atlas.meaning import VISUAL
from unitscope.web.meanings import NamedUnits
from unitscope.web.page_records import ConceptLink, ConceptUnit
from unitscope.web.queries import AtlasQueries
from unitscope.web.tour import EDGE, PART, PATTERN, THING, passing_units


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of names. `words` find it, too; `definition` says which units have such a name."""

    name: str
    words: str
    definition: str

    @property
    def node(self) -> str:
        """By what its page is found."""
        return f"kind {self.name}"


@dataclass(frozen=True, slots=True)
class KindUnits:
    """The units of a kind, those with the best evidence first, and their names, those of most units first."""

    kind: Kind
    units: Sequence[ConceptUnit]
    names: Sequence[ConceptLink]


STAGE_WORDS = {EDGE: "edges contours", PATTERN: "patterns textures stripes", PART: "parts objects", THING: "things objects"}
"""What finds a stop of the tour, too."""
OF_TOUR = "Units that go with a class or a group of classes so well that they pass the bar of the tour, and whose patches show"
EDGES = Kind("edges", "contours", "Units that are tuned to an edge of some angle, bright on one side and dark on the other")
LINES = Kind("lines", "bars", "Units that are tuned to a bright or a dark line of some angle")
STRIPES = Kind("stripes", "textures patterns gratings", "Units that are tuned to stripes of some angle, fine or coarse")
COLOURS = Kind("colours", "colors hues", "Units that are tuned to a colour")
BRIGHTNESS = Kind("brightness", "dark light", "Units that are tuned to bright patches, or to dark ones")
PARTS = Kind("parts", "objects", f"{OF_TOUR} less than half of the input's height and width")
THINGS = Kind("things", "objects", f"{OF_TOUR} half of the input's height or width, or more")
KINDS = (EDGES, LINES, STRIPES, COLOURS, BRIGHTNESS, PARTS, THINGS)
"""From shallow to deep."""


def visual_kind(name: str) -> Kind | None:
    """The kind of the words for what a unit is tuned to; what is nothing else is a colour. Contrast is of no kind, but a name of its own."""
    words = set(name.replace(",", "").split())
    for word, kind in {"edge": EDGES, "line": LINES, "stripes": STRIPES, "bright": BRIGHTNESS, "dark": BRIGHTNESS}.items():
        if word in words:
            return kind
    return None if name == "contrast" else COLOURS


def kinds_of(queries: AtlasQueries) -> dict[str, KindUnits]:
    """The kinds that units of an atlas have, by the nodes of their pages."""
    concepts = queries.concepts
    of_tour = {kind: passing_units(queries, stage) for kind, stage in ((PARTS, PART), (THINGS, THING))}
    units_by_kind = {kind: _units_of(concepts, kind, of_tour) for kind in KINDS}
    return {kind.node: _kind_units(kind, units, concepts) for kind, units in units_by_kind.items() if units}


def _units_of(concepts: NamedUnits, kind: Kind, of_tour: Mapping[Kind, set[tuple[str, int]]]) -> list[tuple[str, ConceptUnit]]:
    """The units of a kind, each with the node of its name."""

    def is_such(node: str, unit: ConceptUnit) -> bool:
        if unit.kind == VISUAL:
            return visual_kind(concepts.names[node]) is kind
        return (unit.layer, unit.unit) in of_tour.get(kind, ())

    return [(node, unit) for node, units in concepts.units.items() for unit in units if is_such(node, unit)]


def _kind_units(kind: Kind, units: Sequence[tuple[str, ConceptUnit]], concepts: NamedUnits) -> KindUnits:
    counts = Counter(node for node, _ in units)
    names = [ConceptLink(node, concepts.names[node], count) for node, count in counts.most_common()]
    return KindUnits(kind, sorted((unit for _, unit in units), key=lambda unit: -(unit.evidence or 0)), names)
