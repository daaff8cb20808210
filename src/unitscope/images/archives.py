"""Images that lie many to a file: tar shards in WebDataset's form and Parquet files, on this machine or behind a URL.

Files are read from beginning to end, one after the other, so that nobody has to count their images first. The image at place `p` of
file `f` has the number `f · 2³² + p`: the order is that of the files and, within each, its own.
"""

import bz2
import gzip
import json
import lzma
import tarfile
from collections import ChainMap, Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from hashlib import sha256
from itertools import count as counter
from itertools import groupby, islice
from os.path import commonprefix, exists
from posixpath import dirname, join, normpath, splitext
from time import sleep
from typing import Any, Protocol, TypeVar, runtime_checkable

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from unitscope.errors import ImagesError, UnitscopeError
from unitscope.files import absolute_path
from unitscope.images.content import FEW, hash_of_bytes, spread
from unitscope.images.datasets import IMAGE_COLUMNS
from unitscope.images.labels import LABEL_COLUMNS, decoded, first_label, label_text, words, written_label
from unitscope.images.names import picture_endings
from unitscope.images.pixels import read_bytes
from unitscope.images.protocol import ImageSource, Item, ShardUnreadable, Skipped, SourceImage, as_text
from unitscope.records import Shard

Result = TypeVar("Result")
Named = TypeVar("Named", "Sample", "Entry")

Stream = Any
"""An open file to read, of whatever kind the file system gives."""

FILE_BITS = 32
FEW_REMOTE, MOST_LINKS = 3, 40
TRIES, PATIENCE_S = 3, 0.5
UNSEEKABLE = -1
"""In place of a size: the bytes of that sample are found by reading the file from its beginning."""
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0\x80": lzma.open,
}
"""Who unpacks a file that begins so: all members or streams that it has, of which `tarfile` itself would read the first."""
PARQUET_ENDINGS = (".parquet",)
WEB = ("http://", "https://")
LEAVINGS = 1 << 31
"""From this place on, what a file holds that is no image of it is numbered."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it lies in a file: its name there, its bytes or None where there are none, its label.

    `reason` says why it can't be read, if it can't; of what is no image at all, `leaving` is true.
    """

    name: str
    content: bytes | None
    label: str | None = None
    reason: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What an index says of a sample; `where` is the form's own way to find its bytes."""

    name: str
    label: str | None
    where: tuple[int, int] = (0, 0)
    reason: str = ""
    leaving: bool = False


@runtime_checkable
class Form(Protocol):
    """How images lie in a file. All raise any error where the file is broken."""

    def read(self, file: Stream) -> Iterator[Sample]:
        """All samples of an open file, in order."""
        ...

    def index(self, file: Stream) -> Iterator[Entry]:
        """The same samples without their bytes."""
        ...

    def fetch(self, file: Stream, entry: Entry) -> bytes | None:
        """The bytes of one sample."""
        ...

    def first(self, file: Stream) -> Sample | None:
        """The first image with its label, without the bytes of what comes after it."""
        ...


