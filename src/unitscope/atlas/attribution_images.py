"""Projections: for a peak, an image that says what each pixel of its box has to do with its value. One table for each method.

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

ZERO, FURTHEST = 128, 127
MOST_PIXELS = 1 << 26


@dataclass(frozen=True, slots=True)
class Projection:
    """One row of a table of projections: whose it is, its box in network-input pixels, and its image with its scale."""

    layer: str
    unit: int
    rank: int
    box: Box
    image: bytes
    scale: float


def encoded(values: Float32[ndarray, "channel y x"]) -> tuple[bytes, float]:
    """The values as an image, and the scale that turns pixels back. What isn't finite becomes zero."""
    finite = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    scale = float(np.abs(finite).max(initial=0)) / FURTHEST
    pixels = np.rint(finite / (scale or 1) + ZERO).astype(np.uint8)
    image = BytesIO()
    if len(pixels) == 3:
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(image, "WEBP", lossless=True, quality=0, method=1)
    else:
        Image.fromarray(pixels.reshape(-1, pixels.shape[2])).save(image, "PNG", compress_level=1)
    return image.getvalue(), scale


def decoded(image: bytes, scale: float, height: int) -> Float32[ndarray, "channel y x"]:
    """The values again, to half a step of the scale; `height` is that of the box."""
    return (_pixels(image, height).astype(np.float32) - ZERO) * np.float32(scale)


def shown(image: bytes, height: int) -> Image.Image:
    """What a person looks at: zero is grey, and the strongest two pixels in a hundred reach black or white."""
    pixels = _pixels(image, height).astype(np.float32) - ZERO
    limit = max(1.0, float(np.quantile(np.abs(pixels), 0.98)))
    spread = (ZERO + pixels * (FURTHEST / limit)).clip(0, 255).astype(np.uint8)
    colours = spread if len(spread) == 3 else spread[:1].repeat(3, axis=0)
    return Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))


def _pixels(image: bytes, height: int) -> np.ndarray:
    with Image.open(BytesIO(image)) as held:
        if held.width * held.height > MOST_PIXELS:
            raise ValueError(f"the image of an attribution is {held.width} x {held.height} pixels large")
        pixels = np.asarray(held)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels.reshape(-1, height, pixels.shape[1])
