"""Perceptual hashes: near-duplicates of a picture, encoded anew or in another size, have nearly the same one."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitscope.images.protocol import Pixels

SIDE = 32
"""Pictures are made so many pixels wide and high first."""
FREQUENCIES = 8
"""Along each axis: the hash has a bit for each pair of them, but for the mean."""
MIN_CONTRAST = 1.0
"""A picture whose lowest frequencies have a lower standard deviation than this, of 255 grey values, shows nothing to tell it by."""
MAX_DISTANCE = 6
"""Pictures whose hashes differ in so many bits, or fewer, are near-duplicates (`docs/meaning.md` has what was measured)."""
THINNED_SIDE = 4 * SIDE
"""From this length of the shorter side on, every other row and column will do."""

_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(FREQUENCIES), np.arange(SIDE) + 0.5))
_MIN_ENERGY = (MIN_CONTRAST * SIDE**2 / 2) ** 2
"""Of the frequencies together: a wave along one axis and one along the other has an energy of SIDE² / 2 times its standard deviation, squared."""
_BITS = np.left_shift(np.uint64(1), np.arange(FREQUENCIES**2 - 1, dtype=np.uint64))


def perceptual_hash(pixels: Pixels) -> int | None:
    """The hash of a picture as the network sees it, of shape (y, x, channel): 8-bit pixels, or other numbers of any range.

    Its lowest frequencies' signs, against their median (Zauner 2010, section 3.2). None for what is too small, or too even, to be told.
    """
    grey = _grey(pixels)
    if grey is None:
        return None
    frequencies = (_COSINES @ grey @ _COSINES.T).ravel()[1:]
    if not frequencies @ frequencies >= _MIN_ENERGY:  # or NaN
        return None
    middle = np.partition(frequencies, len(frequencies) // 2)[len(frequencies) // 2]
    return int(_BITS[frequencies > middle].sum())


def _grey(pixels: Pixels) -> NDArray[np.float64] | None:
    """Grey values from 0 to 255, of shape (SIDE, SIDE)."""
    if pixels.dtype == np.uint8:
        if min(pixels.shape[:2]) < FREQUENCIES:
            return None
        step = 2 if min(pixels.shape[:2]) >= THINNED_SIDE else 1
        values = pixels[::step, ::step, 1 if pixels.shape[2] >= 3 else 0]  # green is most of what is bright
        thinned = Image.fromarray(np.ascontiguousarray(values))
        return np.asarray(thinned.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    if min(pixels.shape[:2]) < FREQUENCIES:
        return None
    with np.errstate(invalid="ignore"):  # infinities of both signs
        mean = pixels.mean(2, dtype=np.float64)
    low, high = mean.min(), mean.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    scaled = (mean - low) * (255 / (high - low) if high > low else 0)
    return np.asarray(Image.fromarray(scaled.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)


def differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """In how many bits hashes differ; both broadcast."""
    counts: NDArray[np.uint8] = np.bitwise_count(np.bitwise_xor(first, second))
    return counts
