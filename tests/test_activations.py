"""What activations are, what they are called, and which of them are ranked by what goes in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import unitscope
from unitscope.layers import TracedLayer, choose_layers, trace


def only_layer(network: nn.Module) -> TracedLayer:
    """The one layer of a network that is scanned by default."""
    (layer,) = choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))
    return layer


class Functional(nn.Module):
    """Every activation as a function, in place and not, and one clamp that is no rectifier."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("relu", "relu_", "relu6", "gelu", "silu", "leaky_relu", "clamp", "minus"):
            self.add_module(name, nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.relu(x))
        x = self.relu_(x).relu_()
        x = F.relu6(self.relu6(x))
        x = F.gelu(self.gelu(x))
        x = F.silu(self.silu(x))
        x = F.leaky_relu(self.leaky_relu(x), 0.1)
        x = self.clamp(x).clamp(min=0)
        return self.minus(x).clamp(min=-1)


def test_the_activation_column_says_what_follows() -> None:
    layers = choose_layers(trace(Functional(), torch.zeros(1, 3, 4, 4)))
    assert {layer.name: layer.layer.activation for layer in layers} == {
        "relu": "relu", "relu_": "relu", "relu6": "relu6", "gelu": "gelu", "silu": "silu", "leaky_relu": "leaky_relu",
        "clamp": "relu", "minus": "none",
    }  # fmt: skip


class Swish(nn.Module):
    """A user's own activation module."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps * torch.sigmoid(1.7 * maps)


def test_a_users_own_activation_module_is_one() -> None:
    layer = only_layer(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), Swish()))
    assert (layer.name, layer.layer.activation, layer.reads_input) == ("2", "swish", True)


@given(st.lists(st.tuples(st.floats(-60, 60), st.floats(-60, 60)), min_size=3, max_size=3))
def test_a_norm_that_keeps_its_numbers_as_buffers_is_no_activation_whatever_they_are(numbers: list[tuple[float, float]]) -> None:
    norm = FrozenBatchNorm2d(3)
    norm.weight.copy_(torch.tensor([scale for scale, _ in numbers]))
    norm.bias.copy_(torch.tensor([shift for _, shift in numbers]))
    layers = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU()), torch.zeros(1, 3, 4, 4)))
    assert [layer.name for layer in layers] == ["2"]


@pytest.mark.parametrize("function", [torch.square, torch.exp, lambda maps: maps**3, lambda maps: maps.abs() * 1e4, torch.sinh])
def test_what_bends_is_an_activation_however_large_its_values_are(function: Callable[[Tensor], Tensor]) -> None:
    layers = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 3, 1), Pointwise(function)), torch.zeros(1, 3, 4, 4)))
    assert [layer.name for layer in layers] == ["1"]


class Sum(nn.Module):
    """A rectifier of a sum: what goes into the activation is neither of its inputs."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.relu(left + right)


class Summed(nn.Module):
    """A network with such a rectifier, behind a container that is rectified as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.sum, self.block = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), Sum(), Block()

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.block(self.sum(self.left(images), self.right(images))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(2, 2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.inside(maps)


def test_an_activation_of_several_inputs_is_a_layer_like_others() -> None:
    network, images = Summed().eval(), torch.randn(2, 3, 4, 4)
    traced = trace(network, images[:1])
    layers = {layer.name: layer for layer in traced.layers}
    assert [layer.name for layer in choose_layers(traced)] == ["left", "right", "block.inside", "block"]
    assert not layers["sum"].reads_input
    assert (layers["block"].layer.activation, layers["block.inside"].layer.activation) == ("relu", "none")


@pytest.mark.parametrize(
    ("module", "activation", "rectified"),
    [
        (nn.Threshold(0, 0), "relu", True), (nn.Threshold(0.1, 0), "rectifier", True), (nn.Threshold(-1, -1), "threshold", False), (nn.Hardtanh(0, 20), "relu20", True),
        (nn.Hardtanh(), "hardtanh", False), (nn.SELU(), "selu", False), (nn.LogSigmoid(), "logsigmoid", False),
        (nn.Softsign(), "softsign", False), (nn.PReLU(), "prelu", False), (nn.Mish(), "mish", False), (nn.RReLU(), "rrelu", False),
    ],
)  # fmt: skip
def test_activation_modules_are_named_for_what_they_do(module: nn.Module, activation: str, rectified: bool) -> None:
    layer = only_layer(nn.Sequential(nn.Conv2d(3, 2, 1), module))
    assert (layer.name, layer.layer.activation, layer.layer.rectified) == ("1", activation, rectified)


class ReLUShifted(nn.Module):
    """Has the name of a rectifier, and is none."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + 1)


