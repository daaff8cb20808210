"""One watched forward pass that tells everything about a network's layers before a scan."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.errors import NetworkError
from unitscope.layers.activations import Activation, bends, probed
from unitscope.layers.failures import failure_of
from unitscope.layers.flow import Call, FlowMode, Operator, call_name
from unitscope.layers.layouts import Layout, layout_of
from unitscope.networks import InputFormat, first_float_tensor
from unitscope.networks.class_variables import restore_class_variables
from unitscope.networks.isolation import has_hooks, isolated_copy, needs_hooks
from unitscope.networks.precision import exact_inference, fork_random_states
from unitscope.receptive_fields import (
    Array,
    DependencyBounds,
    DependencyMode,
    ReceptiveFields,
    decompose,
    depends_on_images,
    is_composite,
    is_foreach,
    named_arguments,
    no_dependencies,
    tensors_in,
    written_arguments,
)
from unitscope.records import Layer

ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.RReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
    nn.LeakyReLU, nn.PReLU, nn.LogSigmoid, nn.Softplus, nn.Softshrink, nn.Hardshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold,
    nn.Hardsigmoid,
)  # fmt: skip
ACTIVATION_OPERATORS = {
    "relu", "sigmoid", "tanh", "silu", "mish", "hardswish", "elu", "celu", "selu", "gelu", "leaky_relu", "_prelu_kernel", "softplus",
    "hardsigmoid", "threshold", "log_sigmoid_forward", "softshrink", "hardshrink", "rrelu_with_noise",
}  # fmt: skip
RENAMED = {"_prelu_kernel": "prelu", "log_sigmoid_forward": "logsigmoid", "rrelu_with_noise": "rrelu"}
CLAMPS = {"hardtanh", "clamp", "clamp_min"}
ACTIVATION_NAMES = {RENAMED.get(name, name) for name in ACTIVATION_OPERATORS | {"hardtanh"}}
NORMALISING = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm",
    "native_layer_norm", "native_group_norm",
}  # fmt: skip
WEIGHING = {"convolution", "_convolution", "addmm", "mm", "bmm", "baddbmm", "torchvision::deform_conv2d"}
WEIGHTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Bilinear
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TracedLayer:
    """A layer with what it takes to read it: the `count`-th call of `module`, and the fields of its cells.

    `reads_input` is True for calls of activation modules, whose value is what goes in (rule 1). `layout` makes maps of it.
    """

    layer: Layer
    module: str
    count: int
    reads_input: bool
    default: bool
    receptive_fields: ReceptiveFields
    layout: Layout

    @property
    def name(self) -> str:
        return self.layer.name


@dataclass(frozen=True, slots=True)
class UnreadableLayer:
    """A layer that can't be scanned, and why. `default` says that it would be scanned if it could."""

    name: str
    reason: str
    default: bool


