"""Rules for operators that multiply and sum: matrix products, attention, recurrent layers, linear algebra. A rule is named for its
operators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    NOTHING,
    AxisBounds,
    DependencyBounds,
    common_number,
    constant_elements,
    number_units,
    runs_along,
    unexpand,
    unite,
    unite_along,
)
from unitscope.receptive_fields.operators import NoRule, OperatorCall

MATRIX_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm"), ("self", "mat2", None)),
    "mv": ("self", "vec", None),
    "dot": ("self", "tensor", None),
    "vdot": ("self", "other", None),
    **dict.fromkeys(("addmm", "_addmm_activation"), ("mat1", "mat2", "self")),
    "addmv": ("mat", "vec", "self"),
    **dict.fromkeys(("baddbmm", "addbmm"), ("batch1", "batch2", "self")),
}
"""The names of left factor, right factor and summand of each matrix product."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of a matrix product: its values, and what they depend on; None for weights."""

    values: Tensor
    bounds: DependencyBounds | None

    def nonzero(self) -> Tensor | None:
        """Which elements aren't zero whatever the image, as masked attention is; None where all may count."""
        constant = None if self.bounds is None else constant_elements(self.bounds)
        if constant is None:
            return None
        zero = constant & (self.values == 0).cpu()
        return ~zero if bool(zero.any()) else None


def matrix_product(op: OperatorCall) -> list[DependencyBounds]:
    """The last dimension of the left factor and the last but one of the right are summed over."""
    left_name, right_name, summand_name = MATRIX_PRODUCTS[op.name]
    bounds = _multiply(_factor(op, left_name, 0), _factor(op, right_name, -1))
    if op.name == "addbmm":
        bounds = unite_along(bounds, [0]).map(lambda tensor: tensor.squeeze(0))
    bounds = bounds.map(lambda tensor: tensor.reshape(op.shape))
    summand = op.bounds_of(summand_name) if summand_name else None
    return [unite([bounds, summand.expand(op.shape)]) if summand else bounds]


def _factor(op: OperatorCall, name: str, missing_dim: int) -> Factor:
    """A factor as a matrix; a vector gets the dimension that it lacks. Where the operator wrote over it, no element counts as zero."""
    values, bounds = op.get(name), op.bounds_of(name)
    if op.overwrote(values):
        values = torch.ones_like(values)
    if values.dim() > 1:
        return Factor(values, bounds)
    return Factor(values.unsqueeze(missing_dim), bounds and bounds.map(lambda tensor: tensor.unsqueeze(missing_dim)))


def _multiply(left: Factor, right: Factor) -> DependencyBounds:
    """What the product of two (stacks of) matrices depends on."""
    shape = torch.Size([*left.values.shape[:-1], right.values.shape[-1]])
    parts: list[DependencyBounds] = []
    if left.bounds is not None:
        counted = right.nonzero()
        parts.append(_sum_last(left.bounds, None if counted is None else counted.transpose(-1, -2), shape))
    if right.bounds is not None:
        transposed_shape = [*shape[:-2], shape[-1], shape[-2]]
        parts.append(_transpose(_sum_last(_transpose(right.bounds), left.nonzero(), transposed_shape)))
    if len(parts) == 2:
        return _unite_sides(parts[0], parts[1])
    (summed,) = parts
    if any(runs_along(summed.unit_number, dim) for dim in range(len(shape))):
        return summed  # not units but other things are summed over, such as tokens
    if left.bounds is not None:
        return _number_sums(summed, left.bounds, -1)
    return _number_sums(summed, right.bounds, -2) if right.bounds is not None else summed


def _transpose(bounds: DependencyBounds) -> DependencyBounds:
    return bounds.map(lambda tensor: tensor.transpose(-1, -2))


def _number_sums(summed: DependencyBounds, summands: DependencyBounds, dim: int) -> DependencyBounds:
    """The bounds of sums over units, each a unit now. Where the units of one sum stood at several cells, as those of a patch do, the sum
    stands at the last of them."""
    rows, columns = (_position_of_sums(*axes, dim) for axes in zip(summed.axes, summands.axes, strict=True))
    return number_units(summed.with_positions(rows, columns), dim)


