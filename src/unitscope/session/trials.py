"""What a network does with noise, before it is scanned: does a value belong to its image alone (rule 10), and how exact is it?

All runs are on copies. Images are the same noise every time.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.tapping import tapped
from unitscope.layers.tracing import Trace, TracedLayer
from unitscope.networks.class_variables import ClassVariables, restore_class_variables
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.precision import exact_inference, random_state_hashes
from unitscope.session.lockstep import side_by_side

RELATIVE_TOLERANCE = 1e-4
"""How far apart two values may be, as a share of the value: float32 has seven digits, of which a deep network's sums keep five."""
NEAR = 1e-5
"""How far values may be apart, as a share of their layer's highest, where arithmetic in float32 is all that differs."""
NEAR_IN_DOUBLE = 1e-9
COARSE = 1e-2
"""The same where float64 can't tell rounding from a real difference, since the network doesn't run in it."""
USUAL = {torch.bfloat16: 1e-1, torch.float16: 1e-2}
SPREAD = 16
"""How many times as far as rounding moves values of noise those of other images may be apart; what is further apart is no rounding."""

OTHERS = (1, 2)
"""The images of noise that run before the first one, to see which state they leave."""
PYTHON = 0
"""The place of Python's generator among the random states."""
SEEDS = (1, 2, 3, 4)
LOUDER = 3
"""How many times as loud as the one before an image of noise is: what keeps the largest value that it met must notice."""
BATCH = (1, 0, 2, 0)
"""The images of noise that run together: the first one between others and behind them, the second one in front."""
PLACES = ((1, 3), (0,))
"""Where the first image is in that batch, and the second."""
KEPT = (1, 0)
"""The places in the batch whose maps are kept: one of the first image, and that of the second."""
START = -1
"""In place of a layer's number: before the first one."""

States = dict[int, tuple[int, ...]]
"""The states of the random generators when each layer was read, in the order in which that happened."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The first layers in which something else than the image has a say in the values; None where there is none.

    `batch`: the other images of the batch. `random`: numbers that are drawn, or something else that differs from run to run. `shared`:
    another replica at work, since they share state. `rounding` says by how much arithmetic alone moves the values of a layer, as a share of its highest, where that is
    above 1e-5; up to `usual` that is a matter of course in the type that the network computes in.
    """

    batch: str | None = None
    random: str | None = None
    shared: str | None = None
    rounding: Mapping[str, float] = field(default_factory=dict)
    usual: float = NEAR

    def findings(self) -> Iterator[str]:
        """What a person should know of it, a sentence each."""
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
        """As the manifest has it: rounding to one digit, since machines differ in more."""
        rounding = {name: float(f"{d:.0e}") for name, d in self.rounding.items()}
        return {"batch": self.batch, "random": self.random, "shared": self.shared, "rounding": rounding}

    def with_rounding(self, layers: Sequence[TracedLayer], apart: Sequence[float]) -> "Trial":
        """The trial with one more comparison of layers' values, unless something else than rounding has a say in them."""
        if self.batch is not None or self.random is not None:
            return self
        found = {layer.name: d for layer, d in zip(layers, apart, strict=True)}
        wider = {name: d for name, d in found.items() if NEAR < d < inf and d > self.rounding.get(name, 0)}
        return replace(self, rounding={**self.rounding, **wider})

    def tolerance(self, layer: str) -> float:
        """How far the layer's values may be apart, as a share of its highest."""
        return tolerance_for(self.rounding, layer)


def tolerance_for(rounding: Mapping[str, float], layer: str) -> float:
    """How far a layer's values may be apart, as a share of its highest, given what the trial found for noise."""
    return max(NEAR, SPREAD * rounding.get(layer, 0))


class Tried(NamedTuple):
    """A trial, and the chosen layers' maps of the first two images of noise, by a plain copy."""

    trial: Trial
    maps: list[Tensor]


