"""Why does a network give this picture this class? What every unit does to the class's score in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.atlas.meaning import read_meanings
from unitscope.atlas.tables import EFFECT_LAYERS
from unitscope.attribution.gradient_checkpoints import keep_checkpoint_graphs
from unitscope.effects.gradients import overwritten_layers, read_gradients
from unitscope.effects.opening import baseline_of, passed_on_shapes
from unitscope.effects.outputs import Classes, Output, probabilities
from unitscope.errors import AtlasError
from unitscope.images import prepare
from unitscope.layers import outputs_watched
from unitscope.networks import Network
from unitscope.networks.precision import exact_inference, plain_tensors
from unitscope.records import ClassChange, ClassScore, ImageExplanation, LayerEffects, UnitEffect
from unitscope.session.noise import noise_images
from unitscope.session.session import Session
from unitscope.session.stored import atlas_session

TOP_CLASSES = 5
UNITS_EACH_WAY = 12
"""How many units of a layer are kept that raise a score, and how many that lower it."""

TakenAway = Mapping[str, Sequence[int]]
"""Units that pass on their mean maps, by layer."""


@contextmanager
def open_explainer(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    *,
    classes: Any = None,
    output: Any = None,
    device: str = "auto",
) -> Iterator["Explainer"]:
    """What explains images as displayed, for as long as the block lasts; it may be called from several threads.

    Raises `AtlasError` where the atlas has no table `mean_maps` (`measure_effects` makes it), or was made from tensors.
    """
    if atlas.preprocessing is None:
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} was made from tensors; there is no known way from an image to its input"
        )
    exact = {row["layer"]: bool(row["exact"]) for row in atlas.table(EFFECT_LAYERS.name).to_pylist()}
    with plain_tensors(), keep_checkpoint_graphs():
        session = atlas_session(atlas, network, device)
        yield Explainer(atlas, session, Output.of(output), Classes.of(atlas, classes), exact)


@dataclass
class Explainer:
    """A network opened to say why it gives images their classes."""

    atlas: Atlas
    session: Session
    output: Output
    classes: Classes
    exact: Mapping[str, bool]
    _baselines: list[Tensor] = field(default_factory=list)
    _overwritten: frozenset[int] | None = None
    _lock: Lock = field(default_factory=Lock)

    def explain(
        self, image: Image.Image, explained: str | None = None, against: str | None = None, taken_away: TakenAway | None = None
    ) -> ImageExplanation:
        """What every unit does to the score of a class, the predicted one unless told otherwise, less that of a second one, if any.

        Classes are given by name, WordNet id or position. Units that are `taken_away` pass on their mean maps throughout. Raises `AtlasError`
        for a class that doesn't exist.
        """
        with self._lock, plain_tensors():
            return self._explain(image, explained, against, taken_away or {})

    def _explain(self, image: Image.Image, explained: str | None, against: str | None, taken_away: TakenAway) -> ImageExplanation:
        session = self.session
        self._prepare()
        inputs = session.loader.normalise([prepare(image, self.atlas.preprocessing)], session.input_format)  # type: ignore[arg-type]
        found: dict[str, Any] = {}

        def score(returned: Any) -> Tensor:
            scores = self.output.scores(returned)
            self.classes.check_count(scores.shape[1])
            found["scores"] = scores.detach()[0]
            found["explained"] = int(scores[0].argmax()) if explained is None else self.classes.find(explained, scores.shape[1])
            found["against"] = None if against is None else self.classes.find(against, scores.shape[1])
            if found["against"] == found["explained"]:
                name = self.classes.name(found["explained"])
                raise AtlasError(f"{name!r} can't be held against itself; choose another class")
            chosen = scores[:, found["explained"]]
            return chosen if found["against"] is None else chosen - scores[:, found["against"]]

        def read(index: int, passed_on: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
            deviations = (passed_on - self._baselines[index]) * gradient
            return deviations[0], (passed_on * gradient).sum()

        with exact_inference(session.plain_copy, session.device), self._without(taken_away):
            read_layers = read_gradients(
                session.plain_copy, session.layers, inputs, score, read, self._overwritten or frozenset()
            )
        class_scores = self._class_scores(found["scores"])
        against = None if found["against"] is None else class_scores[found["against"]]
        explanation = ImageExplanation(_most_probable(class_scores), class_scores[found["explained"]], against, [])
        if taken_away:
            explanation.changes.extend(_changes(self._whole_network(inputs), class_scores, explanation))
        explanation.layers.extend(
            self._layer_effects(index, *of_layer, explanation.score)
            for index, of_layer in enumerate(read_layers)
            if of_layer is not None
        )
        return explanation

    def _whole_network(self, inputs: Tensor) -> list[ClassScore]:
        """What the network says with all its units."""
        with torch.no_grad(), exact_inference(self.session.plain_copy, self.session.device):
            return self._class_scores(self.output.scores(self.session.plain_copy(inputs))[0])

    def _layer_effects(self, index: int, deviations: Tensor, passed_on: Tensor, score: float) -> LayerEffects:
        traced = self.session.layers[index]
        effects = deviations.sum(1).cpu().numpy().astype(np.float64)
        order = np.argsort(-effects, kind="stable")
        total = float(np.abs(effects).sum())

        def described(units: NDArray[np.integer]) -> list[UnitEffect]:
            return [
                UnitEffect(unit, float(effects[unit]), abs(float(effects[unit])) / total, self._map(index, deviations[unit]))
                for unit in units.tolist()
            ]

        raising, lowering = order[effects[order] > 0][:UNITS_EACH_WAY], order[::-1][effects[order[::-1]] < 0][:UNITS_EACH_WAY]
        is_exact = self.exact.get(traced.name, False)
        rest = score - float(passed_on) if is_exact else None
        return LayerEffects(traced.name, described(raising), described(lowering), is_exact, rest)

    def _map(self, index: int, of_cells: Tensor) -> NDArray[np.float32] | None:
        """Where a unit has its effect, by cell of its activation map; None where cells stand nowhere."""
        traced = self.session.layers[index]
        if not traced.layout.is_spatial or traced.layer.map_height * traced.layer.map_width == 1:
            return None
        cells: NDArray[np.float32] = of_cells.float().cpu().numpy()
        grid = traced.layout.grid
        shape = (traced.layer.map_height, traced.layer.map_width)
        if grid is not None:
            cells = cells[grid.ravel()].reshape(grid.shape)
        elif cells.size == shape[0] * shape[1]:
            cells = cells.reshape(shape)
        else:
            return None
        return cells

    def _class_scores(self, scores: Tensor) -> list[ClassScore]:
        shares = probabilities(scores[None])[0].tolist()
        return [
            ClassScore(position, self.classes.name(position), score, share)
            for position, (score, share) in enumerate(zip(scores.tolist(), shares, strict=True))
        ]

    @contextmanager
    def _without(self, taken_away: TakenAway) -> Iterator[None]:
        """While the block lasts, these units of the plain copy pass on their mean maps."""
        numbers = {traced.name: number for number, traced in enumerate(self.session.layers)}
        for layer, units in taken_away.items():
            self.atlas.layer(layer).check_units(units)
        layers = [self.session.layers[numbers[layer]] for layer in taken_away]
        units_of = [
            torch.tensor(sorted(set(units)), dtype=torch.long, device=self.session.device) for units in taken_away.values()
        ]

        def change(index: int, output: Tensor) -> Tensor:
            units = units_of[index]
            baseline = self._baselines[numbers[layers[index].name]][units]
            return layers[index].layout.with_units(output, torch.zeros_like(units), units, baseline)

        with outputs_watched(self.session.plain_copy, layers, change):
            yield

    def _prepare(self) -> None:
        """Read the mean maps, before the first image."""
        if self._overwritten is not None:
            return
        session, noise = self.session, noise_images(self.session.trace, 1)
        shapes = passed_on_shapes(session)
        self._baselines = [
            baseline_of(self.atlas, traced.name, shape, "mean").to(session.device)
            for traced, shape in zip(session.layers, shapes, strict=True)
        ]
        with exact_inference(session.plain_copy, session.device):
            self._overwritten = overwritten_layers(session.plain_copy, session.layers, noise)


def _most_probable(class_scores: Sequence[ClassScore]) -> list[ClassScore]:
    return sorted(class_scores, key=lambda known: -known.score)[:TOP_CLASSES]


def _changes(before: Sequence[ClassScore], after: Sequence[ClassScore], explanation: ImageExplanation) -> Iterator[ClassChange]:
    asked = [known for known in (explanation.explained, explanation.against) if known is not None]
    positions = {known.position for known in (*_most_probable(before), *explanation.top, *asked)}
    for position in sorted(positions, key=lambda position: -before[position].score):
        yield ClassChange(before[position], after[position])


def explanation_as_json(atlas: Atlas, explanation: ImageExplanation) -> dict[str, Any]:
    """The same as plain data, with the units' names and scores; maps are lists of rows."""

    def described(layer: str, units: Sequence[UnitEffect]) -> list[dict[str, Any]]:
        meanings = read_meanings(atlas, layer) if units else []
        return [
            {"name": meanings[unit.unit].name, "predictability": meanings[unit.unit].predictability}
            | asdict(unit)
            | {"map": None if unit.map is None else unit.map.tolist()}
            for unit in units
        ]

    return {
        "top": [asdict(known) for known in explanation.top],
        "explained": asdict(explanation.explained),
        "against": None if explanation.against is None else asdict(explanation.against),
        "score": explanation.score,
        "changes": [asdict(change) for change in explanation.changes],
        "layers": [
            {
                "layer": of_layer.layer,
                "exact": of_layer.exact,
                "rest": of_layer.rest,
                "raising": described(of_layer.layer, of_layer.raising),
                "lowering": described(of_layer.layer, of_layer.lowering),
            }
            for of_layer in explanation.layers
        ],
    }
