"""Listing, choosing and reading layers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import unitscope
from unitscope.errors import LayerNotFound, LayoutError, NetworkError
from unitscope.layers import Trace, choose_layers, tapped, trace
from unitscope.networks import load_network
from unitscope.records import Box


def traced(model: str, size: int = 224) -> Trace:
    return trace(load_network(model, "none").module, torch.zeros(1, 3, size, size))


def default_names(trace: Trace) -> list[str]:
    return [layer.name for layer in choose_layers(trace)]


def test_alexnet_gives_the_layers_of_the_contract() -> None:
    names = "features.1 features.4 features.7 features.9 features.11 classifier.2 classifier.5 classifier.6"
    assert " ".join(default_names(traced("torchvision:alexnet"))) == names


def test_a_residual_block_gives_both_calls_of_its_rectifier_and_the_branch_before_the_sum() -> None:
    names = default_names(traced("torchvision:resnet18"))
    assert names[:4] == ["relu", "layer1.0.relu", "layer1.0.bn2", "layer1.0.relu#2"]
    assert names[names.index("layer2.0.relu") :][:4] == [
        "layer2.0.relu",
        "layer2.0.bn2",
        "layer2.0.downsample.1",
        "layer2.0.relu#2",
    ]
    assert names[-1] == "fc"
    assert len(names) == 1 + 8 * 3 + 3 + 1


def test_activations_called_as_functions_keep_the_name_of_the_module_before() -> None:
    found = {layer.name: layer for layer in choose_layers(traced("torchvision:googlenet"))}
    assert list(found)[:3] == ["conv1.bn", "conv2.bn", "conv3.bn"]
    assert found["conv1.bn"].layer.activation == "relu"
    assert found["fc"].layer.activation == "none"
    assert len(found) == 3 + 9 * 6 + 1


@pytest.mark.slow
def test_efficientnet_lite_reuses_its_rectifiers() -> None:
    names = default_names(traced("demo:efficientnet-lite0"))
    assert names[:5] == ["_swish", "_blocks.0._swish", "_blocks.0._bn2", "_blocks.1._swish", "_blocks.1._swish#2"]
    assert names[-2:] == ["_swish#2", "_fc"]
    assert len(names) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layer", "kind", "units", "map_size", "field", "stride", "activation"),
    [
        ("torchvision:alexnet", "features.4", "ReLU", 192, 27, 51, 8, "relu"),
        ("torchvision:mobilenet_v2", "features.0.2", "ReLU6", 32, 112, 3, 2, "relu6"),
        ("torchvision:mobilenet_v3_small", "features.0.2", "Hardswish", 16, 112, 3, 2, "hardswish"),
        ("torchvision:efficientnet_b0", "features.0.2", "SiLU", 32, 112, 3, 2, "silu"),
        ("torchvision:densenet121", "features.denseblock1.denselayer1.conv2", "Conv2d", 32, 56, 19, 4, "none"),
    ],
)
def test_a_layer_is_described(
    model: str, layer: str, kind: str, units: int, map_size: int, field: int, stride: int, activation: str
) -> None:
    found = next(one.layer for one in traced(model).layers if one.name == layer)
    assert (found.kind, found.units, found.activation) == (kind, units, activation)
    assert (found.map_height, found.map_width) == (map_size, map_size)
    assert (found.receptive_field_height, found.receptive_field_width) == (field, field)
    assert (found.stride_y, found.stride_x) == (stride, stride)


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
    found = {layer.name: layer.layer.activation for layer in choose_layers(trace(Functional(), torch.zeros(1, 3, 4, 4)))}
    assert found == {
        "relu": "relu", "relu_": "relu", "relu6": "relu6", "gelu": "gelu", "silu": "silu", "leaky_relu": "leaky_relu",
        "clamp": "relu", "minus": "none",
    }  # fmt: skip


class Own(nn.Module):
    """A user's own activation module."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps * torch.sigmoid(1.7 * maps)


