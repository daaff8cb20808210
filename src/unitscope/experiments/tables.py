"""Tables of experiments: written whole or not at all."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.atlas import flush
from unitscope.errors import AtlasError


def write_table(table: pa.Table, path: Path) -> pa.Table:
    """Put the table in its place, and give it back. Raises `AtlasError` where that can't be done."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, aside)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    except OSError as error:
        raise AtlasError(f"the table {str(path)!r} can't be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return table
