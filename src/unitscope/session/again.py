"""A network and images, to be run once more: those of an atlas, or others that are given in the same ways as for a scan."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.arguments import layer_patterns
from unitscope.atlas import Atlas
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError
from unitscope.images import FileBroken, FileSource, SourceImage, as_source, count_of, items_of
from unitscope.layers import Trace, TracedLayer, choose_layers, tapped, trace
from unitscope.networks import InputFormat, Network, given_network, load_network
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.precision import exact_inference
from unitscope.records import Shard
from unitscope.session.loader import Loaded, Loader
from unitscope.session.opening import chosen_device, known_network, loader_for, preprocessing_said
from unitscope.session.trials import tolerance_for

RELATIVE = 1e-4

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Again:
    """What an atlas was made from: a copy of the network in its place, its layers, and the way from an image to its input."""

    network: nn.Module
    trace: Trace
    layers: Sequence[TracedLayer]
    loader: Loader

    @property
    def form(self) -> InputFormat:
        return self.trace.input_format

    def loaded(self) -> Iterator[Loaded]:
        """All images that can be read, in order, with their pixels."""
        source = self.loader.source
        files = source.files if isinstance(source, FileSource) else [""]
        stop = count_of(source) or 0
        for number in range(len(files)):
            try:
                for item in items_of(source, Shard(number, 0, stop)):
                    found = self.loader.loaded(item)
                    if found.pixels is not None:
                        yield found
            except FileBroken as error:
                raise ImagesError(str(error)) from error

    def inputs(self, loaded: Iterable[Loaded]) -> Tensor:
        """The network's input, of shape (image, channel, y, x). Raises `ImagesError` for an image that couldn't be read."""
        pixels = []
        for one in loaded:
            if one.pixels is None:
                raise ImagesError(f"the image {one.key!r} {one.reason}; {WHERE_IMAGES_ARE}")
            pixels.append(one.pixels)
        return self.loader.normalised(pixels, self.form)

    def each(self, images: Tensor, look: Callable[[int, Tensor], Result]) -> list[Result]:
        """What `look` says of every layer's number and maps, in one forward pass over images of shape (image, channel, y, x)."""
        found: dict[int, Result] = {}
        layers = self.layers
        with (
            torch.no_grad(),
            exact_inference(self.network, self.form.device),
            tapped(self.network, layers, lambda number, maps: found.update({number: look(number, maps)})) as tap,
        ):
            tap.run(images)
        return [found[number] for number in range(len(layers))]

    def outputs(self, images: Tensor) -> Tensor:
        """What the network as a whole gives."""
        with torch.no_grad(), exact_inference(self.network, self.form.device):
            given = self.network(images)
        return given if isinstance(given, Tensor) else torch.empty(0)


def comes_back(stored: float, found: float, near: float) -> bool:
    """True where the values agree as far as float32 arithmetic promises; `near` is how far apart small values of the layer may be."""
    if not (isfinite(stored) and isfinite(found)):
        return stored == found
    return abs(found - stored) <= max(RELATIVE * abs(stored), near)


def near(atlas: Atlas, layer: str) -> float:
    """How far apart values of a layer may be: a share of its highest finite value, by what the trial before the scan found."""
    values = np.abs(atlas.peaks(layer)["value"].to_numpy())
    return tolerance_for(atlas.manifest["trial"]["rounding"], layer) * float(values[np.isfinite(values)].max(initial=0))


@contextmanager
def opened_again(atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto") -> Iterator[Again]:
    """The same network on a device for as long as the block lasts.

    `network` is needed where the atlas was made from a module in memory, or names code to build it with. Raises `AtlasError` where
    it is needed and not given, or where the weights are not those that were scanned.
    """
    known = _network(atlas, network)
    if known.hash() != atlas.manifest["network"]["hash"]:
        raise AtlasError(f"the weights of {known.model!r} are not those that the atlas {str(atlas.folder)!r} was made with")
    channels, height, width = atlas.manifest["input"]
    loader = Loader(StoredImages(atlas), atlas.preprocessing, (channels, height, width))
    yield _opened(known, loader, [layer.name for layer in atlas.layers], device)


@contextmanager
def opened(
    network: "str | nn.Module | Network",
    images: Any,
    preprocess: Any = None,
    layers: Sequence[str] | None = None,
    device: str = "auto",
) -> Iterator[Again]:
    """A network and images as `scan` takes them, for as long as the block lasts. Raises as `scan` does."""
    known, source = known_network(network), as_source(images)
    loader = loader_for(source, preprocessing_said(preprocess, known), count_of(source) or 0, known.model)
    yield _opened(known, loader, layer_patterns(layers), device)


def _opened(known: Network, loader: Loader, layers: Sequence[str] | None, device: str) -> Again:
    target = chosen_device(device)
    traced = trace(known.module, torch.zeros(1, *loader.shape, dtype=torch.float32, device=target))
    return Again(isolated_copy(known.module, traced.hooks).to(target), traced, choose_layers(traced, layers, known.model), loader)


@dataclass(frozen=True, slots=True)
class StoredImages:
    """The images that an atlas mentions, as a source, under the numbers that they had."""

    atlas: Atlas
    passed_over: ClassVar[Mapping[str, str]] = {}

    @property
    def description(self) -> Mapping[str, Any]:
        return dict(self.atlas.manifest["images"])

    @property
    def thread_safe(self) -> bool:
        try:
            return self.atlas.source.thread_safe
        except ImagesError:  # whoever reads one says that they are gone
            return True

    def __len__(self) -> int:
        return int(self.atlas.manifest["listed"])

    def key(self, image: int) -> str:
        return self.atlas.key(image)

    def content(self, image: int) -> int | None:
        return self.atlas.content(image)

    def read(self, image: int) -> SourceImage:
        return SourceImage(self.atlas.open_image(image), None, self.atlas.content(image))


def trusted_network(atlas: Atlas) -> Network:
    """The network that an atlas names, built with the code that it names too. Only for atlases whose maker the user trusts."""
    said = atlas.manifest["network"]
    return load_network(said["model"], said["weights"], said["seed"])


def _network(atlas: Atlas, network: "nn.Module | Network | None") -> Network:
    if network is not None:
        return given_network(network) if isinstance(network, nn.Module) else network
    if atlas.why_no_network:
        raise AtlasError(atlas.why_no_network)
    return trusted_network(atlas)
