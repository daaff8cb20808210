"""Where images come from: a stable order, a key for each, and each by its number.

A source is anything with the members of `ImageSource`. Images are numbered from 0 in an order that never changes for the same
source; a key says the same to a person.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from unitscope.errors import ImagesError, first_line
from unitscope.images.files import IMAGE_COLUMNS, LABEL_COLUMNS, FileSource, Item, file_source, form_of, label_text
from unitscope.images.pixels import Pixels, Skipped, check_size, display
from unitscope.records import Shard


@runtime_checkable
class ImageSource(Protocol):
    """A numbered collection of images.

    `open` gives the image as displayed or, where the data set holds tensors that are already preprocessed, an array of shape
    (channel, y, x); it raises `Skipped` with the reason where an image can't be read. It may be called from several threads.
    `description` is what is written into an atlas, so that `reopened` can find the images again.
    """

    @property
    def description(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def key(self, image: int) -> str: ...

    def label(self, image: int) -> str | None: ...

    def open(self, image: int) -> Image.Image | Pixels: ...


Source = ImageSource | FileSource
"""Images that are numbered one by one, or that lie many to a file."""


class FolderSource:
    """All files below a folder, by path; the label is the name of the first folder on the way, where there is one.

    Every file counts, whatever its name ends in, but for hidden ones: what isn't an image is skipped with its reason.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ImagesError(f"there is no folder {str(folder)!r} with images")
        self._paths = sorted(_files_below(self.folder))
        if not self._paths:
            raise ImagesError(f"the folder {str(folder)!r} holds no files")

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "folder", "folder": str(self.folder.resolve())}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image])

    def label(self, image: int) -> str | None:
        first, slash, _ = self.key(image).partition("/")
        return first if slash else None

    def open(self, image: int) -> Image.Image:
        return display(self.folder / self._paths[image])


