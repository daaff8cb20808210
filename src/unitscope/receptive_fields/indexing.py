"""Rules for operators that choose elements, or write some into others, by index or mask. A rule is named for its operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    NOTHING,
    DependencyBounds,
    clear,
    no_dependencies,
    number_units,
    runs_along,
    unexpand,
    unite,
    unite_along,
)
from unitscope.receptive_fields.elementwise import movement, pointwise
from unitscope.receptive_fields.operators import NoRule, OperatorCall, tensors_in


def concatenation(op: OperatorCall) -> list[DependencyBounds]:
    """`cat` and `stack`: tensors that don't depend on the images see nothing."""
    tensors = op.get("tensors")
    first, *rest = (op.bounds_by_id.get(id(tensor)) or no_dependencies(tensor.shape) for tensor in tensors)
    dim = op.get("dim", 0) % len(op.shape)

    def join(*parts: Tensor) -> Tensor:
        if op.name == "stack":
            return torch.stack(parts, dim)
        parts = tuple(part for part in parts if part.dim() == len(op.shape))  # cat drops empty one-dimensional tensors
        return _cat_unexpanded(parts, dim).expand(op.shape)

    return [_number_single_units(first.map(join, *rest), dim)]


def _cat_unexpanded(tensors: tuple[Tensor, ...], dim: int) -> Tensor:
    """`torch.cat` that gives length 1 to other dimensions along which none of the tensors varies."""
    constant = [d for d in range(tensors[0].dim()) if d != dim and all(t.shape[d] == 1 or t.stride(d) == 0 for t in tensors)]
    for d in constant:
        tensors = tuple(tensor.narrow(d, 0, 1) for tensor in tensors)
    return torch.cat(tensors, dim)


def _number_single_units(bounds: DependencyBounds, dim: int) -> DependencyBounds:
    """Where each part holds a single unit, and no row or column of its own, each part is a unit now."""
    units = unexpand(bounds.unit_number)
    single = not any(runs_along(units, d) for d in range(units.dim()))
    return number_units(bounds, dim) if single and not _positions_run_along(bounds, dim) else bounds


def _positions_run_along(bounds: DependencyBounds, dim: int) -> bool:
    return any(runs_along(axis.position, dim) for axis in bounds.axes)


def selection(op: OperatorCall) -> list[DependencyBounds]:
    """`where`: one of two by a constant condition, both by one that is made from the images."""
    if op.bounds_of("condition") or "self" not in op.arguments:
        return pointwise(op)
    return [_chosen(op, "condition", "self", "other")]


def masking(op: OperatorCall) -> list[DependencyBounds]:
    """`masked_fill`: the fill value or the element itself by a constant mask, both by one that is made from the images."""
    if op.bounds_of("mask"):
        return pointwise(op)
    return [_chosen(op, "mask", "value", "self")]


def _chosen(op: OperatorCall, mask_name: str, true_name: str, false_name: str) -> DependencyBounds:
    """The bounds of one argument where a constant mask is True, of another where it is False."""
    mask, shape = op.value(mask_name).cpu(), op.shape
    true, false = ((op.bounds_of(name) or no_dependencies(())).expand(shape) for name in (true_name, false_name))
    return true.map(lambda t, f: torch.where(mask, unexpand(t), unexpand(f)).expand(shape), false)


def addition(op: OperatorCall) -> list[DependencyBounds]:
    """Sums; what a constant mask sets to −∞ no longer depends on anything."""
    (bounds,) = pointwise(op)
    tensors = [tensor for name in ("self", "other") if isinstance(tensor := op.get(name), Tensor) and tensor.dim()]
    for constant in (tensor for tensor in tensors if id(tensor) not in op.bounds_by_id and not op.overwrote(tensor)):
        if constant.is_floating_point() and bool((masked := constant.isneginf()).any()):
            bounds = clear(bounds, masked.cpu())
    return [bounds]


def gathering(op: OperatorCall) -> list[DependencyBounds]:
    """Elements by index: those at constant indices; where the index is made from the images, any along the dimension, and what the index
    depends on."""
    if op.depends_only_on("self"):
        return movement(op)
    index = op.bounds_of("index")
    if op.name not in ("gather", "index_select") or index is None:
        raise NoRule
    source, dim = op.bounds_or_nothing("self"), op.get("dim")
    united = unite_along(source, [dim % source.ndim])
    if op.name == "gather":
        slices = [slice(n) if d != dim % len(op.shape) else slice(None) for d, n in enumerate(op.shape)]
        return [unite([united.map(lambda tensor: tensor[tuple(slices)]).expand(op.shape), index])]
    shape = [-1 if d == dim % len(op.shape) else 1 for d in range(len(op.shape))]
    return [unite([united.expand(op.shape), index.map(lambda tensor: tensor.reshape(shape)).expand(op.shape)])]