def _position_of_sums(summed: AxisBounds, summands: AxisBounds, dim: int) -> Tensor:
    highest = unexpand(summands.position).amax(dim, keepdim=True)
    if any(runs_along(highest, d) for d in range(highest.dim())):
        return highest.expand(summed.position.shape)
    return summed.position


def _sum_last(bounds: DependencyBounds, counted: Tensor | None, shape: Sequence[int]) -> DependencyBounds:
    """What sums over the last dimension depend on, spread over another last dimension; `counted`, of shape (…, sum, summand), says which
    summands count for which sum."""
    all_summands = unite_along(bounds, [bounds.ndim - 1]).expand(shape)
    if counted is None:
        return all_summands
    rows, columns = (
        axis.map_bounds(lambda tensor: _highest_counted(tensor, counted, shape), position)
        for axis, position in zip(bounds.axes, _positions(all_summands), strict=True)
    )
    return DependencyBounds(rows, columns, all_summands.unit_number)


def _highest_counted(tensor: Tensor, counted: Tensor, shape: Sequence[int]) -> Tensor:
    """The highest along the last dimension for each row of `counted`."""
    tensor = unexpand(tensor)
    if tensor.shape[-1] == 1:
        return torch.where(counted.any(-1)[..., None, :], tensor, NOTHING).expand(shape)
    if tensor.shape[-2] == 1:
        return torch.where(counted, tensor, NOTHING).amax(-1)[..., None, :].expand(shape)
    rows = [torch.where(counted[..., i, None, :], tensor, NOTHING).amax(-1) for i in range(counted.shape[-2])]
    return torch.stack(rows, -1).expand(shape)


def _unite_sides(left: DependencyBounds, right: DependencyBounds) -> DependencyBounds:
    """The union; an element stands where its row of the left factor stands or, where that has no positions, its column of the right."""
    rows, columns = map(_position_of_sides, _positions(left), _positions(right))
    return unite([left, right]).with_positions(rows, columns)


def _position_of_sides(row_positions: Tensor, column_positions: Tensor) -> Tensor:
    has_rows = bool((unexpand(row_positions) != NOTHING).any())
    return _in_blocks(row_positions, column_positions) if has_rows else column_positions


def _in_blocks(positions: Tensor, key_positions: Tensor) -> Tensor:
    """The positions of queries or, where they are the same for several blocks of keys, as of queries that every window is asked, where they fall
    in each block: as far from its start as they are from the first of all. Queries that stand nowhere stay there.

    Blocks lie along all dimensions but the last two.
    """
    own, of_blocks = unexpand(positions), unexpand(key_positions)
    block_dims = range(positions.dim() - 2)
    differ = any(runs_along(key_positions, dim) and not runs_along(positions, dim) for dim in block_dims)
    if not differ or not bool((own != NOTHING).any()):
        return positions
    starts = of_blocks.masked_fill(of_blocks == NOTHING, torch.inf).amin((-2, -1), keepdim=True)
    stops = of_blocks.amax((-2, -1), keepdim=True)
    first, last = own[own != NOTHING].amin(), own.amax()
    share = (own - first) / (last - first) if last > first else torch.full_like(own, 0.5)
    inside = torch.where(starts < torch.inf, starts + share * (stops - starts), NOTHING)
    return torch.where(own != NOTHING, inside, NOTHING).expand(positions.shape)


def _positions(bounds: DependencyBounds) -> tuple[Tensor, Tensor]:
    return bounds.rows.position, bounds.columns.position


