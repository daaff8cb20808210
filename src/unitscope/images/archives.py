"""Archives: files that hold many images each, on this machine or behind URLs.

A file is read from its beginning to its end, so nobody has to count its images first. The image at `position` in file `file` has the
number `file * 2³² + position`: the order is that of the files and, within each, its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import count as counter
from os.path import commonprefix
from time import sleep
from typing import Any, TypeVar

import fsspec
from braceexpand import braceexpand

from unitscope.errors import ImagesError, UnitscopeError
from unitscope.files import absolute_path
from unitscope.images.archive_formats import ArchiveFormat, ArchiveMember, IndexEntry, Stream
from unitscope.images.content import FINGERPRINT_IMAGES, evenly_spaced, hash_of_bytes
from unitscope.images.decoding import read_bytes
from unitscope.images.globs import WEB, is_glob, is_url, matching_paths
from unitscope.images.parquet import PARQUET_ENDINGS, ParquetFormat
from unitscope.images.protocol import ImageSource, Item, ShardUnreadable, Skipped, SourceImage, valid_text
from unitscope.images.tar import TAR_ENDINGS, TarFormat
from unitscope.records import Shard

Result = TypeVar("Result")
Named = TypeVar("Named", ArchiveMember, IndexEntry)

NUMBERS_PER_FILE = 1 << 32
"""How many numbers a file has for its images; the signed 64 bits of an atlas leave room for 2³¹ files."""
FIRST_LEFTOVER = 1 << 31
"""The position that the first leftover of a file has: what is no image doesn't move the numbers of those that are."""
REMOTE_FINGERPRINT_FILES = 3
"""Of how many files behind URLs the first image is hashed: each costs a request."""
READ_ATTEMPTS = 3
"""How often a file is read before its error counts: connections break."""
RETRY_WAIT_S = 0.5
"""How long to wait before the second attempt; each further wait is four times as long."""
FORMATS: dict[str, ArchiveFormat] = dict.fromkeys(TAR_ENDINGS, TarFormat()) | dict.fromkeys(PARQUET_ENDINGS, ParquetFormat())


class ArchiveSource(ImageSource):
    """Images in files of one format. Keys are the file's path from the folder that all are in, and the name within the file.

    Nobody counts the images, so each file is one shard, and there can't be a limit. A file is read in sequence; reading that fails is
    tried again, three times in all, before its error is raised. Single images are found through an index of their file.
    """

    thread_safe = True
    passed_over: Mapping[str, str] = {}
    noun = "items"

    def __init__(self, files: Sequence[str], file_format: ArchiveFormat, retry_wait_s: float = RETRY_WAIT_S) -> None:
        self.files = list(files)
        self._format, self._retry_wait_s = file_format, retry_wait_s
        prefix = commonprefix([file.rpartition("/")[0] + "/" for file in self.files])
        self._folder = prefix[: prefix.rfind("/") + 1]
        self._indexes: dict[int, list[IndexEntry]] = {}

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
        starts = (file * NUMBERS_PER_FILE for file in range(len(self.files)))
        return (Shard(file, start, start + NUMBERS_PER_FILE) for file, start in enumerate(starts))

    def items(self, shard: Shard) -> Iterator[Item]:
        """The images of one file, from its first to its last, and its leftovers, which are skipped."""
        positions, leftover_positions = counter(), counter(FIRST_LEFTOVER)
        for member in _with_unique_names(self._members(shard.number)):
            image = shard.start + next(leftover_positions if member.leftover else positions)
            key = self._key(shard.number, member.name)
            yield Item(image, key, partial(_image, member.content, member.label, member.reason))

    def key(self, image: int) -> str:
        return self._key(_file(image), self._entry(image).name)

    def label(self, image: int) -> str | None:
        return self._entry(image).label

    def labels(self) -> None:
        """To know them is to read the files."""

    def content(self, image: int) -> None:
        """To reach one image may be to read a whole file."""

    def read(self, image: int) -> SourceImage:
        entry = self._entry(image)
        if entry.reason:
            raise Skipped(entry.reason)
        content = self._use(_file(image), lambda stream: self._format.fetch(stream, entry))
        return _image(content, entry.label, "")

    def find(self, key: str) -> int | None:
        for file in range(len(self.files)):
            if key.startswith(self._key(file, "")):
                keys = [self._key(file, entry.name) for entry in self._index(file)]
                if key in keys:
                    return file * NUMBERS_PER_FILE + keys.index(key)
        return None

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
        contents = {image: None if member is None else member.content for image, member in self._first_members()}
        return {image: None if content is None else f"{hash_of_bytes(content):016x}" for image, content in contents.items()}

    def fingerprint_labels(self, limit: int | None = None) -> dict[str, str | None]:
        self.count(limit)
        return {image: None if member is None else member.label or "" for image, member in self._first_members()}

    def unscanned_text(self, shards: Sequence[Shard]) -> str:
        return f"{len(shards)} of {len(self.files)} files could not be scanned"

    def empty_text(self) -> str:
        return f"there are no images: {', '.join(map(repr, self.files[:3]))}{' …' if len(self.files) > 3 else ''} hold nothing"

    def _first_members(self) -> Iterator[tuple[str, ArchiveMember | None]]:
        """The number of the first image of a few files, as text, and that image."""
        at_most = REMOTE_FINGERPRINT_FILES if any(map(is_url, self.files)) else FINGERPRINT_IMAGES
        for file in evenly_spaced(len(self.files), at_most):
            member = None
            with suppress(Exception), fsspec.open(self.files[file], "rb") as stream:  # whoever scans it says why
                member = self._format.first(stream)
            yield str(file * NUMBERS_PER_FILE), member

    def _key(self, file: int, name: str) -> str:
        return valid_text(f"{self.files[file].removeprefix(self._folder)}/{name}")

    def _entry(self, image: int) -> IndexEntry:
        file, position = divmod(image, NUMBERS_PER_FILE)
        entries = self._index(file) if 0 <= file < len(self.files) else []
        if position >= len(entries):
            raise Skipped("is no longer there")
        return entries[position]

    def _index(self, file: int) -> list[IndexEntry]:
        """The images of a file, in order."""
        if file not in self._indexes:
            entries = self._use(file, lambda stream: [entry for entry in self._format.index(stream) if not entry.leftover])
            self._indexes[file] = list(_with_unique_names(entries))
        return self._indexes[file]

    def _use(self, file: int, use: Callable[[Stream], Result]) -> Result:
        """What a function makes of an open file. Raises `Skipped` for whatever goes wrong."""
        path = self.files[file]
        try:
            return _use_file(path, use)
        except Exception as error:  # whatever a file system or a broken file leads to
            raise Skipped(f"can't be reached in {path!r}: {type(error).__name__}: {error}") from error

    def _members(self, file: int) -> Iterator[ArchiveMember]:
        """All members of a file, each once, in however many attempts. Raises `ShardUnreadable`."""
        yielded, path = 0, self.files[file]
        for attempt in range(READ_ATTEMPTS):
            try:
                with fsspec.open(path, "rb") as stream:
                    for number, member in enumerate(self._format.read(stream)):
                        if number == yielded:
                            yielded += 1
                            yield member
                return
            except Exception as error:
                if attempt == READ_ATTEMPTS - 1 or isinstance(error, ImagesError):
                    raise ShardUnreadable(f"{path!r} can't be read: {type(error).__name__}: {error}") from error
                sleep(self._retry_wait_s * 4**attempt)


