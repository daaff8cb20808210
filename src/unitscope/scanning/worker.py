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
from unitscope.records import ImageRecord, Shard
from unitscope.runners import FailedShard
from unitscope.scanning.partial_results import PartialResult, layers_with_troughs
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.ranking import RankedMaps, Ranking
from unitscope.scanning.running_statistics import RunningStatistics
from unitscope.scanning.sample import Sample
from unitscope.scanning.tuning import MAX_TUNING_BYTES, LabelHalf, Tuning, image_groups, label_half, tuning_bytes
from unitscope.session.loader import LoadedImage
from unitscope.session.session import Session, read_layers
from unitscope.spatial_max import SpatialMax, concatenated

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardBatch:
    """Images of one shard that go through the network together, or why its images can't be read to the end."""

    shard: Shard
    items: tuple[Item, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """What the network made of a batch.

    `images` are all images of the batch, without their pixels; `peaks` and, where layers have them, `troughs` are of those that could be
    loaded, layers side by side along the unit axis. `failure` says why there is nothing.
    """

    shard: Shard
    images: list[LoadedImage]
    peaks: RankedMaps | None = None
    troughs: RankedMaps | None = None
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
    _peaks: Ranking = field(init=False)
    _troughs: Ranking = field(init=False)
    _sample: Sample = field(init=False)
    _batch_images: int = field(init=False)
    _steps: Tensor | None = field(init=False)
    _label_halves: set[LabelHalf] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        session = self.session
        layers = dict(enumerate(session.layers))
        self._peaks = Ranking(layers, self.plan, session.device)
        trough_layers = {index: layers[index] for index in layers_with_troughs(session.layers, self.plan)}
        self._troughs = Ranking(trough_layers, self.plan, session.device, negated=True)
        self._sample = Sample.empty(0, self.plan.sample)
        self._batch_images = session.images_per_pass(self.plan.batch_size)
        fixed_point = self.plan.fixed_point
        self._steps = None if fixed_point is None else fixed_point.by_unit(session.unit_counts)

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

    def _scan_batch(self, replica: nn.Module, batch: ShardBatch, loaded: list[LoadedImage]) -> RankedBatch:
        """One forward pass over the images that could be loaded."""
        if batch.failure:
            return RankedBatch(batch.shard, [], failure=batch.failure)
        readable = [image for image in loaded if image.pixels is not None]
        images = [replace(image, pixels=None) for image in loaded]
        if not readable:
            return RankedBatch(batch.shard, images)
        try:
            peaks, troughs = self._ranked(replica, self.session.inputs(readable))
            return RankedBatch(batch.shard, images, peaks, troughs)
        except UnitscopeError:
            raise
        except Exception as error:
            log.debug("%s fails", batch.shard, exc_info=True)
            return RankedBatch(batch.shard, [], failure=f"{type(error).__name__}: {first_line(error)}")

    def _ranked(self, replica: nn.Module, inputs: Tensor) -> tuple[RankedMaps, RankedMaps | None]:
        """What may be peaks and, where layers have them, troughs."""
        if self.session.device.type == "cpu" and self.plan.per_image == 1:
            peaks, troughs = self._read(replica, inputs, by_pooling=True)
            if not peaks.maxima.has_nan.any():
                return peaks, troughs
        return self._read(replica, inputs, by_pooling=False)

    def _read(self, replica: nn.Module, inputs: Tensor, by_pooling: bool) -> tuple[RankedMaps, RankedMaps | None]:
        """One pass over the images."""

        def rank(layer: int, maps: Tensor) -> list[RankedMaps | None]:
            return [ranking.of_layer(layer, maps, by_pooling) for ranking in (self._peaks, self._troughs)]

        peaks, troughs = (
            [ranked for ranked in of_layers if ranked is not None]
            for of_layers in zip(*read_layers(replica, self.session.layers, inputs, rank), strict=True)
        )
        return RankedMaps.side_by_side(peaks), RankedMaps.side_by_side(troughs) if troughs else None

    # ── from batches to a partial result ────────────────────────────────────────────────────────────────────────────

    def _shard_result(self, shard: Shard, batches: Iterable[RankedBatch]) -> PartialResult | FailedShard:
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
        self._peaks.remember(result.top_k)
        self._troughs.remember(result.troughs)
        self._sample.merge(result.sample.without_units())
        return result

    def _piece_result(self, shard: Shard, batches: list[RankedBatch]) -> PartialResult:
        result = PartialResult.of_plan(self.session.layers, self.plan)
        result.statistics = RunningStatistics.of_empty_shard(shard.number, sum(self.session.unit_counts))
        images = [image for batch in batches for image in batch.images]
        result.skipped = {image.image: (image.key, image.skip_reason) for image in images if image.record is None}
        peaks = [batch.peaks for batch in batches if batch.peaks is not None]
        if peaks:
            _add_records(result, images)
            readable = [image for image in images if image.record is not None]
            hashes = torch.tensor([key_hash(image.key) for image in readable])
            numbers = torch.tensor([image.image for image in readable])
            result.top_k = self._peaks.new_top_k(peaks, hashes, numbers)
            if troughs := [batch.troughs for batch in batches if batch.troughs is not None]:
                result.troughs = self._troughs.new_top_k(troughs, hashes, numbers)
            joined = concatenated([ranked.maxima for ranked in peaks], 0)
            values, has_nan = joined.values.cpu(), joined.has_nan.cpu()
            records = [image.record for image in images if image.record is not None]
            result.statistics = RunningStatistics.of_shard(shard.number, values, has_nan, image_groups(records))
            result.tuning = self._new_tuning(values, records)
            result.sample = self._new_sample(joined, hashes, numbers)
        return result

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


def _add_records(result: PartialResult, images: Sequence[LoadedImage]) -> None:
    records = [image.record for image in images if image.record is not None]
    result.image_records = {record.image: record for record in records}
    result.labels = Counter(record.label for record in records if record.label is not None)
    result.read = len(records)
    result.contents = sum_of_hashes(image_hash(record.key, record.content) for record in records)


def _pieces(batches: Iterable[RankedBatch], images: int) -> Iterator[list[RankedBatch]]:
    """Batches of at least so many images together; the last ones may be fewer."""
    piece: list[RankedBatch] = []
    for batch in batches:
        piece.append(batch)
        if sum(len(batch.images) for batch in piece) >= images or batch.failure:
            yield piece
            piece = []
    if piece:
        yield piece