def attention(op: OperatorCall) -> list[DependencyBounds]:
    """Scaled dot products: an element depends on its query, on the keys that its mask lets through, and on one number of each value.

    Query, key and value are of shape (…, token, number). So what is attended apart, in windows or heads, stays apart.
    """
    query, key, value = (_of_all_heads(op, name) for name in ("query", "key", "value"))
    queries, keys = unite_along(query, [query.ndim - 1]), unite_along(key, [key.ndim - 1])
    counted, mask = _attended_keys(op)
    scores_shape = [*op.shape[:-1], 1]
    sources = [queries.expand(scores_shape), _transpose(_sum_last(_transpose(keys), counted, [*op.shape[:-2], 1, op.shape[-2]]))]
    if mask:
        sources.append(unite_along(mask, [mask.ndim - 1]).expand(scores_shape))
    weights = unite(sources)
    values = _transpose(_sum_last(_transpose(value), counted, [*op.shape[:-2], op.shape[-1], op.shape[-2]]))
    rows, columns = (
        _in_blocks(position.expand(scores_shape), key_position.expand(key.shape)).expand(op.shape)
        for position, key_position in zip(_positions(queries), _positions(keys), strict=True)
    )
    united = unite([weights.expand(op.shape), values]).with_positions(rows, columns)
    attended = replace(united, unit_number=values.unit_number)
    gives_weights = len(op.outputs) > 1 and op.outputs[1].shape == op.shape[:-1]
    return [attended, weights.map(lambda tensor: tensor.squeeze(-1))] if gives_weights else [attended]


