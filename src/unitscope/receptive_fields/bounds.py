"""Planes: for every element of a tensor the first and last input row and column that it depends on, and how they unite."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

# The planes of one axis: the interval of real pixels, the one that counts padding, whether a global operation came before (then
# padding no longer counts), and where an element itself stands, as far as that can be told. Starts are kept negated, so that every
# union is a maximum. One more plane is no bound: the number of the unit that an element belongs to.
INNER_START, INNER_STOP, OUTER_START, OUTER_STOP, WHOLE, PLACE = range(6)
ROWS, COLUMNS, UNIT = 0, 6, 12
NOTHING = -torch.inf
OUTER_PLANES = {ROWS + OUTER_START, ROWS + OUTER_STOP, COLUMNS + OUTER_START, COLUMNS + OUTER_STOP}
PLACE_PLANES = {ROWS + PLACE, COLUMNS + PLACE}

Planes = list[Tensor]
"""Thirteen tensors of the watched tensor's shape: six for rows, six for columns, one for units."""

MISSING = -(1 << 40)
"""A tap that reads nothing at all, neither a pixel nor padding."""


def window_taps(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Array]:
    """For every place in a window, the input cell that each output cell reads there; outside the map it is padding."""
    return [np.arange(cells) * stride - padding + tap * dilation for tap in range(kernel)]


