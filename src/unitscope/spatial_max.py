"""The spatial maximum of every unit in every image of a batch, computed inside the hooks while the network runs.

Axes: `image unit y x`. Cells are numbered row by row, `y * width + x`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unitscope.topk import may_enter


@dataclass(frozen=True, slots=True)
class SpatialMax:
    """The spatial maxima of some units in one batch.

    `values` holds each unit's highest value in each image, NaN where the whole activation map is NaN. `cells` holds the lowest cell
    with that value. `has_nan` is true where the activation map holds a NaN.
    """

    values: Float[Tensor, "image unit"]
    cells: Int[Tensor, "image unit"]
    has_nan: Bool[Tensor, "image unit"]


def highest_cell(maps: Float[Tensor, "image unit y x"]) -> SpatialMax:
    """Each unit's spatial maximum in each image. Among equal values the lowest cell wins; NaN never wins.

    These are plain operations that never wait for the values, so a GPU runs on.
    """
    flat_maps = maps.float().flatten(2)
    nan_mask = flat_maps.isnan()
    flat_maps = flat_maps.masked_fill(nan_mask, -torch.inf)
    values = flat_maps.amax(2)
    cell_count = flat_maps.shape[2]
    cell_numbers = torch.arange(cell_count, device=maps.device)
    cells = torch.where((flat_maps == values[:, :, None]) & ~nan_mask, cell_numbers, cell_count).amin(2)
    all_nan = nan_mask.all(2)
    return SpatialMax(values.masked_fill(all_nan, torch.nan), cells.masked_fill(all_nan, 0), nan_mask.any(2))


def highest_cell_by_pooling(maps: Float[Tensor, "image unit y x"]) -> tuple[Tensor, Tensor]:
    """Values and cells as `highest_cell` gives them, except that NaN wins. It reads the maps once and is for a CPU.

    In the memory format channels last the kernel reads whole rows of channels, and among equal values it keeps the first.
    """
    if maps.shape[2:] == (1, 1):
        values = maps.flatten(1).float()
        return values.clone() if values.data_ptr() == maps.data_ptr() else values, torch.zeros_like(values, dtype=torch.int64)
    maps = maps.contiguous(memory_format=torch.channels_last)
    values, cells = nn.functional.max_pool2d(maps, maps.shape[2:], return_indices=True)
    return values.flatten(1).float(), cells.flatten(1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The possible peaks of some units in one batch.

    Pick 0 is the highest of its image, the later picks stand far enough from the earlier ones. Values are NaN where there is none.
    """

    values: Float[Tensor, "image pick unit"]
    cells: Int[Tensor, "image pick unit"]


Maxima = TypeVar("Maxima", SpatialMax, Candidates)


def concatenated(parts: Sequence[Maxima], axis: int) -> Maxima:
    """The parts as one: several batches along axis 0, the units of several layers along the last axis, -1."""
    kind = type(parts[0])
    return kind(*(torch.cat([getattr(part, name) for part in parts], axis) for name in kind.__slots__))


@dataclass(frozen=True, slots=True)
class Spacing:
    """How far apart the peaks of one image stand at least.

    `centres_y` and `centres_x` are the centres of the cells' receptive fields on the input, and the two halves are half a receptive
    field's sides, all in pixels.
    """

    centres_y: Float[Tensor, " y"]
    centres_x: Float[Tensor, " x"]
    half_height: float
    half_width: float

    def too_close(self, cells: Int[Tensor, " map"], width: int) -> Bool[Tensor, "map cell"]:
        """For each map, which cells are less than half a receptive field away from its given cell, in both directions."""
        y, x = cells // width, cells % width
        close_y = (self.centres_y[y][:, None] - self.centres_y).abs() < self.half_height
        close_x = (self.centres_x[x][:, None] - self.centres_x).abs() < self.half_width
        close = (close_y[:, :, None] & close_x[:, None, :]).flatten(1)
        close[torch.arange(len(cells)), cells] = True
        return close


@dataclass(frozen=True, slots=True)
class PeakPicker:
    """Picks several peaks of one image in one layer.

    It picks at most `max_peaks` in an activation map, as far apart as `spacing` says. It looks for more than one only where the first
    could enter the top k, whose k-th values so far are `kth_values`, since each costs another pass over the map. With `rectified`,
    values at and below zero are no peaks (rule 5 of docs/exactness.md).
    """

    max_peaks: int
    spacing: Spacing
    rectified: bool
    kth_values: Float[Tensor, " unit"]

    def pick(self, maps: Float[Tensor, "image unit y x"], spatial_max: SpatialMax) -> Candidates:
        """The candidates of every activation map, given its spatial maximum."""
        shape = (len(maps), self.max_peaks, maps.shape[1])
        values = torch.full(shape, torch.nan, dtype=torch.float32, device=maps.device)
        cells = torch.zeros(shape, dtype=torch.int64, device=maps.device)
        values[:, 0], cells[:, 0] = self._without_silent(spatial_max.values), spatial_max.cells
        image, unit = may_enter(values[:, 0], self.kth_values).nonzero().unbind(1)
        flat_maps = maps.float().flatten(2)[image, unit]
        for pick in range(1, self.max_peaks):
            close = self.spacing.too_close(cells[image, pick - 1, unit], maps.shape[3])
            flat_maps = flat_maps.masked_fill(close, torch.nan)
            next_max = highest_cell(flat_maps[:, None, :, None])
            values[image, pick, unit] = self._without_silent(next_max.values[:, 0])
            cells[image, pick, unit] = next_max.cells[:, 0]
        return Candidates(values, cells)

    def _without_silent(self, values: Tensor) -> Tensor:
        """NaN for values that a rectifier silences."""
        return values.masked_fill(values <= 0, torch.nan) if self.rectified else values
