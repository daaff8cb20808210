"""The rows of one layer, or of some of its units, in a Parquet file: only the row groups that may hold them are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Bounds = tuple[Any, Any] | None
"""The lowest and the highest value of a column in one row group; None where the file doesn't say."""


@dataclass(frozen=True, slots=True)
class RowGroups:
    """The row groups of a file with columns `layer` and `unit`, and the bounds of both in each of them."""

    path: Path
    metadata: pq.FileMetaData
    layer_bounds: Sequence[Bounds]
    unit_bounds: Sequence[Bounds]

    @classmethod
    def of(cls, path: Path) -> "RowGroups":
        """Those of a file; reads its metadata alone. Raises `KeyError` where it lacks one of both columns."""
        metadata = pq.read_metadata(path)
        numbers = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
        return cls(path, metadata, *(_bounds(metadata, numbers[name]) for name in ("layer", "unit")))

    def read(self, layer: str, units: range | None, columns: Sequence[str]) -> pa.Table:
        """These columns of the rows of a layer, or of a range of its units, in stored order.

        They are read in the caller's thread: several may ask at once, and each of Arrow's own threads would keep memory.
        """
        groups = [group for group in range(self.metadata.num_row_groups) if self._may_hold(group, layer, units)]
        has_others = [any(self.layer_bounds[group] != (layer, layer) for group in groups), units is not None]
        filtered_by = [name for name, is_needed in zip(("layer", "unit"), has_others, strict=True) if is_needed]
        with pq.ParquetFile(self.path, metadata=self.metadata, read_dictionary=["layer"]) as file:
            table = file.read_row_groups(groups, [*dict.fromkeys([*columns, *filtered_by])], use_threads=False)
        if "layer" in filtered_by:
            table = _where(table, pc.equal(table["layer"].cast(pa.string()), layer))
        if units is not None:
            table = _where(table, pc.and_(pc.greater_equal(table["unit"], units.start), pc.less(table["unit"], units.stop)))
        return table.select(columns)

    def _may_hold(self, group: int, layer: str, units: range | None) -> bool:
        layers, unit_bounds = self.layer_bounds[group], self.unit_bounds[group]
        if layers is not None and not layers[0] <= layer <= layers[1]:
            return False
        return units is None or unit_bounds is None or (unit_bounds[0] < units.stop and units.start <= unit_bounds[1])


def _bounds(metadata: pq.FileMetaData, column: int) -> list[Bounds]:
    """Those of a column in each row group; none where it has nulls there, or is of another type than its name says."""
    wanted = str if metadata.schema.column(column).path == "layer" else int
    bounds: list[Bounds] = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        is_known = statistics is not None and statistics.has_min_max and not (statistics.null_count or 0)
        low, high = (statistics.min, statistics.max) if is_known else (None, None)
        bounds.append((low, high) if isinstance(low, wanted) and isinstance(high, wanted) else None)
    return bounds


def _where(table: pa.Table, is_wanted: pa.ChunkedArray) -> pa.Table:
    """The rows where that holds: a slice where they follow each other."""
    rows = np.flatnonzero(is_wanted.fill_null(False).to_numpy())
    if not len(rows):
        return table.slice(0, 0)
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return table.slice(first, stop - first) if stop - first == len(rows) else table.take(rows)
