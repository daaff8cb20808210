"""Which dimension of an output holds images, found by running two of them."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.data_flow import first_tensor_argument, name_of_call
from unitscope.layers.parameter_guard import ParameterGuard
from unitscope.networks import InputFormat

LOG = logging.getLogger(__name__)

ShapesOfTwo = dict[tuple[str, bool], tuple[int, ...]]
"""The shape of what goes into a layer (True) and of what comes out (False) for two images, by the layer's name."""


def shapes_of_two_images(network: nn.Module, images: Tensor, input_format: InputFormat) -> ShapesOfTwo:
    """The shapes of everything for two images, which tell where images are; nothing where the network takes only one.

    In channels last an error is raised: one image hides a `view` that fails.
    """
    shapes: ShapesOfTwo = {}
    try:
        with _noting_shapes(network, shapes), ParameterGuard(network):
            network(images.expand(2, -1, -1, -1).contiguous(memory_format=input_format.memory_format))
    except Exception as error:
        if input_format.memory_format is torch.channels_last or isinstance(error, NetworkError):
            raise
        LOG.debug("the network doesn't run on two images", exc_info=True)
        shapes.clear()
    return shapes


@contextmanager
def _noting_shapes(network: nn.Module, shapes: ShapesOfTwo) -> Iterator[None]:
    """Note the shapes of what every module below the network gets and gives for as long as the block lasts."""
    call_counts: Counter[str] = Counter()
    handles = []
    for path, module in network.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):

            def note_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                call_counts[path] += 1
                tensor = first_tensor_argument(args, kwargs)
                if tensor is not None:
                    shapes[name_of_call(path, call_counts[path]), True] = tuple(tensor.shape)

            def note_output(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor):
                    shapes[name_of_call(path, call_counts[path]), False] = tuple(output.shape)

            handles += [module.register_forward_pre_hook(note_input, with_kwargs=True), module.register_forward_hook(note_output)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def why_images_are_elsewhere(shape: tuple[int, ...], shape_of_two: tuple[int, ...] | None) -> str:
    """Why the first dimension of an output doesn't hold images alone; empty where it does."""
    if shape[:1] == (1,) and shape_of_two in (None, (2, *shape[1:])):
        return ""
    if shape_of_two is None:
        return f"its output has shape {shape} for one image, so the first dimension isn't one of images alone"
    if shape_of_two == shape:
        return f"its output has shape {shape} for one image and for two, so it has no dimension of images"
    changed = [dim for dim, lengths in enumerate(zip(shape, shape_of_two, strict=False)) if lengths[0] != lengths[1]]
    if len(shape) != len(shape_of_two) or len(changed) != 1 or shape_of_two[changed[0]] != 2 * shape[changed[0]]:
        return f"its output has shape {shape} for one image and {shape_of_two} for two"
    if shape[changed[0]] == 1:
        return f"its output of shape {shape} holds images along dimension {changed[0]}, where they should be along the first"
    dimension = f"dimension {changed[0]}" if changed[0] else "the first dimension"
    return f"its output has shape {shape} for one image: images and something else share {dimension}"
