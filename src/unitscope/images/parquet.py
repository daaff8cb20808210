"""Parquet files with a column of images."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.errors import ImagesError
from unitscope.images.archive_formats import ArchiveMember, IndexEntry, Stream
from unitscope.images.datasets import IMAGE_COLUMNS
from unitscope.images.labels import LABEL_COLUMNS, ClassNames, label_text, words

PARQUET_ENDINGS = (".parquet",)
BATCH_ROWS = 64
"""How many rows are in memory at once: some 10 MB of photographs."""


class ParquetFormat:
    """An `ArchiveFormat`: a column holds the bytes of image files, or Hugging Face's pairs of bytes and path. A row is an image.

    Its name is the number of the row, and its path where it has one. An entry's location is a row group and the row within.
    """

    def read(self, file: Stream) -> Generator[ArchiveMember, None, None]:
        table = pq.ParquetFile(file)
        columns = _ImageColumns.of(table.schema_arrow)
        number = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns.names):
            for row in batch.to_pylist():
                yield columns.member(row, number)
                number += 1

    def index(self, file: Stream) -> Iterator[IndexEntry]:
        table = pq.ParquetFile(file)
        columns = _ImageColumns.of(table.schema_arrow)
        number = 0
        for group in range(table.num_row_groups):
            for row_of_group, row in enumerate(table.read_row_group(group, columns=columns.names_without_bytes).to_pylist()):
                member = columns.member(row, number)
                yield IndexEntry(member.name, member.label, (group, row_of_group))
                number += 1

    def fetch(self, file: Stream, entry: IndexEntry) -> bytes | None:
        table = pq.ParquetFile(file)
        columns = _ImageColumns.of(table.schema_arrow)
        group, row_of_group = entry.location
        (row,) = table.read_row_group(group, columns=[columns.image]).slice(row_of_group, 1).to_pylist()
        return columns.member(row, 0).content

    def first(self, file: Stream) -> ArchiveMember | None:
        with closing(self.read(file)) as members:
            return next(members, None)


@dataclass(frozen=True, slots=True)
class _ImageColumns:
    """Which columns hold images and labels; `paired` is true where an image is a pair of bytes and path."""

    image: str
    paired: bool
    label: str | None
    classes: ClassNames | None

    @classmethod
    def of(cls, schema: pa.Schema) -> "_ImageColumns":
        candidates = [field for field in schema if _holds_bytes(field.type)]
        usual = (field for name in IMAGE_COLUMNS for field in candidates if field.name == name)
        image = next(usual, candidates[0] if len(candidates) == 1 else None)
        if image is None:
            raise ImagesError(_no_image_column_text(schema, [field.name for field in candidates]))
        class_columns = _class_columns(schema)
        label = next((name for name in (*LABEL_COLUMNS, *class_columns) if name in schema.names), None)
        classes = class_columns.get(label or "")
        return cls(image.name, pa.types.is_struct(image.type), label, ClassNames(classes) if classes else None)

    @property
    def names(self) -> list[str]:
        return [self.image, *([self.label] if self.label else [])]

    @property
    def names_without_bytes(self) -> list[str]:
        return [*([f"{self.image}.path"] if self.paired else []), *([self.label] if self.label else [])]

    def member(self, row: Mapping[str, Any], number: int) -> ArchiveMember:
        image = row.get(self.image)
        path = (image or {}).get("path") if self.paired else None
        content = (image or {}).get("bytes") if self.paired else image
        label = label_text(row.get(self.label), self.classes) if self.label else None
        return ArchiveMember(f"{number}" + (f"/{path}" if path else ""), content, label)


def _holds_bytes(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        return bool(column_type.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _no_image_column_text(schema: pa.Schema, candidates: Sequence[str]) -> str:
    if candidates:
        return f"its columns {', '.join(map(repr, candidates))} all hold bytes; call the one with the images 'image'"
    columns = ", ".join(f"{field.name!r} ({field.type})" for field in schema)
    return f"none of its columns holds the bytes of image files, nor Hugging Face's pairs of bytes and path: {columns or 'it has none'}"


def _class_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """The class names of each column of labels, as Hugging Face's datasets write them into the schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: list(map(words, feature["names"])) for name, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
