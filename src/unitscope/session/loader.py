"""From numbers of images to inputs of the network."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unitscope.images import Item, Skipped, Source, prepare, skipping_errors
from unitscope.images.protocol import Pixels
from unitscope.networks import InputFormat
from unitscope.records import ImageNote, Preprocessing


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image: its input before normalisation and what is known of it, or the reason why it was skipped."""

    image: int
    key: str
    pixels: Pixels | None
    note: ImageNote | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Loader:
    """Turns numbers of images into inputs.

    Without preprocessing the source gives arrays that are taken as they are. `shape` is (channel, y, x) of every input.
    """

    source: Source
    preprocessing: Preprocessing | None
    shape: tuple[int, int, int]

    def load(self, image: int) -> Loaded:
        """One image by its number."""
        try:
            with skipping_errors():
                key = self.source.key(image)
        except Skipped as reason:
            return Loaded(image, "", None, None, str(reason))
        return self.loaded(Item(image, key, partial(self.source.read, image)))

    def loaded(self, item: Item) -> Loaded:
        """One image that its shard gave; whatever its source raises skips this one alone."""
        try:
            with skipping_errors():
                found = item.read()
            with skipping_errors("can't be prepared:"):
                pixels, size = self._pixels(found.pixels)
        except Skipped as reason:
            return Loaded(item.image, item.key, None, None, str(reason))
        return Loaded(item.image, item.key, pixels, ImageNote(item.key, *size, found.label, found.content))

    def _pixels(self, found: Image.Image | Pixels) -> tuple[Pixels, tuple[int, int]]:
        """The input and the image's width and height as displayed."""
        if isinstance(found, Image.Image):
            if self.preprocessing is None:
                raise Skipped("is a picture, where the others of the data set are tensors")
            return prepare(found, self.preprocessing), found.size
        if self.preprocessing is not None:
            raise Skipped("is a tensor, where the others of the data set are pictures")
        if found.shape != self.shape:
            raise Skipped(f"is a tensor of shape {found.shape}, where {self.shape} is expected")
        return found, (found.shape[2], found.shape[1])

    def normalised(self, pixels: list[Pixels], form: InputFormat) -> Tensor:
        """The network's input of shape (image, channel, y, x), computed on its device from 8-bit pixels."""
        stacked = torch.from_numpy(np.stack(pixels)).to(form.device)
        if self.preprocessing is None:
            return form.convert(stacked)
        images, height, width, channels = stacked.shape
        # Whole rows of colours at a time: on so short an axis as that of the channels nothing is fast.
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=form.device).repeat(width)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        rows = stacked.reshape(images, height, width * channels).float().div_(255).sub_(mean).div_(std)
        return form.convert(rows.reshape(images, height, width, channels).permute(0, 3, 1, 2))
