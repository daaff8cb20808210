"""The sample: every unit's spatial maximum in images drawn at random, the same images for every unit and on every machine."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(slots=True)
class Sample:
    """The spatial maxima of the `size` images whose keys hash lowest: a uniform sample. Its images are in no order."""

    hashes: Tensor
    images: Tensor
    values: Float[Tensor, "image unit"]
    cells: Tensor
    size: int

    @classmethod
    def empty(cls, unit_count: int, size: int) -> "Sample":
        none = torch.empty(0, dtype=torch.int64)
        return cls(none, none, torch.empty(0, unit_count), torch.empty(0, unit_count, dtype=torch.int32), size)

    def without_units(self) -> "Sample":
        """Its images alone."""
        return Sample(self.hashes, self.images, self.values[:, :0], self.cells[:, :0], self.size)

    def may_take(self, hashes: Tensor) -> Tensor:
        """True for images that could still come in."""
        is_full = len(self.hashes) == self.size
        return hashes <= self.hashes.max() if is_full else torch.ones_like(hashes, dtype=torch.bool)

    def merge(self, other: "Sample") -> None:
        """Take in other images and keep the lowest hashes; among equal ones the earlier image."""
        own_count = len(self.hashes)
        hashes, images = torch.cat([self.hashes, other.hashes]), torch.cat([self.images, other.images])
        order = images.argsort(stable=True)
        order = order[hashes[order].argsort(stable=True)][: self.size]
        staying, entering = order[order < own_count], order[order >= own_count] - own_count
        if len(hashes) <= self.size:
            self.values, self.cells = torch.cat([self.values, other.values]), torch.cat([self.cells, other.cells])
            self.hashes, self.images = hashes, images
        elif len(entering):
            self._replace(staying, other, entering)

    def _replace(self, staying: Tensor, other: "Sample", entering: Tensor) -> None:
        """Put images of another sample in the rows of those that don't stay: no more is copied than what comes in."""
        is_free = torch.ones(self.size, dtype=torch.bool)
        is_free[staying] = False
        free_rows = is_free.nonzero()[:, 0]
        for name in ("hashes", "images", "values", "cells"):
            own_rows, other_rows = getattr(self, name), getattr(other, name)
            if len(own_rows) < self.size:
                own_rows = torch.cat([own_rows, own_rows.new_empty(self.size - len(own_rows), *own_rows.shape[1:])])
                setattr(self, name, own_rows)
            own_rows[free_rows] = other_rows[entering]
