"""Reading layers while the network runs."""

import pytest
import torch
from networks import Reused, small_network
from read_maps import read_maps
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers import choose_layers, tapped, trace


class Grouped(nn.Module):
    """Splits the units by a `view` that works in contiguous memory only, and on one image in any memory format."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.view(len(maps) * 2, -1, *maps.shape[2:]).relu().view_as(maps)


def test_a_memory_format_that_works_for_one_image_only_is_not_used() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Grouped())
    images = torch.randn(6, 3, 5, 5)
    input_format = trace(network, images[:1]).input_format
    assert input_format.memory_format is torch.contiguous_format
    maps = read_maps(network, input_format.convert(images), ["1"])["1"]
    torch.testing.assert_close(maps, network[0](images).detach())  # what goes into its rectifier


def test_maps_that_depend_on_what_the_images_show_are_refused() -> None:
    class Cutting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.convolution(images[..., 1:] if float(images.sum()) > 100 else images)

    network = Cutting()
    layers = trace(network, torch.zeros(1, 3, 4, 4)).layers
    with (
        torch.no_grad(),
        tapped(network, layers, lambda *_: None) as tap,
        pytest.raises(NetworkError, match="depend on the images"),
    ):
        tap.run(torch.ones(3, 3, 4, 4))


def test_taps_see_what_goes_into_every_call_of_a_reused_rectifier() -> None:
    network, images = Reused().eval(), torch.randn(2, 3, 6, 6)
    maps_by_name = read_maps(network, images, ["relu", "relu#2", "last"])
    with torch.no_grad():
        first = network.norm(network.first(images))
        second = network.second(first.relu()) + first.relu()
        last = network.last(second.relu())
    for name, expected in (("relu", first), ("relu#2", second), ("last", last)):
        torch.testing.assert_close(maps_by_name[name], expected)


def test_the_pass_stops_after_the_last_layer_wanted() -> None:
    class Trap(nn.Module):
        armed = False

        def forward(self, maps: Tensor) -> Tensor:
            assert not self.armed
            return maps

    network, images = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), Trap()), torch.randn(2, 3, 4, 4)
    layers = choose_layers(trace(network, images[:1]), ["1"])
    network[2].armed = True
    read: list[Tensor] = []
    with torch.no_grad(), tapped(network, layers, lambda _, maps: read.append(maps.clone())) as tap:
        tap.run(images)
    (maps,) = read
    torch.testing.assert_close(maps, network[0](images).detach())


def test_a_layer_that_images_may_not_reach_is_named() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.sometimes = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.always(images)
            return self.sometimes(maps) if float(images.sum()) == 0 else maps

    network = Branching()
    layers = choose_layers(trace(network, torch.zeros(1, 3, 4, 4)))
    with (
        pytest.raises(NetworkError, match="never came to 'sometimes'"),
        torch.no_grad(),
        tapped(network, layers, lambda *_: None) as tap,
    ):
        tap.run(torch.ones(1, 3, 4, 4))


def test_no_hook_stays_behind() -> None:
    network = small_network()
    assert list(read_maps(network, torch.zeros(1, 3, 14, 14), ["*"])) == ["0", "1", "2", "3", "4", "5", "6"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
