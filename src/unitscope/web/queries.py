"""An atlas made ready for questions from pages: which peaks a unit has, which units an image excites, which units are alike."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.patches import patch_crop, resolve_patch_kind
from unitscope.atlas.ties import Tie, find_ties, units_without_preference
from unitscope.errors import AtlasError, ImagesError
from unitscope.images import Geometry
from unitscope.records import Box, Layer, Peak
from unitscope.web.addresses import slug
from unitscope.web.checked_tables import (
    Columns,
    ImageRecord,
    images_of,
    layers_of,
    peaks_of,
    sample_of,
    units_of,
)

BANDS = {"99 %": 0.99, "90 %": 0.9, "50 %": 0.5, "lowest": 0.0}
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A value of a unit in an image, and where it stands; boxes in pixels of the source image as displayed, unclipped.

    `rank` is None for an image of the sample. `drawn` is the box that a patch shows: the field or, where that is
    large, the effective field; `seen` is what of that lies on the image and was part of the network's input.
    """

    layer: str
    unit: int
    rank: int | None
    value: float
    y: int
    x: int
    source: ImageRecord
    field: Box
    drawn: Box
    seen: Box


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A unit's statistics; `median` is that of the sample, `standing` how many standard deviations its highest value lies
    above that; `tied` is how many images share the value of its last peak, where there are as many peaks as may be."""

    layer: str
    unit: int
    images: int
    activation_rate: float
    mean: float | None
    std: float | None
    lowest: float | None
    highest: float | None
    nan_images: int
    dead: bool
    median: float | None
    standing: float | None
    tied: int
    tie: Tie | None
    """Which of its ranks tie with images that the peaks don't show; None where there are no such."""


METHOD_WORDS = {
    "deconvnet": "The peak brought down by a deconvnet: through the filters turned over, the switches of the pooling, and a rectifier wherever the network has one",
    "guided_backprop": "Guided backpropagation: the gradient, where it is positive on both sides of every rectifier",
    "gradient": "The gradient of the peak with respect to the pixels",
    "integrated_gradients": "Integrated gradients: the peak's value, shared out among the pixels from the mean colour on",
    "occlusion": "How far the peak drops where a grey square covers the image: light where it matters",
}


@dataclass(frozen=True, slots=True)
class Marks:
    """What values are held against: the value of every peak of a layer with its `unit`, by unit and rank; and of each unit the median,
    highest value and standard deviation of the sample (NaN where a unit has none)."""

    unit: NDArray[np.int64]
    peaks: NDArray[np.float64]
    median: NDArray[np.float64]
    highest: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Alike:
    """A unit whose peaks lie in the same images: how many of them."""

    layer: str
    unit: int
    shared: int