def test_a_users_own_activation_module_is_one() -> None:
    found = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), Own()), torch.zeros(1, 3, 4, 4)))
    assert [(layer.name, layer.layer.activation, layer.reads_input) for layer in found] == [("2", "own", True)]


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
    found = {layer.name: layer for layer in trace(network, images[:1]).layers}
    assert [layer.name for layer in choose_layers(trace(network, images[:1]))] == ["left", "right", "block.inside", "block"]
    assert not found["sum"].reads_input
    assert (found["block"].layer.activation, found["block.inside"].layer.activation) == ("relu", "none")


@pytest.mark.parametrize(
    ("module", "activation", "rectified"),
    [
        (nn.Threshold(0, 0), "relu", True), (nn.Threshold(0.1, 0), "rectifier", True), (nn.Threshold(-1, -1), "threshold", False), (nn.Hardtanh(0, 20), "relu20", True),
        (nn.Hardtanh(), "hardtanh", False), (nn.SELU(), "selu", False), (nn.LogSigmoid(), "logsigmoid", False),
        (nn.Softsign(), "softsign", False), (nn.PReLU(), "prelu", False), (nn.Mish(), "mish", False), (nn.RReLU(), "rrelu", False),
    ],
)  # fmt: skip
def test_activation_modules_are_named_for_what_they_do(module: nn.Module, activation: str, rectified: bool) -> None:
    found = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 2, 1), module), torch.zeros(1, 3, 4, 4)))
    assert [(one.name, one.layer.activation, one.layer.rectified) for one in found] == [("1", activation, rectified)]


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
    (found,) = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 2, 1), module), torch.zeros(1, 3, 4, 4)))
    assert (found.name, found.reads_input, found.layer.activation) == ("1", True, activation)
    outputs = module(torch.linspace(-9, 0, 50).reshape(25, 2, 1, 1))
    assert found.layer.rectified == bool((outputs == 0).all())


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("linear", [False, True])
def test_a_function_that_falls_is_ranked_by_what_comes_out(name: str, linear: bool, tmp_path: Path) -> None:
    """Of each unit the highest outputs are found; where the function is silent there is no peak."""
    torch.manual_seed(0)
    module, images = FALLING[name], 2 * torch.randn(60, 3, 4, 4)
    before = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)) if linear else nn.Conv2d(3, 2, 1)
    network = nn.Sequential(before, module)
    (found,) = choose_layers(trace(network, images[:1]))
    assert (found.name, found.reads_input) == ("1", False)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", workers=0)
    with torch.no_grad():
        highest = network(images).flatten(2).amax(2) if not linear else network(images)
    for unit in range(2):
        expected = sorted((value for value in highest[:, unit].tolist() if value > 0 or not found.layer.rectified), reverse=True)[
            :9
        ]
        assert atlas.peaks("1", unit)["value"].to_pylist() == pytest.approx(expected, rel=1e-5)
    assert found.layer.rectified == (name == "relu of the negative")


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
    found = {layer.name: layer for layer in trace(network, images[:1]).layers}
    assert not found["act"].reads_input
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["act"], workers=0)
    with torch.no_grad():
        highest = network(images).amax((2, 3))
    for unit in range(3):
        expected = sorted(highest[:, unit].tolist(), reverse=True)[:9]
        assert atlas.peaks("act", unit)["value"].to_pylist() == pytest.approx(expected, rel=1e-5)


class Renamed(nn.ReLU):
    pass