def tried(network: nn.Module, traced: Trace, chosen: Sequence[TracedLayer], second: bool) -> Tried:
    """What the chosen layers do with noise; where that depends on more than the image, the first of all layers in which it does.

    The first image of noise is compared alone and in a batch; where `second` says so, the second one too. Raises `NetworkError` where
    values depend on the images that ran before: the state that they left says what a value is.
    """
    with restore_class_variables(network) as class_variables:
        return _tried(_Trials(network, traced, chosen, class_variables), second)


def _tried(of_chosen: "_Trials", second: bool) -> Tried:
    found = of_chosen.result(second)
    if found.trial.batch is None and found.trial.random is None:
        return found
    last = max(layer.layer.order for layer in of_chosen.layers)
    every = replace(of_chosen, layers=[layer for layer in of_chosen.traced.layers if layer.layer.order <= last])
    if found.trial.random is not None:
        every.check_history()
    trial = every.result(second).trial
    found_again = trial.batch is not None if found.trial.random is None else trial.random is not None
    return found._replace(trial=trial) if found_again else found  # what is rare may not show twice


@dataclass(frozen=True, slots=True)
class _Trials:
    network: nn.Module
    traced: Trace
    layers: Sequence[TracedLayer]
    class_variables: ClassVariables
    """Those of the network's classes, which its copies share."""

    def result(self, second: bool) -> Tried:
        first = noise_for(self.traced, 1)
        alone, states = self._watched(0)
        network = self._copy()
        apart, together = self._apart(network, noise_batch(self.traced), alone, PLACES[0], KEPT)
        moved, changed = deviations(noise_maps(network, self.layers, rounded(first)), alone), None
        if max(moved, default=0) > NEAR:  # by rounding, or by what ran before?
            changed = self._first(deviations(noise_maps(network, self.layers, first), alone))
        if (found := self._drawn(states, alone) or changed) is not None:
            return Tried(Trial(random=found), together)
        if (depends := self._depends_on_batch(apart, moved, 0)) is not None:
            return Tried(Trial(batch=depends), together)
        trial = Trial(usual=USUAL.get(first.dtype, NEAR)).with_rounding(self.layers, apart).with_rounding(self.layers, moved)
        return Tried(self._with_second(trial, together) if second else trial, together)

    def _with_second(self, trial: Trial, together: Sequence[Tensor]) -> Trial:
        """The trial with what the second image alone says: not every image of a batch depends on the others."""
        image, network = noise_for(self.traced, 2)[1:], self._copy()
        alone = noise_maps(network, self.layers, image)
        apart = deviations([maps[1:] for maps in together], alone)
        if max(apart, default=0) <= NEAR:
            return trial
        moved = deviations(noise_maps(network, self.layers, rounded(image)), alone)
        if (depends := self._depends_on_batch(apart, moved, 1)) is not None:
            return Trial(batch=depends)
        return trial.with_rounding(self.layers, apart).with_rounding(self.layers, moved)

    def _copy(self) -> nn.Module:
        """A copy that begins where the network stands; those that were made before have run."""
        self.class_variables.restore()
        return isolated_copy(self.network, self.traced.needs_hooks).to(self.traced.input_format.device)

    def _first(self, apart: Sequence[float], near: float = NEAR) -> str | None:
        """The name of the first layer whose values are apart."""
        return next((layer.name for layer, d in zip(self.layers, apart, strict=True) if d > near), None)

    def _apart(
        self, network: nn.Module, batch: Tensor, alone: Sequence[Tensor], places: Sequence[int], kept: Sequence[int] = ()
    ) -> tuple[list[float], list[Tensor]]:
        """How far maps at these places of a batch are from those of their image alone, and the maps that are kept, layer by layer."""
        apart = [0.0] * len(self.layers)

        def compare(number: int, maps: Tensor) -> None:
            apart[number] = max(_deviation(maps[place : place + 1], alone[number]) for place in places)

        return apart, noise_maps(network, self.layers, batch, kept, compare)

    def _watched(self, seed: int) -> tuple[list[Tensor], States]:
        """The first image's maps, and the states of the random generators at the start and when each layer was read."""
        device = self.traced.input_format.device
        network = self._copy()
        seed_all(seed)
        states = {START: random_state_hashes(device)}
        maps = noise_maps(
            network,
            self.layers,
            noise_for(self.traced, 1),
            seen=lambda number, _: states.update({number: random_state_hashes(device)}),
        )
        return maps, states

    def _drawn(self, states: States, alone: Sequence[Tensor]) -> str | None:
        """The first layer reached after numbers were drawn, unless the network seeds the generator itself, always in the same way.

        Python's generator serves others too, those who check types among them: what is drawn from it counts where values differ.
        """
        changed = [
            (number, generator)
            for (_, before), (number, after) in pairwise(states.items())
            for generator in range(len(after))
            if after[generator] != before[generator]
        ]
        if not changed:
            return None
        maps, of_other_seed = self._watched(SEEDS[0])
        seeded = ((number, generator) for number, generator in changed if generator != PYTHON)
        drawn = (number for number, generator in seeded if of_other_seed[number][generator] != states[number][generator])
        first = next((self.layers[number].name for number in drawn), None)
        if first is not None:
            return first
        others = chain([maps], (self._watched(seed)[0] for seed in SEEDS[1:]))
        return next((name for maps in others if (name := self._first(deviations(maps, alone))) is not None), None)

    def check_history(self) -> None:
        """The same image after others, and twice after the same ones, each on a copy of its own and with the same random numbers."""
        noise = noise_for(self.traced, 3).split(1)

        def after(image: int) -> list[Tensor]:
            network = self._copy()
            seed_all(0)
            noise_maps(network, self.layers, noise[image])
            seed_all(1)  # since how many numbers are drawn may depend on the image
            return noise_maps(network, self.layers, noise[0])

        one, same, other = after(OTHERS[0]), after(OTHERS[0]), after(OTHERS[1])
        changed = self._first(deviations(one, other))
        if changed is not None and self._first(deviations(one, same)) is None:
            raise NetworkError(
                f"values of the network depend on the images that ran before, from layer {changed!r} on: its state changes while it runs in eval "
                "mode, as that of an observer or of a layer that sets itself by its first images. Freeze it first (run it on real images "
                "once, or torch.ao.quantization.disable_observer)"
            )

    def _depends_on_batch(self, apart: Sequence[float], moved: Sequence[float], image: int) -> str | None:
        """The first layer in which the images beside have a say.

        `apart` is how far values of the image alone and in the batch are apart, `moved` how far its last bits move them. Where the one
        is much more than the other, it is the batch; below that float64 decides, in which rounding is too small to be taken for it.
        """
        if self._first(apart) is None:
            return None
        further = [d / max(NEAR, rounding) for d, rounding in zip(apart, moved, strict=True)]
        return self._first(further, SPREAD) or self._depends_in_double(apart, image)

    def _depends_in_double(self, apart: Sequence[float], image: int) -> str | None:
        traced = replace(self.traced, input_format=replace(self.traced.input_format, dtype=torch.float64))
        place = PLACES[image][0]
        try:
            network, batch = self._copy().double(), traced.input_format.convert(noise_batch(self.traced).double())
            alone = noise_maps(network, self.layers, batch[place : place + 1])
            return self._first(self._apart(network, batch, alone, PLACES[image])[0], NEAR_IN_DOUBLE)
        except Exception:  # what was written for one type stumbles in many ways over another
            return self._first(apart, COARSE)


