"""The network and the images of an atlas, opened to be run once more."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, ImagesError
from unitscope.images import NumberedSource, SourceImage
from unitscope.networks import Network, load_network, network_from_module
from unitscope.networks.precision import plain_tensors
from unitscope.session.loader import Loader
from unitscope.session.opening import new_session
from unitscope.session.readers import reader_count
from unitscope.session.session import Session
from unitscope.session.trials import RELATIVE_TOLERANCE, tolerance_for


@contextmanager
def open_atlas_session(
    atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto", layers: Sequence[str] | None = None
) -> Iterator[Session]:
    """The session of an atlas (see `atlas_session`) for as long as the block lasts, in which tensors are plain ones."""
    with plain_tensors():
        yield atlas_session(atlas, network, device, layers)


def atlas_session(
    atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto", layers: Sequence[str] | None = None
) -> Session:
    """The network that was scanned, its layers or those of these names, and the images under the numbers that they had.

    `network` is needed where the atlas was made from a module in memory, or names code to build it with. Raises `AtlasError` where
    it is needed and not given, or where the weights are not those that were scanned.
    """
    scanned = _network_of(atlas, network)
    if scanned.hash() != atlas.manifest["network"]["hash"]:
        raise AtlasError(f"the weights of {scanned.model!r} are not those that the atlas {str(atlas.folder)!r} was made with")
    channels, height, width = atlas.manifest["input"]
    loader = Loader(StoredImages(atlas), atlas.preprocessing, (channels, height, width))
    names = [layer.name for layer in atlas.layers] if layers is None else layers
    return new_session(scanned, loader, names, device, reader_count("auto", loader.source), bool(atlas.manifest.get("inner")))


@dataclass(frozen=True)
class StoredImages(NumberedSource):
    """The images that an atlas mentions, as a source, under the numbers that they had."""

    atlas: Atlas

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
    network = atlas.manifest["network"]
    return load_network(network["model"], network["weights"], network["seed"])


def _network_of(atlas: Atlas, network: "nn.Module | Network | None") -> Network:
    if network is not None:
        return network_from_module(network) if isinstance(network, nn.Module) else network
    if atlas.why_no_network:
        raise AtlasError(atlas.why_no_network)
    return trusted_network(atlas)


# ── does a stored value come back? ──────────────────────────────────────────────────────────────────────────────────


def comes_back(stored: ArrayLike, computed: ArrayLike, tolerance: ArrayLike) -> NDArray[np.bool_]:
    """True where values agree as far as float32 arithmetic promises; `tolerance` is how far apart small values may be."""
    stored, computed = np.asarray(stored, dtype=np.float64), np.asarray(computed, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        is_near = np.abs(computed - stored) <= np.maximum(RELATIVE_TOLERANCE * np.abs(stored), tolerance)
    is_finite = np.isfinite(stored) & np.isfinite(computed)
    agree: NDArray[np.bool_] = np.where(is_finite, is_near, stored == computed)
    return agree


def layer_tolerance(atlas: Atlas, layer: str) -> float:
    """How far apart small values of a layer may be: a share of its highest finite peak, by what the trial before the scan found."""
    values = np.abs(atlas.peaks(layer)["value"].to_numpy())
    return tolerance_for(atlas.manifest["trial"]["rounding"], layer) * float(values[np.isfinite(values)].max(initial=0))
