"""The Parquet files of an atlas's tables: which there are, whether they are stale, and their rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import and_
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cachetools import LRUCache

from unitscope.atlas.provenance import Provenance, hash_file, read_metadata
from unitscope.atlas.row_groups import RowGroups
from unitscope.atlas.tables import ADDED_FOLDER, ADDED_TABLES, ATLAS_TABLES, CORE_TABLES, TableSpec
from unitscope.errors import AtlasError, suggestion

SMALL_BYTES, SMALL_ROWS, SMALL_TABLES_KEPT = 4 << 20, 1 << 17, 12
"""Files of tables up to this size, and with up to so many rows, are read whole, and so many of them are kept: to find one layer's rows in a
file takes as long."""
RELEASED_AFTER_ROWS = 1 << 14
LARGE_TABLES_KEPT = 12
"""Of how many larger ones it is kept which row groups may hold which units: 0.5 MB for 13 million rows."""

FileState = tuple[str, int, int, int]
"""A table's name, and what changes with its file: time, size and inode."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """An open table. `provenance` is None for core tables, whose making `atlas.json` describes."""

    path: Path
    spec: TableSpec
    provenance: Provenance | None
    dataset: pq.ParquetDataset

    @property
    def row_count(self) -> int:
        """How many rows the file has."""
        with table_errors(self.path):
            return sum(fragment.count_rows() for fragment in self.dataset.fragments)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows that the table was opened for, with the types of the declaration."""
        schema = self.spec.schema
        with table_errors(self.path):
            if columns is not None:
                schema = pa.schema([schema.field(name) for name in columns])
            return self.dataset.read(columns=schema.names).select(schema.names).cast(schema)


@dataclass(frozen=True, slots=True)
class TableSummary:
    """One line in the list of an atlas's tables.

    `problem` says why the table can't be read; it is None for all others. `stale` is True where the reason is that the table was made
    from other peaks. `spec` and `rows` are None where the file doesn't give them.
    """

    name: str
    spec: TableSpec | None
    rows: int | None
    provenance: Provenance | None
    stale: bool
    problem: str | None

    @property
    def level(self) -> str | None:
        """What a row is about, such as `unit`."""
        return self.spec.level if self.spec else None

    def described(self) -> dict[str, Any]:
        """The same in values that JSON holds."""
        spec, provenance = self.spec, self.provenance
        columns = spec.columns if spec else ()
        return {
            "name": self.name,
            "level": self.level,
            "key": list(spec.key) if spec else [],
            "rows": self.rows,
            "description": spec.description if spec else "",
            "columns": [{"name": c.name, "type": str(c.type), "description": c.description} for c in columns],
            "command": provenance.command if provenance else spec.command if spec else "",
            "parameters": dict(provenance.parameters) if provenance else {},
            "versions": dict(provenance.versions) if provenance else {},
            "peaks": provenance.peaks if provenance else None,
            "stale": self.stale,
            "problem": self.problem,
        }


class TableFolder:
    """The tables in an atlas's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: LRUCache[FileState, pa.Table | None] = LRUCache(SMALL_TABLES_KEPT)
        self._large: LRUCache[FileState | None, tuple[RowGroups | None, pa.Schema]] = LRUCache(LARGE_TABLES_KEPT)
        self._lock = Lock()

    @property
    def added_names(self) -> list[str]:
        """The names of the tables that were added; no file may pass for a core table."""
        paths = (self._folder / ADDED_FOLDER).glob("[!.]*.parquet")
        return sorted(path.stem for path in paths if path.stem not in CORE_TABLES)

    @property
    def core_names(self) -> list[str]:
        """The names of the core tables, without those that an atlas may lack and this one lacks."""
        return [name for name, spec in CORE_TABLES.items() if not spec.optional or self._path(name).exists()]

    @cached_property
    def peaks_hash(self) -> str:
        """The XXH3 hash of `peaks.parquet`."""
        path = self._folder.absolute() / CORE_TABLES["peaks"].file
        with table_errors(path):
            return hash_file(path)

    def open(self, name: str, rows: pc.Expression | None = None) -> TableFile:
        """The table of that name, whose `rows` are to be read; all of them without.

        Raises `AtlasError` where there is none, where it can't be read, or where it is stale.
        """
        file = self._open_stale_or_not(name, rows)
        if self._is_stale(file):
            raise AtlasError(self._stale_text(file))
        return file

    def read(self, name: str, layer: str | None, units: range | None, columns: Sequence[str] | None) -> pa.Table:
        """The rows of a layer, or of a range of its units, or all. A small table is read once, and kept as long as its file is the same.

        Raises as `open` does.
        """
        wanted = [] if layer is None else [pc.field("layer") == layer]
        wanted += [] if units is None else [pc.field("unit") >= units.start, pc.field("unit") < units.stop]
        small = self._small_table(name) if wanted else None
        if small is not None:
            rows = small.filter(reduce(and_, wanted))
            return rows if columns is None else rows.select(columns)
        row_groups, schema = self._row_groups(name) if layer is not None else (None, None)
        if layer is None or row_groups is None or schema is None:
            return self.open(name, reduce(and_, wanted) if wanted else None).read(columns)
        with table_errors(row_groups.path):
            schema = schema if columns is None else pa.schema([schema.field(column) for column in columns])
            table = row_groups.read(layer, units, schema.names).cast(schema)
        if len(table) > RELEASED_AFTER_ROWS:
            pa.default_memory_pool().release_unused()  # Arrow keeps what it read with, as much as all else
        return table

    def _small_table(self, name: str) -> pa.Table | None:
        """A table whose file is small, whole; None where it is large, or has no layers and units."""
        state = self._state(name)
        if state is None or state[2] > SMALL_BYTES:
            return None
        with self._lock:
            if state not in self._small:
                file = self.open(name)
                is_small = {"layer", "unit"} <= set(file.spec.schema.names) and file.row_count <= SMALL_ROWS
                self._small[state] = file.read() if is_small else None
            return self._small[state]

    def _row_groups(self, name: str) -> tuple[RowGroups | None, pa.Schema]:
        """The row groups of a large table, None where it has no layers and units, and the columns that are declared."""
        state = self._state(name)
        with self._lock:
            if state is None or state not in self._large:
                file = self.open(name)
                schema = file.spec.schema
                with table_errors(file.path):
                    has_units = {"layer", "unit"} <= set(schema.names)
                    self._large[state] = RowGroups.of(file.path) if has_units else None, schema
            return self._large[state]

    def _state(self, name: str) -> FileState | None:
        """None where the file can't be looked at."""
        try:
            stat = self._path(name).stat()
        except OSError:
            return None
        return name, stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _path(self, name: str) -> Path:
        if name in CORE_TABLES:
            return self._folder.absolute() / CORE_TABLES[name].file
        return self._folder.absolute() / ADDED_FOLDER / f"{name}.parquet"

    def summaries(self) -> list[TableSummary]:
        """A line for every table, core tables first."""
        return [self._summary(name) for name in (*self.core_names, *self.added_names)]

    def _open_stale_or_not(self, name: str, rows: pc.Expression | None = None) -> TableFile:
        if name in self.core_names:
            path = self._path(name)
            with table_errors(path):
                dataset = pq.ParquetDataset(path, filters=rows)
            return TableFile(path, _as_stored(CORE_TABLES[name], dataset, path), None, dataset)
        if name not in self.added_names:
            raise AtlasError(self._no_table_text(name))
        return open_added_table(self._folder.absolute() / ADDED_FOLDER / f"{name}.parquet", ADDED_TABLES.get(name), rows)

    def _is_stale(self, file: TableFile) -> bool:
        """True for an added table that was made from other peaks than those of this atlas."""
        return file.provenance is not None and file.provenance.peaks != self.peaks_hash

    def _stale_text(self, file: TableFile) -> str:
        name = file.spec.name
        if name in ADDED_TABLES:
            remedy = f"make it again with: {file.spec.command_for(self._folder)}"
        else:  # nobody knows who wrote this command, so it isn't given as one to run
            remedy = f"make it again, or remove it; {file.spec.command!r} made it"
        return f"the table {name!r} of the atlas {str(self._folder)!r} is stale, since it was made from other peaks; {remedy}"

    def _no_table_text(self, name: str) -> str:
        atlas = f"the atlas {str(self._folder)!r}"
        if name in CORE_TABLES:
            return f"{atlas} has no table {name!r}: a rectifier follows all its layers, or it was scanned without; scan again with --troughs"
        if name in ADDED_TABLES:
            return f"{atlas} has no table {name!r} yet; make it with: {ADDED_TABLES[name].command_for(self._folder)}"
        names = [*self.core_names, *self.added_names]
        return f"{atlas} has no table {name!r}.{suggestion(name, {*names, *ADDED_TABLES})} It has: {', '.join(names)}"

    def _summary(self, name: str) -> TableSummary:
        try:
            file = self._open_stale_or_not(name)
            problem = self._stale_text(file) if self._is_stale(file) else None
            return TableSummary(name, file.spec, file.row_count, file.provenance, problem is not None, problem)
        except AtlasError as error:
            return TableSummary(name, ATLAS_TABLES.get(name), None, None, stale=False, problem=str(error))


