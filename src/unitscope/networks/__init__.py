"""Networks: from a model string to a module with its weights (`model_strings`, `weights`) and its preprocessing.

A scan runs copies (`copying`, `isolation`), in full precision (`precision`), and leaves the network as it was.
"""

from unitscope.networks.model_strings import load_network
from unitscope.networks.network import InputFormat, Network, as_float32, first_tensor, given_network
from unitscope.networks.preprocessing import PREPROCESSING_FLAGS, PreprocessingOverrides, as_preprocessing, preprocessing_for

__all__ = [
    "PREPROCESSING_FLAGS",
    "InputFormat",
    "Network",
    "PreprocessingOverrides",
    "as_float32",
    "as_preprocessing",
    "first_tensor",
    "given_network",
    "load_network",
    "preprocessing_for",
]
