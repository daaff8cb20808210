"""A layer's values in the sample of images: quantiles, means and standard deviations, and the z-scores of other values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.atlas.reading import AtlasReader
from unitscope.records import Layer

NumpyColumns = Mapping[str, NDArray[Any]]
"""Columns of a table by name, all of one length."""

BANDS = {"99 %": 0.99, "90 %": 0.9, "50 %": 0.5, "weakest": 0.0}
"""The quantiles of the sample that a unit page shows, by their names."""
BAND_EXAMPLES = 3
SAMPLE_COLUMNS = ("unit", "image", "value", "y", "x", "top", "left", "bottom", "right")
"""All but the layer."""


def read_sample(atlas: AtlasReader, layer: Layer, units: range, columns: Sequence[str] = SAMPLE_COLUMNS) -> NumpyColumns:
    """These columns of the values in the sample but NaN, of some of a layer's units, by unit, value and, where it is among them, image."""
    table = atlas.rows_of_units("sample", layer.name, units, columns)
    if any(column.null_count for column in table.columns):
        raise atlas.broken("its sample lacks values")
    sample = {name: table[name].to_numpy() for name in columns}
    limits = {"unit": layer.units, "y": layer.map_height, "x": layer.map_width}
    if any(((sample[name] < 0) | (sample[name] >= limit)).any() for name, limit in limits.items() if name in sample):
        raise atlas.broken(f"its sample has units or cells that layer {layer.name!r} lacks")
    is_value = ~np.isnan(sample["value"])
    if not is_value.all():
        sample = {name: column[is_value] for name, column in sample.items()}
    if "image" in sample and ((np.diff(sample["unit"]) == 0) & (np.diff(sample["image"]) < 0)).any():
        order = np.lexsort((sample["image"], sample["unit"]))
        sample = {name: column[order] for name, column in sample.items()}
    order = order_within(sample["unit"], sample["value"])
    return {name: column[order] for name, column in sample.items()}


def order_within(numbers: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """The order of rows by number, by value, and as they stand. It is found sooner where rows stand by number, as many for each."""
    count = int(np.searchsorted(numbers, numbers[:1], side="right")[0]) if len(numbers) else 0
    if count and len(numbers) % count == 0:
        table = numbers.reshape(-1, count)
        if (table == table[:, :1]).all() and (np.diff(table[:, 0]) > 0).all():
            order = np.argsort(values.reshape(-1, count), axis=1, kind="stable")
            return (order + np.arange(0, len(numbers), count)[:, None]).ravel()
    return np.lexsort((values, numbers))


@dataclass(frozen=True, slots=True)
class SampleStatistics:
    """Mean, standard deviation and highest value of every unit's sample; NaN for a unit that has none. Shapes are (unit,)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    highest: NDArray[np.float64]

    @classmethod
    def of(cls, atlas: AtlasReader, layer: Layer) -> "SampleStatistics":
        """Those of a layer's units. Raises `AtlasError` where the sample has other units."""
        table = atlas.table("sample", layer.name, columns=["unit", "value"])
        if any(column.null_count for column in table.columns):
            raise atlas.broken("its sample lacks values")
        unit, value = table["unit"].to_numpy(), table["value"].to_numpy().astype(np.float64)
        if ((unit < 0) | (unit >= layer.units)).any():
            raise atlas.broken(f"its sample has units that layer {layer.name!r} lacks")
        unit, value = unit[~np.isnan(value)], value[~np.isnan(value)]
        counts = np.bincount(unit, minlength=layer.units)
        by_unit = value if (np.diff(unit) >= 0).all() else value[np.argsort(unit, kind="stable")]
        highest, has_values = np.full(layer.units, np.nan), counts > 0
        highest[has_values] = np.maximum.reduceat(by_unit, (np.cumsum(counts) - counts)[has_values]) if len(value) else []
        with np.errstate(invalid="ignore"):  # no images give 0 / 0, infinite values inf - inf
            mean = np.bincount(unit, value, layer.units) / counts
            std = np.sqrt(np.bincount(unit, (value - mean[unit]) ** 2, layer.units) / counts)
        return cls(mean, std, highest)


@dataclass(frozen=True, slots=True)
class LayerSample:
    """A layer's values in the sample as numpy columns, by unit, value and image, without NaN.

    `unit_starts` holds the first row of each unit, and the number of rows at its end.
    """

    columns: NumpyColumns
    unit_starts: NDArray[np.int64]

    @classmethod
    def of(cls, columns: NumpyColumns, unit_count: int) -> "LayerSample":
        """The sample of these columns, sorted as the class says."""
        return cls(columns, np.searchsorted(columns["unit"], np.arange(unit_count + 1)))

    def rows(self, unit: int) -> range:
        """The rows of a unit, from its lowest value to its highest."""
        return range(int(self.unit_starts[unit]), int(self.unit_starts[unit + 1]))

    def values(self, unit: int) -> NDArray[np.float32]:
        """A unit's values, from the lowest to the highest."""
        rows = self.rows(unit)
        return np.asarray(self.columns["value"][rows.start : rows.stop])

    def row(self, row: int) -> dict[str, Any]:
        """One row as Python values by column."""
        return {name: column[row].item() for name, column in self.columns.items()}

    def band_rows(self, unit: int, quantile: float) -> list[int]:
        """The rows of the values around a quantile of a unit, highest first; at quantile 0 the lowest ones, lowest first."""
        rows = self.rows(unit)
        start = min(max(round(quantile * (len(rows) - 1)) - BAND_EXAMPLES // 2, 0), max(len(rows) - BAND_EXAMPLES, 0))
        return sorted(rows[start : start + BAND_EXAMPLES], reverse=quantile > 0)


def z_scores(values: NDArray[np.floating[Any]], sample: SampleStatistics) -> NDArray[np.float64]:
    """One value of each unit, less the sample's mean, over the sample's standard deviation. Shapes are (unit,).

    NaN for a unit that has no sample, or the same value in all images of it.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sample.std > 0, (values - sample.mean) / sample.std, np.nan)