class RenamedInPlace(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.relu_(maps)


class RenamedPReLU(nn.PReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.prelu(maps, self.weight)


class RenamedGELU(nn.GELU):
    pass


@pytest.mark.parametrize(
    ("act", "activation"), [(Renamed(), "relu"), (RenamedInPlace(), "relu"), (RenamedPReLU(), "prelu"), (RenamedGELU(), "gelu"), (AddReLU(), "relu")]
)  # fmt: skip
def test_a_class_derived_from_an_activation_that_does_no_more_is_ranked_by_what_goes_in(act: nn.Module, activation: str) -> None:
    (found,) = choose_layers(trace(nn.Sequential(nn.Conv2d(3, 2, 1), act), torch.zeros(1, 3, 4, 4)))
    assert (found.name, found.reads_input, found.layer.activation) == ("1", True, activation)


@pytest.mark.parametrize(
    ("called", "activation"),
    [
        (F.relu, "relu"), (F.relu6, "relu6"), (lambda x: F.leaky_relu(x, -1), "none"), (lambda x: F.elu(x, -2), "none"),
        (lambda x: F.threshold(x, 1, 20), "none"), (lambda x: F.threshold(x, 0, 0), "relu"), (torch.abs, "none"),
        (lambda x: F.prelu(x, torch.tensor([-1.0, 0.5])), "none"), (lambda x: F.prelu(x, torch.tensor([0.1, 0.5])), "prelu"),
        (lambda x: x.clamp(min=0, max=3), "relu3"), (lambda x: x.clamp(min=-1), "none"), (F.gelu, "gelu"),
    ],
)  # fmt: skip
def test_a_function_that_is_called_is_probed_too(called: Callable[[Tensor], Tensor], activation: str) -> None:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return called(self.convolution(images))

    (found,) = choose_layers(trace(Calling(), torch.zeros(1, 3, 4, 4)))
    assert (found.name, found.layer.activation) == ("convolution", activation)


def test_a_users_own_convolution_is_one() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(2, 3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return F.conv2d(images, self.kernel)

    network = nn.Sequential(Convolution(), nn.BatchNorm2d(2))
    assert [layer.name for layer in choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))] == ["1"]


def test_an_activation_of_weights_is_no_layer() -> None:
    network = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 1)))
    torch.nn.utils.parametrize.register_parametrization(network[0], "bias", nn.Softplus())
    assert [layer.name for layer in choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))] == ["0"]


class Grouped(nn.Module):
    """Splits the units by a `view` that works in the plain layout only, and on one image in any."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.view(len(maps) * 2, -1, *maps.shape[2:]).relu().view_as(maps)


def test_a_layout_that_works_for_one_image_only_is_not_used() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Grouped())
    images = torch.randn(6, 3, 5, 5)
    found = trace(network, images[:1])
    assert found.input_format.memory_format is torch.contiguous_format
    seen: list[Tensor] = []
    with torch.no_grad(), tapped(network, choose_layers(found, ["1"]), lambda _, maps: seen.append(maps.clone())) as tap:
        tap.run(found.input_format.convert(images))
    torch.testing.assert_close(seen[0], network[0](images).detach())  # what goes into its rectifier


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_part_of_a_network_is_run_and_not_listed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.trace(nn.Conv2d(4, 2, 3).eval(), torch.zeros(1, 4, 5, 5)), nn.ReLU())
    layers = {layer.name: layer.layer for layer in trace(network, torch.zeros(1, 3, 5, 5)).layers}
    assert list(layers) == ["0", "2"]
    assert layers["2"].receptive_field_height == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_gets_images_of_its_own(dtype: torch.dtype) -> None:
    found = trace(small_network().to(dtype), torch.zeros(1, 3, 14, 14))
    assert found.input_format.dtype == dtype
    assert len(choose_layers(found)) == 3


def test_maps_that_depend_on_what_the_images_show_are_refused() -> None:
    class Cutting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.convolution(images[..., 1:] if float(images.sum()) else images)

    network = Cutting()
    layers = trace(network, torch.zeros(1, 3, 4, 4)).layers
    with (
        torch.no_grad(),
        tapped(network, layers, lambda *_: None) as tap,
        pytest.raises(NetworkError, match="depend on the images"),
    ):
        tap.run(torch.ones(3, 3, 4, 4))


class OneByOne(nn.Module):
    """A convolution that is called for every image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(3, 2, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.cat([self.convolution(image[None]) for image in images]))


class TokensFirst(nn.Module):
    """A linear layer on (token, image, unit)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.first(images).flatten(2).permute(2, 0, 1)).mean(0)


class WindowsFirst(nn.Module):
    """A linear layer on (image and window, token, unit)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.first(images).unflatten(2, (2, 2)).permute(0, 2, 3, 4, 1).reshape(-1, 8, 4)).mean((1, 2))


