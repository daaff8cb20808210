"""Images that lie many to a file: tar shards in WebDataset's form and Parquet files, on this machine or behind a URL.

Files are read from beginning to end, one after the other, so that nobody has to count their images first. The image at place `p` of
file `f` has the number `f · 2³² + p`: the order is that of the files and, within each, its own.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby, islice
from os.path import abspath, commonprefix
from time import sleep
from typing import Any, Protocol, TypeVar, runtime_checkable

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand
from fsspec.core import url_to_fs
from PIL import Image

from unitscope.errors import ImagesError
from unitscope.images.pixels import Pixels, Skipped, display

Result = TypeVar("Result")

Stream = Any
"""An open file to read, of whatever kind the file system gives."""

FILE_BITS = 32
TRIES, PATIENCE_S = 3, 0.5
UNSEEKABLE = -1
"""In place of a size: the bytes of that sample are found by reading the file from its beginning."""
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_ENDINGS = (".parquet",)
PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"}
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")


@dataclass(frozen=True, slots=True)
class Item:
    """One image on its way to be opened. `open` and `label` may be called in another thread."""

    image: int
    key: str
    open: Callable[[], Image.Image | Pixels]
    label: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it lies in a file: its name there, its bytes or None where there are none, its label."""

    name: str
    content: bytes | None
    label: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """What an index says of a sample; `where` is the form's own way to find its bytes."""

    name: str
    label: str | None
    where: tuple[int, int]


@runtime_checkable
class Form(Protocol):
    """How images lie in a file. All three raise any error where the file is broken."""

    def read(self, file: Stream) -> Iterator[Sample]:
        """All samples of an open file, in order."""
        ...

    def index(self, file: Stream) -> Iterator[Entry]:
        """The same samples without their bytes."""
        ...

    def fetch(self, file: Stream, entry: Entry) -> bytes | None:
        """The bytes of one sample."""
        ...


class FileSource:
    """Images in files of one form. Keys are the file's path from the folder that all are in, and the name within the file.

    A file is read in sequence; reading that fails is tried again, three times in all, before its error is raised. Single images
    are found through an index of their file.
    """

    def __init__(self, files: Sequence[str], form: Form) -> None:
        self.files = list(files)
        self.form = form
        start = commonprefix([file.rpartition("/")[0] + "/" for file in self.files])
        self._base = start[: start.rfind("/") + 1]
        self._indexes: dict[int, list[Entry]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indexes": {}}

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "files", "files": self.files}

    @property
    def hash(self) -> str:
        """SHA-256 over the files' names; what they hold, nobody has read yet."""
        return sha256("\0".join(self.files).encode()).hexdigest()

    def items(self, file: int) -> Iterator[Item]:
        """The images of one file, from its first to its last."""
        for place, sample in enumerate(self._read(file)):
            image = (file << FILE_BITS) + place
            yield Item(image, self._key(file, sample.name), partial(_opened, sample.content), partial(getattr, sample, "label"))

    def key(self, image: int) -> str:
        return self._key(image >> FILE_BITS, self._entry(image).name)

    def label(self, image: int) -> str | None:
        return self._entry(image).label

    def open(self, image: int) -> Image.Image:
        file, entry = image >> FILE_BITS, self._entry(image)
        return _opened(self._reached(file, lambda stream: self.form.fetch(stream, entry)))

    def find(self, key: str) -> int | None:
        """The number of the image with that key; None where it isn't there."""
        for file, path in enumerate(self.files):
            start = path.removeprefix(self._base) + "/"
            if key.startswith(start):
                names = [start + entry.name for entry in self._index(file)]
                if key in names:
                    return (file << FILE_BITS) + names.index(key)
        return None

    def _key(self, file: int, name: str) -> str:
        return f"{self.files[file].removeprefix(self._base)}/{name}"

    def _entry(self, image: int) -> Entry:
        file, place = image >> FILE_BITS, image & ((1 << FILE_BITS) - 1)
        entries = self._index(file) if 0 <= file < len(self.files) else []
        if place >= len(entries):
            raise Skipped("is no longer there")
        return entries[place]

    def _index(self, file: int) -> list[Entry]:
        if file not in self._indexes:
            self._indexes[file] = self._reached(file, lambda stream: list(self.form.index(stream)))
        return self._indexes[file]

    def _reached(self, file: int, use: Callable[[Stream], Result]) -> Result:
        try:
            with fsspec.open(self.files[file], "rb") as stream:
                return use(stream)
        except Exception as error:  # whatever a file system or a broken file leads to
            raise Skipped(f"can't be reached in {self.files[file]!r}: {type(error).__name__}: {error}") from error

    def _read(self, file: int) -> Iterator[Sample]:
        done = 0
        for attempt in range(1, TRIES + 1):
            try:
                with fsspec.open(self.files[file], "rb") as stream:
                    for place, sample in enumerate(self.form.read(stream)):
                        if place == done:
                            done += 1
                            yield sample
                return
            except Exception as error:
                if attempt == TRIES or isinstance(error, ImagesError):
                    raise FileBroken(f"{self.files[file]!r} can't be read: {type(error).__name__}: {error}") from error
                sleep(PATIENCE_S * 4 ** (attempt - 1))


