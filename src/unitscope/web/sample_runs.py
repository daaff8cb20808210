"""What unit pages show of the sample: a histogram of each unit's values, and the rows of its bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.atlas.samples import BANDS, LayerSample, NumpyColumns
from unitscope.web.page_records import Histogram

BINS = 32


@dataclass(frozen=True, slots=True)
class SampleRun:
    """Of some neighbouring units of a layer, the first of which is `first_unit`: some 700 bytes a unit.

    `band_columns` are those of the sample for the rows of all bands, by unit, band and place in it; `band_sizes`, of shape (unit, band),
    says how many there are. Histograms have the lowest and the highest value of each unit, NaN where it has no finite one, and counts of
    shape (unit, bin).
    """

    first_unit: int
    band_columns: NumpyColumns
    band_sizes: NDArray[np.uint8]
    band_starts: NDArray[np.int64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, sample: LayerSample, units: range, highest_values: Sequence[float | None]) -> "SampleRun":
        """Those of these units of a layer; `highest_values` are the highest ones that they have in any image, which histograms reach up to."""
        rows: list[int] = []
        sizes = np.zeros((len(units), len(BANDS)), dtype=np.uint8)
        for place, unit in enumerate(units):
            for band, quantile in enumerate(BANDS.values()):
                of_band = sample.band_rows(unit, quantile)
                sizes[place, band] = len(of_band)
                rows += of_band
        columns = {name: column[rows] for name, column in sample.columns.items() if name != "unit"}
        starts = np.array([0, *accumulate(sizes.sum(axis=1).tolist())], dtype=np.int64)
        return cls(units.start, columns, sizes, starts, *_histograms(sample, units, highest_values))

    def bands(self, unit: int) -> tuple[NumpyColumns, list[int]]:
        """The rows of a unit's bands, and how many each band has; none of a unit without a sample."""
        place = unit - self.first_unit
        start, stop = self.band_starts[place], self.band_starts[place + 1]
        return {name: column[start:stop] for name, column in self.band_columns.items()}, self.band_sizes[place].tolist()

    def histogram(self, unit: int) -> Histogram | None:
        """None where a unit has no finite value."""
        place = unit - self.first_unit
        if np.isnan(self.lowest[place]):
            return None
        return Histogram(float(self.lowest[place]), float(self.highest[place]), self.counts[place].tolist())


def _histograms(
    sample: LayerSample, units: range, highest_values: Sequence[float | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Lowest and highest value of each unit, and the counts. Bins are half-open, but the last."""
    lowest, highest = np.full((2, len(units)), np.nan)
    counts = np.zeros((len(units), BINS), dtype=np.int32)
    for place, (unit, highest_value) in enumerate(zip(units, highest_values, strict=True)):
        values: NDArray[Any] = sample.values(unit).astype(np.float64)
        finite = values[np.isfinite(values)]
        if len(finite):
            low, high = finite[0], max(finite[-1], -np.inf if highest_value is None else highest_value)
            edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
            starts = np.searchsorted(finite, edges[:-1])
            counts[place] = np.diff(starts, append=len(finite))
            lowest[place], highest[place] = low, high
    return lowest, highest, counts
