"""Convolutions whose backward pass is computed only where the gradient isn't zero.

The gradient of one cell's value is zero outside the receptive fields below it. A dense backward pass multiplies all these zeros.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAX_CROPPED_SHARE = 0.75
"""The share of a map up to which to crop the gradient costs less than to take the whole map."""
MAX_SHUFFLED_CHANNELS = 64
"""The most channels that a strided convolution on colours is turned into."""


class CroppedBackward(TorchFunctionMode):
    """While this mode is on, `conv2d` has the same values and, up to rounding, the same gradient, which is computed faster.

    It is for gradients with respect to images: weights get none. Left to torch are images that need no gradient, weights that are
    computed in the forward pass, and convolutions in compiled code.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is nn.functional.conv2d and not kwargs and len(args) == 7 and _can_crop(*args):
            return _CroppedConvolution.apply(*args)
        return function(*args, **kwargs or {})


def _can_crop(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """True for the call that `nn.Conv2d` makes on a batch."""
    are_pairs = all(isinstance(value, tuple) and len(value) == 2 for value in (stride, padding, dilation))
    return are_pairs and images.dim() == 4 and images.requires_grad and weight.is_leaf and (bias is None or bias.is_leaf)


class _CroppedConvolution(torch.autograd.Function):
    """`conv2d` whose gradient is computed in one rectangle of each map: the smallest size that holds what isn't zero in every image.

    `geometry` is stride, padding, dilation and groups.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape, ctx.memory_format = geometry, images.shape, _memory_format(images)
        return nn.functional.conv2d(images, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        corners, height, width = _nonzero_rectangles(grad_output)
        if height * width > MAX_CROPPED_SHARE * grad_output.shape[2] * grad_output.shape[3]:
            return _dense_gradient(grad_output, weight, ctx.shape, ctx.memory_format, *ctx.geometry), *[None] * 6
        grad_input = torch.zeros(ctx.shape, dtype=grad_output.dtype, device=grad_output.device)
        grad_input = grad_input.contiguous(memory_format=ctx.memory_format)
        if height and width:
            crops = grad_output.new_empty((len(grad_output), grad_output.shape[1], height, width))
            crops = crops.contiguous(memory_format=ctx.memory_format)
            for crop, whole, (top, left) in zip(crops, grad_output, corners, strict=True):
                crop.copy_(whole[:, top : top + height, left : left + width])
            gradients = _gradient_of_crops(crops, weight, ctx.memory_format, *ctx.geometry)
            _paste(grad_input, corners, gradients, *ctx.geometry[:2])
        return grad_input, *[None] * 6


def _memory_format(images: Tensor) -> torch.memory_format:
    return torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _nonzero_rectangles(grad_output: Tensor) -> tuple[list[tuple[int, int]], int, int]:
    """The rectangles that hold what isn't zero: each image's top left corner, and the height and width that suffice for all."""
    nonzero = (grad_output.amax(1) != 0) | (grad_output.amin(1) != 0)  # NaN counts
    sides = []
    for dim in (2, 1):
        nonzero_lines = nonzero.any(dim)
        line_count = nonzero_lines.shape[1]
        first, stop = nonzero_lines.byte().argmax(1), line_count - nonzero_lines.byte().flip(1).argmax(1)
        first, stop = first.where(nonzero_lines.any(1), 0), stop.where(nonzero_lines.any(1), 0)
        length = int((stop - first).max())
        sides.append((first.clamp(max=line_count - length).tolist(), length))
    (tops, height), (lefts, width) = sides
    return list(zip(tops, lefts, strict=True)), height, width


def _dense_gradient(
    grad_output: Tensor, weight: Tensor, shape: Any, memory_format: torch.memory_format, *geometry: Any
) -> Tensor:
    """The gradient as torch computes it, for images of that shape and memory format; their values don't matter."""
    images = torch.empty(shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=memory_format)
    stride, padding, dilation, groups = geometry
    gradients = torch.ops.aten.convolution_backward(
        grad_output, images, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
    )
    return cast(Tensor, gradients[0])


def _gradient_of_crops(crops: Tensor, weight: Tensor, memory_format: torch.memory_format, *geometry: Any) -> Tensor:
    """The gradient that crops of `grad_output` have, as if the convolution had no padding."""
    stride, _, dilation, groups = geometry
    channels = weight.shape[1]
    can_shuffle = stride[0] == stride[1] > 1 and channels * stride[0] ** 2 <= MAX_SHUFFLED_CHANNELS
    if can_shuffle and groups == 1 and dilation == (1, 1):
        return _gradient_by_shuffle(crops, weight, stride[0])
    sizes = [(crops.shape[2 + axis] - 1) * stride[axis] + (weight.shape[2 + axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    return _dense_gradient(
        crops, weight, (len(crops), channels * groups, *sizes), memory_format, stride, (0, 0), dilation, groups
    )


def _gradient_by_shuffle(crops: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The same gradient by a convolution with `stride²` times the channels, and a pixel shuffle (Shi et al. 2016).

    Colours alone are too few channels to fill a vector register.
    """
    filters, channels, height, width = weight.shape
    rows, columns = ceil(height / stride), ceil(width / stride)
    padded = nn.functional.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    phases = padded.view(filters, channels, rows, stride, columns, stride).permute(1, 3, 5, 0, 2, 4).flip(4, 5)
    kernels = phases.reshape(channels * stride * stride, filters, rows, columns)
    shuffled = nn.functional.pixel_shuffle(nn.functional.conv2d(crops, kernels, padding=(rows - 1, columns - 1)), stride)
    return shuffled[:, :, : (crops.shape[2] - 1) * stride + height, : (crops.shape[3] - 1) * stride + width]


def _paste(grad_input: Tensor, corners: list[tuple[int, int]], gradients: Tensor, stride: Any, padding: Any) -> None:
    """Copy the gradient of each image's crop to where it belongs; the parts that lie on padding are left out."""
    for whole, gradient, corner in zip(grad_input, gradients, corners, strict=True):
        target, source = [slice(None)], [slice(None)]
        for axis in (0, 1):
            first = corner[axis] * stride[axis] - padding[axis]
            length = whole.shape[1 + axis]
            start, stop = (min(max(edge, 0), length) for edge in (first, first + gradient.shape[1 + axis]))
            target.append(slice(start, stop))
            source.append(slice(start - first, stop - first))
        whole[tuple(target)] = gradient[tuple(source)]