class ArchiveSource(ImageSource):
    """Images in files of one form. Keys are the file's path from the folder that all are in, and the name within the file.

    Nobody counts the images, so each file is one shard, and there can't be a limit. A file is read in sequence; reading that fails is
    tried again, three times in all, before its error is raised. Single images are found through an index of their file.
    """

    thread_safe = True
    passed_over: Mapping[str, str] = {}
    noun = "items"

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

    def count(self, limit: int | None = None) -> None:
        """Nobody has counted them. Raises `UnitscopeError` for a limit."""
        if limit is not None:
            raise UnitscopeError("limit is for images that are numbered one by one; give fewer files instead")

    def shards(self, images_per_shard: int, limit: int | None = None) -> Iterator[Shard]:
        """One shard a file, however many images it has."""
        self.count(limit)
        return (Shard(file, file << FILE_BITS, (file + 1) << FILE_BITS) for file in range(len(self.files)))

    def items(self, shard: Shard) -> Iterator[Item]:
        """The images of one file, from its first to its last, and what it holds beside them, which is skipped."""
        file = shard.number
        places, leavings = counter(), counter(LEAVINGS)
        for sample in _named_apart(self._read(file)):
            image = (file << FILE_BITS) + next(leavings if sample.leaving else places)
            yield Item(image, self._key(file, sample.name), partial(_opened, sample.content, sample.label, sample.reason))

    def key(self, image: int) -> str:
        return self._key(image >> FILE_BITS, self._entry(image).name)

    def label(self, image: int) -> str | None:
        return self._entry(image).label

    def labels(self) -> None:
        """To know them is to read the files."""

    def content(self, image: int) -> None:
        """To reach one image may be to read a whole file."""

    def read(self, image: int) -> SourceImage:
        file, entry = image >> FILE_BITS, self._entry(image)
        content = None if entry.reason else self._reached(file, lambda stream: self.form.fetch(stream, entry))
        return _opened(content, entry.label, entry.reason)

    def has(self, image: int, key: str) -> bool:
        try:
            return self.key(image) == key
        except Skipped:
            return False

    def hash(self, limit: int | None = None) -> str:
        """SHA-256 over the files' names; what they hold, nobody has read yet."""
        self.count(limit)
        return sha256("\0".join(self.files).encode()).hexdigest()

    def fingerprint(self, limit: int | None = None) -> dict[str, str | None]:
        """The hash of the first image of a few files, by its number; None where it can't be read. One request a file."""
        self.count(limit)
        contents = {file: None if first is None else first.content for file, first in self._firsts()}
        return {file: None if content is None else f"{hash_of_bytes(content):016x}" for file, content in contents.items()}

    def fingerprint_labels(self, limit: int | None = None) -> dict[str, str | None]:
        self.count(limit)
        return {file: None if first is None else first.label or "" for file, first in self._firsts()}

    def _firsts(self) -> Iterator[tuple[str, Sample | None]]:
        for file in spread(len(self.files), FEW_REMOTE if any("://" in file for file in self.files) else FEW):
            first = None
            with suppress(Exception), fsspec.open(self.files[file], "rb") as stream:  # whoever scans it says why
                first = self.form.first(stream)
            yield str(file << FILE_BITS), first

    def unscanned_text(self, shards: Sequence[Shard]) -> str:
        return f"{len(shards)} of {len(self.files)} files could not be scanned"

    def empty_text(self) -> str:
        return f"there are no images: {', '.join(map(repr, self.files[:3]))}{' …' if len(self.files) > 3 else ''} hold nothing"

    def find(self, key: str) -> int | None:
        for file, path in enumerate(self.files):
            if key.startswith(as_text(path.removeprefix(self._base) + "/")):
                keys = [self._key(file, entry.name) for entry in self._index(file)]
                if key in keys:
                    return (file << FILE_BITS) + keys.index(key)
        return None

    def _key(self, file: int, name: str) -> str:
        return as_text(f"{self.files[file].removeprefix(self._base)}/{name}")

    def _entry(self, image: int) -> Entry:
        file, place = image >> FILE_BITS, image & ((1 << FILE_BITS) - 1)
        entries = self._index(file) if 0 <= file < len(self.files) else []
        if place >= len(entries):
            raise Skipped("is no longer there")
        return entries[place]

    def _index(self, file: int) -> list[Entry]:
        if file not in self._indexes:
            entries = self._reached(file, lambda stream: [e for e in self.form.index(stream) if not e.leaving])
            self._indexes[file] = list(_named_apart(entries))
        return self._indexes[file]

    def _reached(self, file: int, use: Callable[[Stream], Result]) -> Result:
        try:
            return _used(self.files[file], use)
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
                    raise ShardUnreadable(f"{self.files[file]!r} can't be read: {type(error).__name__}: {error}") from error
                sleep(PATIENCE_S * 4 ** (attempt - 1))


