"""Dependency bounds: the first and last input row and column that every element of a tensor depends on, and how bounds unite."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

NOTHING = -torch.inf
"""The bound of an element that depends on no pixel, the position of one that stands nowhere, the unit number of one that belongs to
no unit. It is the lowest number, so a union (a maximum) ignores it."""

LARGE = 1 << 12
"""Tensors of bounds with as many numbers are made compact."""


@dataclass(frozen=True, slots=True)
class AxisBounds:
    """What every element of a tensor depends on along one axis of the images: their rows, or their columns.

    Each field is a float32 tensor of the tensor's shape; a dimension along which it doesn't vary has stride 0. Stops are
    exclusive. Starts are kept negated, so that every union is a maximum.

    The *inner* bounds count real pixels alone and are the smallest possible. The *outer* ones count padding too, as if the map went on
    beyond its border. `is_global` is 1 where an operation over the whole axis came before: then padding no longer counts. `position`
    is the row or column of the images where the element itself stands, as far as that can be told.
    """

    negated_inner_start: Tensor
    inner_stop: Tensor
    negated_outer_start: Tensor
    outer_stop: Tensor
    is_global: Tensor
    position: Tensor

    def bound_tensors(self) -> tuple[Tensor, ...]:
        """All tensors but the position, in the order of the fields."""
        return self.negated_inner_start, self.inner_stop, self.negated_outer_start, self.outer_stop, self.is_global

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return *self.bound_tensors(), self.position

    def map(self, function: Callable[..., Tensor], *others: "AxisBounds") -> "AxisBounds":
        """Apply the function to each tensor, together with the same tensors of `others`."""
        return AxisBounds(*map(function, self.tensors(), *(other.tensors() for other in others)))

    def map_bounds(self, function: Callable[[Tensor], Tensor], position: Tensor) -> "AxisBounds":
        """Apply the function to each tensor but the position, which is given."""
        return AxisBounds(*[*map(function, self.bound_tensors()), position])


@dataclass(frozen=True, slots=True)
class DependencyBounds:
    """What every element of a tensor depends on, and the number of the unit that it belongs to, so that the axis of units can be told
    wherever it is moved."""

    rows: AxisBounds
    columns: AxisBounds
    unit_number: Tensor

    @property
    def axes(self) -> tuple[AxisBounds, AxisBounds]:
        return self.rows, self.columns

    @property
    def shape(self) -> torch.Size:
        return self.rows.inner_stop.shape

    @property
    def ndim(self) -> int:
        return self.rows.inner_stop.dim()

    def tensors(self) -> Iterator[Tensor]:
        """All tensors: those of the rows, those of the columns, the unit numbers."""
        yield from self.rows.tensors()
        yield from self.columns.tensors()
        yield self.unit_number

    def map(self, function: Callable[..., Tensor], *others: "DependencyBounds") -> "DependencyBounds":
        """Apply the function to each tensor, together with the same tensors of `others`."""
        return DependencyBounds(
            self.rows.map(function, *(other.rows for other in others)),
            self.columns.map(function, *(other.columns for other in others)),
            function(self.unit_number, *(other.unit_number for other in others)),
        )

    def map_to_several(self, function: Callable[[Tensor], Sequence[Tensor]]) -> "list[DependencyBounds]":
        """Apply a function that gives several tensors, as `split` does: bounds for each of them."""
        rows, columns = (zip(*map(function, axis.tensors()), strict=True) for axis in self.axes)
        parts = zip(rows, columns, function(self.unit_number), strict=True)
        return [DependencyBounds(AxisBounds(*row_part), AxisBounds(*column_part), unit) for row_part, column_part, unit in parts]

    def expand(self, shape: Sequence[int]) -> "DependencyBounds":
        return self.map(lambda tensor: tensor.expand(shape))

    def with_positions(self, rows: Tensor, columns: Tensor) -> "DependencyBounds":
        """The same bounds, of elements that stand elsewhere."""
        return replace(self, rows=replace(self.rows, position=rows), columns=replace(self.columns, position=columns))


def no_dependencies(shape: Sequence[int]) -> DependencyBounds:
    """The bounds of a tensor that depends on no pixel."""
    nothing = filled_with_nothing(shape)
    axis = AxisBounds(nothing, nothing, nothing, nothing, nothing, nothing)
    return DependencyBounds(axis, axis, nothing)


def filled_with_nothing(shape: Sequence[int]) -> Tensor:
    """A tensor of a bound, in float32 whatever the caller's default type is."""
    return torch.full((), NOTHING, dtype=torch.float32).expand(shape)


