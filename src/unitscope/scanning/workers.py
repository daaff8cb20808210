"""The work itself: shards of images in, parts out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from unitscope.layers import TracedLayer, tapped
from unitscope.networks import InputForm, exactly
from unitscope.readings import Reading, Spacing, Wanted, read
from unitscope.records import Shard
from unitscope.scanning.loading import Loaded, Loader
from unitscope.scanning.parts import Moments, Part, Reference, key_hash
from unitscope.scanning.plans import ScanPlan
from unitscope.topk import TopK

OnImages = Callable[[int], None]
"""Told how many more images were scanned."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs beside the network: which layers to read, how, and on what."""

    plan: ScanPlan
    layers: tuple[TracedLayer, ...]
    loader: Loader
    form: InputForm
    workers: int
    on_images: OnImages | None = None

    @property
    def units(self) -> list[int]:
        return [traced.layer.units for traced in self.layers]


@dataclass(slots=True)
class Worker:
    """Holds the network and what it has seen so far, so that later shards need look only at maps that beat it.

    What a shard's part leaves out for that reason can't be in the atlas: better peaks went out with earlier parts.
    """

    network: nn.Module
    job: Job
    _best: TopK = field(init=False)
    _reference: Reference = field(init=False)
    _spacings: list[Spacing | None] = field(init=False)

    def __post_init__(self) -> None:
        units = sum(self.job.units)
        self._best = TopK.empty(units, self.job.plan.k)
        self._reference = Reference.empty(units)
        self._spacings = [_spacing(t, self.job.form.device) if self.job.plan.per_image > 1 else None for t in self.job.layers]

    def __call__(self, shards: Iterable[Shard]) -> Iterator[Part]:
        """One part a shard, in order."""
        job = self.job
        batches = job.loader.batches(shards, job.plan.batch_size, job.workers)
        with exactly(self.network, job.form.device):
            for shard, run in groupby(batches, key=lambda batch: batch[0]):
                yield self._part(shard, (loaded for _, loaded in run))

    def _part(self, shard: Shard, batches: Iterable[list[Loaded]]) -> Part:
        part = Part.empty(sum(self.job.units), self.job.plan.k)
        highest, spoilt = [], []
        for batch in batches:
            part.skipped |= {one.image: (one.key, one.reason) for one in batch if one.note is None}
            good = [one for one in batch if one.note is not None]
            if good:
                reading = self._read(good)
                self._keep(part, good, reading)
                highest.append(reading.highest)
                spoilt.append(reading.spoilt)
            if self.job.on_images:
                self.job.on_images(len(batch))
        if highest:
            part.moments = Moments.of_shard(shard.number, torch.cat(highest), torch.cat(spoilt))
        else:
            part.moments = Moments.of_nothing(shard.number, sum(self.job.units))
        return part

    def _read(self, batch: list[Loaded]) -> Reading:
        """One forward pass; the readings of all layers side by side along the unit axis."""
        job = self.job
        hashes = torch.tensor([key_hash(one.key) for one in batch])
        sampled = self._reference.may_take(hashes).to(job.form.device)
        floors = self._best.floor().to(job.form.device).split(job.units)
        readings: dict[int, Reading] = {}

        def keep(number: int, maps: Tensor) -> None:
            wanted = Wanted(floors[number], sampled, job.layers[number].layer.rectified)
            readings[number] = read(maps, wanted, job.plan.per_image, self._spacings[number])

        images = job.loader.normalised([one.pixels for one in batch if one.pixels is not None], job.form)
        with torch.no_grad(), tapped(self.network, job.layers, keep) as tap:
            tap.run(images)
        in_order = [readings[number] for number in range(len(job.layers))]
        return Reading(*(torch.cat([getattr(r, name) for r in in_order], -1).cpu() for name in Reading.__dataclass_fields__))

    def _keep(self, part: Part, batch: list[Loaded], reading: Reading) -> None:
        images = torch.tensor([one.image for one in batch])
        candidates = images.repeat_interleave(self.job.plan.per_image)
        for best in (part.best, self._best):
            best.add(reading.values.flatten(0, 1), candidates, reading.cells.flatten(0, 1))
        hashes = torch.tensor([key_hash(one.key) for one in batch])
        taken = self._reference.may_take(hashes)
        if taken.any():
            sample = Reference(hashes[taken], images[taken], reading.highest[taken], reading.first_cells[taken].int())
            part.reference.merge(sample)
            self._reference.merge(sample)
        part.notes |= {one.image: one.note for one in batch if one.note is not None}
        part.labels += Counter(one.note.label for one in batch if one.note and one.note.label is not None)
        part.read += len(batch)


def _spacing(traced: TracedLayer, device: torch.device) -> Spacing:
    fields, layer = traced.fields, traced.layer
    y, x = (torch.tensor(c, dtype=torch.float32, device=device) for c in (fields.centres_y, fields.centres_x))
    return Spacing(y, x, layer.field_height / 2, layer.field_width / 2)