class Catalogue:
    """One atlas, its peaks in memory, its sample read a layer at a time.

    Raises `AtlasError` where tables contradict each other or hold what can't be.
    """

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.layers = layers_of(atlas)
        self._slugs = {slug(layer.name): layer for layer in self.layers}
        self._places = {layer.name: place for place, layer in enumerate(self.layers)}
        self.units = lru_cache(maxsize=16)(self._units)
        self.marks = lru_cache(maxsize=None)(self._marks)
        self.ties = lru_cache(maxsize=None)(self._ties)
        self._drawn = {layer.name: resolve_patch_kind(atlas, layer, "auto") for layer in self.layers}
        self._sample = lru_cache(maxsize=4)(lambda layer: sample_of(atlas, atlas.layer(layer)))

    def layer(self, name: str) -> Layer | None:
        """The layer of that slug, if there is one."""
        return self._slugs.get(name)

    def place(self, layer: str) -> int:
        """The layer's place in call order, from 0."""
        return self._places[layer]

    @cached_property
    def images(self) -> dict[int, ImageRecord]:
        """All images that the atlas mentions, by number."""
        return images_of(self.atlas)

    @cached_property
    def labels(self) -> dict[str, int]:
        """How many images had each label."""
        rows = self.atlas.table("labels").to_pylist()
        return {row["label"]: row["images"] for row in rows if row["label"] is not None and (row["images"] or 0) > 0}

    @cached_property
    def dead(self) -> Counter[str]:
        """How many dead units each layer has."""
        table = self._every_unit
        return Counter(table.filter(table["dead"])["layer"].to_pylist())

    @cached_property
    def _every_unit(self) -> pa.Table:
        return self.atlas.table("units").select(["layer", "unit", "dead", "tied"])

    @cached_property
    def attributed(self) -> dict[str, set[tuple[str, int]]]:
        """Layer and number of the units that each method was used on, of those methods whose tables can be read."""
        return {method: units for method, units in self._attributed.items() if not isinstance(units, AtlasError)}

    @cached_property
    def unreadable(self) -> dict[str, str]:
        """The methods whose tables can't be read, and why."""
        return {method: str(units) for method, units in self._attributed.items() if isinstance(units, AtlasError)}

    @cached_property
    def _attributed(self) -> dict[str, set[tuple[str, int]] | AtlasError]:
        return {method: self._units_of(method) for method in self.atlas.methods if method in METHOD_WORDS}

    def _units_of(self, method: str) -> set[tuple[str, int]] | AtlasError:
        try:
            found = self.atlas.attributed(method)
        except AtlasError as error:
            return error
        units = {layer.name: range(layer.units) for layer in self.layers}
        return {(layer, unit) for layer, unit in found if unit in units.get(layer, ())}

    @cached_property
    def missing(self) -> str | None:
        """Why the source images can't be had, if they can't."""
        try:
            _ = self.atlas.source
        except ImagesError as error:
            return str(error)
        return None

    def read_ahead(self) -> None:
        """Read what every page needs, before somebody waits for it; what is wrong with it is said to who asks."""
        with suppress(AtlasError):
            _ = self._by_image, self._starts, self._telling, self.missing

    # ── peaks ────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _peaks(self) -> Columns:
        return peaks_of(self.atlas, self.images)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each layer's rows begin among the peaks, and where the last one's end."""
        return np.searchsorted(self._peaks["place"], np.arange(len(self.layers) + 1))

    def _span(self, layer: str) -> slice:
        """The rows of a layer's peaks."""
        return slice(int(self._starts[self.place(layer)]), int(self._starts[self.place(layer) + 1]))

    def rows(self, layer: str, unit: int) -> range:
        """The rows of a unit's peaks, strongest first."""
        span = self._span(layer)
        within = self._peaks["unit"][span]
        return range(
            span.start + int(np.searchsorted(within, unit)), span.start + int(np.searchsorted(within, unit, side="right"))
        )

    def peaks(self, layer: str, unit: int) -> list[Example]:
        """A unit's peaks, strongest first."""
        return [self.example(row) for row in self.rows(layer, unit)]

    def peak_images(self, layer: str, unit: int) -> NDArray[np.int64]:
        """The images of a unit's peaks, strongest first."""
        rows = self.rows(layer, unit)
        return np.asarray(self._peaks["image"][rows.start : rows.stop])

    def peaks_a_unit(self, layer: str) -> NDArray[np.int64]:
        """How many peaks each unit of a layer has."""
        return np.bincount(self._peaks["unit"][self._span(layer)], minlength=self.atlas.layer(layer).units)

    def _ties(self, layer: str) -> dict[int, Tie]:
        span, table = self._span(layer), self._every_unit
        rows = table.filter(pc.equal(table["layer"], layer)).drop_null()
        tied = np.zeros(self.atlas.layer(layer).units, dtype=np.int64)
        unit, images = rows["unit"].to_numpy(), rows["tied"].to_numpy()
        known = (unit >= 0) & (unit < len(tied))
        tied[unit[known]] = images[known]
        return find_ties({name: self._peaks[name][span] for name in ("unit", "value", "image")}, tied)

    def no_preference(self, layer: str) -> set[int]:
        """The units of a layer that show no preference: all their peaks tie with images beyond them."""
        return set(units_without_preference(self.ties(layer)))

    @cached_property
    def _telling(self) -> NDArray[np.bool_]:
        """Of each peak, whether its unit shows a preference."""
        found = np.ones(len(self._peaks["unit"]), dtype=np.bool_)
        for layer in self.layers:
            span = self._span(layer.name)
            found[span] = ~np.isin(self._peaks["unit"][span], list(self.no_preference(layer.name)))
        return found

    def image_of(self, row: int) -> int:
        """The image of one peak."""
        return int(self._peaks["image"][row])

    def example(self, row: int) -> Example:
        """One peak with all a page shows of it."""
        held = {name: column[row].item() for name, column in self._peaks.items()}
        return self._with_boxes(Peak(layer=self.layers[held.pop("place")].name, **held))

    def _with_boxes(self, peak: Peak, ranked: bool = True) -> Example:
        source = self.images[peak.image]
        crop = patch_crop(self.atlas, peak, self._drawn[peak.layer], (source.height, source.width))
        rank = peak.rank if ranked else None
        return Example(peak.layer, peak.unit, rank, peak.value, peak.y, peak.x, source, peak.source_box, crop.box, crop.visible)

    @cached_property
    def _by_image(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The rows of the peaks sorted by image, and the images in that order."""
        order = np.argsort(self._peaks["image"], kind="stable")
        return order, self._peaks["image"][order]

    def _rows_of_image(self, image: int) -> NDArray[Any]:
        order, images = self._by_image
        return order[np.searchsorted(images, image) : np.searchsorted(images, image, side="right")]

    def of_image(self, image: int) -> Iterator[Example]:
        """The peaks in an image of units that show a preference, by layer, unit and rank."""
        return (self.example(int(row)) for row in self._telling_rows(image))

    def _telling_rows(self, image: int) -> NDArray[Any]:
        rows = self._rows_of_image(image)
        return np.asarray(rows[self._telling[rows]])

    def ties_in(self, image: int) -> int:
        """How many peaks in an image are of units that show no preference."""
        return len(self._rows_of_image(image)) - len(self._telling_rows(image))

    def excited_by(self, image: int) -> Iterator[tuple[str, int]]:
        """Layer and unit of all peaks in an image, of units that show a preference."""
        rows = self._telling_rows(image)
        for place, unit in zip(self._peaks["place"][rows].tolist(), self._peaks["unit"][rows].tolist(), strict=True):
            yield self.layers[place].name, unit

    def alike(self, layer: str, unit: int, most: int) -> list[Alike]:
        """The units that share most images with one among their peaks; at least two, and those of the same layer first among equals.

        Units that show no preference are like nothing.
        """
        images = np.unique(self.peak_images(layer, unit))
        if not len(images) or unit in self.no_preference(layer):
            return []
        rows = np.concatenate([self._telling_rows(int(image)) for image in images])
        own, wide = self.place(layer), int(self._peaks["unit"].max()) + 1
        pairs = self._peaks["place"][rows].astype(np.int64) * wide + self._peaks["unit"][rows]
        found, shared = np.unique(pairs[pairs != own * wide + unit], return_counts=True)
        far = np.abs(found // wide - own)
        order = np.lexsort((found, far, -shared))[:most]
        return [
            Alike(self.layers[int(found[n] // wide)].name, int(found[n] % wide), int(shared[n])) for n in order if shared[n] > 1
        ]

    def labels_of(self, layer: str, unit: int) -> Counter[str]:
        """How many of a unit's peaks have each label; none where it shows no preference."""
        if unit in self.no_preference(layer):
            return Counter()
        said = (self.images[int(image)].label for image in self.peak_images(layer, unit))
        return Counter(label for label in said if label is not None)

    # ── statistics and the sample ─────────────────────────────────────────────────────────────────────

    def _units(self, layer: str) -> list[UnitRecord]:
        medians, known, tied = self.marks(layer).median, self.atlas.layer(layer), self.ties(layer)
        rows = zip(units_of(self.atlas, known), medians.tolist(), strict=True)
        return [_unit_record(row, median, tied.get(row["unit"])) for row, median in rows]

    def sample(self, layer: str, unit: int) -> NDArray[np.float32]:
        """A unit's values in the sample, from the lowest to the highest."""
        return np.asarray(self._sample(layer)["value"][self._sampled(layer, unit)])

    def _marks(self, layer: str) -> Marks:
        units, span, held = self.atlas.layer(layer).units, self._span(layer), self._sample(layer)
        unit_of_peak, peaks = self._peaks["unit"][span].astype(np.int64), self._peaks["value"][span].astype(np.float64)
        median, highest, spread = (np.full(units, np.nan) for _ in range(3))
        starts = np.searchsorted(held["unit"], np.arange(units + 1))
        for unit in np.flatnonzero(starts[1:] > starts[:-1]):
            values = held["value"][starts[unit] : starts[unit + 1]].astype(np.float64)
            median[unit], highest[unit], spread[unit] = np.median(values), values[-1], values.std()
        return Marks(unit_of_peak, peaks, median, highest, spread)

    def _sampled(self, layer: str, unit: int) -> slice:
        units = self._sample(layer)["unit"]
        return slice(int(np.searchsorted(units, unit)), int(np.searchsorted(units, unit, side="right")))

    def bands(self, layer: str, unit: int) -> dict[str, list[Example]]:
        """Images of the sample around its 99, 90 and 50 per cent quantile and at its lowest, for a unit."""
        held = {name: column[self._sampled(layer, unit)] for name, column in self._sample(layer).items()}
        count = len(held["value"])
        if not count:
            return {}
        found = {}
        for name, quantile in BANDS.items():
            start = min(max(round(quantile * (count - 1)) - EXAMPLES // 2, 0), max(count - EXAMPLES, 0))
            rows = sorted(range(start, min(start + EXAMPLES, count)), reverse=quantile > 0)
            found[name] = [self._sampled_example(layer, unit, {k: v[row].item() for k, v in held.items()}) for row in rows]
        return found

    def _sampled_example(self, layer: str, unit: int, row: Mapping[str, Any]) -> Example:
        if row["image"] not in self.images:
            raise self.atlas.broken(f"its sample names image {row['image']}, which its images table lacks")
        source = self.images[row["image"]]
        box = Box(*(row[side] for side in ("top", "left", "bottom", "right")))
        field = Geometry.of(self.atlas.preprocessing, source.height, source.width).to_source(box)
        where = (row["image"], row["y"], row["x"], *astuple(box), field.top, field.left, field.bottom, field.right)
        return self._with_boxes(Peak(layer, unit, 0, row["value"], *where), ranked=False)


def _unit_record(row: Mapping[str, Any], median: float | None, tie: Tie | None) -> UnitRecord:
    std, highest = _finite(row["std"]), _finite(row["highest"])
    standing = (highest - median) / std if median is not None and highest is not None and std else None
    return UnitRecord(
        row["layer"], row["unit"], int(row["images"] or 0), _finite(row["activation_rate"]) or 0.0, _finite(row["mean"]), std,
        _finite(row["lowest"]), highest, int(row["nan_images"] or 0), bool(row["dead"]), _finite(median), _finite(standing),
        int(row["tied"] or 0), tie,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
