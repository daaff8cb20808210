"""Arithmetic of windows: what output cells depend on that each read some cells along one dimension.

`cells_read`, of shape (offset, output cell), holds for every offset in a window the input cell that each output cell reads there. Cells
beyond the border are padding.
"""

from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import NOTHING, Array, AxisBounds, DependencyBounds, runs_along, unexpand

NO_CELL = -(1 << 40)
"""In `cells_read`: neither a cell nor padding is read."""


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """The window of a convolution or a pooling along one dimension, in cells."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def output_cells(self, input_cells: int) -> int:
        """How many windows there are on so many cells."""
        return (input_cells + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def cells_read(self, cells: int) -> Array:
        """What so many output cells read."""
        return np.stack([np.arange(cells) * self.stride - self.padding + i * self.dilation for i in range(self.kernel)])

    def transposed_cells_read(self, cells: int, input_cells: int) -> Array:
        """What so many output cells of a transposed convolution read of so many input cells; it reads no padding."""
        spread = np.stack([np.arange(cells) + self.padding - i * self.dilation for i in range(self.kernel)])
        read = spread // self.stride
        return np.where((spread % self.stride == 0) & (read >= 0) & (read < input_cells), read, NO_CELL)

    def transposed_middles(self, cells: int) -> Array:
        """The input cells, fractions too, where the middles of the windows of a transposed convolution stand."""
        middles: Array = (np.arange(cells) + self.padding - (self.kernel - 1) * self.dilation / 2) / self.stride
        return middles


def slide(bounds: DependencyBounds, dim: int, cells_read: Array) -> DependencyBounds:
    """What output cells depend on that read those cells along `dim`. They stand in the middle of what they read.

    Where `dim` is one of tokens, which stand in rows and columns both, those beyond its ends stand nowhere.
    """
    rows, columns = (slide_axis(axis, dim, cells_read) for axis in bounds.axes)
    slid = DependencyBounds(rows, columns, _unite_windows(bounds.unit_number, dim, cells_read))
    middles = _middles(cells_read)
    beyond = (middles < 0) | (middles > bounds.shape[dim] - 1)
    if beyond.any() and all(runs_along(axis.position, dim) for axis in bounds.axes):
        positions = (_clear_others(axis.position, dim, ~beyond) for axis in slid.axes)
        slid = slid.with_positions(*(position.expand(slid.shape) for position in positions))
    return slid


def slide_axis(axis: AxisBounds, dim: int, cells_read: Array) -> AxisBounds:
    """The same for the bounds along one axis of the images."""
    inner = partial(_unite_windows, dim=dim, cells_read=cells_read)
    outer = partial(_unite_windows, dim=dim, cells_read=cells_read, beyond_border=True)
    return AxisBounds(
        inner(axis.negated_inner_start),
        inner(axis.inner_stop),
        outer(axis.negated_outer_start),
        outer(axis.outer_stop),
        inner(axis.is_global),
        positions_at(axis.position, dim, _middles(cells_read)),
    )


def positions_at(position: Tensor, dim: int, cells: Array) -> Tensor:
    """The positions along `dim` of those cells, which may lie between two cells or beyond the border."""
    shape, position = _shape_with(position, dim, len(cells)), unexpand(position)
    if position.shape[dim] == 1:
        return position.expand(shape)
    below = np.clip(np.floor(cells), 0, position.shape[dim] - 2).astype(np.int64)
    share = torch.from_numpy((cells - below).astype(np.float32)).reshape([-1 if d == dim else 1 for d in range(position.dim())])
    low, high = (position.index_select(dim, torch.from_numpy(index)) for index in (below, below + 1))
    between = low + (high - low) * share
    return torch.where(low == NOTHING, high, torch.where(high == NOTHING, low, between)).expand(shape)


def unite_selected(tensor: Tensor, dim: int, selected: Tensor) -> Tensor:
    """The union along `dim` over the input cells that are True in `selected`, of shape (output cell, input cell)."""
    shape = _shape_with(tensor, dim, len(selected))
    tensor = unexpand(tensor)
    if tensor.shape[dim] == 1:
        return tensor.expand(shape)
    last = tensor.movedim(dim, -1)
    united = [torch.where(inputs, last, NOTHING).amax(-1) for inputs in selected]
    return torch.stack(united, -1).movedim(-1, dim).expand(shape)


def unite_channels(tensor: Tensor, group_count: int, unit_count: int) -> Tensor:
    """What the outputs of a convolution see at one cell: the union over the channels of their group."""
    shape = _shape_with(tensor, 1, unit_count)
    tensor = unexpand(tensor)
    if tensor.shape[1] == 1 or group_count == 1:
        return tensor.amax(1, keepdim=True).expand(shape)
    grouped = tensor.reshape(tensor.shape[0], group_count, -1, *tensor.shape[2:]).amax(2)
    return grouped.repeat_interleave(unit_count // group_count, 1).expand(shape)


def _unite_windows(tensor: Tensor, dim: int, cells_read: Array, beyond_border: bool = False) -> Tensor:
    """The union along `dim` over the cells that each output cell reads. `beyond_border` says whether padding counts."""
    shape, cells = _shape_with(tensor, dim, cells_read.shape[1]), tensor.shape[dim]
    tensor = unexpand(tensor)
    length = tensor.shape[dim]
    if length == 1:
        return _clear_others(tensor, dim, _reads_any(cells_read, None if beyond_border else cells)).expand(shape)
    pad_before = max(0, -int(cells_read[cells_read != NO_CELL].min(initial=0)))
    pad_after = max(0, int(cells_read.max(initial=0)) - length + 1)
    padded = (_continue if beyond_border else _pad_with_nothing)(tensor, dim, pad_before, pad_after)
    nothing = padded.shape[dim] - 1
    indices = torch.from_numpy(np.where(cells_read == NO_CELL, nothing, cells_read + pad_before))
    return reduce(torch.maximum, (padded.index_select(dim, index) for index in indices)).expand(shape)


def _reads_any(cells_read: Array, cells: int | None) -> Array:
    """Which output cells read any of the input's `cells` or, where that is None, of a map without end."""
    read = cells_read != NO_CELL if cells is None else (cells_read >= 0) & (cells_read < cells)
    return np.asarray(read.any(axis=0))


