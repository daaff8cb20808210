"""What one batch of maps says: each unit's peak per image, reduced while the network runs.

Axes: `image unit y x`. Cells count row by row, `y * width + x`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unitscope.topk import may_enter


@dataclass(frozen=True, slots=True)
class Spacing:
    """How far apart peaks of one image must stand: where cells stand on the input, and half a field, in pixels."""

    centres_y: Tensor
    centres_x: Tensor
    half_height: float
    half_width: float

    def near(self, cells: Int[Tensor, " map"], width: int) -> Bool[Tensor, "map cell"]:
        """For each given cell, the cells less than half a field away from it in both directions."""
        y, x = cells // width, cells % width
        near_y = (self.centres_y[y][:, None] - self.centres_y).abs() < self.half_height
        near_x = (self.centres_x[x][:, None] - self.centres_x).abs() < self.half_width
        near = (near_y[:, :, None] & near_x[:, None, :]).flatten(1)
        near[torch.arange(len(cells)), cells] = True
        return near


@dataclass(frozen=True, slots=True)
class SpatialMax:
    """The peaks of some units in one batch.

    `highest` is each unit's highest value in each image, NaN where its whole map is NaN, `cells` the first cell where it stands;
    `spoilt` says that the map held a NaN.
    """

    highest: Float[Tensor, "image unit"]
    cells: Int[Tensor, "image unit"]
    spoilt: Bool[Tensor, "image unit"]


def highest_cell(maps: Float[Tensor, "image unit y x"]) -> SpatialMax:
    """Each unit's peak in each image. Among equal values the lowest cell wins; NaN never wins.

    In plain operations, so that the program doesn't have to wait for a GPU.
    """
    flat = maps.float().flatten(2)
    missing = flat.isnan()
    flat = flat.masked_fill(missing, -torch.inf)
    highest = flat.amax(2)
    numbers = torch.arange(flat.shape[2], device=maps.device)
    cells = torch.where((flat == highest[:, :, None]) & ~missing, numbers, flat.shape[2]).amin(2)
    nothing = missing.all(2)
    return SpatialMax(highest.masked_fill(nothing, torch.nan), cells.masked_fill(nothing, 0), missing.any(2))


def highest_cell_by_pooling(maps: Float[Tensor, "image unit y x"]) -> tuple[Tensor, Tensor]:
    """Highest values and their cells as `highest_cell` gives them, but NaN wins: in one pass over maps, on a processor.

    On maps whose channels lie side by side the kernel runs through whole rows of them, and among equal values keeps the first.
    """
    if maps.shape[2:] == (1, 1):
        values = maps.flatten(1).float()
        return values.clone() if values.data_ptr() == maps.data_ptr() else values, torch.zeros_like(values, dtype=torch.int64)
    maps = maps.contiguous(memory_format=torch.channels_last)
    values, cells = nn.functional.max_pool2d(maps, maps.shape[2:], return_indices=True)
    return values.flatten(1).float(), cells.flatten(1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Possible peaks, of shape (image, pick, unit): the highest first, then those far enough away. NaN where there is none."""

    values: Float[Tensor, "image pick unit"]
    cells: Int[Tensor, "image pick unit"]


Found = TypeVar("Found", SpatialMax, Candidates)


def concatenated(found: Sequence[Found], axis: int) -> Found:
    """Of several batches (axis 0), or of the units of several layers (the last axis, -1)."""
    kind = type(found[0])
    return kind(*(torch.cat([getattr(one, name) for one in found], axis) for name in kind.__slots__))


@dataclass(frozen=True, slots=True)
class PeakPicker:
    """How several peaks of one image are picked in one layer.

    `picks` a map, as far apart as `spacing` says; those after the first only where the first comes up to the unit's `floor`, since
    each costs another look at the map. With `rectified`, values at and below zero are none (rule 5).
    """

    picks: int
    spacing: Spacing
    rectified: bool
    floor: Float[Tensor, " unit"]

    def of(self, maps: Float[Tensor, "image unit y x"], first: SpatialMax) -> Candidates:
        """The candidates of every map, given what `highest_cell` says of it."""
        values = torch.full((len(maps), self.picks, maps.shape[1]), torch.nan, dtype=torch.float32, device=maps.device)
        cells = torch.zeros(values.shape, dtype=torch.int64, device=maps.device)
        values[:, 0], cells[:, 0] = self._fires(first.highest), first.cells
        image, unit = may_enter(values[:, 0], self.floor).nonzero().unbind(1)
        left = maps.float().flatten(2)[image, unit]
        for pick in range(1, self.picks):
            left = left.masked_fill(self.spacing.near(cells[image, pick - 1, unit], maps.shape[3]), torch.nan)
            found = highest_cell(left[:, None, :, None])
            values[image, pick, unit], cells[image, pick, unit] = self._fires(found.highest[:, 0]), found.cells[:, 0]
        return Candidates(values, cells)

    def _fires(self, values: Tensor) -> Tensor:
        return values.masked_fill(values <= 0, torch.nan) if self.rectified else values
