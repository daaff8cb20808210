"""The guided tour of the network's page: up to four units from shallow to deep, an edge, a pattern, a part and a thing, each with what was measured.

A stage for which no unit passes its bar is left out. Parts and things are chosen by the correlation in half a of the images, so that the one in
half b, which the page states, tests the choice of the unit, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unitscope.atlas.meaning import NamePiece
from unitscope.atlas.tables import NAMES, VISUAL_TUNING
from unitscope.errors import AtlasError
from unitscope.web.page_records import PatchSize, TourStop
from unitscope.web.queries import AtlasQueries

MIN_EXPLAINED = 0.5
"""An edge and a pattern explain at least this share of the unit's response."""
MIN_CORRELATION = 0.4
"""The response of a part and of a thing goes with its name at least so well, in half a and in half b."""
MAX_BASE_RATE = 0.15
"""A name that more of the images belong to, such as "animal", is no thing that one could point to."""
MIN_INSIDE = 0.8
"""So many of the patches are from images of the name: eight of nine."""
MIN_IMAGES_B, MIN_SAMPLE = 50, 100
"""A correlation is of so many images of half b at least, and what a tuning explains of a sample of so many: of fewer, chance has a say."""
THING_SHARE = 1 / 2
"""The patches of a thing have at least this share of the input's sides, those of a part less."""

TEXT_COLUMNS = {VISUAL_TUNING.name: ("description",), NAMES.name: ("name", "kind")}
NUMBER_COLUMNS = {
    VISUAL_TUNING.name: ("explained", "angle_selectivity"),
    NAMES.name: ("r_a", "r_b", "images_b", "base_rate", "peaks_inside", "peaks"),
}
"""The columns that each table's stages are chosen by."""

EDGE, PATTERN, PART, THING = "edge", "pattern", "part", "thing"
"""The stages, from shallow to deep."""
CLASS = "class"
"""The kind of names that are classes, or groups of them."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TourLayer:
    """A layer that the tour may show units of: how large its patches are, and which units may be shown, of shape (unit,)."""

    name: str
    patch: PatchSize
    shown: Mask


@dataclass(frozen=True, slots=True)
class TourUnits:
    """What a table says of the units that may be shown, by depth and unit. Texts are None and numbers NaN where there is none.

    `depth` is the place of the unit's layer, `share` the larger side of its patches as a share of the input's. Arrays are of shape (unit,).
    """

    depth: NDArray[np.int64]
    unit: NDArray[np.int64]
    share: Floats
    texts: dict[str, NDArray[np.object_]]
    numbers: dict[str, Floats]

    @classmethod
    def of(cls, name: str, table: pa.Table | None, layers: Sequence[TourLayer], input_size: tuple[int, int]) -> "TourUnits":
        """Those of the table of that name; rows of units that may not be shown, or aren't there, are left out."""
        if table is None:
            table = pa.table({column: [] for column in ("layer", "unit", *TEXT_COLUMNS[name], *NUMBER_COLUMNS[name])})
        place = pc.index_in(table["layer"].cast(pa.string()), pa.array([layer.name for layer in layers], pa.string()))
        depth, unit = (pc.fill_null(column.cast(pa.int64()), -1).to_numpy() for column in (place, table["unit"]))
        may_be_shown = np.zeros(len(table), dtype=np.bool_)
        for index, layer in enumerate(layers):
            rows = np.flatnonzero((depth == index) & (unit >= 0) & (unit < len(layer.shown)))
            may_be_shown[rows] = layer.shown[unit[rows]]
        rows = np.flatnonzero(may_be_shown)
        rows = rows[np.lexsort((unit[rows], depth[rows]))]
        share = np.array([max(layer.patch.height / input_size[0], layer.patch.width / input_size[1]) for layer in layers])
        kept = table.take(pa.array(rows))
        return cls(
            depth[rows], unit[rows], share[depth[rows]] if len(layers) else np.zeros(0),
            {column: np.array(kept[column].to_pylist(), dtype=np.object_) for column in TEXT_COLUMNS[name]},
            {column: kept[column].cast(pa.float64()).to_numpy() for column in NUMBER_COLUMNS[name]},
        )  # fmt: skip


def tour_of(queries: AtlasQueries) -> list[TourStop]:
    """The tour of an atlas; empty where it has no table to choose by. Units that are dead, or tie, are never shown."""
    atlas = queries.atlas
    tables = {name: _read(queries, name) for name in TEXT_COLUMNS}
    if all(table is None for table in tables.values()):
        return []
    layers = _tour_layers(queries)
    images = min(int(atlas.manifest.get("sample", 0)), int(atlas.manifest["read"]))
    return choose_tour(tables[VISUAL_TUNING.name] if images >= MIN_SAMPLE else None, tables[NAMES.name], layers, atlas.input_size)


def passing_units(queries: AtlasQueries, stage_name: str) -> set[tuple[str, int]]:
    """Every unit, as layer and number, that passes the bar of a stage, whichever the tour shows."""
    stage = next(stage for stage in STAGES if stage.name == stage_name)
    table, layers = _read(queries, stage.table), _tour_layers(queries)
    units = TourUnits.of(stage.table, table, layers, queries.atlas.input_size)
    rows = np.flatnonzero(stage.passes(units))
    return {(layers[int(units.depth[row])].name, int(units.unit[row])) for row in rows}