class Averages(nn.Module):
    """A linear layer on the mean of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mean = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.mean(maps.mean((0, 2, 3))[None])


@pytest.mark.parametrize(
    ("network", "layer", "reason"),
    [
        (OneByOne(), "convolution", r"has shape \(1, 2, 8, 8\) for one image and for two, so it has no dimension of images"),
        (TokensFirst(), "tokens", r"of shape \(16, 1, 5\) holds images along dimension 1"),
        (WindowsFirst(), "tokens", r"has shape \(2, 8, 5\) for one image: images and something else share the first dimension"),
        (Averages(), "mean", r"has shape \(1, 5\) for one image and for two"),
    ],
)
def test_where_images_are_is_said_where_they_are_elsewhere(network: nn.Module, layer: str, reason: str) -> None:
    found = trace(network, torch.zeros(1, 3, 8, 8))
    with pytest.raises(LayoutError, match=f"{layer!r}.*{reason}"):
        choose_layers(found, [layer])
    with pytest.warns(UserWarning, match=f"{layer!r}.* is left out, since it can't be scanned.*{reason}"):
        assert layer not in [one.name for one in choose_layers(found)]


def test_patterns_that_match_layers_of_another_layout_say_what_they_leave_out() -> None:
    found = trace(Sequences(), torch.zeros(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="'tokens' of 'the network' is left out, since it can't be scanned"):
        assert [layer.name for layer in choose_layers(found, ["*"])] == ["first"]


def test_patterns_are_globs_and_keep_call_order() -> None:
    found = trace(small_network(), torch.zeros(1, 3, 14, 14))
    assert [layer.name for layer in choose_layers(found, ["6", "[14]"])] == ["1", "4", "6"]
    assert [layer.name for layer in choose_layers(found, ["*"])] == ["0", "1", "2", "3", "4", "5", "6"]


def test_a_name_with_brackets_is_itself() -> None:
    network = nn.Sequential()
    network.add_module("a[0]", nn.Conv2d(3, 2, 1))
    assert [layer.name for layer in choose_layers(trace(network, torch.zeros(1, 3, 4, 4)), ["a[0]"])] == ["a[0]"]


def test_a_near_miss_gets_suggestions() -> None:
    with pytest.raises(LayerNotFound) as caught:
        choose_layers(traced("torchvision:alexnet"), ["feature.4"], "torchvision:alexnet")
    assert "'torchvision:alexnet' has no layer 'feature.4'." in str(caught.value)
    assert "'features.4'" in str(caught.value)
    assert "List all 21 with: unitscope layers torchvision:alexnet" in str(caught.value)


class Tokens(nn.Module):
    """A layer of tokens, (image, token, unit), behind one of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.first(images).flatten(2).transpose(1, 2))


class Sequences(nn.Module):
    """Tokens whose places can't be told: every second one is missing, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.first(images).flatten(2).transpose(1, 2)[:, 1::2][:, 1:])


def test_tokens_without_a_grid_are_left_out_by_name() -> None:
    found = trace(Sequences(), torch.zeros(1, 3, 8, 8))
    reason = r"the 7 tokens of its output of shape \(1, 7, 5\) don't stand on a grid"
    with pytest.warns(UserWarning, match=f"layer 'tokens' of 'net' is left out, since it can't be scanned: {reason}"):
        assert [layer.name for layer in choose_layers(found, model="net")] == ["first"]
    with pytest.raises(LayoutError, match=f"'tokens'.*{reason}.*--layers"):
        choose_layers(found, ["tokens"])
    assert [layer.name for layer in choose_layers(found, ["first"])] == ["first"]


class Turned(nn.Module):
    """Maps whose rows and columns have changed places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).transpose(2, 3))


def test_maps_that_are_turned_are_turned_back() -> None:
    network, images = Turned(), torch.randn(2, 3, 8, 6)
    (found,) = choose_layers(trace(network, images[:1]), ["last"])
    with torch.no_grad():
        expected = network.last(network.first(images))
    torch.testing.assert_close(read_everything(network, images, ["last"])["last"], expected)
    assert found.receptive_fields.box(0, 3, 1) == Box(6, 2, 8, 4)


