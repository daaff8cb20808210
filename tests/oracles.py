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


NOWHERE = 1 << 14


@dataclass(frozen=True, slots=True)
class Moved:
    """The first input place that moves each cell and the one after the last, of shape (unit, y, x); `NOWHERE` and 0 where none does."""

    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, moved: Tensor, places: Tensor) -> "Moved":
        """From what moved, of shape (i, unit, y, x), when the place i was changed."""
        start = torch.full(moved.shape[1:], NOWHERE, dtype=torch.int16)
        stop = torch.zeros(moved.shape[1:], dtype=torch.int16)
        for place, cells in zip(places.tolist(), moved, strict=True):
            stop.masked_fill_(cells, place + 1)
        for place, cells in zip(reversed(places.tolist()), moved.flip(0), strict=True):
            start.masked_fill_(cells, place)
        return cls(start, stop)

    def with_those(self, other: "Moved") -> "Moved":
        return Moved(self.start.minimum(other.start), self.stop.maximum(other.stop))


def moved_cells(network: nn.Module, read, size: tuple[int, int], base: float = 0.0, channels: int = 3) -> list[list[Moved]]:
    """For both axes and every layer, which changes of an input row (column) move a cell.

    `read(network, images)` gives the layers' maps, each of shape (image, unit, y, x).
    """
    result = []
    for axis in (0, 1):
        per_layer: list[Moved] = []
        with torch.no_grad():
            calm = read(network, torch.full((1, channels, *size), base, dtype=torch.float64))
            for chunk in torch.arange(size[axis], dtype=torch.int16).split(16):
                images = torch.full((len(chunk), channels, *size), base, dtype=torch.float64)
                for image, place in zip(images, chunk, strict=True):
                    image.select(axis + 1, int(place)).fill_(base + 1.0)
                found = [Moved.of(maps != still, chunk) for maps, still in zip(read(network, images), calm, strict=True)]
                per_layer = [one.with_those(other) for one, other in zip(per_layer, found, strict=True)] if per_layer else found
        result.append(per_layer)
    return result


def assert_boxes_equal(fields: ReceptiveFields, moved: Sequence[Moved], size: tuple[int, int], where: str = "") -> None:
    """The clipped box of every cell is what perturbation found, `moved` for rows and for columns.

    A cell that nothing moves sees padding alone: its box must lie beyond the input, or have no rows or no columns.
    """
    known = [np.clip(bounds, 0, length) for bounds, length in zip((fields.rows, fields.columns), size, strict=True)]
    true = [(of_axis.start.numpy(), of_axis.stop.numpy()) for of_axis in moved]
    seen = true[0][1] > 0
    for (start, stop), (true_start, true_stop) in zip(known, true, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(start, seen.shape)[seen], true_start[seen], err_msg=where)
        np.testing.assert_array_equal(np.broadcast_to(stop, seen.shape)[seen], true_stop[seen], err_msg=where)
    empty = (known[0][0] >= known[0][1]) | (known[1][0] >= known[1][1])
    np.testing.assert_array_equal(np.broadcast_to(empty, seen.shape), ~seen, err_msg=where)


def assert_moved(
    function: Callable[[Tensor], Tensor], images: Sequence[Tensor], known: Sequence[np.ndarray], exact: bool = True
) -> None:
    """The bounds of every number that a function gives, of shape (2, number) for rows and for columns, are those between which a
    change of a row (column) moves it; or, if not `exact`, hold all that do.

    Each line of each image is raised, lowered and scattered; what none of that moves doesn't depend on it.
    """
    for axis, (start, stop) in enumerate(known):
        length = images[0].shape[2 + axis]
        seen = torch.stack([_moves(function, images, axis, line) for line in range(length)]).numpy()
        first, last = seen.argmax(0), length - seen[::-1].argmax(0)
        moving = seen.any(0)
        start, stop = np.broadcast_to(start, first.shape), np.broadcast_to(stop, first.shape)
        if exact:
            np.testing.assert_array_equal((start[moving], stop[moving]), (first[moving], last[moving]), err_msg=f"axis {axis}")
            assert (start >= stop)[~moving].all(), f"axis {axis}: what nothing moves has a box"
        else:
            assert (start <= first)[moving].all(), f"axis {axis}"
            assert (stop >= last)[moving].all(), f"axis {axis}"


def _moves(function: Callable[[Tensor], Tensor], images: Sequence[Tensor], axis: int, line: int) -> Tensor:
    moved = []
    noise = torch.Generator().manual_seed(line)
    with torch.no_grad():
        for image in images:
            still = function(image)
            for change in (
                9.1,
                1.7,
                -0.9,
                torch.randn(image.shape[1], image.shape[3 - axis], generator=noise, dtype=image.dtype),
            ):
                changed = image.clone()
                changed.select(2 + axis, line).add_(change)
                moved.append((function(changed) != still).flatten())
    return torch.stack(moved).any(0)
