"""The attribution methods: what the pixels of an image contribute to the value of one cell.

Axes: `image channel y x` for pixels, `image unit y x` for activation maps.
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

from unitscope.attribution.cropped_backward import CroppedBackward
from unitscope.attribution.rectifiers import RectifierRule, deconvnet, guided_backprop, rectifiers
from unitscope.errors import NetworkError, first_line
from unitscope.networks import as_float32
from unitscope.networks.gradients import ContiguousNormGradients
from unitscope.receptive_fields import Array

Forward = Callable[[Tensor], Tensor]
"""From images to the activation maps of one layer, with autograd's graph where that is on."""


@dataclass(frozen=True, slots=True)
class TargetCells:
    """One cell of one unit in each image of a batch."""

    unit: Int[Tensor, " image"]
    y: Int[Tensor, " image"]
    x: Int[Tensor, " image"]

    def values_in(self, maps: Float[Tensor, "image unit y x"]) -> Float[Tensor, " image"]:
        """The cells' values."""
        return maps[torch.arange(len(maps), device=maps.device), self.unit, self.y, self.x]


@dataclass(frozen=True, slots=True)
class BatchAttribution:
    """The values of a batch's target cells, and the attribution of each to its image's pixels, by channel or as one for all channels."""

    values: Float[Tensor, " image"]
    pixels: Float[Tensor, "image channel y x"]


