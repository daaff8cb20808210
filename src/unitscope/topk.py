"""The k highest candidates of every unit, kept while they stream by, in an order that leaves nothing to chance.

Axes: `unit`, `rank` (0 is highest), and `candidate`: one possible peak of every unit, all from one image.
Candidates are ordered by value down, then image up, then cell up (rule 2). NaN stands for "no candidate" everywhere.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_IMAGE = torch.iinfo(torch.int64).max


@dataclass(slots=True)
class TopK:
    """The k best candidates of every unit so far. Adding in any order and any grouping gives the same state.

    Places that are still free hold NaN, `NO_IMAGE` and cell 0.

    >>> best = TopK.empty(units=1, k=2)
    >>> best.add(torch.tensor([[1.0], [3.0], [3.0]]), torch.tensor([0, 1, 2]), torch.zeros(3, 1, dtype=torch.int64))
    >>> best.values.tolist(), best.images.tolist()
    ([[3.0, 3.0]], [[1, 2]])
    """

    values: Float[Tensor, "unit rank"]
    images: Int[Tensor, "unit rank"]
    cells: Int[Tensor, "unit rank"]

    @classmethod
    def empty(cls, units: int, k: int, device: str | torch.device = "cpu") -> "TopK":
        return cls(
            torch.full((units, k), torch.nan, device=device),
            torch.full((units, k), NO_IMAGE, device=device),
            torch.zeros((units, k), dtype=torch.int64, device=device),
        )

    @property
    def k(self) -> int:
        return self.values.shape[1]

    def to(self, device: str | torch.device) -> "TopK":
        """The same on another device."""
        return TopK(self.values.to(device), self.images.to(device), self.cells.to(device))

    def floor(self) -> Float[Tensor, " unit"]:
        """The value that a candidate must reach to come in; NaN where places are free."""
        return self.values[:, -1]

    def add(
        self,
        values: Float[Tensor, "candidate unit"],
        images: Int[Tensor, " candidate"],
        cells: Int[Tensor, "candidate unit"],
        floor: Float[Tensor, " unit"] | None = None,
    ) -> None:
        """Take in candidates, each from one image for all units; NaN where a unit has none.

        Units in which none comes up to the `floor`, their own unless another is given, are passed over.
        """
        units = enters(values, self.floor() if floor is None else floor).any(0).nonzero()[:, 0]
        if len(units):
            values, cells = values[:, units].T, cells[:, units].T
            absent = values.isnan()
            self._put(units, values, images.expand(values.shape).masked_fill(absent, NO_IMAGE), cells.masked_fill(absent, 0))

    def merge(self, other: "TopK") -> None:
        """Take in all that another TopK kept."""
        units = enters(other.values[:, :1].T, self.floor()).any(0).nonzero()[:, 0]
        if len(units):
            self._put(units, other.values[units], other.images[units], other.cells[units])

    def _put(self, units: Tensor, values: Tensor, images: Tensor, cells: Tensor) -> None:
        joined = (
            torch.cat([self.values[units], values], 1),
            torch.cat([self.images[units], images], 1),
            torch.cat([self.cells[units], cells], 1),
        )
        for kept, best in zip((self.values, self.images, self.cells), ranked(*joined, self.k), strict=True):
            kept[units] = best


def enters(values: Float[Tensor, "candidate unit"], floor: Float[Tensor, " unit"]) -> Tensor:
    """True where a value could come in: at or above the floor (an equal value wins from an earlier image), or places are free."""
    return (values >= floor) | (floor.isnan() & ~values.isnan())


def ranked(
    values: Float[Tensor, "unit candidate"], images: Int[Tensor, "unit candidate"], cells: Int[Tensor, "unit candidate"], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k first of every unit's candidates in the total order."""
    # By value alone where that decides; `torch.topk` promises nothing about ties. NaN counts as highest, hence the minus.
    first = (-values).topk(min(k + 1, values.shape[1]), dim=1, largest=False)
    order = first.indices[:, :k]
    tied = (first.values[:, 1:] == first.values[:, :-1]).any(1)
    if tied.any():
        order[tied] = total_order(values[tied], images[tied], cells[tied])[:, :k]
    return values.gather(1, order), images.gather(1, order), cells.gather(1, order)


def total_order(values: Tensor, images: Tensor, cells: Tensor) -> Int[Tensor, "unit candidate"]:
    """The order of every unit's candidates: three stable sorts from the last key to the first."""
    order = cells.argsort(stable=True, dim=1)
    order = order.gather(1, images.gather(1, order).argsort(stable=True, dim=1))
    return order.gather(1, (-values.gather(1, order)).argsort(stable=True, dim=1))
