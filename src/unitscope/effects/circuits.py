"""find_circuits(): which units feed each unit, in the images of its own peaks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.atlas import Atlas, check_table_writable, tables_by_layer
from unitscope.atlas.tables import CIRCUITS
from unitscope.attribution.gradient_checkpoints import keep_checkpoint_graphs
from unitscope.errors import NetworkError, first_line
from unitscope.layers import TracedLayer, outputs_watched, tapped
from unitscope.networks import Network
from unitscope.networks.gradients import ContiguousNormGradients
from unitscope.records import Layer, Peak
from unitscope.session.loader import LoadedImage
from unitscope.session.replica_threads import results_in_order
from unitscope.session.replicas import images_in_cache
from unitscope.session.session import Session
from unitscope.session.stored import open_atlas_session

STRONGEST = 20
"""How many units are kept each way, up and down, of all that feed a unit."""
BATCH_IMAGES = 8
OTHERS = -1
"""The number that stands for all units of a layer without a row of their own."""

Floats = NDArray[np.floating]


def find_circuits(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    *,
    layers: Sequence[str] | None = None,
    device: str = "auto",
    on_units: Callable[[int], None] | None = None,
) -> pa.Table:
    """Which units of earlier layers feed every unit of these layers, or of all, as the table `circuits` of the atlas.

    In the image of each of its peaks, a unit's value is taken apart: what each unit of an earlier layer passes on, times the gradient of the
    value with respect to that, summed over cells; the mean over the peaks is kept. Only direct ways count, which pass no other layer of the
    atlas, so that contributions and biases add up to the value wherever what lies between is piecewise linear without biases of its own. The
    twenty strongest each way have rows, and the rest of each layer one.

    A run that was stopped goes on with the next layer. Raises `NetworkError` where no gradient comes down.
    """
    check_table_writable(CIRCUITS, atlas)
    chosen = atlas.layers_matching(layers)
    with open_atlas_session(atlas, network, device) as session, keep_checkpoint_graphs():
        _ = atlas.source  # found once, before threads ask for it
        parameters = {"weights": atlas.manifest["network"]["hash"]}
        with tables_by_layer((CIRCUITS,), atlas, chosen, parameters=parameters, versions={"torch": torch.__version__}) as (
            circuits,
        ):
            for layer in chosen:
                if not circuits.has(layer):
                    circuits.add(layer, UnitCircuits(session, atlas, layer).of_units())
                if on_units is not None:
                    on_units(layer.units)
    return atlas.table(CIRCUITS.name)


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer that comes before the one that is fed, and the columns that its units have among those of all such layers."""

    traced: TracedLayer
    columns: slice


