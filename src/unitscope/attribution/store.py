"""The table of a method's attributions while it is made: pieces are written as they are done, the table whole or not at all."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from unitscope.atlas import ADDED_TABLES, Atlas, table_writer
from unitscope.atlas.attribution_images import Attribution
from unitscope.atlas.provenance import read_metadata, schema_with_metadata
from unitscope.atlas.table_files import table_errors
from unitscope.atlas.writing import locked_pieces, provenance_of
from unitscope.files import atomic_write
from unitscope.records import Peak

PIECE_EVERY_S = 10.0
"""How much work a run that is killed can lose."""
GROUP_ROWS = 72
"""Rows that are read together: eight units of nine. Few, in the pieces too, so that some units are found without reading the rest."""
WRITER_OPTIONS = {"use_dictionary": ["layer"], "compression": "none", "write_statistics": ["layer", "unit"]}
"""Images are compressed as they are, and no two are the same."""
UNITS_AT_ONCE = 64
"""Units whose rows are in memory together while the table is written."""


class AttributionStore:
    """The attributions of one method, while `locked` lasts. What a run that was stopped had done is there again.

    Attributions are written to pieces every `piece_every_s` seconds, and to the table at the end.
    """

    def __init__(self, atlas: Atlas, method: str, piece_every_s: float | None = None) -> None:
        self._atlas, self._spec = atlas, ADDED_TABLES[method]
        self._path = atlas.folder / self._spec.file
        self._pieces_folder = self._path.with_name(f".{method}")
        self._parameters, self._versions = {"method": method}, {"torch": torch.__version__}
        self._rows: list[Attribution] = []
        self._piece_every_s = PIECE_EVERY_S if piece_every_s is None else piece_every_s
        self._next_piece_s = monotonic() + self._piece_every_s

    @contextmanager
    def locked(self) -> Iterator["AttributionStore"]:
        """Raises `AtlasError` where another run holds the lock, or where the folder can't be written to."""
        with locked_pieces(self._pieces_folder, self._spec.name, self._atlas):
            self._remove_stale_pieces()
            try:
                yield self
            finally:
                try:
                    self._write_piece()
                finally:
                    if not self._pieces():
                        shutil.rmtree(self._pieces_folder, ignore_errors=True)
                        _remove_empty(self._path.parent)

    def missing(self, layer: str, peaks: Sequence[Peak]) -> list[Peak]:
        """Those peaks of a layer that have no attribution yet."""
        rows = pa.concat_tables(self._tables(pc.field("layer") == layer, ["unit", "rank"]))
        done = set(zip(rows["unit"].to_pylist(), rows["rank"].to_pylist(), strict=True))
        return [peak for peak in peaks if (peak.unit, peak.rank) not in done]

    def add(self, attribution: Attribution) -> None:
        """Take one in; from time to time they go to the disk."""
        self._rows.append(attribution)
        if monotonic() >= self._next_piece_s:
            self._write_piece()

    def finish(self) -> None:
        """Write the table: what stood there and what came, layer by layer in order."""
        self._write_piece()
        pieces = self._pieces()
        if not pieces:
            return
        with table_writer(
            self._spec, self._atlas, parameters=self._parameters, versions=self._versions, options=WRITER_OPTIONS
        ) as writer:
            for layer in self._atlas.layers:
                for start in range(0, layer.units, UNITS_AT_ONCE):
                    units = (pc.field("unit") >= start) & (pc.field("unit") < start + UNITS_AT_ONCE)
                    rows = pa.concat_tables(self._tables((pc.field("layer") == layer.name) & units))
                    if len(rows):
                        writer.write_table(_in_order(rows), row_group_size=GROUP_ROWS)
        for piece in pieces:
            piece.unlink()

    def _tables(self, rows: pc.Expression, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Some rows of the earlier table and of all pieces."""
        schema = self._spec.schema
        names = list(columns or schema.names)
        yield schema.empty_table().select(names)
        for path in (*self._earlier_tables, *self._pieces()):
            with table_errors(path):
                yield pq.read_table(path, columns=names, filters=rows).replace_schema_metadata(None)

    @cached_property
    def _earlier_tables(self) -> list[Path]:
        """The table that earlier runs made of these peaks, where there is one. One of other peaks is replaced."""
        return [self._path] if self._path.exists() and not self._is_stale(self._path) else []

    def _is_stale(self, path: Path) -> bool:
        """True for a table or piece that was made from other peaks."""
        with table_errors(path):
            schema = pq.read_schema(path)
        return read_metadata(schema, path, self._spec)[1].peaks != self._atlas.peaks_hash

    def _pieces(self) -> list[Path]:
        return sorted(self._pieces_folder.glob("*.piece"))

    def _remove_stale_pieces(self) -> None:
        for piece in self._pieces():
            if self._is_stale(piece):
                piece.unlink()

    def _write_piece(self) -> None:
        self._next_piece_s = monotonic() + self._piece_every_s
        if not self._rows:
            return
        number = max((int(piece.stem) for piece in self._pieces()), default=-1) + 1
        piece = self._pieces_folder / f"{number:06}.piece"
        schema = schema_with_metadata(self._spec, provenance_of(self._spec, self._atlas, self._parameters, self._versions))
        with atomic_write(piece, f"the attributions {str(piece)!r}") as unfinished:
            rows = _as_rows(self._rows, schema).sort_by([("layer", "ascending"), ("unit", "ascending")])
            pq.write_table(rows, unfinished, row_group_size=GROUP_ROWS, **WRITER_OPTIONS)
        self._rows = []


def _as_rows(attributions: Sequence[Attribution], schema: pa.Schema) -> pa.Table:
    rows = [
        {"layer": p.layer, "unit": p.unit, "rank": p.rank, "scale": p.scale, "image": p.image}
        | {"top": int(p.box.top), "left": int(p.box.left), "bottom": int(p.box.bottom), "right": int(p.box.right)}
        for p in attributions
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _in_order(rows: pa.Table) -> pa.Table:
    """By unit and rank, each once: a run that was killed may have left pieces of what its table holds."""
    rows = rows.sort_by([("unit", "ascending"), ("rank", "ascending")])
    keys = np.stack([rows["unit"].to_numpy(), rows["rank"].to_numpy()], axis=1)
    return rows.filter(pa.array(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)][: len(rows)]))


def _remove_empty(folder: Path) -> None:
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
