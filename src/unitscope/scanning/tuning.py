"""Tuning: the sum of every unit's responses to the images of each label, by halves of the images.

A response is the unit's spatial maximum. Sums are in fixed point, so they are the same whatever the order of the images and wherever
shards begin. Only labels that were met take memory. The unit axis runs over all units of all layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import frexp

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unitscope.images.keys import image_half
from unitscope.records import ImageRecord
from unitscope.scanning.running_statistics import ImageGroup

MAX_TUNING_BYTES = 400_000_000
"""The memory that the sums may take: 1,000 labels, in two halves, of 25,000 units."""
MAX_STEPS_BITS = 52
"""The largest response has so many bits at most, in steps: float64 has one more."""
SUM_BITS = 62
UNCOUNTED_IMAGES = 1 << 23
"""As many images as this may have one label where nobody has counted the images."""
HEADROOM = 1 << 10
"""How many times as large as the layer's largest value on noise a response may be. One that is larger counts as one without a value."""

MissingImages = tuple[Int[Tensor, " row"], Int[Tensor, " row"]]
"""Units in ascending order, and of each how many images gave it no value: few units have any."""
LabelHalf = tuple[str, ImageGroup]
"""A label, and the half of its images."""


def label_half(label: str, key: str) -> LabelHalf:
    """The label of an image, and the half that it is in: by the hash of its key, the same on every machine."""
    return label, ImageGroup(image_half(key))


def image_groups(records: Iterable[ImageRecord]) -> Int[Tensor, " image"]:
    """The group of each image."""
    groups = [ImageGroup.UNLABELLED if r.label is None else label_half(r.label, r.key)[1] for r in records]
    return torch.tensor(groups, dtype=torch.int64)


def tuning_bytes(label_halves: int, units: int, missing: int = 0) -> int:
    """The memory that sums for so many labels and halves take, with so many counts of images that give a unit no value."""
    return 8 * label_halves * units + 12 * missing


def _sparse(counts: Int[Tensor, " unit"]) -> MissingImages:
    units = counts.nonzero()[:, 0].int()
    return units, counts[units]


def _added(first: MissingImages, second: MissingImages) -> MissingImages:
    units, row = torch.cat([first[0], second[0]]).unique(return_inverse=True)
    counts = torch.zeros(len(units), dtype=torch.int64).index_add_(0, row, torch.cat([first[1], second[1]]))
    return units, counts


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How responses become whole numbers of steps: the step of each layer, a power of two, and the largest number of steps."""

    steps: tuple[float, ...]
    max_steps: int

    @classmethod
    def of(cls, magnitudes: Iterable[float], images: int | None) -> "FixedPoint":
        """From the largest magnitude of each layer's values on noise, and how many images there are: their sum must fit in 64 bits."""
        max_steps = 1 << min(MAX_STEPS_BITS, SUM_BITS - (images or UNCOUNTED_IMAGES).bit_length())
        exponents = (max(frexp(magnitude or 1.0)[1], -900) for magnitude in magnitudes)
        return cls(tuple(2.0**exponent * HEADROOM / max_steps for exponent in exponents), max_steps)

    def by_unit(self, unit_counts: Sequence[int]) -> Float[Tensor, " unit"]:
        """The step of each unit."""
        return torch.tensor(self.steps, dtype=torch.float64).repeat_interleave(torch.tensor(unit_counts))


@dataclass(slots=True)
class Tuning:
    """Sums of responses by label and half.

    `sums` holds whole numbers of steps, of shape (unit); `images` how many images a sum is over; `missing` how many of them gave some units no
    value: where a map is NaN, where the response is infinite or too large.
    `is_full` says that there are more labels than may take memory: then there are no sums at all.
    """

    sums: dict[LabelHalf, Int[Tensor, " unit"]] = field(default_factory=dict)
    images: dict[LabelHalf, int] = field(default_factory=dict)
    missing: dict[LabelHalf, MissingImages] = field(default_factory=dict)
    is_full: bool = False

    @classmethod
    def of_images(
        cls,
        responses: Float[Tensor, "image unit"],
        records: Sequence[ImageRecord],
        steps: Float[Tensor, " unit"],
        max_steps: int,
    ) -> "Tuning":
        """Of some images; those without a label don't count. `steps` is the step of each unit."""
        rows: dict[LabelHalf, list[int]] = {}
        for row, record in enumerate(records):
            if record.label is not None:
                rows.setdefault(label_half(record.label, record.key), []).append(row)
        in_steps = responses.double().div_(steps)
        has_value = in_steps.abs() <= max_steps  # false for NaN too
        all_have_value = bool(has_value.all())
        if not all_have_value:
            in_steps.masked_fill_(~has_value, 0)
        whole_steps = in_steps.round_().long()
        tuning = cls(images={key: len(of_key) for key, of_key in rows.items()})
        for key, of_key in rows.items():
            tuning.sums[key] = whole_steps[of_key].sum(0)
            if not all_have_value and not has_value[of_key].all():
                tuning.missing[key] = _sparse((~has_value[of_key]).sum(0))
        return tuning

    def merge(self, other: "Tuning") -> None:
        """Take in the sums over other images, which may become part of this."""
        if self.is_full or other.is_full:
            self._give_up()
            return
        for key, row in other.sums.items():
            if key in self.sums:
                self.sums[key] += row
            else:
                self.sums[key] = row
        for key, missing in other.missing.items():
            self.missing[key] = _added(self.missing[key], missing) if key in self.missing else missing
        for key, count in other.images.items():
            self.images[key] = self.images.get(key, 0) + count
        units = max((len(row) for row in self.sums.values()), default=0)
        missing_counts = sum(len(missing_units) for missing_units, _ in self.missing.values())
        if tuning_bytes(len(self.sums), units, missing_counts) > MAX_TUNING_BYTES:
            self._give_up()

    def _give_up(self) -> None:
        self.sums, self.images, self.missing, self.is_full = {}, {}, {}, True

    def missing_images(self, key: LabelHalf, units: slice) -> Int[Tensor, " unit"]:
        """How many images gave each unit of a range no value."""
        counts = torch.zeros(units.stop - units.start, dtype=torch.int64)
        if key in self.missing:
            missing_units, missing_counts = self.missing[key]
            is_among = (missing_units >= units.start) & (missing_units < units.stop)
            counts[missing_units[is_among].long() - units.start] = missing_counts[is_among]
        return counts

    @property
    def labels(self) -> list[str]:
        """The labels that were met, sorted."""
        return sorted({label for label, _ in self.images})
