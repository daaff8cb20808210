"""Which calls of a pass are activations, and what the activations that follow a layer do."""

import torch
from torch import Tensor, nn

from unitscope.layers.activations import Activation, is_pointwise_nonlinearity, probe
from unitscope.layers.data_flow import LoggedOperator, ModuleCall
from unitscope.receptive_fields import DependencyBounds

ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.RReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
    nn.LeakyReLU, nn.PReLU, nn.LogSigmoid, nn.Softplus, nn.Softshrink, nn.Hardshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold,
    nn.Hardsigmoid,
)  # fmt: skip
ACTIVATION_OPERATORS = {
    "relu", "sigmoid", "tanh", "silu", "mish", "hardswish", "elu", "celu", "selu", "gelu", "leaky_relu", "_prelu_kernel", "softplus",
    "hardsigmoid", "threshold", "log_sigmoid_forward", "softshrink", "hardshrink", "rrelu_with_noise",
}  # fmt: skip
CLAMP_OPERATORS = {"hardtanh", "clamp", "clamp_min"}
"""Operators that are an activation at some bounds."""
PUBLIC_NAMES = {"_prelu_kernel": "prelu", "log_sigmoid_forward": "logsigmoid", "rrelu_with_noise": "rrelu"}
"""What the operators are called in `torch.nn.functional` that torch runs under another name."""
ACTIVATION_NAMES = {PUBLIC_NAMES.get(name, name) for name in ACTIVATION_OPERATORS | {"hardtanh"}}


class ActivationCalls:
    """Tells activations among the calls and operators of one pass on `images`, and keeps what probing them has shown.

    `constants` are the values of tensors that are made without the images.
    """

    def __init__(self, images: Tensor, constants: set[int]) -> None:
        self._images = images
        self._constants = constants
        self._is_activation: dict[int, bool] = {}
        self._by_call: dict[int, Activation] = {}
        self._by_value: dict[int, Activation] = {}

    def is_activation(self, call: ModuleCall) -> bool:
        """True for torch's activation modules and a user's own: leaves without weights that bend each number of their one input.

        A class derived from one of torch's may do anything in its `forward`, so it is tested like a user's own; it may have weights.
        """
        if type(call.module) in ACTIVATION_MODULES:
            return True
        if call.number not in self._is_activation:
            self._is_activation[call.number] = self._bends_its_input(call)
        return self._is_activation[call.number]

    def _bends_its_input(self, call: ModuleCall) -> bool:
        has_weights = next(call.module.parameters(), None) is not None and not isinstance(call.module, ACTIVATION_MODULES)
        if not call.is_leaf or has_weights or not call.operators or call.input is None or call.output is None:
            return False
        inner_values = {operator.output for operator in call.operators} | self._constants
        read_values = {value for operator in call.operators for value in operator.inputs if value not in inner_values}
        return (
            call.input.shape == call.output.shape
            and read_values == {call.input.value}
            and _equal(call.input.bounds, call.output.bounds)
            and is_pointwise_nonlinearity(call.module, call.input.shape, self._images)
        )

    def of_module(self, call: ModuleCall) -> Activation:
        """What an activation module does; where that can't be tried, what comes out of it is ranked."""
        if call.number not in self._by_call:
            operator = call.operators[0].name if len(call.operators) == 1 else ""
            public = PUBLIC_NAMES.get(operator, operator)
            is_known = public in ACTIVATION_NAMES and not isinstance(call.module, nn.SELU)  # which torch runs as an ELU
            name = public if is_known else type(call.module).__name__.lower()
            shape = () if call.input is None else call.input.shape
            self._by_call[call.number] = probe(call.module, shape, self._images, name) or Activation("none", increases=False)
        return self._by_call[call.number]

    def name_of_operator(self, operator: LoggedOperator) -> str:
        """The activation that an operator applies; `none` for others, and for those that don't increase."""
        if operator.name not in ACTIVATION_OPERATORS | CLAMP_OPERATORS:
            return "none"
        if operator.output not in self._by_value:
            name = PUBLIC_NAMES.get(operator.name, operator.name)
            name = "none" if name in CLAMP_OPERATORS - {"hardtanh"} else name
            activation = probe(operator.apply, operator.shape, self._images, name)
            self._by_value[operator.output] = activation or Activation("none", increases=False)
        activation = self._by_value[operator.output]
        return activation.name if activation.increases else "none"


def _equal(first: DependencyBounds | None, second: DependencyBounds | None) -> bool:
    """True where every number depends on the same pixels."""
    if first is None or second is None:
        return False
    return all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))
