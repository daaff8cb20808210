"""The networks that commands run."""

from typing import Any


def network_of(model: str, weights: str, seed: int, overrides: Any) -> tuple[Any, Any]:
    from unitscope.networks import load_network, preprocessing_for

    network = load_network(model, weights, seed)
    return network, preprocessing_for(network, overrides)


def trusted(atlas: Any, trust_code: bool) -> Any:
    """The network of an atlas whose code the user trusts; None leaves it to the verb, which runs no such code."""
    if not trust_code or atlas.manifest["network"]["model"].startswith("module:"):
        return None
    from unitscope.session.stored import trusted_network

    return trusted_network(atlas)
