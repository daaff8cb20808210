"""Tables of experiments: written whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.files import atomic_write, check_writable


def place_for_table(path: Path) -> Path:
    """Where a table is to stand, looked at before the work. Raises `AtlasError` where it can't be written, as far as can be told."""
    check_writable(path, f"the table {str(path)!r}")
    return path


def write_table(table: pa.Table, path: Path) -> pa.Table:
    """Put the table in its place, and give it back. Raises `AtlasError` where that can't be done."""
    with atomic_write(path, f"the table {str(path)!r}") as aside, aside.open("wb") as file:
        pq.write_table(table, file)
    return table
