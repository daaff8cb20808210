"""How a layer's output holds images, units and cells, and how it is turned into activation maps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from torch import Tensor

from unitscope.layers.image_axis import ImageAxis
from unitscope.receptive_fields import Array, DependencyBounds, runs_along, unexpand


@dataclass(frozen=True, slots=True)
class CellWindow:
    """A rectangle of cells: rows `top` to `bottom - 1`, columns `left` to `right - 1`."""

    top: int
    left: int
    bottom: int
    right: int

    def of_maps(self, maps: Tensor) -> Tensor:
        return maps[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where images, units and cells are in an output.

    The dimensions of `unit_dims` hold units, the other ones cells, all counted once `image_axis` has put images first. Heads and the
    units of a head are two dimensions of units; windows and the tokens of a window are two of cells. Without a `grid` there are two
    dimensions of cells, (y, x), or none; a `grid` holds for every cell, in shape (y, x), its number among all cells. Those that aren't in
    it, such as a class token, are not read. `is_spatial` is False where cells don't stand in rows and columns of the image and are numbered as they come.
    Of all cells only those of the window `inner` are read, where there is one.
    """

    image_axis: ImageAxis = field(default_factory=ImageAxis)
    unit_dims: tuple[int, ...] = (1,)
    grid: Array | None = None
    is_spatial: bool = True
    inner: CellWindow | None = None

    def maps(self, output: Tensor) -> Tensor:
        """The output as activation maps of shape (image, unit, y, x), without copying where that can be."""
        maps = self._all_maps(output)
        return maps if self.inner is None else self.inner.of_maps(maps)

    def cells(self, output: Tensor) -> Tensor:
        """The whole output as (image, unit, cell): tokens outside the grid and cells outside the window, too, in the output's order."""
        units_first = _with_units_first(self.image_axis.with_images_first(output), self.unit_dims)
        return units_first.flatten(2) if units_first.dim() > 2 else units_first[..., None]

    def with_units(self, output: Tensor, image: Tensor, unit: Tensor, values: Tensor) -> Tensor:
        """A copy of the output in which these units of these images, two arrays of one length, have other values, of shape (pair, cell)."""
        if self.image_axis == ImageAxis():  # then images lie one behind the other, and one says where the others have their cells
            of_one = torch.arange(output[0].numel(), device=output.device).reshape(1, *output.shape[1:])
            numbers = self.cells(of_one)[0, unit] + of_one.numel() * image[:, None]
        else:
            numbers = self.cells(torch.arange(output.numel(), device=output.device).reshape(output.shape))[image, unit]
        return output.clone().put_(numbers, values.to(output))

    def _all_maps(self, output: Tensor) -> Tensor:
        output = self.image_axis.with_images_first(output)
        units_first = _with_units_first(output, self.unit_dims)
        if units_first.dim() == 2:
            return units_first[..., None, None]
        if self.grid is None:
            return units_first
        height, width = self.grid.shape
        tokens = units_first.flatten(2)
        first, count = int(self.grid[0, 0]), height * width
        is_one_run = np.array_equal(self.grid.ravel(), np.arange(first, first + count))
        cells = tokens[..., first : first + count] if is_one_run else tokens[..., self.grid.ravel().tolist()]
        maps: Tensor = cells.unflatten(2, (height, width))
        return maps


def _with_units_first(output: Tensor, unit_dims: Sequence[int]) -> Tensor:
    """The output, (image, …), as (image, unit, …): all dimensions of units as one, the first in the order of `unit_dims`."""
    if tuple(unit_dims) == (1,):
        return output
    if not unit_dims:
        return output[:, None]
    others = [dim for dim in range(1, output.dim()) if dim not in unit_dims]
    return output.permute(0, *unit_dims, *others).flatten(1, len(unit_dims))


