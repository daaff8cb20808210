"""Two atlases side by side: two checkpoints, two networks, or two data sets on one network."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from threading import Lock
from typing import Any, ClassVar

from cachetools import cachedmethod

from unitscope.records import Layer
from unitscope.web.addresses import slug
from unitscope.web.page_records import AtlasSummary, Page
from unitscope.web.pages import PageBuilder


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Two layers to compare; `paired_by_number` says how their units are paired.

    `overlap` is the mean share of a unit's peaks that lie in the same images; None where the atlases have no images in common. `chance` is
    the same where the images that they have in common are dealt out anew to the second atlas's peaks.
    """

    first: Layer
    second: Layer | None
    paired_by_number: bool
    overlap: float | None
    chance: float | None


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """The layers of two atlases. `unpaired_layers` are those of the second atlas alone."""

    template: ClassVar[str] = "comparison.html"
    path: str
    atlas: AtlasSummary
    compared_atlas: AtlasSummary
    common_images: int
    pairs: list[LayerPair]
    unpaired_layers: list[Layer]


@dataclass(frozen=True, slots=True)
class UnitPair:
    """Two units to compare: how many images their peaks share, of how many images. Both are 0 where one shows no preference."""

    first: int
    second: int | None
    shared_images: int
    images: int
    no_preference: bool = False


@dataclass(frozen=True, slots=True)
class LayerComparisonPage:
    """The units of two layers."""

    template: ClassVar[str] = "layer_comparison.html"
    path: str
    atlas: AtlasSummary
    compared_atlas: AtlasSummary
    pair: LayerPair
    previous_layer: str | None
    next_layer: str | None
    common_images: int
    units: list[UnitPair]


class AtlasComparison:
    """Builds the pages that compare two atlases.

    Layers are paired by name, else by depth; units by number or, where numbers mean different units, by the images that they share.
    """

    def __init__(self, first: PageBuilder, second: PageBuilder) -> None:
        self._first, self._second = first, second
        self._lock = Lock()
        self._unit_pairs: dict[Any, list[UnitPair]] = {}
        self._chances: dict[Any, float | None] = {}

    def network_page(self) -> ComparisonPage:
        pairs = [self._pair_layer(layer) for layer in self._first.queries.layers]
        paired = {pair.second.name for pair in pairs if pair.second}
        return ComparisonPage(
            "compare/index.html", self._first.atlas_summary, self._second.atlas_summary, len(self._common_images), pairs,
            [layer for layer in self._second.queries.layers if layer.name not in paired],
        )  # fmt: skip

    def layer_page(self, layer_slug: str) -> LayerComparisonPage | None:
        layer = self._first.queries.layer_by_slug(layer_slug)
        if layer is None:
            return None
        return LayerComparisonPage(
            f"compare/{layer_slug}.html", self._first.atlas_summary, self._second.atlas_summary, self._pair_layer(layer),
            *self._first.queries.neighbours(layer.name), len(self._common_images), self._pair_units(layer.name),
        )  # fmt: skip

    def every_page(self) -> Iterator[Callable[[], Page | None]]:
        """Every page of an exported site, each to be built when it is its turn."""
        yield self.network_page
        for layer in self._first.queries.layers:
            yield partial(self.layer_page, slug(layer.name))

    @cached_property
    def _common_images(self) -> dict[int, int]:
        """The images that both atlases have: from their numbers in the second atlas to those in the first."""
        first_numbers = {image.key: number for number, image in self._first.queries.images.items()}
        second_images = self._second.queries.images.items()
        return {number: first_numbers[image.key] for number, image in second_images if image.key in first_numbers}

    def _pair_layer(self, layer: Layer) -> LayerPair:
        second = self._compared_layer(layer)
        overlap = self._mean_overlap(self._pair_units(layer.name))
        return LayerPair(layer, second, second is not None and _same_units(layer, second), overlap, self._chance(layer.name))

    def _mean_overlap(self, pairs: Sequence[UnitPair]) -> float | None:
        overlaps = [pair.shared_images / pair.images for pair in pairs if pair.images]
        return sum(overlaps) / len(overlaps) if overlaps and self._common_images else None

    def _compared_layer(self, layer: Layer) -> Layer | None:
        """The second atlas's layer of the same name or, where the atlases share no name of a layer, the one at the same depth."""
        layers, compared_layers = self._first.queries.layers, self._second.queries.layers
        compared_by_name = {compared.name: compared for compared in compared_layers}
        if compared_by_name.keys() & {layer.name for layer in layers} or not compared_layers:
            return compared_by_name.get(layer.name)
        depth = self._first.queries.layer_index(layer.name) / max(len(layers) - 1, 1)
        return compared_layers[round(depth * (len(compared_layers) - 1))]

    @cachedmethod(attrgetter("_unit_pairs"), lock=attrgetter("_lock"))
    def _pair_units(self, layer_name: str) -> list[UnitPair]:
        return self._pair(layer_name, self._common_images)

    @cachedmethod(attrgetter("_chances"), lock=attrgetter("_lock"))
    def _chance(self, layer_name: str) -> float | None:
        """The mean overlap where each common image of the second atlas is another one."""
        numbers = list(self._common_images.values())
        random.Random(0).shuffle(numbers)
        return self._mean_overlap(self._pair(layer_name, dict(zip(self._common_images, numbers, strict=True))))

    def _pair(self, layer_name: str, first_numbers: Mapping[int, int]) -> list[UnitPair]:
        """The pairs of a layer's units; `first_numbers` leads from images of the second atlas to those of the first."""
        layer = self._first.queries.atlas.layer(layer_name)
        second = self._compared_layer(layer)
        if second is None:
            return [UnitPair(unit, None, 0, 0) for unit in range(layer.units)]
        images = [set(self._first.queries.peak_images(layer.name, unit)) for unit in range(layer.units)]
        compared_images = [
            # below zero where the first atlas hasn't the image
            {first_numbers.get(image, -1 - image) for image in self._second.queries.peak_images(second.name, unit)}
            for unit in range(second.units)
        ]
        no_preference = self._first.queries.no_preference(layer.name)
        compared_no_preference = self._second.queries.no_preference(second.name)
        if _same_units(layer, second):
            return _pair_by_number(images, compared_images, no_preference | compared_no_preference)
        return _pair_by_images(images, compared_images, no_preference, compared_no_preference)


