"""Receptive fields: which input pixels every cell of every tensor can depend on.

A `FieldMode` watches one forward pass. For every tensor that derives from the images it keeps, for every element, the first and
last input row and column that the element depends on. These bounds travel as ordinary tensors ("planes") beside the real ones:
moving data moves the planes in the same way, arithmetic unites them, convolution and pooling take the union over a window.
Rows and columns are independent, since fields are boxes. Where a plane doesn't vary along a dimension that dimension has
stride 0 and costs nothing, so a pass takes little more time than the network's own.

An operation that the mode doesn't know makes every output depend on the whole of its inputs, and its name is kept in `unknown`.

Two kinds of bounds are kept. The *inner* ones count real pixels alone and are the smallest possible. The *outer* ones count
padding too, as if the map went on beyond its border, so that all cells of a convolution have fields of one size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.records import Box

Array = np.ndarray[Any, np.dtype[Any]]

# The planes of one axis: the interval of real pixels, the one that counts padding, and whether a global operation came before
# (then padding no longer counts). Starts are kept negated, so that every union is a maximum.
INNER_START, INNER_STOP, OUTER_START, OUTER_STOP, WHOLE = range(5)
ROWS, COLUMNS = 0, 5
NOTHING = -torch.inf
OUTER_PLANES = {ROWS + OUTER_START, ROWS + OUTER_STOP, COLUMNS + OUTER_START, COLUMNS + OUTER_STOP}

Planes = list[Tensor]
"""Ten tensors of the watched tensor's shape: five for rows, five for columns."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The field of every cell of one layer.

    `rows` holds first and last-but-one row, `columns` the same for columns: integers of shape `(2, unit, y, x)`, where a
    dimension along which nothing varies has length 1. Unclipped; clipped to the input a box is exact. `centres_y` and
    `centres_x`, of shape `(y,)` and `(x,)`, are where cells stand on the input.
    """

    rows: Array
    columns: Array
    centres_y: Array
    centres_x: Array

    def box(self, unit: int, y: int, x: int) -> Box:
        """The unclipped box of one cell."""
        cell = np.array([unit]), np.array([y]), np.array([x])
        return Box(*(int(side[0]) for side in self.boxes(*cell)))

    def boxes(self, unit: Array, y: Array, x: Array) -> tuple[Array, ...]:
        """Top, left, bottom and right of many cells, each an integer array of the arguments' common shape."""
        (top, bottom), (left, right) = (bounds[_place(bounds, unit, y, x)] for bounds in (self.rows, self.columns))
        return top, left, bottom, right

    def inner_size(self) -> tuple[int, int]:
        """Height and width of the field of the cell in the middle; the largest among units whose fields differ."""
        return _middle_size(self.rows), _middle_size(self.columns)


def _place(bounds: Array, *index: Array) -> tuple[Any, ...]:
    return slice(None), *(np.minimum(i, n - 1) for i, n in zip(index, bounds.shape[1:], strict=True))