def in_turn(replicas: Sequence[nn.Module], traced: Trace, chosen: Sequence[TracedLayer]) -> list[list[Tensor]]:
    """The maps of two images of noise by two replicas that run in turn, operator by operator: image by image, as far as they came."""
    return side_by_side(replicas[:2], noise_for(traced, 2).split(1), chosen)


def apart_in_turn(found: Sequence[list[Tensor]], maps: Sequence[Tensor]) -> list[float]:
    """How far maps of replicas in turn are from those of two images that ran together, layer by layer; infinity for missing ones."""
    each = [
        [*deviations(mine, [both[place : place + 1] for both in maps[: len(mine)]]), *[inf] * (len(maps) - len(mine))]
        for place, mine in enumerate(found)
    ]
    return [max(d) for d in zip(*each, strict=True)]


def with_replicas(
    trial: Trial, replicas: Sequence[nn.Module], traced: Trace, chosen: Sequence[TracedLayer], together: Sequence[Tensor]
) -> Trial:
    """The trial with what replicas do to each other: two of them run in turn, on different images.

    In `together` are the maps of these two images, run by one replica; where the batch has a say, or rounding is amplified, each is run alone
    once more.
    """
    if len(replicas) < 2 or trial.random is not None:
        return trial
    if trial.batch is not None or trial.rounding:  # in the very way in which they run in turn
        images = noise_for(traced, 2).split(1)
        alone = [side_by_side([network], [image], chosen)[0] for network, image in zip(replicas[:2], images, strict=True)]
        together = [torch.cat(maps) for maps in zip(*alone, strict=True)]
    apart = apart_in_turn(in_turn(replicas, traced, chosen), together)
    far = (layer.name for layer, d in zip(chosen, apart, strict=True) if d > max(SPREAD * NEAR, trial.tolerance(layer.name)))
    shared = next(far, None)
    return trial.with_rounding(chosen, apart) if shared is None else replace(trial, shared=shared)


