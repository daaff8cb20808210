"""How a cell's value is brought back to the pixels of its image: the methods.

Axes: `image channel y x` for pixels, `image unit y x` for maps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from unitscope.attribution.cropped_backward import Cones
from unitscope.attribution.rectifiers import Rule, deconvnet, guided_backprop, rectifiers
from unitscope.errors import NetworkError, first_line
from unitscope.networks import as_float32

MapsOf = Callable[[Tensor], Tensor]
"""From images to one layer's maps, with autograd's graph where that is switched on."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One cell of one unit in each image of a batch."""

    unit: Int[Tensor, " image"]
    y: Int[Tensor, " image"]
    x: Int[Tensor, " image"]

    def of(self, maps: Float[Tensor, "image unit y x"]) -> Float[Tensor, " image"]:
        """Their values."""
        return maps[torch.arange(len(maps), device=maps.device), self.unit, self.y, self.x]


@dataclass(frozen=True, slots=True)
class Projected:
    """The cells' values, and for each image what its pixels have to do with its cell; `pixels` may have one channel for all."""

    values: Float[Tensor, " image"]
    pixels: Float[Tensor, "image channel y x"]


@runtime_checkable
class Method(Protocol):
    """One way from cells to pixels. A batch of images serves several rounds, each with one cell an image."""

    @property
    def name(self) -> str: ...

    @property
    def whole(self) -> bool:
        """True where it needs the whole image, also for a cell that sees little of it."""
        ...

    def project(self, maps_of: MapsOf, images: Tensor, rounds: Sequence[Cells]) -> Iterator[Projected]:
        """One result a round. Raises `NetworkError` where no gradient comes down."""
        ...


@dataclass(frozen=True, slots=True)
class Backward:
    """The gradient of the cell's value, with what `rule` makes of it at rectifiers; without one it is the plain gradient."""

    name: str
    rule: Rule | None = None
    whole: bool = False

    def project(self, maps_of: MapsOf, images: Tensor, rounds: Sequence[Cells]) -> Iterator[Projected]:
        yield from _gradients(maps_of, images.detach().requires_grad_(), rounds, self.rule)


@dataclass(frozen=True, slots=True)
class Integrated:
    """The gradient averaged over the straight line from the mean colour to the image, times the difference of the two
    (Sundararajan et al. 2017, section 3), at `steps` points by the Gauss-Legendre rule."""

    name: str
    steps: int = 50
    whole: bool = False

    def project(self, maps_of: MapsOf, images: Tensor, rounds: Sequence[Cells]) -> Iterator[Projected]:
        with torch.no_grad():
            maps = maps_of(images.clone())
            values = [cells.of(maps) for cells in rounds]
        images, dtype = as_float32(images), images.dtype
        totals = [torch.zeros_like(images) for _ in rounds]
        for place, weight in zip(*np.polynomial.legendre.leggauss(self.steps), strict=True):
            leaf = (images * float(place + 1) / 2).to(dtype).requires_grad_()
            for total, result in zip(totals, _gradients(maps_of, leaf, rounds), strict=True):
                total += float(weight) / 2 * result.pixels
        yield from (Projected(value, total * images) for value, total in zip(values, totals, strict=True))


@dataclass(frozen=True, slots=True)
class Occlusion:
    """How much the cell's value drops where a grey square covers the image (Zeiler & Fergus 2014, section 4.2).

    The square has a seventh of the image's shorter side and moves by half of its own; a pixel gets the mean over the squares that
    cover it. Grey is the mean colour, where the normalised input is zero.
    """

    name: str
    whole: bool = True

    def project(self, maps_of: MapsOf, images: Tensor, rounds: Sequence[Cells]) -> Iterator[Projected]:
        with torch.no_grad():
            maps = maps_of(images.clone())
            values = [cells.of(maps) for cells in rounds]
            drops = [torch.zeros_like(as_float32(images[:, :1])) for _ in rounds]
            covered = torch.zeros_like(drops[0][:1])
            for rows, columns in squares(images.shape[2], images.shape[3]):
                occluded = images.clone()
                occluded[:, :, rows, columns] = 0
                covered[:, :, rows, columns] += 1
                maps = maps_of(occluded)
                for cells, value, drop in zip(rounds, values, drops, strict=True):
                    drop[:, :, rows, columns] += (as_float32(value) - as_float32(cells.of(maps)))[:, None, None, None]
        yield from (Projected(value, drop / covered) for value, drop in zip(values, drops, strict=True))


def squares(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the squares that are slid over an image, row by row; the last ones may leave it."""
    side = max(1, min(height, width) // 7)
    stride = max(1, side // 2)
    for top in range(0, stride * ceil((height - side) / stride) + 1, stride):
        for left in range(0, stride * ceil((width - side) / stride) + 1, stride):
            yield slice(top, top + side), slice(left, left + side)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Backward("deconvnet", deconvnet),
        Backward("guided_backprop", guided_backprop),
        Backward("gradient"),
        Integrated("integrated_gradients"),
        Occlusion("occlusion"),
    )
}


def _gradients(maps_of: MapsOf, leaf: Tensor, rounds: Sequence[Cells], rule: Rule | None = None) -> Iterator[Projected]:
    """Each round's values, and their gradients with what `rule` makes of them at rectifiers.

    A checkpointed part is run again on the way down, where no mode is on, and so as torch alone runs it: then there are no cones.
    """
    done = 0
    for mode in (Cones(), nullcontext()):
        maps = _differentiable(maps_of, leaf, mode)
        for node in rectifiers(maps.grad_fn) if rule is not None else ():
            node.register_hook(rule)
        try:
            for cells in rounds[done:]:
                values = cells.of(maps)
                gradient = _gradient(values, leaf, again=done + 1 < len(rounds))
                done += 1
                yield Projected(values.detach(), gradient)
            return
        except CheckpointError as error:
            differs = error
    raise _problem(differs) from differs


def _differentiable(maps_of: MapsOf, leaf: Tensor, mode: AbstractContextManager[Any]) -> Tensor:
    """The maps with a graph that leads down to `leaf`. Networks may change their input in place, so they get a copy."""
    with torch.enable_grad(), mode:
        try:
            maps = maps_of(leaf.clone())
        except (RuntimeError, NotImplementedError) as error:
            raise _problem(error) from error
    if maps.grad_fn is None:
        raise NetworkError(
            "no gradient comes down through the network: it keeps none on the way, as under torch.no_grad() or after detach()"
        )
    return maps


def _gradient(values: Tensor, leaf: Tensor, again: bool) -> Tensor:
    """Of each image's value with respect to its pixels; `again` keeps the graph for another time."""
    with torch.enable_grad():
        try:
            return torch.autograd.grad(values.sum(), leaf, retain_graph=again)[0].detach()
        except CheckpointError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise _problem(error) from error


def _problem(error: Exception) -> Exception:
    """What to say of an error in a pass forward or back."""
    if isinstance(error, (torch.OutOfMemoryError, NetworkError)):
        return error
    return NetworkError(f"no gradient comes down through the network: {first_line(error)}")