def _same_units(first: Layer, second: Layer) -> bool:
    """True where a number means the same unit: in checkpoints of one network, or one network on two data sets."""
    return first.name == second.name and first.units == second.units


def _pair_by_number(images: Sequence[set[int]], compared_images: Sequence[set[int]], no_preference: set[int]) -> list[UnitPair]:
    """Each unit with the one of the same number. `images` are those of each unit's peaks."""
    return [
        UnitPair(unit, unit, 0, 0, no_preference=True)
        if unit in no_preference
        else UnitPair(unit, unit, len(first & second), max(len(first), len(second)))
        for unit, (first, second) in enumerate(zip(images, compared_images, strict=True))
    ]


def _pair_by_images(
    images: Sequence[set[int]], compared_images: Sequence[set[int]], no_preference: set[int], compared_no_preference: set[int]
) -> list[UnitPair]:
    """Each unit with the one that shares most images with it. `images` are those of each unit's peaks."""
    units_by_image: dict[int, list[int]] = {}
    for unit, unit_images in enumerate(compared_images):
        for image in unit_images if unit not in compared_no_preference else ():
            units_by_image.setdefault(image, []).append(unit)
    return [
        UnitPair(unit, None, 0, 0, no_preference=True) if unit in no_preference else _closest(unit, unit_images, units_by_image)
        for unit, unit_images in enumerate(images)
    ]


def _closest(unit: int, images: set[int], units_by_image: Mapping[int, Sequence[int]]) -> UnitPair:
    """The unit paired with the one that shares most of its images; among equals with that of the lowest number."""
    shared_images = Counter(compared for image in images for compared in units_by_image.get(image, ()))
    if not shared_images:
        return UnitPair(unit, None, 0, len(images))
    closest = min(shared_images, key=lambda compared: (-shared_images[compared], compared))
    return UnitPair(unit, closest, shared_images[closest], len(images))