def transposed_taps(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Array]:
    spread = [np.arange(cells) + padding - tap * dilation for tap in range(kernel)]
    return [np.where(s % stride == 0, s // stride, MISSING) for s in spread]


def windowed(plane: Tensor, number: int, dim: int, taps: list[Array]) -> Tensor:
    """The union along `dim` over the cells that each output cell reads; of places, their middle."""
    if number in PLACE_PLANES:
        return placed_at(plane, dim, middle_of(taps))
    shape, cells = _resized(plane, dim, len(taps[0])), plane.shape[dim]
    plane = varying(plane)
    length = plane.shape[dim]
    if length == 1:
        return _blinded(plane, dim, _reaches(taps, cells if number not in OUTER_PLANES else None)).expand(shape)
    before = max(0, -min(int(t[t != MISSING].min(initial=0)) for t in taps))
    after = max(0, max(int(t.max(initial=0)) for t in taps) - length + 1)
    padded = _continued(plane, number, dim, before, after)
    nowhere = padded.shape[dim] - 1
    index = [torch.from_numpy(np.where(t == MISSING, nowhere, t + before)) for t in taps]
    return reduce(torch.maximum, (padded.index_select(dim, i) for i in index)).expand(shape)


def middle_of(taps: list[Array]) -> Array:
    """The middle of the cells that each output cell reads, padding included; cells that read nothing stand between their neighbours."""
    read = np.stack(taps)
    count = (read != MISSING).sum(0)
    middle: Array = np.where(read == MISSING, 0, read).sum(0) / np.maximum(count, 1)
    known = np.flatnonzero(count)
    if 0 < len(known) < len(count):
        middle = np.interp(np.arange(len(count)), known, middle[known])
    return middle


def placed_at(plane: Tensor, dim: int, numbers: Array) -> Tensor:
    """The places along `dim` at those numbers of cells, between two cells or beyond the border too."""
    shape, plane = _resized(plane, dim, len(numbers)), varying(plane)
    if plane.shape[dim] == 1:
        return plane.expand(shape)
    below = np.clip(np.floor(numbers), 0, plane.shape[dim] - 2).astype(np.int64)
    share = torch.from_numpy((numbers - below).astype(np.float32)).reshape([-1 if d == dim else 1 for d in range(plane.dim())])
    low, high = (plane.index_select(dim, torch.from_numpy(cells)) for cells in (below, below + 1))
    between = low + (high - low) * share
    return torch.where(low == NOTHING, high, torch.where(high == NOTHING, low, between)).expand(shape)


def _reaches(taps: list[Array], cells: int | None) -> Array:
    """Which output cells read any of the input's `cells` or, where that is None, of a map without end."""
    reached: Array = np.any([(t != MISSING) if cells is None else (t >= 0) & (t < cells) for t in taps], axis=0)
    return reached


def _blinded(plane: Tensor, dim: int, reaching: Array) -> Tensor:
    """A plane of length 1 along `dim`, spread over cells; those that reach nothing see nothing."""
    if reaching.all():
        return plane
    shape = [-1 if d == dim else 1 for d in range(plane.dim())]
    return torch.where(torch.from_numpy(reaching).reshape(shape), plane, NOTHING)


def _continued(plane: Tensor, number: int, dim: int, before: int, after: int) -> Tensor:
    """The plane with `before` and `after` more cells, and one cell that sees nothing at the very end.

    Inner bounds see nothing beyond the border; outer ones go on with the step of the cells at the border.
    """
    low, high = plane.narrow(dim, 0, 1), plane.narrow(dim, plane.shape[dim] - 1, 1)
    nowhere = torch.full_like(low, NOTHING)
    if number not in OUTER_PLANES:
        return torch.cat([nowhere] * before + [plane] + [nowhere] * (after + 1), dim)
    first_step = _step(low, plane.narrow(dim, 1, 1))
    last_step = _step(plane.narrow(dim, plane.shape[dim] - 2, 1), high)
    head = [low - first_step * i for i in range(before, 0, -1)]
    tail = [high + last_step * i for i in range(1, after + 1)]
    return torch.cat([*head, plane, *tail, nowhere], dim)


def _step(before: Tensor, after: Tensor) -> Tensor:
    """The difference of neighbouring cells; none where one of them sees nothing, as between strides of a transposed convolution."""
    return (after - before).nan_to_num(0, 0, 0)


def masked(plane: Tensor, dim: int, mixed: Tensor) -> Tensor:
    """The union along `dim` over the cells that are True in `mixed`, of shape (after, before)."""
    shape = _resized(plane, dim, len(mixed))
    plane = varying(plane)
    if plane.shape[dim] == 1:
        return plane.expand(shape)
    last = plane.movedim(dim, -1)
    rows = [torch.where(row, last, NOTHING).amax(-1) for row in mixed]
    return torch.stack(rows, -1).movedim(-1, dim).expand(shape)


def mixed_channels(plane: Tensor, groups: int, units: int) -> Tensor:
    """What a convolution's outputs see at one place: the union over the channels of their group."""
    shape = _resized(plane, 1, units)
    plane = varying(plane)
    if plane.shape[1] == 1 or groups == 1:
        return plane.amax(1, keepdim=True).expand(shape)
    grouped = plane.reshape(plane.shape[0], groups, -1, *plane.shape[2:]).amax(2)
    return grouped.repeat_interleave(units // groups, 1).expand(shape)


def global_along(planes: Planes, dims: Sequence[int]) -> Planes:
    """The union along `dims`, kept with length 1. Where it leaves an axis with nothing that varies, that axis is whole."""
    result = []
    for before in (planes[ROWS:COLUMNS], planes[COLUMNS:UNIT]):
        after = [varying(p).amax(list(dims), keepdim=True) for p in before[:PLACE]]
        after.append(shared(before[PLACE], dims))
        starts = before[OUTER_START]
        joined = any(differs(starts, d) for d in dims)
        left = any(differs(after[OUTER_START], d) for d in range(starts.dim()))
        result += [*_axis_as_global(after)[:PLACE], after[PLACE]] if joined and not left else after
    result.append(shared(planes[UNIT], dims))
    return [p.expand([1 if d in dims else n for d, n in enumerate(planes[0].shape)]) for p in result]


def shared(plane: Tensor, dims: Sequence[int]) -> Tensor:
    """The place (or unit) that all elements along `dims` have in common, kept with length 1: a mixture of places stands at none."""
    plane = varying(plane)
    highest = plane.amax(list(dims), keepdim=True)
    if highest.shape == plane.shape:
        return highest
    lowest = plane.masked_fill(plane == NOTHING, torch.inf).amin(list(dims), keepdim=True)
    return torch.where(lowest == highest, highest, NOTHING)


def as_global(planes: Planes) -> Planes:
    """Planes of something that depends on everything that these depend on."""
    return [*_axis_as_global(planes[ROWS:COLUMNS]), *_axis_as_global(planes[COLUMNS:UNIT]), nothing(planes[UNIT].shape)]


def _axis_as_global(axis: Planes) -> Planes:
    nowhere = nothing(axis[PLACE].shape)
    return [axis[INNER_START], axis[INNER_STOP], axis[INNER_START], axis[INNER_STOP], torch.ones_like(axis[WHOLE]), nowhere]


def no_planes(shape: torch.Size) -> Planes:
    """The planes of a tensor that holds nothing of the images."""
    return [nothing(shape)] * (UNIT + 1)


def nothing(shape: Sequence[int]) -> Tensor:
    """A plane of elements that see nothing. Planes are in float32, whatever the caller's default type is."""
    return torch.full((), NOTHING, dtype=torch.float32).expand(shape)


def whole(planes: Planes) -> Planes:
    """The union over all elements, as scalars."""
    return [varying(p).amax() if p.numel() else nothing(()) for p in planes]


def union(several: Sequence[Planes]) -> Planes:
    """The union of planes of one shape."""
    if len(several) == 1:
        return several[0]
    shape = several[0][0].shape
    return [reduce(torch.maximum, map(varying, same)).expand(shape) for same in zip(*several, strict=True)]


def expanded(planes: Planes, shape: torch.Size) -> Planes:
    return [p.expand(shape) for p in planes]


def dropped_to(planes: Planes, dims: Sequence[int], shape: torch.Size) -> Planes:
    if planes[0].dim() != len(shape):
        planes = [p.squeeze(tuple(dims)) for p in planes]
    return expanded(planes, shape)


def cat_varying(planes: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` that leaves dimensions alone along which none of the planes varies."""
    constant = [d for d in range(planes[0].dim()) if d != dim and all(p.shape[d] == 1 or p.stride(d) == 0 for p in planes)]
    for d in constant:
        planes = [p.narrow(d, 0, 1) for p in planes]
    return torch.cat(list(planes), dim)


def _resized(plane: Tensor, dim: int, length: int) -> list[int]:
    return [length if d == dim else n for d, n in enumerate(plane.shape)]


def varying(plane: Tensor) -> Tensor:
    """The plane without its copies: dimensions of stride 0 get length 1."""
    for dim in range(plane.dim()):
        if plane.stride(dim) == 0 and plane.shape[dim] > 1:
            plane = plane.narrow(dim, 0, 1)
    return plane


def differs(plane: Tensor, dim: int) -> bool:
    """True where the plane really varies along the dimension."""
    plane = varying(plane)
    return plane.shape[dim] > 1 and bool((plane.amax(dim) != plane.amin(dim)).any())


def runs_along(plane: Tensor, dim: int) -> bool:
    """True where places (or units) differ along the dimension; elements that have none don't count."""
    if plane.stride(dim) == 0 or plane.shape[dim] == 1:
        return False
    plane = varying(plane)
    lowest = plane.masked_fill(plane == NOTHING, torch.inf).amin(dim)
    return bool(((lowest < plane.amax(dim)) & (lowest != torch.inf)).any())


def sees_nothing(planes: Planes) -> bool:
    """True where no element depends on the images."""
    return all(bool((varying(planes[axis + INNER_STOP]) == NOTHING).all()) for axis in (ROWS, COLUMNS))


def constant_elements(planes: Planes) -> Tensor | None:
    """Which elements of a tensor depend on nothing of the images, where others do; None where there are none."""
    constant = reduce(torch.logical_and, (varying(planes[axis + INNER_STOP]) == NOTHING for axis in (ROWS, COLUMNS)))
    return constant if bool(constant.any()) else None


def cleared(planes: Planes, where: Tensor) -> Planes:
    """The planes with nothing seen where `where` is True."""
    shape = torch.broadcast_shapes(planes[0].shape, where.shape)
    return [torch.where(where, NOTHING, varying(p)).expand(shape) for p in planes]


def with_units_along(planes: Planes, dim: int) -> Planes:
    """The planes of a tensor whose units are numbered along `dim`."""
    shape = planes[UNIT].shape
    numbers = torch.arange(shape[dim], dtype=torch.float32)
    return [*planes[:UNIT], numbers.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)]


def with_map_places(planes: Planes) -> Planes:
    """The planes of maps, of shape (image, unit, y, x), that an operator of two dimensions made: where nothing tells any more which
    rows or columns cells stand at, as after attention, they are numbered as the operator takes them."""
    planes, shape = list(planes), planes[0].shape
    for number, other, dim in ((ROWS + PLACE, COLUMNS + PLACE, len(shape) - 2), (COLUMNS + PLACE, ROWS + PLACE, len(shape) - 1)):
        if shape[dim] > 1 and _placeless(planes[number]) and not runs_along(planes[other], dim):
            numbers = torch.arange(shape[dim], dtype=torch.float32)
            planes[number] = numbers.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    return planes


def _placeless(plane: Tensor) -> bool:
    values = varying(plane)
    if values.numel() == 1:
        return True
    lowest, highest = values.masked_fill(values == NOTHING, torch.inf).amin(), values.amax()
    return not bool(lowest < highest)
