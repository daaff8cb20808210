"""Recorder: a training that is watched while it runs, and that never fails for it."""

import logging
import os
import random
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import nn

from unitscope.arguments import layer_patterns, shortened, whole_number
from unitscope.atlas import Atlas
from unitscope.atlas.figures import choose_overview_layers
from unitscope.atlas.schema import MANIFEST
from unitscope.errors import AtlasError, LayerNotFound, NetworkError, UnitscopeError, first_line, suggestion
from unitscope.experiments.evolution import Evolution, attribute_units
from unitscope.experiments.evolution_folder import ORDER_FILE, atlas_names, check_atlas_name, scan_or_reuse, write_order
from unitscope.files import check_writable
from unitscope.images import as_source
from unitscope.networks import Network, first_float_tensor, network_from_module
from unitscope.networks.precision import fork_random_states
from unitscope.records import Layer, name_matches
from unitscope.session.opening import loader_for, preprocessing_of

UNITS_FOLLOWED = 8
NOT_RECORDED, NOT_ATTRIBUTED = "was not recorded", "and later epochs have no projections"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a recording couldn't do, and why."""

    consequence: str
    reason: str


@dataclass(slots=True, eq=False, weakref_slot=True)
class Recorder:
    """Scans a network in between, while it is trained, always over the same images; the training doesn't notice.

    Call `epoch` after every epoch, or give `callback()` to Lightning. Weights, gradients, train and eval modes and the random
    states of Python, numpy and torch are afterwards as they were. `images`, `layers` and `preprocess` are those of `scan`; `every`
    how many epochs lie between scans. Some units of each layer are attributed, as the figure shows them.

    What can't work is an error when the recorder is made: raises as `scan` does, and `AtlasError` where `out` holds an evolution
    already, unless this training is to `go_on` with it, or where another recorder has it. Later nothing is raised: an epoch that
    can't be scanned is left out, where attributions can't be made they end, and a warning says so once; so does what the scan itself warns
    of. Where the caller's filters make an error of a warning, it is a line on stderr instead.
    """

    network: nn.Module
    images: Any
    out: str | os.PathLike[str] = "evolution"
    every: int = 1
    layers: Sequence[str] | None = None
    preprocess: Any = None
    go_on: bool = False
    _followed_units: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)
    _recorded_names: set[str] = field(init=False, repr=False, default_factory=set)
    _warned_of: set[str] = field(init=False, repr=False, default_factory=set)
    _attributes: bool = field(init=False, repr=False, default=True)

    def __post_init__(self) -> None:
        whole_number("every", self.every)
        if not isinstance(self.network, nn.Module):
            raise NetworkError(f"a recorder needs the nn.Module that is trained, not a {type(self.network).__name__}")
        self._check_out()
        _check_layers(_unwrapped(self.network), layer_patterns(self.layers) or ())
        network, source = network_from_module(_unwrapped(self.network)), as_source(self.images)
        loader_for(source, preprocessing_of(self.preprocess, network), source.count(), network.model)
        _LIVE_RECORDERS[os.path.realpath(self.out)] = self

    def epoch(self, number: int) -> None:
        """After an epoch, counted in any way that goes up: scan where it is this one's turn."""
        try:
            due = whole_number("the number of an epoch", number, minimum=None) % self.every == 0
        except UnitscopeError as error:
            self._warn(NOT_RECORDED, f"epoch {shortened(number)} {NOT_RECORDED}, and the training goes on: {error}")
            return
        if due:
            self.record(f"epoch-{int(number):03}")

    def record(self, name: str) -> Atlas | None:
        """Scan now, into an atlas of that name; None where that couldn't be done.

        Where this training has one of that name already, of other weights, a number is added to it.
        """
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.simplefilter("always")
            atlas, failure = self._recorded(name)
        for caught in caught_warnings:
            self._warn(str(caught.message), str(caught.message), caught)
        if failure is not None:
            self._warn(
                failure.consequence, f"{shortened(name)} {failure.consequence}, and the training goes on: {failure.reason}"
            )
        return atlas

    def evolution(self) -> Evolution:
        """What was recorded."""
        return Evolution.open(self.out, images=self.images)

    def callback(self) -> Any:
        """A Lightning callback that records after training epochs, on the first process alone."""
        return _callback(self, _lightning_name())

    def _check_out(self) -> None:
        if atlas_names(Path(self.out)) and not self.go_on:
            raise AtlasError(
                f"{str(self.out)!r} holds an evolution already; give another out, or go_on=True where it is this training's"
            )
        other_recorder = _LIVE_RECORDERS.get(os.path.realpath(self.out))
        if other_recorder is not None and not self.go_on:
            raise AtlasError(
                f"another recorder writes to {str(self.out)!r}; give another out, or go_on=True where it is this training's"
            )
        check_writable(Path(self.out) / ORDER_FILE, f"the evolution {str(self.out)!r}")

    def _recorded(self, name: str) -> tuple[Atlas | None, "Failure | None"]:
        """The atlas, and what of it couldn't be done."""
        atlas = None
        try:
            check_atlas_name(name)
            network = _unwrapped(self.network)
            tensor = first_float_tensor(network)
            device = "cpu" if tensor is None else str(tensor.device)
            with fork_random_states(torch.device(device)):
                atlas = self._scan(network_from_module(network), name, device)
                self._attribute(atlas, network_from_module(network), device)
        except Exception as error:
            log.info("recording %s", shortened(name), exc_info=True)
            self._attributes = self._attributes and atlas is None
            return atlas, Failure(NOT_RECORDED if atlas is None else NOT_ATTRIBUTED, _error_text(error))
        return atlas, None

    def _scan(self, network: Network, name: str, device: str) -> Atlas:
        out = Path(self.out)
        if self.go_on or name in self._recorded_names:
            name = _free_name(out, name, network.hash())
        options = {"layers": self.layers, "preprocess": self.preprocess, "device": device}
        atlas = scan_or_reuse(network, self.images, out / name, **options)
        self._recorded_names.add(name)
        write_order(out, [*(earlier for earlier in atlas_names(out) if earlier != name), name])
        return atlas

    def _attribute(self, atlas: Atlas, network: Network, device: str) -> None:
        if not self._followed_units:
            self._followed_units = {layer.name: _random_units(layer) for layer in choose_overview_layers(atlas.layers)}
        if self._attributes:
            attribute_units(atlas, network, self._followed_units, device)

    def _warn(self, topic: str, text: str, caught: warnings.WarningMessage | None = None) -> None:
        """A warning, the first time that it is about this topic: a new one, or one that was `caught` while scanning."""
        if topic not in self._warned_of:
            self._warned_of.add(topic)
            _give_warning(" ".join(text.split()), caught)


