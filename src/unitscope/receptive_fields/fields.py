"""From planes to boxes: the field of every cell of one layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unitscope.receptive_fields.bounds import COLUMNS, PLACE, ROWS, UNIT, Array, Planes, varying
from unitscope.records import Box


@dataclass(frozen=True, slots=True)
class Fields:
    """The field of every cell of one layer.

    `rows` holds first and last-but-one row, `columns` the same for columns: integers of shape `(2, unit, y, x)`, where a
    dimension along which nothing varies has length 1. Unclipped; clipped to the input a box is exact. `centres_y` and
    `centres_x`, of shape `(y,)` and `(x,)`, are where cells stand on the input.
    """

    rows: Array
    columns: Array
    centres_y: Array
    centres_x: Array

    def box(self, unit: int, y: int, x: int) -> Box:
        """The unclipped box of one cell."""
        cell = np.array([unit]), np.array([y]), np.array([x])
        return Box(*(int(side[0]) for side in self.boxes(*cell)))

    def boxes(self, unit: Array, y: Array, x: Array) -> tuple[Array, ...]:
        """Top, left, bottom and right of many cells, each an integer array of the arguments' common shape."""
        shape = np.broadcast_shapes(unit.shape, y.shape, x.shape)
        (top, bottom), (left, right) = (bounds[_place(bounds, unit, y, x)] for bounds in (self.rows, self.columns))
        return tuple(np.broadcast_to(side, shape) for side in (top, left, bottom, right))

    def inner_size(self) -> tuple[int, int]:
        """Height and width of the field of the cell in the middle; the largest among units whose fields differ.

        Where that cell sees nothing, as between the strides of a transposed convolution, the largest of all.
        """
        return _middle_size(self.rows), _middle_size(self.columns)


def _place(bounds: Array, *index: Array) -> tuple[Any, ...]:
    return slice(None), *(i if n > 1 else 0 for i, n in zip(index, bounds.shape[1:], strict=True))


def _middle_size(bounds: Array) -> int:
    _, _, height, width = bounds.shape
    middle = bounds[:, :, height // 2, width // 2]
    return int((middle[1] - middle[0]).max()) or int((bounds[1] - bounds[0]).max())


def fields_of(planes: Planes, height: int, width: int) -> Fields:
    """The fields of a layer from its planes, of shape (1, unit, y, x) or (1, unit), on an input of that size.

    Padding counts only on a side where the field touches the border of the input: so the clipped box is always the exact one.
    """
    if planes[0].dim() == 2:
        planes = [p[..., None, None] for p in planes]
    rows = _bounds(planes[ROWS:COLUMNS], height)
    columns = _bounds(planes[COLUMNS:UNIT], width)
    map_height, map_width = planes[0].shape[-2:]
    return Fields(
        rows,
        columns,
        _centres(rows[:, 0, :, 0], map_height, height),
        _centres(columns[:, 0, 0, :], map_width, width),
    )


def _bounds(planes: Planes, length: int) -> Array:
    inner_start, inner_stop, outer_start, outer_stop, whole = (varying(p[0]).numpy() for p in planes[:PLACE])
    inner_start, outer_start = -inner_start, -outer_start
    nowhere = ~np.isfinite(inner_start) & ~np.isfinite(outer_start)
    outer_start, outer_stop = (
        np.where(nowhere, 0, np.where(np.isfinite(outer), outer, inner))
        for outer, inner in ((outer_start, inner_start), (outer_stop, inner_stop))
    )
    inner_only = whole > 0
    start = np.where((inner_start <= 0) & ~inner_only, np.minimum(outer_start, 0), inner_start)
    stop = np.where((inner_stop >= length) & ~inner_only, np.maximum(outer_stop, length), inner_stop)
    blind = inner_start >= inner_stop  # sees padding alone, or nothing at all: its box is moved off the input
    before = outer_start + outer_stop < length
    away = np.where(before, np.minimum(0, -outer_stop), np.maximum(0, length - outer_start))
    start, stop = np.where(blind, outer_start + away, start), np.where(blind, outer_stop + away, stop)
    return np.stack([start, stop]).astype(np.int64)


def _centres(bounds: Array, cells: int, length: int) -> Array:
    """Where cells stand: the middles of their fields or, where several have the same one, spread evenly over the input."""
    middles = np.asarray(bounds.mean(axis=0))
    if cells > 1 and (len(middles) == 1 or (np.diff(middles) == 0).any()):
        return (np.arange(cells) + 0.5) * length / cells
    return np.broadcast_to(middles, cells)
