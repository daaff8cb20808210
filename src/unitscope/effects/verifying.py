"""How far first order can be believed: where only linear operations follow it is exact; elsewhere units are taken away for real."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.atlas.tables import EFFECT_LAYERS
from unitscope.effects.gradients import overwritten_layers, read_gradients
from unitscope.effects.knockouts import BATCH_IMAGES, ClassDrops, Drop, KnockoutRuns, drops_of
from unitscope.effects.opening import EffectSession
from unitscope.networks.precision import exact_inference
from unitscope.session.noise import noise_images
from unitscope.session.replica_threads import results_in_order

SAME_GRADIENT = 1e-5
"""How far a gradient may be from that of another image, as a share of its highest value, where only linear operations follow."""
EXACT_IMAGES = 8

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class SampledEffects:
    """Images drawn by their keys' hashes, with their classes, and the effects of the units of all layers on each, (image, unit)."""

    images: list[int]
    classes: list[int]
    effects: Floats


@dataclass(frozen=True, slots=True)
class ClassUnit:
    """A unit that is one of a class's strongest, by the layer's number, and the images of the class that it is to be taken away in."""

    layer: int
    unit: int
    class_: int
    images: tuple[int, ...]


def exact_layers(opened: EffectSession, images: Sequence[int]) -> list[bool]:
    """For each layer, whether the gradient of a score is the same for all of these images: only linear operations follow."""
    session = opened.session
    inputs = torch.cat([noise_images(session.trace, 2), _inputs(opened, images[:EXACT_IMAGES])])

    def is_same(index: int, passed_on: Tensor, gradient: Tensor) -> bool:
        highest = float(gradient.abs().amax())
        return highest > 0 and float((gradient - gradient[:1]).abs().amax()) <= SAME_GRADIENT * highest

    is_exact = [True] * len(session.layers)
    overwritten = overwritten_layers(session.plain_copy, session.layers, inputs[:1])
    for position in {0, opened.outputs - 1}:
        with exact_inference(session.plain_copy, session.device):
            score = partial(_score, opened, position)
            found = read_gradients(session.plain_copy, session.layers, inputs, score, is_same, overwritten)
        is_exact = [bool(before and now) for before, now in zip(is_exact, found, strict=True)]
    return is_exact


def _score(opened: EffectSession, position: int, returned: Any) -> Tensor:
    return opened.output.scores(returned)[:, position]


@dataclass(frozen=True)
class Verification:
    """Takes units away for real. `baselines` are their mean maps, layer by layer."""

    opened: EffectSession
    baselines: Sequence[Tensor]

    def layer_rows(self, sampled: SampledEffects, count: int) -> pa.Table:
        """The table `effect_layers`: with a count, so many of each layer's strongest units and so many others, drawn at random, are taken away."""
        rows, start = [], 0
        for number, (traced, exact) in enumerate(
            zip(self.opened.session.layers, exact_layers(self.opened, sampled.images), strict=True)
        ):
            effects = sampled.effects[:, start : start + traced.layer.units]
            start += traced.layer.units
            row: dict[str, Any] = {"layer": traced.name, "exact": exact, "r": None, "slope": None, "knockouts": 0}
            if count:
                units = _units_to_try(effects, count, seed=number)
                first_order, drops = effects[:, units], self._drops(number, units, sampled)
                row |= {"r": _correlation(first_order, drops), "slope": _slope(first_order, drops), "knockouts": drops.size}
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=EFFECT_LAYERS.schema)

    def _drops(self, layer: int, units: Sequence[int], sampled: SampledEffects) -> Floats:
        """How far the score of each image's class falls without each unit, of shape (image, unit)."""
        batches = [
            (sampled.images[start : start + BATCH_IMAGES], sampled.classes[start : start + BATCH_IMAGES])
            for start in range(0, len(sampled.images), BATCH_IMAGES)
        ]
        groups = [[unit] for unit in units]
        of_batches = self._run([(layer, groups, images, classes) for images, classes in batches])
        return np.concatenate([[[drop.score for drop in of_group] for of_group in of_batch] for of_batch in of_batches], axis=1).T

    def knockout_rows(self, strongest: Sequence[ClassUnit]) -> list[dict[str, Any]]:
        """Rows of `knockouts`: each of these units is taken away in images of its class."""
        jobs, rows = [], []
        for (layer, class_), of_class in groupby(
            sorted(strongest, key=lambda u: (u.layer, u.class_, u.unit)), key=lambda u: (u.layer, u.class_)
        ):
            units = list(of_class)
            jobs.append((layer, [[unit.unit] for unit in units], list(units[0].images), [class_] * len(units[0].images)))
        for (layer, groups, _, _), of_job in zip(jobs, self._run(jobs), strict=True):
            for group, drops in zip(groups, of_job, strict=True):
                found = ClassDrops()
                found.add(drops)
                name = self.opened.session.layers[layer].name
                rows += [{"layer": name, "units": str(group[0]), "replacement": "mean"} | row for row in found.rows()]
        return rows

    def _run(self, jobs: Sequence[tuple[int, list[list[int]], list[int], list[int]]]) -> Iterator[list[list[Drop]]]:
        """For each layer, groups of units, images and their classes: by group, what became of each image."""
        with self.opened.session.running(to_output=True) as threads:
            runs: dict[tuple[int, int], KnockoutRuns] = {}

            def run(
                replica: nn.Module, layer: int, groups: list[list[int]], inputs: Tensor, classes: list[int]
            ) -> list[list[Drop]]:
                key = id(replica), layer
                if key not in runs:
                    runs[key] = KnockoutRuns(
                        replica, self.opened.session.layers[layer], self.baselines[layer], self.opened.output
                    )
                before, after = runs[key].scores(inputs, groups)
                return [drops_of(before, of_group, torch.tensor(classes, device=before.device)) for of_group in after]

            def submit(job: tuple[int, list[list[int]], list[int], list[int]]) -> Any:
                layer, groups, images, classes = job
                return threads.submit(run, layer, groups, _inputs(self.opened, images), classes)

            yield from results_in_order(submit, jobs, 2 * len(self.opened.session.replicas.networks))


def _inputs(opened: EffectSession, images: Sequence[int]) -> Tensor:
    """Raises `ImagesError` where one can't be read any more."""
    loader = opened.session.loader
    return opened.session.inputs([loader.load(loader.item(image)) for image in images])


def _units_to_try(effects: Floats, count: int, seed: int) -> list[int]:
    """The strongest ones, and as many others."""
    strongest = np.argsort(-np.abs(effects).mean(0), kind="stable")
    drawn = np.random.default_rng(seed).permutation(strongest[count:])[:count]
    return sorted([*strongest[:count].tolist(), *drawn.tolist()])


def _correlation(first_order: Floats, drops: Floats) -> float | None:
    if first_order.size < 3 or first_order.std() == 0 or drops.std() == 0:
        return None
    return float(np.corrcoef(first_order.ravel(), drops.ravel())[0, 1])


def _slope(first_order: Floats, drops: Floats) -> float | None:
    squares = float((first_order.astype(np.float64) ** 2).sum())
    return float((first_order * drops).sum() / squares) if squares else None
