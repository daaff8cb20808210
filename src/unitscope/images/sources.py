"""Which source a user means: a folder, a list, a glob, archives, a data set; and the source that an atlas was made from."""

import os
from collections.abc import Mapping
from typing import Any

from unitscope.errors import ImagesError
from unitscope.images.archives import archive_ending, archive_source
from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource, from_hugging_face
from unitscope.images.globs import is_glob, is_url, matching_paths
from unitscope.images.image_files import FolderSource, ListSource, url_text
from unitscope.images.lists import read_list
from unitscope.images.names import is_picture_name
from unitscope.images.protocol import ImageSource, valid_text

ADVICE = {
    ".zip": "a zip archive: unpack it and give the folder",
    ".zst": "packed with Zstandard, which unitscope doesn't read: unpack it",
    ".lz4": "packed with LZ4, which unitscope doesn't read: unpack it",
    ".7z": "a 7z archive: unpack it and give the folder",
    ".rar": "a RAR archive: unpack it and give the folder",
    ".csv": "a table: give a .txt file with one path a line, and its label after it",
    ".tsv": "a table: give a .txt file with one path a line, and its label after it",
    ".json": "a JSON file: give a .txt file with one path a line, and its label after it",
}
"""What a file that is no source is, by its ending, and what to give in its place."""
OTHER_ADVICE = (
    "a file that unitscope can't find images in: give a folder, a .txt file with one path a line, tar shards or Parquet files"
)
FOLDER_IN_GLOB = "is a folder that the glob matches: give the folder itself, or a glob of its files"


def as_source(images: Any) -> ImageSource:
    """The source that a user means: a folder, archives, a list of paths, a map-style data set, or an `ImageSource`.

    `hf:NAME` or `hf:NAME:SPLIT` is a data set of Hugging Face's `datasets`, a `.txt` file a list, a glob the files that it matches.
    Raises `ImagesError` where that is none, or one without images.
    """
    if isinstance(images, (str, os.PathLike)):
        return _source_by_name(os.fspath(images))
    if isinstance(images, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in images):
        paths = list(map(os.fspath, images))
        return archive_source(paths) if paths and all(map(archive_ending, paths)) else ListSource(paths)
    if isinstance(images, ImageSource):
        return images
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return DatasetSource(images)
    raise ImagesError(
        "images are a folder, tar shards or Parquet files, a list of paths or a map-style data set (one with a length), not a "
        f"{type(images).__name__}"
    )


def reopen(description: Mapping[str, Any]) -> ImageSource:
    """The source that an atlas was made from. Raises `ImagesError` where it is gone or was a data set in memory."""
    kind = description.get("kind")
    if kind == "folder":
        return _listed_folder(description["folder"])
    if kind == "list":
        return ListSource(description["paths"], description["folder"])
    if kind == "files":
        return archive_source(description["files"])
    if description.get("name"):
        return as_source(description["name"])
    what = f"a data set of type {description['type']}" if description.get("type") else "of a source that the atlas doesn't name"
    raise ImagesError(f"the images were {what}; give it again: unitscope.Atlas(folder, images=dataset)")


def same_images(description: Mapping[str, Any], source: ImageSource) -> bool:
    """True where a source has the images that an atlas was made from: by their keys, and by the content of a few."""
    fingerprint = description.get("fingerprint") or {}
    return description.get("hash") == source.hash() and not contradictions(fingerprint, source.fingerprint())


def _source_by_name(name: str) -> ImageSource:
    if name.startswith("hf:"):
        return from_hugging_face(name)
    if archive_ending(name) and not os.path.isdir(name):
        return archive_source([name])
    if os.path.isdir(name):
        return _folder_source(name)
    if is_glob(name) and not is_url(name):
        return _glob_source(name)
    if name.lower().endswith(".txt") and os.path.isfile(name):
        listed = read_list(name)
        return ListSource(listed.paths, listed.folder, listed.labels)
    if is_picture_name(name) and os.path.isfile(name):
        return ListSource([name])
    raise ImagesError(_no_source_text(name))


def _folder_source(name: str) -> FolderSource:
    """The images below a folder. Raises `ImagesError` where it holds archives and no image."""
    source = _listed_folder(name)
    keys = [source.key(image) for image in range(len(source))]
    archive = next(filter(archive_ending, keys), None)
    if archive is not None and not any(map(is_picture_name, keys)):
        pattern = os.path.join(name, os.path.dirname(archive), f"*{archive_ending(archive)}")
        raise ImagesError(f"the folder {name!r} holds files of many images, such as {archive!r}: give {pattern!r}")
    return source


def _listed_folder(name: str) -> FolderSource:
    """The source of a folder that has been listed, so that it is known to hold files."""
    source = FolderSource(name)
    source.count()
    return source


def _glob_source(pattern: str) -> ListSource:
    """The files that a glob matches; folders that it matches too are passed over."""
    paths = matching_paths(pattern)
    folders = [path for path in paths if os.path.isdir(path)]
    files = [path for path in paths if not os.path.isdir(path)]
    if not files:
        raise ImagesError(f"{pattern!r} matches folders alone, such as {folders[0]!r}: give a folder, or a glob of files in it")
    passed_over = {} if "**" in pattern else {valid_text(folder): FOLDER_IN_GLOB for folder in folders}
    return ListSource(files, passed_over=passed_over)


def _no_source_text(name: str) -> str:
    """What a path that is no source is, if anything, and what to give."""
    if is_url(name):
        return url_text(name)
    if not os.path.exists(name):
        return f"there is no folder {name!r} with images, and no file of that name"
    ending = os.path.splitext(name)[1].lower()
    return f"{name!r} is {ADVICE.get(ending, OTHER_ADVICE)}"