class ChannelsLast(nn.Module):
    """Maps laid out (image, y, x, unit)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.last(self.first(images).permute(0, 2, 3, 1)))


class ClassToken(nn.Module):
    """Tokens of (image, token, unit) with a class token before them, or one at each end."""

    def __init__(self, behind: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)
        self.token, self.act, self.behind = nn.Parameter(torch.full((1, 1, 4), 99.0)), nn.GELU(), behind

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(images).flatten(2).transpose(1, 2)
        more = [self.token.expand(len(images), -1, -1)]
        return self.act(self.last(torch.cat([*more, tokens, *(more if self.behind else [])], 1)))


@pytest.mark.parametrize("network", [ChannelsLast(), Tokens(), ClassToken(), ClassToken(behind=True)])
def test_units_are_last_and_places_are_found_again(network: nn.Module) -> None:
    """Maps and fields are those of the same network with its linear layer as a convolution of one pixel."""
    images = torch.randn(2, 3, 8, 6)
    found = choose_layers(trace(network, images[:1]))
    names = [layer.name for layer in found]
    last = network.last if hasattr(network, "last") else network.tokens
    with torch.no_grad():
        expected = torch.einsum("nchw,uc->nuhw", network.first(images), last.weight) + last.bias[:, None, None]
    seen = read_everything(network, images, names)
    for layer in found[1:]:
        torch.testing.assert_close(seen[layer.name], expected)
        assert (layer.layer.units, layer.layer.map_height, layer.layer.map_width) == (5, 4, 3)
        assert (layer.layer.receptive_field_height, layer.layer.stride_y) == (2, 2)
        assert layer.receptive_fields.box(3, 1, 2) == Box(2, 4, 4, 6)


def last_linear(units: int, **how: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2), Then(lambda maps: maps.permute(0, 2, 3, 1)), nn.Linear(4, units), Then(**how)
    )


class Then(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, given: Tensor) -> Tensor:
        return self.function(given)


def windows(maps: Tensor) -> Tensor:
    """(image, y, x, unit) as (image, window, token, unit), in windows of two by two."""
    n, height, width, units = maps.shape
    return maps.reshape(n, height // 2, 2, width // 2, 2, units).transpose(2, 3).reshape(n, -1, 4, units)


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, int]]] = {
    "units last, one cell": (lambda maps: maps.mean((1, 2), keepdim=True), (24, 1, 1)),
    "units last, one cell, as tokens": (lambda maps: maps.mean((1, 2))[:, None], (24, 1, 1)),
    "units first, one cell": (lambda maps: maps.mean((1, 2))[..., None, None], (24, 1, 1)),
    "units last": (lambda maps: maps.contiguous(), (24, 4, 4)),
    "units first": (lambda maps: maps.permute(0, 3, 1, 2), (24, 4, 4)),
    "units between": (lambda maps: maps.permute(0, 1, 3, 2), (24, 4, 4)),
    "rows of means": (lambda maps: maps.mean(2, keepdim=True), (24, 4, 1)),
    "columns of means, as tokens": (lambda maps: maps.mean(1), (24, 1, 4)),
    "windows": (windows, (24, 4, 4)),
    "windows, units first": (lambda maps: windows(maps).permute(0, 3, 1, 2), (24, 4, 4)),
    "windows of units in two parts, joined": (lambda maps: windows(maps).unflatten(3, (2, 12)).flatten(3), (24, 4, 4)),
    "tokens, units first": (lambda maps: maps.flatten(1, 2).transpose(1, 2), (24, 4, 4)),
    "pixels shuffled": (lambda maps: torch.pixel_shuffle(maps.permute(0, 3, 1, 2), 2), (6, 8, 8)),
    "places shuffled into units": (lambda maps: torch.pixel_unshuffle(maps.permute(0, 3, 1, 2), 2), (96, 2, 2)),
    "the highest of groups of units": (lambda maps: maps.unflatten(3, (6, 4)).amax(4), (6, 4, 4)),
    "weighed by a gate of other units": (lambda maps: maps * maps.mean((1, 2), keepdim=True).flip(3), (24, 4, 4)),
    "enlarged": (lambda maps: F.interpolate(maps.permute(0, 3, 1, 2), scale_factor=2).flatten(2).mT, (24, 8, 8)),
    "convolved, as tokens": (
        lambda maps: F.conv2d(maps.permute(0, 3, 1, 2), maps.new_ones(5, 24, 3, 3), padding=1).flatten(2).mT,
        (5, 4, 4),
    ),
    "spread, as tokens": (
        lambda maps: F.conv_transpose2d(maps.permute(0, 3, 1, 2), maps.new_ones(24, 5, 2, 2), stride=2).flatten(2).mT,
        (5, 8, 8),
    ),
    "attended": (lambda maps: (maps.flatten(1, 2) @ maps.flatten(1, 2).mT).softmax(-1) @ maps.flatten(1, 2), (24, 4, 4)),
    "attended, fused": (lambda maps: F.scaled_dot_product_attention(*[maps.flatten(1, 2)[:, None]] * 3)[:, 0], (24, 4, 4)),
    "added to what was attended from elsewhere": (
        lambda maps: maps + maps.flatten(1, 2)[:, :1, None].expand(-1, 4, 4, -1),
        (24, 4, 4),
    ),
    "added to itself, moved": (lambda maps: maps + maps.roll(1, 2), (24, 4, 4)),
    "one unit": (lambda maps: maps[..., :1].permute(0, 3, 1, 2), (1, 4, 4)),
    "one unit of tokens": (lambda maps: maps[..., :1].flatten(1, 2), (1, 4, 4)),
    "one unit that all make": (lambda maps: maps.mean(3)[:, None], (1, 4, 4)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_units_are_followed_from_what_made_them(name: str) -> None:
    function, shape = SHAPES[name]
    network = last_linear(24, function=function)
    (found,) = choose_layers(trace(network, torch.zeros(1, 3, 8, 8)), ["3"])
    assert (found.layer.units, found.layer.map_height, found.layer.map_width) == shape
    images = torch.randn(2, 3, 8, 8)
    maps, (units, height, width) = read_everything(network, images, ["3"])["3"], shape
    with torch.no_grad():
        given = network[:3](images)
        moved_only = torch.equal(function(given).flatten().sort().values, given.flatten().sort().values)
    if moved_only and (units, height, width) == (24, 4, 4):
        torch.testing.assert_close(maps, given.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda maps: windows(maps).mean(2).unflatten(2, (4, 6)), "units run along several axes"),
        (lambda maps: maps.flatten(1, 2) @ maps.flatten(1, 2).mT, "holds units can't be told"),
        (lambda maps: maps.mean((1, 2)).unflatten(1, (1, 4, 6)), "units run along several axes"),
        (lambda maps: maps.flatten(1, 2).softmax(1).mT @ maps.flatten(1, 2), "units run along several axes"),
        (lambda maps: maps.flatten(1, 2).mT @ maps.new_ones(16, 9), r"the 9 tokens .* don't stand on a grid"),
        (lambda maps: maps.mean(3).flatten(1), "holds units can't be told"),
        (lambda maps: maps[:, None], "neither one of maps"),
        (lambda maps: maps.topk(3).values.mean((1, 2)), "holds units can't be told"),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_told_is_left_out(function: Callable[[Tensor], Tensor], reason: str) -> None:
    found = trace(last_linear(24, function=function), torch.zeros(1, 3, 8, 8))
    with pytest.raises(LayoutError, match=f"layer '3' .*{reason}"):
        choose_layers(found, ["3"])


def test_a_convolution_says_anew_where_units_and_rows_are() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 48), Then(lambda given: given.unflatten(1, (3, 4, 4))), nn.ConvTranspose2d(3, 5, 2, stride=2)
    )
    found = trace(network, torch.zeros(1, 3, 8, 8))
    (last,) = choose_layers(found, ["3"])
    assert (last.layer.units, last.layer.map_height, last.layer.map_width) == (5, 8, 8)
    assert last.receptive_fields.box(0, 0, 0) == Box(0, 0, 8, 8)
    with pytest.raises(LayoutError, match="units run along several axes"):
        choose_layers(found, ["2"])


def test_in_inference_mode_layers_are_the_same() -> None:
    class Inference(nn.Sequential):
        @torch.inference_mode()
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    parts = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.GELU()]
    plain, entered = (trace(kind(*parts), torch.zeros(1, 3, 8, 8)) for kind in (nn.Sequential, Inference))
    assert [one.layer for one in entered.layers] == [one.layer for one in plain.layers]
    assert entered.folds == plain.folds
    assert [one.layer.receptive_field_height for one in entered.layers] == [3, 3, 3, 5, 5]


def test_parts_of_torchs_own_transformer_are_layers() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        @torch.inference_mode()
        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(self.patches(images).flatten(2).mT)

    before = torch.backends.mha.get_fastpath_enabled()
    network, images = Transformer().eval(), torch.randn(2, 3, 8, 8)
    found = trace(network, images[:1])
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not found.unknown_operators
    hidden = next(one.layer for one in found.layers if one.name == "encoder.layers.1.linear1")
    assert (hidden.units, hidden.map_height, hidden.map_width, hidden.receptive_field_height) == (16, 2, 2, 8)
    maps = read_everything(network, images, ["encoder.layers.1.linear1"])["encoder.layers.1.linear1"]
    assert maps.shape == (2, 16, 2, 2)


def test_a_network_that_cannot_run_on_such_images_says_so() -> None:
    with pytest.raises(NetworkError, match=r"doesn't run on an input of shape \(1, 1, 14, 14\).*channels"):
        trace(small_network(), torch.zeros(1, 1, 14, 14))


def read_everything(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What taps see, copied."""
    layers = choose_layers(trace(network, images[:1]), names)
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), tapped(network, layers, lambda number, maps: seen.update({layers[number].name: maps.clone()})) as tap:
        tap.run(images)
    return seen