_LIVE_RECORDERS: WeakValueDictionary[str, Recorder] = WeakValueDictionary()
"""By the folder that they write to, the recorders of this process that are still in use."""


def _give_warning(text: str, caught: warnings.WarningMessage | None) -> None:
    """Give a warning as the caller's filters will have it; where they make an error of it, a line on stderr."""
    category = UserWarning if caught is None else caught.category
    try:
        if caught is None:
            warnings.warn(text, category, stacklevel=4)
        else:
            warnings.warn_explicit(text, category, caught.filename, caught.lineno)
    except Exception:
        with suppress(Exception):  # a stderr that is closed
            print(f"{category.__name__}: {text}", file=sys.stderr)


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, UnitscopeError) else f"{type(error).__name__}: {first_line(error)}"


def _unwrapped(network: nn.Module) -> nn.Module:
    """What is trained in parallel, alone: what wraps it would wait for the other processes."""
    wrapped = isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner: Any = network.module if wrapped else network
    return cast(nn.Module, inner)


def _check_layers(network: nn.Module, patterns: Sequence[str]) -> None:
    """Raises `LayerNotFound` for a pattern that no module's name answers to, whatever number of call it asks for."""
    names = [name.replace("_orig_mod.", "") for name, _ in network.named_modules()]  # the prefix is torch.compile's
    for pattern in patterns if len(names) > 1 else ():
        if not any(name_matches(name, pattern) or name_matches(name, pattern.partition("#")[0]) for name in names):
            raise LayerNotFound(f"the network has no layer {pattern!r}.{suggestion(pattern, names)}")


def _free_name(out: Path, name: str, weights: str) -> str:
    """The name, or the first with a number added, that has no atlas yet, or one of these weights."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(free for free in names if not (out / free / MANIFEST).exists() or _weights_of(out / free) == weights)


def _weights_of(folder: Path) -> str:
    return str(Atlas(folder).manifest["network"]["hash"])


def _random_units(layer: Layer) -> list[int]:
    """Units to follow, drawn at random before it is known which will fire."""
    generator = random.Random(layer.name)
    return sorted(generator.sample(range(layer.units), min(UNITS_FOLLOWED, layer.units)))


# ── Lightning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _lightning_name() -> str:
    """Lightning's name of the two that is in use: callbacks of the other are strangers to a trainer."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            import_module(name)
        except ImportError:
            continue
        return name
    raise UnitscopeError("a Lightning callback needs Lightning: pip install lightning")


def _callback(recorder: Recorder, lightning: str) -> Any:
    return _callback_class(lightning)(recorder, lightning)


@cache
def _callback_class(lightning: str) -> Any:
    """Made when it is first asked for, since Lightning need not be here; its objects are pickled by how they are made."""

    class Recording(import_module(lightning).Callback):  # type: ignore[misc]
        def __init__(self, recorder: Recorder, lightning: str) -> None:
            self.recorder, self.lightning = recorder, lightning

        def __reduce__(self) -> Any:
            return _callback, (self.recorder, self.lightning)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero:
                self.recorder.epoch(trainer.current_epoch + 1)

    return Recording
