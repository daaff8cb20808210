"""The network and the images of an atlas once more, to run them again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from unitscope.atlas import Atlas
from unitscope.errors import AtlasError
from unitscope.images.pixels import Pixels
from unitscope.layers import TracedLayer, choose, trace
from unitscope.networks import InputForm, Network, given_network, load_network
from unitscope.scanning import chosen_device, placed
from unitscope.scanning.loading import Loader


@dataclass(frozen=True, slots=True)
class Again:
    """What an atlas was made from: the network in its place, its layers, and the way from an image to its input."""

    network: nn.Module
    layers: Sequence[TracedLayer]
    loader: Loader
    form: InputForm


@contextmanager
def opened_again(atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto") -> Iterator[Again]:
    """The same network on a device for as long as the block lasts.

    `network` is needed where the atlas was made from a module in memory. Raises `AtlasError` where the weights are not those that
    were scanned.
    """
    known = _network(atlas, network)
    if known.hash() != atlas.manifest["network"]["hash"]:
        raise AtlasError(f"the weights of {known.model!r} are not those that the atlas {str(atlas.folder)!r} was made with")
    channels, height, width = atlas.manifest["input"]
    loader = Loader(StoredImages(atlas), atlas.preprocessing, (channels, height, width))
    target = chosen_device(device)
    with placed(known.module, target):
        traced = trace(known.module, torch.zeros(1, channels, height, width, device=target))
        layers = choose(traced, [layer.name for layer in atlas.layers], known.model)
        yield Again(known.module, layers, loader, traced.form)


@dataclass(frozen=True, slots=True)
class StoredImages:
    """The images that an atlas mentions, as a source, under the numbers that they had."""

    atlas: Atlas

    @property
    def description(self) -> Mapping[str, Any]:
        return dict(self.atlas.manifest["images"])

    def __len__(self) -> int:
        return int(self.atlas.manifest["listed"])

    def key(self, image: int) -> str:
        return self.atlas.key(image)

    def label(self, image: int) -> str | None:
        return None

    def open(self, image: int) -> Image.Image | Pixels:
        return self.atlas.open_image(image)


def _network(atlas: Atlas, network: "nn.Module | Network | None") -> Network:
    if network is not None:
        return given_network(network) if isinstance(network, nn.Module) else network
    said = atlas.manifest["network"]
    if said["model"].startswith("module:"):
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} was made from a module in memory, {said['model'].removeprefix('module:')!r}; check it in "
            "Python: unitscope.check(atlas, network)"
        )
    return load_network(said["model"], said["weights"], said["seed"])
