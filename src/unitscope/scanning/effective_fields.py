"""Effective receptive fields of the scanned layers: how much of its receptive field a layer really depends on.

The smallest box around a cell that holds 95 % of the squared gradient of its value with respect to the input, averaged over the
peaks of a few images of the sample (Luo, Li, Urtasun & Zemel 2016, *Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks*, arXiv 1701.04128). Deep layers of modern networks have fields larger than the image; this says which part of it matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn

from unitscope.images.protocol import Pixels
from unitscope.layers import TracedLayer, tapped
from unitscope.networks.precision import exact_inference
from unitscope.records import Layer
from unitscope.scanning.partial_results import PartialResult, Sample, side_by_side
from unitscope.scanning.worker import Job
from unitscope.session.lanes import Networks, lanes
from unitscope.session.loader import Loader

IMAGES = 2
SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Pick:
    """One cell whose gradient is looked at; `place` is the image's place in the batch."""

    unit: int
    place: int
    y: int
    x: int


Picks = list[list[Pick]]
"""For every layer, the cells to look at: at most one an image."""


def with_effective_fields(networks: Networks, job: Job, part: PartialResult) -> list[Layer]:
    """The layers' records with effective fields.

    In each of two images, one unit a layer is looked at: the one whose peak there stands out most among its own peaks.
    """
    readable = _readable(part.sample, job.loader)
    choices = [_picks(part.sample, place, job) for place, _ in readable]

    def measured(network: nn.Module, number: int) -> list[Tensor | None]:
        images = job.loader.normalised([readable[number][1]], job.trace.input_format)
        return energies(network, job.layers, choices[number], images)

    with lanes(networks.lanes, job.device) as submit:
        found = [future.result() for future in [submit(measured, number) for number in range(len(readable))]]
    records = []
    for number, traced in enumerate(job.layers):
        picks = [p for choice, energy in zip(choices, found, strict=True) if energy[number] is not None for p in choice[number]]
        energy = [e for energy in found if (e := energy[number]) is not None]
        size = effective_size(traced, picks, torch.cat(energy)) if energy else None
        records.append(
            replace(traced.layer, effective_field_height=size[0], effective_field_width=size[1]) if size else traced.layer
        )
    return records


def _readable(sample: Sample, loader: Loader) -> list[tuple[int, Pixels]]:
    """The first images of the sample that can still be read: their places in it, and their pixels."""
    found: list[tuple[int, Pixels]] = []
    for place in sample.images.argsort().tolist():
        pixels = loader.load(int(sample.images[place])).pixels
        if pixels is not None:
            found.append((place, pixels))
        if len(found) == IMAGES:
            break
    return found


def _picks(sample: Sample, place: int, job: Job) -> Picks:
    """For every layer, the unit that stands out most in one image, and its cell; none where no unit fires."""
    values = sample.values
    apart = values - values.nanmean(0)
    stands_out = apart[place] / apart.square().nanmean(0).sqrt().clamp(min=1e-12)
    picks: Picks = []
    for traced, units in side_by_side(job.layers):
        fires = values[place, units] > 0 if traced.layer.rectified else ~values[place, units].isnan()
        score = stands_out[units].nan_to_num(0, 0, 0).masked_fill(~fires, -torch.inf)
        unit = int(score.argmax())
        y, x = divmod(int(sample.cells[place, units][unit]), traced.layer.map_width)
        picks.append([Pick(unit, 0, y, x)] if fires.any() else [])
    return picks


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
    with torch.enable_grad(), exact_inference(network, images.device):
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
