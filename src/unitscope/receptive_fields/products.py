"""Rules for operators that multiply and sum: matrix products, attention, recurrent layers, Fourier transforms, linear algebra."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    COLUMNS,
    NOTHING,
    PLACE,
    ROWS,
    UNIT,
    Planes,
    constant_elements,
    expanded,
    global_along,
    no_planes,
    runs_along,
    shared,
    union,
    varying,
    with_units_along,
)
from unitscope.receptive_fields.operations import NoRule, Operation

PRODUCTS = {
    **dict.fromkeys(("mm", "bmm"), ("self", "mat2", None)),
    "mv": ("self", "vec", None),
    "dot": ("self", "tensor", None),
    "vdot": ("self", "other", None),
    **dict.fromkeys(("addmm", "_addmm_activation"), ("mat1", "mat2", "self")),
    "addmv": ("mat", "vec", "self"),
    **dict.fromkeys(("baddbmm", "addbmm"), ("batch1", "batch2", "self")),
}
"""The names of left side, right side and summand of each matrix product."""


def product(op: Operation) -> list[Planes]:
    """Matrix products: the last dimension of the left and the last but one of the right are summed over."""
    left_name, right_name, added_name = PRODUCTS[op.name]
    left, right = (_matrix(op, name, dim) for name, dim in ((left_name, 0), (right_name, -1)))
    result = _multiplied(left, right)
    if op.name == "addbmm":
        result = [p.squeeze(0) for p in global_along(result, [0])]
    result = [p.reshape(op.shape) for p in result]
    added = op.planes_of(added_name) if added_name else None
    return [union([result, expanded(added, op.shape)]) if added else result]


Matrix = tuple[Tensor, Planes | None]
"""The values of one side of a product, and what they depend on; None for weights."""


def _matrix(op: Operation, name: str, missing: int) -> Matrix:
    """A side of the product, where a vector has got the dimension that it lacks; of one that was written over nothing is known to be zero."""
    values, planes = op.get(name), op.planes_of(name)
    if op.overwrote(values):
        values = torch.ones_like(values)
    if values.dim() > 1:
        return values, planes
    return values.unsqueeze(missing), planes and [p.unsqueeze(missing) for p in planes]


def _multiplied(left: Matrix, right: Matrix) -> Planes:
    """What the product of two (stacks of) matrices depends on."""
    shape = torch.Size([*left[0].shape[:-1], right[0].shape[-1]])
    sides: list[Planes] = []
    if left[1] is not None:
        live = _never_zero(right)
        sides.append(_summed(left[1], None if live is None else live.transpose(-1, -2), shape))
    if right[1] is not None:
        turned = _summed([p.transpose(-1, -2) for p in right[1]], _never_zero(left), [*shape[:-2], shape[-1], shape[-2]])
        sides.append([p.transpose(-1, -2) for p in turned])
    if len(sides) == 2:
        return _of_the_left(sides[0], sides[1])
    if any(runs_along(sides[0][UNIT], d) for d in range(len(shape))):  # other things than units are summed over, as tokens
        return sides[0]
    return _new_units(sides[0], left[1] or right[1] or [], -1 if left[1] is not None else -2)


def _new_units(summed: Planes, before: Planes, dim: int) -> Planes:
    """The planes of sums over units, each a unit now. Where units stood at several places, as those of a patch, all count as one."""
    result = with_units_along(summed, dim)
    for number in (ROWS + PLACE, COLUMNS + PLACE):
        places = varying(before[number]).amax(dim, keepdim=True)
        if any(runs_along(places, d) for d in range(places.dim())):
            result[number] = places.expand(summed[number].shape)
    return result


def _never_zero(side: Matrix) -> Tensor | None:
    """Which elements of a side aren't zero whatever the image, as masked attention is; None where all may count."""
    values, planes = side
    constant = None if planes is None else constant_elements(planes)
    if constant is None:
        return None
    zero = constant & (values == 0).cpu()
    return ~zero if bool(zero.any()) else None


