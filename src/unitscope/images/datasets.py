"""Map-style data sets as sources: torch's and torchvision's, Hugging Face's, or anything with a length and numbered items."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from PIL import Image

from unitscope.errors import ImagesError, first_line
from unitscope.images.content import hash_of_pixels
from unitscope.images.decoding import check_size, read_bytes, read_file
from unitscope.images.labels import LABEL_COLUMNS, ClassNames, classes_of, first_label, label_text, origins
from unitscope.images.numbered import NumberedSource
from unitscope.images.protocol import Pixels, Skipped, SourceImage, skipping_errors
from unitscope.images.value_ranges import note_value_range

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
"""What data sets call their column of images, the usual name first."""
WHAT_IS_TAKEN = "unitscope takes PIL images, or preprocessed float tensors of shape (channel, y, x)"
COLOUR_CHANNELS = (1, 3, 4)
MIN_PICTURE_SIDE_PX = 8
"""An array with sides longer than this and a last axis of 1, 3 or 4 is a picture with its channels last, not one of many channels."""

_reading = RLock()
"""Held while a data set is asked for an image: one lock for all, since a subset and the whole read the same open file."""


class DatasetSource(NumberedSource):
    """A map-style data set of PIL images or tensors: alone, as the first of a tuple whose second is the label, or in the columns
    of a row, as Hugging Face's data sets give them, decoded or not.

    `name` is what finds the data set again, where it has one. Keys are the numbers of the images. Labels are looked up in the
    `classes` of the data set, or of those that it is a part or a chain of, or in the names of its column. Nobody promised that a data
    set may be read by several threads, so it is asked for one image at a time, which is loaded and copied before the next one.
    """

    def __init__(self, dataset: Any, name: str = "") -> None:
        """Raises `ImagesError` where the data set is empty."""
        self.dataset, self._name = dataset, name
        self._class_names: ClassNames | None = None
        if len(dataset) == 0:
            raise ImagesError("the data set is empty")

    @property
    def description(self) -> Mapping[str, Any]:
        dataset_type = type(self.dataset)
        name = {"name": self._name} if self._name else {}
        return {"kind": "dataset", "type": f"{dataset_type.__module__}.{dataset_type.__qualname__}", "length": len(self), **name}

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, image: int) -> SourceImage:
        with _reading:  # until all is copied, or another thread may be given the same picture, repainted, in between
            with skipping_errors("the data set raised"):
                item = self.dataset[image]
            with skipping_errors():
                return _source_image(_image_in(item), self._label(image, item))

    def labels(self) -> Sequence[str | None] | None:
        """None for every image where items of the first one's form have no position for a label; else they must be read."""
        try:
            with _reading:
                item = self.dataset[0]
        except Exception:  # whoever reads it says why
            return None
        may_have_label = isinstance(item, (tuple, list, Mapping)) and len(item) > 1 and not _is_undecoded(item)
        return None if may_have_label else [None] * len(self)

    def _label(self, image: int, item: Any) -> str | None:
        if not isinstance(item, Mapping):
            value = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
            return label_text(value, self._names_of(classes_of(self.dataset, image)))
        features = _features(self.dataset, image)
        class_columns = {name: names for name in item if (names := getattr(features.get(name), "names", None))}
        column, value = first_label(item, (*LABEL_COLUMNS, *class_columns))
        return label_text(value, self._names_of(class_columns.get(column) or classes_of(self.dataset, image)))

    def _names_of(self, classes: Any) -> ClassNames | None:
        """The names of these classes; those of the last image are kept, since the next one mostly has the same."""
        if not classes:
            return None
        if self._class_names is None or self._class_names.classes is not classes:
            self._class_names = ClassNames(classes)
        return self._class_names