def _used(path: str, use: Callable[[Stream], Result]) -> Result:
    """What a function gives of an open file. One from a server that gives no parts of files is fetched whole, once."""
    try:
        with fsspec.open(path, "rb") as stream:
            return use(stream)
    except ValueError:
        if "://" not in path:
            raise
    with fsspec.open(f"simplecache::{path}", "rb") as stream:
        return use(stream)


class Tar:
    """A tar file in WebDataset's form: members whose names are equal up to the first dot after the last slash are one sample.

    Every member whose last ending Pillow knows is an image, the other members of its sample are no images of their own. Its label is
    what `.cls` or `.json` of the same name says, or those of the sample, or the name of the first folder on its way; captions are no
    labels. Several tar files in one, one after the other, are read to the last. Of a file on this machine all names are read first, so that labels may stand anywhere and links are followed; in a stream the
    members of a sample must lie together. A member of a sample without an image is left over.
    """

    def read(self, file: Stream) -> Generator[Sample, None, None]:
        entries = self._listed(file) if isinstance(getattr(file, "fs", None), LocalFileSystem) else None
        if entries is None:
            yield from _streamed(file)
        for entry in entries or ():
            content = None if entry.reason else self.fetch(file, entry)
            yield Sample(entry.name, content, entry.label, entry.reason, entry.leaving)

    def index(self, file: Stream) -> Iterator[Entry]:
        entries = self._listed(file)
        if entries is None:
            images = (sample for sample in _streamed(file) if not sample.leaving)
            entries = [Entry(s.name, s.label, (place, UNSEEKABLE), s.reason) for place, s in enumerate(images)]
        yield from entries

    def fetch(self, file: Stream, entry: Entry) -> bytes | None:
        start, size = entry.where
        if size == UNSEEKABLE:
            return next(islice((sample for sample in _streamed(file) if not sample.leaving), start, None)).content
        file.seek(start)
        content = bytes(file.read(size))
        if len(content) != size:
            raise OSError(f"the tar file is cut off in {entry.name!r}")
        return content

    def first(self, file: Stream) -> Sample | None:
        with closing(self.read(file)) as samples:
            return next((sample for sample in samples if not sample.leaving), None)

    def _listed(self, file: Stream) -> list[Entry] | None:
        """All samples, from one look at the names; None where the file is compressed, a stream that can't go back, or broken."""
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header, ignore_zeros=True) as tar:
                return list(_entries(tar))
        except (tarfile.TarError, OSError, ValueError):
            file.seek(0)
            return None


def _unpacked(file: Stream) -> Stream:
    """The tar file itself, to be read from its beginning to its end."""
    start = file.read(max(map(len, PACKED)))
    unpack = next((unpack for sign, unpack in PACKED.items() if start.startswith(sign)), None)
    return _Begun(start, file) if unpack is None else unpack(_Begun(start, file))


class _Begun:
    """A stream that can't go back, with its first bytes, which were read already, before the rest."""

    def __init__(self, start: bytes, file: Stream) -> None:
        self._start, self._file = start, file

    def read(self, size: int) -> bytes:
        first, self._start = self._start[:size], self._start[size:]
        return first or bytes(self._file.read(size))


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
    """All images of a tar file that can go back, and what is left over; labels that lie elsewhere than their image count too."""
    members = [member for member in tar if not member.isdir()]
    by_name = {normpath(member.name): member for member in members}
    groups = [list(of_sample) for _, of_sample in groupby(members, key=_sample_name)]
    labels = [_labels(tar, group, by_name) for group in groups]
    anywhere = {stem: said for group in reversed(labels) for stem, said in group.items()}
    samples = {_sample_name(member) for member in members if _is_picture(member)}
    for group, beside in zip(groups, labels, strict=True):
        for member in filter(_is_picture, group):
            target, label = _target(member, by_name), _label_of(member, ChainMap(beside, anywhere))
            where = (target.offset_data, target.size) if isinstance(target, tarfile.TarInfo) else (0, 0)
            yield Entry(member.name, label, where, target if isinstance(target, str) else "")
        if _sample_name(group[0]) not in samples:
            yield Entry(group[0].name, None, reason=_left_over(group), leaving=True)


