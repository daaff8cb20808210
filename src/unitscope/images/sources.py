"""Where images come from: folders and lists of files here; data sets and files of many images beside; and what a user means by a word.

A source is anything with the members of `ImageSource`. Images are numbered from 0 in an order that never changes for the same
source; a key says the same to a person.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from unitscope.errors import ImagesError
from unitscope.files import absolute_path, os_error_text
from unitscope.images.archives import FORMS, archive_source, form_of
from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource, from_hugging_face
from unitscope.images.labels import written_label
from unitscope.images.lists import read_list
from unitscope.images.names import picture_endings
from unitscope.images.numbered import NumberedSource
from unitscope.images.pixels import content_of_file, read_file
from unitscope.images.protocol import ImageSource, SourceImage, as_text


class ImageFiles(NumberedSource):
    """Files of one image each."""

    thread_safe = True
    noun = "files"

    @abstractmethod
    def path(self, image: int) -> Path:
        """Where the file of an image is."""

    def labels(self) -> Sequence[str | None]:
        return [self.label(image) for image in range(len(self))]

    def content(self, image: int) -> int | None:
        return content_of_file(self.path(image))

    def read(self, image: int) -> SourceImage:
        return read_file(self.path(image), self.label(image))


class FolderSource(ImageFiles):
    """All files below a folder, by path; the label is the name of the first folder on the way, where there is one.

    Every file counts, whatever its name ends in: what isn't an image is skipped with its reason. Hidden files and folders, whose
    names begin with a dot, are none of the images. Folders that hold an atlas, and links back to a folder on the way, are passed over.
    """

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
        self._passed_over = dict(sorted(passed_over.items()))
        if not self._paths:
            raise ImagesError(f"the folder {str(folder)!r} holds no files" + _with_reason(self._passed_over))

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "folder", "folder": str(self.folder.resolve())}

    @property
    def passed_over(self) -> Mapping[str, str]:
        return self._passed_over

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image])

    def path(self, image: int) -> Path:
        return self.folder / self._paths[image]

    def label(self, image: int) -> str | None:
        first, slash, _ = self.key(image).partition("/")
        return first if slash else None


class ListSource(ImageFiles):
    """Files in the order given, with labels where they are given; a key is the path from the folder that all files are in.

    Relative paths start from `folder` or, without one, from the working folder. `passed_over` are those that are no images, with reasons.
    """

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
        self._passed_over = passed_over or {}
        self._folder = _common_folder(files)
        self._paths = [os.path.relpath(file, self._folder) if self._folder else file for file in files]
        self._labels = labels

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "list", "folder": self._folder, "paths": self._paths}

    @property
    def passed_over(self) -> Mapping[str, str]:
        return self._passed_over

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image].replace(os.sep, "/"))

    def path(self, image: int) -> Path:
        return Path(self._folder, self._paths[image])

    def label(self, image: int) -> str | None:
        return written_label(self._labels[image] or "") if self._labels else None


def _common_folder(files: Sequence[str]) -> str:
    """The deepest folder that holds all files; none where they lie on several drives."""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:
        return ""


def as_source(images: Any) -> ImageSource:
    """The source that a user means: a folder, archives, a list of paths, a map-style data set, or an `ImageSource`.

    `hf:NAME` or `hf:NAME:SPLIT` is a data set of Hugging Face's `datasets`, a `.txt` file a list, a glob the files that it stands for.
    """
    if isinstance(images, (str, os.PathLike)):
        return _named(os.fspath(images))
    if isinstance(images, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in images):
        many = bool(images) and all(form_of(os.fspath(path)) for path in images)
        return archive_source([os.fspath(path) for path in images]) if many else ListSource(images)
    if isinstance(images, ImageSource):
        return images
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return DatasetSource(images)
    raise ImagesError(
        "images are a folder, tar shards or Parquet files, a list of paths or a map-style data set (one with a length), not a "
        f"{type(images).__name__}"
    )


def _named(name: str) -> ImageSource:
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


def reopened(description: Mapping[str, Any]) -> ImageSource:
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


def same_images(description: Mapping[str, Any], source: ImageSource) -> bool:
    """True where a source has the images that an atlas says it was made from: by their keys, and by the content of a few."""
    known = description.get("fingerprint") or {}
    return description.get("hash") == source.hash() and not contradictions(known, source.fingerprint())


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
