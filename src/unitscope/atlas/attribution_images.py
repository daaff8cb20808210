"""Attributions as images: for a peak, what each pixel of its box has to do with its value. Each method has a table of them.

An image holds signed values in 8 bits: `value = (pixel - 128) * scale`. Three channels are colours, as lossless WebP; others lie one below
the other, as PNG.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image

from unitscope.records import Box

ZERO_PIXEL, MAX_STEPS = 128, 127
"""The pixel of the value zero, and how many steps of the scale the largest value lies from it."""
MAX_PIXELS = 1 << 26
"""The most pixels that an image from a table is decoded with: nobody knows who wrote it."""
STRONGEST_SHARE = 0.02
"""The share of the pixels that reach black or white when they are drawn."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """One row of a table of attributions: its peak, its box in network-input pixels, and its image with its scale."""

    layer: str
    unit: int
    rank: int
    box: Box
    image: bytes
    scale: float


def encode_attribution(values: Float32[ndarray, "channel y x"]) -> tuple[bytes, float]:
    """The values as an image, and the scale that turns pixels back. What isn't finite becomes zero."""
    finite = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    scale = float(np.abs(finite).max(initial=0)) / MAX_STEPS
    pixels = np.rint(finite / (scale or 1) + ZERO_PIXEL).astype(np.uint8)
    image = BytesIO()
    if len(pixels) == 3:
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(image, "WEBP", lossless=True, quality=0, method=1)
    else:
        Image.fromarray(pixels.reshape(-1, pixels.shape[2])).save(image, "PNG", compress_level=1)
    return image.getvalue(), scale


def decode_attribution(image: bytes, scale: float, height: int) -> Float32[ndarray, "channel y x"]:
    """The values again, to half a step of the scale; `height` is that of the box."""
    return (_pixels(image, height).astype(np.float32) - ZERO_PIXEL) * np.float32(scale)


def draw_attribution(image: bytes, height: int) -> Image.Image:
    """What a person looks at: zero is grey, and the strongest two pixels in a hundred reach black or white."""
    steps = _pixels(image, height).astype(np.float32) - ZERO_PIXEL
    limit = max(1.0, float(np.quantile(np.abs(steps), 1 - STRONGEST_SHARE)))
    shades = (ZERO_PIXEL + steps * (MAX_STEPS / limit)).clip(0, 255).astype(np.uint8)
    colours = shades if len(shades) == 3 else shades[:1].repeat(3, axis=0)
    return Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))


def _pixels(encoded: bytes, height: int) -> np.ndarray:
    with Image.open(BytesIO(encoded)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"the image of an attribution is {image.width} x {image.height} pixels large")
        pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels.reshape(-1, height, pixels.shape[1])
