"""Rules for operators that slide over maps: convolution, pooling, padding, interpolation and their like. A rule is named for its
operators."""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    Array,
    AxisBounds,
    DependencyBounds,
    filled_with_nothing,
    number_map_positions,
    number_units,
    unite,
    unite_along,
)
from unitscope.receptive_fields.elementwise import movement
from unitscope.receptive_fields.operators import NoRule, OperatorCall
from unitscope.receptive_fields.sliding import (
    NO_CELL,
    SlidingWindow,
    positions_at,
    slide,
    slide_axis,
    unite_channels,
    unite_selected,
)


def convolution(op: OperatorCall) -> list[DependencyBounds]:
    """What lies in the window of a cell; where weights are made from the images, what those depend on too."""
    weight, transposed = op.get("weight"), bool(op.get("transposed"))
    sources = [_weight_bounds(op, name, weight, transposed) for name in ("weight", "bias") if op.bounds_of(name)]
    maps = op.bounds_of("input") or op.bounds_of("self")
    if maps:
        sources.append(_convolve(op, maps, weight, transposed))
    unit_dim = 1 if len(op.shape) == weight.dim() else 0
    bounds = number_units(unite([source.expand(op.shape) for source in sources]), unit_dim)
    return [number_map_positions(bounds) if weight.dim() == 4 else bounds]


def _convolve(op: OperatorCall, maps: DependencyBounds, weight: Tensor, transposed: bool) -> DependencyBounds:
    """What lies in the windows, of no unit yet."""
    united = partial(unite_channels, group_count=op.get("groups", 1), unit_count=op.shape[1])
    axes = [axis.map(united) for axis in maps.axes]
    slide_window = _slide_transposed if transposed else _slide_window
    kernels = list(weight.shape[2:])
    for dim, window in enumerate(_windows(op, kernels, 1), len(op.shape) - len(kernels)):
        axes = [slide_window(axis, dim, window, op.shape[dim]) for axis in axes]
    rows, columns = axes
    return DependencyBounds(rows, columns, filled_with_nothing(rows.position.shape))


def _windows(op: OperatorCall, kernels: list[int], default_strides: int | list[int]) -> list[SlidingWindow]:
    """The window along each dimension that the operator slides over."""
    strides = _for_each_dim(op.get("stride") or default_strides, len(kernels))
    paddings, dilations = (_for_each_dim(op.get(name, n), len(kernels)) for name, n in (("padding", 0), ("dilation", 1)))
    return [SlidingWindow(*numbers) for numbers in zip(kernels, strides, paddings, dilations, strict=True)]


def _slide_window(axis: AxisBounds, dim: int, window: SlidingWindow, cells: int) -> AxisBounds:
    return slide_axis(axis, dim, window.cells_read(cells))


def _slide_transposed(axis: AxisBounds, dim: int, window: SlidingWindow, cells: int) -> AxisBounds:
    """The same for a transposed convolution; a cell stands where the middle of its window does."""
    slid = slide_axis(axis, dim, window.transposed_cells_read(cells, axis.position.shape[dim]))
    return replace(slid, position=positions_at(axis.position, dim, window.transposed_middles(cells)))


def _weight_bounds(op: OperatorCall, name: str, weight: Tensor, transposed: bool) -> DependencyBounds:
    """What the weights (the bias) of each unit depend on, in a shape that fits the output."""
    bounds = op.bounds_or_nothing(name)
    if name == "weight":
        bounds = unite_along(bounds, [dim for dim in range(weight.dim()) if dim != int(transposed)])
        if transposed:  # of shape (input channel, unit of a group, …): of all groups together, which is more than need be
            if op.get("groups", 1) > 1:
                raise NoRule
            bounds = bounds.map(lambda tensor: tensor.transpose(0, 1))
    return bounds.map(lambda tensor: tensor.reshape(1, -1, *[1] * (weight.dim() - 2)))


def pooling(op: OperatorCall) -> list[DependencyBounds]:
    """What lies in the window of a cell; all of a dimension that one window covers."""
    kernels = _for_each_dim(op.get("kernel_size"), _spatial_dims(op))
    bounds = op.first_bounds()
    for dim, window in enumerate(_windows(op, kernels, kernels), len(op.shape) - len(kernels)):
        if op.shape[dim] == 1 and window.kernel - 2 * window.padding >= bounds.shape[dim]:
            bounds = unite_along(bounds, [dim])
        else:
            bounds = slide(bounds, dim, window.cells_read(op.shape[dim]))
    return [bounds.expand(op.shape)] * len(op.outputs)


