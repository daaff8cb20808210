"""Which units feed which: all circuits of an atlas in memory, to be looked up by unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.web.purpose_records import FeedingUnit
from unitscope.web.unit_numbers import UnitNumbers


@dataclass(frozen=True, slots=True)
class Connections:
    """The units that feed each unit, or that it feeds, the strongest first.

    Of unit number n, `other_units` has their numbers from place `starts[n]` to `starts[n + 1]`.
    """

    numbers: UnitNumbers
    starts: NDArray[np.int64]
    other_units: NDArray[np.int32]
    contributions: NDArray[np.float32]
    shares: NDArray[np.float32]

    @classmethod
    def of(
        cls, numbers: UnitNumbers, units: NDArray[np.int64], other_units: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]
    ) -> "Connections":
        """Those of these pairs of units; `columns` are `contribution` and `share` of each pair."""
        order = np.lexsort((-columns["share"], units))
        starts = np.searchsorted(units[order], np.arange(numbers.count + 1))
        contributions, shares = columns["contribution"][order], columns["share"][order]
        return cls(numbers, starts, other_units[order].astype(np.int32), contributions, shares)

    def __len__(self) -> int:
        return len(self.other_units)

    def of_unit(self, layer: str, unit: int, count: int) -> list[FeedingUnit]:
        """So many of a unit's, the strongest first."""
        number = self.numbers.number(layer, unit)
        rows = slice(self.starts[number], min(self.starts[number] + count, self.starts[number + 1]))
        columns = (column[rows].tolist() for column in (self.other_units, self.contributions, self.shares))
        return [
            FeedingUnit(*self.numbers.unit(other), contribution, share)
            for other, contribution, share in zip(*columns, strict=True)
        ]
