"""What the outputs of each operator depend on. An operator without a rule takes everything."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitscope.fields.planes import (
    MISSING,
    OUTER_PLANES,
    Planes,
    as_global,
    cat_varying,
    dropped_to,
    expanded,
    global_along,
    masked,
    mixed_channels,
    no_planes,
    transposed_taps,
    union,
    whole,
    window_taps,
    windowed,
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

    def only(self, name: str) -> bool:
        """True where the argument of that name is the only one that depends on the images."""
        return self.planes.keys() == {id(self.arguments.get(name))}

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name, default)
        return default if value is None else value


Rule = Callable[[Operation], list[Planes]]


def everything(op: Operation) -> list[Planes]:
    """Every output element depends on every input element."""
    joined = union([whole(p) for p in op.inputs()])
    return [as_global(expanded(joined, out.shape)) for out in op.outputs]


def pointwise(op: Operation) -> list[Planes]:
    """An output element depends on the input elements of the same place, after broadcasting."""
    return [union([expanded(p, out.shape) for p in op.inputs()]) for out in op.outputs]


def movement(op: Operation) -> list[Planes]:
    """Data is moved and not mixed: do the same to the planes."""
    per_plane = []
    for number in range(len(op.input())):
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
    return [no_planes(op.shape)]


def overwrite(op: Operation) -> list[Planes]:
    """`copy_`: what the source depends on."""
    source = op.planes.get(id(op.get("src")))
    return [expanded(source, op.shape)] if source else constant(op)


def reduction(op: Operation) -> list[Planes]:
    """Some dimensions are gone, or of length 1, or every element along them sees all of them."""
    before = op.input()
    ndim = before[0].dim()
    dims = op.get("dim", list(range(ndim)))
    dims = [d % ndim for d in ([dims] if isinstance(dims, int) else dims)] or list(range(ndim))
    after = global_along(before, dims)
    return [dropped_to(list(after), dims, out.shape) for out in op.outputs]


def normalisation(op: Operation) -> list[Planes]:
    """Layer and group norm: all that is normalised together depends on all of it."""
    if not op.only("input"):
        return everything(op)
    before = op.input()
    ndim = before[0].dim()
    dims = range(ndim - len(op.get("normalized_shape")), ndim) if op.get("normalized_shape") else range(1, ndim)
    after = expanded(global_along(before, list(dims)), op.shape)
    return [union([before, after])]


def batch_norm(op: Operation) -> list[Planes]:
    if not op.only("input"):
        return everything(op)
    before = op.input()
    if not (op.get("training") or op.get("train")) or op.name == "_native_batch_norm_legit_no_training":
        return [before]
    dims = [d for d in range(before[0].dim()) if d != 1]
    return [expanded(global_along(before, dims), op.shape)]


def product(op: Operation) -> list[Planes]:
    """Matrix products: the last dimension of the left and the last but one of the right are summed over."""
    sides = []
    names = ("mat1", "mat2") if "mat1" in op.arguments else ("batch1", "batch2") if "batch1" in op.arguments else None
    left, right = (op.get(n) for n in names) if names else (op.get("self"), op.get("mat2", op.get("vec")))
    if (planes := op.planes.get(id(left))) is not None:
        sides.append(expanded(global_along(planes, [planes[0].dim() - 1]), op.shape))
    if right is not None and (planes := op.planes.get(id(right))) is not None:
        if planes[0].dim() == 1:
            return everything(op)
        sides.append(expanded(global_along(planes, [planes[0].dim() - 2]), op.shape))
    added = op.planes.get(id(op.get("self"))) if names else None
    return [union([*sides, expanded(added, op.shape)] if added else sides)]


def concatenation(op: Operation) -> list[Planes]:
    """`cat` and `stack`: tensors that don't depend on the images see nothing."""
    tensors = op.get("tensors")
    planes = [op.planes.get(id(t)) or no_planes(t.shape) for t in tensors]
    dim = op.get("dim", 0)
    joined = []
    for same in zip(*planes, strict=True):
        if op.name == "stack":
            joined.append(torch.stack(same, dim))
            continue
        same = tuple(p for p in same if p.dim() == len(op.shape))  # cat drops empty one-dimensional tensors
        joined.append(cat_varying(same, dim % len(op.shape)).expand(op.shape))
    return [joined]


def convolution(op: Operation) -> list[Planes]:
    if not op.only("input"):
        return everything(op)  # the weights are made from the images
    weight, groups = op.get("weight"), op.get("groups", 1)
    spatial = weight.dim() - 2
    stride, padding, dilation = (_each(op.get(n, d), spatial) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    planes = [mixed_channels(p, groups, op.shape[1]) for p in op.input()]
    for axis in range(spatial):
        dim = op.outputs[0].dim() - spatial + axis
        geometry = (weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
        taps = (transposed_taps if op.get("transposed") else window_taps)(op.shape[dim], *geometry)
        if op.get("transposed"):
            taps = [np.where((t >= 0) & (t < planes[0].shape[dim]), t, MISSING) for t in taps]
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)]


