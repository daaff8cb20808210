"""What a scan keeps: the top k, the statistics, the sample and what was met on the way.

Everything here merges: parts in any order and any grouping give the same atlas, bit for bit. The unit axis runs over all units of
all chosen layers, one layer after the other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

from unitscope.images.content import total
from unitscope.layers import TracedLayer
from unitscope.records import ImageNote
from unitscope.topk import TopK

FEW_NOTES = 1_000


@dataclass(frozen=True, slots=True)
class MeanVariance:
    """Count, mean and sum of squared deviations per unit, in float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, highest: Float[Tensor, "image unit"]) -> "MeanVariance":
        """Of each unit's highest values; NaN ones don't count."""
        values, missing = highest.double(), highest.isnan()
        count = len(highest) - missing.sum(0)
        mean = values.nansum(0) / count.clamp(min=1)
        squares = values.sub_(mean).square_()
        return cls(count, mean, squares.masked_fill_(missing, 0).sum(0))

    def then(self, later: "MeanVariance") -> "MeanVariance":
        """Of both together (Chan, Golub & LeVeque 1979)."""
        count = self.count + later.count
        share = later.count.double() / count.clamp(min=1)
        apart = torch.where((self.count > 0) & (later.count > 0), later.mean - self.mean, 0)
        mean = torch.where(apart.isfinite(), self.mean + apart * share, self.mean + later.mean)
        mean = torch.where(self.count > 0, mean, later.mean)
        return MeanVariance(count, mean, self.squares + later.squares + apart**2 * self.count * share)


@dataclass(frozen=True, slots=True)
class Extremes:
    """Per unit: in how many images it was active and in how many its map held a NaN, its lowest and its highest peak."""

    active: Tensor
    spoilt: Tensor
    lowest: Tensor
    highest: Tensor

    def with_those(self, other: "Extremes") -> "Extremes":
        """Of both together."""
        return Extremes(
            self.active + other.active,
            self.spoilt + other.spoilt,
            self.lowest.minimum(other.lowest),
            self.highest.maximum(other.highest),
        )


