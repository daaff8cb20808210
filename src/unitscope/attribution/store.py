"""A table of projections while it comes to be: pieces are written as they are done, the table whole or not at all."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from unitscope.atlas import Atlas
from unitscope.atlas.attribution_images import Projection
from unitscope.atlas.schema import PROJECTIONS
from unitscope.errors import AtlasError
from unitscope.files import atomic_write, os_error_text
from unitscope.records import Peak

EVERY_S = 10.0
GROUP_ROWS = 72
"""Rows that are read together: eight units of nine. Few, in the pieces too, so that some units are found without reading the rest."""
WRITING = {"use_dictionary": ["layer"], "compression": "none", "write_statistics": ["layer", "unit"]}
"""Images are compressed as they are, and no two are the same."""
UNITS_AT_ONCE = 64


class Keeping:
    """The projections of one method, held for as long as `held` lasts; what a run that was stopped had done is there again."""

    def __init__(self, atlas: Atlas, method: str) -> None:
        self._atlas, self._method = atlas, method
        self._place = atlas.folder / "attributions" / f"{method}.parquet"
        self._aside = self._place.with_name(f".{method}")
        self._rows: list[Projection] = []
        self._due = monotonic() + EVERY_S

    @contextmanager
    def held(self) -> Iterator["Keeping"]:
        """Raises `AtlasError` where another run holds it, or where the folder can't be written to."""
        try:
            self._aside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AtlasError(f"{str(self._aside)!r} can't be made: {os_error_text(error)}") from error
        lock = FileLock(self._aside / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise AtlasError(f"{self._method!r} is at work on the atlas {str(self._atlas.folder)!r} already") from error
        try:
            yield self
        finally:
            try:
                self._write_piece()
            finally:
                if not any(self._pieces()):
                    shutil.rmtree(self._aside, ignore_errors=True)
                    _remove_empty(self._place.parent)
                lock.release()

    def lacking(self, layer: str, peaks: Sequence[Peak]) -> list[Peak]:
        """Those peaks of a layer that have no projection yet."""
        rows = pa.concat_tables(self._tables(pc.field("layer") == layer, ["unit", "rank"]))
        done = set(zip(rows["unit"].to_pylist(), rows["rank"].to_pylist(), strict=True))
        return [peak for peak in peaks if (peak.unit, peak.rank) not in done]

    def add(self, projection: Projection) -> None:
        """Take one in; from time to time they go to the disk."""
        self._rows.append(projection)
        if monotonic() >= self._due:
            self._write_piece()

    def finish(self) -> None:
        """Write the table: what stood there and what came, layer by layer in order."""
        self._write_piece()
        pieces = list(self._pieces())
        if not pieces:
            return
        with (
            atomic_write(self._place, f"the projections {str(self._place)!r}") as path,
            pq.ParquetWriter(path, PROJECTIONS, **WRITING) as writer,
        ):
            for layer in self._atlas.layers:
                for start in range(0, layer.units, UNITS_AT_ONCE):
                    units = (pc.field("unit") >= start) & (pc.field("unit") < start + UNITS_AT_ONCE)
                    rows = pa.concat_tables(self._tables((pc.field("layer") == layer.name) & units))
                    if len(rows):
                        writer.write_table(_in_order(rows), row_group_size=GROUP_ROWS)
        for piece in pieces:
            piece.unlink()

    def _tables(self, rows: pc.Expression, columns: Sequence[str] = PROJECTIONS.names) -> Iterator[pa.Table]:
        """Some rows of the table and of all pieces, and none at least."""
        yield PROJECTIONS.empty_table().select(columns)
        for path in (self._place, *self._pieces()):
            if path.exists():
                yield pq.read_table(path, columns=columns, filters=rows)

    def _pieces(self) -> Iterator[Path]:
        return iter(sorted(self._aside.glob("*.piece")))

    def _write_piece(self) -> None:
        self._due = monotonic() + EVERY_S
        if not self._rows:
            return
        number = max((int(piece.stem) for piece in self._pieces()), default=-1) + 1
        piece = self._aside / f"{number:06}.piece"
        with atomic_write(piece, f"the projections {str(piece)!r}") as path:
            rows = table_of(self._rows).sort_by([("layer", "ascending"), ("unit", "ascending")])
            pq.write_table(rows, path, row_group_size=GROUP_ROWS, **WRITING)
        self._rows = []


def table_of(projections: Sequence[Projection]) -> pa.Table:
    """Projections as rows."""
    rows = [
        {"layer": p.layer, "unit": p.unit, "rank": p.rank, "scale": p.scale, "image": p.image}
        | {"top": int(p.box.top), "left": int(p.box.left), "bottom": int(p.box.bottom), "right": int(p.box.right)}
        for p in projections
    ]
    return pa.Table.from_pylist(rows, schema=PROJECTIONS)


def _in_order(rows: pa.Table) -> pa.Table:
    """By unit and rank, each once: a run that was killed may have left pieces of what its table holds."""
    rows = rows.sort_by([("unit", "ascending"), ("rank", "ascending")])
    places = np.stack([rows["unit"].to_numpy(), rows["rank"].to_numpy()], axis=1)
    return rows.filter(pa.array(np.r_[True, (places[1:] != places[:-1]).any(axis=1)][: len(rows)]))


def _remove_empty(folder: Path) -> None:
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
