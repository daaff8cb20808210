"""A network, images and classes opened together, to see what units do to the network's output."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.atlas.tables import MEAN_MAPS
from unitscope.attribution.gradient_checkpoints import keep_checkpoint_graphs
from unitscope.effects.outputs import Classes, Output
from unitscope.errors import AtlasError, ImagesWarning, UnitscopeError
from unitscope.images import as_source
from unitscope.images.label_files import as_labels, check_labels, labels_hash
from unitscope.layers import outputs_watched
from unitscope.networks import Network
from unitscope.networks.precision import exact_inference
from unitscope.session.loader import LoadedImage
from unitscope.session.noise import noise_images
from unitscope.session.session import Session
from unitscope.session.stored import open_atlas_session

TARGETS = ("auto", "label", "prediction")
REPLACEMENTS = ("mean", "zero")


class EffectOptions(TypedDict, total=False):
    """Which images and which scores are meant.

    `images` are those of the atlas unless given, as `scan` takes them. The class of an image is that of its label, or the network's own
    prediction: `by` is `label`, `prediction` or `auto`, which takes labels where images have
    any that is a class of the network. `labels` are as for `scan`; `classes` names
    the outputs, where the atlas doesn't. `output` is a function (or `PATH.py:FUNCTION`) from what the network returns to scores of shape
    (image,) or (image, score), for networks that give no class scores.
    """

    images: Any
    by: str
    labels: Any
    classes: Any
    output: Callable[[Any], Any] | str | None


@dataclass(frozen=True)
class EffectSession:
    """A session with what is known of the network's output: how many scores it gives, and whether labels say which one counts."""

    session: Session
    output: Output
    classes: Classes
    outputs: int
    by_label: bool
    parameters: dict[str, Any]

    def label_class(self, image: LoadedImage) -> int:
        """The class that an image's label means, -1 without one. Raises `AtlasError` for a label that means none."""
        label = image.record.label if image.record is not None else None
        if not self.by_label or label is None:
            return -1
        self.classes.check_labels([label], self.outputs)
        return self.classes.position_of(label, self.outputs) or 0

    def classes_of(self, images: list[LoadedImage], scores: Tensor) -> Tensor:
        """The class of each image: that of its label, or the one with the highest score."""
        known = torch.tensor([self.label_class(image) for image in images], device=scores.device)
        return torch.where(known >= 0, known, scores.detach().argmax(1))


@contextmanager
def open_effects(
    atlas: Atlas, network: "nn.Module | Network | None", device: str, options: EffectOptions, layers: list[str] | None = None
) -> Iterator[EffectSession]:
    """The network and the images of an atlas, or others, for as long as the block lasts.

    Raises `UnitscopeError` where the network has no scores, and where labels or names aren't of its outputs: before hours of work.
    """
    by, images = options.get("by", "auto"), options.get("images")
    if by not in TARGETS:
        raise UnitscopeError(f"by is {', '.join(TARGETS)}, not {by!r}")
    output, labels = Output.of(options.get("output")), as_labels(options.get("labels"))
    classes = Classes.of(atlas, options.get("classes"))
    with open_atlas_session(atlas, network, device, layers) as stored, keep_checkpoint_graphs():
        source = atlas.source if images is None else as_source(images)
        if labels is not None:
            check_labels(labels, source)
        session = replace(stored, loader=replace(stored.loader, source=source, labels=labels))
        with torch.no_grad(), exact_inference(session.plain_copy, session.device):
            outputs = output.scores(session.plain_copy(noise_images(session.trace, 1))).shape[1]
        classes.check_count(outputs)
        by_label = _by_label(by, output, session, classes, outputs)
        parameters = {
            "by": by,
            "output": output.name,
            "images_hash": source.hash(),
            "labels_hash": None if labels is None else labels_hash(labels),
        }
        yield EffectSession(session, output, classes, outputs, by_label, parameters)


def _by_label(by: str, output: Output, session: Session, classes: Classes, outputs: int) -> bool:
    """True where labels say which class counts. Raises `AtlasError` where they are to and there are none, or where they are no classes."""
    if by == "prediction" or (by == "auto" and output.function is not None):
        return False
    loader = session.loader
    known = list(loader.labels.values()) if loader.labels is not None else loader.source.labels()
    if known is None:
        return True
    present = [label for label in known if label is not None]
    if by == "label" and not present:
        raise AtlasError(
            "the images have no labels; give --labels FILE, or take the network's own predictions with --by prediction"
        )
    if by == "auto" and present and not any(classes.position_of(label, outputs) is not None for label in set(present)):
        warnings.warn(
            f"none of the {len(set(present)):,} labels, such as {present[0]!r}, is a class of the network, so its own predictions count; name the "
            "classes with --classes FILE for labels that are",
            ImagesWarning,
            stacklevel=4,
        )
        return False
    classes.check_labels(present, outputs)
    return bool(present)


def passed_on_shapes(session: Session) -> list[tuple[int, ...]]:
    """The shapes (unit, cell) of what each layer's units pass on, found with noise. Raises `AtlasError` where that can't be read."""
    shapes: dict[int, tuple[int, ...]] = {}

    def note(index: int, output: Tensor) -> None:
        shapes[index] = tuple(session.layers[index].layout.cells(output).shape[1:])

    network = session.plain_copy
    with torch.no_grad(), exact_inference(network, session.device), outputs_watched(network, session.layers, note):
        network(noise_images(session.trace, 1))
    for index, traced in enumerate(session.layers):
        if index not in shapes or shapes[index][0] != traced.layer.units:
            raise AtlasError(f"what layer {traced.name!r} passes on can't be read as its units; scan again without it")
    return [shapes[index] for index in range(len(session.layers))]


def baseline_of(atlas: Atlas, layer: str, shape: tuple[int, ...], replacement: str) -> Tensor:
    """What units of a layer pass on when they are taken away, of shape (unit, cell): their mean map, or zero.

    Raises `AtlasError` where the table `mean_maps` is missing, or has other maps.
    """
    if replacement not in REPLACEMENTS:
        raise UnitscopeError(f"a unit is replaced by {' or '.join(REPLACEMENTS)}, not {replacement!r}")
    if replacement == "zero":
        return torch.zeros(shape)
    maps = atlas.table(MEAN_MAPS.name, layer)["map"].combine_chunks()
    lengths = np.diff(maps.offsets.to_numpy()) if len(maps) else np.zeros(0)
    if maps.null_count or len(maps) != shape[0] or (lengths != shape[1]).any():
        command = MEAN_MAPS.command_for(atlas.folder)
        raise AtlasError(f"the table {MEAN_MAPS.name!r} has no mean maps of layer {layer!r}; make it with: {command}")
    return torch.from_numpy(maps.flatten().to_numpy().reshape(shape).copy())