class Pointwise(nn.Module):
    """An activation of the user's."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps)


def prelu(*slopes: float) -> nn.PReLU:
    module = nn.PReLU(len(slopes))
    module.weight.data = torch.tensor(slopes)
    return module


INCREASING = {
    "relu": (Pointwise(lambda x: x.clamp(min=0)), "relu"),
    "relu by a product": (Pointwise(lambda x: x * (x > 0)), "relu"),
    "relu by a choice": (Pointwise(lambda x: torch.where(x > 0, x, torch.zeros_like(x))), "relu"),
    "relu that saturates": (Pointwise(lambda x: x.clamp(0, 4.5)), "relu4.5"),
    "squared relu": (Pointwise(lambda x: x.clamp(min=0) ** 2), "rectifier"),
    "relu above one": (Pointwise(lambda x: F.relu(x - 1)), "rectifier"),
    "shifted": (ReLUShifted(), "relushifted"),
    "gelu written out": (Pointwise(lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))), "pointwise"),
    "silu": (Pointwise(lambda x: x * torch.sigmoid(x)), "pointwise"),
    "softplus": (Pointwise(lambda x: torch.log1p(torch.exp(x.clamp(max=50)))), "pointwise"),
    "cube": (Pointwise(lambda x: x**3), "pointwise"),
    "exp": (Pointwise(torch.exp), "pointwise"),
    "leaky by channel": (prelu(0.1, 0.0), "prelu"),
    "elu": (nn.ELU(), "elu"),
}
FALLING = {
    "abs": Pointwise(torch.abs),
    "square": Pointwise(lambda x: x**2),
    "bell": Pointwise(lambda x: torch.exp(-(x**2))),
    "one less sigmoid": Pointwise(lambda x: 1 - torch.sigmoid(x)),
    "relu of the negative": Pointwise(lambda x: F.relu(-x)),
    "hardtanh of the negative": Pointwise(lambda x: F.hardtanh(-x)),
    "a slope that falls": nn.LeakyReLU(-0.5),
    "one slope of two that falls": prelu(0.2, -0.2),
    "an elu that falls": nn.ELU(-1.0),
    "a threshold that lifts": nn.Threshold(1, 20),
    "a dip that starts above zero": Pointwise(lambda x: F.silu(x) + 0.2),
    "tanhshrink of the negative": Pointwise(lambda x: F.tanhshrink(-x)),
}


@pytest.mark.parametrize("name", INCREASING)
def test_an_increasing_function_is_ranked_by_what_goes_in_whatever_it_is_called(name: str) -> None:
    module, activation = INCREASING[name]
    layer = only_layer(nn.Sequential(nn.Conv2d(3, 2, 1), module))
    assert (layer.name, layer.reads_input, layer.layer.activation) == ("1", True, activation)
    outputs = module(torch.linspace(-9, 0, 50).reshape(25, 2, 1, 1))
    assert layer.layer.rectified == bool((outputs == 0).all())


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("linear", [False, True])
def test_a_function_that_falls_is_ranked_by_what_comes_out(name: str, linear: bool, tmp_path: Path) -> None:
    """Of each unit the highest outputs are found; where the function is silent there is no peak."""
    torch.manual_seed(0)
    module, images = FALLING[name], 2 * torch.randn(60, 3, 4, 4)
    network = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)) if linear else nn.Conv2d(3, 2, 1), module)
    layer = only_layer(network)
    assert (layer.name, layer.reads_input) == ("1", False)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", workers=0)
    with torch.no_grad():
        highest = network(images).flatten(2).amax(2) if not linear else network(images)
    for unit in range(2):
        values = [value for value in highest[:, unit].tolist() if value > 0 or not layer.layer.rectified]
        assert atlas.peaks("1", unit)["value"].to_pylist() == pytest.approx(sorted(values, reverse=True)[:9], rel=1e-5)
    assert layer.layer.rectified == (name == "relu of the negative")


class AddReLU(nn.ReLU):
    """Adds a second input first."""

    def forward(self, maps: Tensor, skip: Tensor | None = None) -> Tensor:
        return F.relu(maps if skip is None else maps + skip)


class GateReLU(nn.ReLU):
    """Its gate is made elsewhere, from the image."""

    gate: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps) * self.gate


class PooledReLU(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps - maps.mean((2, 3), keepdim=True))


class Skipping(nn.Module):
    """Calls its activation with a second input, or with a gate that it hangs on it."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.convolution, self.act = nn.Conv2d(3, 3, 1), act

    def forward(self, images: Tensor) -> Tensor:
        self.act.gate = images.mean((2, 3), keepdim=True)
        return self.act(self.convolution(images), images) if isinstance(self.act, AddReLU) else self.act(self.convolution(images))


