"""Tar files in WebDataset's form: https://github.com/webdataset/webdataset."""

import bz2
import gzip
import json
import lzma
import tarfile
from collections import ChainMap
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import groupby, islice
from posixpath import dirname, join, normpath, splitext
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from unitscope.images.archive_formats import ArchiveMember, IndexEntry, Stream
from unitscope.images.labels import decoded, first_label, label_text, wordnet_label, written_label
from unitscope.images.names import is_picture_name
from unitscope.images.protocol import Skipped, valid_text

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
MAX_LINKS = 40
"""How many links are followed from one to the next: as many as Linux follows (path_resolution(7))."""
UNSEEKABLE = -1
"""In place of a size: the bytes are found by reading the file from its beginning, up to the image of that number."""
DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0\x80": lzma.open,
}
"""What decompresses a file that begins so. They read all streams that a file is made of; `tarfile` itself would read the first."""


class TarFormat:
    """An `ArchiveFormat`: members whose names are equal up to the first dot after the last slash are one *sample*.

    Every member whose last ending Pillow knows is an image. Its label is what `.cls` or `.json` of the same name says, or those of the
    sample, or the name of the first folder on its path; captions are no labels. A sample without an image is a leftover. Several tar files
    in one, one after the other, are read to the last.

    A file on this machine is indexed first, so that labels may stand anywhere and links are followed. In a stream the members of a sample
    must lie together. An entry's location is the first byte and the size.
    """

    def read(self, file: Stream) -> Generator[ArchiveMember, None, None]:
        is_local = isinstance(getattr(file, "fs", None), LocalFileSystem)
        entries = _indexed(file) if is_local else None
        if entries is None:
            yield from _streamed(file)
        for entry in entries or ():
            content = None if entry.reason else self.fetch(file, entry)
            yield ArchiveMember(entry.name, content, entry.label, entry.reason, entry.leftover)

    def index(self, file: Stream) -> Iterator[IndexEntry]:
        entries = _indexed(file)
        if entries is None:
            images = enumerate(_streamed_images(file))
            entries = [IndexEntry(image.name, image.label, (number, UNSEEKABLE), image.reason) for number, image in images]
        yield from entries

    def fetch(self, file: Stream, entry: IndexEntry) -> bytes | None:
        start, size = entry.location
        if size == UNSEEKABLE:
            return next(islice(_streamed_images(file), start, None)).content
        file.seek(start)
        content = bytes(file.read(size))
        if len(content) != size:
            raise OSError(f"the tar file is cut off in {entry.name!r}")
        return content

    def first(self, file: Stream) -> ArchiveMember | None:
        with closing(self.read(file)) as members:
            return next((member for member in members if not member.leftover), None)


# ── an index ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _indexed(file: Stream) -> list[IndexEntry] | None:
    """All images and leftovers, from the headers alone; None where the file is compressed, can't seek, or is broken."""
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo, ignore_zeros=True) as tar:
            return list(_entries(tar))
    except (tarfile.TarError, OSError, ValueError):
        file.seek(0)
        return None


def _entries(tar: tarfile.TarFile) -> Iterator[IndexEntry]:
    """A sample whose members lie in several runs has the labels of all; those of the image's own run come first."""
    members = [member for member in tar if not member.isdir()]
    by_name = {normpath(member.name): member for member in members}
    runs = [list(run) for _, run in groupby(members, key=_sample_name)]
    labels_by_run = [_labels_in(tar, run, by_name) for run in runs]
    labels = {stem: label for of_run in reversed(labels_by_run) for stem, label in of_run.items()}
    samples_with_image = {_sample_name(member) for member in members if _is_picture(member)}
    for run, of_run in zip(runs, labels_by_run, strict=True):
        for member in filter(_is_picture, run):
            yield _entry(member, by_name, _label_for(member, ChainMap(of_run, labels)))
        if _sample_name(run[0]) not in samples_with_image:
            yield IndexEntry(run[0].name, None, reason=_leftover_reason(run), leftover=True)


def _entry(member: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo], label: str | None) -> IndexEntry:
    try:
        target = _link_target(member, by_name)
    except Skipped as reason:
        return IndexEntry(member.name, label, reason=str(reason))
    return IndexEntry(member.name, label, (target.offset_data, target.size))


def _labels_in(
    tar: tarfile.TarFile, run: Sequence[tarfile.TarInfo], by_name: Mapping[str, tarfile.TarInfo]
) -> dict[str, str | None]:
    """The labels that members of one sample give, by the stem that they give it to; the first member of a stem decides."""
    labels = {}
    for member in filter(_is_label, reversed(run)):
        with suppress(Skipped):
            labels[_stem(member)] = _label_in(member, _content(tar, _link_target(member, by_name)))
    return labels


