"""How a layer's output holds units and places, and how it is turned into maps."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from unitscope.receptive_fields import Array, DependencyBounds, runs_along, unexpand


@dataclass(frozen=True, slots=True)
class Layout:
    """Where units and places are in an output.

    Units are along `unit_axis`; the others but the first, of images, hold places: (y, x), or nothing, or, where there is a `grid`,
    tokens of some shape: (image, token, unit), (image, window, token, unit). `grid` holds for every place, in shape (y, x), the
    number of its token; other tokens have no place.
    """

    unit_axis: int = 1
    grid: Array | None = None

    def maps(self, output: Tensor) -> Tensor:
        """The output as maps of shape (image, unit, y, x), without copying where that can be."""
        if output.dim() == 2:
            return output[..., None, None]
        if self.grid is None and self.unit_axis == 1:
            return output
        by_unit: Tensor = torch.movedim(output, self.unit_axis, 1)
        if self.grid is None:
            return by_unit
        height, width = self.grid.shape
        tokens = by_unit.flatten(2)
        first = int(self.grid[0, 0])
        in_a_row = np.array_equal(self.grid.ravel(), np.arange(first, first + height * width))
        placed = tokens[..., first : first + height * width] if in_a_row else tokens[..., self.grid.ravel().tolist()]
        maps: Tensor = placed.unflatten(2, (height, width))
        return maps


def layout_of(shape: tuple[int, ...], bounds: DependencyBounds) -> Layout | str:
    """The layout of an output, or why it can't be told. Units and places are where the bounds say."""
    if len(shape) not in (2, 3, 4):
        return f"its output has shape {shape}, which is neither one of maps, (image, unit, y, x), nor one of tokens, (image, token, unit)"
    unit_axis = _unit_axis(shape, bounds)
    if isinstance(unit_axis, str) or len(shape) == 2:
        return Layout() if isinstance(unit_axis, int) else unit_axis
    of_cells = [n for d, n in enumerate(shape) if d not in (0, unit_axis)]
    places = [unexpand(axis.position)[0].amax(unit_axis - 1).expand(of_cells) for axis in bounds.axes]
    if len(shape) == 4 and _in_order(places):
        return Layout(unit_axis)
    grid = _grid(*(p.flatten().numpy() for p in places))
    if grid is None:
        tokens = prod(shape[1:]) // shape[unit_axis]
        return f"the {tokens} tokens of its output of shape {shape} don't stand on a grid"
    return Layout(unit_axis, grid)


def _unit_axis(shape: tuple[int, ...], bounds: DependencyBounds) -> int | str:
    """The axis along which units were followed from what made them or, where there is one unit, one of length 1."""
    axes = range(1, len(shape))
    units = [d for d in axes if runs_along(bounds.unit_number, d)]
    if len(units) == 1:
        return units[0]
    placeless = [d for d in axes if not any(runs_along(axis.position, d) for axis in bounds.axes)]
    if units and len(shape) > 2:  # as after pixel shuffle, where units take turns along rows and columns
        candidates = [d for d in units if d in placeless]
        return candidates[0] if len(candidates) == 1 else f"units run along several axes of its output of shape {shape}"
    if placeless and all(shape[d] == 1 for d in placeless):
        return placeless[0]
    return f"which axis of its output of shape {shape} holds units can't be told"


def _in_order(places: list[Tensor]) -> bool:
    """True where rows of the input run along the first dimension alone, and columns along the second."""
    rows, columns = places
    height, width = rows.shape
    crossed = runs_along(rows, 1) or runs_along(columns, 0)
    return not crossed and (height == 1 or runs_along(rows, 0)) and (width == 1 or runs_along(columns, 1))


def _grid(rows: Array, columns: Array) -> Array | None:
    """Which token stands where: every pair of a row and a column once; None where that isn't so."""
    known = [np.isfinite(p) for p in (rows, columns)]
    if len(rows) == 1:
        return np.zeros((1, 1), dtype=int)
    placed = np.flatnonzero(np.logical_and(*(k if k.any() else ~k for k in known)))
    if not any(k.any() for k in known):
        return None
    (ys, y), (xs, x) = (np.unique(places[placed], return_inverse=True) for places in (rows, columns))
    grid = np.full((len(ys), len(xs)), -1)
    grid[y, x] = placed
    return grid if len(placed) == grid.size and (grid >= 0).all() else None