@dataclass(slots=True)
class RunningStatistics:
    """The statistics of the peaks of all images, read or still to come.

    Floating sums depend on their order. So a shard's sum is kept apart until the sum beside it is there: shards 0 and 1 make
    block 0 of level 1, blocks 0 and 1 of level 1 make block 0 of level 2, and so on. Whatever comes first, the same pairs are
    added, and no more than two blocks a level wait at the end.
    """

    blocks: dict[tuple[int, int], MeanVariance] = field(default_factory=dict)
    images: int = 0
    extremes: "Extremes | None" = None

    @classmethod
    def of_shard(cls, number: int, highest: Float[Tensor, "image unit"], spoilt: Tensor) -> "RunningStatistics":
        lowest = highest.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(0)
        top = highest.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(0)
        extremes = Extremes((highest > 0).sum(0), spoilt.sum(0), lowest, top)
        return cls({(0, number): MeanVariance.of(highest)}, len(highest), extremes)

    @classmethod
    def of_nothing(cls, number: int, units: int) -> "RunningStatistics":
        """Of a shard in which no image could be read: its block must be there for its neighbour."""
        none = torch.zeros(units, dtype=torch.int64)
        return cls({(0, number): MeanVariance(none, none.double(), none.double())})

    def merge(self, other: "RunningStatistics") -> None:
        """Take in the statistics of other shards."""
        self.images += other.images
        if other.extremes is not None:
            self.extremes = self.extremes.with_those(other.extremes) if self.extremes else other.extremes
        for place, block in other.blocks.items():
            self._put(place, block)

    def _put(self, place: tuple[int, int], block: MeanVariance) -> None:
        if place in self.blocks:  # a later run of the same shard
            self.blocks[place] = self.blocks[place].then(block)
            return
        level, number = place
        neighbour = self.blocks.pop((level, number ^ 1), None)
        if neighbour is None:
            self.blocks[place] = block
        else:
            pair = block.then(neighbour) if number % 2 == 0 else neighbour.then(block)
            self._put((level + 1, number // 2), pair)

    def holds(self, number: int) -> bool:
        """True where the shard of that number is in it."""
        return any((level, number >> level) in self.blocks for level in {level for level, _ in self.blocks})

    def total(self) -> MeanVariance:
        """The sum over all blocks, from the first image to the last."""
        in_order = sorted(self.blocks.items(), key=lambda item: item[0][1] << item[0][0])
        total = in_order[0][1]
        for _, block in in_order[1:]:
            total = total.then(block)
        return total


@dataclass(slots=True)
class Sample:
    """The peaks of the `size` images whose keys hash lowest: a uniform sample that is the same on every machine. In no order."""

    hashes: Tensor
    images: Tensor
    values: Float[Tensor, "image unit"]
    cells: Tensor
    size: int

    @classmethod
    def empty(cls, units: int, size: int) -> "Sample":
        none = torch.empty(0, dtype=torch.int64)
        return cls(none, none, torch.empty(0, units), torch.empty(0, units, dtype=torch.int32), size)

    def without_units(self) -> "Sample":
        """Its images alone."""
        return Sample(self.hashes, self.images, self.values[:, :0], self.cells[:, :0], self.size)

    def may_take(self, hashes: Tensor) -> Tensor:
        """True for images that could still come in."""
        full = len(self.hashes) == self.size
        return hashes <= self.hashes.max() if full else torch.ones_like(hashes, dtype=torch.bool)

    def merge(self, other: "Sample") -> None:
        """Take in other images and keep the lowest hashes; among equal ones the earlier image."""
        hashes, images = torch.cat([self.hashes, other.hashes]), torch.cat([self.images, other.images])
        order = images.argsort(stable=True)
        order = order[hashes[order].argsort(stable=True)][: self.size]
        own = len(self.hashes)
        coming = order[order >= own] - own
        if len(hashes) <= self.size:
            self.values, self.cells = torch.cat([self.values, other.values]), torch.cat([self.cells, other.cells])
            self.hashes, self.images = hashes, images
        elif len(coming):
            self._replace(order[order < own], other, coming)

    def _replace(self, staying: Tensor, other: "Sample", coming: Tensor) -> None:
        """Put images in the places of those that don't stay: no more is copied than what comes in."""
        free = torch.ones(self.size, dtype=torch.bool)
        free[staying] = False
        places = free.nonzero()[:, 0]
        for name in ("hashes", "images", "values", "cells"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if len(mine) < self.size:
                mine = torch.cat([mine, mine.new_empty(self.size - len(mine), *mine.shape[1:])])
                setattr(self, name, mine)
            mine[places] = theirs[coming]


def side_by_side(layers: Sequence[TracedLayer]) -> Iterator[tuple[TracedLayer, slice]]:
    """Every layer with its place on the unit axis."""
    start = 0
    for one in layers:
        yield one, slice(start, start + one.layer.units)
        start += one.layer.units


def key_hash(key: str) -> int:
    """A number between 0 and 2⁶³ that depends on nothing but the key."""
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


@dataclass(slots=True)
class PartialResult:
    """The result of some shards: everything that the atlas needs of their images."""

    best: TopK
    moments: RunningStatistics
    sample: Sample
    notes: dict[int, ImageNote] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    skipped: dict[int, tuple[str, str]] = field(default_factory=dict)
    read: int = 0
    contents: int = 0
    """The total of what the images that were read are called and hold (see `images.content`)."""
    again: int = 0
    """How many images ran a second time (see `screening`)."""
    remembered: int = FEW_NOTES
    """How many notes were left when they were last looked through."""

    @classmethod
    def empty(cls, units: int, k: int, sample: int) -> "PartialResult":
        return cls(TopK.empty(units, k), RunningStatistics(), Sample.empty(units, sample))

    @property
    def listed(self) -> int:
        """How many images it is about, read or not."""
        return self.read + len(self.skipped)

    def merge(self, other: "PartialResult") -> None:
        """Take in another part; notes of images that are no longer mentioned are dropped now and then."""
        self.best.merge(other.best)
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)
        self.labels += other.labels
        self.skipped |= other.skipped
        self.read += other.read
        self.contents = total((self.contents, other.contents))
        self.notes |= other.notes
        if len(self.notes) > 2 * self.remembered:
            self.forget()

    def mentioned(self) -> set[int]:
        """The images that a peak or the sample names."""
        return set(self.best.images.unique().tolist()) | set(self.sample.images.tolist())

    def forget(self) -> None:
        """Drop the notes of images that nothing mentions."""
        mentioned = self.mentioned()
        self.notes = {image: note for image, note in self.notes.items() if image in mentioned}
        self.remembered = max(FEW_NOTES, len(self.notes))
