"""What one batch of maps says: each unit's peak per image, reduced while the network runs.

Axes: `image unit y x`. Cells count row by row, `y * width + x`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unitscope.topk import enters


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
class Reading:
    """The peaks of one layer in one batch.

    `highest` is each unit's highest value in each image, NaN where its whole map is NaN; `spoilt` says that the map held a NaN.
    `values` and `cells`, of shape (image, pick, unit), are the candidates: the highest value first, then those far enough away;
    NaN and 0 where there is none or it wasn't wanted.
    """

    highest: Float[Tensor, "image unit"]
    spoilt: Bool[Tensor, "image unit"]
    values: Float[Tensor, "image pick unit"]
    cells: Int[Tensor, "image pick unit"]

    @property
    def first_cells(self) -> Int[Tensor, "image unit"]:
        """Where the highest values stand, in images where that was looked for."""
        return self.cells[:, 0]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where `read` must look for cells: where a value reaches the unit's `floor`, and in all `sampled` images.

    With `rectified`, values at and below zero are no candidates (rule 5).
    """

    floor: Float[Tensor, " unit"]
    sampled: Bool[Tensor, " image"]
    rectified: bool


def read(maps: Float[Tensor, "image unit y x"], wanted: Wanted, picks: int = 1, spacing: Spacing | None = None) -> Reading:
    """Each unit's peaks in each image: the highest, and up to `picks - 1` more as far apart as `spacing` says.

    Among equal values the lowest cell wins; NaN never wins. Finding a cell costs a second look at a map, so cells are found
    only where they are wanted.
    """
    maps = maps.float()
    highest = maps.amax((2, 3))
    spoilt = highest.isnan()
    if spoilt.any():
        valid = ~maps.isnan()
        highest = torch.where(valid, maps, -torch.inf).amax((2, 3)).masked_fill(~valid.any(3).any(2), torch.nan)
    values = highest.masked_fill(highest <= 0, torch.nan) if wanted.rectified else highest
    pairs = ((enters(values, wanted.floor) | wanted.sampled[:, None]) & ~highest.isnan()).nonzero()
    at = pairs[:, 0], pairs[:, 1]
    looked_at = maps.flatten(2)[at]
    all_values = torch.full((len(maps), picks, maps.shape[1]), torch.nan, device=maps.device)
    all_cells = torch.zeros(all_values.shape, dtype=torch.int64, device=maps.device)
    all_values[at[0], 0, at[1]] = values[at]  # NaN where nothing fires, in sampled images
    all_cells[at[0], 0, at[1]] = first_equal(looked_at, highest[at])
    if spacing is not None:
        for pick in range(1, picks):
            looked_at = looked_at.masked_fill(spacing.near(all_cells[at[0], pick - 1, at[1]], maps.shape[3]), torch.nan)
            all_values[at[0], pick, at[1]], all_cells[at[0], pick, at[1]] = _next_highest(looked_at, wanted.rectified)
    return Reading(highest, spoilt, all_values, all_cells)


def first_equal(maps: Float[Tensor, "map cell"], values: Float[Tensor, " map"]) -> Int[Tensor, " map"]:
    """The first cell of each map that holds the value given for it."""
    return (maps == values[:, None]).byte().argmax(1)


def _next_highest(maps: Float[Tensor, "map cell"], rectified: bool) -> tuple[Tensor, Tensor]:
    """The highest value of each map that isn't NaN, and its first cell; NaN and 0 where none is left."""
    valid = ~maps.isnan()
    values = torch.where(valid, maps, -torch.inf).amax(1)
    cells = first_equal(maps, values)
    absent = ~valid.any(1) | ((values <= 0) if rectified else torch.zeros_like(values, dtype=torch.bool))
    return values.masked_fill(absent, torch.nan), cells.masked_fill(absent, 0)
