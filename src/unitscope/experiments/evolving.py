"""evolve() and Recorder: one network at several moments of its training (Zeiler & Fergus 2014, section 4, figure 4).

An *evolution* is a folder with an atlas for each moment, all of the same layers and images.
"""

import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.atlas.pictures import Drawn, box_drawn, firing_units, projections, spread_layers
from unitscope.atlas.schema import MANIFEST
from unitscope.attribution import attribute
from unitscope.drawing import Moment, Strip, draw_strips
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.experiments.tables import write_table
from unitscope.images import as_source, count_of, keys_hash
from unitscope.networks import Network, first_tensor, given_network, load_network
from unitscope.records import Layer, Peak
from unitscope.scanning import preprocessing_said, scan

METHOD = "deconvnet"
ORDER = "evolution.json"
UNITS_SHOWN = 4
UNITS_FOLLOWED = 8

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        ("overlap", pa.float32()),
        ("jumps", pa.float32()),
    ]
)


class Evolution:
    """The atlases of one network at several moments, by name, in the order in which they were made or given.

    Raises `AtlasError` where the folder holds none, or where they are not of the same layers and images.
    """

    def __init__(self, folder: str | os.PathLike[str], images: Any = None) -> None:
        self.folder = Path(folder)
        self.atlases = {name: Atlas(self.folder / name, images=images) for name in _moments(self.folder)}
        if not self.atlases:
            raise AtlasError(f"{str(folder)!r} holds no atlases; make them with: unitscope evolve CHECKPOINT … --out {folder}")
        first, *others = self.atlases.items()
        for name, atlas in others:
            if [layer.name for layer in atlas.layers] != [layer.name for layer in first[1].layers]:
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} has other layers than {first[0]!r}")
            if atlas.manifest["images"].get("hash") != first[1].manifest["images"].get("hash"):
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} is of other images than {first[0]!r}")

    @property
    def last(self) -> Atlas:
        return list(self.atlases.values())[-1]

    def settling(self) -> pa.Table:
        """How far each layer stays as it was from one moment to the next, written as `evolution.parquet`.

        `overlap` is the share of a unit's peaks that lie in the same images in both, the mean over the units with peaks in either;
        `jumps` the share of units whose strongest image is another. Units that show no preference in one of them are left out. In the
        paper lower layers settle first.
        """
        rows = []
        for (before, one), (after, two) in pairwise(self.atlases.items()):
            for layer in one.layers:
                mute = [unit for atlas in (one, two) for unit, tie in atlas.ties(layer.name).items() if tie.wholly]
                earlier, later = (atlas.peaks(layer.name).filter(~pc.field("unit").isin(mute)) for atlas in (one, two))
                overlap, jumps = _change(earlier, later, layer.units)
                rows.append({"layer": layer.name, "before": before, "after": after, "overlap": overlap, "jumps": jumps})
        return write_table(pa.Table.from_pylist(rows, schema=SCHEMA), self.folder / "evolution.parquet")

    def figure(self, layers: Sequence[str] | None = None, units: Sequence[int] | None = None, size_px: int = 64) -> Image.Image:
        """A row a unit and a column a moment: its strongest patch there and, where it was made, the projection of that below.

        A bar marks a jump: the strongest image is another than in the moment before. Without `units`, four a layer of those that
        fire in the last moment.
        """
        chosen = [self.last.layer(name) for name in layers] if layers else spread_layers(self.last.layers)
        strips = [
            Strip(layer.name, unit, self._moments(layer, unit, size_px))
            for layer in chosen
            for unit in (units if units is not None else self._shown(layer))
        ]
        return draw_strips(strips, list(self.atlases), size_px)

    def _shown(self, layer: Layer) -> list[int]:
        """Units that fire in the end: of those with projections, where there are such."""
        projected = {unit for name, unit in self._projected.get(list(self.atlases)[-1], ()) if name == layer.name}
        return firing_units(self.last, layer, 0, projected or None)[:UNITS_SHOWN]

    @cached_property
    def _projected(self) -> dict[str, set[tuple[str, int]]]:
        """Layer and number of the units that have projections, by moment."""
        return {name: atlas.attributed(METHOD) for name, atlas in self.atlases.items() if METHOD in atlas.methods}

    def _moments(self, layer: Layer, unit: int, size_px: int) -> list[Moment]:
        moments: list[Moment] = []
        image = None
        for name, atlas in self.atlases.items():
            peak = next((Peak(**row) for row in atlas.peaks(layer.name, unit).slice(0, 1).to_pylist()), None)
            if peak is None:
                moments.append(Moment(None, None, jumps=False))
                continue
            kind = box_drawn(atlas, atlas.layer(layer.name), "auto")
            projection = None
            if (layer.name, unit) in self._projected.get(name, ()):
                projection = projections(atlas, [peak], kind, Drawn("auto", METHOD, size_px))[unit, peak.rank]
            moments.append(Moment(atlas.patch(peak, kind, size_px), projection, jumps=image not in (None, peak.image)))
            image = peak.image
        return moments