@dataclass(frozen=True, slots=True)
class Fold:
    """A convolution and the batch norm that alone reads what it makes, by the paths of their modules."""

    convolution: str
    norm: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The layers of a network in call order, those that can't be scanned, and the format in which the network takes its input,
    whose `input_shape` is (channel, y, x).

    `unknown_operators` are those whose fields were taken to be the whole input for want of a rule. `needs_hooks` says that the network
    computes something else without the hooks that its user hung on it.
    """

    layers: list[TracedLayer]
    unreadable: list[UnreadableLayer]
    input_format: InputFormat
    input_shape: tuple[int, int, int]
    unknown_operators: frozenset[str]
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
        return _tried(network, images)


def _tried(network: nn.Module, images: Tensor) -> Trace:
    """The trace of an input that lies in memory as images do best or, where the network can't take that, plainly."""
    first = first_float_tensor(network)
    input_format = InputFormat(images.device, torch.float32 if first is None else first.dtype, torch.channels_last)
    hooks = has_hooks(network) and needs_hooks(network, partial(_outputs, images=input_format.convert(images)))
    try:
        return _traced(isolated_copy(network, hooks), images, input_format, hooks)
    except NetworkError:
        raise
    except Exception:
        # `x.view(n, -1)` on a map needs the plain layout; where that isn't the trouble, the second try says what is.
        input_format = replace(input_format, memory_format=torch.contiguous_format)
    try:
        return _traced(isolated_copy(network, hooks), images, input_format, hooks)
    except NetworkError:
        raise
    except Exception as error:
        raise NetworkError(failure_of(isolated_copy(network, hooks), input_format.convert(images), error)) from error


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """All that the modules of a network give for images of noise like these, in order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.extend(one.clone() for one in tensors_in([output]))

    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(keep)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(images)
    with torch.no_grad(), exact_inference(network, images.device), _WeightsKept(network):
        torch.manual_seed(0)
        network(noise)
    return found


class _WeightsKept(TorchDispatchMode):
    """Refuses what would write into the parameters, which a copy shares with the network that was given.

    It takes operators apart that are made of others, or go through lists, so that modes below it see their parts; of what these do it
    sees nothing.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {p.untyped_storage()._cdata: name for name, p in network.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if is_composite(func) or is_foreach(func):
            with self:
                return decompose(func, args, kwargs or {})
        given = named_arguments(func, args, kwargs or {})
        for tensor in tensors_in(given[argument] for argument in written_arguments(func, given)):
            name = self._names.get(tensor.untyped_storage()._cdata)
            if name is not None:
                raise NetworkError(
                    f"the network writes into its parameter {name!r} while it runs in eval mode, as layers do that set themselves by the "
                    "first images they meet; run it on real images once before it is scanned"
                )
        return func(*args, **(kwargs or {}))


def _traced(network: nn.Module, images: Tensor, input_format: InputFormat, hooks: bool) -> Trace:
    dependencies = DependencyMode()
    flow = FlowMode(dependencies)
    with torch.no_grad(), exact_inference(network, input_format.device), unfused():
        images = input_format.convert(images)
        of_two = _shapes_of_two(network, images, input_format)
        with dependencies, flow.watching(network), _WeightsKept(network):
            dependencies.start(images)
            network(images)
        reading = CallLog(flow, images, of_two)
    layers: list[TracedLayer] = []
    unreadable: list[UnreadableLayer] = []
    for call in reading.layer_calls():
        layout = reading.layout(call)
        if isinstance(layout, str):
            unreadable.append(UnreadableLayer(call.layer_name, layout, reading.default(call) and reading.depends(call)))
        else:
            layers.append(_described(call, reading, layout, len(layers)))
    channels, height, width = images.shape[1:]
    return Trace(
        layers,
        unreadable,
        input_format,
        (channels, height, width),
        frozenset(dependencies.unknown_operators),
        reading.folds(),
        hooks,
    )


@contextmanager
def unfused() -> Iterator[None]:
    """Transformers run part by part for as long as the block lasts, as they do with hooks, and not by torch's fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


Shapes = dict[tuple[str, bool], tuple[int, ...]]
"""The shape of what goes into a layer (True) and of what comes out (False), by the layer's name."""


def _shapes_of_two(network: nn.Module, images: Tensor, input_format: InputFormat) -> Shapes:
    """The shapes of everything for two images, which tell where images are; nothing where the network takes only one.

    In channels last an error is raised: one image hides a `view` that fails.
    """
    shapes: Shapes = {}
    counts: Counter[str] = Counter()
    handles = []
    for name, module in network.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                counts[name] += 1
                given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                if given is not None:
                    shapes[call_name(name, counts[name]), True] = tuple(given.shape)

            def after(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    shapes[call_name(name, counts[name]), False] = tuple(output.shape)

            handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        with _WeightsKept(network):
            network(images.expand(2, -1, -1, -1).contiguous(memory_format=input_format.memory_format))
    except Exception as error:
        if input_format.memory_format is torch.channels_last or isinstance(error, NetworkError):
            raise
        shapes.clear()
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _images_elsewhere(shape: tuple[int, ...], of_two: tuple[int, ...] | None) -> str:
    """Why the first dimension of an output doesn't hold images alone; empty where it does."""
    if shape[:1] == (1,) and of_two in (None, (2, *shape[1:])):
        return ""
    if of_two is None:
        return f"its output has shape {shape} for one image, so the first dimension isn't one of images alone"
    if of_two == shape:
        return f"its output has shape {shape} for one image and for two, so it has no dimension of images"
    changed = [d for d, (one, two) in enumerate(zip(shape, of_two, strict=False)) if one != two]
    if len(shape) != len(of_two) or len(changed) != 1 or of_two[changed[0]] != 2 * shape[changed[0]]:
        return f"its output has shape {shape} for one image and {of_two} for two"
    if shape[changed[0]] == 1:
        return f"its output of shape {shape} holds images along dimension {changed[0]}, where they should be along the first"
    which = f"dimension {changed[0]}" if changed[0] else "the first dimension"
    return f"its output has shape {shape} for one image: images and something else share {which}"


def _described(call: Call, reading: "CallLog", layout: Layout, order: int) -> TracedLayer:
    inward = reading.reads_input(call)
    maps = _read_bounds(call, inward).map(layout.maps)
    _, units, height, width = maps.shape
    fields = ReceptiveFields.from_bounds(maps, *reading.input_size)
    steps = _step(fields.centres_y), _step(fields.centres_x)
    kind = type(call.module).__name__
    layer = Layer(call.layer_name, kind, units, height, width, *fields.middle_size(), *steps, reading.activation(call), order)
    return TracedLayer(layer, call.name, call.count, inward, reading.default(call), fields, layout)


def _read_bounds(call: Call, inward: bool) -> DependencyBounds:
    bounds, shape = _found(call, inward)
    return bounds or no_dependencies(shape)


def _found(call: Call, inward: bool) -> tuple[DependencyBounds | None, tuple[int, ...]]:
    """Bounds and shape of what is read of a call: what goes in, or what comes out."""
    return (call.read_bounds, call.read_shape) if inward else (call.made_bounds, call.made_shape)


def _step(centres: Array) -> int:
    """The distance of neighbouring cells in the middle of the map, rounded; 0 where there is one cell."""
    middle = len(centres) // 2
    return round(float(centres[middle] - centres[middle - 1])) if len(centres) > 1 else 0


class CallLog:
    """What the log of a pass says about its module calls."""

    def __init__(self, flow: FlowMode, images: Tensor, of_two: "Shapes") -> None:
        self.input_size = images.shape[-2], images.shape[-1]
        self._of_two = of_two
        self._images = images
        self._acts: dict[int, bool] = {}
        self._probed: dict[int, Activation] = {}
        self._calls = flow.calls
        self._constants = flow.constants
        self._by_number = {c.number: c for c in flow.calls}
        self._readers: dict[int, list[Call]] = {}
        self._uses: dict[int, list[Operator]] = {}
        for call in flow.calls:
            if call.read is not None and call.leaf:
                self._readers.setdefault(call.read, []).append(call)
        for operator in flow.operators:
            for value in operator.read:
                self._uses.setdefault(value, []).append(operator)
        self._ends = {end.number for call in flow.calls if (end := self._chain_end(call)) is not None}

    def layer_calls(self) -> list[Call]:
        """Calls of leaf modules, and of containers whose output isn't the output of one of their children."""
        made: set[int] = set()
        result = []
        for call in self._calls:
            if call.leaf or (call.made is not None and call.made not in made):
                result.append(call)
            if call.made is not None:
                made.add(call.made)
        return result

    def folds(self) -> tuple[Fold, ...]:
        """Convolutions that could take a batch norm into their weights: both run once, and nothing else reads what lies between."""
        calls = Counter(call.name for call in self._calls)
        result = []
        for call in self._calls:
            if isinstance(call.module, nn.Conv2d) and call.made is not None and calls[call.name] == 1:
                uses = {use.call for use in self._uses.get(call.made, [])}
                norm = self._by_number.get(next(iter(uses)) or -1) if len(uses) == 1 else None
                if norm and isinstance(norm.module, _BatchNorm) and norm.read == call.made and calls[norm.name] == 1:
                    result.append(Fold(call.name, norm.name))
        return tuple(result)

    def activates(self, call: Call) -> bool:
        """True for torch's activation modules and a user's own: leaves without weights that bend each number of their one input.

        A class derived from one of torch's may do anything in its `forward`, so it is tested like a user's own; it may have weights.
        """
        if type(call.module) in ACTIVATION_MODULES:
            return True
        if call.number not in self._acts:
            self._acts[call.number] = self._acts_on_each_number(call)
        return self._acts[call.number]

    def _acts_on_each_number(self, call: Call) -> bool:
        weightless = next(call.module.parameters(), None) is None or isinstance(call.module, ACTIVATION_MODULES)
        if not (call.leaf and weightless and call.operators and call.read_shape == call.made_shape):
            return False
        made = {o.made for o in call.operators}
        given = {value for o in call.operators for value in o.read if value not in made and value not in self._constants}
        return (
            given == {call.read}
            and _same(call.read_bounds, call.made_bounds)
            and bends(call.module, call.read_shape, self._images)
        )

    def layout(self, call: Call) -> Layout | str:
        """How what is read of the call holds units and places, or why it can't be scanned."""
        inward = self.reads_input(call)
        bounds, shape = _found(call, inward)
        if call.made is None and not inward:
            return f"its output is a {call.output_type}, not a tensor"
        if not _sees(bounds):
            return "it doesn't depend on the images"
        return _images_elsewhere(shape, self._of_two.get((call.layer_name, inward))) or layout_of(shape, bounds)

    def depends(self, call: Call) -> bool:
        """True where what the call reads or makes depends on the images."""
        return _sees(call.read_bounds) or _sees(call.made_bounds)

    def reads_input(self, call: Call) -> bool:
        """True for activations that increase: what goes in ranks as what comes out, and doesn't saturate (rule 1)."""
        return self.activates(call) and self._activation_of_module(call).increases

    def activation(self, call: Call) -> str:
        """What is applied to the ranked value: one activation and nothing else, or `none`."""
        if self.activates(call) and (found := self._activation_of_module(call)).name != "none":
            return found.name
        names = {self._activation_of_operator(o) for o in self._uses.get(call.made, [])} if call.made is not None else set()
        return names.pop() if len(names) == 1 else "none"

    def _activation_of_module(self, call: Call) -> Activation:
        """What an activation module does; where that can't be tried, what comes out of it is ranked."""
        if call.number not in self._probed:
            plain = RENAMED.get(call.operators[0].name, call.operators[0].name) if len(call.operators) == 1 else ""
            known = plain in ACTIVATION_NAMES and not isinstance(call.module, nn.SELU)  # which torch runs as an ELU
            named = plain if known else type(call.module).__name__.lower()
            found = probed(call.module, call.read_shape, self._images, named)
            self._probed[call.number] = found or Activation("none", increases=False)
        return self._probed[call.number]

    def _activation_of_operator(self, operator: Operator) -> str:
        """The activation that an operator applies; `none` for others, and for those that don't increase."""
        if operator.name not in ACTIVATION_OPERATORS | CLAMPS:
            return "none"
        if operator.made not in self._probed:
            named = RENAMED.get(operator.name, operator.name)
            found = probed(operator.apply, operator.shape, self._images, "none" if named in CLAMPS - {"hardtanh"} else named)
            self._probed[operator.made] = found or Activation("none", increases=False)
        found = self._probed[operator.made]
        return found.name if found.increases else "none"

    def default(self, call: Call) -> bool:
        """True for activations, ends of chains that no activation module ends, and modules before a called activation."""
        if self.activates(call) or call.number in self._ends:
            return True
        if call.made is None or call.made == call.read or self.activation(call) == "none":
            return False
        return not any(self._inside_activation(use) for use in self._uses[call.made])

    def _inside_activation(self, operator: Operator) -> bool:
        return operator.call is not None and self.activates(self._by_number[operator.call])

    def _chain_end(self, call: Call) -> Call | None:
        """The last call of convolution → normalisation; None where an activation module ends the chain."""
        if not _weighs(call):
            return None
        end, value = call, call.made
        while value is not None:
            readers = [c for c in self._readers.get(value, []) if c.made != c.read]
            if any(self.activates(c) for c in readers):
                return None
            norm = next((c for c in readers if _normalises(c)), None)
            called = next((o for o in self._uses.get(value, []) if o.name in NORMALISING and o.call is None), None)
            end = norm or end
            value = norm.made if norm else called.made if called else None
        return end


def _sees(bounds: DependencyBounds | None) -> TypeGuard[DependencyBounds]:
    """True where anything depends on the images; a class token, before it attends to the others, doesn't."""
    return bounds is not None and depends_on_images(bounds)


def _same(first: DependencyBounds | None, second: DependencyBounds | None) -> bool:
    """True where every number depends on the same pixels."""
    if first is None or second is None:
        return False
    return all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))


def _weighs(call: Call) -> bool:
    """True for convolutions and linear layers, a user's own too."""
    own = call.leaf and next(call.module.parameters(), None) is not None
    return isinstance(call.module, WEIGHTED) or (own and any(o.name in WEIGHING for o in call.operators))


def _normalises(call: Call) -> bool:
    return any(o.name in NORMALISING for o in call.operators) or "norm" in type(call.module).__name__.lower()
