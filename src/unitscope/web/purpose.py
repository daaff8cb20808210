"""What pages say of what units are for: the classes that a unit raises and lowers, what feeds it, what the network predicts."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from itertools import islice
from math import isfinite, isnan
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache

from unitscope.atlas import Atlas
from unitscope.atlas.samples import NumpyColumns
from unitscope.atlas.tables import CIRCUITS, EFFECT_LAYERS, EFFECTS, KNOCKOUTS, MISTAKES, PREDICTIONS, SHORTCUTS
from unitscope.errors import AtlasError
from unitscope.web.connections import Connections
from unitscope.web.numbered_rows import NumberedRows, StrongestEffects
from unitscope.web.purpose_records import (
    Candidate,
    CertainMistake,
    CircuitDrawing,
    CircuitEdge,
    CircuitNode,
    ClassEffect,
    ClassLayer,
    ClassUnit,
    Confusion,
    ImagePrediction,
    Knockout,
    MistakenUnit,
    OutputUnit,
    PredictedClass,
    PredictedImage,
    Trust,
    UnitCircuit,
    UnitEffects,
)
from unitscope.web.unit_numbers import UnitNumbers
from unitscope.web.unit_runs import UnitRuns

LOG = logging.getLogger(__name__)
CLASSES_EACH_WAY = 6
UNITS_EACH_WAY = 6
FEEDING_UNITS = 8
MISTAKEN_UNITS = 20
CANDIDATES = 12
DRAWN_UNITS = 4
"""How many units a circuit is drawn with that feed a unit, or that it feeds."""
DRAWN_FURTHER = 2
"""How many units more for each of these."""
ROWS_PER_RUN = 1 << 17
"""How many rows of effects are read at once, for units that stand beside each other."""
UNITS_KEPT = 1 << 15
"""For how many units the classes stay in memory that they raise and lower most: some 300 bytes each, so 10 MB."""
LAYERS_KEPT = 16
"""For how many layers the units stay in memory that raise and lower each class most: some 300 bytes a class, so 5 MB for 1,000 classes."""

MAY_BE_NULL = ("standard_error", "r", "slope", "node", "effect_right", "off_share")
"""Columns that have no value in some rows. A row that lacks another one says nothing."""

Row = dict[str, Any]


class PurposeQueries:
    """Answers questions about effects, knock-outs, circuits and predictions. A table that isn't there, or can't be read, says nothing."""

    def __init__(self, atlas: Atlas, image_keys: Callable[[], Mapping[int, str]]) -> None:
        self.atlas, self._image_keys = atlas, image_keys
        self._class_effects: LRUCache[str, StrongestEffects | None] = LRUCache(LAYERS_KEPT)
        self._lock = Lock()

    def read_ahead(self) -> None:
        """Read what pages of units need, before somebody waits for it."""
        _ = self._connections, self.class_names

    @cached_property
    def _readable(self) -> set[str]:
        return {table.name for table in self.atlas.tables() if table.problem is None}

    @property
    def has_predictions(self) -> bool:
        """True where it was measured what the network predicts."""
        return PREDICTIONS.name in self._readable

    @cached_property
    def class_names(self) -> dict[int, str]:
        """What the classes are called that anything is known of, by position."""
        names = {row["class"]: str(row["name"]) for row in self._rows("classes")}
        counts = Counter(names.values())
        names = {position: name if counts[name] == 1 else f"{name} ({position})" for position, name in names.items()}
        positions = {
            position for row in self._predictions for position in (row["label_class"], row["predicted"], *row["top_classes"])
        }
        known = {position for position in positions | set(names) if position is not None and position >= 0}
        return {position: names.get(position, f"output {position}") for position in sorted(known)}

    def class_name(self, position: int) -> str:
        """What a class is called; the label of images without one has position -1."""
        return "no label" if position < 0 else self.class_names.get(position, f"output {position}")

    def suggested_names(self, count: int) -> list[str]:
        """Names of classes, in their order; where there are more than so many, first those that images are of, or are taken for."""
        named = {position: name for position, name in self.class_names.items() if name != f"output {position}"}
        if len(named) > count:
            order = sorted(named, key=lambda position: (position not in self._paged_classes, position))
            named = {position: named[position] for position in order[:count]}
        return sorted(named.values(), key=str.casefold)

    # ── what a unit does ─────────────────────────────────────────────────────────────────────────────────────────

    def unit_effects(self, layer: str, unit: int) -> UnitEffects | None:
        """The classes that a unit raises most, and those that it lowers; None where effects weren't measured."""
        effects = self._effect_runs.run(layer, unit)
        if effects is None:
            return None
        raised, lowered = (self._class_effects_of(rows.of_number(unit)) for rows in (effects.raised, effects.lowered))
        return UnitEffects(raised, lowered, self.trust(layer), self._unit_knockouts(layer, unit))

    def _class_effects_of(self, columns: NumpyColumns) -> list[ClassEffect]:
        names = ("class", "effect", "standard_error", "share", "images")
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        return [
            ClassEffect(position, self.class_name(position), effect, None if isnan(error) else error, share, images)
            for position, effect, error, share, images in rows
        ]

    @cached_property
    def _effect_runs(self) -> UnitRuns[StrongestEffects | None]:
        units = sum(layer.units for layer in self.atlas.layers)
        rows = self.atlas.row_count(EFFECTS.name) if EFFECTS.name in self._readable else 0
        return UnitRuns(self._read_unit_effects, ROWS_PER_RUN * units // max(rows, 1), UNITS_KEPT)

    def _read_unit_effects(self, layer: str, units: range) -> StrongestEffects | None:
        rows = self._read_effects(layer, "unit", units)
        return None if rows is None else StrongestEffects.of(rows, CLASSES_EACH_WAY)

    def _unit_knockouts(self, layer: str, unit: int) -> list[Knockout]:
        rows = self._knockouts_by_units.get((layer, str(unit)), [])
        return [self._knockout(row) for row in sorted(rows, key=lambda row: -abs(row["logit_drop"]))][:CLASSES_EACH_WAY]

    @cached_property
    def _knockouts_by_units(self) -> dict[tuple[str, str], list[Row]]:
        by_units: dict[tuple[str, str], list[Row]] = {}
        for row in self._knockouts:
            by_units.setdefault((row["layer"], row["units"]), []).append(row)
        return by_units

    def _knockout(self, row: Row) -> Knockout:
        return Knockout(
            row["layer"], row["units"], row["replacement"], row["class"], self.class_name(row["class"]), row["images"],
            row["logit_drop"], row["standard_error"], row["probability_drop"], row["right_before"], row["right_after"],
        )  # fmt: skip

    def trust(self, layer: str) -> Trust:
        """How far the effects of a layer's units can be believed."""
        row = self._trust.get(layer, {})
        r = row.get("r")
        return Trust(bool(row.get("exact")), r if r is not None and isfinite(r) else None, row.get("knockouts") or 0)

    @cached_property
    def _trust(self) -> dict[str, Row]:
        return {row["layer"]: row for row in self._rows(EFFECT_LAYERS.name)}

    # ── what makes a class ───────────────────────────────────────────────────────────────────────────────────────

    def class_layers(self, position: int, layers: Sequence[str]) -> list[ClassLayer]:
        """The units of each layer that raise a class most, and those that lower it."""
        described = [self._class_layer(position, layer) for layer in layers]
        return [layer for layer in described if layer.raising or layer.lowering]

    def _class_layer(self, position: int, layer: str) -> ClassLayer:
        effects, raising, lowering = self._strongest_units(layer), [], []
        if effects is not None:
            raising, lowering = (_class_units(layer, rows.of_number(position)) for rows in (effects.raised, effects.lowered))
        return ClassLayer(layer, self.trust(layer), raising, lowering)

    def class_knockouts(self, position: int) -> list[Knockout]:
        """What taking units away did to a class, the largest drops first."""
        rows = [row for row in self._knockouts if row["class"] == position]
        return [self._knockout(row) for row in sorted(rows, key=lambda row: -row["logit_drop"])][:CLASSES_EACH_WAY]

    def _strongest_units(self, layer: str) -> StrongestEffects | None:
        """By class; None where no effects were measured."""
        with self._lock:
            if layer not in self._class_effects:
                rows = self._read_effects(layer, "class")
                self._class_effects[layer] = None if rows is None else StrongestEffects.of(rows, UNITS_EACH_WAY)
            return self._class_effects[layer]

    def _read_effects(self, layer: str, number: str, units: range | None = None) -> NumberedRows | None:
        """The effects of a layer's units, or of some of them, by unit or by class; None where there are none."""
        if EFFECTS.name not in self._readable:
            return None
        names = [name for name in EFFECTS.schema.names if name != "layer"]
        units = range(self._unit_counts.get(layer, 0)) if units is None else units
        try:
            table = self.atlas.rows_of_units(EFFECTS.name, layer, units, names)
        except AtlasError:
            LOG.debug("effects can't be read", exc_info=True)
            return None
        known = [table[name].is_valid() for name in names if name not in MAY_BE_NULL and table[name].null_count]
        return NumberedRows.of(table.filter(reduce(pc.and_, known)) if known else table, number)

    # ── what the network predicts ────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def confusions(self) -> dict[tuple[int, int], Confusion]:
        """How often images of a label are taken for a class, with the most certain ones, by label and prediction; the most frequent first, of
        equally frequent ones the most certain."""
        by_cell: dict[tuple[int, int], list[Row]] = {}
        for row in self._predictions:
            by_cell.setdefault((row["label_class"], row["predicted"]), []).append(row)
        confusions = [self._confusion(*cell, rows) for cell, rows in by_cell.items()]
        order = sorted(confusions, key=lambda c: (-c.images, -c.probability, c.label_class, c.predicted))
        return {(confusion.label_class, confusion.predicted): confusion for confusion in order}

    def _confusion(self, label_class: int, predicted: int, rows: list[Row]) -> Confusion:
        shown = [self._predicted_image(row) for row in sorted(rows, key=lambda row: row["rank"])]
        return Confusion(
            label_class, predicted, self.class_name(label_class), self.class_name(predicted), rows[0]["images"],
            shown[0].probability, shown,
        )  # fmt: skip

    def _predicted_image(self, row: Row) -> PredictedImage:
        pairs = zip(row["top_classes"], row["top_probabilities"], strict=False)
        shares = [(position, share) for position, share in pairs if position is not None and share is not None]
        top = [
            PredictedClass(position, self.class_name(position), share, position in self._paged_classes)
            for position, share in shares
        ]
        is_known = self._known_keys.get(row["image"]) == row["key"]
        return PredictedImage(row["image"], row["key"], is_known, row["probability"], dict(shares).get(row["label_class"]), top)

    def prediction(self, image: int, key: str) -> ImagePrediction | None:
        """What the network takes an image for; None where the atlas doesn't say."""
        row = self._predictions_by_image.get((image, key))
        if row is None:
            return None
        label_class, predicted = row["label_class"], row["predicted"]
        return ImagePrediction(
            label_class, self.class_name(label_class), predicted, self.class_name(predicted), row["rank"], row["images"],
            self._predicted_image(row),
        )  # fmt: skip

    def predicted_images_of(self, label_class: int) -> list[PredictedImage]:
        """The images of a class of which the atlas says what they are taken for."""
        return [image for (label, _), confusion in self.confusions.items() if label == label_class for image in confusion.shown]

    def output_units(self, position: int) -> list[OutputUnit]:
        """The units that are the network's output for a class: those of layers of which the scan found that they give the scores."""
        layers = [layer for layer in self.atlas.layers if layer.name in self._output_layers and position < layer.units]
        return [OutputUnit(layer.name, position) for layer in layers]

    def class_of(self, layer: str, unit: int) -> int | None:
        """The class whose score a unit gives; None where it gives none, or the class has no page."""
        return unit if layer in self._output_layers and unit in self._paged_classes else None

    @property
    def _output_layers(self) -> Sequence[str]:
        layers: Sequence[str] = self.atlas.manifest.get("class_layers", ())
        return layers

    @cached_property
    def _predictions_by_image(self) -> dict[tuple[int, str], Row]:
        return {(row["image"], row["key"]): row for row in self._predictions}

    @cached_property
    def classes(self) -> list[int]:
        """The classes that images are of, or are taken for: those that have pages."""
        cells = ((row["label_class"], row["predicted"]) for row in self._predictions)
        return sorted({position for cell in cells for position in cell if position >= 0})

    @cached_property
    def _paged_classes(self) -> set[int]:
        return set(self.classes)

    @cached_property
    def _known_keys(self) -> Mapping[int, str]:
        return self._image_keys()

    @cached_property
    def predicted_images(self) -> dict[int, str]:
        """The keys of images that are shown for what the network predicts, and that have no page, by number."""
        shown = [image for confusion in self.confusions.values() for image in confusion.shown]
        return {image.image: image.key for image in shown if not image.is_known}

    def missing_images(self, confusion: Confusion) -> list[int]:
        """The numbers of the shown images that the atlas has no picture of, and that aren't among the images at hand."""
        return [image.image for image in confusion.shown if self._is_missing(image)]

    def _is_missing(self, image: PredictedImage) -> bool:
        packed = self.atlas.packed_pictures
        return (
            not image.is_known
            and (packed is None or packed.content(image.image, image.key) is None)
            and not self.atlas.has_image_of_key(image.image, image.key)
        )

    @cached_property
    def mistakes(self) -> list[Confusion]:
        """Those of images whose label is another class, the most frequent first."""
        return [confusion for confusion in self.confusions.values() if 0 <= confusion.label_class != confusion.predicted]

    def most_certain(self, count: int) -> list[CertainMistake]:
        """The images of which the network is most certain and wrong, of those that there are pictures of."""
        images = [(confusion, image) for confusion in self.mistakes for image in confusion.shown]
        order = sorted(images, key=lambda pair: (-pair[1].probability, pair[1].image))
        with_pictures = ((confusion, image) for confusion, image in order[: count * 10] if not self._is_missing(image))
        return [
            CertainMistake(c.label_class, c.predicted, c.label_name, c.predicted_name, image)
            for c, image in islice(with_pictures, count)
        ]

    @cached_property
    def labelled_and_right(self) -> tuple[int, int]:
        """How many images have a label, and how many of them are taken for it."""
        labelled = [confusion for confusion in self.confusions.values() if confusion.label_class >= 0]
        return sum(c.images for c in labelled), sum(c.images for c in labelled if c.label_class == c.predicted)

    def mistaken_units(self, label_class: int, predicted: int) -> list[MistakenUnit]:
        """The units that speak most for a wrong class in a confusion, those of the deepest layers first."""
        rows = [row for row in self._mistakes if (row["label_class"], row["predicted"]) == (label_class, predicted)]
        known = [row for row in rows if self._has_unit(row["layer"], row["unit"])]
        order = sorted(known, key=lambda row: (-self._layer_codes[row["layer"]], -row["difference"]))
        return [MistakenUnit(*(row[name] for name in MistakenUnit.__slots__)) for row in order[:MISTAKEN_UNITS]]

    def candidates(self, position: int) -> list[Candidate]:
        """Candidates for shortcuts to a class, those with the largest effect first."""
        rows = [row for row in self._shortcuts if row["class"] == position and self._has_unit(row["layer"], row["unit"])]
        return [Candidate(*(row[name] for name in Candidate.__slots__)) for row in sorted(rows, key=lambda row: -row["effect"])][
            :CANDIDATES
        ]

    @cached_property
    def _mistakes(self) -> list[Row]:
        return self._rows(MISTAKES.name)

    @cached_property
    def _shortcuts(self) -> list[Row]:
        return self._rows(SHORTCUTS.name)

    # ── circuits ─────────────────────────────────────────────────────────────────────────────────────────────────

    def unit_circuit(self, layer: str, unit: int) -> UnitCircuit | None:
        """What feeds a unit and what it feeds; None where nobody looked."""
        fed_by, feeds = (connections.of_unit(layer, unit, FEEDING_UNITS) for connections in (self._fed_by, self._feeds))
        return UnitCircuit(fed_by, feeds, self._drawing(layer, unit)) if fed_by or feeds else None

    def _drawing(self, layer: str, unit: int) -> CircuitDrawing:
        """Two layers up and down, as columns from left to right."""
        nodes: dict[tuple[int, str, int], CircuitNode] = {}
        rows: Counter[int] = Counter()
        edges: list[CircuitEdge] = []

        def node(column: int, layer: str, unit: int) -> CircuitNode:
            key = column, layer, unit
            if key not in nodes:
                nodes[key] = CircuitNode(len(nodes), column, rows[column], layer, unit)
                rows[column] += 1
            return nodes[key]

        def spread(start: CircuitNode, step: int, count: int) -> list[CircuitNode]:
            added = []
            for other in (self._fed_by if step < 0 else self._feeds).of_unit(start.layer, start.unit, count):
                beside = node(start.column + step, other.layer, other.unit)
                first, second = (beside, start) if step < 0 else (start, beside)
                edges.append(CircuitEdge(first.number, second.number, other.contribution, other.share))
                added.append(beside)
            return added

        middle = node(0, layer, unit)
        for step in (-1, 1):
            for beside in spread(middle, step, DRAWN_UNITS):
                spread(beside, step, DRAWN_FURTHER)
        return CircuitDrawing(list(nodes.values()), edges)

    @cached_property
    def _layer_codes(self) -> dict[str, int]:
        return {layer.name: number for number, layer in enumerate(self.atlas.layers)}

    @property
    def _fed_by(self) -> Connections:
        return self._connections[0]

    @property
    def _feeds(self) -> Connections:
        return self._connections[1]

    @cached_property
    def _connections(self) -> tuple[Connections, Connections]:
        """Of each unit those that feed it, and those that it feeds."""
        names = ("layer", "unit", "source_layer", "source_unit", "contribution", "share")
        table = CIRCUITS.schema.empty_table().select(names)
        if CIRCUITS.name in self._readable:
            try:
                table = self.atlas.table(CIRCUITS.name, columns=names).drop_null()
            except AtlasError:
                LOG.debug("circuits can't be read", exc_info=True)
        layers, numbers = pa.array(list(self._layer_codes), pa.string()), UnitNumbers(self.atlas.layers)
        fed, feeding = (
            numbers.of_columns(pc.fill_null(pc.index_in(table[layer], layers), -1).to_numpy(), table[unit].to_numpy())
            for layer, unit in (("layer", "unit"), ("source_layer", "source_unit"))
        )
        is_known = (fed >= 0) & (feeding >= 0)
        columns = {name: table[name].to_numpy()[is_known] for name in ("contribution", "share")}
        fed, feeding = fed[is_known], feeding[is_known]
        return Connections.of(numbers, fed, feeding, columns), Connections.of(numbers, feeding, fed, columns)

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _predictions(self) -> list[Row]:
        return self._rows(PREDICTIONS.name)

    @cached_property
    def _knockouts(self) -> list[Row]:
        return self._rows(KNOCKOUTS.name)

    def _rows(self, name: str) -> list[Row]:
        if name not in self._readable:
            return []
        try:
            rows: list[Row] = self.atlas.table(name).to_pylist()
        except AtlasError:
            LOG.debug("the table %s can't be read", name, exc_info=True)
            return []
        return [row for row in rows if all(value is not None or column in MAY_BE_NULL for column, value in row.items())]

    def _has_unit(self, layer: str, unit: int) -> bool:
        units = self._unit_counts.get(layer)
        return units is not None and 0 <= unit < units

    @cached_property
    def _unit_counts(self) -> dict[str, int]:
        return {layer.name: layer.units for layer in self.atlas.layers}


def _class_units(layer: str, columns: NumpyColumns) -> list[ClassUnit]:
    rows = zip(*(columns[name].tolist() for name in ("unit", "effect", "share")), strict=True)
    return [ClassUnit(layer, *row) for row in rows]