def _labels(
    tar: tarfile.TarFile, group: Sequence[tarfile.TarInfo], by_name: Mapping[str, tarfile.TarInfo]
) -> dict[str, str | None]:
    """What the members of one sample say, by the name that they say it of."""
    targets = [(member, _target(member, by_name)) for member in reversed(group) if _is_label(member)]
    return {_stem(m): _label_said(m, _content(tar, target)) for m, target in targets if isinstance(target, tarfile.TarInfo)}


def _streamed(file: Stream) -> Generator[Sample, None, None]:
    """The same of a tar file that is read once from its beginning; members of a sample lie together."""
    with tarfile.open(fileobj=_unpacked(file), mode="r|", tarinfo=_Header, ignore_zeros=True) as tar:
        for _, of_sample in groupby((member for member in tar if not member.isdir()), key=_sample_name):
            members = [(member, _content(tar, member) if member.isfile() else None) for member in of_sample]
            labels = {
                _stem(m): _label_said(m, content) for m, content in reversed(members) if content is not None and _is_label(m)
            }
            pictures = [(member, content) for member, content in members if _is_picture(member)]
            for member, content in pictures:
                reason = "" if content is not None else f"is a link to {member.linkname!r}, which can't be followed in a stream"
                yield Sample(member.name, content, _label_of(member, labels), reason)
            if not pictures:
                yield Sample(members[0][0].name, None, reason=_left_over([member for member, _ in members]), leaving=True)


