"""Which dimension of an output holds images, alone or with something else, found by running two of them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.data_flow import first_tensor_argument, name_of_call
from unitscope.layers.parameter_guard import ParameterGuard
from unitscope.networks import InputFormat

LOG = logging.getLogger(__name__)

SAME_IMAGE = 1e-3
"""How far apart, as a share of the highest value, an image's output alone and beside another may be for rounding's sake."""

OutputName = tuple[str, bool]
"""A layer's name, and True for what goes into it, False for what comes out."""
ShapesOfTwo = dict[OutputName, tuple[int, ...]]
"""The shapes for two images."""


@dataclass(frozen=True, slots=True)
class ImageAxis:
    """The dimension of an output that holds images: an index is (outer, image, inner), where `outer` and `inner` say how many other
    things, such as windows or heads, share it."""

    dim: int = 0
    outer: int = 1
    inner: int = 1

    def with_images_first(self, output: Tensor) -> Tensor:
        """The output, whatever the number of images, as (image, …); what shares their dimension gets dimensions of its own."""
        if self.outer == self.inner == 1:
            first: Tensor = output.movedim(self.dim, 0) if self.dim else output
            return first
        apart: Tensor = output.unflatten(self.dim, (self.outer, -1, self.inner)).movedim(self.dim + 1, 0)
        return apart


def shapes_of_two_images(network: nn.Module, images: Tensor, input_format: InputFormat) -> ShapesOfTwo:
    """The shapes of everything for two images, which tell where images are; nothing where the network takes only one.

    In channels last an error is raised: one image hides a `view` that fails.
    """
    shapes: ShapesOfTwo = {}

    def note(name: OutputName, tensor: Tensor) -> None:
        shapes[name] = tuple(tensor.shape)

    try:
        with _looking_at_tensors(network, note), ParameterGuard(network):
            network(input_format.convert(_noise(images)))
    except Exception as error:
        if input_format.memory_format is torch.channels_last or isinstance(error, NetworkError):
            raise
        LOG.debug("the network doesn't run on two images", exc_info=True)
        shapes.clear()
    return shapes


def _noise(images: Tensor) -> Tensor:
    """Two images of noise of the size of these. Where a network's shapes depend on the images they should differ from a blank one's."""
    return torch.randn(2, *images.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32)


@contextmanager
def _looking_at_tensors(network: nn.Module, look: Callable[[OutputName, Tensor], None]) -> Iterator[None]:
    """Look at what every module below the network gets and gives for as long as the block lasts."""
    call_counts: Counter[str] = Counter()
    handles = []
    for path, module in network.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):

            def look_at_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                call_counts[path] += 1
                tensor = first_tensor_argument(args, kwargs)
                if tensor is not None:
                    look((name_of_call(path, call_counts[path]), True), tensor)

            def look_at_output(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor):
                    look((name_of_call(path, call_counts[path]), False), output)

            handles += [module.register_forward_pre_hook(look_at_input, with_kwargs=True)]
            handles += [module.register_forward_hook(look_at_output)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def possible_axes(shape: tuple[int, ...], shape_of_two: tuple[int, ...] | None) -> list[ImageAxis] | str:
    """Where an output can hold images, given its shape for one image and for two; why it holds none, where that is so.

    Where images share a dimension with something else, the shapes leave several possibilities.
    """
    if shape_of_two is None:
        if shape[:1] == (1,):
            return [ImageAxis()]
        return f"its output has shape {shape} for one image, and the network takes no more, so where images are can't be told"
    if shape_of_two == shape:
        return f"its output has shape {shape} for one image and for two, so it has no dimension of images"
    changed = [dim for dim, lengths in enumerate(zip(shape, shape_of_two, strict=False)) if lengths[0] != lengths[1]]
    if len(shape) != len(shape_of_two) or len(changed) != 1 or shape_of_two[changed[0]] != 2 * shape[changed[0]]:
        return f"its output has shape {shape} for one image and {shape_of_two} for two"
    (dim,) = changed
    shared = shape[dim]
    return [ImageAxis(dim, outer, shared // outer) for outer in range(1, shared + 1) if shared % outer == 0]


def find_axes(
    network: nn.Module, images: Tensor, input_format: InputFormat, possible: Mapping[OutputName, Sequence[ImageAxis]]
) -> dict[OutputName, ImageAxis]:
    """Of several possible axes of an output, the one along which two images of noise lie as the first of them does alone.

    `images`, of shape (1, channel, y, x), says how large they are. Outputs in which no axis does are left out.
    """
    noise = _noise(images)
    alone: dict[OutputName, Tensor] = {}
    axes: dict[OutputName, ImageAxis] = {}

    def keep(name: OutputName, tensor: Tensor) -> None:
        if name in possible:
            alone[name] = tensor.clone()

    def compare(name: OutputName, tensor: Tensor) -> None:
        if name in alone:
            differences = [_difference(axis, tensor, alone[name]) for axis in possible[name]]
            lowest = min(differences)
            if lowest <= SAME_IMAGE:
                axes[name] = possible[name][differences.index(lowest)]

    for look, count in ((keep, 1), (compare, 2)):
        with _looking_at_tensors(network, look), ParameterGuard(network):
            network(input_format.convert(noise[:count]))
    return axes


def _difference(axis: ImageAxis, of_two: Tensor, alone: Tensor) -> float:
    """How far the first of two images is from the same image alone, if they lay along that axis, as a share of the highest value."""
    if of_two.shape[axis.dim] != 2 * axis.outer * axis.inner or alone.shape[axis.dim] != axis.outer * axis.inner:
        return inf  # the shape depends on the images
    first, expected = axis.with_images_first(of_two)[:1], axis.with_images_first(alone)
    if first.shape != expected.shape:
        return inf
    first, expected = first.float().nan_to_num(0, 0, 0), expected.float().nan_to_num(0, 0, 0)
    return float((first - expected).abs().amax() / expected.abs().amax().clamp(min=1e-30))
