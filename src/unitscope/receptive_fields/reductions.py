"""Rules for operators that reduce, accumulate or normalise along dimensions. A rule is named for its operators."""

from dataclasses import replace

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    NOTHING,
    DependencyBounds,
    clear,
    constant_elements,
    no_dependencies,
    number_units,
    runs_along,
    unexpand,
    unite,
    unite_along,
)
from unitscope.receptive_fields.operators import NoRule, OperatorCall
from unitscope.receptive_fields.products import unite_prefixes


def reduction(op: OperatorCall) -> list[DependencyBounds]:
    """Some dimensions are gone, or of length 1, or every element along them sees all of them."""
    bounds = op.first_bounds()
    dims = _dims(op, bounds.ndim)
    united = unite_along(bounds, dims)
    middles = (
        _middles_of_blocks(axis.position, common.position, dims) for axis, common in zip(bounds.axes, united.axes, strict=True)
    )
    united = united.with_positions(*middles)
    if any(runs_along(bounds.unit_number, dim) for dim in dims):  # of several units one is made, of each group or of all
        groups = unexpand(bounds.unit_number).amax(dims, keepdim=True)
        if any(runs_along(groups, dim) for dim in range(groups.dim())):
            united = replace(united, unit_number=groups.expand(united.shape))
    return [_fit(united, dims, output.shape) for output in op.outputs]


def _middles_of_blocks(positions: Tensor, common: Tensor, dims: list[int]) -> Tensor:
    """Where something stands that is made of all elements along `dims`: at the position that they have in common or, where they are blocks that
    lie beside each other, as in pooling, in the middle of each. What is made of elements from all over stands nowhere."""
    if not any(runs_along(positions, dim) for dim in dims):
        return common
    numbers = unexpand(positions)
    highest = numbers.amax(dims, keepdim=True)
    lowest = numbers.masked_fill(numbers == NOTHING, torch.inf).amin(dims, keepdim=True)
    has_position = highest != NOTHING
    starts, order = lowest[has_position].sort()
    stops = highest[has_position][order]
    begins_block = starts[1:] > stops[:-1]
    continues_block = (starts[1:] == starts[:-1]) & (stops[1:] == stops[:-1])
    are_blocks = bool((begins_block | continues_block).all() and begins_block.any())
    return torch.where(has_position, (lowest + highest) / 2, NOTHING).expand(common.shape) if are_blocks else common


def _fit(bounds: DependencyBounds, dims: list[int], shape: torch.Size) -> DependencyBounds:
    """The bounds, of length 1 along `dims`, in the shape of an output that has lost those dimensions or not."""
    if bounds.ndim != len(shape):
        bounds = bounds.map(lambda tensor: tensor.squeeze(tuple(dims)))
    return bounds.expand(shape)


def fourier_transform(op: OperatorCall) -> list[DependencyBounds]:
    """Every element along the dimensions sees all of them."""
    bounds = op.first_bounds()
    return [unite_along(bounds, _dims(op, bounds.ndim)).expand(op.shape)]


def accumulation(op: OperatorCall) -> list[DependencyBounds]:
    """`cumsum` and its like: every element sees those before it."""
    bounds = op.first_bounds()
    return [unite_prefixes(bounds, _dims(op, bounds.ndim)[0])] * len(op.outputs)


def softmax(op: OperatorCall) -> list[DependencyBounds]:
    """Every element sees all along the dimension, but what a mask has set to −∞ stays zero and counts for none."""
    if not op.depends_only_on("self"):
        raise NoRule
    bounds = op.first_bounds()
    united = unite([bounds, unite_along(bounds, _dims(op, bounds.ndim)).expand(op.shape)])
    constant = constant_elements(bounds)
    if constant is not None and op.name != "_log_softmax":
        united = clear(united, constant & op.value("self").isneginf().cpu())
    return [united]


def _dims(op: OperatorCall, ndim: int) -> list[int]:
    """The dimensions that the operator works along, from 0; all where none is given."""
    dims = op.get("dim", list(range(ndim)))
    return [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)] or list(range(ndim))


def layer_norm(op: OperatorCall) -> list[DependencyBounds]:
    """All that is normalised together depends on all of it."""
    if not op.depends_only_on("input"):
        raise NoRule
    bounds, count = op.first_bounds(), len(op.get("normalized_shape"))
    normalised_dims = range(bounds.ndim - count, bounds.ndim)
    united = unite([bounds, unite_along(bounds, normalised_dims).expand(op.shape)])
    return [number_units(united, -1) if count == 1 else united]


def group_norm(op: OperatorCall) -> list[DependencyBounds]:
    """Each group of units depends on all of it."""
    if not op.depends_only_on("input"):
        raise NoRule
    bounds, group_count = op.first_bounds(), op.get("group")
    grouped = bounds.map(lambda tensor: tensor.unflatten(1, (group_count, -1)))
    united = unite_along(grouped, range(2, grouped.ndim)).expand(grouped.shape)
    return [number_units(unite([bounds, united.map(lambda tensor: tensor.flatten(1, 2))]), 1)]


def batch_norm(op: OperatorCall) -> list[DependencyBounds]:
    """An element depends on itself alone, unless the statistics are those of the image."""
    if not op.depends_only_on("input"):
        raise NoRule
    bounds = op.first_bounds()
    if not (op.get("training") or op.get("train") or op.name.endswith("no_stats")):
        return [number_units(bounds, 1), *(no_dependencies(output.shape) for output in op.outputs[1:])]
    dims = [dim for dim in range(bounds.ndim) if dim != 1]
    return [number_units(unite([bounds, unite_along(bounds, dims).expand(op.shape)]), 1)]


def complex_of_pairs(op: OperatorCall) -> list[DependencyBounds]:
    """`view_as_complex`: two numbers become one."""
    bounds = op.first_bounds()
    last = bounds.ndim - 1
    return [unite_along(bounds, [last]).map(lambda tensor: tensor.squeeze(last))]


def pairs_of_complex(op: OperatorCall) -> list[DependencyBounds]:
    """`view_as_real`: a number becomes two."""
    return [op.first_bounds().map(lambda tensor: tensor[..., None].expand(op.shape))]
