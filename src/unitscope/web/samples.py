"""A layer's values in the sample of images: quantiles, medians and standard deviations."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.web.checked_tables import NumpyColumns

BANDS = {"99 %": 0.99, "90 %": 0.9, "50 %": 0.5, "lowest": 0.0}
"""The quantiles of the sample that a unit page shows, by their names."""
BAND_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SampleStatistics:
    """Median, standard deviation and highest value of every unit's sample; NaN for a unit that has none. Shapes are (unit,)."""

    median: NDArray[np.float64]
    std: NDArray[np.float64]
    highest: NDArray[np.float64]


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

    def statistics(self) -> SampleStatistics:
        """Median, standard deviation and highest value of every unit."""
        unit_count = len(self.unit_starts) - 1
        median, highest, std = (np.full(unit_count, np.nan) for _ in range(3))
        for unit in range(unit_count):
            values = self.values(unit).astype(np.float64)
            if len(values):
                median[unit], highest[unit], std[unit] = np.median(values), values[-1], values.std()
        return SampleStatistics(median, std, highest)