def adaptive_pooling(op: OperatorCall) -> list[DependencyBounds]:
    """What lies in the windows that divide a dimension into as many cells as are asked for."""
    bounds, spatial = op.first_bounds(), _spatial_dims(op)
    for dim in range(len(op.shape) - spatial, len(op.shape)):
        cells, input_cells = op.shape[dim], bounds.shape[dim]
        if cells == 1:
            bounds = unite_along(bounds, [dim])
            continue
        starts = np.arange(cells) * input_cells // cells
        stops = -((np.arange(cells) + 1) * input_cells // -cells)
        offsets = np.arange((stops - starts).max())[:, None]
        bounds = slide(bounds, dim, np.where(starts + offsets < stops, starts + offsets, NO_CELL))
    return [bounds.expand(op.shape)] * len(op.outputs)


def constant_padding(op: OperatorCall) -> list[DependencyBounds]:
    """Real pixels end at the border, outer bounds go on beyond it."""
    return [_pad(op.first_bounds(), op.shape, op.get("pad"))]


def _pad(bounds: DependencyBounds, shape: torch.Size, pads: list[int]) -> DependencyBounds:
    """The bounds of a padded tensor; `pads` are those of the last dimension, before and behind, then of the last but one …"""
    for pair in range(len(pads) // 2):
        dim = len(shape) - 1 - pair
        bounds = slide(bounds, dim, np.arange(shape[dim])[None] - pads[2 * pair])
    return bounds.expand(shape)


def mirrored_padding(op: OperatorCall) -> list[DependencyBounds]:
    """Reflection and replication padding: inside, real pixels come again; the outer bounds go on beyond the border."""
    (moved,) = movement(op)
    padded = _pad(op.first_bounds(), op.shape, op.get("padding"))
    rows, columns = (
        replace(inner, negated_outer_start=outer.negated_outer_start, outer_stop=outer.outer_stop, position=outer.position)
        for inner, outer in zip(moved.axes, padded.axes, strict=True)
    )
    return [DependencyBounds(rows, columns, moved.unit_number)]


def interpolation(op: OperatorCall) -> list[DependencyBounds]:
    """Which cells an output cell is mixed from, found by giving the operator itself one lit cell at a time."""
    bounds, spatial = op.first_bounds(), _spatial_dims(op)
    for i in range(spatial):
        dim = len(op.shape) - spatial + i
        input_cells, cells = bounds.shape[dim], op.shape[dim]
        selected = _interpolated_cells(op, i, spatial, input_cells)
        middles = (np.arange(cells) + 0.5) * input_cells / cells - 0.5
        united = bounds.map(partial(unite_selected, dim=dim, selected=selected))
        positions = (positions_at(axis.position, dim, middles) for axis in bounds.axes)
        bounds = united.with_positions(*positions)
    bounds = bounds.expand(op.shape)
    return [number_map_positions(bounds) if spatial == 2 else bounds]


def _interpolated_cells(op: OperatorCall, axis: int, spatial: int, input_cells: int) -> Tensor:
    """Which input cells each output cell is mixed from along one axis, of shape (output cell, input cell)."""
    names = ("scales",) if spatial == 1 else ("scales_d", "scales_h", "scales_w")[-spatial:]
    cells = op.shape[len(op.shape) - spatial + axis]
    # The axis comes first. The others get two cells each, since antialiasing goes wrong on a single column.
    other_sizes = [2] * (spatial - 1)
    lit = torch.eye(input_cells, dtype=op.get("self").dtype)[None].reshape(1, input_cells, input_cells, *[1] * (spatial - 1))
    scales = dict.fromkeys(names) | {names[0]: op.get(names[axis])}
    maps = lit.expand(1, input_cells, input_cells, *other_sizes)
    arguments = dict(op.arguments, self=maps, output_size=[cells, *other_sizes]) | scales
    mixed: Tensor = op.apply(arguments).reshape(input_cells, cells, -1)[..., 0].T != 0
    return mixed


def unfolding(op: OperatorCall) -> list[DependencyBounds]:
    """`im2col`: the elements of every window in a column, padding among them."""
    pad_y, pad_x = _for_each_dim(op.get("padding"), 2)
    bounds = op.first_bounds()
    height, width = bounds.shape[-2:]
    shape = torch.Size([*op.get("self").shape[:-2], height + 2 * pad_y, width + 2 * pad_x])
    padded = _pad(bounds, shape, [pad_x, pad_x, pad_y, pad_y])
    return [padded.map(lambda tensor: op.apply(dict(op.arguments, self=tensor, padding=[0, 0])))]


def folding(op: OperatorCall) -> list[DependencyBounds]:
    """`col2im`: windows are added up where they overlap."""
    kernels, size = _for_each_dim(op.get("kernel_size"), 2), op.get("output_size")
    windows = _windows(op, kernels, 1)
    cells = [window.output_cells(length) for window, length in zip(windows, size, strict=True)]
    rows, columns = (window.cells_read(count) for window, count in zip(windows, cells, strict=True))

    def fold(tensor: Tensor) -> Tensor:
        contents = tensor.unflatten(-1, cells).unflatten(-3, (-1, *kernels))
        maps = filled_with_nothing(op.shape).clone()
        for y, x in product(range(kernels[0]), range(kernels[1])):
            _raise_to(maps, contents[..., y, x, :, :], rows[y], columns[x])
        return maps

    return [op.first_bounds().map(fold)]


def _raise_to(maps: Tensor, values: Tensor, rows: Array, columns: Array) -> None:
    """Raise the cells in those rows and columns to values where they are lower; rows and columns beyond the border are left out."""
    height, width = maps.shape[-2:]
    row_inside, column_inside = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    if row_inside.any() and column_inside.any():
        cells = (..., torch.from_numpy(rows[row_inside])[:, None], torch.from_numpy(columns[column_inside]))
        values = values[..., torch.from_numpy(row_inside), :][..., torch.from_numpy(column_inside)]
        maps[cells] = maps[cells].maximum(values)


def grid_sampling(op: OperatorCall) -> list[DependencyBounds]:
    """`grid_sample`: the cells around a constant point; any cell where points are made from the images."""
    maps, grid = op.bounds_of("input"), op.bounds_of("grid")
    if grid is None:
        return [_at_points(op, op.bounds_or_nothing("input"))]
    points = unite_along(grid, [grid.ndim - 1])
    sources = [points.map(lambda tensor: tensor.movedim(-1, 1))]
    if maps:
        sources.append(unite_along(maps, range(2, maps.ndim)))
    return [unite([source.expand(op.shape) for source in sources])]


def _at_points(op: OperatorCall, maps: DependencyBounds) -> DependencyBounds:
    """Which cells are mixed at each point: one cell or four, and none of what lies beyond the border."""
    mode = op.get("interpolation_mode", 0)
    if len(op.shape) != 4 or mode not in (0, 1) or op.get("padding_mode", 0) not in (0, 1):
        raise NoRule
    height, width = maps.shape[-2:]
    grid = op.get("grid").cpu()
    x, y = (_to_cells(grid[..., i], cells, bool(op.get("align_corners"))) for i, cells in ((0, width), (1, height)))
    if op.get("padding_mode", 0) == 1:
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    corners = [(y.round(), x.round())] if mode == 1 else _corners(y, x)
    return maps.map(lambda tensor: _highest_at(tensor, corners))


def _highest_at(tensor: Tensor, corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The highest of the cells that lie at any of the corners of each point; corners hold a row and a column for every point."""
    height, width = tensor.shape[-2:]
    shape = [*tensor.shape[:2], *corners[0][0].shape[1:]]
    highest = filled_with_nothing(shape)
    for row, column in corners:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
        index = cell.flatten(1)[:, None].expand(-1, tensor.shape[1], -1)
        values = tensor.flatten(2).gather(2, index).reshape(shape)
        highest = torch.where(inside[:, None], highest.maximum(values), highest)
    return highest


def _to_cells(coordinates: Tensor, cells: int, align_corners: bool) -> Tensor:
    """From −1 to 1 to numbers of cells."""
    return (coordinates + 1) / 2 * (cells - 1) if align_corners else ((coordinates + 1) * cells - 1) / 2


def _corners(y: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The cells beside each point; a cell of weight zero is given as its neighbour."""
    return list(product((y.floor(), y.ceil()), (x.floor(), x.ceil())))


def deformable_convolution(op: OperatorCall) -> list[DependencyBounds]:
    """`deform_conv2d`: windows whose cells are anywhere, by offsets that are made from the images."""
    if op.bounds_of("weight") or op.bounds_of("bias") or not op.bounds_of("offset"):
        raise NoRule
    sources = [unite_along(bounds, [1]) for name in ("offset", "mask") if (bounds := op.bounds_of(name))]
    if maps := op.bounds_of("input"):
        sources.append(unite_along(maps, [1, 2, 3]))
    return [number_units(unite([source.expand(op.shape) for source in sources]), 1)]


def _spatial_dims(op: OperatorCall) -> int:
    """Over how many dimensions an operator slides, by its name."""
    return next(count for count in (1, 2, 3) if f"{count}d" in op.name)


def _for_each_dim(value: Any, dims: int) -> list[int]:
    """One number for each dimension, where an operator may be given a single one for all."""
    values = [value] * dims if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
