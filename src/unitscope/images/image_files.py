"""Sources of files that hold one image each: a folder of them, or a list."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from unitscope.errors import ImagesError
from unitscope.files import absolute_path, os_error_text
from unitscope.images.decoding import content_of_file, read_file
from unitscope.images.folders import FolderListing, list_folder
from unitscope.images.labels import wordnet_label, written_label
from unitscope.images.numbered import NumberedSource
from unitscope.images.protocol import SourceImage, valid_text


class ImageFiles(NumberedSource):
    """What both have in common: an image is the file at its `path`, and its label is known without that."""

    thread_safe = True
    noun = "files"

    @abstractmethod
    def path(self, image: int) -> Path:
        """Where the file of an image is."""

    @abstractmethod
    def label(self, image: int) -> str | None: ...

    def labels(self) -> Sequence[str | None]:
        return [self.label(image) for image in range(len(self))]

    def content(self, image: int) -> int | None:
        return content_of_file(self.path(image))

    def read(self, image: int) -> SourceImage:
        return read_file(self.path(image), self.label(image))


class FolderSource(ImageFiles):
    """All files below a folder, sorted by path; the label is the name of the first folder on the way, where there is one, or else the
    WordNet id that the file's name begins with.

    Every file counts, whatever its name ends in: what isn't an image is skipped with its reason. What is left out, `list_folder` says.
    The folder is listed on first use; where it holds no files, that raises `ImagesError`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises `ImagesError` where the folder is missing or can't be read."""
        self.folder = Path(folder)
        if not os.path.isdir(folder):  # Path.is_dir may raise
            raise ImagesError(f"there is no folder {str(folder)!r} with images")
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise ImagesError(f"the folder {str(folder)!r} can't be read: {os_error_text(error)}") from error

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "folder", "folder": str(self.folder.resolve())}

    @property
    def passed_over(self) -> Mapping[str, str]:
        return self._listing.passed_over

    def __len__(self) -> int:
        return len(self._listing.paths)

    def key(self, image: int) -> str:
        return valid_text(self._listing.paths[image])

    def label(self, image: int) -> str | None:
        folder, slash, _ = self.key(image).partition("/")
        return folder if slash else wordnet_label(folder)

    def path(self, image: int) -> Path:
        return self.folder / self._listing.paths[image]

    @cached_property
    def _listing(self) -> FolderListing:
        listing = list_folder(self.folder)
        if not listing.paths:
            example = next((f"; {path!r} {reason}" for path, reason in listing.passed_over.items()), "")
            raise ImagesError(f"the folder {str(self.folder)!r} holds no files{example}")
        return listing


class ListSource(ImageFiles):
    """Files in the order given; a key is the path from the deepest folder that all files are in. Where no labels are given, it is the
    WordNet id that a file's name begins with.

    Relative paths start from `folder` or, without one, from the working folder. `passed_over` are paths that are no images, with reasons.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str] | None = None,
        labels: Sequence[str | None] | None = None,
        passed_over: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `ImagesError` where there are no paths, or nothing but URLs."""
        if not paths:
            raise ImagesError("the list of images is empty")
        if all("://" in os.fspath(path) for path in paths):
            raise ImagesError(url_text(os.fspath(paths[0])))
        self._start = os.path.join(os.getcwd(), folder or "")
        self._given_paths = [os.fspath(path) for path in paths]
        self._labels, self._passed_over = labels if labels and any(labels) else None, passed_over or {}

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "list", "folder": self._folder, "paths": self._paths}

    @property
    def passed_over(self) -> Mapping[str, str]:
        return self._passed_over

    def __len__(self) -> int:
        return len(self._given_paths)

    def key(self, image: int) -> str:
        return valid_text(self._paths[image].replace(os.sep, "/"))

    def label(self, image: int) -> str | None:
        if self._labels:
            return written_label(self._labels[image] or "")
        return wordnet_label(self._given_paths[image])

    def path(self, image: int) -> Path:
        return Path(self._folder, self._paths[image])

    @property
    def _folder(self) -> str:
        return self._location[0]

    @property
    def _paths(self) -> list[str]:
        return self._location[1]

    @cached_property
    def _location(self) -> tuple[str, list[str]]:
        """The deepest folder that holds all files, empty where they lie on several drives, and the paths from there."""
        paths = [absolute_path(os.path.join(self._start, path)) for path in self._given_paths]
        try:
            folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        except ValueError:
            return "", paths
        return folder, [os.path.relpath(path, folder) for path in paths]


def url_text(url: str) -> str:
    """What a person is told who gives a URL where the path of an image is expected."""
    return f"{url!r} is a URL of no tar or Parquet file: behind a URL images are read from those, others must be downloaded first"
