"""Effective fields of networks whose gradients are known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from networks import NormsBeforeTokens
from torch import Tensor, nn

import unitscope
from unitscope.layers import choose_layers, trace
from unitscope.scanning.effective_fields import MEASURED_LAYERS, CellOfUnit, box_holding, effective_size, energies


def with_kernel(kernel: Tensor) -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(1, 1, kernel.shape[0], padding=kernel.shape[0] // 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(kernel[None, None])
    return network


def measured(network: nn.Module, cells: list[CellOfUnit]) -> list[tuple[int, int] | None]:
    layers = choose_layers(trace(network, torch.zeros(1, 1, 32, 32)))
    images = torch.arange(1.0, 3)[:, None, None, None].expand(2, 1, 32, 32)
    actual = energies(network, layers, [cells] * len(layers), images)
    return [effective_size(layer, cells, energy) for layer, energy in zip(layers, actual, strict=True)]


def centre_of(size: int, weight: float) -> Tensor:
    """A 9 x 9 kernel with ones in a square of that size in the middle and some weight everywhere else."""
    kernel, start = torch.full((9, 9), weight), (9 - size) // 2
    kernel[start : start + size, start : start + size] = 1
    return kernel


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_it_is_the_part_of_the_field_that_has_weight(size: int) -> None:
    assert measured(with_kernel(centre_of(size, 1e-3)), [CellOfUnit(0, 0, 16, 16), CellOfUnit(0, 1, 20, 9)]) == [(size, size)]


def test_ninety_five_per_cent_of_the_squared_gradient_lie_inside() -> None:
    kernel = centre_of(3, 0.0)
    kernel[0, 0] = (9 * 0.04 / 0.96) ** 0.5  # 4 per cent of the whole
    assert measured(with_kernel(kernel), [CellOfUnit(0, 0, 16, 16)]) == [(3, 3)]
    kernel[0, 0] = (9 * 0.06 / 0.94) ** 0.5  # 6 per cent
    assert measured(with_kernel(kernel), [CellOfUnit(0, 0, 16, 16)]) == [(9, 9)]


def test_at_a_corner_it_is_no_larger_than_the_input() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 61, padding=30, bias=False))
    nn.init.ones_(network[0].weight)
    assert measured(network, [CellOfUnit(0, 0, 0, 0)]) == [(32, 32)]


def test_without_peaks_or_gradient_there_is_none() -> None:
    assert measured(with_kernel(centre_of(3, 0.0)), []) == [None]
    assert measured(with_kernel(torch.zeros(9, 9)), [CellOfUnit(0, 0, 16, 16)]) == [None]


def test_training_parameters_get_no_gradient() -> None:
    network = with_kernel(centre_of(3, 0.0))
    measured(network, [CellOfUnit(0, 0, 16, 16)])
    assert network[0].weight.grad is None


@given(arrays("float64", (7, 7), elements=st.floats(0, 1)).filter(lambda energy: energy.sum() > 0.01))
def test_the_box_is_the_smallest_that_holds_the_share(energy: object) -> None:
    """Against trying every size, for a peak in the middle of seven by seven pixels."""
    values = torch.from_numpy(energy)
    distance = (torch.arange(7) - 3).abs()
    needed = (2 * torch.maximum(distance[:, None], distance) + 1) / 7
    size, _ = box_holding(values.flatten(), needed.flatten().double(), (7, 7))
    sums = {n: float(values[3 - n // 2 : 4 + n // 2, 3 - n // 2 : 4 + n // 2].sum()) for n in (1, 3, 5, 7)}
    target = 0.95 * float(values.sum())
    assert sums[size] >= target - 1e-9
    assert size == 1 or sums[size - 2] < target + 1e-9


def test_one_pass_measures_every_layer_on_its_own() -> None:
    network = nn.Sequential(with_kernel(centre_of(3, 0.0)), with_kernel(centre_of(5, 0.0)))
    # Three ones over five give 1 2 3 3 3 2 1, whose middle five hold (35 / 37)² = 89 % of the squares.
    assert measured(network, [CellOfUnit(0, 0, 16, 16)]) == [(3, 3), (7, 7)]


def deep_network(depth: int) -> nn.Sequential:
    """So many blurs, one behind the other: each effective field is a little larger than the one before."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        blur = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
        nn.init.constant_(blur.weight, 1 / 9)
        layers += [blur, nn.ReLU()]
    return nn.Sequential(*layers)


def gradients_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, depth: int) -> tuple[int, unitscope.Atlas]:
    """How many backward passes a scan of that network takes, and its atlas."""
    backward, count = torch.autograd.grad, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return backward(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    images = torch.rand(6, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    atlas = unitscope.scan(deep_network(depth), images, tmp_path / str(depth))
    monkeypatch.undo()
    return count, atlas


def test_their_cost_does_not_grow_with_the_square_of_the_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the network is, as many backward passes are taken; layers between those that are measured get sizes between theirs."""
    shallow, _ = gradients_taken(monkeypatch, tmp_path, 30)
    deep, atlas = gradients_taken(monkeypatch, tmp_path, 60)
    assert shallow == deep == 2 * MEASURED_LAYERS
    assert [layer.effective_field_height is None for layer in atlas.layers] == [
        layer.receptive_field_height <= 64 / 8 for layer in atlas.layers
    ]
    small = atlas.layers[0]
    assert atlas.sheet(small.name, patch="effective").tobytes() == atlas.sheet(small.name, patch="field").tobytes()
    large = [layer for layer in atlas.layers if layer.effective_field_height is not None]
    assert sum(layer.effective_field_measured for layer in large) == MEASURED_LAYERS
    sizes = [layer.effective_field_height or 0 for layer in large]
    measured_sizes = [size for layer, size in zip(large, sizes, strict=True) if layer.effective_field_measured]
    assert sizes == sorted(sizes)  # as those that were measured are, with each layer's receptive field
    assert len(set(sizes)) > len(set(measured_sizes))


class Gated(nn.Module):
    """A blur whose maps are multiplied by a gate, which looks at the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 9)
        self.activation, self.gate, self.sigmoid = nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Sigmoid()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.activation(self.blur(images))
        return maps * self.sigmoid(self.gate(maps.mean((2, 3), keepdim=True)))


def test_gates_that_look_at_the_whole_image_say_nothing_of_the_maps_between_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    atlas = unitscope.scan(nn.Sequential(*(Gated() for _ in range(30))), images, tmp_path / "atlas")
    maps = [layer for layer in atlas.layers if layer.map_height > 1 and layer.effective_field_height is not None]
    gates = [layer for layer in atlas.layers if layer.map_height == 1]
    assert any(not layer.effective_field_measured for layer in maps)
    assert any(not layer.effective_field_measured for layer in gates)
    assert max(layer.effective_field_height or 0 for layer in maps) < 40  # of 61 at most
    assert min(layer.effective_field_height or 0 for layer in gates) > 55


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8).eval(), nn.InstanceNorm2d(8).eval()], ids=str)
def test_one_image_alone_has_the_field_that_it_has_beside_another(norm: nn.Module) -> None:
    """torch's gradient behind such norms is wrong for a batch of one."""
    network = NormsBeforeTokens(norm).eval()
    layers = choose_layers(trace(network, torch.zeros(1, 3, 16, 16)), ["tokens"])
    image, cells = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), [[CellOfUnit(1, 0, 9, 4)]]
    (alone,), (together,) = energies(network, layers, cells, image), energies(network, layers, cells, image.repeat(2, 1, 1, 1))
    assert alone is not None
    assert together is not None
    torch.testing.assert_close(alone, together)
