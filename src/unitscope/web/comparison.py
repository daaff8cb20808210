"""Two atlases side by side: two checkpoints, two networks, or two data sets on one network."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

from unitscope.records import Layer
from unitscope.web.addresses import slug
from unitscope.web.page_records import About, LayerRecord
from unitscope.web.pages import Pages


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Two layers beside each other. `shared` is the mean share of a unit's peaks that lie in the same images; None without any."""

    first: LayerRecord
    second: LayerRecord | None
    by_number: bool
    shared: float | None


@dataclass(frozen=True, slots=True)
class ComparedPage:
    """The layers of two atlases."""

    template: ClassVar[str] = "compared.html"
    path: str
    about: About
    other: About
    common_images: int
    pairs: list[LayerPair]
    alone: list[LayerRecord]


@dataclass(frozen=True, slots=True)
class UnitPair:
    """Two units beside each other, how many images their peaks share, and of how many; none of none where one shows no preference."""

    first: int
    second: int | None
    shared: int
    of: int
    no_preference: bool = False


@dataclass(frozen=True, slots=True)
class ComparedLayerPage:
    """The units of two layers."""

    template: ClassVar[str] = "compared_layer.html"
    path: str
    about: About
    other: About
    pair: LayerPair
    before: str | None
    after: str | None
    common_images: int
    units: list[UnitPair]


class Comparison:
    """Pairs the layers of two atlases by name, else by depth; their units by number or, where those mean different things, by the
    images that they share."""

    def __init__(self, first: Pages, second: Pages) -> None:
        self._first, self._second = first, second
        self._units = lru_cache(maxsize=None)(self._paired_units)

    def network(self) -> ComparedPage:
        pairs = [self._pair(layer) for layer in self._first.catalogue.layers]
        met = {pair.second.name for pair in pairs if pair.second}
        alone = [self._second.record(layer) for layer in self._second.catalogue.layers if layer.name not in met]
        return ComparedPage("compare/index.html", self._first.about, self._second.about, self._common, pairs, alone)

    def layer(self, name: str) -> ComparedLayerPage | None:
        layer = self._first.catalogue.layer(name)
        if layer is None:
            return None
        place, layers = self._first.catalogue.place(layer.name), self._first.catalogue.layers
        return ComparedLayerPage(
            f"compare/{name}.html", self._first.about, self._second.about, self._pair(layer),
            layers[place - 1].name if place else None, layers[place + 1].name if place + 1 < len(layers) else None,
            self._common, self._units(layer.name),
        )  # fmt: skip

    def layer_names(self) -> Iterator[str]:
        """The slugs of all layers that have a page."""
        return (slug(layer.name) for layer in self._first.catalogue.layers)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """The images of the second atlas that the first has too, by their numbers there and here."""
        known = {image.key: number for number, image in self._first.catalogue.images.items()}
        return {n: known[image.key] for n, image in self._second.catalogue.images.items() if image.key in known}

    @property
    def _common(self) -> int:
        return len(self._numbers)

    def _pair(self, layer: Layer) -> LayerPair:
        other = self._beside(layer)
        units = self._units(layer.name)
        shares = [pair.shared / pair.of for pair in units if pair.of]
        shared = sum(shares) / len(shares) if shares and self._common else None
        record = self._second.record(other) if other else None
        return LayerPair(self._first.record(layer), record, bool(other and self._same(layer, other)), shared)

    def _beside(self, layer: Layer) -> Layer | None:
        """The second atlas's layer of the same name or, where none of its names is known, the one at the same depth."""
        others = self._second.catalogue.layers
        named = {other.name: other for other in others}
        if named.keys() & {one.name for one in self._first.catalogue.layers} or not others:
            return named.get(layer.name)
        depth = self._first.catalogue.place(layer.name) / max(len(self._first.catalogue.layers) - 1, 1)
        return others[round(depth * (len(others) - 1))]

    def _same(self, one: Layer, other: Layer) -> bool:
        """True where a number means the same unit: in checkpoints of one network, or one network on two data sets."""
        return one.name == other.name and one.units == other.units

    def _paired_units(self, name: str) -> list[UnitPair]:
        layer = self._first.catalogue.atlas.layer(name)
        other = self._beside(layer)
        if other is None:
            return [UnitPair(unit, None, 0, 0) for unit in range(layer.units)]
        theirs = [self._images(other.name, unit) for unit in range(other.units)]
        ours = [set(self._first.catalogue.peak_images(name, unit).tolist()) for unit in range(layer.units)]
        mute, mute_there = self._first.catalogue.no_preference(name), self._second.catalogue.no_preference(other.name)
        if self._same(layer, other):
            return [
                UnitPair(unit, unit, 0, 0, no_preference=True)
                if unit in mute | mute_there
                else UnitPair(unit, unit, len(a & b), max(len(a), len(b)))
                for unit, (a, b) in enumerate(zip(ours, theirs, strict=True))
            ]
        having: dict[int, list[int]] = {}
        for unit, images in enumerate(theirs):
            for image in images if unit not in mute_there else ():
                having.setdefault(image, []).append(unit)
        return [
            UnitPair(unit, None, 0, 0, no_preference=True) if unit in mute else _closest(unit, images, having)
            for unit, images in enumerate(ours)
        ]

    def _images(self, layer: str, unit: int) -> set[int]:
        """The images of a unit of the second atlas, by their numbers in the first; below zero where that hasn't them."""
        return {self._numbers.get(image, -1 - image) for image in self._second.catalogue.peak_images(layer, unit).tolist()}


def _closest(unit: int, images: set[int], having: dict[int, list[int]]) -> UnitPair:
    found = Counter(other for image in sorted(images) for other in having.get(image, ()))
    if not found:
        return UnitPair(unit, None, 0, len(images))
    best = min(found, key=lambda other: (-found[other], other))
    return UnitPair(unit, best, found[best], len(images))
