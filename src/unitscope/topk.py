"""The k highest candidates of every unit, kept while they stream by, in an order that leaves nothing to chance.

Axes: `unit`, `rank` (0 is highest), and `candidate`: one possible peak of every unit, all from one image.
Candidates are ordered by value down, then hash of the image's key up, then image up, then cell up (rule 2). NaN stands for "no
candidate" everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_IMAGE = torch.iinfo(torch.int64).max


@dataclass(slots=True)
class TopK:
    """The k best candidates of every unit so far. Adding in any order and any grouping gives the same state.

    Places that are still free hold NaN, `NO_IMAGE` and cell 0. `hashes` are those of the images' keys. `tied` is how many images,
    of all that were added, hold the k-th value: where it is more than there are places for that value, the order alone chose among
    them. It is 0 where places are free.

    >>> best = TopK.empty(units=1, k=2)
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
    def empty(cls, units: int, k: int, device: str | torch.device = "cpu") -> "TopK":
        return cls(
            torch.full((units, k), torch.nan, dtype=torch.float32, device=device),
            torch.full((units, k), NO_IMAGE, device=device),
            torch.full((units, k), NO_IMAGE, device=device),
            torch.zeros((units, k), dtype=torch.int64, device=device),
            torch.zeros(units, dtype=torch.int64, device=device),
        )

    @property
    def k(self) -> int:
        return self.values.shape[1]

    def to(self, device: str | torch.device) -> "TopK":
        """The same on another device."""
        return TopK(*(getattr(self, name).to(device) for name in TopK.__slots__))

    def floor(self) -> Float[Tensor, " unit"]:
        """The k-th value, that a candidate must reach to come in; NaN where places are free."""
        return self.values[:, -1]

    def add(
        self,
        values: Float[Tensor, "candidate unit"],
        hashes: Int[Tensor, " candidate"],
        images: Int[Tensor, " candidate"],
        cells: Int[Tensor, "candidate unit"],
        floor: Float[Tensor, " unit"] | None = None,
    ) -> None:
        """Take in candidates, each from one image for all units; NaN where a unit has none.

        Units in which none comes up to the `floor`, their own unless another is given, are passed over.
        """
        units = may_enter(values, self.floor() if floor is None else floor).any(0).nonzero()[:, 0]
        if len(units):
            values, cells = values[:, units].T, cells[:, units].T
            self._put(units, (values, hashes, images, cells), lambda value: images_holding(value, values, images))

    def merge(self, other: "TopK") -> None:
        """Take in all that another TopK kept, whose images are others."""
        units = may_enter(other.values[:, :1].T, self.floor()).any(0).nonzero()[:, 0]
        if len(units):
            added = other.values[units], other.hashes[units], other.images[units], other.cells[units]
            self._put(units, added, lambda value: other._images_at(units, value))

    def _put(self, units: Tensor, added: tuple[Tensor, ...], added_at: Callable[[Tensor], Tensor]) -> None:
        """Merge candidates into the state of some units: columns by unit and candidate, or by candidate alone where all units have the
        same. `added_at` says how many images among them hold a value."""
        own = tuple(kept[units] for kept in (self.values, self.hashes, self.images, self.cells))
        best = ranked(own, added)
        floor = best[0][:, -1]
        # The new k-th value is no lower than the old one, and all candidates above the old one are still in the list.
        self.tied[units] = self._images_at(units, floor) + added_at(floor)
        absent = best[0].isnan()
        for kept, chosen, nothing in zip(
            (self.values, self.hashes, self.images, self.cells), best, (torch.nan, NO_IMAGE, NO_IMAGE, 0), strict=True
        ):
            kept[units] = chosen.masked_fill(absent, nothing)

    def _images_at(self, units: Tensor, value: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
        """How many images hold a value that is no lower than the k-th."""
        listed = images_holding(value, self.values[units], self.images[units])
        return torch.where(value == self.floor()[units], self.tied[units], listed)


def may_enter(values: Float[Tensor, "candidate unit"], floor: Float[Tensor, " unit"]) -> Tensor:
    """True where a value could come in: at or above the floor (an equal value may win by its hash), or places are free."""
    return (values >= floor) | (floor.isnan() & ~values.isnan())


def images_holding(
    value: Float[Tensor, " unit"], values: Float[Tensor, "unit candidate"], images: Int[Tensor, "*unit candidate"]
) -> Int[Tensor, " unit"]:
    """In how many images a unit has that value among these candidates; an image may have several."""
    holds = values == value[:, None]
    count = holds.sum(1)
    several = (count > 1).nonzero()[:, 0]
    if len(several):
        found = _rows(images, several).masked_fill(~holds[several], NO_IMAGE).sort(1).values
        count[several] = (found[:, 1:] != found[:, :-1]).sum(1) + (found[:, -1] != NO_IMAGE)
    return count


def ranked(own: tuple[Tensor, ...], added: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first of every unit's own and added candidates in the total order, as many as its own: values, hashes, images and cells."""
    k, values = own[0].shape[1], torch.cat([own[0], added[0]], 1)
    # By value alone where that decides; `torch.topk` promises nothing about ties. NaN counts as highest, hence the minus.
    first = (-values).topk(min(k + 1, values.shape[1]), dim=1, largest=False)
    order = first.indices[:, :k]
    equal = (first.values[:, 1:] == first.values[:, :-1]).any(1).nonzero()[:, 0]
    if len(equal):
        columns = (torch.cat([one[equal], _rows(other, equal)], 1) for one, other in zip(own, added, strict=True))
        order[equal] = total_order(*columns)[:, :k]
    return tuple(_picked(one, other, order) for one, other in zip(own, added, strict=True))


def _rows(column: Tensor, units: Tensor) -> Tensor:
    """Some units' candidates of a column that has one row for each unit, or one for all."""
    return column[units] if column.dim() == 2 else column.expand(len(units), -1)


def _picked(own: Tensor, added: Tensor, order: Int[Tensor, "unit rank"]) -> Tensor:
    """What stands at these places of the own and the added candidates, one after the other; without joining them."""
    k = own.shape[1]
    beyond = (order - k).clamp(min=0)
    later = added[beyond] if added.dim() == 1 else added.gather(1, beyond)
    return torch.where(order < k, own.gather(1, order.clamp(max=k - 1)), later)


def total_order(values: Tensor, hashes: Tensor, images: Tensor, cells: Tensor) -> Int[Tensor, "unit candidate"]:
    """The order of every unit's candidates: four stable sorts from the last key to the first."""
    order = cells.argsort(stable=True, dim=1)
    for keys in (images, hashes, -values):
        order = order.gather(1, keys.gather(1, order).argsort(stable=True, dim=1))
    return order
