"""Which cells of a batch may be peaks or, of maps turned round, troughs: a `Ranking` for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unitscope.layers import TracedLayer
from unitscope.scanning.plan import ScanPlan
from unitscope.spatial_max import Candidates, PeakPicker, Spacing, SpatialMax, concatenated, highest_cell, highest_cell_by_pooling
from unitscope.topk import HighestValues, TopK


@dataclass(frozen=True, slots=True)
class RankedMaps:
    """Each unit's maximum in each image of a batch. `candidates` are there where a unit may have several in one image; else the maxima are
    the only ones."""

    maxima: SpatialMax
    candidates: Candidates | None = None

    @classmethod
    def side_by_side(cls, of_layers: Sequence["RankedMaps"]) -> "RankedMaps":
        """Those of several layers, one behind the other along the unit axis."""
        candidates = [ranked.candidates for ranked in of_layers if ranked.candidates is not None]
        return cls(
            concatenated([ranked.maxima for ranked in of_layers], -1), concatenated(candidates, -1) if candidates else None
        )


@dataclass(slots=True)
class Ranking:
    """Ranks the values of some of a session's layers, by their indices: the highest or, with `negated`, those of the negated maps.

    It remembers the highest values of the shards that are done, so that later ones give only candidates that beat them.
    """

    layers: Mapping[int, TracedLayer]
    plan: ScanPlan
    device: torch.device
    negated: bool = False
    _highest: HighestValues = field(init=False)
    _is_rectified: Tensor = field(init=False)
    _pickers: Mapping[int, PeakPicker] = field(init=False)

    def __post_init__(self) -> None:
        unit_counts = [traced.layer.units for traced in self.layers.values()]
        self._highest = HighestValues.empty(sum(unit_counts), self.plan.candidates, self.device)
        is_rectified = torch.tensor(
            [traced.layer.rectified for traced in self.layers.values()], dtype=torch.bool, device=self.device
        )
        self._is_rectified = is_rectified.repeat_interleave(torch.tensor(unit_counts, dtype=torch.int64, device=self.device))
        several_peaks = self.plan.per_image > 1
        kth_values = self._highest.kth_values().split(unit_counts) if several_peaks and unit_counts else ()
        self._pickers = {
            index: PeakPicker(self.plan.per_image, _spacing(traced, self.device), traced.layer.rectified, of_layer)
            for (index, traced), of_layer in zip(self.layers.items(), kth_values, strict=several_peaks)
        }

    def of_layer(self, index: int, maps: Tensor, by_pooling: bool) -> RankedMaps | None:
        """What a layer's maps, of shape (image, unit, y, x), hold; None where the layer isn't ranked. `by_pooling` is the fast way on a
        processor, where a NaN wins so that it shows; it knows no candidates."""
        if index not in self.layers:
            return None
        maps = -maps if self.negated else maps
        if by_pooling:
            values, cells = highest_cell_by_pooling(maps)
            return RankedMaps(SpatialMax(values, cells, values.isnan()))
        maxima = highest_cell(maps)
        return RankedMaps(maxima, self._pickers[index].pick(maps, maxima) if self._pickers else None)

    def new_top_k(self, batches: Sequence[RankedMaps], hashes: Tensor, images: Tensor) -> TopK:
        """Those candidates of some batches that come in among the top k so far; `hashes` and numbers are those of all their images."""
        values, cells = (torch.cat(tensors) for tensors in zip(*map(self._candidates, batches), strict=True))
        hashes, images = (t.to(self.device).repeat_interleave(self.plan.per_image) for t in (hashes, images))
        top_k = TopK.empty(len(self._is_rectified), self.plan.candidates, self.device)
        top_k.add(values, hashes, images, cells, kth_values=self._highest.kth_values())
        return top_k.to("cpu")

    def _candidates(self, ranked: RankedMaps) -> tuple[Tensor, Tensor]:
        """Values and cells, of shape (candidate, unit)."""
        if ranked.candidates is not None:
            return ranked.candidates.values.flatten(0, 1), ranked.candidates.cells.flatten(0, 1)
        values = ranked.maxima.values
        is_silent = (values <= 0) & self._is_rectified  # rule 5 of docs/exactness.md
        return values.masked_fill(is_silent, torch.nan), ranked.maxima.cells

    def remember(self, top_k: TopK) -> None:
        """Keep the values of a shard that is done."""
        self._highest.merge(top_k.values.to(self.device))


def _spacing(traced: TracedLayer, device: torch.device) -> Spacing:
    """Half a receptive field apart (rule 6 of docs/exactness.md)."""
    receptive_fields, layer = traced.receptive_fields, traced.layer
    y, x = (
        torch.tensor(centres, dtype=torch.float32, device=device)
        for centres in (receptive_fields.centres_y, receptive_fields.centres_x)
    )
    return Spacing(y, x, layer.receptive_field_height / 2, layer.receptive_field_width / 2)
