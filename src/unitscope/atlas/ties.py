"""Where many images share a value: the choice among them is the order's alone, and says nothing of the unit.

There is one definition of it, for pictures, pages and counts alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tie:
    """The ranks `first` to `last` of a unit hold one value. Of the `images` that reach it, `shown` are among the peaks."""

    first: int
    last: int
    shown: int
    images: int

    def __str__(self) -> str:
        """As pages say it.

        >>> str(Tie(6, 9, shown=4, images=100)), str(Tie(9, 9, shown=1, images=2))
        ('ranks 6 to 9: 4 of 100 images that tie', 'rank 9: 1 of 2 images that tie')
        """
        ranks = f"ranks {self.first} to {self.last}" if self.last > self.first else f"rank {self.last}"
        return f"{ranks}: {self.shown} of {self.images:,} images that tie"

    @property
    def wholly(self) -> bool:
        """True where all ranks tie: such a unit shows no preference."""
        return self.first == 1


def units_without_preference(ties: Mapping[int, Tie]) -> list[int]:
    """The units all of whose peaks tie with images beyond them."""
    return [unit for unit, tie in ties.items() if tie.wholly]


def find_ties(peaks: Mapping[str, NDArray[Any]], tied: NDArray[np.int64]) -> dict[int, Tie]:
    """The units of a layer whose last peaks have a value that more images share than those peaks show.

    `peaks` has the columns `unit`, `value` and `image` of the layer's peaks, by unit and rank; `tied` says for each unit how many images
    share its k-th value.
    """
    unit, value, image = peaks["unit"], peaks["value"], peaks["image"]
    unit_count = len(tied)
    starts = np.searchsorted(unit, np.arange(unit_count + 1))
    peak_counts = np.diff(starts)
    lowest = np.full(unit_count, np.nan)
    lowest[peak_counts > 0] = value[starts[1:][peak_counts > 0] - 1]
    at_lowest = value == lowest[unit]
    tied_ranks = np.bincount(unit[at_lowest], minlength=unit_count)
    unit_images = np.unique(np.stack([unit[at_lowest], image[at_lowest]]).astype(np.int64), axis=1)
    shown = np.bincount(unit_images[0], minlength=unit_count)
    return {
        int(u): Tie(int(peak_counts[u] - tied_ranks[u]) + 1, int(peak_counts[u]), int(shown[u]), int(tied[u]))
        for u in np.flatnonzero((peak_counts > 0) & (tied > shown))
    }
