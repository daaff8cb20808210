"""Listing and choosing layers."""

from pathlib import Path

import pytest
import torch
from networks import small_network
from read_maps import read_maps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import unitscope
from unitscope.errors import LayerNotFound, NetworkError
from unitscope.layers import Trace, choose_layers, trace, unknown_operators
from unitscope.networks import load_network


def trace_of(model: str, size: int = 224) -> Trace:
    return trace(load_network(model, "none").module, torch.zeros(1, 3, size, size))


def default_names(trace: Trace) -> list[str]:
    return [layer.name for layer in choose_layers(trace)]


def test_alexnet_gives_the_layers_of_the_contract() -> None:
    names = "features.1 features.4 features.7 features.9 features.11 classifier.2 classifier.5 classifier.6"
    assert " ".join(default_names(trace_of("torchvision:alexnet"))) == names


def test_a_residual_block_gives_both_calls_of_its_rectifier_and_the_branch_before_the_sum() -> None:
    names = default_names(trace_of("torchvision:resnet18"))
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
    layers = {layer.name: layer.layer for layer in choose_layers(trace_of("torchvision:googlenet"))}
    assert list(layers)[:3] == ["conv1.bn", "conv2.bn", "conv3.bn"]
    assert layers["conv1.bn"].activation == "relu"
    assert layers["fc"].activation == "none"
    assert len(layers) == 3 + 9 * 6 + 1


@pytest.mark.slow
def test_efficientnet_lite_reuses_its_rectifiers() -> None:
    names = default_names(trace_of("demo:efficientnet-lite0"))
    assert names[:5] == ["_swish", "_blocks.0._swish", "_blocks.0._bn2", "_blocks.1._swish", "_blocks.1._swish#2"]
    assert names[-2:] == ["_swish#2", "_fc"]
    assert len(names) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "kind", "units", "map_size", "field_size", "stride", "activation"),
    [
        ("torchvision:alexnet", "features.4", "ReLU", 192, 27, 51, 8, "relu"),
        ("torchvision:mobilenet_v2", "features.0.2", "ReLU6", 32, 112, 3, 2, "relu6"),
        ("torchvision:mobilenet_v3_small", "features.0.2", "Hardswish", 16, 112, 3, 2, "hardswish"),
        ("torchvision:efficientnet_b0", "features.0.2", "SiLU", 32, 112, 3, 2, "silu"),
        ("torchvision:densenet121", "features.denseblock1.denselayer1.conv2", "Conv2d", 32, 56, 19, 4, "none"),
    ],
)
def test_a_layer_is_described(
    model: str, name: str, kind: str, units: int, map_size: int, field_size: int, stride: int, activation: str
) -> None:
    (layer,) = (layer.layer for layer in trace_of(model).layers if layer.name == name)
    assert (layer.kind, layer.units, layer.activation) == (kind, units, activation)
    assert (layer.map_height, layer.map_width) == (map_size, map_size)
    assert (layer.receptive_field_height, layer.receptive_field_width) == (field_size, field_size)
    assert (layer.stride_y, layer.stride_x) == (stride, stride)


class _OwnConvolution(nn.Conv2d):
    """A convolution with a module inside."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.pad = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(self.pad(maps), self.weight, self.bias)


class _Shared(nn.Module):
    """Convolutions whose units pass through norms and activations, of modules, functions, in place and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.drop, self.pool, self.second = nn.Dropout(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)
        self.own = _OwnConvolution(4, 4, 1)
        self.group, self.silu, self.flat, self.head = nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(36, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.drop(self.relu(self.norm(self.first(images))))
        maps = self.relu(self.silu(self.group(self.own(self.second(self.pool(maps))))) + 1)
        return self.head(self.flat(maps))


def test_units_are_those_of_the_layer_that_made_them() -> None:
    layers = trace(_Shared(), torch.zeros(1, 3, 8, 8)).layers
    assert {traced.name: traced.layer.shares_units_of for traced in layers} == {
        "first": None, "norm": "first", "relu": "first", "drop": "first", "pool": None,
        "second": None, "own.pad": "second", "own": None, "group": "own", "silu": "own", "relu#2": None, "flat": None, "head": None,
    }  # fmt: skip


def test_a_users_own_convolution_is_one() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(2, 3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return F.conv2d(images, self.kernel)

    network = nn.Sequential(Convolution(), nn.BatchNorm2d(2))
    assert [layer.name for layer in choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))] == ["1"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_part_of_a_network_is_run_and_not_listed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.trace(nn.Conv2d(4, 2, 3).eval(), torch.zeros(1, 4, 5, 5)), nn.ReLU())
    layers = {layer.name: layer.layer for layer in trace(network, torch.zeros(1, 3, 5, 5)).layers}
    assert list(layers) == ["0", "2"]
    assert layers["2"].receptive_field_height == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_gets_images_of_its_own(dtype: torch.dtype) -> None:
    traced = trace(small_network().to(dtype), torch.zeros(1, 3, 14, 14))
    assert traced.input_format.dtype == dtype
    assert default_names(traced) == ["1", "4", "6"]