def test_taps_see_what_goes_into_every_call_of_a_reused_rectifier() -> None:
    network, images = Reused().eval(), torch.randn(2, 3, 6, 6)
    seen = read_everything(network, images, ["relu", "relu#2", "last"])
    with torch.no_grad():
        first = network.norm(network.first(images))
        second = network.second(first.relu()) + first.relu()
        last = network.last(second.relu())
    for name, maps in (("relu", first), ("relu#2", second), ("last", last)):
        torch.testing.assert_close(seen[name], maps)


def test_the_pass_stops_after_the_last_layer_wanted() -> None:
    class Trap(nn.Module):
        armed = False

        def forward(self, maps: Tensor) -> Tensor:
            assert not self.armed
            return maps

    network, images = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), Trap()), torch.randn(2, 3, 4, 4)
    layers = choose_layers(trace(network, images[:1]), ["1"])
    network[2].armed = True
    seen: list[Tensor] = []
    with torch.no_grad(), tapped(network, layers, lambda _, maps: seen.append(maps.clone())) as tap:
        tap.run(images)
    torch.testing.assert_close(seen[0], network[0](images).detach())


def test_a_layer_that_images_may_not_reach_is_named() -> None:
    class Wayward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.sometimes = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.always(images)
            return self.sometimes(maps) if float(images.sum()) == 0 else maps

    network = Wayward()
    layers = choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))
    with (
        pytest.raises(NetworkError, match="never came to 'sometimes'"),
        torch.no_grad(),
        tapped(network, layers, lambda *_: None) as tap,
    ):
        tap.run(torch.ones(1, 3, 4, 4))