def noise_maps(
    network: nn.Module,
    layers: Sequence[TracedLayer],
    images: Tensor,
    which: Sequence[int] = (0,),
    seen: Callable[[int, Tensor], None] | None = None,
) -> list[Tensor]:
    """The maps of the first, or of some, of the images that run together, of shape (image, unit, y, x), layer by layer.

    `seen` is called with each layer's number and the maps of all images, when they are read.
    """
    maps: dict[int, Tensor] = {}
    places = list(which)

    def keep(number: int, found: Tensor) -> None:
        maps[number] = found[places]
        if seen is not None:
            seen(number, found)

    with torch.no_grad(), exact_inference(network, images.device), tapped(network, layers, keep) as tap:
        tap.run(images)
    return [maps[number] for number in range(len(layers))]


def deviations(maps: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """How far two layers' maps are apart at most, as a share of the highest value, layer by layer; infinity where one is NaN and the
    other isn't."""
    return [_deviation(one, other) for one, other in zip(maps, others, strict=True)]


def _deviation(maps: Tensor, others: Tensor) -> float:
    if torch.equal(maps, others):
        return 0.0
    apart, scale = (maps - others).abs().max(), others.abs().max()
    if not (apart.isfinite() and scale.isfinite()):  # few layers hold infinities or NaN
        strange = ~others.isfinite()
        if not torch.allclose(maps[strange], others[strange], equal_nan=True):
            return inf
        apart, scale = ((values.nan_to_num(0, 0, 0)).abs().max() for values in (maps - others, others))
    return float(apart / scale) if scale else (inf if apart else 0.0)


def noise_for(traced: Trace, images: int) -> Tensor:
    """The first of three images of noise, the same every time and each louder than the one before, as the network takes them."""
    noise = torch.randn(3, *traced.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return traced.input_format.convert(noise[:images] * LOUDER ** torch.arange(images, dtype=torch.float32).reshape(-1, 1, 1, 1))


def noise_batch(traced: Trace) -> Tensor:
    """The images of noise that run together: the first one among others, and in front of them the second."""
    return traced.input_format.convert(noise_for(traced, 3)[list(BATCH)])


def rounded(images: Tensor) -> Tensor:
    """The images with their last bits changed, as rounding on the way would."""
    chance = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).sign().to(images)
    return images * (1 + torch.finfo(images.dtype).eps * chance)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
