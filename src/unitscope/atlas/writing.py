"""Writing an atlas, and tables that are added to it: each whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from unitscope.atlas.atlas import Atlas
from unitscope.atlas.provenance import Provenance, schema_with_metadata
from unitscope.atlas.schema import FORMAT, MANIFEST
from unitscope.atlas.tables import ADDED_TABLES, CORE_TABLES, TableSpec
from unitscope.errors import AtlasError
from unitscope.files import atomic_write, check_writable, os_error_text

MEASURED_COLUMNS = ("value", "mean", "std", "skewness", "lowest", "highest", "mean_a", "mean_b")
"""Columns of core tables without a dictionary: their values hardly ever repeat, so a dictionary would cost time and space."""

ROWS_PER_GROUP = 1 << 15
"""Of a row group at most: who reads the rows of one unit reads a whole one, in a millisecond or two. Smaller ones make files larger."""
ROWS_AT_ONCE = 4 * ROWS_PER_GROUP
"""How many rows of a core table are written at once, where it has as many."""


def new_atlas_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that an atlas may be written to: new, or empty. Nothing is made yet.

    Raises `AtlasError` where something is there already, so that nothing is ever overwritten.
    """
    folder = Path(os.path.realpath(out))  # a link would be replaced by the folder
    if (folder / MANIFEST).exists():
        raise AtlasError(f"{str(out)!r} already holds an atlas; give another --out, or remove it first")
    if folder.exists() and not folder.is_dir():
        raise AtlasError(f"{str(out)!r} is a file, and an atlas is a folder; give another --out")
    if folder.exists() and any(folder.iterdir()):
        raise AtlasError(f"{str(out)!r} is not empty and holds no atlas; give another --out")
    if os.path.ismount(folder):
        raise AtlasError(f"{str(out)!r} is a mount point, which can't be replaced in one step; give a folder inside it")
    if folder.exists() and folder.samefile(Path.cwd()):
        raise AtlasError(f"{str(out)!r} is the folder that you are in; give a folder to make, such as --out atlas")
    parent = folder.absolute().parent
    existing = next(path for path in (parent, *parent.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise AtlasError(f"{str(out)!r} can't be made: {str(existing)!r} can't be written to")
    return folder


def write_atlas(
    out: str | os.PathLike[str],
    tables: Mapping[str, pa.Table | Iterable[pa.Table]],
    manifest: Mapping[str, Any],
) -> None:
    """Write all core tables, each whole or in pieces, and the manifest: all or nothing. Optional tables may be left out.

    One thread a table asks for its pieces; tables begin in the order of `tables`.

    Raises `AtlasError` where that can't be done, and leaves nothing behind.
    """
    with atomic_write(new_atlas_folder(out), f"the atlas {str(out)!r}") as folder:
        folder.mkdir()
        with ThreadPoolExecutor(thread_name_prefix="tables") as pool:
            specs = [spec for spec in CORE_TABLES.values() if spec.name in tables or not spec.optional]
            specs.sort(key=lambda spec: list(tables).index(spec.name))
            written = [pool.submit(_write_core_table, tables[spec.name], spec, folder / spec.file) for spec in specs]
        for future in written:
            future.result()
        text = json.dumps({"format": FORMAT, **manifest}, indent=2, sort_keys=True, default=str)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_table_writable(spec: TableSpec, target: Atlas | Path) -> None:
    """Raises `AtlasError` where the table could not be written, as far as can be told without writing: before hours of work."""
    path = _path(spec, target)
    check_writable(path, _in_words(path))


def write_table(
    table: pa.Table,
    spec: TableSpec,
    target: Atlas | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> pa.Table:
    """Write a table that is added to an atlas, or one of no single atlas to a folder. Gives back what was written.

    A table of that name is replaced. The file's metadata says what the table holds (`spec`), the command that makes it with these
    `parameters` (JSON values, no paths), the versions of unitscope and of what is named in `versions`, and for which peaks it was made.
    In an atlas rows are sorted by the key columns, layers in call order.

    Raises `AtlasError` where the table can't be written, where a key column holds a null, where two rows have the same key, or where a
    row is of a layer that the atlas doesn't have.
    """
    table = table.select(spec.schema.names).cast(spec.schema)
    if isinstance(target, Atlas):
        table = _sorted(table, spec, target)
    with table_writer(spec, target, parameters=parameters, versions=versions) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return table


@contextmanager
def table_writer(
    spec: TableSpec,
    target: Atlas | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[pq.ParquetWriter]:
    """A writer for a table that is too large for memory; see `write_table`, which sorts and checks. After the block the file is there,
    whole. `options` are those of `pyarrow.parquet.ParquetWriter`."""
    path = _path(spec, target)
    with atomic_write(path, _in_words(path)) as unfinished, unfinished.open("wb") as file:  # a path would have to be valid text
        schema = schema_with_metadata(spec, provenance_of(spec, target, parameters, versions))
        with pq.ParquetWriter(file, schema, **(options or {})) as writer:
            yield writer


@contextmanager
def locked_pieces(folder: Path, name: str, atlas: Atlas) -> Iterator[None]:
    """The folder for the pieces of a table that is being made, for one run at a time.

    Raises `AtlasError` where another run holds it, or where it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AtlasError(f"{str(folder)!r} can't be made: {os_error_text(error)}") from error
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise AtlasError(f"{name!r} is at work on the atlas {str(atlas.folder)!r} already") from error
    try:
        yield
    finally:
        lock.release()


def provenance_of(
    spec: TableSpec, target: Atlas | Path, parameters: Mapping[str, Any] | None, versions: Mapping[str, str] | None
) -> Provenance:
    """What the metadata of a table that is made now says of its making."""
    peaks = target.peaks_hash if isinstance(target, Atlas) else None
    return Provenance(spec.command, parameters or {}, {"unitscope": version("unitscope")} | dict(versions or {}), peaks)


def _path(spec: TableSpec, target: Atlas | Path) -> Path:
    taken = spec.name in CORE_TABLES or ADDED_TABLES.get(spec.name, spec) != spec
    if isinstance(target, Atlas) and taken:
        raise AtlasError(f"a table can't be added as {spec.name!r}: unitscope has another table of that name")
    return (target.folder if isinstance(target, Atlas) else target) / spec.file


def _in_words(path: Path) -> str:
    return f"the table {str(path)!r}"


def _sorted(table: pa.Table, spec: TableSpec, atlas: Atlas) -> pa.Table:
    """The rows by key, layers in call order."""
    keys = table.select(spec.key)
    if "layer" in spec.key:
        names = pa.array([layer.name for layer in atlas.layers], pa.string())
        order = pc.index_in(table["layer"], names)
        keys = keys.set_column(keys.column_names.index("layer"), "layer", order)
    if any(column.null_count for column in keys.columns):
        raise AtlasError(f"the table {spec.name!r} has a row without {' or '.join(spec.key)}, or of a layer that the atlas lacks")
    if keys.group_by(list(spec.key), use_threads=False).aggregate([]).num_rows < len(keys):
        raise AtlasError(f"the table {spec.name!r} has two rows of the same {', '.join(spec.key)}")
    return table.take(pc.sort_indices(keys, [(name, "ascending") for name in spec.key]))


def _write_core_table(table: pa.Table | Iterable[pa.Table], spec: TableSpec, path: Path) -> None:
    repeating = [name for name in spec.schema.names if name not in MEASURED_COLUMNS]
    schema = _with_dictionaries(spec.schema)
    with (
        path.open("wb") as file,  # a path would have to be valid text
        pq.ParquetWriter(file, schema, use_dictionary=repeating, store_schema=False) as writer,  # read, strings are plain again
    ):
        pieces = [table] if isinstance(table, pa.Table) else table
        for rows in _put_together(piece.cast(schema) for piece in pieces):
            writer.write_table(rows.unify_dictionaries(), row_group_size=ROWS_PER_GROUP)


def _with_dictionaries(schema: pa.Schema) -> pa.Schema:
    """The schema with a dictionary for each column of strings: millions of rows name the same layers and labels."""
    return pa.schema(
        (field.name, pa.dictionary(pa.int32(), pa.string()) if pa.types.is_string(field.type) else field.type) for field in schema
    )


def _put_together(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The pieces, small ones as one: a row group of few rows costs more than it holds."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
