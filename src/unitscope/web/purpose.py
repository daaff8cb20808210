"""What pages say of what units are for: the classes that a unit raises and lowers, what feeds it, what the network predicts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import isfinite
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.tables import CIRCUITS, EFFECT_LAYERS, EFFECTS, KNOCKOUTS, MISTAKES, PREDICTIONS, SHORTCUTS
from unitscope.errors import AtlasError
from unitscope.web.checked_tables import MAX_UNITS
from unitscope.web.purpose_records import (
    Candidate,
    CircuitDrawing,
    CircuitEdge,
    CircuitNode,
    ClassEffect,
    ClassLayer,
    ClassUnit,
    Confusion,
    FeedingUnit,
    Knockout,
    MistakenUnit,
    PredictedImage,
    Trust,
    UnitCircuit,
    UnitEffects,
)
from unitscope.web.rows_by_unit import RowsByUnit

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
LAYERS_KEPT = 2
"""Layers whose effects stay in memory: some 30 bytes a unit and class, so 40 MB for 1,280 units and 1,000 classes."""

MAY_BE_NULL = ("standard_error", "r", "slope", "node", "effect_right", "off_share")
"""Columns that have no value in some rows. A row that lacks another one says nothing."""

Row = dict[str, Any]


class PurposeQueries:
    """Answers questions about effects, knock-outs, circuits and predictions. A table that isn't there, or can't be read, says nothing."""

    def __init__(self, atlas: Atlas, image_keys: Callable[[], Mapping[int, str]], by_layer: bool = False) -> None:
        self.atlas, self._image_keys, self._by_layer = atlas, image_keys, by_layer
        self._effects: LRUCache[str, RowsByUnit | None] = LRUCache(LAYERS_KEPT)
        self._lock = Lock()

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
        positions = {
            position for row in self._predictions for position in (row["label_class"], row["predicted"], *row["top_classes"])
        }
        return {
            position: names.get(position, f"output {position}") for position in sorted(positions | set(names)) if position >= 0
        }

    def class_name(self, position: int) -> str:
        """What a class is called; the label of images without one has position -1."""
        return "no label" if position < 0 else self.class_names.get(position, f"output {position}")

    # ── what a unit does ─────────────────────────────────────────────────────────────────────────────────────────

    def unit_effects(self, layer: str, unit: int) -> UnitEffects | None:
        """The classes that a unit raises most, and those that it lowers; None where effects weren't measured."""
        effects = self._layer_effects(layer) if self._by_layer else self._read_effects(layer, unit)
        if effects is None:
            return None
        rows = effects.rows(unit)
        of_unit = effects.table.slice(rows.start, rows.stop - rows.start)
        sizes = np.nan_to_num(of_unit["effect"].to_numpy(), nan=0, posinf=0, neginf=0)
        order = np.argsort(-sizes, kind="stable")
        raised, lowered = order[sizes[order] > 0], order[::-1][sizes[order[::-1]] < 0]
        strongest = [
            [self._class_effect(row) for row in of_unit.take(some[:CLASSES_EACH_WAY]).to_pylist()] for some in (raised, lowered)
        ]
        return UnitEffects(strongest[0], strongest[1], self.trust(layer), self._unit_knockouts(layer, unit))

    def _class_effect(self, row: Row) -> ClassEffect:
        name = self.class_name(row["class"])
        return ClassEffect(row["class"], name, row["effect"], row["standard_error"], row["share"], row["images"])

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
        found = []
        for layer in layers:
            effects = self._layer_effects(layer)
            rows = [] if effects is None else effects.table.filter(pc.equal(effects.table["class"], position)).to_pylist()
            units = sorted(
                (row for row in rows if isfinite(row["effect"]) and self._has_unit(layer, row["unit"])),
                key=lambda row: -row["effect"],
            )
            described = [ClassUnit(layer, row["unit"], row["effect"], row["share"]) for row in units]
            raising = [unit for unit in described if unit.effect > 0][:UNITS_EACH_WAY]
            lowering = [unit for unit in reversed(described) if unit.effect < 0][:UNITS_EACH_WAY]
            if raising or lowering:
                found.append(ClassLayer(layer, self.trust(layer), raising, lowering))
        return found

    def class_knockouts(self, position: int) -> list[Knockout]:
        """What taking units away did to a class, the largest drops first."""
        rows = [row for row in self._knockouts if row["class"] == position]
        return [self._knockout(row) for row in sorted(rows, key=lambda row: -row["logit_drop"])][:CLASSES_EACH_WAY]

    def _layer_effects(self, layer: str) -> RowsByUnit | None:
        with self._lock:
            if layer not in self._effects:
                self._effects[layer] = self._read_effects(layer)
            return self._effects[layer]

    def _read_effects(self, layer: str, unit: int | None = None) -> RowsByUnit | None:
        """The effects of a layer's units, or of one; None where there are none."""
        if EFFECTS.name not in self._readable:
            return None
        try:
            table = self.atlas.table(EFFECTS.name, layer, unit)
        except AtlasError:
            LOG.debug("effects can't be read", exc_info=True)
            return None
        columns = [column for column in EFFECTS.schema.names if column not in MAY_BE_NULL]
        whole = pc.min_element_wise(*(table[name].is_valid().cast(pa.int8()) for name in columns))
        return RowsByUnit.of(table.filter(pc.equal(whole, 1)))

    # ── what the network predicts ────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def confusions(self) -> dict[tuple[int, int], Confusion]:
        """How often images of a label are taken for a class, with the most certain ones, by label and prediction; the most frequent first."""
        by_cell: dict[tuple[int, int], list[Row]] = {}
        for row in self._predictions:
            by_cell.setdefault((row["label_class"], row["predicted"]), []).append(row)
        found = [self._confusion(*cell, rows) for cell, rows in by_cell.items()]
        return {(c.label_class, c.predicted): c for c in sorted(found, key=lambda c: (-c.images, c.label_class, c.predicted))}

    def _confusion(self, label_class: int, predicted: int, rows: list[Row]) -> Confusion:
        shown = [
            PredictedImage(
                row["image"], row["key"], self._known_keys.get(row["image"]) == row["key"], row["probability"],
                [(self.class_name(position), share) for position, share in zip(row["top_classes"], row["top_probabilities"], strict=False)],
            )
            for row in sorted(rows, key=lambda row: row["rank"])
        ]  # fmt: skip
        return Confusion(
            label_class, predicted, self.class_name(label_class), self.class_name(predicted), rows[0]["images"], shown
        )

    @cached_property
    def _known_keys(self) -> Mapping[int, str]:
        return self._image_keys()

    @cached_property
    def predicted_images(self) -> dict[int, str]:
        """The keys of images that are shown for what the network predicts, and that have no page, by number."""
        shown = [image for confusion in self.confusions.values() for image in confusion.shown]
        return {image.image: image.key for image in shown if not image.is_known}

    @cached_property
    def mistakes(self) -> list[Confusion]:
        """Those of images whose label is another class, the most frequent first."""
        return [found for found in self.confusions.values() if 0 <= found.label_class != found.predicted]

    @cached_property
    def labelled_and_right(self) -> tuple[int, int]:
        """How many images have a label, and how many of them are taken for it."""
        labelled = [found for found in self.confusions.values() if found.label_class >= 0]
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
        if not len(self._circuits):
            return None
        fed_by, feeds = self._fed_by(layer, unit, FEEDING_UNITS), self._feeds(layer, unit, FEEDING_UNITS)
        return UnitCircuit(fed_by, feeds, self._drawing(layer, unit)) if fed_by or feeds else None

    def _fed_by(self, layer: str, unit: int, count: int) -> list[FeedingUnit]:
        return self._feeding(layer, unit, count, "layer", "source_layer", "source_unit")

    def _feeds(self, layer: str, unit: int, count: int) -> list[FeedingUnit]:
        return self._feeding(layer, unit, count, "source_layer", "layer", "unit")

    def _feeding(
        self, layer: str, unit: int, count: int, layer_column: str, other_layer: str, other_unit: str
    ) -> list[FeedingUnit]:
        """So many units that feed one, or are fed by it, the strongest first."""
        number = self._layer_codes.get(layer, -1) * MAX_UNITS + unit
        numbers, order = self._circuits_by_unit[layer_column]
        start, stop = np.searchsorted(numbers, [number, number + 1])
        rows = order[start:stop]
        columns = {name: self._circuit_columns[name][rows] for name in (other_layer, other_unit, "contribution", "share")}
        others = columns[other_layer]
        is_unit = (others >= 0) & (columns[other_unit] >= 0) & (columns[other_unit] < self._units_by_code[others])
        order = np.argsort(-columns["share"], kind="stable")
        return [
            FeedingUnit(self._layer_names[others[row]], int(columns[other_unit][row]), float(columns["contribution"][row]), float(columns["share"][row]))
            for row in order[is_unit[order]][:count].tolist()
        ]  # fmt: skip

    @cached_property
    def _layer_names(self) -> list[str]:
        return list(self._layer_codes)

    @cached_property
    def _units_by_code(self) -> NDArray[np.int64]:
        return np.array([layer.units for layer in self.atlas.layers], dtype=np.int64)

    def _drawing(self, layer: str, unit: int) -> CircuitDrawing:
        """Two layers up and down, as columns from left to right."""
        nodes: dict[tuple[int, str, int], CircuitNode] = {}
        edges: list[CircuitEdge] = []

        def node(column: int, layer: str, unit: int) -> CircuitNode:
            key = column, layer, unit
            if key not in nodes:
                nodes[key] = CircuitNode(len(nodes), column, sum(1 for known in nodes if known[0] == column), layer, unit)
            return nodes[key]

        def spread(start: CircuitNode, step: int, count: int) -> list[CircuitNode]:
            found = (self._fed_by if step < 0 else self._feeds)(start.layer, start.unit, count)
            added = []
            for other in found:
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

    @cached_property
    def _circuits(self) -> NDArray[np.int32]:
        return self._circuit_columns["unit"]

    @cached_property
    def _circuits_by_unit(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows in the order of the units that are fed, and of those that feed, with a number for each row's unit."""
        found = {}
        for layer, unit in (("layer", "unit"), ("source_layer", "source_unit")):
            numbers = self._circuit_columns[layer].astype(np.int64) * MAX_UNITS + self._circuit_columns[unit]
            order = np.argsort(numbers, kind="stable")
            found[layer] = numbers[order], order
        return found

    @cached_property
    def _circuit_columns(self) -> dict[str, NDArray[Any]]:
        names = ("layer", "unit", "source_layer", "source_unit", "contribution", "share")
        table = CIRCUITS.schema.empty_table().select(names)
        if CIRCUITS.name in self._readable:
            try:
                table = self.atlas.table(CIRCUITS.name, columns=names).drop_null()
            except AtlasError:
                LOG.debug("circuits can't be read", exc_info=True)
        layers = pa.array(list(self._layer_codes), pa.string())
        columns = {name: table[name].to_numpy() for name in names if not name.endswith("layer")}
        return columns | {
            name: pc.fill_null(pc.index_in(table[name], layers), -1).to_numpy() for name in ("layer", "source_layer")
        }

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
