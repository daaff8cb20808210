"""Effective fields of the scanned layers, measured on a few images of the sample."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from unitscope.effective import Pick, effective_size, energies
from unitscope.images.protocol import Pixels
from unitscope.records import Layer
from unitscope.scanning.lanes import Networks, lanes
from unitscope.scanning.loading import Loader
from unitscope.scanning.parts import ImageSample, Part, side_by_side
from unitscope.scanning.workers import Job

IMAGES = 2

Picks = list[list[Pick]]
"""For every layer, the cells to look at: at most one an image."""


def with_effective_fields(networks: Networks, job: Job, part: Part) -> list[Layer]:
    """The layers' records with effective fields.

    In each of two images, one unit a layer is looked at: the one whose peak there stands out most among its own peaks.
    """
    readable = _readable(part.sample, job.loader)
    choices = [_picks(part.sample, place, job) for place, _ in readable]

    def measured(network: nn.Module, number: int) -> list[Tensor | None]:
        images = job.loader.normalised([readable[number][1]], job.trace.form)
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


def _readable(sample: ImageSample, loader: Loader) -> list[tuple[int, Pixels]]:
    """The first images of the sample that can still be read: their places in it, and their pixels."""
    found: list[tuple[int, Pixels]] = []
    for place in sample.images.argsort().tolist():
        pixels = loader.load(int(sample.images[place])).pixels
        if pixels is not None:
            found.append((place, pixels))
        if len(found) == IMAGES:
            break
    return found


def _picks(sample: ImageSample, place: int, job: Job) -> Picks:
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
