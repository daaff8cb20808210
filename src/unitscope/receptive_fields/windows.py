"""Rules for operators that slide over maps: convolution, pooling, padding, interpolation and their like."""

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    MISSING,
    OUTER_PLANES,
    PLACE_PLANES,
    UNIT,
    Array,
    Planes,
    expanded,
    global_along,
    masked,
    mixed_channels,
    no_planes,
    nothing,
    placed_at,
    transposed_taps,
    union,
    window_taps,
    windowed,
    with_map_places,
    with_units_along,
)
from unitscope.receptive_fields.operations import NoRule, Operation, movement


def convolution(op: Operation) -> list[Planes]:
    """What lies in the window of a cell; where weights are made from the images, what those depend on too."""
    weight, transposed = op.get("weight"), bool(op.get("transposed"))
    sources = [_weight_planes(op, name, weight, transposed) for name in ("weight", "bias") if op.planes_of(name)]
    given = op.planes_of("input") or op.planes_of("self")
    if given:
        sources.append(_through_windows(op, given, weight, transposed))
    units_dim = 1 if len(op.shape) == weight.dim() else 0
    result = with_units_along(union([expanded(s, op.shape) for s in sources]), units_dim)
    return [with_map_places(result) if weight.dim() == 4 else result]


def _through_windows(op: Operation, planes: Planes, weight: Tensor, transposed: bool) -> Planes:
    spatial = weight.dim() - 2
    stride, padding, dilation = (_each(op.get(n, d), spatial) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    planes = [mixed_channels(p, op.get("groups", 1), op.shape[1]) for p in planes[:UNIT]]
    for axis in range(spatial):
        dim = op.outputs[0].dim() - spatial + axis
        geometry = (weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
        taps = (transposed_taps if transposed else window_taps)(op.shape[dim], *geometry)
        if transposed:
            taps = [np.where((t >= 0) & (t < planes[0].shape[dim]), t, MISSING) for t in taps]
        before = planes
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
        if transposed:
            kernel, step, pad, spread = geometry
            middle = (np.arange(op.shape[dim]) + pad - (kernel - 1) * spread / 2) / step
            for number in PLACE_PLANES:
                planes[number] = placed_at(before[number], dim, middle)
    return [*planes, nothing(planes[0].shape)]


def _weight_planes(op: Operation, name: str, weight: Tensor, transposed: bool) -> Planes:
    """What the weights (the bias) of each unit depend on, in a shape that fits the output."""
    planes = op.planes_or_nothing(name)
    if name == "weight":
        planes = global_along(planes, [d for d in range(weight.dim()) if d != int(transposed)])
        if transposed:  # of shape (unit before, unit of a group, …): those of all groups, which is more than need be
            if op.get("groups", 1) > 1:
                raise NoRule
            planes = [p.transpose(0, 1) for p in planes]
    return [p.reshape(1, -1, *[1] * (weight.dim() - 2)) for p in planes]


def pooling(op: Operation) -> list[Planes]:
    spatial = _spatial(op)
    kernel = _each(op.get("kernel_size"), spatial)
    stride = _each(op.get("stride") or kernel, spatial)
    padding, dilation = _each(op.get("padding", 0), spatial), _each(op.get("dilation", 1), spatial)
    planes = op.input()
    for axis in range(spatial):
        dim = len(op.shape) - spatial + axis
        if op.shape[dim] == 1 and kernel[axis] - 2 * padding[axis] >= planes[0].shape[dim]:
            planes = global_along(planes, [dim])
            continue
        taps = window_taps(op.shape[dim], kernel[axis], stride[axis], padding[axis], dilation[axis])
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)] * len(op.outputs)


def adaptive_pooling(op: Operation) -> list[Planes]:
    planes, spatial = op.input(), _spatial(op)
    for dim in range(len(op.shape) - spatial, len(op.shape)):
        cells, before = op.shape[dim], planes[0].shape[dim]
        if cells == 1:
            planes = global_along(planes, [dim])
            continue
        starts = np.arange(cells) * before // cells
        stops = -((np.arange(cells) + 1) * before // -cells)
        taps = [np.where(starts + t < stops, starts + t, MISSING) for t in range((stops - starts).max())]
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)] * len(op.outputs)


def padding(op: Operation) -> list[Planes]:
    """Constant padding: real pixels end at the border, outer bounds go on beyond it."""
    return [expanded(_padded(op.input(), op.shape, op.get("pad")), op.shape)]


