"""What the tests compare with: slow, plain, and independent of the code under test."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.fields import Fields


def make_transparent(network: nn.Module, spread: float = 0.5) -> nn.Module:
    """Give a network weights with which a change of any pixel shows in every cell that can depend on it.

    All weights are positive and all biases zero, so from an input of zeros every activation is zero and any positive change
    travels on as a positive number, however small. Weights shrink with the window to the power `spread`: with a half neither the
    middle of a field overflows nor its corner vanishes in float64; with one, activations stay as small as the input, which
    keeps sigmoids from saturating.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            window = math.prod(module.weight.shape[2:])
            fan_in = module.weight.shape[1] if not isinstance(module, nn.ConvTranspose2d) else module.weight.shape[0]
            nn.init.constant_(module.weight, 1 / (window**spread * fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
    return network.double().eval()


def moved_cells(network: nn.Module, read, size: tuple[int, int], base: float = 0.0, channels: int = 3) -> list[list[Tensor]]:
    """For both axes and every layer, whether a change of input row (column) i moves a cell: bool of shape (i, unit, y, x).

    `read(network, images)` gives the layers' maps, each of shape (image, unit, y, x).
    """
    result = []
    for axis in (0, 1):
        per_layer: dict[int, list[Tensor]] = {}
        with torch.no_grad():
            calm = read(network, torch.full((1, channels, *size), base, dtype=torch.float64))
            for chunk in torch.arange(size[axis]).split(16):
                images = torch.full((len(chunk), channels, *size), base, dtype=torch.float64)
                for image, place in zip(images, chunk, strict=True):
                    image.select(axis + 1, int(place)).fill_(base + 1.0)
                for number, (maps, still) in enumerate(zip(read(network, images), calm, strict=True)):
                    per_layer.setdefault(number, []).append(maps != still)
        result.append([torch.cat(parts) for parts in per_layer.values()])
    return result


def first_and_last(moved: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The half-open range of input places that move each cell, of shape (unit, y, x); (0, 0) where none does."""
    places = torch.arange(len(moved))[(...,) + (None,) * (moved.dim() - 1)]
    stop = torch.where(moved, places + 1, 0).amax(0)
    start = torch.where(moved, places, len(moved)).amin(0)
    return torch.where(stop > 0, start, 0).numpy(), stop.numpy()


def assert_boxes_equal(fields: Fields, moved: Sequence[Tensor], size: tuple[int, int], where: str = "") -> None:
    """The clipped box of every cell is what perturbation found: `moved` for rows and for columns, each of shape (i, unit, y, x).

    A cell that nothing moves sees padding alone: its box must lie beyond the input, or have no rows or no columns.
    """
    known = [np.clip(bounds, 0, length) for bounds, length in zip((fields.rows, fields.columns), size, strict=True)]
    true = [first_and_last(of_axis) for of_axis in moved]
    seen = true[0][1] > 0
    for (start, stop), (true_start, true_stop) in zip(known, true, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(start, seen.shape)[seen], true_start[seen], err_msg=where)
        np.testing.assert_array_equal(np.broadcast_to(stop, seen.shape)[seen], true_stop[seen], err_msg=where)
    empty = (known[0][0] >= known[0][1]) | (known[1][0] >= known[1][1])
    np.testing.assert_array_equal(np.broadcast_to(empty, seen.shape), ~seen, err_msg=where)
