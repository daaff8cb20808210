"""What a table holds and how it was made, kept in the metadata of its Parquet file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import xxhash
from msgspec import Struct

from unitscope.atlas.tables import Column, TableSpec
from unitscope.errors import AtlasError, first_line

METADATA_KEY = b"unitscope"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a table was made. `peaks` is the hash of the peaks that it belongs to; None where it belongs to no single atlas.

    `command` is that of the table's declaration; `parameters` is what was given to it, without paths, so that the same input gives the
    same bytes.
    """

    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    peaks: str | None = None


class _Metadata(Struct):
    table: str
    level: str
    key: list[str]
    description: str
    columns: dict[str, str]
    command: str
    parameters: dict[str, Any]
    versions: dict[str, str]
    peaks: str | None


def hash_file(path: Path) -> str:
    """The XXH3 hash of a file's bytes, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def schema_with_metadata(spec: TableSpec, provenance: Provenance) -> pa.Schema:
    """The table's schema with its declaration and provenance, as they are written to the file."""
    metadata = _Metadata(
        spec.name, spec.level, list(spec.key), spec.description, {c.name: c.description for c in spec.columns},
        provenance.command, dict(provenance.parameters), dict(provenance.versions), provenance.peaks,
    )  # fmt: skip
    text = json.dumps(msgspec.structs.asdict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return spec.schema.with_metadata({METADATA_KEY: text.encode()})


def read_metadata(schema: pa.Schema, path: Path, spec: TableSpec | None) -> tuple[TableSpec, Provenance]:
    """The declaration and provenance of the table in a file with that schema; the declaration is `spec` where that is known.

    Raises `AtlasError` where the file declares none, or another than `spec`.
    """
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise AtlasError(
            f"table {str(path)!r} can't be used: its metadata doesn't say what it holds; remove it, or have unitscope write it"
        )
    try:
        metadata = msgspec.json.decode(text, type=_Metadata)
    except (msgspec.DecodeError, RecursionError) as error:
        raise AtlasError(f"table {str(path)!r} can't be used: its metadata is broken: {first_line(error)}") from error
    if spec is not None and metadata.table != spec.name:
        raise AtlasError(f"table {str(path)!r} can't be used: it holds the table {metadata.table!r}; remove it")
    provenance = Provenance(metadata.command, metadata.parameters, metadata.versions, metadata.peaks)
    return spec or _foreign_spec(metadata, schema, path), provenance


def _foreign_spec(metadata: _Metadata, schema: pa.Schema, path: Path) -> TableSpec:
    """The declaration of a table that this version doesn't know, as its file gives it."""
    if not metadata.key or not set(metadata.key) <= set(schema.names):
        raise AtlasError(f"table {str(path)!r} can't be used: it lacks key columns of {metadata.key}")
    types = {f.name: f.type for f in schema if f.name in metadata.key}
    if not pa.types.is_string(types.get("layer", pa.string())) or not pa.types.is_integer(types.get("unit", pa.int32())):
        raise AtlasError(f"table {str(path)!r} can't be used: a layer is known by its name, and a unit by its number")
    columns = tuple(Column(f.name, f.type, metadata.columns.get(f.name, "")) for f in schema)
    return TableSpec(
        metadata.table, metadata.level, tuple(metadata.key), metadata.description, columns, metadata.command, path.name
    )
