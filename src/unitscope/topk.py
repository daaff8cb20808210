"""The k highest candidates of every unit, kept while they stream by, in a total order.

Axes: `unit`, `rank` (0 is highest), and `candidate`: one possible peak of every unit, all from one image.
The total order is rule 2 of docs/exactness.md: value down, then hash of the image's key up, then image up, then cell up. NaN means
"no candidate" everywhere.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_IMAGE = torch.iinfo(torch.int64).max


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
            best = first_in_total_order(self._columns(unit_numbers), columns)
            self._replace(unit_numbers, best, images_with_value(best[0][:, -1], columns[0], images))

    def merge(self, other: "TopK") -> None:
        """Take in all that another TopK keeps, which is of other images."""
        may_change = may_enter(other.values[:, :1].T, self.kth_values()).any(0)
        unit_numbers = may_change.nonzero()[:, 0]
        if len(unit_numbers):
            best = first_in_total_order(self._columns(unit_numbers), other._columns(unit_numbers))
            self._replace(unit_numbers, best, other._images_with_value(unit_numbers, best[0][:, -1]))

    def _columns(self, unit_numbers: Int[Tensor, " unit"]) -> tuple[Tensor, ...]:
        """Values, hashes, images and cells of some units."""
        return tuple(column[unit_numbers] for column in (self.values, self.hashes, self.images, self.cells))

    def _replace(self, unit_numbers: Int[Tensor, " unit"], best: tuple[Tensor, ...], added_images: Int[Tensor, " unit"]) -> None:
        """Write the new candidates of some units. `added_images` counts the images among the added ones with the new k-th value."""
        # The new k-th value is no lower than the old one, and the list still has all candidates above the old one.
        self.tied[unit_numbers] = self._images_with_value(unit_numbers, best[0][:, -1]) + added_images
        free = best[0].isnan()
        columns, free_values = (self.values, self.hashes, self.images, self.cells), (torch.nan, NO_IMAGE, NO_IMAGE, 0)
        for column, new, free_value in zip(columns, best, free_values, strict=True):
            column[unit_numbers] = new.masked_fill(free, free_value)

    def images_with_value(self, value: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
        """How many of all images that were added hold each unit's value, which is no lower than the k-th; any for NaN."""
        return self._images_with_value(torch.arange(len(value)), value)

    def _images_with_value(self, unit_numbers: Int[Tensor, " unit"], value: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
        """How many of all images that were added hold a value; it is no lower than the k-th."""
        in_list = images_with_value(value, self.values[unit_numbers], self.images[unit_numbers])
        return torch.where(value == self.kth_values()[unit_numbers], self.tied[unit_numbers], in_list)


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


def first_in_total_order(kept: tuple[Tensor, ...], added: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Values, hashes, images and cells of every unit's k first candidates, of its k kept ones and the added ones.

    Columns have the shape (unit, candidate), or (candidate,) where all units have the same.
    """
    k, values = kept[0].shape[1], torch.cat([kept[0], added[0]], 1)
    # `torch.topk` orders by value, and promises nothing about ties. It takes NaN for the highest value, hence the minus.
    by_value = (-values).topk(min(k + 1, values.shape[1]), dim=1, largest=False)
    order = by_value.indices[:, :k]
    tied = (by_value.values[:, 1:] == by_value.values[:, :-1]).any(1).nonzero()[:, 0]
    if len(tied):
        columns = (torch.cat([own[tied], _rows(new, tied)], 1) for own, new in zip(kept, added, strict=True))
        order[tied] = total_order(*columns)[:, :k]
    return tuple(_gather(own, new, order) for own, new in zip(kept, added, strict=True))


def _rows(column: Tensor, unit_numbers: Int[Tensor, " unit"]) -> Tensor:
    """Some units' rows of a column of shape (unit, candidate), or of (candidate,) where all units have the same."""
    return column[unit_numbers] if column.dim() == 2 else column.expand(len(unit_numbers), -1)


def _gather(kept: Tensor, added: Tensor, order: Int[Tensor, "unit rank"]) -> Tensor:
    """The entries at these positions of the kept and then the added candidates, without joining the two."""
    k = kept.shape[1]
    added_position = (order - k).clamp(min=0)
    from_added = added[added_position] if added.dim() == 1 else added.gather(1, added_position)
    return torch.where(order < k, kept.gather(1, order.clamp(max=k - 1)), from_added)


def total_order(values: Tensor, hashes: Tensor, images: Tensor, cells: Tensor) -> Int[Tensor, "unit candidate"]:
    """The permutation that sorts every unit's candidates: four stable sorts, by the last key first."""
    order = cells.argsort(stable=True, dim=1)
    for keys in (images, hashes, -values):
        order = order.gather(1, keys.gather(1, order).argsort(stable=True, dim=1))
    return order
