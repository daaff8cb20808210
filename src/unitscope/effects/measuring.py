"""measure_effects(): what every unit does to every class, in two passes over the images.

The first pass keeps what each unit passes on, on average, and what the network predicts; the second goes forward and back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.tables import EFFECT_LAYERS, EFFECTS, MEAN_MAPS, MISTAKES, PREDICTIONS, SHORTCUTS
from unitscope.atlas.writing import ROWS_PER_GROUP, table_writer
from unitscope.effects.gradients import effects_of_units, overwritten_layers, read_gradients
from unitscope.effects.knockouts import add_knockouts
from unitscope.effects.mistakes import ImageEffects, MistakeSums, ObjectEffects
from unitscope.effects.objects import Objects, cells_off_objects
from unitscope.effects.opening import EffectOptions, EffectSession, open_effects, passed_on_shapes
from unitscope.effects.outputs import probabilities
from unitscope.effects.progress import Progress, progress_of
from unitscope.effects.verifying import ClassUnit, SampledEffects, Verification
from unitscope.errors import ImagesError
from unitscope.images.keys import key_hash
from unitscope.layers import outputs_watched
from unitscope.networks import Network
from unitscope.session.loader import LoadedImage
from unitscope.session.noise import noise_images
from unitscope.session.replicas import images_in_cache
from unitscope.session.session import ImageBatch, Session

BATCH_IMAGES = 32
SHOWN_IMAGES = 9
"""How many images are kept of every label and prediction: the most certain ones."""
TOP_CLASSES = 5
CLASS_IMAGES = 8
"""In how many images of a class its strongest units are taken away."""
SAMPLED_IMAGES = 40
"""In how many images first order is compared with the truth."""

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def measure_effects(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    *,
    verify: int = 0,
    objects: Any = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
    **options: Unpack[EffectOptions],
) -> pa.Table:
    """What every unit of an atlas does to every class, as its table `effects`; the tables `mean_maps`, `predictions` and `effect_layers` are
    made on the way.

    The effect of a unit on an image is how far the score of the image's class would fall if the unit passed on its mean map over all images,
    to first order: (what it passes on − its mean map) × gradient, summed over cells (activation × gradient, or attribution patching). What a
    unit passes on is what comes out of its activation, where it has one. The table holds means over the images of each class. Layers tell the
    same story one after the other, so effects are shared out within a layer only.

    With `verify`, so many of the strongest units of every layer, and as many drawn at random, are taken away for real in some images, and the
    table `effect_layers` says how far first order agrees; so many of the strongest units of every class are taken away in the class's images,
    for the table `knockouts`. The tables `mistakes` and `shortcuts` are about images that are taken for another class; where `objects` are known,
    from a folder with a mask an image or a COCO file, candidates are also units that raise a class off its object. `options` say which images and scores are meant (see `EffectOptions`). `on_images` is told how many images are through, each twice.

    A run that was stopped goes on where it was. Raises `AtlasError` where labels are no classes of the network, `NetworkError` where it has
    no scores or no gradient comes down.
    """
    for spec in (EFFECTS, MEAN_MAPS, PREDICTIONS, EFFECT_LAYERS, MISTAKES, SHORTCUTS):
        check_table_writable(spec, atlas)
    with open_effects(atlas, network, device, options) as opened:
        measuring = _Measuring(opened, on_images or (lambda _: None), Objects.of(objects, atlas.preprocessing))
        # A run of other objects or class names, or of other peaks, isn't gone on with.
        asked = {"peaks": atlas.peaks_hash, "objects": str(objects), "classes": list(opened.classes.names)}
        with progress_of(atlas, EFFECTS.name, opened.parameters | asked) as progress:
            means = measuring.mean_maps(progress)
            sums = measuring.effect_sums(means, progress)
            verification = Verification(opened, measuring.baselines(means))
            layer_rows = verification.layer_rows(sums.sample(), verify)
            _write_tables(atlas, opened, means, sums, layer_rows)
            if verify:
                strongest = _strongest(atlas, opened, sums, verify)
                add_knockouts(atlas, verification.knockout_rows(strongest), opened.parameters)
    return atlas.table(EFFECTS.name)


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Means:
    """What the first pass keeps: sums of what units pass on, layer by layer, of shape (unit, cell), and what the network predicts."""

    sums: list[Floats]
    images: int = 0
    confusions: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, batch: "BatchMeans") -> None:
        """Take in a batch."""
        for total, of_batch in zip(self.sums, batch.sums, strict=True):
            total += of_batch
        self.images += len(batch.predictions)
        for row in batch.predictions:
            cell = row["label_class"], row["predicted"]
            self.counts[cell] = self.counts.get(cell, 0) + 1
            shown = [*self.confusions.get(cell, []), row]
            self.confusions[cell] = sorted(shown, key=lambda row: (-row["probability"], row["image"]))[:SHOWN_IMAGES]

    def maps(self) -> list[Floats]:
        """The mean maps, of shape (unit, cell)."""
        return [(total / max(self.images, 1)).astype(np.float32) for total in self.sums]

    def state(self) -> dict[str, Any]:
        cells = [[*cell, self.counts[cell], rows] for cell, rows in self.confusions.items()]
        arrays = {f"mean_{number}": total for number, total in enumerate(self.sums)}
        return arrays | {"plain": {"images": self.images, "cells": cells}}

    def restore(self, state: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
        self.sums = [state[f"mean_{number}"] for number in range(len(self.sums))]
        self.images = plain["images"]
        for label_class, predicted, count, rows in plain["cells"]:
            self.counts[label_class, predicted], self.confusions[label_class, predicted] = count, rows

    def predictions(self) -> pa.Table:
        rows = [
            row | {"rank": rank, "images": self.counts[cell]}
            for cell, shown in self.confusions.items()
            for rank, row in enumerate(shown, start=1)
        ]
        return pa.Table.from_pylist(rows, schema=PREDICTIONS.schema)


@dataclass(frozen=True, slots=True)
class BatchMeans:
    """What a batch gives in the first pass."""

    sums: list[Floats]
    predictions: list[dict[str, Any]]


@dataclass
class EffectSums:
    """What the second pass keeps: by class, sums of effects and of their squares over images; and a few images, drawn by their keys' hashes, of
    each class and of all."""

    images: dict[int, int] = field(default_factory=dict)
    sums: dict[int, Floats] = field(default_factory=dict)
    squares: dict[int, Floats] = field(default_factory=dict)
    class_images: dict[int, list[list[int]]] = field(default_factory=dict)
    sampled: list[tuple[int, int, int, Floats]] = field(default_factory=list)
    mistakes: MistakeSums = field(default_factory=lambda: MistakeSums({}))

    def add(self, found: ImageEffects) -> None:
        """Take in an image."""
        class_, exact = found.class_, found.effects.astype(np.float64)
        if class_ not in self.sums:
            self.images[class_], self.class_images[class_] = 0, []
            self.sums[class_], self.squares[class_] = np.zeros(len(exact)), np.zeros(len(exact))
        self.images[class_] += 1
        self.sums[class_] += exact
        self.squares[class_] += exact**2
        self.mistakes.add(found)
        drawn = key_hash(found.key)
        self.class_images[class_] = sorted([*self.class_images[class_], [drawn, found.image]])[:CLASS_IMAGES]
        entry = drawn, found.image, class_, found.effects
        self.sampled = sorted([*self.sampled, entry], key=lambda entry: entry[:2])[:SAMPLED_IMAGES]

    def sample(self) -> SampledEffects:
        """Images of all classes."""
        return SampledEffects(
            [entry[1] for entry in self.sampled],
            [entry[2] for entry in self.sampled],
            np.stack([entry[3] for entry in self.sampled]),
        )

    def state(self) -> dict[str, Any]:
        classes = sorted(self.images)
        stacked = {"sums": [self.sums[c] for c in classes], "squares": [self.squares[c] for c in classes]}
        arrays = {
            name: np.stack(rows) for name, rows in (stacked | {"sampled": [entry[3] for entry in self.sampled]}).items() if rows
        }
        of_classes = [[class_, self.images[class_], self.class_images[class_]] for class_ in classes]
        mistakes = self.mistakes.state()
        plain = {"classes": of_classes, "sampled": [list(entry[:3]) for entry in self.sampled], "mistakes": mistakes.pop("plain")}
        return arrays | mistakes | {"plain": plain}

    def restore(self, state: Mapping[str, Any], plain: Any) -> None:
        for row, (class_, images, class_images) in enumerate(plain["classes"]):
            self.images[class_], self.sums[class_], self.squares[class_] = images, state["sums"][row], state["squares"][row]
            self.class_images[class_] = class_images
        self.sampled = [(*entry, state["sampled"][row]) for row, entry in enumerate(plain["sampled"])]
        self.mistakes.restore(state, plain["mistakes"])


# ── the two passes ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Measuring:
    opened: EffectSession
    on_images: Callable[[int], None]
    objects: Objects | None = None

    @property
    def session(self) -> Session:
        return self.opened.session

    def mean_maps(self, progress: Progress) -> Means:
        """What each unit passes on, on average, and what the network predicts."""
        means = Means([np.zeros(shape) for shape in passed_on_shapes(self.session)])
        done, state = 0, progress.load()
        if state is not None:
            done = state["plain"]["mean_batches"]
            means.restore(state, state["plain"]["means"])
            if state["plain"]["effects"] is not None:
                return means
        for number, batch in enumerate(self._run(self._mean_batch, done), start=done + 1):
            means.add(batch)
            self.on_images(len(batch.predictions))
            if progress.is_due():
                progress.save(_state(means, number))
        if not means.images:
            raise ImagesError("no image can be read, so there is nothing to measure effects on")
        return means

    def effect_sums(self, means: Means, progress: Progress) -> EffectSums:
        """The second pass; with the state of an earlier run it goes on where that was."""
        sums, done, state = EffectSums(mistakes=MistakeSums(means.counts)), 0, progress.load()
        if state is not None and state["plain"]["effects"] is not None:
            done = state["plain"]["effect_batches"]
            sums.restore(state, state["plain"]["effects"])
        progress.save(_state(means, 0, sums, done))
        baselines = self.baselines(means)
        overwritten = overwritten_layers(self.session.plain_copy, self.session.layers, noise_images(self.session.trace, 1))
        run = partial(self._effect_batch, baselines, overwritten)
        for number, batch in enumerate(self._run(run, done), start=done + 1):
            for found in batch:
                sums.add(found)
            self.on_images(len(batch))
            if progress.is_due():
                progress.save(_state(means, 0, sums, number))
        return sums

    def baselines(self, means: Means) -> list[Tensor]:
        """The mean maps on the session's device."""
        return [torch.from_numpy(mean).to(self.session.device) for mean in means.maps()]

    def _run(self, run: Callable[..., Any], skip: int) -> Iterator[Any]:
        batches = self.session.all_batches(self._batch_size())
        for _ in range(skip):
            next(batches, None)
        yield from self.session.run_batches(batches, run, to_output=True)

    def _batch_size(self) -> int:
        return images_in_cache(self.session.trace, BATCH_IMAGES)

    # ── in a replica's thread ───────────────────────────────────────────────────────────────────────────────────────

    def _mean_batch(self, replica: nn.Module, batch: ImageBatch, loaded: list[LoadedImage]) -> BatchMeans:
        readable = [image for image in loaded if image.pixels is not None]
        if not readable:
            return BatchMeans([np.zeros((1, 1)) for _ in self.session.layers], [])
        sums: dict[int, Floats] = {}

        def add(index: int, output: Tensor) -> None:
            sums[index] = self.session.layers[index].layout.cells(output).float().sum(0).cpu().numpy()

        with torch.no_grad(), outputs_watched(replica, self.session.layers, add):
            scores = self.opened.output.scores(replica(self.session.inputs(readable)))
        top = probabilities(scores).topk(min(TOP_CLASSES, scores.shape[1]), 1)
        predictions = [
            {
                "label_class": self.opened.label_class(image), "predicted": classes[0], "image": image.image, "key": image.key,
                "probability": values[0], "top_classes": classes, "top_probabilities": values,
            }
            for image, classes, values in zip(readable, top.indices.tolist(), top.values.tolist(), strict=True)
        ]  # fmt: skip
        return BatchMeans([sums[index] for index in range(len(self.session.layers))], predictions)

    def _effect_batch(
        self,
        baselines: Sequence[Tensor],
        overwritten: frozenset[int],
        replica: nn.Module,
        batch: ImageBatch,
        loaded: list[LoadedImage],
    ) -> list[ImageEffects]:
        readable = [image for image in loaded if image.pixels is not None]
        if not readable:
            return []
        inputs, off_objects = self.session.inputs(readable), self._off_objects(readable)
        labels = [self.opened.label_class(image) for image in readable]
        predicted: list[int] = []

        def score(returned: Any) -> Tensor:
            scores = self.opened.output.scores(returned)
            predicted[:] = scores.detach().argmax(1).tolist()
            return _chosen(scores, [label if label >= 0 else top for label, top in zip(labels, predicted, strict=True)])

        def read(index: int, passed_on: Tensor, gradient: Tensor) -> Tensor:
            effects = effects_of_units(passed_on.float(), gradient.float(), baselines[index])
            if off_objects is None:
                return effects[:, None]
            # What a unit raises by being there, not by being away: its silence stands nowhere.
            raising = (passed_on.float() - baselines[index]).clamp_min(0) * gradient.float().clamp_min(0)
            weights = off_objects[index]
            off = (
                torch.einsum("nuc,nmc->nmu", raising, weights)
                if weights is not None
                else torch.full((len(raising), 3, raising.shape[1]), nan)
            )
            highest = passed_on.float().amax(2)[:, None]
            return torch.cat([effects[:, None], highest, raising.sum(2)[:, None], off.to(effects)], 1)

        found = self._all_layers(read_gradients(replica, self.session.layers, inputs, score, read, overwritten), len(readable))
        wrong = [row for row, label in enumerate(labels) if 0 <= label != predicted[row]]
        on_predicted: dict[int, Floats] = {}
        if wrong:
            targets, off_objects = [predicted[row] for row in wrong], None
            of_wrong = read_gradients(
                replica,
                self.session.layers,
                inputs[wrong],
                lambda returned: _chosen(self.opened.output.scores(returned), targets),
                read,
                overwritten,
            )
            on_predicted = dict(zip(wrong, self._all_layers(of_wrong, len(wrong))[:, 0], strict=True))
        return [
            ImageEffects(
                image.image, image.key, label if label >= 0 else top, label, top, of_image[0], on_predicted.get(row),
                ObjectEffects(of_image[1], of_image[2], of_image[3:]) if len(of_image) > 1 else None,
            )
            for row, (image, label, top, of_image) in enumerate(zip(readable, labels, predicted, found, strict=True))
        ]  # fmt: skip

    def _all_layers(self, by_layer: Sequence[Tensor | None], images: int) -> Floats:
        """The numbers of the units of all layers, one after the other, of shape (image, number, unit); zeros where the score doesn't depend on them."""
        numbers = max((of_layer.shape[1] for of_layer in by_layer if of_layer is not None), default=1)
        columns = [
            torch.zeros(images, numbers, traced.layer.units) if of_layer is None else of_layer.cpu()
            for traced, of_layer in zip(self.session.layers, by_layer, strict=True)
        ]
        found: Floats = torch.cat(columns, 2).numpy()
        return found

    def _off_objects(self, images: Sequence[LoadedImage]) -> list[Tensor | None] | None:
        """For each layer, which cells stand off the object of each image, and off it if it stood elsewhere, of shape (image, mask, cell); None for a
        layer whose cells stand nowhere, and for all where the objects of some of the images aren't known."""
        if self.objects is None:
            return None
        masks = [self.objects.masks(image.key) for image in images]
        if any(mask is None for mask in masks):
            return None
        on = np.stack([mask for mask in masks if mask is not None])
        by_layer: list[Tensor | None] = []
        for traced in self.session.layers:
            layer, layout = traced.layer, traced.layout
            has_place = layout.is_spatial and layout.grid is None and layout.inner is None
            if not has_place or layer.map_height * layer.map_width == 1:
                by_layer.append(None)
                continue
            off = cells_off_objects(on, traced).reshape(*on.shape[:2], -1)
            by_layer.append(torch.from_numpy(off).float().to(self.session.device))
        return by_layer


