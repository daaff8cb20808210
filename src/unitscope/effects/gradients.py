"""One pass forward and back: what the units of all layers do to a score, to first order."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitscope.errors import NetworkError, first_line
from unitscope.layers import TracedLayer, outputs_watched
from unitscope.networks.gradients import ContiguousNormGradients

Result = TypeVar("Result")
Score = Callable[[Any], Tensor]
"""From what a network returns to one number an image, whose gradient is taken."""
ReadGradient = Callable[[int, Tensor, Tensor], Result]
"""Called with a layer's index, what its units pass on, and the score's gradient with respect to that, both of shape (image, unit, cell)."""


def read_gradients(
    network: nn.Module,
    layers: Sequence[TracedLayer],
    images: Tensor,
    score: Score,
    read: "ReadGradient[Result]",
    overwritten: frozenset[int] = frozenset(),
) -> list[Result | None]:
    """What `read` makes of each layer, None where no gradient comes to it: the score doesn't depend on its units.

    `overwritten` are the layers whose output the network changes in place afterwards (see `overwritten_layers`). Raises `NetworkError` where
    no gradient comes down at all.
    """
    results: list[Result | None] = [None] * len(layers)

    def watch(index: int, output: Tensor) -> None:
        if not output.requires_grad:
            return
        layout = layers[index].layout
        passed_on = layout.cells(output.detach().clone() if index in overwritten else output.detach())

        def keep(gradient: Tensor) -> None:
            results[index] = read(index, passed_on, layout.cells(gradient))

        output.register_hook(keep)

    leaf = images.detach().requires_grad_()
    with torch.enable_grad(), ContiguousNormGradients(), outputs_watched(network, layers, watch):
        try:
            values = score(network(leaf.clone()))  # networks may change their input in place
            if not values.requires_grad:
                raise NetworkError(
                    "no gradient comes down through the network: it keeps none on the way, as under torch.no_grad() or after detach()"
                )
            torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NetworkError(f"no gradient comes down through the network: {first_line(error)}") from error
    return results


def overwritten_layers(network: nn.Module, layers: Sequence[TracedLayer], images: Tensor) -> frozenset[int]:
    """The layers whose output is changed in place after they passed it on, as by an addition that a residual block makes in it."""
    outputs: dict[int, tuple[Tensor, int]] = {}

    def note(index: int, output: Tensor) -> None:
        outputs[index] = output, output._version

    with torch.no_grad(), outputs_watched(network, layers, note):
        network(images)
    return frozenset(index for index, (output, version) in outputs.items() if output._version != version)


def effects_of_units(
    passed_on: Float[Tensor, "image unit cell"],
    gradient: Float[Tensor, "image unit cell"],
    baseline: Float[Tensor, "unit cell"],
) -> Float[Tensor, "image unit"]:
    """To first order, how much the score would fall if a unit passed on the baseline in place of what it does."""
    return ((passed_on - baseline) * gradient).sum(2)
