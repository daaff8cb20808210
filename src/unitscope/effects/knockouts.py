"""knock_out(): units taken away for real, and what that does to each class."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitscope.arguments import unit_numbers
from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.tables import KNOCKOUTS
from unitscope.effects.opening import EffectOptions, EffectSession, baseline_of, open_effects, passed_on_shapes
from unitscope.effects.outputs import Output, probabilities
from unitscope.effects.replay import ModuleCall, Recording, find_unused, recording, replaying
from unitscope.errors import ImagesError
from unitscope.layers import TracedLayer, outputs_watched
from unitscope.networks import Network
from unitscope.session.loader import LoadedImage
from unitscope.session.noise import deviation
from unitscope.session.session import ImageBatch

log = logging.getLogger(__name__)

BATCH_IMAGES = 8
"""How many images are loaded together; each group of units makes copies of them."""
IMAGES_AT_ONCE = 32
"""How many copies of images go through the network together."""
SAME = 1e-4
"""How far scores of a replayed pass may be from those of a whole one, as a share of the highest, for rounding's sake."""


def knock_out(
    atlas: Atlas,
    units: "Mapping[str, Sequence[int] | Sequence[Sequence[int]]]",
    network: "nn.Module | Network | None" = None,
    *,
    replacement: str = "mean",
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
    **options: Unpack[EffectOptions],
) -> pa.Table:
    """What taking units away does to each class: the rows of the table `knockouts` that this adds.

    `units` are numbers of units by layer; those of a layer are taken away together. In place of a list of numbers there may be a list of such
    lists: groups that are taken away one after the other. A unit that is taken away passes on its mean map over the images, which
    `measure_effects` has kept, or `zero`. What comes before the layer is computed once for all groups. `options` say which images and scores
    are meant (see `EffectOptions`). Rows of the same units that are there already are replaced.

    Raises `AtlasError` for units that a layer doesn't have, and where mean maps are missing.
    """
    check_table_writable(KNOCKOUTS, atlas)
    groups = {
        atlas.layer(layer).name: [
            list(dict.fromkeys(atlas.layer(layer).unit_numbers(group) or ())) for group in _as_groups(of_layer)
        ]
        for layer, of_layer in units.items()
    }
    rows: list[dict[str, Any]] = []
    with open_effects(atlas, network, device, options, list(groups)) as opened:
        shapes = passed_on_shapes(opened.session)
        baselines = [
            baseline_of(atlas, traced.name, shape, replacement)
            for traced, shape in zip(opened.session.layers, shapes, strict=True)
        ]
        for traced, baseline in zip(opened.session.layers, baselines, strict=True):
            of_layer = LayerKnockouts(opened, traced, baseline, groups[traced.name])
            for group, drops in zip(groups[traced.name], of_layer.drops(on_images), strict=True):
                named = {"layer": traced.name, "units": " ".join(map(str, group)), "replacement": replacement}
                rows += [named | row for row in drops.rows()]
        return add_knockouts(atlas, rows, opened.parameters)


def add_knockouts(atlas: Atlas, rows: Sequence[dict[str, Any]], parameters: dict[str, Any]) -> pa.Table:
    """Put rows into the table `knockouts`, in place of those of the same units that are there; those that were put in.

    Rows of other images or scores than these go: a table says one thing.
    """
    added = pa.Table.from_pylist(list(rows), schema=KNOCKOUTS.schema)
    summary = next((table for table in atlas.tables() if table.name == KNOCKOUTS.name and table.problem is None), None)
    kept: list[dict[str, Any]] = []
    if summary is not None and summary.provenance is not None and dict(summary.provenance.parameters) == parameters:
        new = {(row["layer"], row["units"], row["replacement"]) for row in rows}
        kept = [
            row for row in atlas.table(KNOCKOUTS.name).to_pylist() if (row["layer"], row["units"], row["replacement"]) not in new
        ]
    table = pa.concat_tables([pa.Table.from_pylist(kept, schema=KNOCKOUTS.schema), added])
    write_table(table, KNOCKOUTS, atlas, parameters=parameters, versions={"torch": torch.__version__})
    return added


def _as_groups(units: Any) -> list[Any]:
    """Groups of units: a flat list is one. Raises `AtlasError` where there are none."""
    units = list(units) if isinstance(units, Iterable) and not isinstance(units, str) else units
    if isinstance(units, list) and units and all(isinstance(group, Iterable) for group in units):
        return units
    return [unit_numbers(units)]


@dataclass(frozen=True, slots=True)
class Drop:
    """What taking units away did to one image: its class, how far the class's score and probability fell, and whether it came first."""

    class_: int
    score: float
    probability: float
    right_before: bool
    right_after: bool


@dataclass
class ClassDrops:
    """Drops by class."""

    by_class: dict[int, list[Drop]] = field(default_factory=dict)

    def add(self, drops: Iterable[Drop]) -> None:
        """Take in some images."""
        for drop in drops:
            self.by_class.setdefault(drop.class_, []).append(drop)

    def rows(self) -> list[dict[str, Any]]:
        """The columns of `knockouts` that are figures, a row a class."""
        rows = []
        for class_, drops in sorted(self.by_class.items()):
            scores = np.array([drop.score for drop in drops])
            rows.append(
                {
                    "class": class_,
                    "images": len(drops),
                    "logit_drop": float(scores.mean()),
                    "standard_error": float(scores.std(ddof=1) / sqrt(len(drops))) if len(drops) > 1 else None,
                    "probability_drop": float(np.mean([drop.probability for drop in drops])),
                    "right_before": float(np.mean([drop.right_before for drop in drops])),
                    "right_after": float(np.mean([drop.right_after for drop in drops])),
                }
            )
        return rows


