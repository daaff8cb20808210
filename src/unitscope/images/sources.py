"""Where images come from: folders and lists of files here; data sets and files of many images beside; and what a user means by a word.

A source is anything with the members of `ImageSource`. Images are numbered from 0 in an order that never changes for the same
source; a key says the same to a person.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from glob import glob, has_magic
from hashlib import sha256
from pathlib import Path
from typing import Any

from unitscope.errors import ImagesError
from unitscope.files import absolute_path, os_error_text
from unitscope.images.archives import FORMS, ArchiveSource, archive_source, form_of
from unitscope.images.content import contradictions, spread
from unitscope.images.datasets import DatasetSource, from_hugging_face
from unitscope.images.labels import written_label
from unitscope.images.lists import read_list
from unitscope.images.names import picture_endings
from unitscope.images.pixels import content_of_file, read_file
from unitscope.images.protocol import ImageSource, Item, Skipped, SourceImage, as_text, skipping_errors
from unitscope.records import Shard

Source = ImageSource | ArchiveSource
"""Images that are numbered one by one, or that lie many to a file."""


class FolderSource:
    """All files below a folder, by path; the label is the name of the first folder on the way, where there is one.

    Every file counts, whatever its name ends in: what isn't an image is skipped with its reason. Hidden files and folders, whose
    names begin with a dot, are none of the images. Folders that hold an atlas, and links back to a folder on the way, are passed over.
    """

    thread_safe = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not os.path.isdir(folder):  # Path.is_dir may raise
            raise ImagesError(f"there is no folder {str(folder)!r} with images")
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise ImagesError(f"the folder {str(folder)!r} can't be read: {os_error_text(error)}") from error
        passed_over: dict[str, str] = {}
        self._paths = sorted(_files_below(str(folder), passed_over))
        self.passed_over: Mapping[str, str] = dict(sorted(passed_over.items()))
        if not self._paths:
            raise ImagesError(f"the folder {str(folder)!r} holds no files" + _with_reason(self.passed_over))

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "folder", "folder": str(self.folder.resolve())}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image])

    def content(self, image: int) -> int | None:
        return content_of_file(self.folder / self._paths[image])

    def label(self, image: int) -> str | None:
        first, slash, _ = self.key(image).partition("/")
        return first if slash else None

    def read(self, image: int) -> SourceImage:
        return read_file(self.folder / self._paths[image], self.label(image))


class ListSource:
    """Files in the order given, with labels where they are given; a key is the path from the folder that all files are in.

    Relative paths start from `folder` or, without one, from the working folder. `passed_over` are those that are no images, with reasons.
    """

    thread_safe = True

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str] | None = None,
        labels: Sequence[str | None] | None = None,
        passed_over: Mapping[str, str] | None = None,
    ) -> None:
        if not paths:
            raise ImagesError("the list of images is empty")
        if all("://" in os.fspath(path) for path in paths):
            raise ImagesError(_behind_url(os.fspath(paths[0])))
        files = [absolute_path(os.path.join(folder or "", os.fspath(path))) for path in paths]
        self.passed_over = passed_over or {}
        self._folder = _common_folder(files)
        self._paths = [os.path.relpath(file, self._folder) if self._folder else file for file in files]
        self._labels = labels

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "list", "folder": self._folder, "paths": self._paths}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image].replace(os.sep, "/"))

    def content(self, image: int) -> int | None:
        return content_of_file(Path(self._folder, self._paths[image]))

    def label(self, image: int) -> str | None:
        return written_label(self._labels[image] or "") if self._labels else None

    def read(self, image: int) -> SourceImage:
        return read_file(Path(self._folder, self._paths[image]), self.label(image))


def _common_folder(files: Sequence[str]) -> str:
    """The deepest folder that holds all files; none where they lie on several drives."""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:
        return ""


def as_source(images: Any) -> Source:
    """The source that a user means: a folder, files of many images, a list of paths, a map-style data set, or a source.

    `hf:NAME` or `hf:NAME:SPLIT` is a data set of Hugging Face's `datasets`, a `.txt` file a list, a glob the files that it stands for.
    """
    if isinstance(images, (str, os.PathLike)):
        return _named(os.fspath(images))
    if isinstance(images, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in images):
        many = bool(images) and all(form_of(os.fspath(path)) for path in images)
        return archive_source([os.fspath(path) for path in images]) if many else ListSource(images)
    if isinstance(images, (ImageSource, ArchiveSource)):
        return images
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return DatasetSource(images)
    raise ImagesError(
        "images are a folder, tar shards or Parquet files, a list of paths or a map-style data set (one with a length), not a "
        f"{type(images).__name__}"
    )


def _named(name: str) -> Source:
    ending = os.path.splitext(name)[1].lower()
    if name.startswith("hf:"):
        return from_hugging_face(name)
    if form_of(name) and not os.path.isdir(name):
        return archive_source([name])
    if os.path.isdir(name):
        return _of_folder(name)
    if not os.path.exists(name) and has_magic(name) and "://" not in name:
        return _of_glob(name)
    if ending == ".txt" and os.path.isfile(name):
        paths, labels, folder = read_list(name)
        return ListSource(paths, folder, labels)
    if ending in picture_endings() and os.path.isfile(name):
        return ListSource([name])
    raise ImagesError(_no_source(name, ending))


def _of_folder(name: str) -> FolderSource:
    """The images below a folder. Raises `ImagesError` where it holds files of many images and no image."""
    source = FolderSource(name)
    keys = [source.key(image) for image in range(len(source))]
    many = [key for key in keys if form_of(key)]
    if many and not any(os.path.splitext(key)[1].lower() in picture_endings() for key in keys):
        ending = many[0][-max(len(ending) for ending in FORMS if many[0].lower().endswith(ending)) :]
        pattern = os.path.join(name, os.path.dirname(many[0]), f"*{ending}")
        raise ImagesError(f"the folder {name!r} holds files of many images, such as {many[0]!r}: give {pattern!r}")
    return source


def _of_glob(pattern: str) -> ListSource:
    """The files that a glob stands for; folders that it matches too are passed over."""
    matches = sorted(glob(pattern, recursive=True))
    folders, files = ([path for path in matches if os.path.isdir(path) is folder] for folder in (True, False))
    if not files and folders:
        raise ImagesError(f"{pattern!r} matches folders alone, such as {folders[0]!r}: give a folder, or a glob of files in it")
    if not files:
        raise ImagesError(f"there are no files {pattern!r}")
    over = "is a folder that the glob matches: give the folder itself, or a glob of its files"
    passed_over = {} if "**" in pattern else {as_text(folder): over for folder in folders}
    return ListSource(files, passed_over=passed_over)


def _behind_url(name: str) -> str:
    return (
        f"{name!r} is a URL of no tar or Parquet file: behind a URL images are read from those, others must be downloaded first"
    )


def _no_source(name: str, ending: str) -> str:
    """What that is, if anything, and what to give."""
    if "://" in name:
        return _behind_url(name)
    if not os.path.exists(name):
        return f"there is no folder {name!r} with images, and no file of that name"
    what = {
        ".zip": "a zip archive: unpack it and give the folder",
        ".zst": "packed with Zstandard, which unitscope doesn't read: unpack it",
        ".lz4": "packed with LZ4, which unitscope doesn't read: unpack it",
        ".7z": "a 7z archive: unpack it and give the folder",
        ".rar": "a RAR archive: unpack it and give the folder",
        ".csv": "a table: give a .txt file with one path a line, and its label after it",
        ".tsv": "a table: give a .txt file with one path a line, and its label after it",
        ".json": "a JSON file: give a .txt file with one path a line, and its label after it",
    }.get(
        ending,
        "a file that unitscope can't find images in: give a folder, a .txt file with one path a line, tar shards or Parquet files",
    )
    return f"{name!r} is {what}"


def reopened(description: Mapping[str, Any]) -> Source:
    """The source that an atlas was made from. Raises `ImagesError` where it is gone or was a data set in memory."""
    kind = description.get("kind")
    if kind == "folder":
        return FolderSource(description["folder"])
    if kind == "list":
        return ListSource(description["paths"], description["folder"])
    if kind == "files":
        return archive_source(description["files"])
    if description.get("name"):
        return as_source(description["name"])
    what = f"a data set of type {description['type']}" if description.get("type") else "of a source that the atlas doesn't name"
    raise ImagesError(f"the images were {what}; give it again: unitscope.Atlas(folder, images=dataset)")


def items_of(source: Source, shard: Shard) -> Iterator[Item]:
    """The images of a shard, in order: those with its numbers, or all of the file with its number."""
    if isinstance(source, ArchiveSource):
        yield from source.items(shard.number)
        return
    for image in range(shard.start, shard.stop):
        yield Item(image, source.key(image), partial(source.read, image))


def count_of(source: Source) -> int | None:
    """How many images there are; None where they lie many to a file, which nobody has counted."""
    return None if isinstance(source, ArchiveSource) else len(source)


def known_labels(source: Source) -> list[str | None] | None:
    """Every image's label, where that can be told without reading the images; None where it can't."""
    if isinstance(source, (FolderSource, ListSource)):
        return [source.label(image) for image in range(len(source))]
    if isinstance(source, DatasetSource) and not source.may_label():
        return [None] * len(source)
    return None


def holds(source: Source, image: int, key: str) -> bool:
    """True where the image of that number has that key."""
    count = count_of(source)
    try:
        return (count is None or image < count) and as_text(source.key(image)) == key
    except Skipped:
        return False


def finder(source: Source) -> Callable[[str], int | None]:
    """The way from a key to the number that its image has in a source.

    An image whose folder was given from further up, or further down, is found by the end of its path, where only one file has it.
    """
    if isinstance(source, ArchiveSource):
        return source.find
    numbers, by_name = {as_text(source.key(image)): image for image in range(len(source))}, dict[str, list[str]]()
    for key in numbers:
        by_name.setdefault(key.rpartition("/")[2], []).append(key)

    def find(key: str) -> int | None:
        if key in numbers:
            return numbers[key]
        ends = [
            other
            for other in by_name.get(key.rpartition("/")[2], ())
            if f"/{key}".endswith(f"/{other}") or f"/{other}".endswith(f"/{key}")
        ]
        return numbers[ends[0]] if len(ends) == 1 else None

    return find


def keys_hash(source: Source, count: int) -> str:
    """SHA-256 over the first `count` keys in order; over the names of the files where images lie many to a file."""
    if isinstance(source, ArchiveSource):
        return source.hash
    digest = sha256()
    for image in range(count):
        digest.update(as_text(source.key(image)).encode() + b"\0")
    return digest.hexdigest()


def fingerprint(source: Source, count: int) -> dict[str, str | None]:
    """The hashes of a few images by their numbers, None for those that can't be read: enough to tell two collections apart."""
    if isinstance(source, ArchiveSource):
        return source.fingerprint()
    found: dict[str, str | None] = {}
    for image in spread(count):
        content = None
        with suppress(Skipped), skipping_errors():  # whoever scans it says why
            content = source.content(image)
        found[str(image)] = None if content is None else f"{content:016x}"
    return found


