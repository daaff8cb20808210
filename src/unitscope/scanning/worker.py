"""A worker: shards of images in, a partial result a shard out.

decode (`session.loader`) → forward pass → spatial maxima, inside the hooks → partial result.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice

import torch
from torch import Tensor, nn

from unitscope.errors import UnitscopeError, first_line
from unitscope.images import Item, ShardUnreadable
from unitscope.images.content import image_hash, sum_of_hashes
from unitscope.images.keys import key_hash
from unitscope.layers import TracedLayer
from unitscope.records import ImageRecord, Shard
from unitscope.runners import FailedShard
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.running_statistics import RunningStatistics
from unitscope.scanning.sample import Sample
from unitscope.scanning.tuning import MAX_TUNING_BYTES, LabelHalf, Tuning, image_groups, label_half, tuning_bytes
from unitscope.session.loader import LoadedImage
from unitscope.session.session import Session, read_layers
from unitscope.spatial_max import Candidates, PeakPicker, Spacing, SpatialMax, concatenated, highest_cell, highest_cell_by_pooling
from unitscope.topk import HighestValues, TopK

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardBatch:
    """Images of one shard that go through the network together, or why its images can't be read to the end."""

    shard: Shard
    items: tuple[Item, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class BatchMaxima:
    """What the network made of a batch.

    `images` are all images of the batch, without their pixels; `maxima` are of those that could be loaded, layers side by side
    along the unit axis. `candidates` are there where a unit may have several peaks in one image; else the maxima are the only ones.
    `failure` says why there is nothing.
    """

    shard: Shard
    images: list[LoadedImage]
    maxima: SpatialMax | None = None
    candidates: Candidates | None = None
    failure: str = ""


@dataclass(slots=True)
class Worker:
    """Scans shards. It remembers the highest values of the shards that it has done, so that later partial results hold only what beats them.

    What a partial result leaves out for that reason can't be in the atlas: higher peaks went out with earlier ones. A shard that
    fails leaves nothing behind. With `only_images`, others are passed over.
    """

    session: Session
    plan: ScanPlan
    only_images: frozenset[int] | None = None
    _highest: HighestValues = field(init=False)
    _sample: Sample = field(init=False)
    _is_rectified: Tensor = field(init=False)
    _batch_images: int = field(init=False)
    _steps: Tensor | None = field(init=False)
    _label_halves: set[LabelHalf] = field(init=False, default_factory=set)
    _pickers: list[PeakPicker] = field(init=False)

    def __post_init__(self) -> None:
        session, device = self.session, self.session.device
        self._highest = HighestValues.empty(sum(session.unit_counts), self.plan.candidates, device)
        self._sample = Sample.empty(0, self.plan.sample)
        self._batch_images = session.images_per_pass(self.plan.batch_size)
        fixed_point = self.plan.fixed_point
        self._steps = None if fixed_point is None else fixed_point.by_unit(session.unit_counts)
        is_rectified = torch.tensor([traced.layer.rectified for traced in session.layers], device=device)
        self._is_rectified = is_rectified.repeat_interleave(torch.tensor(session.unit_counts, device=device))
        kth_values = self._highest.kth_values().split(session.unit_counts)
        several_peaks = self.plan.per_image > 1
        self._pickers = [self._picker(*pair) for pair in zip(session.layers, kth_values, strict=True)] if several_peaks else []

    def _picker(self, traced: TracedLayer, kth_values: Tensor) -> PeakPicker:
        return PeakPicker(self.plan.per_image, _spacing(traced, self.session.device), traced.layer.rectified, kth_values)

    def __call__(self, shards: Iterable[Shard]) -> Iterator[PartialResult | FailedShard]:
        """One partial result a shard, in order. What goes wrong in one, other than what a user can mend, leaves the others alone."""
        batches = chain.from_iterable(map(self._batches, shards))
        results = self.session.run_batches(batches, self._scan_batch)
        for shard, of_shard in groupby(results, key=lambda result: result.shard):
            yield self._shard_result(shard, of_shard)

    def _batches(self, shard: Shard) -> Iterator[ShardBatch]:
        """The shard in batches; where its images can't be read to the end, the last one says why."""
        items = self.session.loader.source.items(shard)
        if self.only_images is not None:
            items = (item for item in items if item.image in self.only_images)
        try:
            while batch := tuple(islice(items, self._batch_images)):
                yield ShardBatch(shard, batch)
        except ShardUnreadable as error:
            yield ShardBatch(shard, (), str(error))

    # ── in a replica's thread ───────────────────────────────────────────────────────────────────────────────────────

    def _scan_batch(self, replica: nn.Module, batch: ShardBatch, loaded: list[LoadedImage]) -> BatchMaxima:
        """One forward pass over the images that could be loaded."""
        if batch.failure:
            return BatchMaxima(batch.shard, [], failure=batch.failure)
        readable = [image for image in loaded if image.pixels is not None]
        images = [replace(image, pixels=None) for image in loaded]
        if not readable:
            return BatchMaxima(batch.shard, images)
        try:
            maxima, candidates = self._peaks(replica, self.session.inputs(readable))
            return BatchMaxima(batch.shard, images, maxima, candidates)
        except UnitscopeError:
            raise
        except Exception as error:
            log.debug("%s fails", batch.shard, exc_info=True)
            return BatchMaxima(batch.shard, [], failure=f"{type(error).__name__}: {first_line(error)}")

    def _peaks(self, replica: nn.Module, inputs: Tensor) -> tuple[SpatialMax, Candidates | None]:
        """Each unit's maximum in each image and, where a unit may have several peaks in one, all candidates."""
        layers = self.session.layers
        if self._pickers:
            maxima, candidates = zip(*read_layers(replica, layers, inputs, self._maximum_and_candidates), strict=True)
            return concatenated(maxima, -1), concatenated(candidates, -1)
        if self.session.device.type == "cpu":
            pooled = concatenated(read_layers(replica, layers, inputs, _maximum_by_pooling), -1)
            if not pooled.has_nan.any():
                return pooled, None
        return concatenated(read_layers(replica, layers, inputs, _maximum), -1), None

    def _maximum_and_candidates(self, layer: int, maps: Tensor) -> tuple[SpatialMax, Candidates]:
        maximum = highest_cell(maps)
        return maximum, self._pickers[layer].pick(maps, maximum)

    # ── from batches to a partial result ────────────────────────────────────────────────────────────────────────────

    def _shard_result(self, shard: Shard, batches: Iterable[BatchMaxima]) -> PartialResult | FailedShard:
        """The shard's partial result, merged from pieces of as many images as a numbered shard has: an archive may have any number."""
        result, failure = None, ""
        for piece in _pieces(batches, self.plan.shard_images):
            failure = failure or next((batch.failure for batch in piece if batch.failure), "")
            if failure:
                continue  # to the end, so that the next shard begins where it should
            piece_result = self._piece_result(shard, piece)
            if result is None:
                result = piece_result
            else:
                result.merge(piece_result)
        if failure or result is None:
            return FailedShard(shard, failure)
        self._highest.merge(result.top_k.values.to(self.session.device))
        self._sample.merge(result.sample.without_units())
        return result

    def _piece_result(self, shard: Shard, batches: list[BatchMaxima]) -> PartialResult:
        unit_count = sum(self.session.unit_counts)
        result = PartialResult.empty(unit_count, self.plan.candidates, self.plan.sample)
        result.statistics = RunningStatistics.of_empty_shard(shard.number, unit_count)
        images = [image for batch in batches for image in batch.images]
        result.skipped = {image.image: (image.key, image.skip_reason) for image in images if image.record is None}
        maxima = [batch.maxima for batch in batches if batch.maxima is not None]
        if maxima:
            _add_records(result, images)
            readable = [image for image in images if image.record is not None]
            hashes = torch.tensor([key_hash(image.key) for image in readable])
            numbers = torch.tensor([image.image for image in readable])
            result.top_k = self._new_top_k([batch for batch in batches if batch.maxima is not None], hashes, numbers)
            joined = concatenated(maxima, 0)
            values, has_nan = joined.values.cpu(), joined.has_nan.cpu()
            records = [image.record for image in images if image.record is not None]
            result.statistics = RunningStatistics.of_shard(shard.number, values, has_nan, image_groups(records))
            result.tuning = self._new_tuning(values, records)
            result.sample = self._new_sample(joined, hashes, numbers)
        return result

    def _new_top_k(self, batches: Sequence[BatchMaxima], hashes: Tensor, images: Tensor) -> TopK:
        """Those candidates of some batches that come in among the top k so far."""
        values, cells = (torch.cat(tensors) for tensors in zip(*map(self._candidates, batches), strict=True))
        hashes, images = (t.to(self.session.device).repeat_interleave(self.plan.per_image) for t in (hashes, images))
        top_k = TopK.empty(sum(self.session.unit_counts), self.plan.candidates, self.session.device)
        top_k.add(values, hashes, images, cells, kth_values=self._highest.kth_values())
        return top_k.to("cpu")

    def _candidates(self, batch: BatchMaxima) -> tuple[Tensor, Tensor]:
        """Values and cells, of shape (candidate, unit)."""
        if batch.candidates is not None:
            return batch.candidates.values.flatten(0, 1), batch.candidates.cells.flatten(0, 1)
        assert batch.maxima is not None  # noqa: S101 - for the type checker
        values = batch.maxima.values
        return values.masked_fill(
            (values <= 0) & self._is_rectified, torch.nan
        ), batch.maxima.cells  # rule 5 of docs/exactness.md

    def _new_tuning(self, values: Tensor, records: Sequence[ImageRecord]) -> Tuning:
        """Sums by label, where they are wanted and not of too many labels."""
        fixed_point = self.plan.fixed_point
        if fixed_point is None or self._steps is None:
            return Tuning()
        self._label_halves.update(label_half(record.label, record.key) for record in records if record.label is not None)
        if tuning_bytes(len(self._label_halves), values.shape[1]) > MAX_TUNING_BYTES:
            return Tuning(is_full=True)
        return Tuning.of_images(values, records, self._steps, fixed_point.max_steps)

    def _new_sample(self, maxima: SpatialMax, hashes: Tensor, images: Tensor) -> Sample:
        """Those images that could come into the sample."""
        may_enter = self._sample.may_take(hashes)
        values, cells = maxima.values.cpu()[may_enter], maxima.cells.cpu()[may_enter].int()
        return Sample(hashes[may_enter], images[may_enter], values, cells, self.plan.sample)


def _maximum(layer: int, maps: Tensor) -> SpatialMax:
    return highest_cell(maps)


def _maximum_by_pooling(layer: int, maps: Tensor) -> SpatialMax:
    """The fast way on a processor. A NaN wins where there is one, so that it shows."""
    values, cells = highest_cell_by_pooling(maps)
    return SpatialMax(values, cells, values.isnan())


def _add_records(result: PartialResult, images: Sequence[LoadedImage]) -> None:
    records = [image.record for image in images if image.record is not None]
    result.image_records = {record.image: record for record in records}
    result.labels = Counter(record.label for record in records if record.label is not None)
    result.read = len(records)
    result.contents = sum_of_hashes(image_hash(record.key, record.content) for record in records)


def _pieces(batches: Iterable[BatchMaxima], images: int) -> Iterator[list[BatchMaxima]]:
    """Batches of at least so many images together; the last ones may be fewer."""
    piece: list[BatchMaxima] = []
    for batch in batches:
        piece.append(batch)
        if sum(len(batch.images) for batch in piece) >= images or batch.failure:
            yield piece
            piece = []
    if piece:
        yield piece


def _spacing(traced: TracedLayer, device: torch.device) -> Spacing:
    """Half a receptive field apart (rule 6 of docs/exactness.md)."""
    receptive_fields, layer = traced.receptive_fields, traced.layer
    y, x = (
        torch.tensor(centres, dtype=torch.float32, device=device)
        for centres in (receptive_fields.centres_y, receptive_fields.centres_x)
    )
    return Spacing(y, x, layer.receptive_field_height / 2, layer.receptive_field_width / 2)
