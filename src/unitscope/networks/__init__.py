"""Networks: from a model string to a module with its weights (`model_strings`, `weights`) and its `preprocessing`.

Whatever runs a network runs an isolated copy of it (`isolation`, `copying`) in full precision (`precision`), so the network is left as it
was.
"""

from unitscope.networks.model_strings import build_with_factory, is_factory, load_function, load_network, open_clip_model
from unitscope.networks.network import InputFormat, Network, as_float32, first_float_tensor, network_from_module
from unitscope.networks.preprocessing import PREPROCESSING_FLAGS, PreprocessingOverrides, as_preprocessing, preprocessing_for

__all__ = [
    "PREPROCESSING_FLAGS",
    "InputFormat",
    "Network",
    "PreprocessingOverrides",
    "as_float32",
    "as_preprocessing",
    "build_with_factory",
    "first_float_tensor",
    "is_factory",
    "load_function",
    "load_network",
    "network_from_module",
    "open_clip_model",
    "preprocessing_for",
]
