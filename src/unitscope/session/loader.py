"""From the number of an image to an input of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unitscope.images import ImageSource, Item, Skipped, SourceImage, prepare, skipping_errors
from unitscope.images.label_files import Labels
from unitscope.images.perceptual_hash import perceptual_hash
from unitscope.images.protocol import Pixels
from unitscope.networks import InputFormat
from unitscope.records import ImageRecord, Preprocessing


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image: its input before normalisation and what is known of it, or the reason why it is skipped."""

    image: int
    key: str
    pixels: Pixels | None
    record: ImageRecord | None
    skip_reason: str = ""


@dataclass(frozen=True, slots=True)
class Loader:
    """Turns images of a source into inputs.

    Without preprocessing the source gives arrays that are taken as they are. `shape` is (channel, y, x) of every input. `labels`, by
    key, take the place of those that the source gives.
    """

    source: ImageSource
    preprocessing: Preprocessing | None
    shape: tuple[int, int, int]
    labels: Labels | None = None

    def item(self, image: int) -> Item:
        """The image of that number, to be loaded; one whose key can't be had says so when it is read."""
        try:
            with skipping_errors():
                key = self.source.key(image)
        except Skipped as reason:
            return Item(image, "", partial(_raise, reason))
        return Item(image, key, partial(self.source.read, image))

    def load(self, item: Item) -> LoadedImage:
        """One image; whatever its source raises skips this one alone."""
        try:
            with skipping_errors():
                source_image = item.read()
            with skipping_errors("can't be prepared:"):
                pixels, (width, height) = self._prepared(source_image.pixels)
                seen = perceptual_hash(pixels if self.preprocessing is not None else pixels.transpose(1, 2, 0))
        except Skipped as reason:
            return LoadedImage(item.image, item.key, None, None, str(reason))
        label = source_image.label if self.labels is None else self.labels.get(item.key)
        record = ImageRecord(item.image, item.key, width, height, label, source_image.content, seen)
        return LoadedImage(item.image, item.key, pixels, record)

    def _prepared(self, pixels: Image.Image | Pixels) -> tuple[Pixels, tuple[int, int]]:
        """The input, and the image's width and height as displayed."""
        if isinstance(pixels, Image.Image):
            if self.preprocessing is None:
                raise Skipped("is a picture, where the others of the data set are tensors")
            return prepare(pixels, self.preprocessing), pixels.size
        if self.preprocessing is not None:
            raise Skipped("is a tensor, where the others of the data set are pictures")
        if pixels.shape != self.shape:
            raise Skipped(f"is a tensor of shape {pixels.shape}, where {self.shape} is expected")
        return pixels, (pixels.shape[2], pixels.shape[1])

    def normalise(self, pixels: Sequence[Pixels], input_format: InputFormat) -> Tensor:
        """The network's input of shape (image, channel, y, x), computed on its device from 8-bit pixels."""
        stacked = torch.from_numpy(np.stack(pixels)).to(input_format.device)
        if self.preprocessing is None:
            return input_format.convert(stacked)
        images, height, width, channels = stacked.shape
        # Whole rows of colours at a time: on so short an axis as that of the channels nothing is fast.
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=input_format.device).repeat(width)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        rows = stacked.reshape(images, height, width * channels).float().div_(255).sub_(mean).div_(std)
        return input_format.convert(rows.reshape(images, height, width, channels).permute(0, 3, 1, 2))


def _raise(reason: Skipped) -> SourceImage:
    raise reason