def test_no_hook_stays_behind() -> None:
    network = small_network()
    read_everything(network, torch.zeros(1, 3, 14, 14), ["*"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class ClassToken(nn.Module):
    """What is made of the class token alone, before it attends to the others, holds nothing of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        query, key = self.query(tokens[:, :1]), self.key(tokens)
        return self.act((query @ key.transpose(1, 2)).softmax(-1) @ tokens)


def test_a_layer_that_holds_nothing_of_the_image_is_no_layer_to_scan(tmp_path: Path) -> None:
    traced = trace(ClassToken().eval(), torch.zeros(1, 3, 16, 16))
    assert [refusal.reason for refusal in traced.unreadable if refusal.name == "query"] == ["it doesn't depend on the images"]
    atlas = unitscope.scan(ClassToken(), TensorDataset(torch.rand(12, 3, 16, 16)), tmp_path / "atlas")
    assert [layer.name for layer in atlas.layers] == ["patches", "key", "act"]
    assert atlas.manifest["left_out"] == []


def test_a_layer_whose_middle_cell_sees_nothing_has_the_field_of_the_others(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=4), nn.ConvTranspose2d(4, 4, 1, stride=2), nn.ReLU())
    atlas = unitscope.scan(network, TensorDataset(torch.rand(12, 3, 16, 16)), tmp_path / "atlas")
    assert {layer.name: layer.receptive_field_height for layer in atlas.layers} == {"0": 3, "2": 3}
