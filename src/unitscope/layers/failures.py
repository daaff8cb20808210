"""What to say of a network that doesn't run on a batch of images: where it stopped, on what, and what to do."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import first_line
from unitscope.layers.data_flow import first_tensor_argument
from unitscope.networks.precision import exact_inference

LOG = logging.getLogger(__name__)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class RunningModule:
    """A module while it runs: its path (empty for the network itself), and the shape of the first tensor that it got."""

    path: str
    module: nn.Module
    input_shape: tuple[int, ...]


def describe_failure(network: nn.Module, images: Tensor, error: Exception) -> str:
    """Why the network doesn't run, and what to do. It runs once more to find the module that failed, so give a copy."""
    failing = _failing_module(network, images)
    shape = tuple(images.shape)
    module_text = f"{failing.path!r}, a {type(failing.module).__name__}, fails on {failing.input_shape}: " if failing.path else ""
    error_text = f"{module_text}{type(error).__name__}: {first_line(error)}".rstrip(".")
    return f"the network doesn't run on an input of shape {shape}: {error_text}. {_advice(network, shape, failing)}"


def _failing_module(network: nn.Module, images: Tensor) -> RunningModule:
    """The innermost module that doesn't come to its end."""
    running = [RunningModule("", network, tuple(images.shape))]
    paths = {module: path for path, module in network.named_modules()}

    def start(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = first_tensor_argument(args, kwargs)
        running.append(RunningModule(paths[module], module, () if tensor is None else tuple(tensor.shape)))

    def finish(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = []
    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles += [module.register_forward_pre_hook(start, with_kwargs=True), module.register_forward_hook(finish)]
    try:
        with torch.no_grad(), exact_inference(network, images.device):
            network(images)
    except Exception:
        LOG.debug("the network fails in %r", running[-1].path, exc_info=True)
        return running[-1]
    finally:
        for handle in handles:
            handle.remove()
    return running[0]


def _advice(network: nn.Module, shape: tuple[int, ...], failing: RunningModule) -> str:
    """What to do, for a network that got images of that shape."""
    inputs = _required_inputs(network)
    if len(inputs) > 1:
        return (
            f"It takes several inputs, {', '.join(inputs)}: give a module around it that takes images alone and adds the others."
        )
    if type(failing.module).__name__.endswith("3d"):
        return "It is made for videos or volumes: give a module around it that makes one of an image, as images[:, :, None] does."
    channels = failing.module.in_channels if isinstance(failing.module, CONVOLUTIONS) else None
    if channels is not None and len(failing.input_shape) == 4 and failing.input_shape[1] != channels:
        if channels in failing.input_shape[2:]:
            return "If it takes its channels last, give a module around it that permutes images, (image, channel, y, x), to that order."
        if failing.input_shape == shape:
            return (
                f"It expects images of {channels} channels, not {shape[1]}: as many means and deviations, or --channels, say so."
            )
    return "Check the size and the channels that it expects."


def _required_inputs(network: nn.Module) -> list[str]:
    """Names of the arguments that a network's `forward` can't do without; none where that isn't known."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in positional]