def layout_of(bounds: DependencyBounds, image_axis: ImageAxis) -> Layout:
    """The layout of an output, given the bounds of that of one image: units and cells are where its unit numbers and positions say."""
    bounds = bounds.map(image_axis.with_images_first)
    unit_dims = _unit_dims(bounds)
    cell_lengths = [length for dim, length in enumerate(bounds.shape) if dim > 0 and dim not in unit_dims]
    if not cell_lengths:
        return Layout(image_axis, unit_dims)
    rows, columns = (_positions_of_cells(axis.position, unit_dims).expand(cell_lengths) for axis in bounds.axes)
    if len(cell_lengths) == 2 and _are_in_order(rows, columns):
        return Layout(image_axis, unit_dims)
    grid = _grid(rows.flatten().numpy(), columns.flatten().numpy())
    if grid is not None:
        return Layout(image_axis, unit_dims, grid)
    return Layout(image_axis, unit_dims, np.arange(rows.numel()).reshape(1, -1), is_spatial=False)


def _unit_dims(bounds: DependencyBounds) -> tuple[int, ...]:
    """The dimensions along which units were followed from what made them.

    Where units take turns along dimensions of positions, as after a pixel shuffle, those hold cells. A dimension that has neither units
    nor positions holds units where others have positions (such as heads, whose maps are different ones), or where no other has units;
    else it holds cells that stand nowhere. Where there is one unit, it is along a dimension of length 1, or along none.

    The first dimension is that whose units are furthest apart, as heads are; before it come those whose units have no numbers.
    """
    dims = [dim for dim in range(1, bounds.ndim) if bounds.shape[dim] > 1]
    with_positions = [dim for dim in dims if any(runs_along(axis.position, dim) for axis in bounds.axes)]
    with_units = [dim for dim in dims if runs_along(bounds.unit_number, dim)]
    unit_dims = [dim for dim in with_units if dim not in with_positions]
    if len(with_units) == 1:
        unit_dims = with_units
    with_neither = [dim for dim in dims if dim not in with_units and dim not in with_positions]
    if not unit_dims or any(dim not in unit_dims for dim in with_positions):
        unit_dims += with_neither
    if unit_dims:
        return tuple(sorted(unit_dims, key=lambda dim: (-_step(bounds.unit_number, dim), dim)))
    single = [dim for dim in range(1, bounds.ndim) if bounds.shape[dim] == 1]
    return tuple(single[:1])


def _step(unit_number: Tensor, dim: int) -> float:
    """How far apart the numbers of neighbouring units are along the dimension; infinite where they don't differ."""
    numbers = unexpand(unit_number)
    if numbers.shape[dim] == 1:
        return inf
    steps = (numbers.narrow(dim, 1, 1) - numbers.narrow(dim, 0, 1)).abs()
    return float(steps.nan_to_num(0, 0, 0).amax()) or inf


def _positions_of_cells(position: Tensor, unit_dims: Sequence[int]) -> Tensor:
    """The positions along one axis of the image, of the dimensions of cells alone; those along which nothing varies have length 1."""
    position = unexpand(position)
    if unit_dims:
        position = position.amax(list(unit_dims), keepdim=True)
    return position.reshape([length for dim, length in enumerate(position.shape) if dim > 0 and dim not in unit_dims])


def _are_in_order(rows: Tensor, columns: Tensor) -> bool:
    """True where rows of the input run along the first dimension alone, and columns along the second."""
    height, width = rows.shape
    crossed = runs_along(rows, 1) or runs_along(columns, 0)
    return not crossed and (height == 1 or runs_along(rows, 0)) and (width == 1 or runs_along(columns, 1))


def _grid(rows: Array, columns: Array) -> Array | None:
    """Which cell stands where, given the row and the column of every cell: each pair must come once; None where that isn't so.

    Where no cell has a row (or a column), as behind a mean over columns, all count as standing in one.
    """
    if len(rows) == 1:
        return np.zeros((1, 1), dtype=int)
    has_row, has_column = np.isfinite(rows), np.isfinite(columns)
    if not has_row.any() and not has_column.any():
        return None
    cells = np.flatnonzero((has_row if has_row.any() else ~has_row) & (has_column if has_column.any() else ~has_column))
    (row_values, y), (column_values, x) = (np.unique(numbers[cells], return_inverse=True) for numbers in (rows, columns))
    grid = np.full((len(row_values), len(column_values)), -1)
    grid[y, x] = cells
    return grid if len(cells) == grid.size and (grid >= 0).all() else None