def archive_ending(path: str) -> str:
    """The ending of an archive's path or pattern, as it is written there; empty for other paths."""
    name = path.partition("?")[0] if path.startswith(WEB) else path
    lengths = [len(ending) for ending in FORMATS if name.lower().endswith(ending)]
    return name[-max(lengths) :] if lengths else ""


def archive_source(paths: Sequence[str], retry_wait_s: float = RETRY_WAIT_S) -> ArchiveSource:
    """The source of tar shards or Parquet files; braces such as `{000..127}` and globs stand for many, in order.

    Raises `ImagesError` where there are none, or of both kinds.
    """
    files = [file for path in paths for pattern in braceexpand(path) for file in _archives(pattern)]
    formats = {FORMATS.get(archive_ending(file).lower()) for file in files}
    if len(formats) != 1 or (file_format := formats.pop()) is None:
        raise ImagesError(f"images are either tar shards or Parquet files, not both: {', '.join(map(repr, paths))}")
    return ArchiveSource(files, file_format, retry_wait_s)


def _archives(pattern: str) -> list[str]:
    """The archives that a path or a glob means."""
    files = matching_paths(pattern) if is_glob(pattern) else [pattern]
    return [file if is_url(file) else absolute_path(file) for file in files]


def _use_file(path: str, use: Callable[[Stream], Result]) -> Result:
    """What a function makes of an open file. One from a server that gives no parts of files is fetched whole, once."""
    try:
        with fsspec.open(path, "rb") as stream:
            return use(stream)
    except ValueError:
        if not is_url(path):
            raise
    with fsspec.open(f"simplecache::{path}", "rb") as stream:
        return use(stream)


def _file(image: int) -> int:
    return image // NUMBERS_PER_FILE


def _with_unique_names(members: Iterable[Named]) -> Iterator[Named]:
    """Members of one name are several images: from the second on they get a number."""
    counts: Counter[str] = Counter()
    for member in members:
        counts[member.name] += 1
        number = counts[member.name]
        yield member if number == 1 else replace(member, name=f"{member.name}#{number}")


def _image(content: bytes | None, label: str | None, reason: str) -> SourceImage:
    if reason:
        raise Skipped(reason)
    if content is None:
        raise Skipped("has no bytes in its file")
    return read_bytes(content, label)
