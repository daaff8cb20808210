"""The trial of a network on noise: does a value belong to its image alone (rule 10 of docs/exactness.md), and how exact is it?

Everything runs on copies. Where a value depends on more than its image, the trial names the first layer in which it does.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.tracing import Trace, TracedLayer
from unitscope.networks.class_variables import ClassVariables, restore_class_variables
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.precision import random_state_hashes
from unitscope.session.lockstep import run_interleaved
from unitscope.session.noise import (
    BATCH_POSITIONS,
    KEPT_POSITIONS,
    NOISE_IMAGES,
    deviation,
    layer_deviations,
    noise_batch,
    noise_images,
    perturb_last_bits,
    read_maps,
    seed_generators,
)

log = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 1e-4
"""How far apart two values may be, as a share of the value: float32 has seven digits, of which a deep network's sums keep five."""
FLOAT32_DEVIATION = 1e-5
"""How far apart values may be, as a share of their layer's highest, where only the order of float32 operations differs."""
FLOAT64_DEVIATION = 1e-9
"""The same in float64."""
COARSE_DEVIATION = 1e-2
"""The same for a network that doesn't run in float64, which could tell rounding from a real difference."""
USUAL_ROUNDING = {torch.bfloat16: 1e-1, torch.float16: 1e-2}
"""The deviations that rounding causes in networks of these types; `FLOAT32_DEVIATION` in others."""
ROUNDING_FACTOR = 16
"""How many times as far as rounding moves values of noise it may move those of other images. What moves further is not rounding."""

HISTORY_IMAGES = (1, 2)
"""The noise images that run before the first one, to find out whether they leave a state."""
PYTHON_GENERATOR = 0
"""The index of Python's generator among the random states."""
OTHER_SEEDS = (1, 2, 3, 4)
BEFORE_FIRST_LAYER = -1
"""In place of a layer's index."""

StatesByLayer = dict[int, tuple[int, ...]]
"""The hashes of the random states when each layer was read, in the order in which the layers were read."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial found: the first layers whose values depend on something else than the image, and what rounding does.

    `batch` is the first layer whose values depend on the other images of the batch, `random` the first whose values may differ from run
    to run, `shared` the first whose values another replica changes that runs at the same time; each None where there is none. `rounding`
    gives for each layer how far rounding moves values, as a share of the layer's highest, where that is above 1e-5. Up to `usual` that
    is normal for the type that the network computes in. `magnitudes` has the largest magnitude of each layer's finite values.
    """

    batch: str | None = None
    random: str | None = None
    shared: str | None = None
    rounding: Mapping[str, float] = field(default_factory=dict)
    usual: float = FLOAT32_DEVIATION
    magnitudes: tuple[float, ...] = ()

    def findings(self) -> Iterator[str]:
        """What the user should know of it, a sentence each."""
        if self.batch is not None:
            yield f"values depend on the images that run in the same batch, from layer {self.batch!r} on: another batch size gives others"
        if self.random is not None:
            yield f"values may differ from run to run, from layer {self.random!r} on: a scan can't be repeated, and 'check' may find differences"
        if self.shared is not None:
            yield f"copies of the network that run at the same time change each other's values, from layer {self.shared!r} on: one runs alone"
        layer = max(self.rounding, key=lambda name: self.rounding[name], default="")
        if self.rounding.get(layer, 0) > self.usual:
            yield (
                f"rounding moves values by up to {self.rounding[layer]:.0e} of their layer's highest (in layer {layer!r}); 'check' "
                "allows for that"
            )

    def described(self) -> dict[str, Any]:
        """The trial as the manifest holds it, with rounding to one digit, since machines differ in the second."""
        rounding = {name: float(f"{share:.0e}") for name, share in self.rounding.items()}
        return {"batch": self.batch, "random": self.random, "shared": self.shared, "rounding": rounding}

    def with_rounding(self, layers: Sequence[TracedLayer], deviations: Sequence[float]) -> "Trial":
        """The trial with the deviations that rounding caused in one more comparison; itself where values depend on more than rounding."""
        if self.batch is not None or self.random is not None:
            return self
        by_layer = {layer.name: share for layer, share in zip(layers, deviations, strict=True)}
        larger = {
            name: share
            for name, share in by_layer.items()
            if FLOAT32_DEVIATION < share < inf and share > self.rounding.get(name, 0)
        }
        return replace(self, rounding={**self.rounding, **larger})

    def tolerance(self, layer: str) -> float:
        """How far apart the layer's values may be, as a share of its highest."""
        return tolerance_for(self.rounding, layer)