def choose_tour(
    tuning: pa.Table | None, names: pa.Table | None, layers: Sequence[TourLayer], input_size: tuple[int, int]
) -> list[TourStop]:
    """Of every stage the unit with the best evidence, in a deeper layer than the stage before; edges and parts are of the first that has one.

    `tuning` and `names` have the columns of the tables `visual_tuning` and `names`. `layers` are from shallow to deep; `input_size` is
    height and width.
    """
    units = {
        name: TourUnits.of(name, table, layers, input_size) for name, table in ((VISUAL_TUNING.name, tuning), (NAMES.name, names))
    }
    stops: list[TourStop] = []
    depth = -1
    for stage in STAGES:
        of_table = units[stage.table]
        evidence = stage.evidence(of_table)
        rows = np.flatnonzero(stage.passes(of_table) & np.isfinite(evidence) & (of_table.depth > depth))
        if stage.in_first_layer:
            rows = rows[of_table.depth[rows] == of_table.depth[rows[:1]]]  # they are by depth
        if len(rows):
            row = int(rows[evidence[rows].argmax()])
            depth = int(of_table.depth[row])
            layer = layers[depth]
            sentence = stage.sentence(of_table, row)
            stops.append(TourStop(stage.name, layer.name, int(of_table.unit[row]), layer.patch, sentence))
    return stops


def _tour_layers(queries: AtlasQueries) -> list[TourLayer]:
    """Layers whose units the tour may show; those of the classes are given their names."""
    class_layers = set(queries.atlas.manifest.get("class_layers", ()))
    return [
        TourLayer(layer.name, queries.patch_size(layer.name), _untied(queries, layer.name))
        for layer in queries.layers
        if layer.name not in class_layers
    ]


def _read(queries: AtlasQueries, name: str) -> pa.Table | None:
    try:
        return queries.atlas.table(name, columns=("layer", "unit", *TEXT_COLUMNS[name], *NUMBER_COLUMNS[name]))
    except AtlasError:  # there is none, or other pages say why it can't be read
        return None


def _untied(queries: AtlasQueries, layer: str) -> Mask:
    shown: Mask = queries.peak_counts(layer) > 0
    shown[list(queries.ties(layer))] = False
    return shown


# ── stages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Stage:
    """A stop of the tour: the table it is chosen by, which units pass its bar, whether those of the first layer that has any are taken, the
    evidence that orders them, and what is said of one."""

    name: str
    table: str
    passes: Callable[[TourUnits], Mask]
    in_first_layer: bool
    evidence: Callable[[TourUnits], Floats]
    sentence: Callable[[TourUnits, int], list[NamePiece]]


def _is_edge(units: TourUnits) -> Mask:
    return _is_tuned_to("edge", units)


def _is_pattern(units: TourUnits) -> Mask:
    return _is_tuned_to("stripes", units)


def _is_tuned_to(what: str, units: TourUnits) -> Mask:
    says = [text is not None and what in text.replace(",", "").split() for text in units.texts["description"]]
    return (units.numbers["explained"] >= MIN_EXPLAINED) & np.array(says, dtype=np.bool_)


def _is_part(units: TourUnits) -> Mask:
    return _is_named(units) & (units.share < THING_SHARE)


def _is_thing(units: TourUnits) -> Mask:
    return _is_named(units) & (units.share >= THING_SHARE)


def _is_named(units: TourUnits) -> Mask:
    """After a class or a group of classes."""
    numbers = units.numbers
    is_sure = (np.minimum(numbers["r_a"], numbers["r_b"]) >= MIN_CORRELATION) & (numbers["images_b"] >= MIN_IMAGES_B)
    is_narrow = numbers["base_rate"] <= MAX_BASE_RATE
    is_inside = (numbers["peaks"] > 0) & (numbers["peaks_inside"] >= MIN_INSIDE * numbers["peaks"])
    is_class = [kind == CLASS and name is not None for kind, name in zip(units.texts["kind"], units.texts["name"], strict=True)]
    return is_sure & is_narrow & is_inside & np.array(is_class, dtype=np.bool_)


def _explained(units: TourUnits) -> Floats:
    return units.numbers["explained"]


def _explained_by_angle(units: TourUnits) -> Floats:
    return units.numbers["explained"] * units.numbers["angle_selectivity"]


def _correlation_in_half_a(units: TourUnits) -> Floats:
    return units.numbers["r_a"]


def _tuned_to(units: TourUnits, row: int) -> list[NamePiece]:
    share = f"{100 * units.numbers['explained'][row]:.0f} %"
    return [
        NamePiece("Tuned to "),
        NamePiece(str(units.texts["description"][row]), True),
        NamePiece(f": that explains {share} of its response to images that weren't used to fit it."),
    ]


def _responds_to(units: TourUnits, row: int) -> list[NamePiece]:
    numbers: dict[str, Any] = {name: values[row] for name, values in units.numbers.items()}
    inside = f"{numbers['peaks_inside']:.0f} of {numbers['peaks']:.0f} patches"
    return [
        NamePiece("Responds to "),
        NamePiece(str(units.texts["name"][row]), True),
        NamePiece(f": {inside} are from images of it, and r = {numbers['r_b']:.2f} on images that it wasn't chosen on."),
    ]


STAGES = (
    Stage(EDGE, VISUAL_TUNING.name, _is_edge, True, _explained, _tuned_to),
    Stage(PATTERN, VISUAL_TUNING.name, _is_pattern, False, _explained_by_angle, _tuned_to),
    Stage(PART, NAMES.name, _is_part, True, _correlation_in_half_a, _responds_to),
    Stage(THING, NAMES.name, _is_thing, False, _correlation_in_half_a, _responds_to),
)
"""From shallow to deep."""
