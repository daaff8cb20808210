"""Vision networks of transformers, with the preprocessing of their image processors."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel

from unitscope.errors import NetworkError
from unitscope.images import prepare
from unitscope.records import Preprocessing

log = logging.getLogger(__name__)

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Names of the ways to resize, by Pillow's number."""
PROBE_SIZE = (200, 320)
"""Height and width of the picture that tells how an image processor resizes and crops: neither square nor of a usual size."""
SAME_PICTURE = 0.02
"""How far apart, in the mean and as a share of white, two pictures may be that were resized by different code."""


def build(name: str, pretrained: bool) -> nn.Module:
    """The network of a name on the hub, or of a folder: a classifier where the configuration says so, else the bare network.

    Of networks that take text too, such as CLIP, the part that takes images. Weights are float32. No code of the hub's is executed.
    """
    config = AutoConfig.from_pretrained(name)
    architectures = getattr(config, "architectures", None) or []
    is_classifier = any("ForImageClassification" in architecture for architecture in architectures)
    auto: Any = AutoModelForImageClassification if is_classifier else AutoModel
    make = auto.from_pretrained if pretrained else auto.from_config
    return _part_that_takes_images(make(name if pretrained else config, dtype=torch.float32))


def _part_that_takes_images(network: Any) -> nn.Module:
    """The network, or the first part of it whose first argument are images. Raises `NetworkError` where there is none."""
    for module in network.modules():
        if isinstance(module, PreTrainedModel) and _takes_images(module):
            part: nn.Module = module
            return part
    raise NetworkError(f"a {type(network).__name__} of transformers has no part that takes images alone")


def _takes_images(module: nn.Module) -> bool:
    """True where the first argument are images: `pixel_values`, or Perceiver's `inputs`, which are what is also called `pixel_values`."""
    arguments = list(inspect.signature(module.forward).parameters)
    return arguments[0] == "pixel_values" or (arguments[0] == "inputs" and "pixel_values" in arguments)


def class_names(network: Any) -> list[str] | None:
    """What the configuration of a classifier calls its outputs; None where it gives them numbers alone."""
    names: Mapping[int, str] = getattr(network.config, "id2label", None) or {}
    if "ForImageClassification" not in type(network).__name__ or names.get(0, "LABEL_0") == "LABEL_0":
        return None
    return [names.get(position, str(position)) for position in range(network.config.num_labels)]


def preprocessing_of(name: str) -> Preprocessing | None:
    """The preprocessing of a network's image processor; None where there is none, or where it does what a `Preprocessing` can't say.

    What the processor does with a picture is compared with what the preprocessing does with it: nothing is taken on trust.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        log.info("there is no image processor for %r: %s", name, error)
        return None
    return preprocessing_of_processor(processor)


def preprocessing_of_processor(processor: Any) -> Preprocessing | None:
    """The same of an image processor."""
    picture = _picture()
    processed = _processed(processor, picture)
    if processed.ndim != 3 or processed.shape[0] not in (1, 3):
        return None
    mean, std = _normalisation(processor, len(processed))
    for preprocessing in _candidates(processor, processed.shape[1:], mean, std):
        if _does_the_same(preprocessing, picture, processed):
            return preprocessing
    return None


def _processed(processor: Any, picture: Image.Image) -> np.ndarray:
    """What the processor makes of a picture: (channel, y, x)."""
    return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float64)


def _picture() -> Image.Image:
    """A picture in which a shift of a few pixels, a mirror or swapped channels show."""
    height, width = PROBE_SIZE
    y, x = np.mgrid[:height, :width]
    channels = [128 + 127 * np.sin(x / 17 + y / 41), 255 * x / width, 128 + 100 * np.cos(y / 13)]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def _normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel as shares of white, from what becomes of black and of white."""
    black, white = (
        _processed(processor, Image.new("RGB", PROBE_SIZE[::-1], (level,) * 3)).reshape(channels, -1).mean(1)
        for level in (0, 255)
    )
    std = 1 / (white - black)
    mean = -black * std
    return _as_written(mean, getattr(processor, "image_mean", None)), _as_written(std, getattr(processor, "image_std", None))


def _as_written(measured: np.ndarray, written: Any) -> tuple[float, ...]:
    """The numbers of the processor's configuration where they are what was measured, which has fewer digits."""
    if isinstance(written, (list, tuple)) and np.shape(written) == measured.shape and np.allclose(measured, written, atol=1e-5):
        return tuple(map(float, written))
    return tuple(measured.round(6).tolist())


def _candidates(
    processor: Any, size: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[Preprocessing]:
    """What a processor may do, by its attributes: the ways in which those of transformers resize and crop."""
    height, width = int(size[0]), int(size[1])
    interpolation = INTERPOLATIONS.get(int(getattr(processor, "resample", None) or 2), "bilinear")
    side = min(height, width)
    asked = _sides(getattr(processor, "size", None))
    resizes: list[int | tuple[int, int] | None] = []
    if not getattr(processor, "do_resize", True):
        resizes.append(None)
    if "height" in asked and "width" in asked:
        resizes.append((asked["height"], asked["width"]))
    if "shortest_edge" in asked:
        edge = asked["shortest_edge"]
        resizes += [edge, int(edge / (getattr(processor, "crop_pct", None) or 1)), int(edge * 256 / 224), (edge, edge)]
    resizes += [side, (height, width)]
    crop = (height, width) if "longest_edge" not in asked else (side, side)
    for resize in dict.fromkeys(resizes):
        yield Preprocessing(resize, crop, mean, std, len(mean), interpolation)


def _sides(size: Any) -> dict[str, int]:
    if size is None:
        return {}
    items = size.items() if isinstance(size, Mapping) else vars(size).items()
    return {name: int(value) for name, value in items if value is not None}


def _does_the_same(preprocessing: Preprocessing, picture: Image.Image, processed: np.ndarray) -> bool:
    """True where the preprocessing makes of a picture what the processor does, or the square in the middle of that."""
    prepared = prepare(picture, preprocessing)
    pixels = prepared.transpose(2, 0, 1) / 255
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    expected = processed * std + mean
    top, left = ((expected.shape[axis + 1] - preprocessing.crop[axis]) // 2 for axis in (0, 1))
    expected = expected[:, top : top + preprocessing.crop[0], left : left + preprocessing.crop[1]]
    return pixels.shape == expected.shape and float(np.abs(pixels - expected).mean()) <= SAME_PICTURE