def tolerance_for(rounding: Mapping[str, float], layer: str) -> float:
    """How far apart a layer's values may be, as a share of its highest, given the rounding that a trial found."""
    return max(FLOAT32_DEVIATION, ROUNDING_FACTOR * rounding.get(layer, 0))


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A trial, and a plain copy's maps of the first two noise images, layer by layer."""

    trial: Trial
    maps: list[Tensor]


def run_trial(network: nn.Module, trace: Trace, layers: Sequence[TracedLayer], test_second_image: bool) -> TrialResult:
    """Run plain copies of the network on noise.

    The first noise image is compared alone and in a batch, and the second one too if `test_second_image`. Where values of these layers
    depend on more than the image, all layers up to them are looked at for the first such layer.

    Raises `NetworkError` where values depend on the images that ran before, since then a value has no meaning.
    """
    with restore_class_variables(network) as class_variables:
        runs = _TrialRuns(network, trace, layers, class_variables)
        result = runs.result(test_second_image)
        trial = result.trial
        if trial.batch is not None or trial.random is not None:
            trial = runs.trial_of_all_layers(trial, test_second_image)
    magnitudes = tuple(float(maps.nan_to_num(0, 0, 0).abs().max()) for maps in result.maps)
    return replace(result, trial=replace(trial, magnitudes=magnitudes))