def _target(member: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | str:
    """The member that holds the bytes, where links lead to; or why there is none."""
    target: tarfile.TarInfo | None = member
    for _ in range(MOST_LINKS):
        if target is None:
            return f"is a link to {member.linkname!r}, which isn't in the tar file"
        if target.isfile():
            return "is a sparse file" if target.issparse() else target
        if not target.islnk() and not target.issym():
            return "is no regular file"
        beside = "" if target.islnk() else dirname(target.name)
        target = by_name.get(normpath(join(beside, target.linkname)))
    return f"is a link to {member.linkname!r}, which leads back to itself"


def _left_over(members: Sequence[tarfile.TarInfo]) -> str:
    endings = [_ending(member) for member in members]
    if any(member.name.lower().endswith(TAR_ENDINGS) for member in members):
        return "is a tar file inside the tar file: unpack the outer one and give those"
    if any(map(_is_label, members)):
        return f"is a sample without an image beside it: it has {', '.join(endings)}"
    return "is no image by its ending" if any(endings) else "has no ending that says that it is an image"


def _sample_name(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + (name[:1] + name[1:].partition(".")[0])


def _stem(member: tarfile.TarInfo) -> str:
    return splitext(member.name)[0]


def _ending(member: tarfile.TarInfo) -> str:
    return splitext(member.name)[1].lower()


def _is_picture(member: tarfile.TarInfo) -> bool:
    return _ending(member) in picture_endings()


def _is_label(member: tarfile.TarInfo) -> bool:
    return _ending(member) in (".cls", ".json")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise OSError(f"the tar file is cut off in {member.name!r}")
    return content


def _label_of(member: tarfile.TarInfo, labels: Mapping[str, str | None]) -> str | None:
    """The label of an image: what is said under its own name, with its ending or without, or the start of it up to a dot; or its
    first folder."""
    stem, sample = member.name, _sample_name(member)
    while len(stem) >= len(sample):
        if labels.get(stem):
            return labels[stem]
        stem = splitext(stem)[0] if splitext(stem)[1] else ""
    folders = [part for part in member.name.split("/")[:-1] if part not in ("", ".")]
    return as_text(folders[0]) if folders else None


def _label_said(member: tarfile.TarInfo, content: bytes) -> str | None:
    """What `.cls` says, or a JSON object under `label` or a name like that."""
    if _ending(member) == ".cls":
        return written_label(decoded(content))
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return label_text(first_label(said)[1]) if isinstance(said, dict) else None


def _named_apart(samples: Iterable[Named]) -> Iterator[Named]:
    """Members of one name are several images: from the second on they get a number."""
    met: Counter[str] = Counter()
    for sample in samples:
        met[sample.name] += 1
        yield sample if met[sample.name] == 1 else replace(sample, name=f"{sample.name}#{met[sample.name]}")


class Parquet:
    """A Parquet file with a column of images: bytes, or Hugging Face's pairs of bytes and path."""

    def read(self, file: Stream) -> Generator[Sample, None, None]:
        table = pq.ParquetFile(file)
        columns = _Columns.of(table.schema_arrow)
        place = 0
        for batch in table.iter_batches(batch_size=64, columns=columns.read):
            for row in batch.to_pylist():
                yield columns.sample(row, place)
                place += 1

    def first(self, file: Stream) -> Sample | None:
        with closing(self.read(file)) as samples:
            return next(samples, None)

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
            raise ImagesError(_without_images(schema, [field.name for field in held]))
        classes = _classes(schema)
        label = next((name for name in (*LABEL_COLUMNS, *classes) if name in schema.names), None)
        return cls(image.name, pa.types.is_struct(image.type), label, classes.get(label or ""))

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


def _without_images(schema: pa.Schema, held: Sequence[str]) -> str:
    if held:
        return f"its columns {', '.join(map(repr, held))} all hold bytes; call the one with the images 'image'"
    columns = ", ".join(f"{field.name!r} ({field.type})" for field in schema)
    return f"none of its columns holds the bytes of image files, nor Hugging Face's pairs of bytes and path: {columns or 'it has none'}"


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the labels in each column of labels, as Hugging Face's datasets write them into the schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: list(map(words, said["names"])) for name, said in features.items() if "names" in said}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


FORMS: dict[str, Form] = dict.fromkeys(TAR_ENDINGS, Tar()) | dict.fromkeys(PARQUET_ENDINGS, Parquet())


def form_of(path: str) -> Form | None:
    """The form of a file or a pattern, by its ending; None for other paths."""
    name = path.partition("?")[0] if path.startswith(WEB) else path
    return next((form for ending, form in FORMS.items() if name.lower().endswith(ending)), None)


def archive_source(paths: Sequence[str]) -> ArchiveSource:
    """The source of tar shards or Parquet files; braces such as `{000..127}` and globs stand for many, in order.

    Raises `ImagesError` where there are none, or of both kinds.
    """
    files = [file for path in paths for one in braceexpand(path) for file in _globbed(one)]
    forms = {form for file in files if (form := form_of(file))}
    if len(forms) != 1 or any(form_of(file) is None for file in files):
        raise ImagesError(f"images are either tar shards or Parquet files, not both: {', '.join(map(repr, paths))}")
    return ArchiveSource(files, forms.pop())


def _globbed(path: str) -> list[str]:
    """The files that a glob stands for, sorted; the path itself where it is none."""
    magic = "*" in path if path.startswith(WEB) else has_magic(path) and not exists(path)  # on the web ? begins a query
    if not magic:
        return [path] if "://" in path else [absolute_path(path)]
    try:
        system, inner = url_to_fs(path)
        found = sorted(system.glob(inner))
    except Exception as error:
        raise ImagesError(f"the files {path!r} can't be listed: {type(error).__name__}: {error}") from error
    if not found:
        raise ImagesError(f"there are no files {path!r}")
    return [system.unstrip_protocol(file) if "://" in path else file for file in found]


def _opened(content: bytes | None, label: str | None, reason: str) -> SourceImage:
    if reason:
        raise Skipped(reason)
    if content is None:
        raise Skipped("has no bytes in its file")
    return read_bytes(content, label)
