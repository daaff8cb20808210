"""What to say of a network that doesn't run on a batch of images: where it stopped, on what, and what to do."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import first_line
from unitscope.networks.precision import exact_inference

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def failure_of(network: nn.Module, images: Tensor, error: Exception) -> str:
    """A sentence or two. The network runs once more to find the module that failed, so a copy should be given."""
    name, module, shape = _failing(network, images)
    place = f"{name!r}, a {type(module).__name__}, fails on {shape}: " if name else ""
    said = (
        f"the network doesn't run on an input of shape {tuple(images.shape)}: {place}{type(error).__name__}: {first_line(error)}"
    )
    return f"{said.rstrip('.')}. {_advice(network, images, module, shape)}"


def _failing(network: nn.Module, images: Tensor) -> tuple[str, nn.Module, tuple[int, ...]]:
    """Path of the innermost module that doesn't come to its end, the module, and the shape of what it gets."""
    running: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", network, tuple(images.shape))]
    names = {module: name for name, module in network.named_modules()}

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes = [tuple(one.shape) for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        running.append((names[module], module, shapes[0] if shapes else ()))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = []
    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles += [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]
    try:
        with torch.no_grad(), exact_inference(network, images.device):
            network(images)
    except Exception:
        return running[-1]
    finally:
        for handle in handles:
            handle.remove()
    return running[0]


def _advice(network: nn.Module, images: Tensor, module: nn.Module, shape: tuple[int, ...]) -> str:
    inputs = _inputs(network)
    if len(inputs) > 1:
        return (
            f"It takes several inputs, {', '.join(inputs)}: give a module around it that takes images alone and adds the others."
        )
    if type(module).__name__.endswith("3d"):
        return "It is made for videos or volumes: give a module around it that makes one of an image, as images[:, :, None] does."
    wanted = module.in_channels if isinstance(module, CONVOLUTIONS) else None
    if wanted is not None and len(shape) == 4 and shape[1] != wanted:
        if wanted in shape[2:]:
            return "If it takes its channels last, give a module around it that permutes images, (image, channel, y, x), to that order."
        if shape == tuple(images.shape):
            return f"It expects images of {wanted} channels, not {shape[1]}: as many means and deviations, or --channels, say so."
    return "Check the size and the channels that it expects."


def _inputs(network: nn.Module) -> list[str]:
    """Names of the arguments that a network's `forward` can't do without; none where that isn't known."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind in positional]
