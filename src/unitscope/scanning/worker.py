"""The work itself: shards of images in, parts out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from math import ceil
from typing import TypeVar

import torch
from torch import Tensor, nn

from unitscope.errors import UnitscopeError, first_line
from unitscope.images import FileBroken, Item, items_of
from unitscope.images.content import mixed, total
from unitscope.layers import Trace, TracedLayer, tapped
from unitscope.records import Shard
from unitscope.runners import Failed
from unitscope.scanning.partial_results import PartialResult, RunningStatistics, Sample, key_hash
from unitscope.scanning.plan import ScanPlan
from unitscope.session.lanes import Networks, ahead, lanes
from unitscope.session.loader import Loaded, Loader
from unitscope.session.readers import readers
from unitscope.session.replicas import pass_images
from unitscope.spatial_max import Candidates, PeakPicker, Spacing, SpatialMax, concatenated, highest_cell, highest_cell_by_pooling
from unitscope.topk import TopK

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs beside the network: which layers to read, how, with how many readers of images (`workers`), and on what: all
    images, or `only` those."""

    plan: ScanPlan
    trace: Trace
    layers: tuple[TracedLayer, ...]
    loader: Loader
    workers: int
    only: frozenset[int] | None = None

    @property
    def units(self) -> list[int]:
        return [traced.layer.units for traced in self.layers]

    @property
    def device(self) -> torch.device:
        return self.trace.input_format.device