def _clear_others(tensor: Tensor, dim: int, reading: Array) -> Tensor:
    """A tensor of length 1 along `dim`, spread over output cells; those that aren't `reading` depend on nothing."""
    if reading.all():
        return tensor
    shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
    return torch.where(torch.from_numpy(reading).reshape(shape), tensor, NOTHING)


def _pad_with_nothing(tensor: Tensor, dim: int, pad_before: int, pad_after: int) -> Tensor:
    """The tensor with `pad_before` and `pad_after` more cells that depend on nothing, and one at the very end for what reads no cell."""
    nothing = torch.full_like(tensor.narrow(dim, 0, 1), NOTHING)
    return torch.cat([nothing] * pad_before + [tensor] + [nothing] * (pad_after + 1), dim)


def _continue(tensor: Tensor, dim: int, pad_before: int, pad_after: int) -> Tensor:
    """The same, where the cells beyond the border go on with the step of those at the border."""
    low, high = tensor.narrow(dim, 0, 1), tensor.narrow(dim, tensor.shape[dim] - 1, 1)
    first_step = _step(low, tensor.narrow(dim, 1, 1))
    last_step = _step(tensor.narrow(dim, tensor.shape[dim] - 2, 1), high)
    head = [low - first_step * i for i in range(pad_before, 0, -1)]
    tail = [high + last_step * i for i in range(1, pad_after + 1)]
    return torch.cat([*head, tensor, *tail, torch.full_like(low, NOTHING)], dim)


def _step(cell: Tensor, next_cell: Tensor) -> Tensor:
    """The difference of neighbouring cells; 0 where one of them depends on nothing, as between the strides of a transposed convolution."""
    return (next_cell - cell).nan_to_num(0, 0, 0)


def _middles(cells_read: Array) -> Array:
    """The middle of the cells that each output cell reads, padding included; cells that read nothing stand between their neighbours."""
    count = (cells_read != NO_CELL).sum(0)
    middles: Array = np.where(cells_read == NO_CELL, 0, cells_read).sum(0) / np.maximum(count, 1)
    reading = np.flatnonzero(count)
    if 0 < len(reading) < len(count):
        middles = np.interp(np.arange(len(count)), reading, middles[reading])
    return middles


def _shape_with(tensor: Tensor, dim: int, length: int) -> list[int]:
    """The tensor's shape with another length along `dim`."""
    return [length if d == dim else n for d, n in enumerate(tensor.shape)]
