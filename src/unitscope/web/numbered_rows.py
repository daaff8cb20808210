"""The rows of a table that are about each unit, or each class, found without a look at the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unitscope.atlas.samples import NumpyColumns, order_within


@dataclass(frozen=True, slots=True)
class NumberedRows:
    """Rows as numpy columns, sorted by `numbers`, the unit or the class of each."""

    columns: NumpyColumns
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, number: str) -> "NumberedRows":
        """The rows of a table by its column `number`, but those that lack it, each number's in stored order."""
        table = table.filter(table[number].is_valid())
        numbers = table[number].to_numpy().astype(np.int64)
        columns = {name: table[name].to_numpy() for name in table.column_names if name != number}
        if (np.diff(numbers) < 0).any():
            order = np.argsort(numbers, kind="stable")
            numbers, columns = numbers[order], {name: column[order] for name, column in columns.items()}
        return cls(columns, numbers)

    def rows(self, number: int) -> slice:
        """Where the rows of a unit or a class lie."""
        start, stop = np.searchsorted(self.numbers, [number, number + 1])
        return slice(int(start), int(stop))

    def of_number(self, number: int) -> dict[str, NDArray[Any]]:
        """The columns of the rows of a unit or a class."""
        rows = self.rows(number)
        return {name: column[rows] for name, column in self.columns.items()}


@dataclass(frozen=True, slots=True)
class StrongestEffects:
    """The rows with the highest effects of each unit, or class, and those with the lowest, beyond zero on either side.

    `raised` has the highest first, `lowered` the lowest.
    """

    raised: NumberedRows
    lowered: NumberedRows

    @classmethod
    def of(cls, rows: NumberedRows, count: int) -> "StrongestEffects":
        """So many of each, by the column `effect`; among equals those stored first are higher. What isn't finite counts as zero."""
        effects = np.nan_to_num(rows.columns["effect"], nan=0, posinf=0, neginf=0)
        order = order_within(rows.numbers, -effects)
        _, starts, sizes = np.unique(rows.numbers, return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(starts, sizes)
        is_raised = (place < count) & (effects[order] > 0)
        is_lowered = (place >= np.repeat(sizes, sizes) - count) & (effects[order] < 0)
        lowered = order[is_lowered]
        lowered = lowered[np.lexsort((-place[is_lowered], rows.numbers[lowered]))]
        return cls(*(_taken(rows, chosen) for chosen in (order[is_raised], lowered)))


def _taken(rows: NumberedRows, chosen: NDArray[np.int64]) -> NumberedRows:
    return NumberedRows({name: column[chosen] for name, column in rows.columns.items()}, rows.numbers[chosen])
