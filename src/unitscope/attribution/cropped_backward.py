"""Convolutions whose way down is run only where there is a signal.

What comes down from one cell stays in the cone of fields below it; the rest of every map is zeros. A dense pass multiplies them all.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PAYS = 0.75
"""The share of a map up to which cutting the signal out is cheaper than to take the whole."""
MOST_SHUFFLED = 64
"""The most channels that a strided convolution on colours is turned into."""


class Cones(TorchFunctionMode):
    """While it is on, `conv2d` of what needs a gradient gives the same values and, to rounding, the same gradient, sooner.

    For gradients with respect to images only: weights get none. Weights that are computed on the way are left to torch, and so are
    convolutions that compiled code calls.
    """

    def __torch_function__(
        self, called: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if called is nn.functional.conv2d and not kwargs and len(args) == 7 and _fits(*args):
            return _Convolution.apply(*args)
        return called(*args, **kwargs or {})


def _fits(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """True for the call that `nn.Conv2d` makes on a batch."""
    pairs = all(isinstance(one, tuple) and len(one) == 2 for one in (stride, padding, dilation))
    return pairs and images.dim() == 4 and images.requires_grad and weight.is_leaf and (bias is None or bias.is_leaf)


class _Convolution(torch.autograd.Function):
    """`conv2d` whose gradient is computed in a rectangle of each map: the smallest that holds the signal of every image."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *said: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.said, ctx.shape = said, images.shape
        ctx.layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        return nn.functional.conv2d(images, weight, bias, *said)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        corners, height, width = _reach(signal)
        if height * width > PAYS * signal.shape[2] * signal.shape[3]:
            return _dense(signal, weight, ctx.shape, ctx.layout, *ctx.said), *[None] * 6
        down = torch.zeros(ctx.shape, dtype=signal.dtype, device=signal.device).contiguous(memory_format=ctx.layout)
        if height and width:
            cut = signal.new_empty((len(signal), signal.shape[1], height, width)).contiguous(memory_format=ctx.layout)
            for one, whole, (top, left) in zip(cut, signal, corners, strict=True):
                one.copy_(whole[:, top : top + height, left : left + width])
            _put(down, corners, _sent(cut, weight, ctx.layout, *ctx.said), *ctx.said[:2])
        return down, *[None] * 6


def _put(down: Tensor, corners: list[tuple[int, int]], sent: Tensor, stride: Any, padding: Any) -> None:
    """What came of the cut signals, each to its place."""
    for one, from_cut, corner in zip(down, sent, corners, strict=True):
        places, parts = [slice(None)], [slice(None)]
        for place, by, border, whole, length in zip(corner, stride, padding, one.shape[1:], from_cut.shape[1:], strict=True):
            first = place * by - border
            start, stop = (min(max(edge, 0), whole) for edge in (first, first + length))
            places.append(slice(start, stop))
            parts.append(slice(start - first, stop - first))
        one[tuple(places)] = from_cut[tuple(parts)]


def _dense(signal: Tensor, weight: Tensor, shape: Any, layout: torch.memory_format, *said: Any) -> Tensor:
    """The gradient as torch computes it, for images of that shape and layout; their values don't matter."""
    images = torch.empty(shape, dtype=signal.dtype, device=signal.device, memory_format=layout)
    stride, padding, dilation, groups = said
    found = torch.ops.aten.convolution_backward(
        signal, images, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
    )
    return cast(Tensor, found[0])


def _sent(cut: Tensor, weight: Tensor, layout: torch.memory_format, *said: Any) -> Tensor:
    """The gradient of a part of the maps: that of a convolution without padding.

    Colours are too few channels to fill a vector, so strides down to them become channels: a convolution, and a shuffle (Shi et al. 2016).
    """
    stride, _, dilation, groups = said
    by, (filters, channels, height, width) = stride[0], weight.shape
    if by == 1 or stride[1] != by or channels * by * by > MOST_SHUFFLED or groups > 1 or dilation != (1, 1):
        reach = [(cut.shape[2 + n] - 1) * stride[n] + (weight.shape[2 + n] - 1) * dilation[n] + 1 for n in (0, 1)]
        return _dense(cut, weight, (len(cut), channels * groups, *reach), layout, stride, (0, 0), dilation, groups)
    down, across = ceil(height / by), ceil(width / by)
    whole = nn.functional.pad(weight, (0, across * by - width, 0, down * by - height)).view(
        filters, channels, down, by, across, by
    )
    phases = whole.permute(1, 3, 5, 0, 2, 4).flip(4, 5).reshape(channels * by * by, filters, down, across)
    sent = nn.functional.pixel_shuffle(nn.functional.conv2d(cut, phases, padding=(down - 1, across - 1)), by)
    return sent[:, :, : (cut.shape[2] - 1) * by + height, : (cut.shape[3] - 1) * by + width]


def _reach(signal: Tensor) -> tuple[list[tuple[int, int]], int, int]:
    """For each image the top left corner of what isn't zero, and the height and width that hold it in all of them."""
    there = (signal.amax(1) != 0) | (signal.amin(1) != 0)  # NaN counts
    sides = []
    for dim in (2, 1):
        along = there.any(dim)
        first, last = along.byte().argmax(1), along.shape[1] - along.byte().flip(1).argmax(1)
        first, last = first.where(along.any(1), 0), last.where(along.any(1), 0)
        length = int((last - first).max())
        sides.append((first.clamp(max=along.shape[1] - length).tolist(), length))
    (tops, height), (lefts, width) = sides
    return list(zip(tops, lefts, strict=True)), height, width