def searching(op: OperatorCall) -> list[DependencyBounds]:
    """`bucketize` and `searchsorted`: between which boundaries a number lies, which depends on all of them, or all in its row."""
    shape = op.shape or torch.Size([1])
    numbers = op.bounds_of("self")
    boundaries = [bounds for name in ("boundaries", "sorted_sequence", "sorter") if (bounds := op.bounds_of(name))]
    sources = [unite_along(bounds, [bounds.ndim - 1]) for bounds in boundaries] + ([numbers] if numbers else [])
    united = unite([bounds.expand(shape) for bounds in sources])
    return [united.map(lambda tensor: tensor.reshape(op.shape))]


def embedding(op: OperatorCall) -> list[DependencyBounds]:
    """Rows of a table of weights, by indices that depend on the images."""
    if not op.depends_only_on("indices"):
        raise NoRule
    return [number_units(op.first_bounds().map(lambda tensor: tensor[..., None].expand(op.shape)), -1)]


def scattering(op: OperatorCall) -> list[DependencyBounds]:
    """Elements written into a tensor, or added to it, at constant indices."""
    accumulates, indices, values = _written_elements(op)
    source = op.bounds_by_id.get(id(values)) if isinstance(values, Tensor) else None

    def write(tensor: Tensor, written: Tensor | None = None) -> Tensor:
        flat = tensor.reshape(-1).clone()
        if not accumulates:
            flat[indices.flatten()] = NOTHING
        if written is not None:
            flat.scatter_reduce_(0, indices.flatten(), _fitted(op, written, indices), "amax")
        return flat.reshape(op.shape)

    old = op.bounds_of("self") or no_dependencies(op.shape)
    return [old.map(write, *([source] if source else []))]


def _written_elements(op: OperatorCall) -> tuple[bool, Tensor, Any]:
    """Whether old elements still count, the flat indices of the elements written to, and what is written."""
    numbers = torch.arange(op.shape.numel()).reshape(op.shape)
    index: Any = op.get("indices") or op.get("index") if op.name == "index_put" else op.get("index")
    if any(id(t) in op.bounds_by_id or op.overwrote(t) for t in tensors_in([index, op.get("mask")])):
        raise NoRule
    if op.name in ("index_put", "_index_put_impl"):
        indices = tuple(slice(None) if i is None else i.cpu() for i in op.get("indices"))
        return bool(op.get("accumulate", False)), numbers[indices], op.get("values")
    if op.name in ("scatter", "scatter_add", "scatter_reduce"):
        accumulates = op.name == "scatter_add" or op.get("reduce") is not None
        return accumulates, numbers.gather(op.get("dim"), index.cpu()), op.get("src", op.get("value"))
    return _written_slices(op, numbers)


def _written_slices(op: OperatorCall, numbers: Tensor) -> tuple[bool, Tensor, Any]:
    """The same for operators that write whole slices, given the flat indices of all elements."""
    if op.name in ("index_copy", "index_add", "index_fill"):
        values = op.get("value") if op.name == "index_fill" else op.get("source")
        return op.name == "index_add", numbers.index_select(op.get("dim"), op.get("index").cpu()), values
    if op.name == "masked_scatter":
        return False, numbers[op.get("mask").cpu().expand(op.shape)], op.get("source")
    views: dict[str, Callable[..., Tensor]] = {
        "slice_scatter": torch.ops.aten.slice.Tensor,
        "select_scatter": torch.ops.aten.select.int,
        "diagonal_scatter": torch.ops.aten.diagonal.default,
    }
    arguments = {name: value for name, value in op.arguments.items() if name not in ("self", "src")}
    return False, views[op.name](numbers, **arguments), op.get("src")


def _fitted(op: OperatorCall, written: Tensor, indices: Tensor) -> Tensor:
    """What is written, flat, one element for each index."""
    if op.name == "masked_scatter":
        return written.reshape(-1)[: indices.numel()]
    if op.name.startswith("scatter"):
        written = written[tuple(slice(n) for n in indices.shape)]
    return written.expand(indices.shape).reshape(-1)