def label_text(said: Any, classes: Any = None) -> str | None:
    """A label as text: words as they are, whole numbers by the class of that number; None for targets of other kinds."""
    if hasattr(said, "item") and np.ndim(said) == 0:
        said = said.item()
    if isinstance(said, int) and isinstance(classes, (list, tuple)) and 0 <= said < len(classes):
        return str(classes[said])
    return str(said) if isinstance(said, (str, int)) else None


class FileBroken(Exception):
    """A file that can't be read to its end, now or ever."""


class Tar:
    """A tar file in WebDataset's form: members whose names are equal up to the first dot after the last slash are one sample.

    Its image is the first member that ends as pictures do, its label what a member `.cls` or `.json` says; captions are no labels.
    """

    def read(self, file: Stream) -> Iterator[Sample]:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
            for name, members in groupby(filter(tarfile.TarInfo.isfile, tar), key=_sample_name):
                yield from _sample(name, ((member, _content(tar, member)) for member in members))

    def index(self, file: Stream) -> Iterator[Entry]:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                entries = list(_entries(tar))
        except (tarfile.TarError, OSError, ValueError):  # compressed, or a stream that can't go back, or broken
            file.seek(0)
            entries = [Entry(sample.name, sample.label, (place, UNSEEKABLE)) for place, sample in enumerate(self.read(file))]
        yield from entries

    def fetch(self, file: Stream, entry: Entry) -> bytes | None:
        start, size = entry.where
        if size == UNSEEKABLE:
            return next(islice(self.read(file), start, None)).content
        file.seek(start)
        return bytes(file.read(size))