def few_labels(source: Source, count: int) -> dict[str, str | None]:
    """The labels of the same images, empty for those without one, None for those that can't be read."""
    if isinstance(source, ArchiveSource):
        return source.few_labels()
    found: dict[str, str | None] = dict.fromkeys(map(str, spread(count)))
    for image in found:
        with suppress(Skipped), skipping_errors():  # whoever scans it says why
            if isinstance(source, (FolderSource, ListSource)):
                found[image] = source.label(int(image)) or ""
            else:
                found[image] = source.read(int(image)).label or ""
    return found


def same_images(description: Mapping[str, Any], source: Source) -> bool:
    """True where a source has the images that an atlas says it was made from: by their keys, and by the content of a few."""
    count = count_of(source) or 0
    known = description.get("fingerprint") or {}
    return description.get("hash") == keys_hash(source, count) and not contradictions(known, fingerprint(source, count))


def _files_below(top: str, passed_over: dict[str, str]) -> Iterator[str]:
    """Paths of all files, from `top`; hidden ones left out, and folders that are passed over noted with the reason.

    A folder that can't be read counts as a file, to be skipped with its reason.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, inside = waiting.pop()
        folder = os.path.join(top, prefix)
        try:
            known = os.stat(folder)
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError:
            yield prefix.rstrip("/")
            continue
        place = (known.st_dev, known.st_ino)
        if place in inside:
            passed_over[as_text(prefix.rstrip("/"))] = "is a link back to a folder that it lies in"
        elif prefix and any(entry.name == "atlas.json" and _is_atlas(entry.path) for entry in entries):
            passed_over[as_text(prefix.rstrip("/"))] = "is a folder that holds an atlas"
        else:
            waiting += [(f"{prefix}{entry.name}/", inside | {place}) for entry in entries if _is_folder(entry)]
            yield from (prefix + entry.name for entry in entries if not _is_folder(entry))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_atlas(path: str) -> bool:
    """True for the manifest of an atlas, of whatever format."""
    try:
        said = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and type(said.get("format")) is int


def _with_reason(passed_over: Mapping[str, str]) -> str:
    return next((f"; {key!r} {reason}" for key, reason in passed_over.items()), "")
