"""Noise in place of images, the layers' activation maps of it, and how far two networks' maps of it are apart.

There are three noise images, the same every time and each louder than the one before.
"""

import random
from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.layers.tapping import tapped
from unitscope.layers.tracing import Trace, TracedLayer
from unitscope.networks.precision import exact_inference

NOISE_IMAGES = 3
NOISE_GAIN = 3
"""How many times as loud each noise image is as the one before: a network that keeps the largest value that it has met must notice."""
BATCH = (1, 0, 2, 0)
"""The noise image at each position of the batch: the first one between others and behind them, the second one in front."""
BATCH_POSITIONS = ((1, 3), (0,))
"""The positions of the first noise image in the batch, and of the second."""
KEPT_POSITIONS = (1, 0)
"""The positions in the batch whose maps are kept: one of the first noise image, and that of the second."""


def noise_images(trace: Trace, count: int) -> Tensor:
    """The first noise images, of shape (image, channel, y, x) and in the format of the traced input."""
    noise = torch.randn(NOISE_IMAGES, *trace.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    gains = NOISE_GAIN ** torch.arange(count, dtype=torch.float32)
    return trace.input_format.convert(noise[:count] * gains.reshape(-1, 1, 1, 1))


def noise_batch(trace: Trace) -> Tensor:
    """The noise images that run together (see `BATCH`)."""
    return trace.input_format.convert(noise_images(trace, NOISE_IMAGES)[list(BATCH)])


def perturb_last_bits(images: Tensor) -> Tensor:
    """The images with their last bits changed, as rounding before the network would."""
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).sign().to(images)
    return images * (1 + torch.finfo(images.dtype).eps * signs)


def seed_generators(seed: int) -> None:
    """Seed the random generators of torch, Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def read_maps(
    network: nn.Module,
    layers: Sequence[TracedLayer],
    images: Tensor,
    positions: Sequence[int] = (0,),
    on_maps: Callable[[int, Tensor], None] | None = None,
) -> list[Tensor]:
    """The maps at some positions of a batch of images, layer by layer, of shape (image, unit, y, x).

    `on_maps` is called inside the hooks with each layer's index and the maps of all images.
    """
    maps_by_layer: dict[int, Tensor] = {}

    def keep(index: int, maps: Tensor) -> None:
        maps_by_layer[index] = maps[list(positions)]
        if on_maps is not None:
            on_maps(index, maps)

    with torch.no_grad(), exact_inference(network, images.device), tapped(network, layers, keep) as tap:
        tap.run(images)
    return [maps_by_layer[index] for index in range(len(layers))]


def layer_deviations(maps: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """The deviation of maps, layer by layer."""
    return [deviation(*pair) for pair in zip(maps, expected, strict=True)]


def deviation(maps: Tensor, expected: Tensor) -> float:
    """The largest difference between two layers' maps, as a share of the highest expected value.

    It is infinite where infinities or NaN stand in other cells.
    """
    if torch.equal(maps, expected):
        return 0.0
    difference, highest = (maps - expected).abs().max(), expected.abs().max()
    if not (difference.isfinite() and highest.isfinite()):  # few layers hold infinities or NaN
        not_finite = ~expected.isfinite()
        if not torch.allclose(maps[not_finite], expected[not_finite], equal_nan=True):
            return inf
        difference, highest = ((values.nan_to_num(0, 0, 0)).abs().max() for values in (maps - expected, expected))
    return float(difference / highest) if highest else (inf if difference else 0.0)