def open_added_table(path: Path, spec: TableSpec | None, rows: pc.Expression | None = None) -> TableFile:
    """A table that was added; `spec` is its declaration where this version knows it, else the file's own is taken.

    Optional columns may be missing. Raises `AtlasError` where the file can't be read, declares no table, or lacks other columns.
    """
    with table_errors(path):
        dataset = pq.ParquetDataset(path, filters=rows)
    spec, provenance = read_metadata(dataset.schema, path, spec)
    if spec.name != path.stem:
        raise AtlasError(f"table {str(path)!r} can't be used: it holds the table {spec.name!r}")
    return TableFile(path, _as_stored(spec, dataset, path), provenance, dataset)


def _as_stored(spec: TableSpec, dataset: pq.ParquetDataset, path: Path) -> TableSpec:
    """The declaration without optional columns that a file lacks. Raises `AtlasError` where it lacks another one."""
    absent = [column for column in spec.columns if column.name not in dataset.schema.names]
    required = [column.name for column in absent if not column.optional]
    if required:
        raise AtlasError(f"table {str(path)!r} can't be read: it has no column {required[0]!r}")
    return replace(spec, columns=tuple(column for column in spec.columns if column not in absent)) if absent else spec


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turns what reading a Parquet file raises into an `AtlasError` of one line that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError) as error:
        raise AtlasError(f"table {str(path)!r} can't be read: {str(error).splitlines()[0]}") from error