def _of_all_heads(op: OperatorCall, name: str) -> DependencyBounds:
    """The bounds of query, key or value; where several heads share a key, it is given to each."""
    bounds, heads = op.bounds_or_nothing(name), op.get("query").shape[-3]
    if bounds.shape[-3] in (1, heads):
        return bounds
    return bounds.map(lambda tensor: tensor.repeat_interleave(heads // tensor.shape[-3], -3))


def _attended_keys(op: OperatorCall) -> tuple[Tensor | None, DependencyBounds | None]:
    """Which keys count for which query, None for all of them, and what a mask depends on that is made from the images."""
    queries, keys = op.get("query").shape[-2], op.get("key").shape[-2]
    causal = torch.ones(queries, keys, dtype=torch.bool).tril() if op.get("is_causal", False) else None
    name = "attn_mask" if "attn_mask" in op.arguments else "attn_bias"
    mask = op.get(name)
    if mask is None:
        return causal, None
    if bounds := op.bounds_of(name):
        return causal, bounds
    allowed = mask.cpu() if mask.dtype is torch.bool else ~mask.cpu().isneginf()
    allowed = allowed.expand(*allowed.shape[:-2], queries, keys)
    return (allowed if causal is None else allowed & causal), None


def multi_head_attention(op: OperatorCall) -> list[DependencyBounds]:
    """torch's fast paths: an element depends on its own query and on all keys and values of its image."""
    if op.get("mask") is not None or op.get("src_mask") is not None:
        raise NoRule
    if op.name == "_transformer_encoder_layer_fwd":
        source = op.bounds_or_nothing("src")
        sources = [source, unite_along(source, [1, 2]).expand(op.shape)]
    else:
        query, key, value = (op.bounds_or_nothing(name) for name in ("query", "key", "value"))
        sources = [unite_along(query, [2]), unite_along(key, [1, 2]), unite_along(value, [1, 2])]
    return [number_units(unite([bounds.expand(op.shape) for bounds in sources]), -1)]


def recurrence(op: OperatorCall) -> list[DependencyBounds]:
    """One layer of an LSTM in one direction, on (time, image, number): what came before in time, and all of it at the end."""
    if not op.depends_only_on("input"):
        raise NoRule
    steps = unite_along(op.first_bounds(), [2])
    past = _flip(unite_prefixes(_flip(steps), 0)) if op.get("reverse") else unite_prefixes(steps, 0)
    past = past.with_positions(*_positions(steps))
    last = unite_along(steps, [0]).map(lambda tensor: tensor.squeeze(0))
    outputs = [past.expand(op.shape), *(last.expand(output.shape) for output in op.outputs[1:3])]
    return [number_units(bounds, -1) for bounds in outputs]


def _flip(bounds: DependencyBounds) -> DependencyBounds:
    return bounds.map(lambda tensor: tensor.flip(0))


def unite_prefixes(bounds: DependencyBounds, dim: int) -> DependencyBounds:
    """The union along `dim` of every element with those before it."""
    rows, columns = (
        axis.map_bounds(lambda tensor: _running_maximum(tensor, dim), _running_number(axis.position, dim)) for axis in bounds.axes
    )
    return DependencyBounds(rows, columns, _running_number(bounds.unit_number, dim))


def _running_maximum(tensor: Tensor, dim: int) -> Tensor:
    unexpanded = unexpand(tensor)
    return tensor if unexpanded.shape[dim] == 1 else unexpanded.cummax(dim).values.expand(tensor.shape)


def _running_number(numbers: Tensor, dim: int) -> Tensor:
    """The positions (or unit numbers) of sums; where they differ along `dim`, a sum has none."""
    if runs_along(numbers, dim):
        return common_number(numbers, [dim]).expand(numbers.shape)
    return _running_maximum(numbers, dim)


def trilinear(op: OperatorCall) -> list[DependencyBounds]:
    """`nn.Bilinear`: the product of three tensors of one shape, summed over some dimensions."""
    sources = [_with_dims(op.bounds_or_nothing(f"i{number}"), op.get(f"expand{number}")) for number in (1, 2, 3)]
    shape = torch.broadcast_shapes(*(bounds.shape for bounds in sources))
    dims = tuple(op.get("sumdim"))
    summed = unite_along(unite([bounds.expand(shape) for bounds in sources]), dims)
    return [number_units(summed.map(lambda tensor: tensor.squeeze(dims)), -1)]


def _with_dims(bounds: DependencyBounds, dims: Sequence[int]) -> DependencyBounds:
    """The bounds with more dimensions, of length 1."""
    for dim in sorted(dims):
        bounds = bounds.map(partial(torch.unsqueeze, dim=dim))
    return bounds


def distances(op: OperatorCall) -> list[DependencyBounds]:
    """`cdist`: between every row of one matrix and every row of another."""
    left, right = (unite_along(op.bounds_or_nothing(name), [op.get(name).dim() - 1]) for name in ("x1", "x2"))
    return [_unite_sides(left.expand(op.shape), _transpose(right).expand(op.shape))]


def linear_solve(op: OperatorCall) -> list[DependencyBounds]:
    """`linalg.solve`: each column of the solution depends on all of the matrix, and on its own right side."""
    matrix, right = op.bounds_or_nothing("A"), op.bounds_or_nothing("B")
    if op.get("A").dim() != op.get("B").dim() or not op.get("left", True):
        raise NoRule
    ndim = len(op.shape)
    sources = [unite_along(matrix, [ndim - 2, ndim - 1]), unite_along(right, [ndim - 2])]
    return [unite([bounds.expand(op.shape) for bounds in sources])]


def matrix_function(op: OperatorCall) -> list[DependencyBounds]:
    """Decompositions, inverses and determinants: every number depends on all of its matrix, or pair of them."""
    matrices = []
    for name, tensor in op.arguments.items():
        if isinstance(tensor, Tensor):
            if tensor.dim() < 2:
                raise NoRule
            united = unite_along(op.bounds_or_nothing(name), [tensor.dim() - 2, tensor.dim() - 1])
            matrices.append(united.map(lambda t: t.squeeze((-2, -1))))
    stack_shape = torch.broadcast_shapes(*(bounds.shape for bounds in matrices))
    stack = unite([bounds.expand(stack_shape) for bounds in matrices])
    return [_spread(stack, output.shape) for output in op.outputs]


def _spread(stack: DependencyBounds, shape: torch.Size) -> DependencyBounds:
    """What each matrix of a stack depends on, for every number of another matrix at the same index of the stack."""
    more_dims = [None] * (len(shape) - stack.ndim)
    return stack.map(lambda tensor: tensor[(..., *more_dims)].expand(shape))