def _link_target(member: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """The member that holds the bytes: the member itself, or the one that links lead to. Raises `Skipped` where there is none."""
    target: tarfile.TarInfo | None = member
    for _ in range(MAX_LINKS):
        if target is None:
            raise Skipped(f"is a link to {member.linkname!r}, which isn't in the tar file")
        if target.isfile():
            if target.issparse():
                raise Skipped("is a sparse file")
            return target
        if not target.islnk() and not target.issym():
            raise Skipped("is no regular file")
        start = "" if target.islnk() else dirname(target.name)
        target = by_name.get(normpath(join(start, target.linkname)))
    raise Skipped(f"is a link to {member.linkname!r}, which leads back to itself")


# ── a stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _streamed(file: Stream) -> Generator[ArchiveMember, None, None]:
    """All images and leftovers of a tar file that is read once from its beginning."""
    with tarfile.open(fileobj=_decompressed(file), mode="r|", tarinfo=_StrictTarInfo, ignore_zeros=True) as tar:
        for _, run in groupby((member for member in tar if not member.isdir()), key=_sample_name):
            yield from _members_of(tar, run)


def _members_of(tar: tarfile.TarFile, run: Iterator[tarfile.TarInfo]) -> Iterator[ArchiveMember]:
    """The images of one sample, or the leftover that it is."""
    contents = [(member, _content(tar, member) if member.isfile() else None) for member in run]
    labels = {
        _stem(member): _label_in(member, content)
        for member, content in reversed(contents)
        if content is not None and _is_label(member)
    }
    pictures = [(member, content) for member, content in contents if _is_picture(member)]
    for member, content in pictures:
        reason = "" if content is not None else f"is a link to {member.linkname!r}, which can't be followed in a stream"
        yield ArchiveMember(member.name, content, _label_for(member, labels), reason)
    if not pictures:
        members = [member for member, _ in contents]
        yield ArchiveMember(members[0].name, None, reason=_leftover_reason(members), leftover=True)


def _streamed_images(file: Stream) -> Iterator[ArchiveMember]:
    return (member for member in _streamed(file) if not member.leftover)


def _decompressed(file: Stream) -> Stream:
    """The tar file itself, to be read from its beginning to its end."""
    start = file.read(max(map(len, DECOMPRESSORS)))
    decompressor = next((opener for magic, opener in DECOMPRESSORS.items() if start.startswith(magic)), None)
    whole = _Rejoined(start, file)
    return whole if decompressor is None else decompressor(whole)


class _Rejoined:
    """A stream that can't seek, with its first bytes, which were read already, before the rest."""

    def __init__(self, start: bytes, rest: Stream) -> None:
        self._start, self._rest = start, rest

    def read(self, size: int) -> bytes:
        piece, self._start = self._start[:size], self._start[size:]
        return piece or bytes(self._rest.read(size))


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is cut off or damaged is an error; `tarfile` would take it for the end of the file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise OSError(f"the tar file is cut off or damaged: {error}") from error


# ── members and labels ──────────────────────────────────────────────────────────────────────────────────────────────


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise OSError(f"the tar file is cut off in {member.name!r}")
    return content


def _leftover_reason(members: Sequence[tarfile.TarInfo]) -> str:
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
    return is_picture_name(member.name)


def _is_label(member: tarfile.TarInfo) -> bool:
    return _ending(member) in (".cls", ".json")


def _label_for(member: tarfile.TarInfo, labels: Mapping[str, str | None]) -> str | None:
    """The label of an image: the one of its own name, with the ending or without, or of its name up to an earlier dot; else its first
    folder, or the WordNet id that its name begins with."""
    stem, sample = member.name, _sample_name(member)
    while len(stem) >= len(sample):
        if labels.get(stem):
            return labels[stem]
        stem = splitext(stem)[0] if splitext(stem)[1] else ""
    folders = [part for part in member.name.split("/")[:-1] if part not in ("", ".")]
    return valid_text(folders[0]) if folders else wordnet_label(member.name)


def _label_in(member: tarfile.TarInfo, content: bytes) -> str | None:
    """The label in a `.cls` file, or under `label` or a name like that in a JSON object."""
    if _ending(member) == ".cls":
        return written_label(decoded(content))
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return label_text(first_label(fields)[1]) if isinstance(fields, dict) else None
