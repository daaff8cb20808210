"""The k highest candidates of every unit, kept while they stream by, in a total order.

Axes: `unit`, `rank` (0 is highest), and `candidate`: one possible peak of every unit, all from one image.
The total order is rule 2 of docs/exactness.md: value down, then hash of the image's key up, then image up, then cell up. NaN means
"no candidate" everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_IMAGE = torch.iinfo(torch.int64).max

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""Values, hashes, images and cells, of shape (unit, candidate), or of (candidate,) where all units have the same."""


@dataclass(slots=True)
class TopK:
    """The k first candidates of every unit so far, in the total order. Any order and grouping of additions gives the same state.

    Free ranks hold the value NaN, `NO_IMAGE` as hash and image, and cell 0. `hashes` are those of the images' keys. `tied` is how many
    of all images that were added hold the k-th value; where they are more than the ranks with that value, only the total order chose
    among them. It is 0 where ranks are free.

    >>> best = TopK.empty(unit_count=1, k=2)
    >>> images = torch.tensor([0, 1, 2])
    >>> best.add(torch.tensor([[1.0], [3.0], [3.0]]), images, images, torch.zeros(3, 1, dtype=torch.int64))
    >>> best.values.tolist(), best.images.tolist(), best.tied.tolist()
    ([[3.0, 3.0]], [[1, 2]], [2])
    """

    values: Float[Tensor, "unit rank"]
    hashes: Int[Tensor, "unit rank"]
    images: Int[Tensor, "unit rank"]
    cells: Int[Tensor, "unit rank"]
    tied: Int[Tensor, " unit"]

    @classmethod
    def empty(cls, unit_count: int, k: int, device: str | torch.device = "cpu") -> "TopK":
        """All ranks free."""
        return cls(
            torch.full((unit_count, k), torch.nan, dtype=torch.float32, device=device),
            torch.full((unit_count, k), NO_IMAGE, device=device),
            torch.full((unit_count, k), NO_IMAGE, device=device),
            torch.zeros((unit_count, k), dtype=torch.int64, device=device),
            torch.zeros(unit_count, dtype=torch.int64, device=device),
        )

    @property
    def k(self) -> int:
        return self.values.shape[1]

    def to(self, device: str | torch.device) -> "TopK":
        """The same on another device."""
        return TopK(*(getattr(self, name).to(device) for name in TopK.__slots__))

    def kth_values(self) -> Float[Tensor, " unit"]:
        """The k-th value of every unit, NaN where ranks are free: a view, which follows what is added later."""
        return self.values[:, -1]

    def add(
        self,
        values: Float[Tensor, "candidate unit"],
        hashes: Int[Tensor, " candidate"],
        images: Int[Tensor, " candidate"],
        cells: Int[Tensor, "candidate unit"],
        kth_values: Float[Tensor, " unit"] | None = None,
    ) -> None:
        """Take in candidates, each from one image for all units; NaN where a unit has none.

        Units whose candidates all lie below their k-th value are skipped. `kth_values` takes the place of this object's own.
        """
        may_change = may_enter(values, self.kth_values() if kth_values is None else kth_values).any(0)
        unit_numbers = may_change.nonzero()[:, 0]
        if len(unit_numbers):
            columns = values[:, unit_numbers].T, hashes, images, cells[:, unit_numbers].T
            self._take(unit_numbers, columns, lambda value: images_with_value(value, columns[0], images))

    def merge(self, other: "TopK") -> None:
        """Take in all that another TopK keeps, which is of other images."""
        may_change = may_enter(other.values[:, :1].T, self.kth_values()).any(0)
        unit_numbers = may_change.nonzero()[:, 0]
        if len(unit_numbers):
            self._take(unit_numbers, other._columns(unit_numbers), partial(other._images_with_value, unit_numbers))

    def _columns(self, unit_numbers: Int[Tensor, " unit"]) -> Columns:
        """Values, hashes, images and cells of some units, without the last ranks where all are free."""
        used = int((~self.values[unit_numbers].isnan()).any(0).sum())
        return (
            self.values[unit_numbers, :used],
            self.hashes[unit_numbers, :used],
            self.images[unit_numbers, :used],
            self.cells[unit_numbers, :used],
        )

    def _take(self, unit_numbers: Int[Tensor, " unit"], added: Columns, count_added_images: Callable[[Tensor], Tensor]) -> None:
        """Take in candidates of some units. `count_added_images` tells how many of their images hold each unit's value."""
        best = first_in_total_order(self._columns(unit_numbers), added, self.k)
        ranks = best[0].shape[1]
        if ranks == self.k:
            # The new k-th value is no lower than the old one, and the list still has all candidates above the old one.
            kth_values = best[0][:, -1]
            self.tied[unit_numbers] = self._images_with_value(unit_numbers, kth_values) + count_added_images(kth_values)
        free = best[0].isnan()
        columns, free_values = (self.values, self.hashes, self.images, self.cells), (torch.nan, NO_IMAGE, NO_IMAGE, 0)
        for column, new, free_value in zip(columns, best, free_values, strict=True):
            column[unit_numbers, :ranks] = new.masked_fill(free, free_value)

    def images_with_value(self, value: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
        """How many of all images that were added hold each unit's value, which is no lower than the k-th; any for NaN."""
        return self._images_with_value(torch.arange(len(value)), value)

    def _images_with_value(self, unit_numbers: Int[Tensor, " unit"], value: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
        """How many of all images that were added hold a value; it is no lower than the k-th."""
        in_list = images_with_value(value, self.values[unit_numbers], self.images[unit_numbers])
        return torch.where(value == self.kth_values()[unit_numbers], self.tied[unit_numbers], in_list)


@dataclass(slots=True)
class HighestValues:
    """The k highest values of every unit so far, without what a `TopK` knows of them; NaN where ranks are free."""

    values: Float[Tensor, "unit rank"]

    @classmethod
    def empty(cls, unit_count: int, k: int, device: str | torch.device) -> "HighestValues":
        """All ranks free."""
        return cls(torch.full((unit_count, k), torch.nan, dtype=torch.float32, device=device))

    def kth_values(self) -> Float[Tensor, " unit"]:
        """The k-th value of every unit, NaN where ranks are free: a view, which follows what is added later."""
        return self.values[:, -1]

    def merge(self, added: Float[Tensor, "unit candidate"]) -> None:
        """Take in values, the highest of a unit first; NaN is none."""
        unit_numbers = may_enter(added[:, :1].T, self.kth_values()).any(0).nonzero()[:, 0]
        joined = torch.cat([self.values[unit_numbers], added[unit_numbers]], 1)
        self.values[unit_numbers] = -(-joined).topk(self.values.shape[1], dim=1, largest=False).values


def may_enter(values: Float[Tensor, "candidate unit"], kth_values: Float[Tensor, " unit"]) -> Bool[Tensor, "candidate unit"]:
    """Whether a value could enter the top k: it reaches the k-th value (an equal one may win by its hash), or ranks are free."""
    return (values >= kth_values) | (kth_values.isnan() & ~values.isnan())


def images_with_value(
    value: Float[Tensor, " unit"], values: Float[Tensor, "unit candidate"], images: Int[Tensor, "*unit candidate"]
) -> Int[Tensor, " unit"]:
    """In how many images one of a unit's candidates has the value. An image counts once, however many of its candidates have it."""
    has_value = values == value[:, None]
    count = has_value.sum(1)
    repeated = (count > 1).nonzero()[:, 0]
    if len(repeated):
        sorted_images = _rows(images, repeated).masked_fill(~has_value[repeated], NO_IMAGE).sort(1).values
        count[repeated] = (sorted_images[:, 1:] != sorted_images[:, :-1]).sum(1) + (sorted_images[:, -1] != NO_IMAGE)
    return count


def first_in_total_order(kept: Columns, added: Columns, k: int) -> Columns:
    """Values, hashes, images and cells of every unit's k first candidates, of its kept ones and the added ones; all, where there are fewer."""
    values = torch.cat([kept[0], added[0]], 1)
    # `torch.topk` orders by value, and promises nothing about ties. It takes NaN for the highest value, hence the minus.
    by_value = (-values).topk(min(k + 1, values.shape[1]), dim=1, largest=False)
    order = by_value.indices[:, :k]
    tied = (by_value.values[:, 1:] == by_value.values[:, :-1]).any(1).nonzero()[:, 0]
    if len(tied):
        columns = (torch.cat([own[tied], _rows(new, tied)], 1) for own, new in zip(kept, added, strict=True))
        order[tied] = total_order(*columns)[:, :k]
    values, hashes, images, cells = (_gather(own, new, order) for own, new in zip(kept, added, strict=True))
    return values, hashes, images, cells


def _rows(column: Tensor, unit_numbers: Int[Tensor, " unit"]) -> Tensor:
    """Some units' rows of a column of shape (unit, candidate), or of (candidate,) where all units have the same."""
    return column[unit_numbers] if column.dim() == 2 else column.expand(len(unit_numbers), -1)


def _gather(kept: Tensor, added: Tensor, order: Int[Tensor, "unit rank"]) -> Tensor:
    """The entries at these positions of the kept and then the added candidates, without joining the two."""
    width = kept.shape[1]
    added_position = (order - width).clamp(min=0)
    from_added = added[added_position] if added.dim() == 1 else added.gather(1, added_position)
    return torch.where(order < width, kept.gather(1, order.clamp(max=width - 1)), from_added) if width else from_added


def total_order(values: Tensor, hashes: Tensor, images: Tensor, cells: Tensor) -> Int[Tensor, "unit candidate"]:
    """The permutation that sorts every unit's candidates: four stable sorts, by the last key first."""
    order = cells.argsort(stable=True, dim=1)
    for keys in (images, hashes, -values):
        order = order.gather(1, keys.gather(1, order).argsort(stable=True, dim=1))
    return order
