"""A table that is made layer by layer: a run that was stopped goes on where it was."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unitscope.atlas.atlas import Atlas
from unitscope.atlas.provenance import schema_with_metadata
from unitscope.atlas.tables import TableSpec
from unitscope.atlas.writing import check_table_writable, locked_pieces, provenance_of, write_table
from unitscope.errors import AtlasError
from unitscope.files import atomic_write
from unitscope.records import Layer


@dataclass(frozen=True)
class LayerPieces:
    """The rows of a table, layer by layer, a file each. Those that an earlier run left there count, if it made the same table in the same way."""

    folder: Path
    schema: pa.Schema

    def has(self, layer: Layer) -> bool:
        """True where the rows of a layer are there."""
        return self.rows(layer) is not None

    def add(self, layer: Layer, rows: pa.Table) -> None:
        """Take in a layer's rows."""
        piece = self._piece(layer)
        with atomic_write(piece, f"the rows {str(piece)!r}") as unfinished:
            pq.write_table(rows.select(self.schema.names).cast(self.schema), unfinished)

    def rows(self, layer: Layer) -> pa.Table | None:
        """The rows of a layer, None where they aren't there."""
        try:
            rows = pq.read_table(self._piece(layer), partitioning=None)
        except (OSError, pa.ArrowException):
            return None
        return rows.replace_schema_metadata(None) if rows.schema.equals(self.schema, check_metadata=True) else None

    def _piece(self, layer: Layer) -> Path:
        return self.folder / f"{layer.order:06}.piece"


@contextmanager
def tables_by_layer(
    specs: Sequence[TableSpec],
    atlas: Atlas,
    layers: Sequence[Layer],
    *,
    parameters: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
) -> Iterator[tuple[LayerPieces, ...]]:
    """Tables of these layers, whose rows come layer by layer; see `write_table`. After the block they are there, whole.

    Where the block fails, or the process is killed, what was done is there for the next run with the same parameters. Layers that aren't
    given stay as earlier tables with the same parameters have them. Raises `AtlasError` where no file can be written, where another run is
    at work on the tables, and where a table has been made with other parameters and has layers that this run leaves out.
    """
    for spec in specs:
        check_table_writable(spec, atlas)
    kept = [_kept_rows(spec, atlas, layers, parameters) for spec in specs]
    folders = [(atlas.folder / spec.file).with_name(f".{spec.name}") for spec in specs]
    schemas = [schema_with_metadata(spec, provenance_of(spec, atlas, parameters, versions)) for spec in specs]
    pieces = tuple(LayerPieces(folder, schema) for folder, schema in zip(folders, schemas, strict=True))
    with locked_pieces(folders[0], specs[0].name, atlas):
        yield pieces
        made = [_all_rows(spec, atlas, of_table) for spec, of_table in zip(specs, pieces, strict=True)]
        for spec, rows, of_others in zip(specs, made, kept, strict=True):
            rest = of_others.filter(pc.invert(pc.is_in(of_others["layer"], rows["layer"].unique())))
            write_table(pa.concat_tables([rest, rows]), spec, atlas, parameters=parameters, versions=versions)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _all_rows(spec: TableSpec, atlas: Atlas, pieces: LayerPieces) -> pa.Table:
    """Of all layers that this run made, and of those that one before it made and could not finish."""
    rows = [of_layer for layer in atlas.layers if (of_layer := pieces.rows(layer)) is not None]
    if not rows:
        raise AtlasError(f"the atlas {str(atlas.folder)!r} has no layers to make the table {spec.name!r} of")
    return pa.concat_tables(rows)


def _kept_rows(spec: TableSpec, atlas: Atlas, layers: Sequence[Layer], parameters: Mapping[str, Any]) -> pa.Table:
    """What an earlier run made of other layers, of the same peaks and with the same parameters. Raises `AtlasError` where they were others."""
    summary = next((summary for summary in atlas.tables() if summary.name == spec.name), None)
    if summary is None or summary.problem or summary.provenance is None:
        return spec.schema.empty_table()
    table = atlas.table(spec.name)
    kept = table.filter(pc.invert(pc.is_in(table["layer"], pa.array([layer.name for layer in layers], pa.string()))))
    if len(kept) and dict(summary.provenance.parameters) != dict(parameters):
        raise AtlasError(
            f"the table {spec.name!r} has other layers, such as {kept['layer'][0].as_py()!r}, made with "
            f"{_listed(summary.provenance.parameters)}, not with {_listed(parameters)}; make all layers anew, or remove "
            f"{str(atlas.folder / spec.file)!r}"
        )
    return kept


def _listed(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items() if not name.endswith("_hash"))