def _chosen(scores: Tensor, positions: Sequence[int]) -> Tensor:
    """One score of each image."""
    return scores.gather(1, torch.tensor(positions, device=scores.device)[:, None])[:, 0]


def _state(means: Means, mean_batches: int, sums: EffectSums | None = None, effect_batches: int = 0) -> dict[str, Any]:
    first, second = means.state(), {"plain": None} if sums is None else sums.state()
    plain = {"means": first["plain"], "mean_batches": mean_batches, "effects": second["plain"], "effect_batches": effect_batches}
    return first | second | {"plain": plain}


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _strongest(atlas: Atlas, opened: EffectSession, sums: EffectSums, count: int) -> list[ClassUnit]:
    """The units with the largest effects on each class, of all layers but those whose units are the classes."""
    layers = opened.session.layers
    numbers = np.repeat(np.arange(len(layers)), [traced.layer.units for traced in layers])
    units = np.concatenate([np.arange(traced.layer.units) for traced in layers])
    is_class = np.isin(
        numbers, [number for number, traced in enumerate(layers) if traced.name in atlas.manifest.get("class_layers", ())]
    )
    strongest: list[ClassUnit] = []
    for class_, total in sums.sums.items():
        images = tuple(image for _, image in sums.class_images[class_])
        rows = np.argsort(np.where(is_class, 0, -np.abs(total)), kind="stable")[:count].tolist()
        strongest += [ClassUnit(int(numbers[row]), int(units[row]), class_, images) for row in rows]
    return strongest


