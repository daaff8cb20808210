"""Networks: from a model string to a module with its weights (`model_strings`, `weights`) and its preprocessing.

A scan runs copies (`copying`, `isolation`), in full precision (`precision`), and leaves the network as it was.
"""

from unitscope.networks.model_strings import load_network
from unitscope.networks.network import InputForm, Network, first_tensor, given_network, single
from unitscope.networks.preprocessing import PREPROCESSING_FLAGS, Overrides, as_preprocessing, preprocessing_for

__all__ = [
    "PREPROCESSING_FLAGS",
    "InputForm",
    "Network",
    "Overrides",
    "as_preprocessing",
    "first_tensor",
    "given_network",
    "load_network",
    "preprocessing_for",
    "single",
]