def from_hugging_face(name: str) -> DatasetSource:
    """The data set `hf:NAME`, or one of its splits, `hf:NAME:SPLIT`. Raises `ImagesError`."""
    try:
        import datasets
    except ImportError as error:
        raise ImagesError(f"images {name!r} need Hugging Face's datasets: pip install 'unitscope[hf]'") from error
    _, path, split = (name + "::").split(":")[:3]
    if not path:
        raise ImagesError(f"images {name!r} lack the name of a data set: hf:NAME or hf:NAME:SPLIT")
    try:
        dataset = datasets.load_from_disk(path) if os.path.isdir(path) else datasets.load_dataset(path)
    except Exception as error:
        raise ImagesError(f"images {name!r} can't be loaded: {type(error).__name__}: {first_line(error)}") from error
    if isinstance(dataset, Mapping):
        if (not split and len(dataset) > 1) or (split and split not in dataset):
            raise ImagesError(
                f"images {name!r}: name one of the splits {', '.join(dataset)}, as in 'hf:{path}:{next(iter(dataset))}'"
            )
        dataset = dataset[split or next(iter(dataset))]
    return DatasetSource(dataset, name)


def _features(dataset: Any, image: int) -> Mapping[str, Any]:
    """The columns of a Hugging Face data set, or of the one that this is a part of; none of others."""
    candidates = (getattr(origin, "features", None) for origin in origins(dataset, image))
    return next((features for features in candidates if isinstance(features, Mapping)), {})


def _image_in(item: Any) -> Any:
    """The image in what a data set gives: the item itself, the first of a tuple, or the image column of a row."""
    if not isinstance(item, Mapping) or _is_undecoded(item):
        return item[0] if isinstance(item, (tuple, list)) and item else item
    columns = ", ".join(map(repr, item))
    usual = [item[name] for name in IMAGE_COLUMNS if name in item]
    images = usual[:1] or [value for value in item.values() if isinstance(value, Image.Image) or _is_undecoded(value)]
    if not images:
        raise Skipped(f"is a row with the columns {columns}, none of which holds an image; call one 'image'")
    if len(images) > 1:
        raise Skipped(f"is a row with several images in its columns {columns}; call the one to scan 'image'")
    return images[0]


def _is_undecoded(value: Any) -> bool:
    """True for Hugging Face's images that nobody has decoded: rows of `bytes` and `path`."""
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def _source_image(value: Any, label: str | None) -> SourceImage:
    if isinstance(value, Image.Image):
        picture = _loaded_copy(value)
        return SourceImage(picture, label, hash_of_pixels(picture))
    if isinstance(value, (bytes, bytearray)):
        return read_bytes(bytes(value), label)
    if _is_undecoded(value):
        return read_bytes(value["bytes"], label) if value["bytes"] is not None else read_file(Path(value["path"]), label)
    array = _float32_copy(value)
    return SourceImage(array, label, hash_of_pixels(array))


def _loaded_copy(image: Image.Image) -> Image.Image:
    """The picture, loaded, as it is now: the data set may give the same object again with other pixels."""
    check_size(image)
    note_value_range(image)
    with skipping_errors("can't be decoded:"):
        return image.copy()


def _float32_copy(tensor: Any) -> Pixels:
    """The tensor as a float32 array, as it is now. Raises `Skipped` for what is no preprocessed image."""
    if tensor is None or isinstance(tensor, (str, os.PathLike)):
        raise Skipped(f"the data set gave {tensor!r} for an image; {WHAT_IS_TAKEN}")
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
        array = np.asarray(tensor)
    except TypeError as error:
        raise Skipped(f"the data set gave a {type(tensor).__name__} that is no float tensor: {error}") from error
    _check_is_input(array, f"the data set gave a {type(tensor).__name__} of shape {array.shape} and type {array.dtype}")
    return array.astype(np.float32, copy=True)


def _check_is_input(array: Pixels, what: str) -> None:
    """Raises `Skipped`, with a text that begins with `what`, for arrays that aren't float and of shape (channel, y, x)."""
    if array.ndim in (2, 3) and array.dtype.kind in "iub":
        raise Skipped(f"{what}, which looks like a picture before preprocessing: give PIL.Image.fromarray of it; {WHAT_IS_TAKEN}")
    if array.ndim != 3 or array.dtype.kind != "f":
        raise Skipped(f"{what}; {WHAT_IS_TAKEN}")
    if array.shape[2] in COLOUR_CHANNELS and min(array.shape[:2]) > MIN_PICTURE_SIDE_PX:
        raise Skipped(f"{what}, which has its channels last: move them to the front; {WHAT_IS_TAKEN}")
