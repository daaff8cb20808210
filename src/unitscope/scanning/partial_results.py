"""Partial results: what some shards of a scan gave.

Partial results in any order and any grouping merge to the same atlas, bit for bit. The unit axis runs over all units of all layers,
one layer after the other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from unitscope.images.content import sum_of_hashes
from unitscope.layers import TracedLayer
from unitscope.records import ImageRecord
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.running_statistics import RunningStatistics
from unitscope.scanning.sample import Sample
from unitscope.scanning.tuning import Tuning
from unitscope.topk import TopK

MIN_RECORDS = 1_000
"""As many records of images are kept without asking whether something still mentions them."""


@dataclass(slots=True)
class PartialResult:
    """Everything that the atlas needs of the images of some shards.

    `troughs` has the negated values of the units of those layers that have troughs, so that its highest are the lowest.
    `image_records` are kept of images that a peak, a trough or the sample may mention; `skipped` has key and reason of the images that
    couldn't be read. `tuning` is empty where the plan has none. `contents` is the total of what the images that were read are called and hold (see `images.content`);
    `images_run_twice` are those that screening ran in float32 too.
    """

    top_k: TopK
    statistics: RunningStatistics
    sample: Sample
    troughs: TopK
    image_records: dict[int, ImageRecord] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    tuning: Tuning = field(default_factory=Tuning)
    skipped: dict[int, tuple[str, str]] = field(default_factory=dict)
    read: int = 0
    contents: int = 0
    images_run_twice: int = 0
    _records_after_pruning: int = field(init=False, default=MIN_RECORDS)

    @classmethod
    def of_plan(cls, layers: Sequence[TracedLayer], plan: ScanPlan) -> "PartialResult":
        """That of no images."""
        trough_units = sum(layers[index].layer.units for index in layers_with_troughs(layers, plan))
        return cls.empty(sum(traced.layer.units for traced in layers), plan.candidates, plan.sample, trough_units)

    @classmethod
    def empty(cls, unit_count: int, k: int, sample_size: int, trough_units: int = 0) -> "PartialResult":
        """That of no images and so many units, of which `trough_units` have troughs."""
        top_k, troughs = TopK.empty(unit_count, k), TopK.empty(trough_units, k)
        return cls(top_k, RunningStatistics(), Sample.empty(unit_count, sample_size), troughs)

    @property
    def listed(self) -> int:
        """How many images it is about, read or not."""
        return self.read + len(self.skipped)

    def merge(self, other: "PartialResult") -> None:
        """Take in another one. Records of images that are no longer mentioned are dropped now and then."""
        self.top_k.merge(other.top_k)
        self.troughs.merge(other.troughs)
        self.statistics.merge(other.statistics)
        self.sample.merge(other.sample)
        self.labels += other.labels
        self.tuning.merge(other.tuning)
        self.skipped |= other.skipped
        self.read += other.read
        self.contents = sum_of_hashes((self.contents, other.contents))
        self.image_records |= other.image_records
        if len(self.image_records) > 2 * self._records_after_pruning:
            self.image_records = self.mentioned_records()
            self._records_after_pruning = max(MIN_RECORDS, len(self.image_records))

    def mentioned_records(self) -> dict[int, ImageRecord]:
        """The records of the images that a candidate, for a peak or a trough, or the sample names."""
        named = (self.top_k.images, self.troughs.images, self.sample.images)
        mentioned = {image for images in named for image in images.unique().tolist()}
        return {image: record for image, record in self.image_records.items() if image in mentioned}


def unit_ranges(layers: Sequence[TracedLayer]) -> Iterator[tuple[TracedLayer, slice]]:
    """Every layer with the range of its units on the unit axis."""
    start = 0
    for traced in layers:
        yield traced, slice(start, start + traced.layer.units)
        start += traced.layer.units


def layers_with_troughs(layers: Sequence[TracedLayer], plan: ScanPlan) -> list[int]:
    """The indices of the layers whose units have troughs: where nothing rectifies, if the plan has any."""
    return [index for index, traced in enumerate(layers) if plan.troughs and not traced.layer.rectified]
