"""What taps read of layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unitscope.layers import choose_layers, tapped, trace


def read_maps(network: nn.Module, images: Tensor, patterns: Sequence[str]) -> dict[str, Tensor]:
    """The activation maps of the layers that patterns name, as taps read them, copied."""
    layers = choose_layers(trace(network, images[:1]), patterns)
    maps_by_name: dict[str, Tensor] = {}

    def keep(index: int, maps: Tensor) -> None:
        maps_by_name[layers[index].name] = maps.clone()

    with torch.no_grad(), tapped(network, layers, keep) as tap:
        tap.run(images)
    return maps_by_name