def _write_tables(atlas: Atlas, opened: EffectSession, means: Means, sums: EffectSums, layer_rows: pa.Table) -> None:
    """`effects` last: whoever finds it finds the others."""
    session, class_layers = opened.session, atlas.manifest.get("class_layers", ())
    made = {"parameters": opened.parameters | {"images": means.images}, "versions": {"torch": torch.__version__}}
    with table_writer(MEAN_MAPS, atlas, **made) as writer:
        for traced, mean in zip(session.layers, means.maps(), strict=True):
            columns = {"layer": pa.repeat(traced.name, len(mean)), "unit": np.arange(len(mean)), "map": list(mean)}
            writer.write_table(pa.table(columns).cast(MEAN_MAPS.schema), row_group_size=len(mean))
    write_table(means.predictions(), PREDICTIONS, atlas, **made)
    write_table(layer_rows, EFFECT_LAYERS, atlas, **made)
    write_table(sums.mistakes.mistakes(session.layers, class_layers), MISTAKES, atlas, **made)
    write_table(sums.mistakes.shortcuts(session.layers, class_layers), SHORTCUTS, atlas, **made)
    classes = sorted(sums.images)
    with table_writer(EFFECTS, atlas, **made) as writer:
        start = 0
        for traced in session.layers:
            units = slice(start, start := start + traced.layer.units)
            writer.write_table(_layer_effects(traced.name, sums, classes, units), row_group_size=ROWS_PER_GROUP)


def _layer_effects(layer: str, sums: EffectSums, classes: Sequence[int], units: slice) -> pa.Table:
    """A layer's rows, by unit and class."""
    images = np.array([sums.images[class_] for class_ in classes])[:, None]
    total, squares = (np.stack([of_class[class_][units] for class_ in classes]) for of_class in (sums.sums, sums.squares))
    effect = total / images
    size = np.abs(effect)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.maximum(squares / images - effect**2, 0) / (images - 1))
        share = size / size.sum(1, keepdims=True)
    unit_count = effect.shape[1]
    columns = {
        "layer": pa.repeat(layer, effect.size),
        "unit": np.repeat(np.arange(unit_count), len(classes)),
        "class": np.tile(np.array(classes), unit_count),
        "effect": effect.T.ravel(),
        "standard_error": pa.array(error.T.ravel(), mask=~np.isfinite(error.T.ravel())),
        "share": pa.array(np.nan_to_num(share.T.ravel())),
        "images": np.repeat(images[None, :, 0], unit_count, 0).ravel(),
    }
    return pa.table(columns).cast(EFFECTS.schema)
