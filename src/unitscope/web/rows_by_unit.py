"""The rows of a table that are about each unit, found without a look at the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RowsByUnit:
    """Rows of one layer, sorted by `units`, the unit of each."""

    table: pa.Table
    units: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> "RowsByUnit":
        """The rows of a table with a column `unit`, but those that lack it, each unit's in stored order."""
        table = table.filter(table["unit"].is_valid())
        units = table["unit"].to_numpy().astype(np.int64)
        order = np.argsort(units, kind="stable")
        return cls(table.take(order).combine_chunks(), units[order])

    def rows(self, unit: int) -> slice:
        """Where the rows of a unit lie."""
        start, stop = np.searchsorted(self.units, [unit, unit + 1])
        return slice(int(start), int(stop))

    def of_unit(self, unit: int) -> list[dict[str, Any]]:
        """The rows of a unit."""
        rows = self.rows(unit)
        found: list[dict[str, Any]] = self.table.slice(rows.start, rows.stop - rows.start).to_pylist()
        return found
