"""Copies of a network: the same maps, and the network untouched."""

from threading import Lock
from typing import Any

import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn
from torchvision import models

from unitscope.layers import TracedLayer, choose_layers, tapped, trace
from unitscope.session.replicas import images_per_pass, make_replicas


def maps_of(network: nn.Module, layers: list[TracedLayer], images: Tensor) -> list[Tensor]:
    maps_by_layer: dict[int, Tensor] = {}
    with torch.no_grad(), tapped(network, layers, lambda number, maps: maps_by_layer.update({number: maps.clone()})) as tap:
        tap.run(images)
    return [maps_by_layer[number] for number in range(len(layers))]


def settled(network: nn.Module) -> nn.Module:
    """The network with batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 2, generator=generator)
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(generator=generator)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v3_small", "googlenet", "densenet121", "shufflenet_v2_x1_0"])
def test_a_copy_gives_the_maps_of_the_network(name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    network = settled(models.get_model(name, weights=None, **options))
    images = torch.randn(3, 3, 96, 96)
    traced = trace(network, images[:1])
    layers = choose_layers(traced)
    made = make_replicas(network, traced, layers, 2).networks
    assert len(made) == 2
    assert network not in made
    for fold in traced.folds[:1]:
        assert all(isinstance(replica.get_submodule(fold.norm), nn.Identity) for replica in made)
    for replica in made:
        fast = maps_of(replica, layers, traced.input_format.convert(images))
        for plain, copied in zip(maps_of(network, layers, images), fast, strict=True):
            torch.testing.assert_close(copied, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_resnet_folds_every_batch_norm_and_none_whose_convolution_is_read() -> None:
    network = models.resnet18(weights=None).eval()
    traced = trace(network, torch.zeros(1, 3, 64, 64))
    assert len(traced.folds) == 20
    (made,) = make_replicas(network, traced, choose_layers(traced, ["conv1", "relu"]), 1).networks
    assert isinstance(made.bn1, nn.BatchNorm2d)
    assert isinstance(made.layer1[0].bn1, nn.Identity)


class Shared(nn.Module):
    """A convolution that two norms read, one that is called twice, and two that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.forked, self.twice, self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(5))

    def forward(self, images: Tensor) -> Tensor:
        forked = self.forked(images)
        x = self.norms[0](forked) + self.norms[1](forked)
        x = self.norms[2](self.twice(self.twice(x)))
        return self.norms[4](self.second(self.norms[3](self.first(x))))


def test_what_is_shared_is_not_folded() -> None:
    network = settled(Shared())
    images = torch.randn(2, 3, 8, 8)
    traced = trace(network, images[:1])
    (made,) = make_replicas(network, traced, choose_layers(traced), 1).networks
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in made.norms)
    layers = choose_layers(traced)
    torch.testing.assert_close(maps_of(made, layers, images), maps_of(network, layers, images))


def test_the_network_and_its_parameters_are_left_alone() -> None:
    network = settled(small_network())
    before = {name: (value.clone(), value.stride()) for name, value in network.state_dict().items()}
    traced = trace(network, torch.zeros(1, 3, 14, 14))
    make_replicas(network, traced, choose_layers(traced), 2)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_copies_share_their_parameters_and_nothing_else() -> None:
    network = small_network().eval()
    traced = trace(network, torch.zeros(1, 3, 14, 14))
    first, second = make_replicas(network, traced, choose_layers(traced), 2).networks
    assert all(
        replica.data_ptr() == other.data_ptr() for replica, other in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
    assert not {id(b) for b in first.buffers()} & {id(b) for b in second.buffers()}


class Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise TypeError("this holds a file")


class Forgetful(nn.Sequential):
    """Copies lose what it is about."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())


class Locked(nn.Sequential):
    """Holds what can't be copied."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.lock = Lock()

    def forward(self, images: Tensor) -> Tensor:
        with self.lock:
            return super().forward(images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Uncopyable, Forgetful, Locked])
def test_a_network_that_python_cannot_copy_has_replicas_too(kind: type[nn.Sequential]) -> None:
    network, images = kind(nn.Conv2d(3, 2, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    traced = trace(network, images[:1])
    layers = choose_layers(traced)
    made = make_replicas(network, traced, layers, 2).networks
    assert network not in made
    assert len(made) == 2
    for replica in made:
        torch.testing.assert_close(
            maps_of(replica, layers, traced.input_format.convert(images)), maps_of(network, layers, images)
        )


def test_reused_modules_are_copied_as_they_are() -> None:
    network = Reused().eval()
    images = torch.randn(2, 3, 6, 6)
    traced = trace(network, images[:1])
    layers = choose_layers(traced)
    (made,) = make_replicas(network, traced, layers, 1).networks
    for copied, plain in zip(maps_of(made, layers, images), maps_of(network, layers, images), strict=True):
        torch.testing.assert_close(copied, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "images"), [("alexnet", 32), ("resnet18", 8), ("vgg16", 4)])
def test_few_images_go_through_at_once(name: str, images: int) -> None:
    with torch.device("meta"):
        network = models.get_model(name, weights=None).eval()
    network = network.to_empty(device="cpu")
    traced = trace(network, torch.zeros(1, 3, 224, 224))
    assert images_per_pass(network, traced, batch_size=32) == images
    assert images_per_pass(network, traced, batch_size=3) == 3
