"""How a layer's output holds units and places, and how it is turned into maps."""

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

from unitscope.fields import COLUMNS, PLACE, ROWS, Array, Planes, differs


@dataclass(frozen=True, slots=True)
class Layout:
    """Where units and places are in an output.

    Without `units_last` it is (image, unit, y, x) or (image, unit). With it, (image, y, x, unit) or, where there is a `grid`, tokens
    of some shape: (image, token, unit), or (image, window, token, unit). `grid` holds for every place, in shape (y, x), the number
    of its token; other tokens have no place.
    """

    units_last: bool = False
    grid: Array | None = None

    def maps(self, output: Tensor) -> Tensor:
        """The output as maps of shape (image, unit, y, x), without copying where that can be."""
        if self.grid is not None:
            height, width = self.grid.shape
            output = output.flatten(1, -2)
            first = int(self.grid[0, 0])
            in_a_row = np.array_equal(self.grid.ravel(), np.arange(first, first + height * width))
            placed = output[:, first : first + height * width] if in_a_row else output[:, self.grid.ravel().tolist()]
            output = placed.unflatten(1, (height, width))
        elif output.dim() == 2:
            return output[..., None, None]
        return output.movedim(-1, 1) if self.units_last else output


def layout_of(shape: tuple[int, ...], planes: Planes, units_last: bool) -> Layout | str:
    """The layout of an output, or why it isn't known. `units_last` says that what made it puts them there."""
    if len(shape) == 2:
        return Layout()
    if len(shape) not in (3, 4):
        return f"its output has shape {shape}, which is neither one of maps, (image, unit, y, x), nor one of tokens, (image, token, unit)"
    if len(shape) == 4 and (_stands(planes, 1, 2) or (units_last and not _turned(planes, 1, 2))):
        return Layout(units_last=True)
    if len(shape) == 4 and not units_last:
        return f"its output of shape {shape} holds rows and columns in another order" if _turned(planes, 2, 3) else Layout()
    if not (units_last or _stands(planes, 1, 1)):
        return f"its output of shape {shape} has no places that can be told from its units"
    grid = _grid([plane.flatten(1, -2) for plane in planes])
    if grid is None:
        return f"the {prod(shape[1:-1])} tokens of its output of shape {shape} don't stand on a grid"
    return Layout(units_last=True, grid=grid)


def _turned(planes: Planes, rows: int, columns: int) -> bool:
    """True where rows of the input run along the dimension that should hold columns, or the other way round."""
    return differs(planes[ROWS + PLACE], columns) or differs(planes[COLUMNS + PLACE], rows)


def _stands(planes: Planes, rows: int, columns: int) -> bool:
    """True where rows of the input run along that dimension and along no later one, and columns along theirs."""
    rows_run = [dim for dim in range(1, planes[0].dim()) if differs(planes[ROWS + PLACE], dim)]
    columns_run = [dim for dim in range(1, planes[0].dim()) if differs(planes[COLUMNS + PLACE], dim)]
    return bool(rows_run or columns_run) and rows_run in ([rows], []) and columns_run in ([columns], [])


def _grid(planes: Planes) -> Array | None:
    """Which token stands where: every pair of a row and a column once; None where that isn't so."""
    rows, columns = (planes[axis + PLACE][0].amax(-1).numpy() for axis in (ROWS, COLUMNS))
    placed = np.flatnonzero(np.isfinite(rows) & np.isfinite(columns))
    if len(placed) == 0:
        return None
    (ys, y), (xs, x) = (np.unique(places[placed], return_inverse=True) for places in (rows, columns))
    grid = np.full((len(ys), len(xs)), -1)
    grid[y, x] = placed
    return grid if len(placed) == grid.size and (grid >= 0).all() else None
