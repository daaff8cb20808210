"""The receptive field of every cell of one layer, from its dependency bounds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unitscope.receptive_fields.bounds import Array, AxisBounds, DependencyBounds, unexpand
from unitscope.records import Box


@dataclass(frozen=True, slots=True)
class ReceptiveFields:
    """The receptive field of every cell of one layer.

    `rows` holds the first row and the exclusive stop, `columns` the same for columns: integers of shape `(2, unit, y, x)`, where a
    dimension along which nothing varies has length 1. Unclipped; clipped to the input a box is exact. `centres_y` and
    `centres_x`, of shape `(y,)` and `(x,)`, are where cells stand on the input.
    """

    rows: Array
    columns: Array
    centres_y: Array
    centres_x: Array

    @classmethod
    def from_bounds(cls, bounds: DependencyBounds, height: int, width: int) -> "ReceptiveFields":
        """The fields of a layer from its bounds, of shape (1, unit, y, x) or (1, unit), on an input of that size.

        Padding counts only on a side where the field touches the border of the input: so the clipped box is always the exact one.
        """
        if bounds.ndim == 2:
            bounds = bounds.map(lambda tensor: tensor[..., None, None])
        rows, columns = _intervals(bounds.rows, height), _intervals(bounds.columns, width)
        map_height, map_width = bounds.shape[-2:]
        centres_y = _centres(rows[:, 0, :, 0], map_height, height)
        return cls(rows, columns, centres_y, _centres(columns[:, 0, 0, :], map_width, width))

    def box(self, unit: int, y: int, x: int) -> Box:
        """The unclipped box of one cell."""
        cell = np.array([unit]), np.array([y]), np.array([x])
        return Box(*(int(side[0]) for side in self.boxes(*cell)))

    def boxes(self, unit: Array, y: Array, x: Array) -> tuple[Array, ...]:
        """Top, left, bottom and right of many cells, each an integer array of the arguments' common shape."""
        shape = np.broadcast_shapes(unit.shape, y.shape, x.shape)
        (top, bottom), (left, right) = (axis[_index(axis, unit, y, x)] for axis in (self.rows, self.columns))
        return tuple(np.broadcast_to(side, shape) for side in (top, left, bottom, right))

    def cells_inside(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """The rectangle of cells (first row and column, exclusive stops) whose boxes, of all units, lie on an input of that size; None where
        there are no such cells, or they aren't a rectangle."""
        inside = ((self.rows[0] >= 0) & (self.rows[1] <= height)) & ((self.columns[0] >= 0) & (self.columns[1] <= width))
        cells = np.broadcast_to(inside.all(axis=0), (len(self.centres_y), len(self.centres_x)))
        y, x = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
        if len(y) == 0 or cells.sum() != (y[-1] + 1 - y[0]) * (x[-1] + 1 - x[0]):
            return None
        return int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1

    def of_cells(self, top: int, left: int, bottom: int, right: int) -> "ReceptiveFields":
        """The fields of a rectangle of cells."""

        def part(intervals: Array) -> Array:
            rows = intervals[:, :, top:bottom] if intervals.shape[2] > 1 else intervals
            return rows[..., left:right] if intervals.shape[3] > 1 else rows

        return ReceptiveFields(part(self.rows), part(self.columns), self.centres_y[top:bottom], self.centres_x[left:right])

    def middle_size(self) -> tuple[int, int]:
        """Height and width of the field of the cell in the middle; the largest among units whose fields differ.

        Where that cell sees nothing, as between the strides of a transposed convolution, the largest of all.
        """
        return _middle_length(self.rows), _middle_length(self.columns)


def _index(intervals: Array, *cell: Array) -> tuple[Any, ...]:
    return slice(None), *(i if n > 1 else 0 for i, n in zip(cell, intervals.shape[1:], strict=True))


def _middle_length(intervals: Array) -> int:
    _, _, height, width = intervals.shape
    start, stop = intervals[:, :, height // 2, width // 2]
    return int((stop - start).max()) or int((intervals[1] - intervals[0]).max())


def _intervals(axis: AxisBounds, length: int) -> Array:
    """Start and stop of every cell's field along one axis of an input of that length."""
    inner_start, inner_stop = -_as_array(axis.negated_inner_start), _as_array(axis.inner_stop)
    outer_start, outer_stop = -_as_array(axis.negated_outer_start), _as_array(axis.outer_stop)
    nowhere = ~np.isfinite(inner_start) & ~np.isfinite(outer_start)
    outer_start, outer_stop = (
        np.where(nowhere, 0, np.where(np.isfinite(outer), outer, inner))
        for outer, inner in ((outer_start, inner_start), (outer_stop, inner_stop))
    )
    counts_padding = _as_array(axis.is_global) <= 0
    start = np.where((inner_start <= 0) & counts_padding, np.minimum(outer_start, 0), inner_start)
    stop = np.where((inner_stop >= length) & counts_padding, np.maximum(outer_stop, length), inner_stop)
    sees_no_pixel = inner_start >= inner_stop  # but padding, or nothing at all: the box is moved off the input
    nearer_start = outer_start + outer_stop < length
    shift = np.where(nearer_start, np.minimum(0, -outer_stop), np.maximum(0, length - outer_start))
    start, stop = np.where(sees_no_pixel, outer_start + shift, start), np.where(sees_no_pixel, outer_stop + shift, stop)
    return _without_copies(np.stack([start, stop]).astype(np.int64))


def _without_copies(intervals: Array) -> Array:
    """The same with length 1 for each dimension along which nothing varies: a deep network has hundreds of layers."""
    for dim in range(1, intervals.ndim):
        first = intervals.take([0], dim)
        if intervals.shape[dim] > 1 and (intervals == first).all():
            intervals = first
    return intervals


def _as_array(bound: Tensor) -> Array:
    """A bound of the one image, without copies."""
    array: Array = unexpand(bound[0]).numpy()
    return array


def _centres(intervals: Array, cells: int, length: int) -> Array:
    """Where cells stand: the middles of their fields or, where several have the same one, spread evenly over the input."""
    middles = np.asarray(intervals.mean(axis=0))
    if cells > 1 and (len(middles) == 1 or (np.diff(middles) == 0).any()):
        return (np.arange(cells) + 0.5) * length / cells
    return np.broadcast_to(middles, cells)
