"""Which layers' units are the network's classes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unitscope.errors import NetworkError
from unitscope.networks.classes import OutputClass
from unitscope.networks.outputs import class_scores
from unitscope.networks.precision import exact_inference
from unitscope.session.noise import noise_images
from unitscope.session.session import Session, read_layers_and_output

TO_SCORES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda values: values,
    lambda values: values.softmax(1),
    lambda values: values.log_softmax(1),
    torch.sigmoid,
)
"""What networks may make of their last layer's values before they return them, without a say in which class is which."""


@dataclass(frozen=True, slots=True)
class ClassUnits:
    """The classes of a network's outputs, none where nobody knows them, and the layers with one unit a class, in the same order."""

    classes: tuple[OutputClass, ...] = ()
    layers: tuple[str, ...] = ()


def class_units(session: Session, given: tuple[OutputClass, ...] | None, known: tuple[OutputClass, ...] | None) -> ClassUnits:
    """The classes that the user gave, or that came with the weights, and the layers whose values of noise are the class scores.

    Raises `NetworkError` where the user gave classes and the network has another number of outputs.
    """
    classes = given or known
    if classes is None:
        return ClassUnits()
    layers = [traced for traced in session.layers if traced.layer.units == len(classes)]
    with exact_inference(session.plain_copy, session.device):
        values, output = read_layers_and_output(
            session.plain_copy, layers, noise_images(session.trace, 1), lambda _, maps: maps.float().flatten(2).amax(2)
        )
    scores = class_scores(output)
    if scores is None or scores.shape[1] != len(classes):
        if given is None:
            return ClassUnits()
        outputs = "doesn't return class scores" if scores is None else f"has {scores.shape[1]} outputs"
        raise NetworkError(f"{len(classes)} classes were given for a network that {outputs}")
    names = [traced.name for traced, of_layer in zip(layers, values, strict=True) if _gives_scores(of_layer, scores.float())]
    return ClassUnits(classes, tuple(names))


def _gives_scores(values: Tensor, scores: Tensor) -> bool:
    return any(torch.allclose(to_scores(values), scores, rtol=1e-4, atol=1e-6) for to_scores in TO_SCORES)
