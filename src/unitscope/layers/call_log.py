"""Which calls of a pass are layers, what is read of each, and which of them are scanned by default."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unitscope.layers.activation_calls import ActivationCalls
from unitscope.layers.data_flow import DataFlowMode, LoggedOperator, LoggedTensor, ModuleCall
from unitscope.layers.image_axis import ImageAxis, OutputName, ShapesOfTwo, possible_axes
from unitscope.layers.layouts import Layout, layout_of
from unitscope.receptive_fields import DependencyBounds

NORM_OPERATORS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm",
    "native_layer_norm", "native_group_norm",
}  # fmt: skip
WEIGHTED_OPERATORS = {"convolution", "_convolution", "addmm", "mm", "bmm", "baddbmm", "torchvision::deform_conv2d"}
WEIGHTED_MODULES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Bilinear
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fold:
    """A convolution and the batch norm that alone reads what it makes, by the paths of their modules."""

    convolution: str
    norm: str


@dataclass(frozen=True, slots=True)
class Readout:
    """How a call is read: its layout, the dependency bounds of the activation maps that the layout makes, and which operators without a
    rule these were made with."""

    layout: Layout
    map_bounds: DependencyBounds
    unknown_operators: frozenset[str]


class CallLog:
    """What the data flow of a pass on `images` says about its module calls."""

    def __init__(self, flow: DataFlowMode, images: Tensor, shapes_of_two: ShapesOfTwo) -> None:
        self._calls = flow.calls
        self._operators = flow.operators
        self._shapes_of_two = shapes_of_two
        self._activations = ActivationCalls(images, flow.constants())

    def layer_calls(self) -> Iterator[ModuleCall]:
        """Calls of leaf modules, and of containers whose output isn't the output of one of their children."""
        values: set[int] = set()
        for call in self._calls:
            value = None if call.output is None else call.output.value
            if call.is_leaf or (value is not None and value not in values):
                yield call
            if value is not None:
                values.add(value)

    def shares_units_of(self, call: ModuleCall) -> str | None:
        """The layer whose units those of a call are, seen through activations and normalisations alone; None where they are its own."""
        maker = self._maker_of_units(call)
        return None if maker is call else maker.layer_name

    def _maker_of_units(self, call: ModuleCall) -> ModuleCall:
        if not call.is_leaf or call.input is None or call.output is None or call.input.shape != call.output.shape:
            return call
        keeps_value = call.input.value == call.output.value
        maker = self._makers.get(call.input.value)
        if maker is None or not (keeps_value or _is_norm(call) or self._activations.is_activation(call)):
            return call
        return self._maker_of_units(maker)

    def folds(self) -> tuple[Fold, ...]:
        """Convolutions that could take a batch norm into their weights: both run once, and nothing else reads what lies between."""
        call_counts = Counter(call.path for call in self._calls)
        folds = []
        for call in self._calls:
            if isinstance(call.module, nn.Conv2d) and call.output is not None and call_counts[call.path] == 1:
                norm = self._only_reader(call.output.value)
                if norm and isinstance(norm.module, _BatchNorm) and call_counts[norm.path] == 1:
                    folds.append(Fold(call.path, norm.path))
        return tuple(folds)

    def _only_reader(self, value: int) -> ModuleCall | None:
        """The leaf call whose input alone is that value, where no operator elsewhere reads it."""
        numbers = {operator.call_number for operator in self._readers_of(value)}
        number = numbers.pop() if len(numbers) == 1 else None
        call = None if number is None else self._calls_by_number[number]
        return call if call is not None and call.input is not None and call.input.value == value else None

    def shared_axes(self) -> dict[OutputName, list[ImageAxis]]:
        """Outputs in which images share a dimension with something else, each with the axes along which they may lie."""
        axes = {self._output_name(call): self._possible_axes(call) for call in self.layer_calls()}
        return {name: possible for name, possible in axes.items() if not isinstance(possible, str) and len(possible) > 1}

    def readout_or_reason(self, call: ModuleCall, known_axes: Mapping[OutputName, ImageAxis]) -> Readout | str:
        """How the call is read, or why it can't be scanned. `known_axes` are those of outputs in which images share a dimension."""
        tensor, axes = self.ranked(call), self._possible_axes(call)
        if isinstance(axes, str):
            return axes
        assert tensor is not None and tensor.bounds is not None  # noqa: S101, PT018 - else there is no axis
        axis = axes[0] if len(axes) == 1 else known_axes.get(self._output_name(call))
        if axis is None:
            return f"its output has shape {tensor.shape} for one image, and which of it is of one image alone can't be told"
        layout = layout_of(tensor.bounds, axis)
        return Readout(layout, tensor.bounds.map(layout.maps), tensor.unknown_operators)

    def _possible_axes(self, call: ModuleCall) -> list[ImageAxis] | str:
        """The axes along which images may lie in what is read of the call, or why it can't be read."""
        tensor = self.ranked(call)
        if tensor is None:
            return f"its output is a {call.output_type}, not a tensor"
        if tensor.bounds is None or not tensor.depends_on_images:
            return "it doesn't depend on the images"
        if tensor.selected_by:
            return f"it runs on what {tensor.selected_by!r} selected in the image, as once a proposal: how much that is, the image decides"
        return possible_axes(tensor.shape, self._shapes_of_two.get(self._output_name(call)))

    def _output_name(self, call: ModuleCall) -> OutputName:
        return call.layer_name, self.reads_input(call)

    def ranked(self, call: ModuleCall) -> LoggedTensor | None:
        """What is read of the call: what goes in, or what comes out."""
        return call.input if self.reads_input(call) else call.output

    def reads_input(self, call: ModuleCall) -> bool:
        """True for activations that increase: what goes in ranks as what comes out, and doesn't saturate (rule 1 of docs/exactness.md)."""
        return self._activations.is_activation(call) and self._activations.of_module(call).increases

    def activation_name(self, call: ModuleCall) -> str:
        """What is applied to the ranked value: one activation and nothing else, or `none`."""
        if self._activations.is_activation(call) and (activation := self._activations.of_module(call)).name != "none":
            return activation.name
        names = {self._activations.name_of_operator(operator) for operator in self._readers_of_output(call)}
        return names.pop() if len(names) == 1 else "none"

    def is_default(self, call: ModuleCall) -> bool:
        """True for activations, ends of chains that no activation module ends, and modules before a called activation."""
        if self._activations.is_activation(call) or call.number in self._chain_ends:
            return True
        keeps_value = call.output is not None and call.input is not None and call.output.value == call.input.value
        if call.output is None or keeps_value or self.activation_name(call) == "none":
            return False
        return not any(self._runs_in_activation(operator) for operator in self._readers_of_output(call))

    def _runs_in_activation(self, operator: LoggedOperator) -> bool:
        return operator.call_number is not None and self._activations.is_activation(self._calls_by_number[operator.call_number])

    @cached_property
    def _chain_ends(self) -> set[int]:
        """The numbers of the calls that end a chain of convolution → normalisation."""
        return {end.number for call in self._calls if (end := self._chain_end(call)) is not None}

    def _chain_end(self, call: ModuleCall) -> ModuleCall | None:
        """The last call of convolution → normalisation; None where an activation module ends the chain."""
        if not _is_weighted(call):
            return None
        end, value = call, None if call.output is None else call.output.value
        while value is not None:
            readers = self._leaf_calls_reading.get(value, [])
            if any(self._activations.is_activation(reader) for reader in readers):
                return None
            norm = next((reader for reader in readers if _is_norm(reader)), None)
            function = next((o for o in self._readers_of(value) if o.name in NORM_OPERATORS and o.call_number is None), None)
            end = norm or end
            if norm is not None:
                value = None if norm.output is None else norm.output.value
            else:
                value = None if function is None else function.output
        return end

    @cached_property
    def _calls_by_number(self) -> dict[int, ModuleCall]:
        return {call.number: call for call in self._calls}

    @cached_property
    def _makers(self) -> dict[int, ModuleCall]:
        """By value, the layer call that made it."""
        makers: dict[int, ModuleCall] = {}
        for call in self.layer_calls():
            if call.output is not None and (call.input is None or call.input.value != call.output.value):
                makers.setdefault(call.output.value, call)
        return makers

    @cached_property
    def _leaf_calls_reading(self) -> dict[int, list[ModuleCall]]:
        """The leaf calls that get a value and make another one of it, by the value."""
        calls: dict[int, list[ModuleCall]] = {}
        for call in self._calls:
            if call.is_leaf and call.input is not None and (call.output is None or call.output.value != call.input.value):
                calls.setdefault(call.input.value, []).append(call)
        return calls

    @cached_property
    def _operators_reading(self) -> dict[int, list[LoggedOperator]]:
        operators: dict[int, list[LoggedOperator]] = {}
        for operator in self._operators:
            for value in operator.inputs:
                operators.setdefault(value, []).append(operator)
        return operators

    def _readers_of(self, value: int) -> list[LoggedOperator]:
        return self._operators_reading.get(value, [])

    def _readers_of_output(self, call: ModuleCall) -> list[LoggedOperator]:
        return [] if call.output is None else self._readers_of(call.output.value)


def _is_weighted(call: ModuleCall) -> bool:
    """True for convolutions and linear layers, a user's own too."""
    has_own_weights = call.is_leaf and next(call.module.parameters(), None) is not None
    uses_weights = any(operator.name in WEIGHTED_OPERATORS for operator in call.operators)
    return isinstance(call.module, WEIGHTED_MODULES) or (has_own_weights and uses_weights)


def _is_norm(call: ModuleCall) -> bool:
    return any(operator.name in NORM_OPERATORS for operator in call.operators) or "norm" in type(call.module).__name__.lower()
