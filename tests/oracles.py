"""What the tests compare with: slow, plain, and independent of the code under test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.receptive_fields import ReceptiveFields


def make_transparent(network: nn.Module, spread: float = 0.5) -> nn.Module:
    """Give a network weights with which a change of any pixel shows in every cell that can depend on it.

    All weights are positive and all biases zero, so from an input of zeros every activation is zero and any positive change
    travels on as a positive number, however small. Weights shrink with the window to the power `spread`: with a half neither the
    middle of a field overflows nor its corner vanishes in float64; with one, activations stay as small as the input, which
    keeps sigmoids from saturating.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            window = math.prod(module.weight.shape[2:])
            fan_in = module.weight.shape[1] if not isinstance(module, nn.ConvTranspose2d) else module.weight.shape[0]
            nn.init.constant_(module.weight, 1 / (window**spread * fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
    return network.double().eval()


NEVER_MOVED = 1 << 14
"""The start of a range of lines for a cell that no change moves."""


@dataclass(frozen=True, slots=True)
class MovingLines:
    """The first input line (row or column) that moves each cell and the one after the last, of shape (unit, y, x); `NEVER_MOVED` and 0
    where none does."""

    start: Tensor
    stop: Tensor

    @classmethod
    def from_changes(cls, moved: Tensor, lines: Tensor) -> "MovingLines":
        """From what moved, of shape (i, unit, y, x), when the line `lines[i]` was changed."""
        start = torch.full(moved.shape[1:], NEVER_MOVED, dtype=torch.int16)
        stop = torch.zeros(moved.shape[1:], dtype=torch.int16)
        for line, cells in zip(lines.tolist(), moved, strict=True):
            stop.masked_fill_(cells, line + 1)
        for line, cells in zip(reversed(lines.tolist()), moved.flip(0), strict=True):
            start.masked_fill_(cells, line)
        return cls(start, stop)

    def united(self, later: "MovingLines") -> "MovingLines":
        """With the lines of another part of the image."""
        return MovingLines(self.start.minimum(later.start), self.stop.maximum(later.stop))


ReadMaps = Callable[[nn.Module, Tensor], list[Tensor]]
"""Gives the activation maps of a network's layers, each of shape (image, unit, y, x)."""


def moving_rows_and_columns(
    network: nn.Module, read_maps: ReadMaps, size: tuple[int, int], base: float = 0.0
) -> tuple[list[MovingLines], list[MovingLines]]:
    """For every layer, which changes of an input row (column) move each cell, starting from an image that is `base` everywhere."""
    rows, columns = (_moving_lines(network, read_maps, size, base, axis) for axis in (0, 1))
    return rows, columns


def _moving_lines(network: nn.Module, read_maps: ReadMaps, size: tuple[int, int], base: float, axis: int) -> list[MovingLines]:
    by_layer: list[MovingLines] = []
    with torch.no_grad():
        unchanged = read_maps(network, torch.full((1, 3, *size), base, dtype=torch.float64))
        for lines in torch.arange(size[axis], dtype=torch.int16).split(16):
            images = torch.full((len(lines), 3, *size), base, dtype=torch.float64)
            for image, line in zip(images, lines, strict=True):
                image.select(axis + 1, int(line)).fill_(base + 1.0)
            changed = read_maps(network, images)
            parts = [MovingLines.from_changes(a != b, lines) for a, b in zip(changed, unchanged, strict=True)]
            by_layer = [a.united(b) for a, b in zip(by_layer, parts, strict=True)] if by_layer else parts
    return by_layer


def assert_boxes_equal(fields: ReceptiveFields, moving: Sequence[MovingLines], size: tuple[int, int], message: str = "") -> None:
    """The clipped box of every cell is what perturbation found, `moving` for rows and for columns.

    A cell that nothing moves sees padding alone: its box must lie beyond the input, or have no rows or no columns.
    """
    boxes = [np.clip(lines, 0, length) for lines, length in zip((fields.rows, fields.columns), size, strict=True)]
    expected = [(lines.start.numpy(), lines.stop.numpy()) for lines in moving]
    sees = expected[0][1] > 0
    for (start, stop), (expected_start, expected_stop) in zip(boxes, expected, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(start, sees.shape)[sees], expected_start[sees], err_msg=message)
        np.testing.assert_array_equal(np.broadcast_to(stop, sees.shape)[sees], expected_stop[sees], err_msg=message)
    empty = (boxes[0][0] >= boxes[0][1]) | (boxes[1][0] >= boxes[1][1])
    np.testing.assert_array_equal(np.broadcast_to(empty, sees.shape), ~sees, err_msg=message)


def assert_bounds_hold(
    function: Callable[[Tensor], Tensor], images: Sequence[Tensor], bounds: Sequence[np.ndarray], minimal: bool = True
) -> None:
    """The bounds of every number that a function gives, of shape (2, number) for rows and for columns, are those between which a
    change of a row (column) moves it; or, if they needn't be `minimal`, hold all that do.

    Each line of each image is raised, lowered and scattered; what none of that moves doesn't depend on it.
    """
    for axis, (start, stop) in enumerate(bounds):
        length = images[0].shape[2 + axis]
        moved = torch.stack([_moved_by(function, images, axis, line) for line in range(length)]).numpy()
        first, last = moved.argmax(0), length - moved[::-1].argmax(0)
        moves = moved.any(0)
        start, stop = np.broadcast_to(start, first.shape), np.broadcast_to(stop, first.shape)
        if minimal:
            np.testing.assert_array_equal((start[moves], stop[moves]), (first[moves], last[moves]), err_msg=f"axis {axis}")
            assert (start >= stop)[~moves].all(), f"axis {axis}: what nothing moves has a box"
        else:
            assert (start <= first)[moves].all(), f"axis {axis}"
            assert (stop >= last)[moves].all(), f"axis {axis}"


def _moved_by(function: Callable[[Tensor], Tensor], images: Sequence[Tensor], axis: int, line: int) -> Tensor:
    """Which numbers any change of that row (column) moves."""
    moved = []
    generator = torch.Generator().manual_seed(line)
    with torch.no_grad():
        for image in images:
            unchanged = function(image)
            noise = torch.randn(image.shape[1], image.shape[3 - axis], generator=generator, dtype=image.dtype)
            for change in (9.1, 1.7, -0.9, noise):
                changed = image.clone()
                changed.select(2 + axis, line).add_(change)
                moved.append((function(changed) != unchanged).flatten())
    return torch.stack(moved).any(0)