def _middle_size(bounds: Array) -> int:
    _, _, height, width = bounds.shape
    middle = bounds[:, :, height // 2, width // 2]
    return int((middle[1] - middle[0]).max())


class FieldMode(TorchDispatchMode):
    """Watch a forward pass; afterwards `planes(tensor)` and `fields(planes)` tell what each tensor can see.

    Tensors are told apart by identity and kept alive for the length of the pass, so use it on one image. Call `start` with
    the images first.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self._kept: dict[int, tuple[Tensor, Planes, int]] = {}
        self._written: dict[int, Planes] = {}

    def start(self, images: Tensor) -> None:
        """Take `images`, of shape (1, channel, y, x), as the input whose pixels are counted."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32)[:, None]
        columns = torch.arange(width, dtype=torch.float32)
        planes = [p for axis in (rows, columns) for p in (-axis, axis + 1, -axis, axis + 1, torch.zeros(1))]
        self._keep(images, [p.expand(images.shape) for p in planes])

    def planes(self, tensor: Tensor) -> Planes | None:
        """The planes of a tensor of this pass; None where it doesn't depend on the images."""
        kept = self._kept.get(id(tensor))
        written = self._written.get(_storage(tensor))
        if kept is not None and tensor._version <= kept[2]:
            return kept[1]
        if written is None:
            return None
        anywhere = _expand(written, tensor.shape)  # a view of this memory was changed in place, who knows where
        return _union([kept[1], anywhere]) if kept else anywhere

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        arguments = _named_arguments(func, args, kwargs)
        if operator_name(func) == "as_strided":  # in place it changes what `restriding` must know
            arguments["strides_before"] = args[0].stride()
        seen = [(t, p) for t in tensors_in(arguments.values()) if (p := self.planes(t)) is not None]
        output = func(*args, **kwargs)
        if seen:
            self._follow(func, arguments, seen, output)
        return output

    def _follow(self, func: Any, arguments: dict[str, Any], seen: list[tuple[Tensor, Planes]], output: Any) -> None:
        operation = Operation(func, arguments, {id(t): p for t, p in seen}, list(tensors_in([output])))
        rule = _rule(operation)
        followed = rule(operation) if operation.outputs else []
        if rule is everything and operation.name not in GLOBAL:
            self.unknown.add(operation.name)
        for tensor, planes in zip(operation.outputs, followed, strict=False):
            self._keep(tensor, planes, written=func._schema.is_mutable)

    def _keep(self, tensor: Tensor, planes: Planes, written: bool = False) -> None:
        # An in-place operation raises the version after this call returns, hence the one more.
        self._kept[id(tensor)] = (tensor, planes, tensor._version + written)
        if written:
            whole = _whole(planes)
            before = self._written.get(_storage(tensor))
            self._written[_storage(tensor)] = (
                [torch.maximum(a, b) for a, b in zip(before, whole, strict=True)] if before else whole
            )


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of an ATen operator: its arguments by name, the planes of its tensors by `id`, its output tensors."""

    func: Any
    arguments: dict[str, Any]
    planes: dict[int, Planes]
    outputs: list[Tensor]

    @property
    def name(self) -> str:
        return operator_name(self.func)

    @property
    def shape(self) -> torch.Size:
        return self.outputs[0].shape

    def inputs(self) -> list[Planes]:
        return list(self.planes.values())

    def input(self) -> Planes:
        return self.planes[next(iter(self.planes))]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name, default)
        return default if value is None else value


Rule = Callable[[Operation], list[Planes]]


def fields_of(planes: Planes, height: int, width: int) -> Fields:
    """The fields of a layer from its planes, of shape (1, unit, y, x) or (1, unit), on an input of that size.

    Padding counts only on a side where the field touches the border of the input: so the clipped box is always the exact one.
    """
    if planes[0].dim() == 2:
        planes = [p[..., None, None] for p in planes]
    rows = _bounds(planes[ROWS : ROWS + 5], height)
    columns = _bounds(planes[COLUMNS : COLUMNS + 5], width)
    map_height, map_width = planes[0].shape[-2:]
    return Fields(
        rows,
        columns,
        _centres(rows[:, 0, :, 0], map_height, height),
        _centres(columns[:, 0, 0, :], map_width, width),
    )


def _bounds(planes: Planes, length: int) -> Array:
    inner_start, inner_stop, outer_start, outer_stop, whole = (_varying(p[0]).numpy() for p in planes)
    inner_start, outer_start = -inner_start, -outer_start
    inner_only = whole > 0
    start = np.where((inner_start <= 0) & ~inner_only, np.minimum(outer_start, 0), inner_start)
    stop = np.where((inner_stop >= length) & ~inner_only, np.maximum(outer_stop, length), inner_stop)
    empty = inner_start >= inner_stop  # sees padding alone
    start, stop = np.where(empty, outer_start, start), np.where(empty, outer_stop, stop)
    lost = ~(np.isfinite(start) & np.isfinite(stop))
    return np.stack([np.where(lost, 0, start), np.where(lost, 0, stop)]).astype(np.int64)


def _centres(bounds: Array, cells: int, length: int) -> Array:
    """Where cells stand: the middles of their fields or, where all see the whole input, spread evenly over it."""
    middles = np.asarray(bounds.mean(axis=0))
    if cells > 1 and (len(middles) == 1 or np.ptp(middles) == 0):
        return (np.arange(cells) + 0.5) * length / cells
    return np.broadcast_to(middles, cells)


# ── rules: what an operator's outputs depend on ─────────────────────────────────────────────────────────────────────


def everything(op: Operation) -> list[Planes]:
    """Every output element depends on every input element."""
    union = _union([_whole(p) for p in op.inputs()])
    return [_as_global(_expand(union, out.shape)) for out in op.outputs]


def pointwise(op: Operation) -> list[Planes]:
    """An output element depends on the input elements of the same place, after broadcasting."""
    return [_union([_expand(p, out.shape) for p in op.inputs()]) for out in op.outputs]


def movement(op: Operation) -> list[Planes]:
    """Data is moved and not mixed: do the same to the planes."""
    per_plane = []
    for number in range(10):
        moved = op.func(**{k: _with_plane(v, op.planes, number) for k, v in op.arguments.items()})
        per_plane.append(list(tensors_in([moved])))
    return [list(planes) for planes in zip(*per_plane, strict=True)]


def reshape(op: Operation) -> list[Planes]:
    return [[p.reshape(op.shape) for p in op.input()]]


def restriding(op: Operation) -> list[Planes]:
    """`as_strided`: nothing moves where strides change only for dimensions of length 1, as convolutions ask for."""
    before = op.input()
    changed = [n for n, old, new in zip(op.shape, op.get("strides_before"), op.get("stride"), strict=False) if old != new]
    moved = before[0].shape != op.shape or any(n > 1 for n in changed) or op.get("storage_offset", 0)
    return everything(op) if moved else [before]


def constant(op: Operation) -> list[Planes]:
    """New or overwritten memory that holds nothing of the images."""
    return [_no_planes(op.shape)]


def overwrite(op: Operation) -> list[Planes]:
    """`copy_`: what the source depends on."""
    source = op.planes.get(id(op.get("src")))
    return [_expand(source, op.shape)] if source else constant(op)


def reduction(op: Operation) -> list[Planes]:
    """Some dimensions are gone, or of length 1, or every element along them sees all of them."""
    before = op.input()
    ndim = before[0].dim()
    dims = op.get("dim", list(range(ndim)))
    dims = [d % ndim for d in ([dims] if isinstance(dims, int) else dims)] or list(range(ndim))
    after = _global_along(before, dims)
    return [_drop_to(list(after), dims, out.shape) for out in op.outputs]


def normalisation(op: Operation) -> list[Planes]:
    """Layer and group norm: all that is normalised together depends on all of it."""
    before = op.input()
    ndim = before[0].dim()
    dims = range(ndim - len(op.get("normalized_shape")), ndim) if op.get("normalized_shape") else range(1, ndim)
    after = _expand(_global_along(before, list(dims)), op.shape)
    return [_union([before, after])]


def batch_norm(op: Operation) -> list[Planes]:
    before = op.input()
    if not (op.get("training") or op.get("train")) or op.name == "_native_batch_norm_legit_no_training":
        return [before]
    dims = [d for d in range(before[0].dim()) if d != 1]
    return [_expand(_global_along(before, dims), op.shape)]


def product(op: Operation) -> list[Planes]:
    """Matrix products: the last dimension of the left and the last but one of the right are summed over."""
    sides = []
    names = ("mat1", "mat2") if "mat1" in op.arguments else ("batch1", "batch2") if "batch1" in op.arguments else None
    left, right = (op.get(n) for n in names) if names else (op.get("self"), op.get("mat2", op.get("vec")))
    if (planes := op.planes.get(id(left))) is not None:
        sides.append(_expand(_global_along(planes, [planes[0].dim() - 1]), op.shape))
    if right is not None and (planes := op.planes.get(id(right))) is not None:
        if planes[0].dim() == 1:
            return everything(op)
        sides.append(_expand(_global_along(planes, [planes[0].dim() - 2]), op.shape))
    added = op.planes.get(id(op.get("self"))) if names else None
    return [_union([*sides, _expand(added, op.shape)] if added else sides)]


def concatenation(op: Operation) -> list[Planes]:
    """`cat` and `stack`: tensors that don't depend on the images see nothing."""
    tensors = op.get("tensors")
    planes = [op.planes.get(id(t)) or _no_planes(t.shape) for t in tensors]
    dim = op.get("dim", 0)
    joined = []
    for same in zip(*planes, strict=True):
        if op.name == "stack":
            joined.append(torch.stack(same, dim))
            continue
        same = tuple(p for p in same if p.dim() == len(op.shape))  # cat drops empty one-dimensional tensors
        joined.append(_cat_varying(same, dim % len(op.shape)).expand(op.shape))
    return [joined]


def convolution(op: Operation) -> list[Planes]:
    weight, groups = op.get("weight"), op.get("groups", 1)
    spatial = weight.dim() - 2
    stride, padding, dilation = (_each(op.get(n, d), spatial) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    planes = [_mixed_channels(p, groups, op.shape[1]) for p in op.input()]
    for axis in range(spatial):
        dim = op.outputs[0].dim() - spatial + axis
        geometry = (weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
        taps = (_transposed_taps if op.get("transposed") else _taps)(op.shape[dim], *geometry)
        if op.get("transposed"):
            taps = [np.where((t >= 0) & (t < planes[0].shape[dim]), t, MISSING) for t in taps]
        planes = [_windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [_expand(planes, op.shape)]


def pooling(op: Operation) -> list[Planes]:
    kernel = op.get("kernel_size")
    spatial = 1 if op.name.endswith("1d") else 2
    kernel = _each(kernel, spatial)
    stride = _each(op.get("stride") or kernel, spatial)
    padding, dilation = _each(op.get("padding", 0), spatial), _each(op.get("dilation", 1), spatial)
    planes = op.input()
    for axis in range(spatial):
        dim = len(op.shape) - spatial + axis
        if op.shape[dim] == 1 and kernel[axis] - 2 * padding[axis] >= planes[0].shape[dim]:
            planes = _global_along(planes, [dim])
            continue
        taps = _taps(op.shape[dim], kernel[axis], stride[axis], padding[axis], dilation[axis])
        planes = [_windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [_expand(planes, op.shape)] * len(op.outputs)


def adaptive_pooling(op: Operation) -> list[Planes]:
    planes = op.input()
    spatial = 1 if op.name.endswith("1d") else 2
    for dim in range(len(op.shape) - spatial, len(op.shape)):
        cells, before = op.shape[dim], planes[0].shape[dim]
        if cells == 1:
            planes = _global_along(planes, [dim])
            continue
        starts = np.arange(cells) * before // cells
        stops = -((np.arange(cells) + 1) * before // -cells)
        taps = [np.where(starts + t < stops, starts + t, MISSING) for t in range((stops - starts).max())]
        planes = [_windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [_expand(planes, op.shape)] * len(op.outputs)


def padding(op: Operation) -> list[Planes]:
    """Constant padding: real pixels end at the border, outer bounds go on beyond it."""
    pads = op.get("pad")
    planes = op.input()
    ndim = len(op.shape)
    for pair in range(len(pads) // 2):
        dim = ndim - 1 - pair
        taps = [np.arange(op.shape[dim]) - pads[2 * pair]]
        planes = [_windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [_expand(planes, op.shape)]


def mirroring(op: Operation) -> list[Planes]:
    """Reflection and replication padding: inside real pixels come again; the outer bounds go on beyond the border."""
    moved = movement(op)[0]
    pads = op.get("padding")
    outer = op.input()
    for pair in range(len(pads) // 2):
        dim = len(op.shape) - 1 - pair
        taps = [np.arange(op.shape[dim]) - pads[2 * pair]]
        outer = [_windowed(p, number, dim, taps) for number, p in enumerate(outer)]
    return [[o if n in OUTER_PLANES else m for n, (o, m) in enumerate(zip(_expand(outer, op.shape), moved, strict=True))]]


def interpolation(op: Operation) -> list[Planes]:
    """Which cells an output cell is mixed from, found by giving the operator itself one lit cell at a time."""
    planes = op.input()
    scales = {0: op.get("scales_h", op.get("scales")), 1: op.get("scales_w")}
    for axis, dim in enumerate((len(op.shape) - 2, len(op.shape) - 1)):
        before, after = planes[0].shape[dim], op.shape[dim]
        lit = torch.eye(before, dtype=torch.float32)[None, :, :, None]
        arguments = dict(op.arguments, self=lit, output_size=[after, 1], scales_h=scales[axis], scales_w=None)
        mixed = op.func(**arguments)[0, :, :, 0].T != 0  # (after, before)
        planes = [_masked(p, dim, mixed) for p in planes]
    return [_expand(planes, op.shape)]


def _rule(op: Operation) -> Rule:
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.func.tags or op.name in POINTWISE:
        return pointwise
    return everything


POINTWISE = {"hardswish", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "_prelu_kernel", "dropout"}
GLOBAL = {
    "_native_multi_head_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math", "_transformer_encoder_layer_fwd",
    "_fft_r2c", "_fft_c2c", "_fft_c2r", "dot",
}  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"), convolution),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"), pooling),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d"), adaptive_pooling),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                     "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), normalisation),
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm", "addbmm", "mv"), product),
    **dict.fromkeys(("cat", "stack"), concatenation),
    "constant_pad_nd": padding,
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d", "reflection_pad1d", "replication_pad1d"), mirroring),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d",
                     "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), interpolation),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), reshape),
    **dict.fromkeys(("permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "select", "split", "split_with_sizes",
                     "unbind", "flip", "roll", "index_select", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
                     "native_channel_shuffle", "unfold", "index", "diagonal"), movement),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm", "any", "all",
                     "linalg_vector_norm", "logsumexp", "argmax", "argmin", "_softmax", "_log_softmax", "cumsum", "topk", "sort",
                     "median"), reduction),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like", "fill",
                     "zero"), constant),
    "copy": overwrite,
    "as_strided": restriding,
}  # fmt: skip


# ── arithmetic on planes ────────────────────────────────────────────────────────────────────────────────────────────

MISSING = -(1 << 40)
"""A tap that reads nothing at all, neither a pixel nor padding."""


def _taps(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Array]:
    """For every place in a window, the input cell that each output cell reads there; outside the map it is padding."""
    return [np.arange(cells) * stride - padding + tap * dilation for tap in range(kernel)]


def _transposed_taps(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Array]:
    spread = [np.arange(cells) + padding - tap * dilation for tap in range(kernel)]
    return [np.where(s % stride == 0, s // stride, MISSING) for s in spread]


def _windowed(plane: Tensor, number: int, dim: int, taps: list[Array]) -> Tensor:
    """The union along `dim` over the cells that each output cell reads."""
    shape = _resized(plane, dim, len(taps[0]))
    plane = _varying(plane)
    length = plane.shape[dim]
    if length == 1:
        return plane.expand(shape)
    before = max(0, -min(int(t[t != MISSING].min(initial=0)) for t in taps))
    after = max(0, max(int(t.max(initial=0)) for t in taps) - length + 1)
    padded = _continued(plane, number, dim, before, after)
    nothing = padded.shape[dim] - 1
    index = [torch.from_numpy(np.where(t == MISSING, nothing, t + before)) for t in taps]
    return reduce(torch.maximum, (padded.index_select(dim, i) for i in index)).expand(shape)


def _continued(plane: Tensor, number: int, dim: int, before: int, after: int) -> Tensor:
    """The plane with `before` and `after` more cells, and one cell that sees nothing at the very end.

    Inner bounds see nothing beyond the border; outer ones go on with the step of the cells at the border.
    """
    low, high = plane.narrow(dim, 0, 1), plane.narrow(dim, plane.shape[dim] - 1, 1)
    nothing = torch.full_like(low, NOTHING)
    if number not in OUTER_PLANES:
        return torch.cat([nothing] * before + [plane] + [nothing] * (after + 1), dim)
    first_step = plane.narrow(dim, 1, 1) - low
    last_step = high - plane.narrow(dim, plane.shape[dim] - 2, 1)
    head = [low - first_step * i for i in range(before, 0, -1)]
    tail = [high + last_step * i for i in range(1, after + 1)]
    return torch.cat([*head, plane, *tail, nothing], dim)


def _masked(plane: Tensor, dim: int, mixed: Tensor) -> Tensor:
    """The union along `dim` over the cells that are True in `mixed`, of shape (after, before)."""
    shape = _resized(plane, dim, len(mixed))
    plane = _varying(plane)
    if plane.shape[dim] == 1:
        return plane.expand(shape)
    last = plane.movedim(dim, -1)
    rows = [torch.where(row, last, torch.tensor(NOTHING)).amax(-1) for row in mixed]
    return torch.stack(rows, -1).movedim(-1, dim).expand(shape)


def _mixed_channels(plane: Tensor, groups: int, units: int) -> Tensor:
    """What a convolution's outputs see at one place: the union over the channels of their group."""
    shape = _resized(plane, 1, units)
    plane = _varying(plane)
    if plane.shape[1] == 1 or groups == 1:
        return plane.amax(1, keepdim=True).expand(shape)
    grouped = plane.reshape(plane.shape[0], groups, -1, *plane.shape[2:]).amax(2)
    return grouped.repeat_interleave(units // groups, 1).expand(shape)


def _global_along(planes: Planes, dims: Sequence[int]) -> Planes:
    """The union along `dims`, kept with length 1. Where it leaves an axis with nothing that varies, that axis is whole."""
    result = []
    for axis in (ROWS, COLUMNS):
        before = planes[axis : axis + 5]
        after = [_varying(p).amax(list(dims), keepdim=True) for p in before]
        starts = before[OUTER_START]
        joined = any(differs(starts, d) for d in dims)
        left = any(differs(after[OUTER_START], d) for d in range(starts.dim()))
        result += _axis_as_global(after) if joined and not left else after
    return [p.expand([1 if d in dims else n for d, n in enumerate(planes[0].shape)]) for p in result]


def _as_global(planes: Planes) -> Planes:
    return _axis_as_global(planes[ROWS : ROWS + 5]) + _axis_as_global(planes[COLUMNS : COLUMNS + 5])


def _axis_as_global(axis: Planes) -> Planes:
    return [axis[INNER_START], axis[INNER_STOP], axis[INNER_START], axis[INNER_STOP], torch.ones_like(axis[WHOLE])]


def _no_planes(shape: torch.Size) -> Planes:
    """The planes of a tensor that holds nothing of the images."""
    return [torch.full((), NOTHING).expand(shape)] * 10


def _whole(planes: Planes) -> Planes:
    """The union over all elements, as scalars."""
    return [_varying(p).amax() if p.numel() else torch.tensor(NOTHING) for p in planes]


def _union(several: Sequence[Planes]) -> Planes:
    """The union of planes of one shape."""
    if len(several) == 1:
        return several[0]
    shape = several[0][0].shape
    return [reduce(torch.maximum, map(_varying, same)).expand(shape) for same in zip(*several, strict=True)]


def _expand(planes: Planes, shape: torch.Size) -> Planes:
    return [p.expand(shape) for p in planes]


def _drop_to(planes: Planes, dims: Sequence[int], shape: torch.Size) -> Planes:
    if planes[0].dim() != len(shape):
        planes = [p.squeeze(tuple(dims)) for p in planes]
    return _expand(planes, shape)


def _cat_varying(planes: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` that leaves dimensions alone along which none of the planes varies."""
    constant = [d for d in range(planes[0].dim()) if d != dim and all(p.shape[d] == 1 or p.stride(d) == 0 for p in planes)]
    for d in constant:
        planes = [p.narrow(d, 0, 1) for p in planes]
    return torch.cat(list(planes), dim)


def _resized(plane: Tensor, dim: int, length: int) -> list[int]:
    return [length if d == dim else n for d, n in enumerate(plane.shape)]


def _varying(plane: Tensor) -> Tensor:
    """The plane without its copies: dimensions of stride 0 get length 1."""
    for dim in range(plane.dim()):
        if plane.stride(dim) == 0 and plane.shape[dim] > 1:
            plane = plane.narrow(dim, 0, 1)
    return plane


def differs(plane: Tensor, dim: int) -> bool:
    """True where the plane really varies along the dimension."""
    plane = _varying(plane)
    return plane.shape[dim] > 1 and bool((plane.amax(dim) != plane.amin(dim)).any())


def _each(value: Any, count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [a.name for a in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _with_plane(value: Any, planes: dict[int, Planes], number: int) -> Any:
    if isinstance(value, Tensor):
        return planes[id(value)][number] if id(value) in planes else value.cpu()
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return [v if v is None else _with_plane(v, planes, number) for v in value]
    return value


def operator_name(func: Any) -> str:
    """The name of an ATen operator without overload, the same in place and not: `relu` for `aten::relu_`."""
    return str(func._schema.name).removeprefix("aten::").rstrip("_")


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among the values, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