class _Header(tarfile.TarInfo):
    """Where a tar file is cut off or damaged in the middle, tarfile takes it for its end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise OSError(f"the tar file is cut off or damaged: {error}") from error


def _entries(tar: tarfile.TarFile) -> Iterator[Entry]:
    for name, members in groupby(filter(tarfile.TarInfo.isfile, tar), key=_sample_name):
        listed = list(members)
        picture = next((member for member in listed if _ending(member) in PICTURES), None)
        if picture:
            sample = next(_sample(name, ((m, b"" if m is picture else _content(tar, m)) for m in listed)))
            yield Entry(picture.name, sample.label, (picture.offset_data, picture.size))


def _sample_name(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _ending(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise OSError(f"the tar file is cut off in {member.name!r}")
    return content


def _sample(name: str, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Iterator[Sample]:
    """The sample of these members; none where no picture is among them."""
    picture, label = None, None
    for member, content in members:
        ending = _ending(member)
        if picture is None and ending in PICTURES:
            picture = (member.name, content)
        elif ending == "cls":
            label = label or content.decode("utf-8", "backslashreplace").strip()
        elif ending == "json":
            label = label or _label_of(content)
    if picture:
        yield Sample(*picture, label)


def _label_of(content: bytes) -> str | None:
    """What a JSON object says under `label`, or a name like that."""
    try:
        said = json.loads(content)
    except ValueError:
        return None
    return label_text(next((said[name] for name in LABEL_COLUMNS if name in said), None)) if isinstance(said, dict) else None


class Parquet:
    """A Parquet file with a column of images: bytes, or Hugging Face's pairs of bytes and path."""

    def read(self, file: Stream) -> Iterator[Sample]:
        table = pq.ParquetFile(file)
        columns = _Columns.of(table.schema_arrow)
        place = 0
        for batch in table.iter_batches(batch_size=64, columns=columns.read):
            for row in batch.to_pylist():
                yield columns.sample(row, place)
                place += 1

    def index(self, file: Stream) -> Iterator[Entry]:
        table = pq.ParquetFile(file)
        columns = _Columns.of(table.schema_arrow)
        place = 0
        for group in range(table.num_row_groups):
            for row, said in enumerate(table.read_row_group(group, columns=columns.light).to_pylist()):
                sample = columns.sample(said, place)
                yield Entry(sample.name, sample.label, (group, row))
                place += 1

    def fetch(self, file: Stream, entry: Entry) -> bytes | None:
        table = pq.ParquetFile(file)
        columns = _Columns.of(table.schema_arrow)
        group, row = entry.where
        held = table.read_row_group(group, columns=[columns.image]).slice(row, 1).to_pylist()
        return columns.sample(held[0], 0).content


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a Parquet file hold what."""

    image: str
    paired: bool
    label: str | None
    classes: list[str] | None

    @classmethod
    def of(cls, schema: pa.Schema) -> "_Columns":
        held = [field for field in schema if _holds_bytes(field.type)]
        image = next((f for name in IMAGE_COLUMNS for f in held if f.name == name), held[0] if len(held) == 1 else None)
        if image is None:
            raise ImagesError(
                f"none of its columns {', '.join(map(repr, schema.names))} is known to hold images; call one 'image'"
            )
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        return cls(image.name, pa.types.is_struct(image.type), label, _classes(schema, label))

    @property
    def read(self) -> list[str]:
        return [self.image, *([self.label] if self.label else [])]

    @property
    def light(self) -> list[str]:
        """What an index needs."""
        return [*([f"{self.image}.path"] if self.paired else []), *([self.label] if self.label else [])]

    def sample(self, row: Mapping[str, Any], place: int) -> Sample:
        image = row.get(self.image)
        path = (image or {}).get("path") if self.paired else None
        content = (image or {}).get("bytes") if self.paired else image
        label = label_text(row.get(self.label), self.classes) if self.label else None
        return Sample(f"{place}" + (f"/{path}" if path else ""), content, label)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _classes(schema: pa.Schema, label: str | None) -> list[str] | None:
    """The names of the labels, as Hugging Face's datasets write them into the schema."""
    try:
        said = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        return list(map(str, said))
    except (KeyError, TypeError, ValueError):
        return None


FORMS: dict[str, Form] = dict.fromkeys(TAR_ENDINGS, Tar()) | dict.fromkeys(PARQUET_ENDINGS, Parquet())


def form_of(path: str) -> Form | None:
    """The form of a file or a pattern, by its ending; None for other paths."""
    return next((form for ending, form in FORMS.items() if path.partition("?")[0].lower().endswith(ending)), None)


def file_source(paths: Sequence[str]) -> FileSource:
    """The source of tar shards or Parquet files; braces such as `{000..127}` and globs stand for many, in order.

    Raises `ImagesError` where there are none, or of both kinds.
    """
    files = [file for path in paths for one in braceexpand(path) for file in _globbed(one)]
    forms = {form for file in files if (form := form_of(file))}
    if len(forms) != 1 or any(form_of(file) is None for file in files):
        raise ImagesError(f"images are either tar shards or Parquet files, not both: {', '.join(map(repr, paths))}")
    return FileSource(files, forms.pop())


def _globbed(path: str) -> list[str]:
    """The files that a glob stands for, sorted; the path itself where it is none."""
    if "*" not in path and "?" not in path.partition("://")[2]:
        return [path] if "://" in path else [abspath(path)]
    if "*" not in path:
        return [path]
    try:
        system, inner = url_to_fs(path)
        found = sorted(system.glob(inner))
    except Exception as error:
        raise ImagesError(f"the files {path!r} can't be listed: {type(error).__name__}: {error}") from error
    if not found:
        raise ImagesError(f"there are no files {path!r}")
    return [system.unstrip_protocol(file) if "://" in path else file for file in found]


def _opened(content: bytes | None) -> Image.Image:
    if content is None:
        raise Skipped("has no bytes in its file")
    return display(io.BytesIO(content))