@dataclass
class LayerKnockouts:
    """Takes groups of one layer's units away in batches of images, on each replica of a session."""

    opened: EffectSession
    layer: TracedLayer
    baseline: Tensor
    groups: Sequence[Sequence[int]]
    _runs: "dict[int, KnockoutRuns]" = field(default_factory=dict)

    def drops(self, on_images: Callable[[int], None] | None) -> "list[ClassDrops]":
        """What became of all images, by group. Raises `ImagesError` where none can be read."""
        found = [ClassDrops() for _ in self.groups]
        batches = self.opened.session.all_batches(BATCH_IMAGES)
        for of_batch in self.opened.session.run_batches(batches, self.run, to_output=True):
            for of_group, drops in zip(of_batch, found, strict=True):
                drops.add(of_group)
            if on_images is not None:
                on_images(len(of_batch[0]))
        if not found[0].by_class:
            raise ImagesError("no image can be read, so there is nothing to see without these units")
        return found

    def run(self, replica: nn.Module, batch: ImageBatch, loaded: list[LoadedImage]) -> list[list[Drop]]:
        """By group, what became of each image that can be read."""
        readable = [image for image in loaded if image.pixels is not None]
        if not readable:
            return [[] for _ in self.groups]
        session = self.opened.session
        runs = self._runs.get(id(replica))
        if runs is None:
            runs = KnockoutRuns(replica, self.layer, self.baseline.to(session.device), self.opened.output)
            self._runs[id(replica)] = runs
        before, after = runs.scores(session.inputs(readable), self.groups)
        classes = self.opened.classes_of(readable, before)
        return [drops_of(before, of_group, classes) for of_group in after]


def drops_of(before: Tensor, after: Tensor, classes: Tensor) -> list[Drop]:
    """What became of each image, from its scores before and after."""
    of_class = classes[:, None]
    columns = (
        classes,
        (before - after).gather(1, of_class)[:, 0],
        (probabilities(before) - probabilities(after)).gather(1, of_class)[:, 0],
        before.argmax(1) == classes,
        after.argmax(1) == classes,
    )
    return [Drop(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass
class KnockoutRuns:
    """Runs of one replica of a network with groups of one layer's units taken away: they pass on `baseline`, of shape (unit, cell)."""

    network: nn.Module
    layer: TracedLayer
    baseline: Float[Tensor, "unit cell"]
    output: Output
    images_at_once: int = IMAGES_AT_ONCE
    _unused: frozenset[ModuleCall] | None = None
    _can_replay: bool = True

    def scores(
        self, images: Tensor, groups: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "image score"], Float[Tensor, "group image score"]]:
        """The scores of the images as they are, and with each group of units taken away."""
        with torch.no_grad():
            with recording(self.network, self.layer, len(images), self._unused or frozenset()) as kept:
                before = self.output.scores(self.network(images))
            if self._unused is None:
                self._unused, self._can_replay = self._try_replay(kept, images, before)
                kept.unused = self._unused
            groups_at_once = max(1, self.images_at_once // len(images))
            after = []
            for start in range(0, len(groups), groups_at_once):
                chunk = groups[start : start + groups_at_once]
                copies = torch.cat([images] * len(chunk))
                with outputs_watched(self.network, [self.layer], self._without(chunk, len(images))):
                    if self._can_replay:
                        with replaying(self.network, kept, len(chunk)):
                            returned = self.network(copies)
                    else:
                        returned = self.network(copies)
                after.append(self.output.scores(returned).unflatten(0, (len(chunk), len(images))))
        return before, torch.cat(after)

    def _try_replay(self, kept: Recording, images: Tensor, before: Tensor) -> tuple[frozenset[ModuleCall], bool]:
        """What nobody looks at, and whether copies that begin at the layer give what whole passes give: where images don't come first in what a
        module gives, they don't."""

        def agrees(returned: Any) -> bool:
            scores = self.output.scores(returned)
            return len(scores) == 2 * len(images) and deviation(scores, torch.cat([before] * 2)) <= SAME

        try:
            kept.unused, returned = find_unused(self.network, kept, images)
            if not agrees(returned):
                return frozenset(), False
            with replaying(self.network, kept, 2):
                return kept.unused, agrees(self.network(torch.cat([images] * 2)))
        except Exception:  # whatever a network does with copies that lie in another way
            log.debug("copies can't begin at layer %s", self.layer.name, exc_info=True)
            return frozenset(), False

    def _without(self, groups: Sequence[Sequence[int]], images: int) -> Callable[[int, Tensor], Tensor]:
        """What changes the layer's output: each copy of the images has lost a group of units."""
        device = self.baseline.device
        pairs = [(copy * images + image, unit) for copy, group in enumerate(groups) for image in range(images) for unit in group]
        image, unit = torch.tensor(pairs, device=device).T

        def change(_: int, output: Tensor) -> Tensor:
            return self.layer.layout.with_units(output, image, unit, self.baseline[unit])

        return change
