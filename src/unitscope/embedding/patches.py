"""Embeddings of patches: the mean of an embedder's map over each box, one pass an image."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unitscope.atlas import Atlas
from unitscope.embedding.embedders import Embedder
from unitscope.errors import AtlasError, NetworkError, UnitscopeError
from unitscope.images import Skipped, prepare, skipping_errors

Floats = NDArray[np.float32]

BATCH_IMAGES = 32
MAX_STORED_BYTES = 8 << 30
"""Maps are stored up to here, for layers look at the same images; further ones are computed each time."""


@dataclass
class ImageMaps:
    """An embedder's maps of the images of an atlas, as the scanned network saw them: of the same part of each, in its own size.

    A patch's embedding is the mean of its image's map over its box. With `crops` it is that of the patch itself, cut out and enlarged to the
    embedder's size, which takes a pass a patch in place of one an image.
    """

    atlas: Atlas
    embedder: Embedder
    crops: bool = False
    _stored: "StoredMaps" = field(init=False)

    def __post_init__(self) -> None:
        """Raises `AtlasError` where the images were no pictures, which no embedder sees."""
        check_are_pictures(self.atlas)
        self._stored = StoredMaps(self.atlas.folder)

    def close(self) -> None:
        """Remove what is stored."""
        self._stored.close()

    def of(self, images: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """The map of each image with its number, of shape (y, x, number). Raises `UnitscopeError` where one is gone, or not a number."""
        for start in range(0, len(images), BATCH_IMAGES):
            batch = images[start : start + BATCH_IMAGES]
            computed = self._computed([image for image in batch if image not in self._stored])
            yield from ((image, computed[image] if image in computed else self._stored.read(image)) for image in batch)

    def embed(self, of_image: NDArray[np.integer], boxes: NDArray[np.float64]) -> Floats:
        """The embedding of each patch, of shape (patch, number): `of_image` is its image's number, `boxes` are as in `means_in_boxes`."""
        all_vectors: Floats | None = None
        for rows, vectors in self.embedded(of_image, boxes):
            if all_vectors is None:
                all_vectors = np.empty((len(boxes), vectors.shape[1]), dtype=np.float32)
            all_vectors[rows] = vectors
        return np.empty((0, 0), dtype=np.float32) if all_vectors is None else all_vectors

    def embedded(self, of_image: NDArray[np.integer], boxes: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.intp], Floats]]:
        """The same, some patches at a time, with the rows that they are."""
        if not len(of_image):
            return
        order = np.argsort(of_image, kind="stable")
        unique_numbers, starts = np.unique(of_image[order], return_index=True)
        numbers, rows_of_image = unique_numbers.tolist(), np.split(order, starts[1:])
        if not self.crops:
            for (_, maps), rows in zip(self.of(numbers), rows_of_image, strict=True):
                yield rows, means_in_boxes(maps, boxes[rows], self.atlas.input_size)
            return
        for image, rows in zip(numbers, rows_of_image, strict=True):
            picture = Image.fromarray(seen_image(self.atlas, image, self.atlas.input_size))
            for start in range(0, len(rows), BATCH_IMAGES):
                batch_rows = rows[start : start + BATCH_IMAGES]
                pictures = np.stack([self._crop(picture, boxes[row]) for row in batch_rows])
                maps = self.embedder.maps(torch.from_numpy(pictures)).mean((2, 3)).numpy()
                self._check_finite([image] * len(maps), maps)
                yield batch_rows, maps

    def _crop(self, picture: Image.Image, box: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What of a box lies on the picture, at least a pixel of it, in the embedder's size."""
        height, width = picture.height, picture.width
        top, bottom = np.clip(box[[0, 2]], 0, height)
        left, right = np.clip(box[[1, 3]], 0, width)
        top, left = min(top, height - 1), min(left, width - 1)
        sides = (left, top, max(right, left + 1), max(bottom, top + 1))
        return np.asarray(picture.resize(self.embedder.size[::-1], Image.Resampling.BICUBIC, sides))

    def _check_finite(self, images: Sequence[int], vectors: Floats) -> None:
        if not np.isfinite(vectors).all():
            bad = next(image for image, of_image in zip(images, vectors, strict=True) if not np.isfinite(of_image).all())
            raise NetworkError(f"the embedder {self.embedder.name!r} gives NaN or infinite numbers for {self.atlas.key(bad)!r}")

    def _computed(self, images: list[int]) -> dict[int, Floats]:
        """The maps of images, which are stored, too, as long as there is room."""
        if not images:
            return {}
        pictures = torch.from_numpy(np.stack([seen_image(self.atlas, image, self.embedder.size) for image in images]))
        maps = self.embedder.maps(pictures).permute(0, 2, 3, 1).contiguous().numpy()
        self._check_finite(images, maps)
        for image, of_image in zip(images, maps, strict=True):
            self._stored.write(image, of_image)
        return dict(zip(images, maps, strict=True))


class StoredMaps:
    """Maps of images, float32 of shape (y, x, number), in a file that goes when it is closed: layers look at the same images."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._offsets: dict[int, tuple[int, tuple[int, ...]]] = {}

    def close(self) -> None:
        self._file.close()

    def __contains__(self, image: int) -> bool:
        return image in self._offsets

    def write(self, image: int, maps: Floats) -> None:
        """Keep a map where there is room for it, on the disk and below `MAX_STORED_BYTES`."""
        offset, content = self._file.seek(0, os.SEEK_END), np.ascontiguousarray(maps, dtype=np.float32).tobytes()
        if offset + len(content) > MAX_STORED_BYTES:
            return
        with suppress(OSError):
            self._file.write(content)
            self._file.flush()
            self._offsets[image] = offset, maps.shape

    def read(self, image: int) -> Floats:
        offset, shape = self._offsets[image]
        self._file.seek(offset)
        return np.frombuffer(self._file.read(4 * prod(shape)), dtype=np.float32).reshape(shape)


def image_batches(atlas: Atlas, images: Sequence[int], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """What the scanned network saw of images, in that height and width, some at a time, of shape (image, y, x, colour) and type uint8."""
    check_are_pictures(atlas)
    for start in range(0, len(images), BATCH_IMAGES):
        yield torch.from_numpy(np.stack([seen_image(atlas, image, size) for image in images[start : start + BATCH_IMAGES]]))


def check_are_pictures(atlas: Atlas) -> None:
    """Raises `AtlasError` where the images were no pictures, which no embedder sees."""
    if atlas.preprocessing is None:
        raise AtlasError(f"the images of {str(atlas.folder)!r} were tensors, which an embedder of pictures can't see")


def seen_image(atlas: Atlas, image: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """What the scanned network saw of an image, in colours and in that height and width. Raises `UnitscopeError` where it is gone."""
    pixels = seen_pixels(atlas, image)
    seen = Image.fromarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]).convert("RGB")
    return np.asarray(seen.resize(size[::-1], Image.Resampling.BICUBIC))


def seen_pixels(atlas: Atlas, image: int) -> NDArray[np.uint8]:
    """What the scanned network saw of an image, of shape (y, x, channel). Raises `UnitscopeError` where it is gone."""
    assert atlas.preprocessing is not None  # noqa: S101 - checked before
    try:
        with skipping_errors():
            picture = atlas.open_image(image)
            assert isinstance(picture, Image.Image)  # noqa: S101 - preprocessing is of pictures
            return prepare(picture, atlas.preprocessing)
    except Skipped as reason:
        raise UnitscopeError(f"the image {atlas.key(image)!r} {reason}") from reason


def means_in_boxes(maps: Floats, boxes: NDArray[np.float64], input_size: tuple[int, int]) -> Floats:
    """The mean of an image's map over each box, of shape (box, number).

    `maps` has the shape (y, x, number) and covers the whole input; `boxes`, of shape (box, side), are top, left, bottom and right in
    network-input pixels. A cell counts by the share of it that a box covers. A box that lies beside the input gets its nearest cell.
    """
    height, width, numbers = maps.shape
    rows = _shares(boxes[:, 0], boxes[:, 2], height, input_size[0])
    columns = _shares(boxes[:, 1], boxes[:, 3], width, input_size[1])
    weights = (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), height * width)
    means: Floats = np.matmul(weights, maps.reshape(height * width, numbers), dtype=np.float32)
    return means


def _shares(start: NDArray[np.float64], stop: NDArray[np.float64], cells: int, pixels: int) -> Floats:
    """How much each cell along one axis counts in each range of pixels, of shape (range, cell); the sum is 1."""
    scale = cells / pixels
    low, high = np.clip(start * scale, 0, cells), np.clip(stop * scale, 0, cells)
    edges = np.arange(cells)
    overlap = np.clip(np.minimum(high[:, None], edges + 1) - np.maximum(low[:, None], edges), 0, None)
    nearest = np.clip(np.floor((low + high) / 2), 0, cells - 1)[:, None] == edges
    total = overlap.sum(1, keepdims=True)
    shares: Floats = np.where(total > 0, overlap / np.where(total > 0, total, 1), nearest).astype(np.float32)
    return shares