def image_bounds(shape: torch.Size) -> DependencyBounds:
    """The bounds of the images themselves, of shape (image, channel, y, x): each pixel depends on itself alone."""
    channels, height, width = shape[1:]
    row_numbers = torch.arange(height, dtype=torch.float32)[:, None]
    column_numbers = torch.arange(width, dtype=torch.float32)
    unit_numbers = torch.arange(channels, dtype=torch.float32)[:, None, None]
    not_global = torch.zeros(1, dtype=torch.float32)
    rows, columns = (AxisBounds(-n, n + 1, -n, n + 1, not_global, n) for n in (row_numbers, column_numbers))
    return DependencyBounds(rows, columns, unit_numbers).expand(shape)


# ── what bounds say ─────────────────────────────────────────────────────────────────────────────────────────────────


def depends_on_images(bounds: DependencyBounds) -> bool:
    """True where any element depends on the images."""
    return any(bool((unexpand(axis.inner_stop) != NOTHING).any()) for axis in bounds.axes)


def constant_elements(bounds: DependencyBounds) -> Tensor | None:
    """Which elements of a tensor depend on no pixel, where others do; None where there are none."""
    constant = reduce(torch.logical_and, (unexpand(axis.inner_stop) == NOTHING for axis in bounds.axes))
    return constant if bool(constant.any()) else None


def unexpand(tensor: Tensor) -> Tensor:
    """The tensor without its copies: dimensions of stride 0 get length 1."""
    for dim in range(tensor.dim()):
        if tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def without_copies(tensor: Tensor) -> Tensor:
    """The tensor with length 1 in the dimensions along which it doesn't vary, in memory of its own where that makes it smaller."""
    whole = tensor = unexpand(tensor)
    for dim in range(tensor.dim()):
        first = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
        if tensor.shape[dim] > 1 and torch.equal(first.expand(tensor.shape), tensor):
            tensor = first
    return tensor if tensor.shape == whole.shape else tensor.clone()


def compact(bounds: DependencyBounds) -> DependencyBounds:
    """The same bounds in as little memory as they need: reshaping may have copied what doesn't vary, and bounds of a whole pass are kept."""
    return bounds.map(lambda tensor: tensor if unexpand(tensor).numel() < LARGE else without_copies(tensor).expand(tensor.shape))


def runs_along(numbers: Tensor, dim: int) -> bool:
    """True where positions (or unit numbers) differ along the dimension; elements that have none don't count."""
    if numbers.stride(dim) == 0 or numbers.shape[dim] == 1:
        return False
    numbers = unexpand(numbers)
    lowest = numbers.masked_fill(numbers == NOTHING, torch.inf).amin(dim)
    return bool(((lowest < numbers.amax(dim)) & (lowest != torch.inf)).any())


def _varies(tensor: Tensor) -> bool:
    """True where the tensor really varies along any dimension."""
    return any(_varies_along(tensor, dim) for dim in range(tensor.dim()))


def _varies_along(tensor: Tensor, dim: int) -> bool:
    tensor = unexpand(tensor)
    return tensor.shape[dim] > 1 and bool((tensor.amax(dim) != tensor.amin(dim)).any())


# ── how bounds unite ────────────────────────────────────────────────────────────────────────────────────────────────


def unite(parts: Sequence[DependencyBounds]) -> DependencyBounds:
    """The union of bounds of one shape, element by element."""
    first, *rest = parts
    return first.map(maximum, *rest) if rest else first


def maximum(*tensors: Tensor) -> Tensor:
    """The highest of several tensors of one shape, element by element."""
    return reduce(torch.maximum, map(unexpand, tensors)).expand(tensors[0].shape)


