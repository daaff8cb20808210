"""The networks that commands run."""

from typing import TYPE_CHECKING

from unitscope.cli.parameters import NetworkOptions

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.networks import Network
    from unitscope.records import Preprocessing


def load_with_preprocessing(model: str, options: NetworkOptions) -> "tuple[Network, Preprocessing]":
    """The network of a model string, and how it wants its images. Raises `NetworkError` where either is unknown."""
    from unitscope.networks import load_network, preprocessing_for

    network = load_network(model, options.weights, options.seed)
    return network, preprocessing_for(network, options.preprocessing.overrides())


def network_by_trusted_code(atlas: "Atlas", trust_code: bool) -> "Network | None":
    """The network of an atlas whose code the user trusts. None leaves the network to the command's function, which runs no such code."""
    if not trust_code or atlas.manifest["network"]["model"].startswith("module:"):
        return None
    from unitscope.session.stored import trusted_network

    return trusted_network(atlas)