@runtime_checkable
class Method(Protocol):
    """One attribution method. A batch of images serves several rounds, each with one target cell in each image."""

    @property
    def name(self) -> str: ...

    @property
    def needs_whole_image(self) -> bool:
        """True where an image can't be cropped to the receptive field of the target cell."""
        ...

    def attribute(self, forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> Iterator[BatchAttribution]:
        """One result for each round. Raises `NetworkError` where no gradient comes down."""
        ...


@dataclass(frozen=True, slots=True)
class GradientMethod:
    """The gradient of the cell's value. At rectifiers `rule` replaces it; without a rule it is the plain gradient."""

    name: str
    rule: RectifierRule | None = None
    needs_whole_image: bool = False

    def attribute(self, forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> Iterator[BatchAttribution]:
        yield from _gradients(forward, images.detach().requires_grad_(), rounds, self.rule)


@dataclass(frozen=True, slots=True)
class IntegratedGradientsMethod:
    """The mean gradient on the straight line from the mean colour to the image, times the difference of the two.

    Sundararajan et al. 2017, section 3; with `steps` points, by the Gauss-Legendre rule.
    """

    name: str
    steps: int = 50
    needs_whole_image: bool = False

    def attribute(self, forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> Iterator[BatchAttribution]:
        values = _values(forward, images, rounds)
        images, dtype = as_float32(images), images.dtype
        sums = [torch.zeros_like(images) for _ in rounds]
        for point, weight in zip(*np.polynomial.legendre.leggauss(self.steps), strict=True):  # on the range from -1 to 1
            leaf = (images * float(point + 1) / 2).to(dtype).requires_grad_()
            for gradient_sum, result in zip(sums, _gradients(forward, leaf, rounds), strict=True):
                gradient_sum += float(weight) / 2 * result.pixels
        for value, gradient_sum in zip(values, sums, strict=True):
            yield BatchAttribution(value, gradient_sum * images)


@dataclass(frozen=True, slots=True)
class OcclusionMethod:
    """How much the cell's value drops where a grey square covers the image (Zeiler & Fergus 2014, section 4.2).

    The square's side is a seventh of the image's shorter side, and it moves by half of its own side. A pixel gets the mean over the
    squares that cover it. Grey is the mean colour, where the normalised input is zero.
    """

    name: str
    needs_whole_image: bool = True

    def attribute(self, forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> Iterator[BatchAttribution]:
        values = _values(forward, images, rounds)
        drops = [torch.zeros_like(as_float32(images[:, :1])) for _ in rounds]
        square_counts = torch.zeros_like(drops[0][:1])
        with torch.no_grad():
            for rows, columns in occlusion_squares(images.shape[2], images.shape[3]):
                occluded = images.clone()
                occluded[:, :, rows, columns] = 0
                square_counts[:, :, rows, columns] += 1
                maps = forward(occluded)
                for cells, value, drop in zip(rounds, values, drops, strict=True):
                    drop[:, :, rows, columns] += (as_float32(value) - as_float32(cells.values_in(maps)))[:, None, None, None]
        for value, drop in zip(values, drops, strict=True):
            yield BatchAttribution(value, drop / square_counts)


def occlusion_squares(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the squares that cover an image one after the other, row by row; the last ones may reach beyond it."""
    side = max(1, min(height, width) // 7)
    stride = max(1, side // 2)
    for top in range(0, stride * ceil((height - side) / stride) + 1, stride):
        for left in range(0, stride * ceil((width - side) / stride) + 1, stride):
            yield slice(top, top + side), slice(left, left + side)


@dataclass(frozen=True, slots=True)
class ActivationMethod:
    """The unit's activation map, spread over the image's pixels (as Bau et al. 2017, section 2.2, lay maps over images).

    `centres` say where the cells lie, along y and x, in network-input pixels; see `spread`.
    """

    name: str
    centres: tuple[Array, Array] | None = None
    needs_whole_image: bool = True

    def attribute(self, forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> Iterator[BatchAttribution]:
        with torch.no_grad():
            maps = forward(images.clone())
        for cells in rounds:
            of_unit = as_float32(maps[torch.arange(len(maps), device=maps.device), cells.unit])[:, None]
            yield BatchAttribution(cells.values_in(maps), spread(of_unit, self.centres, images.shape[2:]))


def spread(
    maps: Float[Tensor, "image channel y x"], centres: tuple[Array, Array] | None, size: Sequence[int]
) -> Float[Tensor, "image channel height width"]:
    """Activation maps over the pixels of an input of that height and width: at its centre each cell has its value, between them it is
    interpolated. Cells whose centres don't tell them apart, as those that see the whole input, share the input evenly."""
    for axis, length in enumerate(size):
        of_axis = None if centres is None else np.asarray(centres[axis], dtype=np.float64)
        count = maps.shape[2 + axis]
        if of_axis is None or len(of_axis) != count or not (np.diff(of_axis) > 0).all():
            of_axis = (np.arange(count) + 0.5) * length / count
        pixels = np.arange(length) + 0.5
        weights = np.stack([np.interp(pixels, of_axis, row) for row in np.eye(count)], axis=1)  # of shape (pixel, cell)
        on_device = torch.from_numpy(weights).to(maps)
        maps = torch.movedim(torch.movedim(maps, 2 + axis, -1) @ on_device.T, -1, 2 + axis)
    return maps


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ActivationMethod("activation"),
        GradientMethod("deconvnet", deconvnet),
        GradientMethod("guided_backprop", guided_backprop),
        GradientMethod("gradient"),
        IntegratedGradientsMethod("integrated_gradients"),
        OcclusionMethod("occlusion"),
    )
}


def _values(forward: Forward, images: Tensor, rounds: Sequence[TargetCells]) -> list[Tensor]:
    """The values of each round's target cells."""
    with torch.no_grad():
        maps = forward(images.clone())
        return [cells.values_in(maps) for cells in rounds]


def _gradients(
    forward: Forward, leaf: Tensor, rounds: Sequence[TargetCells], rule: RectifierRule | None = None
) -> Iterator[BatchAttribution]:
    """Each round's values and their gradients with respect to `leaf`, which `rule` replaces at rectifiers.

    Gradient checkpointing runs parts of the forward pass again during the backward pass, when no `CroppedBackward` is on, and raises
    `CheckpointError` where that gives other operators. Then everything is done again without cropping.
    """
    done = 0
    for mode in (CroppedBackward(), nullcontext()):
        maps = _maps_with_graph(forward, leaf, mode)
        for node in rectifiers(maps.grad_fn) if rule is not None else ():
            node.register_hook(rule)
        try:
            for cells in rounds[done:]:
                values = cells.values_in(maps)
                gradient = _gradient(values, leaf, keep_graph=done + 1 < len(rounds))
                done += 1
                yield BatchAttribution(values.detach(), gradient)
            return
        except CheckpointError as error:
            checkpoint_error = error
    raise _as_network_error(checkpoint_error) from checkpoint_error


def _maps_with_graph(forward: Forward, leaf: Tensor, mode: AbstractContextManager[Any]) -> Tensor:
    """The activation maps, with a graph that leads down to `leaf`."""
    with torch.enable_grad(), ContiguousNormGradients(), mode:
        try:
            maps = forward(leaf.clone())  # networks may change their input in place
        except (RuntimeError, NotImplementedError) as error:
            raise _as_network_error(error) from error
    if maps.grad_fn is None:
        raise NetworkError(
            "no gradient comes down through the network: it keeps none on the way, as under torch.no_grad() or after detach()"
        )
    return maps


def _gradient(values: Tensor, leaf: Tensor, keep_graph: bool) -> Tensor:
    """The gradient of each image's value with respect to its pixels."""
    with torch.enable_grad():
        try:
            return torch.autograd.grad(values.sum(), leaf, retain_graph=keep_graph)[0].detach()
        except CheckpointError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise _as_network_error(error) from error


def _as_network_error(error: Exception) -> Exception:
    """The error to raise for one in a forward or backward pass: a `NetworkError`, or the same where memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, NetworkError)):
        return error
    return NetworkError(f"no gradient comes down through the network: {first_line(error)}")
