"""Tracing of layers: one observed forward pass tells everything about a network's layers before a scan."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.call_log import CallLog, Fold, Readout
from unitscope.layers.data_flow import DataFlowMode, ModuleCall
from unitscope.layers.failures import describe_failure
from unitscope.layers.image_axis import ImageAxis, OutputName, find_axes, shapes_of_two_images
from unitscope.layers.layouts import CellWindow, Layout
from unitscope.layers.parameter_guard import ParameterGuard
from unitscope.networks import InputFormat, first_float_tensor
from unitscope.networks.class_variables import restore_class_variables
from unitscope.networks.isolation import has_hooks, isolated_copy, needs_hooks
from unitscope.networks.precision import exact_inference, fork_random_states
from unitscope.receptive_fields import Array, DependencyMode, ReceptiveFields, tensors_in
from unitscope.records import Layer

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TracedLayer:
    """A layer with what it takes to read it: the `nth_call` of the module at `module_path`, and the receptive fields of its cells.

    `reads_input` is True for calls of activation modules, whose value is what goes in (rule 1 of docs/exactness.md). `layout` makes
    activation maps of it. `is_default` says that it is scanned where nobody names layers. For want of a rule for the
    `unknown_operators` that it is made with, receptive fields behind those are everything that went in.
    """

    layer: Layer
    module_path: str
    nth_call: int
    reads_input: bool
    is_default: bool
    receptive_fields: ReceptiveFields
    layout: Layout
    unknown_operators: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.layer.name

    def with_inner_cells(self, height: int, width: int) -> "TracedLayer | None":
        """The layer with those cells alone whose receptive fields lie on an input of that size, whatever the unit; None without any."""
        window = self.receptive_fields.cells_inside(height, width) if self.layout.is_spatial else None
        if window is None:
            return None
        top, left, bottom, right = window
        return replace(
            self,
            layer=replace(self.layer, map_height=bottom - top, map_width=right - left),
            receptive_fields=self.receptive_fields.of_cells(top, left, bottom, right),
            layout=replace(self.layout, inner=CellWindow(top, left, bottom, right)),
        )


@dataclass(frozen=True, slots=True)
class UnreadableLayer:
    """A layer that can't be scanned, and why. `is_default` says that it would be scanned by default if it could."""

    name: str
    reason: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """The layers of a network in call order, those that can't be scanned, and the format in which the network takes its input,
    whose `input_shape` is (channel, y, x).

    `needs_hooks` says that the network computes something else without the hooks that its user hung on it.
    """

    layers: list[TracedLayer]
    unreadable: list[UnreadableLayer]
    input_format: InputFormat
    input_shape: tuple[int, int, int]
    folds: tuple[Fold, ...]
    needs_hooks: bool


def trace(network: nn.Module, images: Tensor) -> Trace:
    """Run a copy of the network once, in eval mode, on `images` of shape (1, channel, y, x), and list its layers.

    Raises `NetworkError` where the network doesn't run on such an input, or would change its parameters.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise NetworkError(
            "the network is a TorchScript program, whose layers can't be read while it runs; give the nn.Module that it was made from"
        )
    with fork_random_states(images.device), restore_class_variables(network):
        return _trace_in_any_format(network, images)


def _trace_in_any_format(network: nn.Module, images: Tensor) -> Trace:
    """The trace for images in channels last, the fastest memory format, or in contiguous memory where the network can't take that."""
    parameter = first_float_tensor(network)
    input_format = InputFormat(images.device, torch.float32 if parameter is None else parameter.dtype, torch.channels_last)
    with_hooks = has_hooks(network) and needs_hooks(network, partial(_module_outputs, images=input_format.convert(images)))
    try:
        return _trace(isolated_copy(network, with_hooks), images, input_format, with_hooks)
    except NetworkError:
        raise
    except Exception:
        # `x.view(n, -1)` on a map needs contiguous memory; where that isn't the trouble, the second try says what is.
        LOG.debug("the network doesn't run in channels last", exc_info=True)
        input_format = replace(input_format, memory_format=torch.contiguous_format)
    try:
        return _trace(isolated_copy(network, with_hooks), images, input_format, with_hooks)
    except NetworkError:
        raise
    except Exception as error:
        message = describe_failure(isolated_copy(network, with_hooks), input_format.convert(images), error)
        raise NetworkError(message) from error


