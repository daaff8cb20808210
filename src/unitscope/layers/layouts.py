"""How a layer's output holds units and cells, and how it is turned into activation maps."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from unitscope.receptive_fields import Array, DependencyBounds, runs_along, unexpand


@dataclass(frozen=True, slots=True)
class Layout:
    """Where units and cells are in an output.

    Units are along `unit_axis`; the others but the first, of images, hold cells: (y, x), or nothing, or, where there is a `grid`,
    tokens of some shape: (image, token, unit), (image, window, token, unit). `grid` holds for every cell, in shape (y, x), the
    number of its token; other tokens belong to no cell.
    """

    unit_axis: int = 1
    grid: Array | None = None

    def maps(self, output: Tensor) -> Tensor:
        """The output as activation maps of shape (image, unit, y, x), without copying where that can be."""
        if output.dim() == 2:
            return output[..., None, None]
        if self.grid is None and self.unit_axis == 1:
            return output
        units_first: Tensor = torch.movedim(output, self.unit_axis, 1)
        if self.grid is None:
            return units_first
        height, width = self.grid.shape
        tokens = units_first.flatten(2)
        first, count = int(self.grid[0, 0]), height * width
        is_one_run = np.array_equal(self.grid.ravel(), np.arange(first, first + count))
        cells = tokens[..., first : first + count] if is_one_run else tokens[..., self.grid.ravel().tolist()]
        maps: Tensor = cells.unflatten(2, (height, width))
        return maps


def layout_of(shape: tuple[int, ...], bounds: DependencyBounds) -> Layout | str:
    """The layout of an output, or why it can't be told. Units and cells are where the unit numbers and positions of the bounds say."""
    if len(shape) not in (2, 3, 4):
        return f"its output has shape {shape}, which is neither one of maps, (image, unit, y, x), nor one of tokens, (image, token, unit)"
    unit_axis = _unit_axis(shape, bounds)
    if isinstance(unit_axis, str) or len(shape) == 2:
        return Layout() if isinstance(unit_axis, int) else unit_axis
    cell_lengths = [length for dim, length in enumerate(shape) if dim not in (0, unit_axis)]
    rows, columns = (unexpand(axis.position)[0].amax(unit_axis - 1).expand(cell_lengths) for axis in bounds.axes)
    if len(shape) == 4 and _are_in_order(rows, columns):
        return Layout(unit_axis)
    grid = _grid(rows.flatten().numpy(), columns.flatten().numpy())
    if grid is None:
        tokens = prod(shape[1:]) // shape[unit_axis]
        return f"the {tokens} tokens of its output of shape {shape} don't stand on a grid"
    return Layout(unit_axis, grid)


def _unit_axis(shape: tuple[int, ...], bounds: DependencyBounds) -> int | str:
    """The axis along which units were followed from what made them or, where there is one unit, one of length 1."""
    axes = range(1, len(shape))
    unit_axes = [dim for dim in axes if runs_along(bounds.unit_number, dim)]
    if len(unit_axes) == 1:
        return unit_axes[0]
    without_positions = [dim for dim in axes if not any(runs_along(axis.position, dim) for axis in bounds.axes)]
    if unit_axes and len(shape) > 2:  # as after pixel shuffle, where units take turns along rows and columns
        candidates = [dim for dim in unit_axes if dim in without_positions]
        return candidates[0] if len(candidates) == 1 else f"units run along several axes of its output of shape {shape}"
    if without_positions and all(shape[dim] == 1 for dim in without_positions):
        return without_positions[0]
    return f"which axis of its output of shape {shape} holds units can't be told"


def _are_in_order(rows: Tensor, columns: Tensor) -> bool:
    """True where rows of the input run along the first dimension alone, and columns along the second."""
    height, width = rows.shape
    crossed = runs_along(rows, 1) or runs_along(columns, 0)
    return not crossed and (height == 1 or runs_along(rows, 0)) and (width == 1 or runs_along(columns, 1))


def _grid(rows: Array, columns: Array) -> Array | None:
    """Which token stands at which cell, given the row and the column of every token: each pair must come once; None where that isn't so.

    Where no token has a row (or a column), as behind a mean over columns, all count as standing in one.
    """
    if len(rows) == 1:
        return np.zeros((1, 1), dtype=int)
    has_row, has_column = np.isfinite(rows), np.isfinite(columns)
    if not has_row.any() and not has_column.any():
        return None
    tokens = np.flatnonzero((has_row if has_row.any() else ~has_row) & (has_column if has_column.any() else ~has_column))
    (row_values, y), (column_values, x) = (np.unique(numbers[tokens], return_inverse=True) for numbers in (rows, columns))
    grid = np.full((len(row_values), len(column_values)), -1)
    grid[y, x] = tokens
    return grid if len(tokens) == grid.size and (grid >= 0).all() else None