@dataclass(frozen=True, slots=True)
class Pass:
    """Images of one shard that go through the network together, or why there are none."""

    shard: Shard
    items: tuple[Item, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass gave: all its images, and what was read of those that could be loaded, layers side by side along the unit axis.

    `candidates` are None where the readings are the only ones. `failure` says why there is nothing.
    """

    shard: Shard
    loaded: list[Loaded]
    reading: SpatialMax | None = None
    candidates: Candidates | None = None
    failure: str = ""


@dataclass(slots=True)
class Worker:
    """Holds copies of the network and the best of the shards that it has done, so that later ones keep only what beats it.

    What a shard's part leaves out for that reason can't be in the atlas: better peaks went out with earlier parts. A shard that
    fails leaves nothing behind.
    """

    networks: Networks
    job: Job
    _best: TopK = field(init=False)
    _lowest_hashes: Sample = field(init=False)
    _rectified: Tensor = field(init=False)
    _pickings: list[PeakPicker] = field(init=False)

    def __post_init__(self) -> None:
        layers, plan, device = self.job.layers, self.job.plan, self.job.device
        self._best = TopK.empty(sum(self.job.units), plan.k, device)
        self._lowest_hashes = Sample.empty(0, self.job.plan.sample)
        rectified = torch.tensor([t.layer.rectified for t in layers], device=device)
        self._rectified = rectified.repeat_interleave(torch.tensor(self.job.units, device=device))
        floors = self._best.kth_values().split(self.job.units)
        self._pickings = (
            [PeakPicker(plan.per_image, _spacing(t, device), t.layer.rectified, f) for t, f in zip(layers, floors, strict=True)]
            if plan.per_image > 1
            else []
        )

    def __call__(self, shards: Iterable[Shard]) -> Iterator[PartialResult | Failed]:
        """One part a shard, in order; what goes wrong in one, other than what a user can mend, leaves the others alone."""
        for shard, passes in groupby(self._passes(shards), key=lambda one: one.shard):
            yield self._part(shard, passes)

    def _passes(self, shards: Iterable[Shard]) -> Iterator[Passed]:
        """All passes in order; networks run in threads of their own, some passes ahead, and so are images read (see `readers`)."""
        job = self.job
        length = pass_images(self.networks.module, job.trace, job.plan.batch_size)
        passes = (one for shard in shards for one in self._cut(shard, length))
        most = 2 * len(self.networks.lanes) + ceil(2 * job.workers / length)
        with readers(job.loader, job.workers) as begin, lanes(self.networks.lanes, job.device) as submit:
            yield from ahead(lambda one: submit(self._run, (one, begin(one.items))), passes, most)

    def _cut(self, shard: Shard, length: int) -> Iterator[Pass]:
        """The shard in passes; where its images can't be read to the end, the last one says why."""
        items, only = items_of(self.job.loader.source, shard), self.job.only
        if only is not None:
            items = (item for item in items if item.image in only)
        try:
            while taken := tuple(islice(items, length)):
                yield Pass(shard, taken)
        except FileBroken as error:
            yield Pass(shard, (), str(error))

    def _run(self, network: nn.Module, item: tuple[Pass, Callable[[], list[Loaded]]]) -> Passed:
        one, load = item
        if one.failure:
            return Passed(one.shard, [], failure=one.failure)
        try:
            loaded = load()
            if all(image.pixels is None for image in loaded):
                return Passed(one.shard, loaded)
            passed = self._pooled(network, one.shard, loaded) or self._compared(network, one.shard, loaded)
            return replace(passed, loaded=[replace(image, pixels=None) for image in loaded])
        except UnitscopeError:
            raise
        except Exception as error:
            return Passed(one.shard, [], failure=f"{type(error).__name__}: {first_line(error)}")

    def _pooled(self, network: nn.Module, shard: Shard, loaded: list[Loaded]) -> Passed | None:
        """In the fast way; None where that won't do."""
        if self.job.device.type != "cpu" or self._pickings:
            return None
        found = self._each(network, loaded, lambda _, maps: highest_cell_by_pooling(maps))
        highest, cells = (torch.cat(columns, 1) for columns in zip(*found, strict=True))
        spoilt = highest.isnan()
        return None if spoilt.any() else Passed(shard, loaded, SpatialMax(highest, cells, spoilt))

    def _compared(self, network: nn.Module, shard: Shard, loaded: list[Loaded]) -> Passed:
        def look(number: int, maps: Tensor) -> tuple[SpatialMax, Candidates | None]:
            reading = highest_cell(maps)
            return reading, self._pickings[number].pick(maps, reading) if self._pickings else None

        readings, candidates = zip(*self._each(network, loaded, look), strict=True)
        return Passed(shard, loaded, concatenated(readings, -1), concatenated(candidates, -1) if self._pickings else None)

    def _each(self, network: nn.Module, loaded: list[Loaded], look: Callable[[int, Tensor], Result]) -> list[Result]:
        """What `look` says of every layer's maps, in one forward pass."""
        found: dict[int, Result] = {}
        pixels = [image.pixels for image in loaded if image.pixels is not None]
        images = self.job.loader.normalised(pixels, self.job.trace.input_format)
        with (
            torch.no_grad(),
            tapped(network, self.job.layers, lambda number, maps: found.update({number: look(number, maps)})) as tap,
        ):
            tap.run(images)
        return [found[number] for number in range(len(self.job.layers))]

    def _part(self, shard: Shard, passes: Iterable[Passed]) -> PartialResult | Failed:
        """The shard's part, from runs of as many images as a numbered shard has, one run after the other."""
        whole, failure = None, ""
        for run in _runs(passes, self.job.plan.shard_images):
            failure = failure or next((passed.failure for passed in run if passed.failure), "")
            if failure:
                continue
            part = self._of_run(shard, run)
            if whole is None:
                whole = part
            else:
                whole.merge(part)
        if failure or whole is None:
            return Failed(shard, failure)
        self._best.merge(whole.best.to(self.job.device))
        self._lowest_hashes.merge(whole.sample.without_units())
        return whole

    def _of_run(self, shard: Shard, run: list[Passed]) -> PartialResult:
        units = sum(self.job.units)
        part = PartialResult.empty(units, self.job.plan.k, self.job.plan.sample)
        part.moments = RunningStatistics.of_nothing(shard.number, units)
        loaded = [one for passed in run for one in passed.loaded]
        part.skipped = {one.image: (one.key, one.reason) for one in loaded if one.note is None}
        read = [passed for passed in run if passed.reading is not None]
        if read:
            good = [one for one in loaded if one.note is not None]
            hashes = torch.tensor([key_hash(one.key) for one in good])
            self._note(part, good)
            self._rank(part, good, hashes, read)
            reading = concatenated([passed.reading for passed in read if passed.reading], 0)
            part.moments = RunningStatistics.of_shard(shard.number, reading.values.cpu(), reading.has_nan.cpu())
            self._sample(part, good, hashes, reading)
        return part

    def _note(self, part: PartialResult, loaded: list[Loaded]) -> None:
        part.notes = {one.image: one.note for one in loaded if one.note is not None}
        part.labels = Counter(one.note.label for one in loaded if one.note and one.note.label is not None)
        part.read = len(loaded)
        part.contents = total(mixed(one.note.key, one.note.content) for one in loaded if one.note)

    def _rank(self, part: PartialResult, loaded: list[Loaded], hashes: Tensor, read: list[Passed]) -> None:
        """Put those candidates into the part that come in among the best so far."""
        values, cells = (torch.cat(columns) for columns in zip(*map(self._candidates, read), strict=True))
        numbers = (hashes, torch.tensor([one.image for one in loaded]))
        hashes, images = (n.to(self.job.device).repeat_interleave(self.job.plan.per_image) for n in numbers)
        best = TopK.empty(sum(self.job.units), self.job.plan.k, self.job.device)
        best.add(values, hashes, images, cells, kth_values=self._best.kth_values())
        part.best = best.to("cpu")

    def _candidates(self, passed: Passed) -> tuple[Tensor, Tensor]:
        """Values and cells, of shape (candidate, unit)."""
        if passed.candidates is not None:
            return passed.candidates.values.flatten(0, 1), passed.candidates.cells.flatten(0, 1)
        assert passed.reading is not None  # noqa: S101 - for the type checker
        highest = passed.reading.values
        return highest.masked_fill((highest <= 0) & self._rectified, torch.nan), passed.reading.cells

    def _sample(self, part: PartialResult, loaded: list[Loaded], hashes: Tensor, reading: SpatialMax) -> None:
        """Put those images into the part that could come into the sample."""
        taken = self._lowest_hashes.may_take(hashes)
        images = torch.tensor([one.image for one in loaded])[taken]
        highest, cells = reading.values.cpu()[taken], reading.cells.cpu()[taken].int()
        part.sample = Sample(hashes[taken], images, highest, cells, self.job.plan.sample)


def _runs(passes: Iterable[Passed], images: int) -> Iterator[list[Passed]]:
    """Passes of at least so many images together; the last ones may be fewer."""
    run: list[Passed] = []
    for passed in passes:
        run.append(passed)
        if sum(len(one.loaded) for one in run) >= images or passed.failure:
            yield run
            run = []
    if run:
        yield run


def _spacing(traced: TracedLayer, device: torch.device) -> Spacing:
    fields, layer = traced.fields, traced.layer
    y, x = (torch.tensor(c, dtype=torch.float32, device=device) for c in (fields.centres_y, fields.centres_x))
    return Spacing(y, x, layer.receptive_field_height / 2, layer.receptive_field_width / 2)