@dataclass(frozen=True, slots=True)
class _TrialRuns:
    """The runs of a trial. `class_variables` are those of the network's classes, which all its copies share."""

    network: nn.Module
    trace: Trace
    layers: Sequence[TracedLayer]
    class_variables: ClassVariables

    def result(self, test_second_image: bool) -> TrialResult:
        image = noise_images(self.trace, 1)
        alone, states = self._run_first_image(seed=0)
        copied = self._fresh_copy()
        in_batch, kept_maps = self._run_batch(copied, alone)
        perturbed = layer_deviations(read_maps(copied, self.layers, perturb_last_bits(image)), alone)
        differing = None
        if max(perturbed, default=0) > FLOAT32_DEVIATION:  # by rounding, or by the images that ran before on this copy?
            differing = self._first_layer_above(layer_deviations(read_maps(copied, self.layers, image), alone))
        if (layer := self._first_random_layer(states, alone) or differing) is not None:
            return TrialResult(Trial(random=layer), kept_maps)
        if (layer := self._first_batch_layer(in_batch, perturbed, image_number=0)) is not None:
            return TrialResult(Trial(batch=layer), kept_maps)
        trial = Trial(usual=USUAL_ROUNDING.get(image.dtype, FLOAT32_DEVIATION))
        trial = trial.with_rounding(self.layers, in_batch).with_rounding(self.layers, perturbed)
        return TrialResult(self._with_second_image(trial, kept_maps) if test_second_image else trial, kept_maps)

    def trial_of_all_layers(self, trial: Trial, test_second_image: bool) -> Trial:
        """What it is that values of these layers depend on, looked for in all layers up to them.

        Raises `NetworkError` where values depend on the images that ran before.
        """
        last = max(layer.layer.order for layer in self.layers)
        all_runs = replace(self, layers=[layer for layer in self.trace.layers if layer.layer.order <= last])
        if trial.random is not None:
            all_runs.check_history()
        trial_of_all = all_runs.result(test_second_image).trial
        is_repeated = trial_of_all.batch is not None if trial.random is None else trial_of_all.random is not None
        return trial_of_all if is_repeated else trial  # what is rare may not show a second time

    def _with_second_image(self, trial: Trial, kept_maps: Sequence[Tensor]) -> Trial:
        """The trial with the second image compared too: in some networks only some images of a batch depend on the others."""
        image, copied = noise_images(self.trace, 2)[1:], self._fresh_copy()
        alone = read_maps(copied, self.layers, image)
        in_batch = layer_deviations([maps[1:] for maps in kept_maps], alone)
        if max(in_batch, default=0) <= FLOAT32_DEVIATION:
            return trial
        perturbed = layer_deviations(read_maps(copied, self.layers, perturb_last_bits(image)), alone)
        if (layer := self._first_batch_layer(in_batch, perturbed, image_number=1)) is not None:
            return Trial(batch=layer)
        return trial.with_rounding(self.layers, in_batch).with_rounding(self.layers, perturbed)

    def _fresh_copy(self) -> nn.Module:
        """A copy in the network's own state, whatever earlier copies changed in its classes."""
        self.class_variables.restore()
        return isolated_copy(self.network, self.trace.needs_hooks).to(self.trace.input_format.device)

    def _first_layer_above(self, deviations: Sequence[float], limit: float = FLOAT32_DEVIATION) -> str | None:
        """The name of the first layer with a deviation above the limit."""
        return next((layer.name for layer, share in zip(self.layers, deviations, strict=True) if share > limit), None)

    # ── the other images of the batch ───────────────────────────────────────────────────────────────────────────────

    def _run_batch(self, copied: nn.Module, alone: Sequence[Tensor]) -> tuple[list[float], list[Tensor]]:
        """How far the first image's maps in the batch are from those of the image alone, and the maps that are kept."""
        return self._compare_in_batch(copied, noise_batch(self.trace), alone, BATCH_POSITIONS[0], KEPT_POSITIONS)

    def _compare_in_batch(
        self, copied: nn.Module, batch: Tensor, alone: Sequence[Tensor], positions: Sequence[int], kept: Sequence[int] = ()
    ) -> tuple[list[float], list[Tensor]]:
        """How far the maps at these positions of a batch are from those of the image alone, and the maps at the kept ones."""
        deviations = [0.0] * len(self.layers)

        def compare(index: int, maps: Tensor) -> None:
            deviations[index] = max(deviation(maps[position : position + 1], alone[index]) for position in positions)

        return deviations, read_maps(copied, self.layers, batch, kept, compare)

    def _first_batch_layer(self, in_batch: Sequence[float], perturbed: Sequence[float], image_number: int) -> str | None:
        """The first layer whose values depend on the other images of the batch.

        `in_batch` is how far the batch moves values of an image, `perturbed` how far its last bits move them. Where the batch moves them
        much further, it isn't rounding. Else float64 decides, in which rounding is too small to be taken for the batch.
        """
        if self._first_layer_above(in_batch) is None:
            return None
        ratios = [share / max(FLOAT32_DEVIATION, rounding) for share, rounding in zip(in_batch, perturbed, strict=True)]
        return self._first_layer_above(ratios, ROUNDING_FACTOR) or self._first_batch_layer_in_float64(in_batch, image_number)

    def _first_batch_layer_in_float64(self, in_batch: Sequence[float], image_number: int) -> str | None:
        input_format = replace(self.trace.input_format, dtype=torch.float64)
        positions = BATCH_POSITIONS[image_number]
        try:
            copied, batch = self._fresh_copy().double(), input_format.convert(noise_batch(self.trace).double())
            alone = read_maps(copied, self.layers, batch[positions[0] : positions[0] + 1])
            return self._first_layer_above(self._compare_in_batch(copied, batch, alone, positions)[0], FLOAT64_DEVIATION)
        except Exception:  # code for one type fails in many ways in another
            log.debug("the network doesn't run in float64", exc_info=True)
            return self._first_layer_above(in_batch, COARSE_DEVIATION)

    # ── random numbers ──────────────────────────────────────────────────────────────────────────────────────────────

    def _run_first_image(self, seed: int) -> tuple[list[Tensor], StatesByLayer]:
        """The first image's maps, and the random states before the run and when each layer was read."""
        device = self.trace.input_format.device
        copied = self._fresh_copy()
        seed_generators(seed)
        states = {BEFORE_FIRST_LAYER: random_state_hashes(device)}

        def note_states(index: int, _: Tensor) -> None:
            states[index] = random_state_hashes(device)

        return read_maps(copied, self.layers, noise_images(self.trace, 1), on_maps=note_states), states

    def _first_random_layer(self, states: StatesByLayer, alone: Sequence[Tensor]) -> str | None:
        """The first layer that was read after a random number was drawn.

        A network may seed a generator itself, always in the same way: then its states don't depend on the seed that was set before.
        Python's generator serves others too, such as type checkers. What is drawn from it counts where values differ.
        """
        draws = [
            (index, generator)
            for (_, previous), (index, state) in pairwise(states.items())
            for generator in range(len(state))
            if state[generator] != previous[generator]
        ]
        if not draws:
            return None
        maps, other_states = self._run_first_image(OTHER_SEEDS[0])
        for index, generator in draws:
            if generator != PYTHON_GENERATOR and other_states[index][generator] != states[index][generator]:
                return self.layers[index].name
        other_runs = chain([maps], (self._run_first_image(seed)[0] for seed in OTHER_SEEDS[1:]))
        differing = (self._first_layer_above(layer_deviations(maps, alone)) for maps in other_runs)
        return next((layer for layer in differing if layer is not None), None)

    # ── the images that ran before ──────────────────────────────────────────────────────────────────────────────────

    def check_history(self) -> None:
        """Raises `NetworkError` where the first image's values depend on the image that ran before it."""
        earlier_image, another_image = HISTORY_IMAGES
        maps, repeated = self._run_after(earlier_image), self._run_after(earlier_image)
        layer = self._first_layer_above(layer_deviations(maps, self._run_after(another_image)))
        if layer is not None and self._first_layer_above(layer_deviations(maps, repeated)) is None:
            raise NetworkError(
                f"values of the network depend on the images that ran before, from layer {layer!r} on: its state changes while it runs in eval "
                "mode, as that of an observer or of a layer that sets itself by its first images. Freeze it first (run it on real images "
                "once, or torch.ao.quantization.disable_observer)"
            )

    def _run_after(self, image: int) -> list[Tensor]:
        """The first image's maps after another image ran on the same copy, with the same random numbers every time."""
        noise, copied = noise_images(self.trace, NOISE_IMAGES).split(1), self._fresh_copy()
        seed_generators(0)
        read_maps(copied, self.layers, noise[image])
        seed_generators(1)  # since how many numbers are drawn may depend on the image
        return read_maps(copied, self.layers, noise[0])