def _padded(planes: Planes, shape: torch.Size, pads: list[int]) -> Planes:
    for pair in range(len(pads) // 2):
        dim = len(shape) - 1 - pair
        taps = [np.arange(shape[dim]) - pads[2 * pair]]
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return planes


def mirroring(op: Operation) -> list[Planes]:
    """Reflection and replication padding: inside real pixels come again; the outer bounds go on beyond the border."""
    moved = movement(op)[0]
    outer = expanded(_padded(op.input(), op.shape, op.get("padding")), op.shape)
    return [[o if n in OUTER_PLANES | PLACE_PLANES else m for n, (o, m) in enumerate(zip(outer, moved, strict=True))]]


def interpolation(op: Operation) -> list[Planes]:
    """Which cells an output cell is mixed from, found by giving the operator itself one lit cell at a time."""
    planes, spatial = op.input(), _spatial(op)
    names = ("scales",) if spatial == 1 else ("scales_d", "scales_h", "scales_w")[-spatial:]
    for axis in range(spatial):
        dim = len(op.shape) - spatial + axis
        before, after = planes[0].shape[dim], op.shape[dim]
        # One axis at a time stands first, in the plane of the others; antialiasing goes wrong on one column.
        sizes = [2] * (spatial - 1)
        lit = torch.eye(before, dtype=op.get("self").dtype)[None].reshape(1, before, before, *[1] * (spatial - 1))
        scales = dict.fromkeys(names) | {names[0]: op.get(names[axis])}
        arguments = dict(op.arguments, self=lit.expand(1, before, before, *sizes), output_size=[after, *sizes]) | scales
        mixed = op.applied_to(arguments).reshape(before, after, -1)[..., 0].T != 0  # (after, before)
        middle = (np.arange(after) + 0.5) * before / after - 0.5
        planes = [placed_at(p, dim, middle) if n in PLACE_PLANES else masked(p, dim, mixed) for n, p in enumerate(planes)]
    planes = expanded(planes, op.shape)
    return [with_map_places(planes) if spatial == 2 else planes]


def unfolding(op: Operation) -> list[Planes]:
    """`im2col`: every window's elements in a column, padding among them."""
    pads = _each(op.get("padding"), 2)
    height, width = op.planes[id(op.get("self"))][0].shape[-2:]
    shape = torch.Size([*op.get("self").shape[:-2], height + 2 * pads[0], width + 2 * pads[1]])
    padded = expanded(_padded(op.input(), shape, [pads[1], pads[1], pads[0], pads[0]]), shape)
    return [[op.applied_to(dict(op.arguments, self=p, padding=[0, 0])) for p in padded]]


def folding(op: Operation) -> list[Planes]:
    """`col2im`: windows are added up where they overlap."""
    geometry = [_each(op.get(n), 2) for n in ("kernel_size", "dilation", "padding", "stride")]
    (kernel, dilation, pads, stride), size = geometry, op.get("output_size")
    cells = [(size[a] + 2 * pads[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    taps = [[np.arange(cells[a]) * stride[a] - pads[a] + t * dilation[a] for t in range(kernel[a])] for a in (0, 1)]
    result = []
    for plane in op.input():
        columns = plane.unflatten(-1, cells).unflatten(-3, (-1, *kernel))
        maps = nothing(op.shape).clone()
        for y, x in product(range(kernel[0]), range(kernel[1])):
            _raise_to(maps, columns[..., y, x, :, :], taps[0][y], taps[1][x])
        result.append(maps)
    return [result]


def _raise_to(maps: Tensor, values: Tensor, rows: Array, columns: Array) -> None:
    """Raise the cells in those rows and columns to values where they are lower; rows and columns beyond the border are left out."""
    height, width = maps.shape[-2:]
    row_inside, column_inside = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    if row_inside.any() and column_inside.any():
        at = (..., torch.from_numpy(rows[row_inside])[:, None], torch.from_numpy(columns[column_inside]))
        values = values[..., torch.from_numpy(row_inside), :][..., torch.from_numpy(column_inside)]
        maps[at] = maps[at].maximum(values)


def sampling(op: Operation) -> list[Planes]:
    """`grid_sample`: the cells around a point that is known; anything where points are made from the images."""
    given, grid = op.planes_of("input"), op.planes_of("grid")
    if grid is None:
        return [_at_points(op, given or no_planes(op.get("input").shape))]
    points = global_along(grid, [grid[0].dim() - 1])
    sources = [[p.movedim(-1, 1) for p in points]]
    if given:
        sources.append(global_along(given, range(2, given[0].dim())))
    return [union([expanded(s, op.shape) for s in sources])]


def _at_points(op: Operation, planes: Planes) -> Planes:
    """Which cells are mixed at each point: one cell or four, and none of what lies beyond the border."""
    mode = op.get("interpolation_mode", 0)
    if len(op.shape) != 4 or mode not in (0, 1) or op.get("padding_mode", 0) not in (0, 1):
        raise NoRule
    height, width = planes[0].shape[-2:]
    grid = op.get("grid").cpu()
    x, y = (_unnormalised(grid[..., i], n, bool(op.get("align_corners"))) for i, n in ((0, width), (1, height)))
    if op.get("padding_mode", 0) == 1:
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    corners = [(y.round(), x.round())] if mode == 1 else _corners(y, x)
    result = []
    for plane in planes:
        shape = [*plane.shape[:2], *y.shape[1:]]
        found = nothing(shape)
        for row, column in corners:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            index = cell.flatten(1)[:, None].expand(-1, plane.shape[1], -1)
            taken = plane.flatten(2).gather(2, index).reshape(shape)
            found = torch.where(inside[:, None], found.maximum(taken), found)
        result.append(found)
    return result


def _unnormalised(points: Tensor, cells: int, align_corners: bool) -> Tensor:
    """From −1 to 1 to numbers of cells."""
    return (points + 1) / 2 * (cells - 1) if align_corners else ((points + 1) * cells - 1) / 2


def _corners(y: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The cells beside each point; a cell of weight zero is given as its neighbour."""
    return list(product((y.floor(), y.ceil()), (x.floor(), x.ceil())))


def deformable(op: Operation) -> list[Planes]:
    """`deform_conv2d`: windows whose cells are anywhere, by offsets that are made from the images."""
    if op.planes_of("weight") or op.planes_of("bias") or not op.planes_of("offset"):
        raise NoRule
    sources = [global_along(planes, [1]) for name in ("offset", "mask") if (planes := op.planes_of(name))]
    if given := op.planes_of("input"):
        sources.append(global_along(given, [1, 2, 3]))
    return [with_units_along(union([expanded(s, op.shape) for s in sources]), 1)]


def _spatial(op: Operation) -> int:
    """Over how many dimensions an operator slides, by its name."""
    return next(n for n in (1, 2, 3) if f"{n}d" in op.name)


def _each(value: Any, count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
