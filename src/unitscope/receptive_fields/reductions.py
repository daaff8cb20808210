"""Rules for operators that reduce, accumulate or normalise along dimensions."""

from unitscope.receptive_fields.bounds import (
    UNIT,
    Planes,
    cleared,
    constant_elements,
    dropped_to,
    expanded,
    global_along,
    no_planes,
    runs_along,
    union,
    varying,
    with_units_along,
)
from unitscope.receptive_fields.operations import NoRule, Operation
from unitscope.receptive_fields.products import prefixes


def reduction(op: Operation) -> list[Planes]:
    """Some dimensions are gone, or of length 1, or every element along them sees all of them."""
    before = op.input()
    dims = _dims(op, before[0].dim())
    after = global_along(before, dims)
    if any(runs_along(before[UNIT], d) for d in dims):  # of several units one is made, of each group or of all
        groups = varying(before[UNIT]).amax(dims, keepdim=True)
        if any(runs_along(groups, d) for d in range(groups.dim())):
            after[UNIT] = groups.expand(after[UNIT].shape)
    return [dropped_to(list(after), dims, out.shape) for out in op.outputs]


def transform(op: Operation) -> list[Planes]:
    """Fourier transforms: every element along the dimensions sees all of them."""
    before = op.input()
    after = global_along(before, _dims(op, before[0].dim()))
    return [expanded(after, op.shape)]


def accumulation(op: Operation) -> list[Planes]:
    """`cumsum` and its like: every element sees those before it."""
    before = op.input()
    return [prefixes(before, _dims(op, before[0].dim())[0])] * len(op.outputs)


def softmax(op: Operation) -> list[Planes]:
    """Every element sees all along the dimension, but what a mask has set to −∞ stays zero and counts for none."""
    if not op.only("self"):
        raise NoRule
    before = op.input()
    after = expanded(global_along(before, _dims(op, before[0].dim())), op.shape)
    result = union([before, after])
    constant = constant_elements(before)
    if constant is not None and op.name != "_log_softmax":
        result = cleared(result, constant & op.value("self").isneginf().cpu())
    return [result]


def _dims(op: Operation, ndim: int) -> list[int]:
    dims = op.get("dim", list(range(ndim)))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)] or list(range(ndim))


def layer_norm(op: Operation) -> list[Planes]:
    """All that is normalised together depends on all of it."""
    if not op.only("input"):
        raise NoRule
    before = op.input()
    ndim, count = before[0].dim(), len(op.get("normalized_shape"))
    result = union([before, expanded(global_along(before, list(range(ndim - count, ndim))), op.shape)])
    return [with_units_along(result, -1) if count == 1 else result]


def group_norm(op: Operation) -> list[Planes]:
    """Each group of units depends on all of it."""
    if not op.only("input"):
        raise NoRule
    before, groups = op.input(), op.get("group")
    apart = [p.unflatten(1, (groups, -1)) for p in before]
    joined = expanded(global_along(apart, list(range(2, apart[0].dim()))), apart[0].shape)
    return [with_units_along(union([before, [p.flatten(1, 2) for p in joined]]), 1)]


def batch_norm(op: Operation) -> list[Planes]:
    """Nothing beside an element counts, unless the statistics are those of the image."""
    if not op.only("input"):
        raise NoRule
    before = op.input()
    if not (op.get("training") or op.get("train") or op.name.endswith("no_stats")):
        return [with_units_along(before, 1), *(no_planes(o.shape) for o in op.outputs[1:])]
    dims = [d for d in range(before[0].dim()) if d != 1]
    return [with_units_along(union([before, expanded(global_along(before, dims), op.shape)]), 1)]


def halving(op: Operation) -> list[Planes]:
    """A gated linear unit: one half times a gate made of the other."""
    halves = [list(p.chunk(2, op.get("dim", -1))) for p in op.input()]
    first, second = [a for a, _ in halves], [b for _, b in halves]
    result = union([first, second])
    result[UNIT] = first[UNIT]
    return [result]


def complex_of_pairs(op: Operation) -> list[Planes]:
    """`view_as_complex`: two numbers become one."""
    before = op.input()
    last = before[0].dim() - 1
    return [[p.squeeze(last) for p in global_along(before, [last])]]


def pairs_of_complex(op: Operation) -> list[Planes]:
    """`view_as_real`: a number becomes two."""
    return [[p[..., None].expand(op.shape) for p in op.input()]]
