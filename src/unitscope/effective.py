"""Effective fields: how much of its field a layer really listens to.

The smallest box around a cell that holds 95 % of the squared gradient of its value with respect to the input, averaged over the
peaks of a few images (Luo, Li, Urtasun & Zemel 2016, *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*,
arXiv 1701.04128). Deep layers of modern networks have fields larger than the image; this says which part of it matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from unitscope.layers import TracedLayer, tapped
from unitscope.precision import exactly

SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Pick:
    """One cell whose gradient is looked at; `place` is the image's place in the batch."""

    unit: int
    place: int
    y: int
    x: int


def energies(
    network: nn.Module, layers: Sequence[TracedLayer], picks: Sequence[Sequence[Pick]], images: Tensor
) -> list[Tensor | None]:
    """For every layer the squared gradients of its picks' values, of shape (pick, y, x), in float64 and each with sum 1.

    One forward pass serves all layers. None where a layer has no picks, or no gradient comes through.
    """
    values: dict[int, Tensor] = {}

    def keep(number: int, maps: Tensor) -> None:
        where = [(p.place, p.unit, p.y, p.x) for p in picks[number]]
        if where:
            values[number] = maps[tuple(torch.tensor(where, device=maps.device).T)].sum()

    leaf = images.detach().requires_grad_()
    with torch.enable_grad(), exactly(network, images.device):
        try:
            with tapped(network, layers, keep) as tap:
                tap.run(leaf.clone())  # a copy, so that networks may change their input in place
        except RuntimeError:
            pass  # what autograd can't follow comes after the layers that were read by then
        return [_energy(values.get(number), leaf, layer) for number, layer in enumerate(picks)]


def _energy(value: Tensor | None, leaf: Tensor, picks: Sequence[Pick]) -> Tensor | None:
    if value is None or not value.requires_grad:
        return None
    try:
        gradient = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
    except RuntimeError:
        return None  # autograd has no way back, as through some in-place operations
    energy = gradient[[pick.place for pick in picks]].detach().cpu().double().nan_to_num(0, 0, 0).square().sum(1)
    return energy / energy.sum((1, 2), keepdim=True).clamp(min=1e-300)


def effective_size(traced: TracedLayer, picks: Sequence[Pick], energy: Tensor | None) -> tuple[int, int] | None:
    """Height and width of the box in network-input pixels, no larger than the input; None where there is no energy.

    The box grows around the cell's own place, which may lie between pixels, and keeps the shape of the field: a few gradients say
    how far a layer listens, not that it listens farther up than sideways.
    """
    if energy is None or not energy.sum() > 0:
        return None
    shape = traced.layer.receptive_field_height, traced.layer.receptive_field_width
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