def evolve(
    model: str,
    checkpoints: Sequence[str | os.PathLike[str]],
    images: Any,
    out: str | os.PathLike[str] = "evolution",
    *,
    layers: Sequence[str] | None = None,
    preprocess: Any = None,
    device: str = "auto",
    on_checkpoint: Callable[[str], None] | None = None,
) -> Evolution:
    """Scan one network with the weights of several checkpoints, an atlas each in `out`, and project some units of each layer.

    `model` is a model string, `checkpoints` are state dicts, from early to late; an atlas has the name of its file. What is there
    already of the same weights, images and layers is left alone. `on_checkpoint` is told the name of each before it begins.

    Raises as `scan` does, and `AtlasError` where two checkpoints have one name, or where another atlas is in the way.
    """
    names = [Path(checkpoint).stem for checkpoint in checkpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AtlasError(
            f"two checkpoints have the name {twice!r}; an atlas is named for its file, so give the files names of their own"
        )
    for name, checkpoint in zip(names, checkpoints, strict=True):
        if on_checkpoint is not None:
            on_checkpoint(name)
        network = load_network(model, str(checkpoint), 0)
        _scanned(network, images, Path(out) / name, layers=layers, preprocess=preprocess, device=device)
    _write_moments(Path(out), names)
    evolution = Evolution(out, images=images)
    last = evolution.last
    followed = {layer.name: firing_units(last, layer, 0)[:UNITS_SHOWN] for layer in spread_layers(last.layers)}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        _project(evolution.atlases[name], load_network(model, str(checkpoint), 0), followed, device)
    return evolution


@dataclass(slots=True)
class Recorder:
    """Scans a network in between, while it is trained, always over the same images; the training doesn't notice.

    Call `epoch` after every epoch, or give `callback()` to Lightning. Weights, gradients, train and eval modes and the random
    states of Python, numpy and torch are afterwards as they were. `images`, `layers` and `preprocess` are those of `scan`; `every`
    how many epochs lie between scans. Of each layer some units are brought down to pixels, as the figure shows them.

    Raises as `scan` does, and `AtlasError` where `out` holds an evolution already, unless this training is to `go_on` with it.
    """

    network: nn.Module
    images: Any
    out: str | os.PathLike[str] = "evolution"
    every: int = 1
    layers: Sequence[str] | None = None
    preprocess: Any = None
    go_on: bool = False
    _followed: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UnitscopeError(f"every must be at least 1, not {self.every}")
        if _moments(Path(self.out)) and not self.go_on:
            raise AtlasError(
                f"{str(self.out)!r} holds an evolution already; give another out, or go_on=True where it is this training's"
            )

    def epoch(self, number: int) -> None:
        """After an epoch, counted in any way that goes up: scan where it is this one's turn."""
        if number % self.every == 0:
            self.record(f"epoch-{number:03}")

    def record(self, name: str) -> Atlas:
        """Scan now, into an atlas of that name."""
        wrapped = isinstance(self.network, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        network: Any = self.network.module if wrapped else self.network  # what wraps it would wait for the other processes
        tensor = first_tensor(network)
        device = "cpu" if tensor is None else str(tensor.device)
        with _unnoticed(tensor):
            known = given_network(network)
            place = Path(self.out) / name
            atlas = _scanned(known, self.images, place, layers=self.layers, preprocess=self.preprocess, device=device)
            _write_moments(Path(self.out), [*(one for one in _moments(Path(self.out)) if one != name), name])
            if not self._followed:
                self._followed = {layer.name: _followed(layer) for layer in spread_layers(atlas.layers)}
            _project(atlas, known, self._followed, device)
        return atlas

    def evolution(self) -> Evolution:
        """What was recorded."""
        return Evolution(self.out, images=self.images)

    def callback(self) -> Any:
        """A Lightning callback that records after training epochs, on the first process alone."""
        lightning, recorder = _lightning(), self

        class Recording(lightning.Callback):  # type: ignore[misc, name-defined]
            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                if trainer.is_global_zero:
                    recorder.epoch(trainer.current_epoch + 1)

        return Recording()


def _lightning() -> Any:
    """Lightning under the one of its two names that is in use: callbacks of the other are strangers to a trainer."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise UnitscopeError("a Lightning callback needs Lightning: pip install lightning")


def _followed(layer: Layer) -> list[int]:
    """Units to follow, drawn at random before it is known which will fire."""
    chance = random.Random(layer.name)
    return sorted(chance.sample(range(layer.units), min(UNITS_FOLLOWED, layer.units)))


def _scanned(network: Network, images: Any, place: Path, **options: Any) -> Atlas:
    """The atlas at that place: made now, or the one that is there if it is of the same weights, images and layers."""
    if not (place / MANIFEST).exists():
        return scan(network, images, place, **options)
    atlas, source = Atlas(place, images=images), as_source(images)
    said, patterns = atlas.manifest, options["layers"]
    preprocessing = preprocessing_said(options["preprocess"], network)
    same = {
        "weights": said["network"]["hash"] == network.hash(),
        "images": said["images"].get("hash") == keys_hash(source, count_of(source) or 0),
        "layers": said["layers"] == (list(patterns) if patterns else None),
        "preprocessing": atlas.preprocessing == preprocessing or atlas.preprocessing is None,
    }
    other = [name for name, agrees in same.items() if not agrees]
    if other:
        raise AtlasError(f"{str(place)!r} holds an atlas of other {', '.join(other)}; give another out, or remove it first")
    return atlas


def _project(atlas: Atlas, network: Network, units: dict[str, list[int]], device: str) -> None:
    """Deconvnet projections of some units; those that are dead at that moment have none."""
    for layer, numbers in units.items():
        firing = set(atlas.peaks(layer)["unit"].to_pylist())
        chosen = [unit for unit in numbers if unit in firing]
        if chosen:
            attribute(atlas, METHOD, network, layers=[layer], units=chosen, device=device)


@contextmanager
def _unnoticed(tensor: Tensor | None) -> Iterator[None]:
    """The random states of Python, numpy and torch, on the tensor's device too, are afterwards as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    device = torch.device("cpu") if tensor is None else tensor.device
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def _moments(folder: Path) -> list[str]:
    """The names of the atlases in a folder: in the order that is written there, or else by name, where numbers count as numbers."""
    there = sorted((path.parent.name for path in folder.glob("[!.]*/" + MANIFEST)), key=_by_numbers)
    order = json.loads((folder / ORDER).read_text()) if (folder / ORDER).exists() else []
    return [*(name for name in order if name in there), *(name for name in there if name not in order)]


def _write_moments(folder: Path, names: Sequence[str]) -> None:
    aside = folder / f".{ORDER}"
    aside.write_text(json.dumps(list(names)))
    os.replace(aside, folder / ORDER)


def _change(one: pa.Table, two: pa.Table, units: int) -> tuple[float, float]:
    """Mean overlap of the units' images, and the share of units whose strongest image is another."""
    sets = [{(u, i) for u, i in zip(t["unit"].to_pylist(), t["image"].to_pylist(), strict=True)} for t in (one, two)]
    shared, first, second = (np.bincount([unit for unit, _ in pairs], minlength=units) for pairs in (sets[0] & sets[1], *sets))
    most = np.maximum(first, second)
    strongest = [
        {u: i for u, i, r in zip(*(t[c].to_pylist() for c in ("unit", "image", "rank")), strict=True) if r == 1}
        for t in (one, two)
    ]
    both = strongest[0].keys() & strongest[1].keys()
    overlap = float((shared[most > 0] / most[most > 0]).mean()) if most.any() else float("nan")
    jumps = sum(strongest[0][unit] != strongest[1][unit] for unit in both) / len(both) if both else float("nan")
    return overlap, jumps


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key by which `epoch-2` comes before `epoch-10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