def pooling(op: Operation) -> list[Planes]:
    spatial = _spatial(op)
    kernel = _each(op.get("kernel_size"), spatial)
    stride = _each(op.get("stride") or kernel, spatial)
    padding, dilation = _each(op.get("padding", 0), spatial), _each(op.get("dilation", 1), spatial)
    planes = op.input()
    for axis in range(spatial):
        dim = len(op.shape) - spatial + axis
        if op.shape[dim] == 1 and kernel[axis] - 2 * padding[axis] >= planes[0].shape[dim]:
            planes = global_along(planes, [dim])
            continue
        taps = window_taps(op.shape[dim], kernel[axis], stride[axis], padding[axis], dilation[axis])
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)] * len(op.outputs)


def adaptive_pooling(op: Operation) -> list[Planes]:
    planes, spatial = op.input(), _spatial(op)
    for dim in range(len(op.shape) - spatial, len(op.shape)):
        cells, before = op.shape[dim], planes[0].shape[dim]
        if cells == 1:
            planes = global_along(planes, [dim])
            continue
        starts = np.arange(cells) * before // cells
        stops = -((np.arange(cells) + 1) * before // -cells)
        taps = [np.where(starts + t < stops, starts + t, MISSING) for t in range((stops - starts).max())]
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)] * len(op.outputs)


def padding(op: Operation) -> list[Planes]:
    """Constant padding: real pixels end at the border, outer bounds go on beyond it."""
    pads = op.get("pad")
    planes = op.input()
    ndim = len(op.shape)
    for pair in range(len(pads) // 2):
        dim = ndim - 1 - pair
        taps = [np.arange(op.shape[dim]) - pads[2 * pair]]
        planes = [windowed(p, number, dim, taps) for number, p in enumerate(planes)]
    return [expanded(planes, op.shape)]


def mirroring(op: Operation) -> list[Planes]:
    """Reflection and replication padding: inside real pixels come again; the outer bounds go on beyond the border."""
    moved = movement(op)[0]
    pads = op.get("padding")
    outer = op.input()
    for pair in range(len(pads) // 2):
        dim = len(op.shape) - 1 - pair
        taps = [np.arange(op.shape[dim]) - pads[2 * pair]]
        outer = [windowed(p, number, dim, taps) for number, p in enumerate(outer)]
    return [[o if n in OUTER_PLANES else m for n, (o, m) in enumerate(zip(expanded(outer, op.shape), moved, strict=True))]]


def interpolation(op: Operation) -> list[Planes]:
    """Which cells an output cell is mixed from, found by giving the operator itself one lit cell at a time."""
    planes = op.input()
    scales = {0: op.get("scales_h", op.get("scales")), 1: op.get("scales_w")}
    for axis, dim in enumerate((len(op.shape) - 2, len(op.shape) - 1)):
        before, after = planes[0].shape[dim], op.shape[dim]
        lit = torch.eye(before, dtype=op.get("self").dtype)[None, :, :, None].expand(
            1, before, before, 2
        )  # antialiasing goes wrong on one column
        arguments = dict(op.arguments, self=lit, output_size=[after, 2], scales_h=scales[axis], scales_w=None)
        mixed = op.func(**arguments)[0, :, :, 0].T != 0  # (after, before)
        planes = [masked(p, dim, mixed) for p in planes]
    return [expanded(planes, op.shape)]


def gathering(op: Operation) -> list[Planes]:
    """Indexing with places that are known before; with places that depend on the images, everything may come from anywhere."""
    return movement(op) if op.only("self") else everything(op)


def halving(op: Operation) -> list[Planes]:
    """A gated linear unit: one half times a gate made of the other."""
    halves = [list(p.chunk(2, op.get("dim", -1))) for p in op.input()]
    return [union([[first for first, _ in halves], [second for _, second in halves]])]


def rule_for(op: Operation) -> Rule:
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.func.tags or op.name in POINTWISE:
        return pointwise
    return everything


POINTWISE = {
    "hardswish", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "_prelu_kernel", "dropout", "log_sigmoid_forward",
    "rrelu_with_noise",
}  # fmt: skip
GLOBAL = {
    "_native_multi_head_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math", "_transformer_encoder_layer_fwd",
    "_fft_r2c", "_fft_c2c", "_fft_c2r", "dot",
}  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"), convolution),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d",
                     "max_pool3d_with_indices", "avg_pool3d"), pooling),
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
                     "unbind", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
                     "native_channel_shuffle", "unfold", "diagonal"), movement),
    "index": gathering,
    "index_select": gathering,
    "glu": halving,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm", "any", "all",
                     "linalg_vector_norm", "logsumexp", "argmax", "argmin", "_softmax", "_log_softmax", "cumsum", "topk", "sort",
                     "median"), reduction),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like", "fill",
                     "zero"), constant),
    "copy": overwrite,
    "as_strided": restriding,
}  # fmt: skip


def _spatial(op: Operation) -> int:
    """Over how many dimensions a pooling runs, by its name."""
    return next(n for n in (1, 2, 3) if f"{n}d" in op.name)


def _each(value: Any, count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


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