@pytest.mark.parametrize("act", [AddReLU(), GateReLU(), PooledReLU()])
def test_a_class_derived_from_an_activation_that_does_more_is_ranked_by_what_comes_out(act: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = Skipping(act).eval(), torch.randn(30, 3, 5, 5)
    layers = {layer.name: layer for layer in trace(network, images[:1]).layers}
    assert not layers["act"].reads_input
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["act"], workers=0)
    with torch.no_grad():
        highest = network(images).amax((2, 3))
    for unit in range(3):
        expected = sorted(highest[:, unit].tolist(), reverse=True)[:9]
        assert atlas.peaks("act", unit)["value"].to_pylist() == pytest.approx(expected, rel=1e-5)


class DerivedReLU(nn.ReLU):
    pass


class DerivedReLUInPlace(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.relu_(maps)


class DerivedPReLU(nn.PReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.prelu(maps, self.weight)


class DerivedGELU(nn.GELU):
    pass


@pytest.mark.parametrize(
    ("act", "activation"), [(DerivedReLU(), "relu"), (DerivedReLUInPlace(), "relu"), (DerivedPReLU(), "prelu"), (DerivedGELU(), "gelu"), (AddReLU(), "relu")]
)  # fmt: skip
def test_a_class_derived_from_an_activation_that_does_no_more_is_ranked_by_what_goes_in(act: nn.Module, activation: str) -> None:
    layer = only_layer(nn.Sequential(nn.Conv2d(3, 2, 1), act))
    assert (layer.name, layer.reads_input, layer.layer.activation) == ("1", True, activation)


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (F.relu, "relu"), (F.relu6, "relu6"), (lambda x: F.leaky_relu(x, -1), "none"), (lambda x: F.elu(x, -2), "none"),
        (lambda x: F.threshold(x, 1, 20), "none"), (lambda x: F.threshold(x, 0, 0), "relu"), (torch.abs, "none"),
        (lambda x: F.prelu(x, torch.tensor([-1.0, 0.5])), "none"), (lambda x: F.prelu(x, torch.tensor([0.1, 0.5])), "prelu"),
        (lambda x: x.clamp(min=0, max=3), "relu3"), (lambda x: x.clamp(min=-1), "none"), (F.gelu, "gelu"),
    ],
)  # fmt: skip
def test_a_function_that_is_called_is_probed_too(function: Callable[[Tensor], Tensor], activation: str) -> None:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return function(self.convolution(images))

    layer = only_layer(Calling())
    assert (layer.name, layer.layer.activation) == ("convolution", activation)


def test_an_activation_of_weights_is_no_layer() -> None:
    network = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 1)))
    torch.nn.utils.parametrize.register_parametrization(network[0], "bias", nn.Softplus())
    assert only_layer(network).name == "0"
