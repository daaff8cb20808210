"""Rules for operators that work element by element, or move elements and mix none of them. A rule is named for its operators."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    NOTHING,
    DependencyBounds,
    as_global,
    clear,
    maximum,
    no_dependencies,
    unexpand,
    unite,
    unite_all,
    unite_along,
)
from unitscope.receptive_fields.operators import NoRule, OperatorCall, tensors_in


def everything(op: OperatorCall) -> list[DependencyBounds]:
    """Every output element depends on every input element."""
    united = unite([unite_all(bounds) for bounds in op.all_bounds()])
    return [as_global(united.expand(output.shape)) for output in op.outputs]


def pointwise(op: OperatorCall) -> list[DependencyBounds]:
    """An output element depends on the input elements of the same index, after broadcasting. It belongs to the same unit as in those
    inputs that aren't broadcast: a gate may be made of other units. It stands where the first input stands that has a position."""
    return [_united_pointwise(op.all_bounds(), output.shape) for output in op.outputs]


def _united_pointwise(inputs: list[DependencyBounds], shape: torch.Size) -> DependencyBounds:
    expanded = [bounds.expand(shape) for bounds in inputs]
    united = unite(expanded)
    if len(inputs) > 1:
        row_axes, column_axes = zip(*(bounds.axes for bounds in expanded), strict=True)
        rows, columns = (_first_position([axis.position for axis in axes]) for axes in (row_axes, column_axes))
        united = united.with_positions(rows, columns)
    unit_numbers = [bounds.unit_number for bounds in inputs if bounds.unit_number.shape == shape]
    if 0 < len(unit_numbers) < len(inputs):
        united = replace(united, unit_number=maximum(*unit_numbers))
    return united


def _first_position(positions: list[Tensor]) -> Tensor:
    first, *rest = map(unexpand, positions)
    for position in rest:
        if bool((first == NOTHING).any()):
            first = torch.where(first == NOTHING, position, first)
    return first.expand(positions[0].shape)


def per_channel(op: OperatorCall) -> list[DependencyBounds]:
    """Rounding by a constant scale that each channel has."""
    if not op.depends_only_on("self"):
        raise NoRule
    return pointwise(op)


def gated_linear_unit(op: OperatorCall) -> list[DependencyBounds]:
    """One half of the input times a gate made of the other."""
    values, gates = op.first_bounds().map_to_several(lambda tensor: tensor.chunk(2, op.get("dim", -1)))
    return [replace(unite([values, gates]), unit_number=values.unit_number)]


def movement(op: OperatorCall) -> list[DependencyBounds]:
    """Elements are moved: do the same to the bounds."""
    (source,) = op.bounds_by_id
    if any(op.overwrote(tensor) for tensor in tensors_in(op.arguments.values()) if id(tensor) != source):
        raise NoRule

    def move(tensor: Tensor) -> list[Tensor]:
        return list(tensors_in([op.apply({name: _with_source(v, source, tensor) for name, v in op.arguments.items()})]))

    return op.first_bounds().map_to_several(move)


def _with_source(argument: Any, source: int, tensor: Tensor) -> Any:
    """The argument, on the processor, with a tensor in place of the one whose `id` is `source`."""
    if isinstance(argument, Tensor):
        return tensor if id(argument) == source else argument.cpu()
    if isinstance(argument, (list, tuple)) and any(isinstance(value, Tensor) for value in argument):
        return [value if value is None else _with_source(value, source, tensor) for value in argument]
    return argument


def movement_into_zeros(op: OperatorCall) -> list[DependencyBounds]:
    """The same where elements that nothing is moved to become zero."""
    (moved,) = movement(op)
    arguments = {name: torch.ones(v.shape, dtype=torch.bool) if isinstance(v, Tensor) else v for name, v in op.arguments.items()}
    return [clear(moved, ~op.apply(arguments))]


def reshape(op: OperatorCall) -> list[DependencyBounds]:
    """The same elements in another shape, or the same bytes as another type."""
    if op.func is torch.ops.aten.view.dtype:
        return [_as_another_type(op.first_bounds(), op.shape)]
    return [op.first_bounds().map(lambda tensor: tensor.reshape(op.shape))]


def _as_another_type(bounds: DependencyBounds, shape: torch.Size) -> DependencyBounds:
    """Bytes taken for numbers of another type: several of a smaller one in each number, or a larger one for several numbers."""
    last = len(shape) - 1
    if bounds.shape == shape:
        return bounds
    if bounds.shape[last] < shape[last]:
        parts = shape[last] // bounds.shape[last]
        return bounds.map(lambda tensor: tensor[..., None].expand(*tensor.shape, parts).flatten(last))
    united = unite_along(bounds.map(lambda tensor: tensor.unflatten(last, (shape[last], -1))), [last + 1])
    return united.map(lambda tensor: tensor.squeeze(last + 1))


def as_strided(op: OperatorCall) -> list[DependencyBounds]:
    """Nothing moves where strides change only for dimensions of length 1, as convolutions ask for."""
    bounds = op.first_bounds()
    strides = zip(op.shape, op.get("strides_before"), op.get("stride"), strict=False)
    changed = [length for length, old, new in strides if old != new]
    if bounds.shape != op.shape or any(length > 1 for length in changed) or op.get("storage_offset", 0):
        raise NoRule
    return [bounds]


def overwrite(op: OperatorCall) -> list[DependencyBounds]:
    """`copy_` and `fill_`: what the source depends on."""
    source = op.bounds_of("src") or op.bounds_of("value")
    return [source.expand(op.shape) if source else no_dependencies(op.shape)]


def constant(op: OperatorCall) -> list[DependencyBounds]:
    """New or overwritten memory that holds nothing of the images."""
    if not op.depends_only_on("self"):  # such as the mean of random numbers
        raise NoRule
    return [no_dependencies(op.shape)]
