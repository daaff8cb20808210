"""The preprocessing of a network: that of its weights, with what the user overrides."""

from dataclasses import dataclass
from typing import Any

from unitscope.errors import NetworkError
from unitscope.networks.network import Network
from unitscope.records import Preprocessing

PREPROCESSING_FLAGS = "--crop H,W --mean … --std … [--resize N] [--channels N]"


@dataclass(frozen=True, slots=True)
class PreprocessingOverrides:
    """What the user sets of the preprocessing; None keeps what comes with the weights."""

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None


def preprocessing_for(network: Network, overrides: PreprocessingOverrides) -> Preprocessing:
    """The preprocessing that comes with the network's weights, with the user's overrides.

    Raises `NetworkError` with the flags to give where something is lacking: nothing is guessed.
    """
    known = network.preprocessing
    crop = overrides.crop if overrides.crop is not None or known is None else known.crop
    mean = overrides.mean if overrides.mean is not None or known is None else known.mean
    std = overrides.std if overrides.std is not None or known is None else known.std
    resize = overrides.resize if overrides.resize is not None or known is None else known.resize
    if crop is None or mean is None or std is None:
        raise NetworkError(f"nothing is known of how {network.model!r} wants its images; say it with {PREPROCESSING_FLAGS}")
    channels = overrides.channels if overrides.channels is not None else len(mean)
    interpolation = known.interpolation if known else "bilinear"
    try:
        return Preprocessing(resize, crop, mean, std, channels, interpolation, overrides.value_range)
    except ValueError as error:
        raise NetworkError(f"{error}; say it with {PREPROCESSING_FLAGS} [--value-range LOW HIGH]") from error


def as_preprocessing(transforms: Any) -> Preprocessing:
    """The preprocessing of a torchvision preset, `ImageClassification` or `SemanticSegmentation`; a `Preprocessing` is returned as it is.

    A segmentation preset keeps each image's shape. A scan needs one size, so it takes the square in the middle.
    """
    if isinstance(transforms, Preprocessing):
        return transforms
    attributes = ("resize_size", "mean", "std", "interpolation")
    if not all(hasattr(transforms, attribute) for attribute in attributes):
        raise NetworkError(
            f"preprocessing {type(transforms).__name__!r} is neither a unitscope.Preprocessing nor a torchvision preset "
            f"for classification or segmentation; without its geometry no patch can be found again. Say it with {PREPROCESSING_FLAGS}"
        )
    resize = _pair_or_number(transforms.resize_size)
    crop = _pair(getattr(transforms, "crop_size", transforms.resize_size))
    interpolation = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    return Preprocessing(resize, crop, tuple(transforms.mean), tuple(transforms.std), len(transforms.mean), interpolation)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


def _pair_or_number(value: Any) -> int | tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]) if len(values) == 1 else (int(values[0]), int(values[1]))