# ── replicas ────────────────────────────────────────────────────────────────────────────────────────────────────────


def interleaved_maps(replicas: Sequence[nn.Module], trace: Trace, layers: Sequence[TracedLayer]) -> list[list[Tensor]]:
    """The maps of two noise images by two replicas that take turns, operator by operator, for each image as far as its replica came."""
    return run_interleaved(replicas[:2], noise_images(trace, 2).split(1), layers)


def interleaving_deviations(interleaved: Sequence[list[Tensor]], together: Sequence[Tensor]) -> list[float]:
    """How far interleaved maps are from those of the two images in `together`, layer by layer; infinity for missing ones."""
    by_image = []
    for number, maps in enumerate(interleaved):
        expected = [layer_maps[number : number + 1] for layer_maps in together[: len(maps)]]
        by_image.append([*layer_deviations(maps, expected), *[inf] * (len(together) - len(maps))])
    return [max(deviations) for deviations in zip(*by_image, strict=True)]


def trial_of_replicas(
    trial: Trial, replicas: Sequence[nn.Module], trace: Trace, layers: Sequence[TracedLayer], together: Sequence[Tensor]
) -> Trial:
    """The trial with what replicas do to each other: two of them take turns, on different images.

    `together` holds the maps of these two images, run as a batch by one replica. Where values depend on the batch, or rounding is
    amplified, each image is run alone in their place.
    """
    if len(replicas) < 2 or trial.random is not None:
        return trial
    if trial.batch is not None or trial.rounding:
        images = noise_images(trace, 2).split(1)
        alone = [run_interleaved([replica], [image], layers)[0] for replica, image in zip(replicas[:2], images, strict=True)]
        together = [torch.cat(maps) for maps in zip(*alone, strict=True)]
    deviations = interleaving_deviations(interleaved_maps(replicas, trace, layers), together)
    for layer, share in zip(layers, deviations, strict=True):
        if share > max(ROUNDING_FACTOR * FLOAT32_DEVIATION, trial.tolerance(layer.name)):
            return replace(trial, shared=layer.name)
    return trial.with_rounding(layers, deviations)
