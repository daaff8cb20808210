"""The work itself: shards of images in, parts out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import ceil
from typing import TypeVar

import torch
from torch import Tensor, nn

from unitscope.errors import UnitscopeError
from unitscope.layers import Trace, TracedLayer, pass_images, tapped
from unitscope.readings import Candidates, Picking, Reading, Spacing, by_comparing, by_pooling
from unitscope.records import Shard
from unitscope.runners import Failed
from unitscope.scanning.lanes import Networks, ahead, lanes
from unitscope.scanning.loading import Loaded, Loader
from unitscope.scanning.parts import Moments, Part, Reference, key_hash
from unitscope.scanning.plans import ScanPlan
from unitscope.topk import TopK

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs beside the network: which layers to read, how, and on what."""

    plan: ScanPlan
    trace: Trace
    layers: tuple[TracedLayer, ...]
    loader: Loader
    workers: int

    @property
    def units(self) -> list[int]:
        return [traced.layer.units for traced in self.layers]

    @property
    def device(self) -> torch.device:
        return self.trace.form.device


@dataclass(frozen=True, slots=True)
class Pass:
    """Images of one shard that go through the network together."""

    shard: Shard
    images: range


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass gave: all its images, and what was read of those that could be loaded, layers side by side along the unit axis.

    `candidates` are None where the readings are the only ones. `failure` says why there is nothing.
    """

    shard: Shard
    loaded: list[Loaded]
    reading: Reading | None = None
    candidates: Candidates | None = None
    failure: str = ""


@dataclass(slots=True)
class Worker:
    """Holds copies of the network and the best that it has seen, so that later shards keep only what beats it.

    What a shard's part leaves out for that reason can't be in the atlas: better peaks went out with earlier parts.
    """

    networks: Networks
    job: Job
    _best: TopK = field(init=False)
    _lowest_hashes: Reference = field(init=False)
    _rectified: Tensor = field(init=False)
    _pickings: list[Picking] = field(init=False)

    def __post_init__(self) -> None:
        layers, plan, device = self.job.layers, self.job.plan, self.job.device
        self._best = TopK.empty(sum(self.job.units), plan.k, device)
        self._lowest_hashes = Reference.empty(0)
        rectified = torch.tensor([t.layer.rectified for t in layers], device=device)
        self._rectified = rectified.repeat_interleave(torch.tensor(self.job.units, device=device))
        floors = self._best.floor().split(self.job.units)
        self._pickings = (
            [Picking(plan.per_image, _spacing(t, device), t.layer.rectified, f) for t, f in zip(layers, floors, strict=True)]
            if plan.per_image > 1
            else []
        )

    def __call__(self, shards: Iterable[Shard]) -> Iterator[Part | Failed]:
        """One part a shard, in order; what goes wrong in one, other than what a user can mend, leaves the others alone."""
        for shard, passes in groupby(self._passes(shards), key=lambda one: one.shard):
            done = list(passes)
            failure = next((one.failure for one in done if one.failure), "")
            yield Failed(shard, failure) if failure else self._part(shard, done)

    def _passes(self, shards: Iterable[Shard]) -> Iterator[Passed]:
        """All passes in order; images are decoded and networks run in threads of their own, some passes ahead."""
        job = self.job
        length = self._pass_images()
        passes = (
            Pass(shard, range(start, min(start + length, shard.stop)))
            for shard in shards
            for start in range(shard.start, shard.stop, length)
        )
        most = 2 * len(self.networks.lanes) + ceil(2 * job.workers / length)
        with self._decoding() as decode, lanes(self.networks.lanes, job.device) as submit:
            yield from ahead(lambda one: submit(self._run, (one, decode(one))), passes, most)

    def _pass_images(self) -> int:
        batch_size = self.job.plan.batch_size
        return pass_images(self.networks.module, self.job.trace, batch_size) if self.job.device.type == "cpu" else batch_size

    @contextmanager
    def _decoding(self) -> Iterator[Callable[[Pass], Callable[[], list[Loaded]]]]:
        """A function that begins to load a pass's images and gives a function that waits for them."""
        job = self.job
        if job.workers == 0:
            yield lambda one: partial(_loaded, job.loader, one)
            return
        with ThreadPoolExecutor(job.workers, thread_name_prefix="decode") as pool:

            def begin(one: Pass) -> Callable[[], list[Loaded]]:
                return partial(_results, [pool.submit(job.loader.load, image) for image in one.images])

            try:
                yield begin
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, network: nn.Module, item: tuple[Pass, Callable[[], list[Loaded]]]) -> Passed:
        one, load = item
        try:
            loaded = load()
            if all(image.pixels is None for image in loaded):
                return Passed(one.shard, loaded)
            return self._pooled(network, one.shard, loaded) or self._compared(network, one.shard, loaded)
        except UnitscopeError:
            raise
        except Exception as error:
            said = (str(error).splitlines() or ["no message"])[0]
            return Passed(one.shard, [], failure=f"{type(error).__name__}: {said}")

    def _pooled(self, network: nn.Module, shard: Shard, loaded: list[Loaded]) -> Passed | None:
        """In the fast way; None where that won't do."""
        if self.job.device.type != "cpu" or self._pickings:
            return None
        found = self._each(network, loaded, lambda _, maps: by_pooling(maps))
        highest, cells = (torch.cat(columns, 1) for columns in zip(*found, strict=True))
        spoilt = highest.isnan()
        return None if spoilt.any() else Passed(shard, loaded, Reading(highest, cells, spoilt))

    def _compared(self, network: nn.Module, shard: Shard, loaded: list[Loaded]) -> Passed:
        def look(number: int, maps: Tensor) -> tuple[Reading, Candidates | None]:
            reading = by_comparing(maps)
            return reading, self._pickings[number].of(maps, reading) if self._pickings else None

        readings, candidates = zip(*self._each(network, loaded, look), strict=True)
        return Passed(shard, loaded, Reading.joined(readings, 1), Candidates.joined(candidates, 2) if self._pickings else None)

    def _each(self, network: nn.Module, loaded: list[Loaded], look: Callable[[int, Tensor], Result]) -> list[Result]:
        """What `look` says of every layer's maps, in one forward pass."""
        found: dict[int, Result] = {}
        pixels = [image.pixels for image in loaded if image.pixels is not None]
        images = self.job.loader.normalised(pixels, self.job.trace.form)
        with (
            torch.no_grad(),
            tapped(network, self.job.layers, lambda number, maps: found.update({number: look(number, maps)})) as tap,
        ):
            tap.run(images)
        return [found[number] for number in range(len(self.job.layers))]

    def _part(self, shard: Shard, passes: Iterable[Passed]) -> Part:
        units = sum(self.job.units)
        part = Part.empty(units, self.job.plan.k)
        part.moments = Moments.of_nothing(shard.number, units)
        loaded, read = [], []
        for passed in passes:
            loaded += passed.loaded
            if passed.reading is not None:
                read.append(passed)
        part.skipped = {one.image: (one.key, one.reason) for one in loaded if one.note is None}
        if read:
            good = [one for one in loaded if one.note is not None]
            self._note(part, good)
            self._rank(part, good, read)
            reading = Reading.joined([passed.reading for passed in read if passed.reading], 0)
            part.moments = Moments.of_shard(shard.number, reading.highest.cpu(), reading.spoilt.cpu())
            self._sample(part, good, reading)
        return part

    def _note(self, part: Part, loaded: list[Loaded]) -> None:
        part.notes = {one.image: one.note for one in loaded if one.note is not None}
        part.labels = Counter(one.note.label for one in loaded if one.note and one.note.label is not None)
        part.read = len(loaded)

    def _rank(self, part: Part, loaded: list[Loaded], read: list[Passed]) -> None:
        """Put those candidates into the part that come in among the best so far."""
        values, cells = (torch.cat(columns) for columns in zip(*map(self._candidates, read), strict=True))
        images = torch.tensor([one.image for one in loaded], device=self.job.device).repeat_interleave(self.job.plan.per_image)
        best = TopK.empty(sum(self.job.units), self.job.plan.k, self.job.device)
        best.add(values, images, cells, floor=self._best.floor())
        self._best.merge(best)
        part.best = best.to("cpu")

    def _candidates(self, passed: Passed) -> tuple[Tensor, Tensor]:
        """Values and cells, of shape (candidate, unit)."""
        if passed.candidates is not None:
            return passed.candidates.values.flatten(0, 1), passed.candidates.cells.flatten(0, 1)
        assert passed.reading is not None  # noqa: S101 - for the type checker
        highest = passed.reading.highest
        return highest.masked_fill((highest <= 0) & self._rectified, torch.nan), passed.reading.cells

    def _sample(self, part: Part, loaded: list[Loaded], reading: Reading) -> None:
        """Put those images into the part that could come into the reference sample."""
        hashes = torch.tensor([key_hash(one.key) for one in loaded])
        taken = self._lowest_hashes.may_take(hashes)
        images = torch.tensor([one.image for one in loaded])[taken]
        highest, cells = reading.highest.cpu()[taken], reading.cells.cpu()[taken].int()
        part.reference = Reference(hashes[taken], images, highest, cells)
        self._lowest_hashes.merge(Reference(hashes[taken], images, highest[:, :0], cells[:, :0]))


def _loaded(loader: Loader, one: Pass) -> list[Loaded]:
    return [loader.load(image) for image in one.images]


def _results(futures: "list[Future[Loaded]]") -> list[Loaded]:
    return [future.result() for future in futures]


def _spacing(traced: TracedLayer, device: torch.device) -> Spacing:
    fields, layer = traced.fields, traced.layer
    y, x = (torch.tensor(c, dtype=torch.float32, device=device) for c in (fields.centres_y, fields.centres_x))
    return Spacing(y, x, layer.field_height / 2, layer.field_width / 2)