@dataclass(frozen=True)
class UnitCircuits:
    """What feeds the units of one layer."""

    session: Session
    atlas: Atlas
    layer: Layer

    @property
    def _target(self) -> TracedLayer:
        return next(traced for traced in self.session.layers if traced.name == self.layer.name)

    @property
    def _sources(self) -> list[SourceLayer]:
        sources: list[SourceLayer] = []
        start = 0
        for traced in self.session.layers:
            if traced.name == self.layer.name:
                break
            sources.append(SourceLayer(traced, slice(start, start := start + traced.layer.units)))
        return sources

    def of_units(self, units: Sequence[int] | None = None) -> pa.Table:
        """The rows of `circuits` for these units, or for all."""
        chosen = None if units is None else set(units)
        peaks = [Peak(**row) for row in self.atlas.peaks(self.layer.name).to_pylist()]
        peaks = [peak for peak in peaks if np.isfinite(peak.value) and (chosen is None or peak.unit in chosen)]
        width = sum(source.traced.layer.units for source in self._sources)
        if not peaks or not width:
            return CIRCUITS.schema.empty_table()
        numbers = {unit: row for row, unit in enumerate(sorted({peak.unit for peak in peaks}))}
        sums, counts = np.zeros((len(numbers), width)), np.zeros(len(numbers), dtype=np.int64)
        for peak, contributions in self._contributions(peaks):
            sums[numbers[peak.unit]] += contributions
            counts[numbers[peak.unit]] += 1
        means = sums / np.maximum(counts, 1)[:, None]
        rows = [row for unit, number in numbers.items() for row in self._rows(unit, means[number], int(counts[number]))]
        return pa.Table.from_pylist(rows, schema=CIRCUITS.schema)

    def _rows(self, unit: int, contributions: Floats, peaks: int) -> Iterator[dict[str, Any]]:
        """The strongest each way and, layer by layer, all others."""
        total = float(np.abs(contributions).sum())
        if not total:
            return
        order = np.argsort(contributions, kind="stable")
        own = [
            *order[:STRONGEST][contributions[order[:STRONGEST]] < 0],
            *order[-STRONGEST:][contributions[order[-STRONGEST:]] > 0],
        ]
        is_own = np.zeros(len(contributions), dtype=bool)
        is_own[own] = True
        for source in self._sources:
            of_layer, is_shown = contributions[source.columns], is_own[source.columns]
            found = [(int(number), float(of_layer[number])) for number in np.flatnonzero(is_shown)]
            rest = of_layer[~is_shown]
            if rest.any():
                found.append((OTHERS, float(rest.sum())))
            for number, contribution in found:
                size = float(np.abs(rest).sum()) if number == OTHERS else abs(contribution)
                yield {
                    "layer": self.layer.name, "unit": unit, "source_layer": source.traced.name, "source_unit": number,
                    "contribution": contribution, "share": size / total, "peaks": peaks,
                }  # fmt: skip

    def _contributions(self, peaks: Sequence[Peak]) -> Iterator[tuple[Peak, Floats]]:
        """For each peak what every unit of the layers before contributes to its value."""
        by_image: dict[int, list[Peak]] = {}
        for peak in sorted(peaks, key=lambda peak: (peak.image, peak.unit, peak.rank)):
            by_image.setdefault(peak.image, []).append(peak)
        images = sorted(by_image.values(), key=len)  # images with as many peaks run together
        length = images_in_cache(self.session.trace, BATCH_IMAGES)
        batches = [images[start : start + length] for start in range(0, len(images), length)]
        loader = self.session.loader
        with self.session.running() as threads:

            def submit(batch: list[list[Peak]]) -> Any:
                loaded = [loader.load(loader.item(of_image[0].image)) for of_image in batch]
                return threads.submit(self._run, batch, loaded)

            for results in results_in_order(submit, batches, 2 * len(self.session.replicas.networks)):
                yield from results

    # ── in a replica's thread ───────────────────────────────────────────────────────────────────────────────────────

    def _run(self, replica: nn.Module, batch: list[list[Peak]], loaded: list[LoadedImage]) -> list[tuple[Peak, Floats]]:
        sources, target = self._sources, self._target
        width = sources[-1].columns.stop
        passed_on: dict[int, Tensor] = {}
        rounds = [[of_image[min(number, len(of_image) - 1)] for of_image in batch] for number in range(max(map(len, batch)))]
        values: list[Tensor] = []

        def start_here(index: int, output: Tensor) -> Tensor:
            passed_on[index] = output.detach().requires_grad_()
            return passed_on[index].clone()  # networks may change it in place

        def take(_: int, maps: Tensor) -> None:
            for peaks in rounds:
                unit, y, x = torch.tensor([(peak.unit, peak.y, peak.x) for peak in peaks], device=maps.device).T
                values.append(maps[torch.arange(len(maps), device=maps.device), unit, y, x].sum())

        results = []
        with (
            torch.enable_grad(),
            ContiguousNormGradients(),
            outputs_watched(replica, [source.traced for source in sources], start_here),
            tapped(replica, [target], take) as tap,
        ):
            tap.run(self.session.inputs(loaded))
            indices = sorted(passed_on)
            for number, value in enumerate(values):
                gradients = self._gradients(value, [passed_on[index] for index in indices], number + 1 < len(values))
                contributions = np.zeros((len(batch), width), dtype=np.float32)
                for index, gradient in zip(indices, gradients, strict=True):
                    if gradient is not None:
                        layout = sources[index].traced.layout
                        of_layer = (layout.cells(passed_on[index].detach()) * layout.cells(gradient)).sum(2)
                        contributions[:, sources[index].columns] = of_layer.float().cpu().numpy()
                results += [
                    (of_image[number], contributions[row]) for row, of_image in enumerate(batch) if number < len(of_image)
                ]
        return results

    def _gradients(self, value: Tensor, sources: list[Tensor], keep_graph: bool) -> Sequence[Tensor | None]:
        """Raises `NetworkError` where no gradient comes down to any."""
        if not value.requires_grad:
            raise NetworkError(f"no gradient comes down from layer {self.layer.name!r}: the network keeps none on the way")
        try:
            return torch.autograd.grad(value, sources, retain_graph=keep_graph, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NetworkError(f"no gradient comes down from layer {self.layer.name!r}: {first_line(error)}") from error
