"""How a network wants its images: as its weights say, or as the user says."""

from dataclasses import dataclass
from typing import Any

from unitscope.errors import NetworkError
from unitscope.networks.network import Network
from unitscope.records import Preprocessing

PREPROCESSING_FLAGS = "--crop H,W --mean … --std … [--resize N] [--channels N]"


@dataclass(frozen=True, slots=True)
class PreprocessingOverrides:
    """What a user says of the preprocessing; None leaves what comes with the weights."""

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None


def preprocessing_for(network: Network, said: PreprocessingOverrides) -> Preprocessing:
    """What comes with the network's weights, changed as the user says.

    Raises `NetworkError` with the flags to give where nothing is known, since nothing is guessed.
    """
    known = network.preprocessing
    crop = said.crop if said.crop is not None or known is None else known.crop
    mean = said.mean if said.mean is not None or known is None else known.mean
    std = said.std if said.std is not None or known is None else known.std
    resize = said.resize if said.resize is not None or known is None else known.resize
    if crop is None or mean is None or std is None:
        raise NetworkError(f"nothing is known of how {network.model!r} wants its images; say it with {PREPROCESSING_FLAGS}")
    channels = said.channels if said.channels is not None else len(mean)
    try:
        return Preprocessing(resize, crop, mean, std, channels, known.interpolation if known else "bilinear", said.value_range)
    except ValueError as error:
        raise NetworkError(f"{error}; say it with {PREPROCESSING_FLAGS} [--value-range LOW HIGH]") from error


def as_preprocessing(transforms: Any) -> Preprocessing:
    """Our record of a torchvision preset: `ImageClassification`, or `SemanticSegmentation` cut square.

    A segmentation preset keeps each image's shape; since a scan needs maps of one size, the square in the middle is taken.
    """
    if isinstance(transforms, Preprocessing):
        return transforms
    needed = ("resize_size", "mean", "std", "interpolation")
    if not all(hasattr(transforms, a) for a in needed):
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
