"""Embedders: networks of their own, independent of the one that was scanned, that say how much alike two pictures are.

An embedder gives a map of a picture: numbers for each of its cells. The mean over the cells in a box is the embedding of that part, so
one pass a picture serves all patches in it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unitscope.arguments import MODEL_FORMS
from unitscope.errors import NetworkError
from unitscope.layers import Trace, TracedLayer
from unitscope.networks import Network, build_with_factory, is_factory, load_network, network_from_module
from unitscope.records import Preprocessing
from unitscope.session.opening import trace_network
from unitscope.session.session import read_layers

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of each colour, as torchvision's networks take them."""
MIN_CELLS = 4
"""A map with fewer cells says nothing of a part of the picture."""


@runtime_checkable
class Embedder(Protocol):
    """What gives maps of pictures. `name` stands wherever a score does, `weights_hash` tells it from the scanned network, `size` is the
    height and the width in pixels of the pictures that it takes."""

    @property
    def name(self) -> str: ...

    @property
    def weights_hash(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def maps(self, pictures: UInt8[Tensor, "image y x colour"]) -> Float[Tensor, "image number y x"]:
        """Of pixels from 0 to 255, of `size`, on the CPU: maps that cover the whole picture, row 0 above. Finite float32."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkEmbedder:
    """The activation maps of a network's last layer that has several cells; what a rectifier follows is rectified."""

    name: str
    weights_hash: str
    network: nn.Module
    preprocessing: Preprocessing
    trace: Trace
    layer: TracedLayer

    @classmethod
    def of(cls, network: Network, name: str) -> "NetworkEmbedder":
        """Raises `NetworkError` where nothing is known of the images that it takes, or where no layer has several cells."""
        preprocessing = network.preprocessing
        if preprocessing is None or preprocessing.channels != 3:
            raise NetworkError(f"{name!r} can't be an embedder: nothing is known of how it takes pictures of three colours")
        traced = trace_network(network, preprocessing)
        layers = [
            layer
            for layer in traced.layers
            if layer.is_default and layer.layout.is_spatial and layer.layer.map_height * layer.layer.map_width >= MIN_CELLS
        ]
        if not layers:
            raise NetworkError(f"{name!r} can't be an embedder: no layer of it has {MIN_CELLS} cells in rows and columns")
        return cls(name, network.hash(), network.module, preprocessing, traced, layers[-1])

    @property
    def size(self) -> tuple[int, int]:
        return self.preprocessing.crop

    def maps(self, pictures: UInt8[Tensor, "image y x colour"]) -> Float[Tensor, "image number y x"]:
        mean, std = (torch.tensor(values) for values in (self.preprocessing.mean, self.preprocessing.std))
        inputs = ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)
        (maps,) = read_layers(
            self.network, [self.layer], self.trace.input_format.convert(inputs), lambda _, maps: maps.float().clone()
        )
        return maps.clamp_(min=0) if self.layer.layer.rectified else maps


@dataclass(frozen=True, slots=True)
class DreamSimEmbedder:
    """DreamSim (Fu et al. 2023), which gives one vector for a whole picture: all patches of a picture have that."""

    name: str
    weights_hash: str
    network: Any
    size: tuple[int, int] = (224, 224)

    def maps(self, pictures: UInt8[Tensor, "image y x colour"]) -> Float[Tensor, "image number y x"]:
        with torch.no_grad():
            vectors: Tensor = self.network.embed(pictures.permute(0, 3, 1, 2) / 255)
        return vectors.float()[:, :, None, None]


def open_embedder(embedder: "Embedder | str") -> Embedder:
    """The embedder of a name: `demo`, `lpips-alex`, `dreamsim`, a model string, or `PATH.py:FACTORY` where the function gives an embedder.

    Raises `NetworkError` where its package is missing.
    """
    if not isinstance(embedder, str):
        return embedder
    if embedder == "demo":
        return NetworkEmbedder.of(load_network("demo:efficientnet-lite0"), embedder)
    if embedder == "lpips-alex":
        return NetworkEmbedder.of(_lpips_alexnet(), embedder)
    if embedder == "dreamsim":
        return _dreamsim()
    if ":" not in embedder:
        raise NetworkError(f"there is no embedder {embedder!r}; give one of demo, lpips-alex, dreamsim, or {MODEL_FORMS}")
    if is_factory(embedder) and isinstance(built := build_with_factory(embedder), Embedder):
        return built
    return NetworkEmbedder.of(load_network(embedder), embedder)


def _dreamsim() -> DreamSimEmbedder:
    try:
        dreamsim = importlib.import_module("dreamsim")
    except ImportError as error:
        raise NetworkError("the embedder 'dreamsim' needs its package: pip install dreamsim") from error
    network, _ = dreamsim.dreamsim(pretrained=True, device="cpu")
    network.eval()
    return DreamSimEmbedder("dreamsim", network_from_module(network).hash(), network)


def lpips_trunk(network: str) -> nn.Module:
    """The trunk of the shift-tolerant LPIPS (Ghildyal & Liu 2022), trained on ImageNet, with blurred pooling: of `alex` or `vgg`.

    Raises `NetworkError` where the package with its weights is missing.
    """
    try:
        with _without("IPython"):
            networks = importlib.import_module("stlpips_pytorch.invariant_networks")
    except ImportError as error:
        raise NetworkError(f"the trunk {network!r} of LPIPS needs its weights: pip install 'unitscope[score]'") from error
    trunk: nn.Module = getattr(networks, f"{network}net")(variant="shift_tolerant", filter_size=3)
    file = Path(str(networks.__file__)).parent / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    trunk.load_state_dict({name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")})
    return trunk.eval()


def _lpips_alexnet() -> Network:
    return Network(lpips_trunk("alex"), "lpips-alex", "default", 0, Preprocessing(224, (224, 224), *IMAGENET))


@contextmanager
def _without(name: str) -> Iterator[None]:
    """While the block lasts, an empty module stands in for a package that isn't installed; the code imports it and never uses it."""
    if importlib.util.find_spec(name) is not None:
        yield
        return
    stand_in = ModuleType(name)
    stand_in.__getattr__ = lambda _: None  # type: ignore[method-assign]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]