def _summed(planes: Planes, live: Tensor | None, shape: Sequence[int]) -> Planes:
    """What sums over the last dimension depend on, spread over another last dimension; `live`, of shape (…, after, before), says
    what counts for which."""
    if live is None:
        return expanded(global_along(planes, [planes[0].dim() - 1]), torch.Size(shape))
    whole = expanded(global_along(planes, [planes[0].dim() - 1]), torch.Size(shape))
    counted = [_counted(p, live, shape) for p in planes]
    for number in (ROWS + PLACE, COLUMNS + PLACE, UNIT):
        counted[number] = whole[number]
    return counted


def _counted(plane: Tensor, live: Tensor, shape: Sequence[int]) -> Tensor:
    """The highest along the last dimension for each row of `live`."""
    plane = varying(plane)
    if plane.shape[-1] == 1:
        return torch.where(live.any(-1)[..., None, :], plane, NOTHING).expand(shape)
    if plane.shape[-2] == 1:
        return torch.where(live, plane, NOTHING).amax(-1)[..., None, :].expand(shape)
    rows = [torch.where(live[..., i, None, :], plane, NOTHING).amax(-1) for i in range(live.shape[-2])]
    return torch.stack(rows, -1).expand(shape)


def _of_the_left(left: Planes, right: Planes) -> Planes:
    """The union; an element stands where its row of the left side stands or, where that has no places, its column of the right."""
    joined = union([left, right])
    for number in (ROWS + PLACE, COLUMNS + PLACE):
        placed = bool((varying(left[number]) != NOTHING).any())
        joined[number] = (left if placed else right)[number]
    return joined


def attention(op: Operation) -> list[Planes]:
    """Scaled dot products: an element depends on its query, on the keys that its mask lets through, and on one number of each value.

    Query, key and value are of shape (…, token, number). So what is attended apart, in windows or heads, stays apart.
    """
    query, key, value = (_of_heads(op, name) for name in ("query", "key", "value"))
    asked = global_along(query, [query[0].dim() - 1])
    keys = global_along(key, [key[0].dim() - 1])
    live, masks = _attended(op)
    scores = torch.Size([*op.shape[:-1], 1])
    seen = _summed([p.transpose(-1, -2) for p in keys], live, [*op.shape[:-2], 1, op.shape[-2]])
    sources = [expanded(asked, scores), [p.transpose(-1, -2) for p in seen]]
    sources += [expanded(global_along(m, [m[0].dim() - 1]), scores) for m in masks]
    values = _summed([p.transpose(-1, -2) for p in value], live, [*op.shape[:-2], op.shape[-1], op.shape[-2]])
    weights, weighed = union(sources), [p.transpose(-1, -2) for p in values]
    result = union([expanded(weights, op.shape), weighed])
    for number in (ROWS + PLACE, COLUMNS + PLACE):
        result[number] = asked[number].expand(op.shape)
    result[UNIT] = weighed[UNIT]
    fits = len(op.outputs) > 1 and op.outputs[1].shape == op.shape[:-1]
    return [result, [p.squeeze(-1) for p in weights]] if fits else [result]