def unite_all(bounds: DependencyBounds) -> DependencyBounds:
    """The union over all elements, as scalars."""
    return bounds.map(lambda tensor: unexpand(tensor).amax() if tensor.numel() else filled_with_nothing(()))


def unite_along(bounds: DependencyBounds, dims: Sequence[int]) -> DependencyBounds:
    """The union along `dims`, kept with length 1. Where it leaves an axis with nothing that varies, that axis is global."""
    rows, columns = (_unite_axis_along(axis, list(dims)) for axis in bounds.axes)
    united = DependencyBounds(rows, columns, common_number(bounds.unit_number, dims))
    return united.expand([1 if dim in dims else length for dim, length in enumerate(bounds.shape)])


def _unite_axis_along(axis: AxisBounds, dims: list[int]) -> AxisBounds:
    position = common_number(axis.position, dims)
    united = axis.map_bounds(lambda tensor: unexpand(tensor).amax(dims, keepdim=True), position)
    differed = any(_varies_along(axis.negated_outer_start, dim) for dim in dims)
    return _axis_as_global(united) if differed and not _varies(united.negated_outer_start) else united


def common_number(numbers: Tensor, dims: Sequence[int]) -> Tensor:
    """The position (or unit number) that all elements along `dims` have in common, kept with length 1; `NOTHING` for a mixture."""
    numbers = unexpand(numbers)
    highest = numbers.amax(list(dims), keepdim=True)
    if highest.shape == numbers.shape:
        return highest
    lowest = numbers.masked_fill(numbers == NOTHING, torch.inf).amin(list(dims), keepdim=True)
    return torch.where(lowest == highest, highest, NOTHING)


def as_global(bounds: DependencyBounds) -> DependencyBounds:
    """The bounds of something that depends on everything that these depend on."""
    nowhere = filled_with_nothing(bounds.shape)
    united = DependencyBounds(_axis_as_global(bounds.rows), _axis_as_global(bounds.columns), nowhere)
    return united.with_positions(nowhere, nowhere)


def _axis_as_global(axis: AxisBounds) -> AxisBounds:
    return replace(
        axis,
        negated_outer_start=axis.negated_inner_start,
        outer_stop=axis.inner_stop,
        is_global=torch.ones_like(axis.is_global),
    )


# ── how bounds change otherwise ─────────────────────────────────────────────────────────────────────────────────────


def clear(bounds: DependencyBounds, mask: Tensor) -> DependencyBounds:
    """The bounds where elements depend on nothing any more for which `mask` is True."""
    shape = torch.broadcast_shapes(bounds.shape, mask.shape)
    return bounds.map(lambda tensor: torch.where(mask, NOTHING, unexpand(tensor)).expand(shape))


def number_units(bounds: DependencyBounds, dim: int) -> DependencyBounds:
    """The bounds of a tensor whose units are numbered along `dim`."""
    return replace(bounds, unit_number=_numbers_along(dim % bounds.ndim, bounds.shape))


def number_map_positions(bounds: DependencyBounds) -> DependencyBounds:
    """The bounds of maps, of shape (image, unit, y, x), that a two-dimensional operator made. Where nothing tells any more which rows or
    columns cells stand at, as after attention, they are numbered as the operator takes them."""
    rows = _number_positions(bounds.rows, bounds.columns, bounds.ndim - 2)
    return replace(bounds, rows=rows, columns=_number_positions(bounds.columns, rows, bounds.ndim - 1))


def _number_positions(axis: AxisBounds, other_axis: AxisBounds, dim: int) -> AxisBounds:
    shape = axis.position.shape
    if shape[dim] > 1 and _has_no_positions(axis.position) and not runs_along(other_axis.position, dim):
        return replace(axis, position=_numbers_along(dim, shape))
    return axis


def _has_no_positions(position: Tensor) -> bool:
    position = unexpand(position)
    if position.numel() == 1:
        return True
    lowest, highest = position.masked_fill(position == NOTHING, torch.inf).amin(), position.amax()
    return not bool(lowest < highest)


def _numbers_along(dim: int, shape: torch.Size) -> Tensor:
    """0, 1, 2, … along the dimension."""
    numbers = torch.arange(shape[dim], dtype=torch.float32)
    return numbers.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