def _module_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """All that the modules of a network give for images of noise like these, in order."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.extend(tensor.clone() for tensor in tensors_in([output]))

    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(keep)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(images)
    with torch.no_grad(), exact_inference(network, images.device), ParameterGuard(network):
        torch.manual_seed(0)
        network(noise)
    return outputs


def _trace(network: nn.Module, images: Tensor, input_format: InputFormat, with_hooks: bool) -> Trace:
    """The trace of a copy of the network; `with_hooks` says whether it was copied with its hooks."""
    dependencies = DependencyMode()
    flow = DataFlowMode(dependencies)
    with torch.no_grad(), exact_inference(network, input_format.device), without_fused_transformers():
        images = input_format.convert(images)
        shapes_of_two = shapes_of_two_images(network, images, input_format)
        with dependencies, flow.following(network), ParameterGuard(network):
            dependencies.start(images)
            network(images)
        log = CallLog(flow, images, shapes_of_two)
        shared_axes = log.shared_axes()
        known_axes = find_axes(network, images, input_format, shared_axes) if shared_axes else {}
        layers, unreadable = _layers(log, images, known_axes)
        folds = log.folds()
    channels, height, width = images.shape[1:]
    return Trace(layers, unreadable, input_format, (channels, height, width), folds, with_hooks)


@contextmanager
def without_fused_transformers() -> Iterator[None]:
    """Transformers run part by part for as long as the block lasts, as they do with hooks, and not by torch's fast path."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _layers(
    log: CallLog, images: Tensor, known_axes: Mapping[OutputName, ImageAxis]
) -> tuple[list[TracedLayer], list[UnreadableLayer]]:
    """The layers that can be scanned, in call order, and those that can't be."""
    layers: list[TracedLayer] = []
    unreadable: list[UnreadableLayer] = []
    for call in log.layer_calls():
        readout = log.readout_or_reason(call, known_axes)
        if isinstance(readout, str):
            unreadable.append(UnreadableLayer(call.layer_name, readout, log.is_default(call) and call.depends_on_images))
        else:
            layers.append(_traced_layer(call, log, readout, images, len(layers)))
    names = {traced.name for traced in layers}
    return [_with_known_units(traced, names) for traced in layers], unreadable


def _with_known_units(traced: TracedLayer, names: set[str]) -> TracedLayer:
    """The layer, which shares the units of another one only where that one can be scanned."""
    is_known = traced.layer.shares_units_of is None or traced.layer.shares_units_of in names
    return traced if is_known else replace(traced, layer=replace(traced.layer, shares_units_of=None))


def _traced_layer(call: ModuleCall, log: CallLog, readout: Readout, images: Tensor, order: int) -> TracedLayer:
    _, unit_count, map_height, map_width = readout.map_bounds.shape
    receptive_fields = ReceptiveFields.from_bounds(readout.map_bounds, *images.shape[-2:])
    layer = Layer(
        call.layer_name,
        type(call.module).__name__,
        unit_count,
        map_height,
        map_width,
        *receptive_fields.middle_size(),
        _stride(receptive_fields.centres_y),
        _stride(receptive_fields.centres_x),
        log.activation_name(call),
        order,
        shares_units_of=log.shares_units_of(call),
    )
    reads_input, is_default = log.reads_input(call), log.is_default(call)
    return TracedLayer(
        layer,
        call.path,
        call.nth_call,
        reads_input,
        is_default,
        receptive_fields,
        readout.layout,
        readout.unknown_operators,
    )


def _stride(centres: Array) -> int:
    """The distance of neighbouring cells in the middle of the map, rounded; 0 where there is one cell."""
    middle = len(centres) // 2
    return round(float(centres[middle] - centres[middle - 1])) if len(centres) > 1 else 0