def _of_heads(op: Operation, name: str) -> Planes:
    """The planes of query, key or value; where several heads share a key, it is given to each."""
    planes, heads = op.planes_or_nothing(name), op.get("query").shape[-3]
    if planes[0].shape[-3] in (1, heads):
        return planes
    return [p.repeat_interleave(heads // p.shape[-3], -3) for p in planes]


def _attended(op: Operation) -> tuple[Tensor | None, list[Planes]]:
    """Which keys count for which query, None for all of them, and what a mask depends on that is made from the images."""
    queries, keys = op.get("query").shape[-2], op.get("key").shape[-2]
    live = torch.ones(queries, keys, dtype=torch.bool).tril() if op.get("is_causal", False) else None
    name = "attn_mask" if "attn_mask" in op.arguments else "attn_bias"
    mask = op.get(name)
    if mask is None:
        return live, []
    if planes := op.planes_of(name):
        return live, [planes]
    allowed = mask.cpu() if mask.dtype is torch.bool else ~mask.cpu().isneginf()
    allowed = allowed.expand(*allowed.shape[:-2], queries, keys)
    return (allowed if live is None else allowed & live), []


def multi_head_attention(op: Operation) -> list[Planes]:
    """torch's fast paths: an element depends on its own query and on all keys and values of its image."""
    if op.get("mask") is not None or op.get("src_mask") is not None:
        raise NoRule
    if op.name == "_transformer_encoder_layer_fwd":
        given = op.planes_or_nothing("src")
        sources = [given, expanded(global_along(given, [1, 2]), op.shape)]
    else:
        query, key, value = (op.planes_or_nothing(name) for name in ("query", "key", "value"))
        sources = [global_along(query, [2]), global_along(key, [1, 2]), global_along(value, [1, 2])]
    return [with_units_along(union([expanded(s, op.shape) for s in sources]), -1)]


def recurrence(op: Operation) -> list[Planes]:
    """One layer of an LSTM in one direction, on (time, image, number): what came before in time, and all of it at the end."""
    if not op.only("input"):
        raise NoRule
    at_once = global_along(op.input(), [2])
    past = [p.flip(0) for p in prefixes([p.flip(0) for p in at_once], 0)] if op.get("reverse") else prefixes(at_once, 0)
    for number in (ROWS + PLACE, COLUMNS + PLACE):
        past[number] = at_once[number]
    last = [p.squeeze(0) for p in global_along(at_once, [0])]
    outputs = [expanded(past, op.shape), *(expanded(last, o.shape) for o in op.outputs[1:3])]
    return [with_units_along(planes, -1) for planes in outputs]


def prefixes(planes: Planes, dim: int) -> Planes:
    """The union along `dim` of every element with those before it."""
    result = [_running(p, dim) for p in planes]
    for number in (ROWS + PLACE, COLUMNS + PLACE, UNIT):
        if runs_along(planes[number], dim):
            result[number] = shared(planes[number], [dim]).expand(planes[number].shape)
    return result


def _running(plane: Tensor, dim: int) -> Tensor:
    short = varying(plane)
    return plane if short.shape[dim] == 1 else short.cummax(dim).values.expand(plane.shape)


def trilinear(op: Operation) -> list[Planes]:
    """`nn.Bilinear`: the product of three tensors of one shape, summed over some dimensions."""
    sources = []
    for number in (1, 2, 3):
        planes = op.planes_or_nothing(f"i{number}")
        for dim in sorted(op.get(f"expand{number}")):
            planes = [p.unsqueeze(dim) for p in planes]
        sources.append(planes)
    shape = torch.broadcast_shapes(*(s[0].shape for s in sources))
    dims = list(op.get("sumdim"))
    summed = global_along(union([expanded(s, shape) for s in sources]), dims)
    return [with_units_along([p.squeeze(tuple(dims)) for p in summed], -1)]


def distances(op: Operation) -> list[Planes]:
    """`cdist`: between every row of one matrix and every row of another."""
    left, right = (global_along(op.planes_or_nothing(n), [op.get(n).dim() - 1]) for n in ("x1", "x2"))
    return [_of_the_left(expanded(left, op.shape), expanded([p.transpose(-1, -2) for p in right], op.shape))]


def equations(op: Operation) -> list[Planes]:
    """`linalg.solve`: each column of the solution depends on all of the matrix, and on its own right side."""
    matrix, right = op.planes_or_nothing("A"), op.planes_or_nothing("B")
    if op.get("A").dim() != op.get("B").dim() or not op.get("left", True):
        raise NoRule
    ndim = len(op.shape)
    sources = [global_along(matrix, [ndim - 2, ndim - 1]), global_along(right, [ndim - 2])]
    return [union([expanded(s, op.shape) for s in sources])]


def matrix_function(op: Operation) -> list[Planes]:
    """Decompositions, inverses and determinants: every number depends on all of its matrix, or pair of them."""
    sources = []
    for tensor in {id(t): t for t in op.arguments.values() if isinstance(t, Tensor)}.values():
        planes = op.planes.get(id(tensor)) or no_planes(tensor.shape)
        if tensor.dim() < 2:
            raise NoRule
        sources.append([p.squeeze((-2, -1)) for p in global_along(planes, [tensor.dim() - 2, tensor.dim() - 1])])
    stack = union([expanded(s, torch.broadcast_shapes(*(s[0].shape for s in sources))) for s in sources])
    dims = stack[0].dim()
    return [expanded([p[(..., *[None] * (len(o.shape) - dims))] for p in stack], o.shape) for o in op.outputs]
