"""Effective fields: how much of its field a layer really listens to.

The smallest box around a cell that holds 95 % of the squared gradient of its value with respect to the input, averaged over some
peaks (Luo, Li, Urtasun & Zemel 2016, *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*,
arXiv 1701.04128). Deep layers of modern networks have fields larger than the image; this says which part of it matters.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from unitscope.layers import TracedLayer, tapped
from unitscope.networks import exactly

SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Pick:
    """One peak whose gradient is looked at."""

    unit: int
    image: int
    y: int
    x: int


def effective_field(
    network: nn.Module, traced: TracedLayer, picks: Sequence[Pick], load: Callable[[Iterable[int]], Tensor]
) -> tuple[int, int] | None:
    """Height and width of the box in network-input pixels, no larger than the input; None where no gradient comes through.

    `load` gives the inputs of some images, of shape (image, channel, y, x). The box grows around the cell's own place, which may
    lie between pixels, and keeps the shape of the field: a few gradients say how far a layer listens, not that it listens
    farther up than sideways.
    """
    if not picks:
        return None
    energy = _energy(network, traced, picks, load([pick.image for pick in picks]))
    if energy is None or not energy.sum() > 0:
        return None
    shape = traced.layer.field_height, traced.layer.field_width
    centres = [(float(traced.fields.centres_y[p.y]), float(traced.fields.centres_x[p.x])) for p in picks]
    needed = torch.stack([_needed(energy.shape[1:], centre, shape) for centre in centres])
    height, width = box_holding(energy.flatten(), needed.flatten(), shape)
    return min(height, energy.shape[1]), min(width, energy.shape[2])


def box_holding(energy: Tensor, needed: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the smallest box of that shape that holds the share of the energy, in whole pixels.

    `needed` says for each bit of energy how large the box must be to hold it, as a share of `shape`.
    """
    order = needed.argsort()
    held = energy[order].cumsum(0)
    scale = float(needed[order][int((held < SHARE * held[-1]).sum())])
    height, width = (max(1, ceil(scale * side - 1e-6)) for side in shape)
    return height, width


def _needed(size: torch.Size, centre: tuple[float, float], shape: tuple[int, int]) -> Tensor:
    """The share of `shape` that a box around `centre` must have to hold each pixel of an image whole."""
    rows, columns = (
        (2 * (torch.arange(n, dtype=torch.float64) + 0.5 - middle).abs() + 1) / side
        for n, middle, side in zip(size, centre, shape, strict=True)
    )
    return torch.maximum(rows[:, None], columns)


def _energy(network: nn.Module, traced: TracedLayer, picks: Sequence[Pick], images: Tensor) -> Tensor | None:
    """The squared gradient of each pick's value, of shape (pick, y, x), in float64 and each with sum 1."""
    unit, y, x = (torch.tensor([getattr(p, name) for p in picks], device=images.device) for name in ("unit", "y", "x"))
    values: list[Tensor] = []

    def keep(_: int, maps: Tensor) -> None:
        values.append(maps[torch.arange(len(maps), device=maps.device), unit, y, x])

    leaf = images.requires_grad_()
    try:
        with torch.enable_grad(), exactly(network, images.device):
            with tapped(network, [traced], keep) as tap:
                tap.run(leaf.clone())  # a copy, so that networks may change their input in place
            if not values[0].requires_grad:
                return None
            gradient = torch.autograd.grad(values[0].sum(), leaf, allow_unused=True, materialize_grads=True)[0]
    except RuntimeError:
        return None  # autograd has no way back, as through some in-place operations
    energy = gradient.detach().cpu().double().nan_to_num(0, 0, 0).square().sum(1)
    return energy / energy.sum((1, 2), keepdim=True).clamp(min=1e-300)
