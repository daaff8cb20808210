"""depth_table(): what units are like from the first layer to the last, from the tables that an atlas has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unitscope.atlas.reading import AtlasReader
from unitscope.atlas.tables import COLOUR_OR_SHAPE, DEPTH, NAMES, SCORES
from unitscope.atlas.ties import find_ties
from unitscope.records import Layer

MEANS = {
    "r": (NAMES.name, "r_b"),
    "predictability": (SCORES.name, "predictability"),
    "predictability_shuffled": (SCORES.name, "predictability_shuffled"),
    "grey": (COLOUR_OR_SHAPE.name, "grey"),
    "scrambled": (COLOUR_OR_SHAPE.name, "scrambled"),
}
"""Columns that are means over a layer's units, with the table and the column that they are of."""
READ = {
    "units": ("unit", "dead", "tied"),
    "peaks": ("unit", "value", "image"),
    NAMES.name: ("kind", "r_b", "images_b"),
    SCORES.name: ("predictability", "predictability_shuffled", "facets", "facets_shuffled"),
    COLOUR_OR_SHAPE.name: ("grey", "scrambled"),
}
CORE = ("units", "peaks")


@dataclass(frozen=True, slots=True)
class PlottedColumn:
    """A curve over the layers. Curves of one number have one colour; a control is what chance gives for the other one."""

    column: str
    label: str
    number: int
    is_control: bool = False


SIZE_PLOT = "Size of the field, pixels"
"""The only plot whose axis doesn't go from 0 to 1."""
DEPTH_PLOTS: Mapping[str, Sequence[PlottedColumn]] = {
    SIZE_PLOT: (
        PlottedColumn("receptive_field_height", "receptive field", 1, is_control=True),
        PlottedColumn("effective_field_height", "effective receptive field", 0),
    ),
    "Share of units": (
        PlottedColumn("visual", "tuned to an angle, a colour, contrast", 1),
        PlottedColumn("named", "named after a class or group", 0),
        PlottedColumn("several_facets", "with several facets", 2),
        PlottedColumn("several_facets_shuffled", "the same of random patches", 2, is_control=True),
        PlottedColumn("dead", "dead", 3),
    ),
    "How far to believe it": (
        PlottedColumn("predictability", "predictability", 0),
        PlottedColumn("predictability_shuffled", "the same, shuffled", 0, is_control=True),
        PlottedColumn("r", "r with the nearest concept", 1),
        PlottedColumn("r_chance", "its deviation by chance", 1, is_control=True),
    ),
    "What is left of the peaks": (PlottedColumn("grey", "in grey", 1), PlottedColumn("scrambled", "scrambled", 0)),
}
"""What is drawn of the table, by title."""


def depth_table(atlas: AtlasReader) -> pa.Table:
    """A row a layer, in call order, as the table `depth`. Columns of tables that aren't there, or are stale, are null."""
    readable = {summary.name for summary in atlas.tables() if summary.problem is None}
    names = [name for name in READ if name in CORE or name in readable]
    tables = {name: _ByLayer.of(atlas.table(name, columns=("layer", *READ[name]))) for name in names}
    rows = [_row(layer, {name: table.rows(layer.name) for name, table in tables.items()}) for layer in atlas.layers]
    return pa.Table.from_pylist(rows, schema=DEPTH.schema)


@dataclass(frozen=True, slots=True)
class _ByLayer:
    """A table that is read once, and the rows of each layer in it."""

    table: pa.Table
    layers: NDArray[Any]

    @classmethod
    def of(cls, table: pa.Table) -> "_ByLayer":
        codes = pc.dictionary_encode(table["layer"].combine_chunks())
        return cls(table, np.array(codes.dictionary.to_pylist(), dtype=object)[codes.indices.to_numpy(zero_copy_only=False)])

    def rows(self, layer: str) -> pa.Table:
        return self.table.filter(pa.array(self.layers == layer))


def _row(layer: Layer, tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    kinds = tables[NAMES.name]["kind"].to_pylist() if NAMES.name in tables else None
    images_b = _mean(_numbers(tables, NAMES.name, "images_b"))
    means = {column: _mean(_numbers(tables, *source)) for column, source in MEANS.items()}
    facets, facets_shuffled = (_numbers(tables, SCORES.name, name) for name in ("facets", "facets_shuffled"))
    return {
        "layer": layer.name,
        "units": layer.units,
        "receptive_field_height": layer.receptive_field_height,
        "effective_field_height": layer.effective_field_height,
        "named": None if kinds is None else _share([kind in ("class", "text") for kind in kinds]),
        "visual": None if kinds is None else _share([kind == "visual" for kind in kinds]),
        "r_chance": None if images_b is None or images_b < 2 else 1 / np.sqrt(images_b - 1),
        "several_facets": _mean(_above_one(facets)),
        "several_facets_shuffled": _mean(_above_one(facets_shuffled)),
        "dead": _share(tables["units"]["dead"].to_pylist()),
        "tied": len(_ties(layer, tables)) / max(layer.units, 1),
        **means,
    }


def _ties(layer: Layer, tables: Mapping[str, pa.Table]) -> Mapping[int, Any]:
    tied = np.zeros(layer.units, dtype=np.int64)
    units = tables["units"]
    tied[units["unit"].to_numpy()] = units["tied"].fill_null(0).to_numpy()
    return find_ties({name: tables["peaks"][name].to_numpy() for name in ("unit", "value", "image")}, tied)


def _numbers(tables: Mapping[str, pa.Table], table: str, column: str) -> NDArray[np.float64]:
    if table not in tables:
        return np.empty(0)
    values: NDArray[np.float64] = tables[table][column].to_numpy().astype(np.float64)
    return values


def _above_one(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where a value is above 1, 0 where it isn't, NaN where there is none."""
    return np.where(np.isnan(values), np.nan, values > 1)


def _share(is_such: Sequence[bool | None]) -> float:
    return sum(map(bool, is_such)) / max(len(is_such), 1)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Of what is finite; None where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
