"""Statistics of every unit's spatial maxima that merge: count, mean, variance, lowest and highest.

Statistics of shards in any order and any grouping merge to the same, bit for bit. The unit axis runs over all units of all layers.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MeanVariance:
    """Count, mean and sum of squared deviations per unit, in float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, maxima: Float[Tensor, "image unit"]) -> "MeanVariance":
        """Of each unit's spatial maxima; NaN doesn't count."""
        values, is_nan = maxima.double(), maxima.isnan()
        count = len(maxima) - is_nan.sum(0)
        mean = values.nansum(0) / count.clamp(min=1)
        squares = values.sub_(mean).square_()
        return cls(count, mean, squares.masked_fill_(is_nan, 0).sum(0))

    def followed_by(self, later: "MeanVariance") -> "MeanVariance":
        """Of both together (Chan, Golub & LeVeque 1979)."""
        count = self.count + later.count
        later_share = later.count.double() / count.clamp(min=1)
        difference = torch.where((self.count > 0) & (later.count > 0), later.mean - self.mean, 0)
        mean = torch.where(difference.isfinite(), self.mean + difference * later_share, self.mean + later.mean)
        mean = torch.where(self.count > 0, mean, later.mean)
        return MeanVariance(count, mean, self.squares + later.squares + difference**2 * self.count * later_share)


@dataclass(frozen=True, slots=True)
class Extremes:
    """Per unit: in how many images its spatial maximum is above zero, in how many its map has a NaN, its lowest and highest maximum."""

    active_images: Tensor
    nan_images: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, maxima: Float[Tensor, "image unit"], has_nan: Bool[Tensor, "image unit"]) -> "Extremes":
        lowest = maxima.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(0)
        highest = maxima.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(0)
        return cls((maxima > 0).sum(0), has_nan.sum(0), lowest, highest)

    def merged(self, other: "Extremes") -> "Extremes":
        """Of both together."""
        return Extremes(
            self.active_images + other.active_images,
            self.nan_images + other.nan_images,
            self.lowest.minimum(other.lowest),
            self.highest.maximum(other.highest),
        )


BlockKey = tuple[int, int]
"""The level of a block of shards, and its number on that level: block `n` holds shards `n << level` to `((n + 1) << level) - 1`."""


@dataclass(slots=True)
class RunningStatistics:
    """The statistics of all images of the shards that were scanned so far.

    Floating sums depend on their order. So a shard's sum is kept apart until that of its neighbour has come: shards 0 and 1 make
    block 0 of level 1, blocks 0 and 1 of level 1 make block 0 of level 2, and so on. In whatever order they come, the same pairs are
    added, and no more than two blocks a level wait at the end.
    """

    blocks: dict[BlockKey, MeanVariance] = field(default_factory=dict)
    images: int = 0
    extremes: Extremes | None = None

    @classmethod
    def of_shard(
        cls, number: int, maxima: Float[Tensor, "image unit"], has_nan: Bool[Tensor, "image unit"]
    ) -> "RunningStatistics":
        return cls({(0, number): MeanVariance.of(maxima)}, len(maxima), Extremes.of(maxima, has_nan))

    @classmethod
    def of_empty_shard(cls, number: int, unit_count: int) -> "RunningStatistics":
        """Of a shard in which no image could be read: its block must be there for its neighbour."""
        zeros = torch.zeros(unit_count, dtype=torch.int64)
        return cls({(0, number): MeanVariance(zeros, zeros.double(), zeros.double())})

    def merge(self, other: "RunningStatistics") -> None:
        """Take in the statistics of other shards, or of later images of the same one."""
        self.images += other.images
        if other.extremes is not None:
            self.extremes = self.extremes.merged(other.extremes) if self.extremes else other.extremes
        for key, block in other.blocks.items():
            self._add_block(key, block)

    def _add_block(self, key: BlockKey, block: MeanVariance) -> None:
        if key in self.blocks:  # later images of the same shard
            self.blocks[key] = self.blocks[key].followed_by(block)
            return
        level, number = key
        neighbour = self.blocks.pop((level, number ^ 1), None)
        if neighbour is None:
            self.blocks[key] = block
        else:
            pair = block.followed_by(neighbour) if number % 2 == 0 else neighbour.followed_by(block)
            self._add_block((level + 1, number // 2), pair)

    def has_shard(self, number: int) -> bool:
        """True where the shard of that number was scanned."""
        return any((level, number >> level) in self.blocks for level in {level for level, _ in self.blocks})

    def total(self) -> MeanVariance:
        """Over all blocks, from the first image to the last."""
        first, *later = (block for _, block in sorted(self.blocks.items(), key=lambda item: item[0][1] << item[0][0]))
        for block in later:
            first = first.followed_by(block)
        return first