def test_patterns_are_globs_and_keep_call_order() -> None:
    traced = trace(small_network(), torch.zeros(1, 3, 14, 14))
    assert [layer.name for layer in choose_layers(traced, ["6", "[14]"])] == ["1", "4", "6"]
    assert [layer.name for layer in choose_layers(traced, ["*"])] == ["0", "1", "2", "3", "4", "5", "6"]


def test_a_name_with_brackets_is_itself() -> None:
    network = nn.Sequential()
    network.add_module("a[0]", nn.Conv2d(3, 2, 1))
    assert [layer.name for layer in choose_layers(trace(network, torch.zeros(1, 3, 4, 4)), ["a[0]"])] == ["a[0]"]


def test_a_near_miss_gets_suggestions() -> None:
    with pytest.raises(LayerNotFound) as caught:
        choose_layers(trace_of("torchvision:alexnet"), ["feature.4"], "torchvision:alexnet")
    assert "'torchvision:alexnet' has no layer 'feature.4'." in str(caught.value)
    assert "'features.4'" in str(caught.value)
    assert "List all 21 with: unitscope layers torchvision:alexnet" in str(caught.value)


def test_in_inference_mode_layers_are_the_same() -> None:
    class Inference(nn.Sequential):
        @torch.inference_mode()
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    parts = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.GELU()]
    plain, inference = (trace(kind(*parts), torch.zeros(1, 3, 8, 8)) for kind in (nn.Sequential, Inference))
    assert [layer.layer for layer in inference.layers] == [layer.layer for layer in plain.layers]
    assert inference.folds == plain.folds
    assert [layer.layer.receptive_field_height for layer in inference.layers] == [3, 3, 3, 5, 5]


def test_parts_of_torchs_own_transformer_are_layers() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        @torch.inference_mode()
        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(self.patches(images).flatten(2).mT)

    fastpath_enabled = torch.backends.mha.get_fastpath_enabled()
    network, images = Transformer().eval(), torch.randn(2, 3, 8, 8)
    traced = trace(network, images[:1])
    assert torch.backends.mha.get_fastpath_enabled() == fastpath_enabled
    assert unknown_operators(traced.layers) == []
    (hidden,) = (layer.layer for layer in traced.layers if layer.name == "encoder.layers.1.linear1")
    assert (hidden.units, hidden.map_height, hidden.map_width, hidden.receptive_field_height) == (16, 2, 2, 8)
    maps = read_maps(network, images, ["encoder.layers.1.linear1"])["encoder.layers.1.linear1"]
    assert maps.shape == (2, 16, 2, 2)


def test_a_network_that_cannot_run_on_such_images_says_so() -> None:
    with pytest.raises(NetworkError, match=r"doesn't run on an input of shape \(1, 1, 14, 14\).*channels"):
        trace(small_network(), torch.zeros(1, 1, 14, 14))


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
    assert [layer.reason for layer in traced.unreadable if layer.name == "query"] == ["it doesn't depend on the images"]
    atlas = unitscope.scan(ClassToken(), TensorDataset(torch.rand(12, 3, 16, 16)), tmp_path / "atlas")
    assert [layer.name for layer in atlas.layers] == ["patches", "key", "act"]
    assert atlas.manifest["left_out"] == []


def test_a_layer_whose_middle_cell_sees_nothing_has_the_field_of_the_others(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=4), nn.ConvTranspose2d(4, 4, 1, stride=2), nn.ReLU())
    atlas = unitscope.scan(network, TensorDataset(torch.rand(12, 3, 16, 16)), tmp_path / "atlas")
    assert {layer.name: layer.receptive_field_height for layer in atlas.layers} == {"0": 3, "2": 3}