class ListSource:
    """Files in the order given; a key is the path as given, from the working folder or from `folder`."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = Path(folder or os.getcwd())
        self._paths = [os.fspath(p) for p in paths]
        if not self._paths:
            raise ImagesError("the list of images is empty")

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "list", "working_folder": str(self._folder), "paths": self._paths}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, image: int) -> str:
        return as_text(self._paths[image])

    def label(self, image: int) -> str | None:
        return None

    def open(self, image: int) -> Image.Image:
        return display(self._folder / self._paths[image])


class DatasetSource:
    """A map-style data set of PIL images or tensors: alone, as the first of a tuple whose second is the label, or in the columns
    of a row, as Hugging Face's data sets give them.

    `name` is what finds the data set again, where it has one. Keys are the numbers of the images. Labels are looked up in the data set's
    `classes`, or the names of its column.
    """

    def __init__(self, dataset: Any, name: str = "") -> None:
        self.dataset, self._name = dataset, name
        if len(dataset) == 0:
            raise ImagesError("the data set is empty")
        self._labels: dict[int, str | None] = {}

    @property
    def description(self) -> Mapping[str, Any]:
        kind = type(self.dataset)
        named = {"name": self._name} if self._name else {}
        return {"kind": "dataset", "type": f"{kind.__module__}.{kind.__qualname__}", "length": len(self), **named}

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, image: int) -> str:
        return str(image)

    def label(self, image: int) -> str | None:
        if image not in self._labels:
            self._keep_label(image, self.dataset[image])
        return self._labels.pop(image)  # they would add up

    def open(self, image: int) -> Image.Image | Pixels:
        try:
            item = self.dataset[image]
        except (IndexError, KeyError) as error:
            raise ImagesError(f"the data set has length {len(self)} but gives no image {image}: {error!r}") from error
        except Exception as error:
            raise Skipped(f"the data set raised {type(error).__name__}: {error}") from error
        self._keep_label(image, item)
        first = _first(item)
        if isinstance(first, Image.Image):
            check_size(first)
            return first
        return _array(first)

    def _keep_label(self, image: int, item: Any) -> None:
        if isinstance(item, Mapping):
            name = next((name for name in LABEL_COLUMNS if name in item), "")
            features = getattr(self.dataset, "features", None) or {}
            self._labels[image] = label_text(item.get(name), getattr(features.get(name), "names", None))
            return
        said = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
        self._labels[image] = label_text(said, getattr(self.dataset, "classes", None))


def _first(item: Any) -> Any:
    """The image in what a data set gives: the item itself, the first of a tuple, or the image column of a row."""
    if isinstance(item, Mapping):
        named = [item[name] for name in IMAGE_COLUMNS if name in item]
        images = named or [value for value in item.values() if isinstance(value, Image.Image)]
        if not images:
            raise ImagesError(f"the data set's rows have the columns {', '.join(map(repr, item))}, none of which holds an image")
        return images[0]
    return item[0] if isinstance(item, (tuple, list)) and item else item


def as_source(images: Any) -> Source:
    """The source that a user means: a folder, files of many images, a list of paths, a map-style data set, or a source.

    `hf:NAME` or `hf:NAME:SPLIT` is a data set of Hugging Face's `datasets`.
    """
    if isinstance(images, str) and images.startswith("hf:"):
        return _from_hugging_face(images)
    if isinstance(images, (str, os.PathLike)):
        return file_source([os.fspath(images)]) if form_of(os.fspath(images)) else FolderSource(images)
    if isinstance(images, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in images):
        many = bool(images) and all(form_of(os.fspath(path)) for path in images)
        return file_source([os.fspath(path) for path in images]) if many else ListSource(images)
    if isinstance(images, (ImageSource, FileSource)):
        return images
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return DatasetSource(images)
    raise ImagesError(
        "images are a folder, tar shards or Parquet files, a list of paths or a map-style data set (one with a length), not a "
        f"{type(images).__name__}"
    )


def reopened(description: Mapping[str, Any]) -> Source:
    """The source that an atlas was made from. Raises `ImagesError` where it is gone or was a data set in memory."""
    if description["kind"] == "folder":
        return FolderSource(description["folder"])
    if description["kind"] == "list":
        return ListSource(description["paths"], description["working_folder"])
    if description["kind"] == "files":
        return file_source(description["files"])
    if description.get("name"):
        return as_source(description["name"])
    raise ImagesError(
        f"the images were a data set of type {description.get('type')}; give it again: unitscope.Atlas(folder, images=dataset)"
    )


def _from_hugging_face(name: str) -> DatasetSource:
    try:
        import datasets
    except ImportError as error:
        raise ImagesError(f"images {name!r} need Hugging Face's datasets: pip install 'unitscope[hf]'") from error
    _, path, split = (name + "::").split(":")[:3]
    try:
        found = datasets.load_from_disk(path) if os.path.isdir(path) else datasets.load_dataset(path)
    except Exception as error:
        raise ImagesError(f"images {name!r} can't be loaded: {type(error).__name__}: {first_line(error)}") from error
    if isinstance(found, Mapping):
        if (not split and len(found) > 1) or (split and split not in found):
            raise ImagesError(
                f"images {name!r}: name one of the splits {', '.join(found)}, as in 'hf:{path}:{next(iter(found))}'"
            )
        found = found[split or next(iter(found))]
    return DatasetSource(found, name)


def items_of(source: Source, shard: Shard) -> Iterator[Item]:
    """The images of a shard, in order: those with its numbers, or all of the file with its number."""
    if isinstance(source, FileSource):
        yield from source.items(shard.number)
        return
    for image in range(shard.start, shard.stop):
        yield Item(image, source.key(image), partial(source.open, image), partial(source.label, image))


def count_of(source: Source) -> int | None:
    """How many images there are; None where they lie many to a file, which nobody has counted."""
    return None if isinstance(source, FileSource) else len(source)


def holds(source: Source, image: int, key: str) -> bool:
    """True where the image of that number has that key."""
    count = count_of(source)
    try:
        return (count is None or image < count) and source.key(image) == key
    except Skipped:
        return False


def as_text(name: str) -> str:
    """A file's name as valid text: bytes that are none are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def keys_hash(source: Source, count: int) -> str:
    """SHA-256 over the first `count` keys in order; over the names of the files where images lie many to a file."""
    if isinstance(source, FileSource):
        return source.hash
    digest = sha256()
    for image in range(count):
        digest.update(source.key(image).encode() + b"\0")
    return digest.hexdigest()


def _files_below(folder: Path, inside: frozenset[tuple[int, int]] = frozenset(), prefix: str = "") -> Iterator[str]:
    """Paths of all files, from `folder`; hidden ones and folders that hold an atlas left out.

    A link to a folder that the way leads through is not followed. A folder that can't be read counts as a file, to be skipped with
    its reason.
    """
    known = folder.stat()
    if (known.st_dev, known.st_ino) in inside:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        yield prefix.rstrip("/")
        return
    if prefix and any(entry.name == "atlas.json" for entry in entries):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(Path(entry), inside | {(known.st_dev, known.st_ino)}, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _array(item: Any) -> Pixels:
    try:
        values = item.detach().cpu().numpy() if hasattr(item, "detach") else np.asarray(item)
    except TypeError as error:
        raise ImagesError(f"the data set gave a {type(item).__name__} that is no float tensor: {error}") from error
    if values.ndim != 3 or values.dtype.kind != "f":
        raise ImagesError(
            f"the data set gave a {type(item).__name__} of shape {values.shape} and type {values.dtype}; unitscope takes PIL images, "
            "or preprocessed float tensors of shape (channel, y, x)"
        )
    return values.astype(np.float32, copy=False)
