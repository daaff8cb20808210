"""From what a caller gives, a network and images, to a session."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from unitscope.arguments import layer_patterns
from unitscope.errors import ImagesError, NetworkError, UnitscopeError
from unitscope.images import ImageSource, Skipped, as_source, skipping_errors, valid_text
from unitscope.images.content import evenly_spaced
from unitscope.layers import Trace, choose_layers, trace
from unitscope.networks import PREPROCESSING_FLAGS, Network, as_preprocessing, load_network, network_from_module
from unitscope.networks.precision import plain_tensors
from unitscope.records import Preprocessing
from unitscope.session.loader import Loader
from unitscope.session.readers import reader_count
from unitscope.session.replicas import make_replicas
from unitscope.session.session import Session
from unitscope.session.trials import Trial

IMAGES_LOOKED_AT = 3
"""How many images tell whether a data set gives pictures or tensors, and of which shape: one may be damaged."""


@contextmanager
def open_session(
    network: "str | nn.Module | Network",
    images: Any,
    preprocess: Any = None,
    layers: Sequence[str] | None = None,
    device: str = "auto",
) -> Iterator[Session]:
    """A network and images as `scan` takes them, for as long as the block lasts. Raises as `scan` does."""
    with plain_tensors():
        opened, source = as_network(network), as_source(images)
        loader = loader_for(source, preprocessing_of(preprocess, opened), source.count(), opened.model)
        yield new_session(opened, loader, layer_patterns(layers), device, reader_count("auto", source))


def new_session(
    network: Network, loader: Loader, layers: Sequence[str] | None, device: str, readers: int, inner: bool = False
) -> Session:
    """A session of these parts; the network is traced on the device, and layers that match the patterns are chosen.

    `readers` is how many threads or processes load images. With `inner`, only those cells of a layer are read whose receptive fields lie
    on the input; where there are none, all are.
    """
    traced = trace(network.module, blank_input(loader.shape, as_device(device)))
    chosen = choose_layers(traced, layers, network.model)
    if inner:
        chosen = [layer.with_inner_cells(*loader.shape[1:]) or layer for layer in chosen]
    return Session(network.module, traced, tuple(chosen), loader, readers)


def as_network(network: "str | nn.Module | Network") -> Network:
    """The network that was given in one of three ways."""
    if isinstance(network, str):
        return load_network(network)
    if isinstance(network, nn.Module):
        return network_from_module(network)
    if not isinstance(network, Network):
        raise NetworkError(f"network is a model string, an nn.Module or what load_network gives, not a {type(network).__name__}")
    return network


def as_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one. Raises `UnitscopeError` where there is none."""
    name = str(name)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in available.items() if is_available))
    if name.partition(":")[0] not in available:
        raise UnitscopeError(f"device is auto, cpu, cuda or mps, not {name!r}")
    if not available[name.partition(":")[0]]:
        raise UnitscopeError(f"device {name!r} isn't available here; use --device cpu")
    return torch.device(name)


def preprocessing_of(preprocess: Any, network: Network) -> Preprocessing | None:
    """What the caller gives or, where that is None, what comes with the network."""
    return as_preprocessing(preprocess) if preprocess is not None else network.preprocessing


def loader_for(source: ImageSource, preprocessing: Preprocessing | None, count: int | None, model: str) -> Loader:
    """The way from images to inputs; the first images that can be read, and some later ones, say whether they are pictures or tensors.

    `count` of them are wanted; where nobody has counted them, which is so for archives, they are pictures.
    Raises `ImagesError` where no image can be read.
    """
    shape = None if count is None else _usual_shape(source, count)
    return _of_pictures(source, preprocessing, model) if shape is None else Loader(source, None, shape)


def _usual_shape(source: ImageSource, count: int) -> tuple[int, int, int] | None:
    """The shape of the tensors that a source gives, None where it gives pictures: that of most of a few, since one may be damaged."""
    shapes: list[tuple[int, int, int] | None] = []
    reasons: dict[int, tuple[str, str]] = {}
    looked_at_first = evenly_spaced(count, IMAGES_LOOKED_AT)
    for image in chain(looked_at_first, (image for image in range(count) if image not in looked_at_first)):
        if len(shapes) + len(reasons) >= IMAGES_LOOKED_AT and shapes:
            break
        try:
            with skipping_errors():
                pixels = source.read(image).pixels
            shapes.append((pixels.shape[0], pixels.shape[1], pixels.shape[2]) if isinstance(pixels, np.ndarray) else None)
        except Skipped as reason:
            reasons[image] = (valid_text(source.key(image)), str(reason))
    if not shapes:
        raise ImagesError(none_read(count, source, reasons))
    return Counter(shapes).most_common(1)[0][0]


def _of_pictures(source: ImageSource, preprocessing: Preprocessing | None, model: str) -> Loader:
    if preprocessing is None:
        raise NetworkError(
            f"nothing is known of how {model!r} wants its images; say it with {PREPROCESSING_FLAGS} (preprocess= in Python)"
        )
    return Loader(source, preprocessing, (preprocessing.channels, *preprocessing.crop))


def none_read(count: int, source: ImageSource, skipped: Mapping[int, tuple[str, str]]) -> str:
    """What to say where no image can be read: the first of each reason, up to three."""
    first: dict[str, str] = {}
    for image in sorted(skipped):
        key, reason = skipped[image]
        first.setdefault(reason, f"{key!r} {reason}")
    return f"none of {count:,} {source.noun} is an image that can be read; {'; '.join(list(first.values())[:3])}"


def operators_without_rule(operators: Sequence[str]) -> str:
    """What it means that these operators of a network have no rule."""
    names = ", ".join(map(repr, operators))
    return f"no rule says what the operators {names} depend on, so behind them a field is everything that went in"


def trace_network(network: Network, preprocessing: Preprocessing) -> Trace:
    """The layers of a network on an input of the size that its preprocessing gives."""
    return trace(network.module, blank_input((preprocessing.channels, *preprocessing.crop), torch.device("cpu")))


def blank_input(shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """One input of that shape. Raises `NetworkError` where it is larger than the memory."""
    try:
        return torch.zeros(1, *shape, dtype=torch.float32, device=device)
    except (RuntimeError, MemoryError) as error:
        raise NetworkError(f"one input of shape {shape} takes more memory than there is; give a smaller --crop") from error


def trial_of(network: Network, traced: Trace) -> Trial:
    """What the network does with noise. Raises `NetworkError` where its values depend on the images that ran before."""
    return make_replicas(network.module, traced, traced.layers, 2).trial if traced.layers else Trial()
