"""Rules for operators that choose elements, or write some into others, by index or mask."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    COLUMNS,
    NOTHING,
    PLACE,
    ROWS,
    UNIT,
    Planes,
    cat_varying,
    cleared,
    expanded,
    global_along,
    no_planes,
    runs_along,
    union,
    varying,
    with_units_along,
)
from unitscope.receptive_fields.operations import NoRule, Operation, movement, pointwise, tensors_in


def concatenation(op: Operation) -> list[Planes]:
    """`cat` and `stack`: tensors that don't depend on the images see nothing."""
    tensors = op.get("tensors")
    planes = [op.planes.get(id(t)) or no_planes(t.shape) for t in tensors]
    dim = op.get("dim", 0) % len(op.shape)
    joined = []
    for same in zip(*planes, strict=True):
        if op.name == "stack":
            joined.append(torch.stack(same, dim))
            continue
        same = tuple(p for p in same if p.dim() == len(op.shape))  # cat drops empty one-dimensional tensors
        joined.append(cat_varying(same, dim).expand(op.shape))
    return [_with_single_units(joined, dim)]


def _with_single_units(planes: Planes, dim: int) -> Planes:
    """Where each part held a single unit, they are told apart now."""
    units = varying(planes[UNIT])
    single = not any(runs_along(units, d) for d in range(units.dim()))
    return with_units_along(planes, dim) if single and not _placed_along(planes, dim) else planes


def _placed_along(planes: Planes, dim: int) -> bool:
    return any(runs_along(planes[axis + PLACE], dim) for axis in (ROWS, COLUMNS))


def selection(op: Operation) -> list[Planes]:
    """`where`: by a known condition one or the other, by one made from the images both."""
    if op.planes_of("condition") or "self" not in op.arguments:
        return pointwise(op)
    return [_chosen(op.value("condition").cpu(), _broadcast(op, "self"), _broadcast(op, "other"), op.shape)]


def masking(op: Operation) -> list[Planes]:
    """`masked_fill`: by a known mask the fill or what was there."""
    if op.planes_of("mask"):
        return pointwise(op)
    return [_chosen(op.value("mask").cpu(), _broadcast(op, "value"), _broadcast(op, "self"), op.shape)]


def _broadcast(op: Operation, name: str) -> Planes:
    return expanded(op.planes_of(name) or no_planes(torch.Size([])), op.shape)


def _chosen(mask: Tensor, true: Planes, false: Planes, shape: torch.Size) -> Planes:
    return [torch.where(mask, varying(t), varying(f)).expand(shape) for t, f in zip(true, false, strict=True)]


def addition(op: Operation) -> list[Planes]:
    """Sums; what a known mask sets to −∞ no longer depends on anything."""
    (result,) = pointwise(op)
    tensors = [t for n in ("self", "other") if isinstance(t := op.get(n), Tensor) and t.dim()]
    others = [t for t in tensors if id(t) not in op.planes and not op.overwrote(t)]
    for other in others:
        if other.is_floating_point() and bool((dead := other.isneginf()).any()):
            result = cleared(result, dead.cpu())
    return [result]


def gathering(op: Operation) -> list[Planes]:
    """Elements by index: those at known places; any along the dimension, and what the index depends on, where it is made from the images."""
    if op.only("self"):
        return movement(op)
    index, given = op.planes_of("index"), op.planes_of("self") or no_planes(op.get("self").shape)
    dim = op.get("dim")
    if op.name not in ("gather", "index_select") or index is None:
        raise NoRule
    anywhere = global_along(given, [dim % given[0].dim()])
    if op.name == "gather":
        sizes = [slice(n) if d != dim % len(op.shape) else slice(None) for d, n in enumerate(op.shape)]
        return [union([expanded([p[tuple(sizes)] for p in anywhere], op.shape), index])]
    shape = [-1 if d == dim % len(op.shape) else 1 for d in range(len(op.shape))]
    return [union([expanded(anywhere, op.shape), expanded([p.reshape(shape) for p in index], op.shape)])]


def searching(op: Operation) -> list[Planes]:
    """`bucketize` and `searchsorted`: between which boundaries a number lies, which depends on all of them, or all in its row."""
    shape = op.shape or torch.Size([1])
    numbers = op.planes_of("self")
    boundaries = [planes for name in ("boundaries", "sorted_sequence", "sorter") if (planes := op.planes_of(name))]
    sources = [global_along(planes, [planes[0].dim() - 1]) for planes in boundaries] + ([numbers] if numbers else [])
    return [[p.reshape(op.shape) for p in union([expanded(planes, shape) for planes in sources])]]


def looking_up(op: Operation) -> list[Planes]:
    """`embedding`: rows of a table of weights, by indices that depend on the images."""
    if not op.only("indices"):
        raise NoRule
    return [with_units_along([p[..., None].expand(op.shape) for p in op.input()], -1)]


def scattering(op: Operation) -> list[Planes]:
    """Elements written into a tensor, or added to it, at known places."""
    kept, places, values = _written(op)
    source = op.planes.get(id(values)) if isinstance(values, Tensor) else None
    before = op.planes_of("self") or no_planes(op.shape)
    result = []
    for number, plane in enumerate(before):
        flat = plane.reshape(-1).clone()
        if not kept:
            flat[places.flatten()] = NOTHING
        if source is not None:
            flat.scatter_reduce_(0, places.flatten(), _fitted(op, source[number], places), "amax")
        result.append(flat.reshape(op.shape))
    return [result]


def _written(op: Operation) -> tuple[bool, Tensor, Any]:
    """Whether what was there still counts, the numbers of the elements written to, and what is written."""
    numbers = torch.arange(op.shape.numel()).reshape(op.shape)
    index: Any = op.get("indices") or op.get("index") if op.name == "index_put" else op.get("index")
    if any(id(t) in op.planes or op.overwrote(t) for t in tensors_in([index, op.get("mask")])):
        raise NoRule
    if op.name in ("index_put", "_index_put_impl"):
        at = tuple(slice(None) if i is None else i.cpu() for i in op.get("indices"))
        return bool(op.get("accumulate", False)), numbers[at], op.get("values")
    if op.name in ("scatter", "scatter_add", "scatter_reduce"):
        kept = op.name == "scatter_add" or op.get("reduce") is not None
        return kept, numbers.gather(op.get("dim"), index.cpu()), op.get("src", op.get("value"))
    return _written_whole(op, numbers)


def _written_whole(op: Operation, numbers: Tensor) -> tuple[bool, Tensor, Any]:
    """The same for operators that write whole slices."""
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
    places = {k: v for k, v in op.arguments.items() if k not in ("self", "src")}
    return False, views[op.name](numbers, **places), op.get("src")


def _fitted(op: Operation, plane: Tensor, places: Tensor) -> Tensor:
    """The plane of what is written, element by element of where it goes."""
    if op.name == "masked_scatter":
        return plane.reshape(-1)[: places.numel()]
    if op.name.startswith("scatter"):
        plane = plane[tuple(slice(n) for n in places.shape)]
    return plane.expand(places.shape).reshape(-1)
