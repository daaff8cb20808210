"""Statistics of every unit's spatial maxima that merge: count, mean, variance, skewness, lowest and highest.

Statistics of shards in any order and any grouping merge to the same, bit for bit. The unit axis runs over all units of all layers, the
group axis over groups of images (`ImageGroup`).
"""

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ImageGroup(IntEnum):
    """Which images are summed together: the labelled ones of each half, which names are chosen and tested on, and the others."""

    A = 0
    B = 1
    UNLABELLED = 2


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, and sums of squared and cubed deviations per unit, in float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor
    cubes: Tensor

    @classmethod
    def of(cls, maxima: Float[Tensor, "image unit"]) -> "Moments":
        """Of each unit's spatial maxima; NaN doesn't count."""
        values, is_nan = maxima.double(), maxima.isnan()
        count = len(maxima) - is_nan.sum(0)
        mean = values.nansum(0) / count.clamp(min=1)
        deviations = values.sub_(mean).masked_fill_(is_nan, 0)
        squares = deviations.square()
        return cls(count, mean, squares.sum(0), deviations.mul_(squares).sum(0))

    @classmethod
    def of_groups(cls, maxima: Float[Tensor, "image unit"], groups: Int[Tensor, " image"]) -> "Moments":
        """The same for each group of images, of shape (group, unit)."""
        return _stacked([cls.of(maxima[groups == group]) for group in ImageGroup])

    @classmethod
    def of_no_images(cls, unit_count: int) -> "Moments":
        """Of shape (group, unit)."""
        zeros = torch.zeros(len(ImageGroup), unit_count, dtype=torch.int64)
        return cls(zeros, *(zeros.double() for _ in range(3)))

    def followed_by(self, later: "Moments") -> "Moments":
        """Of both together (Chan, Golub & LeVeque 1979; the cubes: Pébay 2008, SAND2008-6212, equation 2.1)."""
        count = self.count + later.count
        own, other = self.count.double(), later.count.double()
        later_share = other / count.clamp(min=1)
        difference = torch.where((self.count > 0) & (later.count > 0), later.mean - self.mean, 0)
        mean = torch.where(difference.isfinite(), self.mean + difference * later_share, self.mean + later.mean)
        mean = torch.where(self.count > 0, mean, later.mean)
        squares = self.squares + later.squares + difference**2 * own * later_share
        own_share = own / count.clamp(min=1)
        crossed = 3 * difference * (own_share * later.squares - later_share * self.squares)
        cubes = self.cubes + later.cubes + difference**3 * own * later_share * (own_share - later_share) + crossed
        return Moments(count, mean, squares, cubes)

    def group(self, group: int) -> "Moments":
        """Those of one group, of shape (unit)."""
        return Moments(self.count[group], self.mean[group], self.squares[group], self.cubes[group])

    def of_all_groups(self) -> "Moments":
        """Those of all images, of shape (unit)."""
        first, *others = (self.group(group) for group in ImageGroup)
        for other in others:
            first = first.followed_by(other)
        return first


def _stacked(moments: list[Moments]) -> Moments:
    return Moments(*(torch.stack([getattr(of_group, name) for of_group in moments]) for name in Moments.__slots__))


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

    blocks: dict[BlockKey, Moments] = field(default_factory=dict)
    images: int = 0
    extremes: Extremes | None = None

    @classmethod
    def of_shard(
        cls,
        number: int,
        maxima: Float[Tensor, "image unit"],
        has_nan: Bool[Tensor, "image unit"],
        groups: Int[Tensor, " image"],
    ) -> "RunningStatistics":
        return cls({(0, number): Moments.of_groups(maxima, groups)}, len(maxima), Extremes.of(maxima, has_nan))

    @classmethod
    def of_empty_shard(cls, number: int, unit_count: int) -> "RunningStatistics":
        """Of a shard in which no image could be read: its block must be there for its neighbour."""
        return cls({(0, number): Moments.of_no_images(unit_count)})

    def merge(self, other: "RunningStatistics") -> None:
        """Take in the statistics of other shards, or of later images of the same one."""
        self.images += other.images
        if other.extremes is not None:
            self.extremes = self.extremes.merged(other.extremes) if self.extremes else other.extremes
        for key, block in other.blocks.items():
            self._add_block(key, block)

    def _add_block(self, key: BlockKey, block: Moments) -> None:
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

    def total(self) -> Moments:
        """Over all blocks, from the first image to the last, of shape (group, unit)."""
        first, *later = (block for _, block in sorted(self.blocks.items(), key=lambda item: item[0][1] << item[0][0]))
        for block in later:
            first = first.followed_by(block)
        return first
