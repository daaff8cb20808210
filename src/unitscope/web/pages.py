"""The pages of one atlas: each is made from its tables, shown by its template as HTML, and by `/api` as JSON."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.atlas.figures import choose_overview_layers, draw_units
from unitscope.atlas.patches import patch_size, resolve_patch_kind
from unitscope.atlas.schema import MANIFEST
from unitscope.records import Layer
from unitscope.web.addresses import slug
from unitscope.web.checked_tables import ImageRecord
from unitscope.web.page_records import (
    About,
    Band,
    Excited,
    Fond,
    Histogram,
    ImagePage,
    LabelPage,
    LabelShare,
    LayerPage,
    LayerRecord,
    NetworkPage,
    Page,
    Row,
    Tile,
    UnitPage,
    WordsPage,
)  # fmt: skip
from unitscope.web.queries import METHOD_WORDS, Catalogue, Example

GLANCE_UNITS = 4
ALIKE_UNITS = 12
LABEL_UNITS = 60
BINS = 32


class Pages:
    """Makes the pages of one atlas. Each method gives None where there is no such page."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.about = _about(catalogue)
        self._records: dict[str, LayerRecord] = {}
        self._labels = {slug(label): label for label in catalogue.labels}

    def network(self) -> NetworkPage:
        rows = {layer.name: Row(self.record(layer), self._strip(layer)) for layer in self.catalogue.layers}
        glance = [self._glance(rows[layer.name]) for layer in choose_overview_layers(self.catalogue.layers)] if rows else []
        return NetworkPage("index.html", self.about, glance, list(rows.values()))

    def layer(self, name: str) -> LayerPage | None:
        layer = self.catalogue.layer(name)
        if layer is None:
            return None
        place, layers = self.catalogue.place(layer.name), self.catalogue.layers
        tiles = [Tile(unit, sorted(self.catalogue.labels_of(layer.name, unit.unit))) for unit in self.catalogue.units(layer.name)]
        return LayerPage(
            f"layers/{name}.html", self.about, self.record(layer),
            layers[place - 1].name if place else None, layers[place + 1].name if place + 1 < len(layers) else None,
            tiles, sorted({label for tile in tiles for label in tile.labels}),
        )  # fmt: skip

    def unit(self, layer_name: str, number: int) -> UnitPage | None:
        layer = self.catalogue.layer(layer_name)
        if layer is None or not 0 <= number < layer.units:
            return None
        name = layer.name
        return UnitPage(
            f"units/{layer_name}/{number}.html", self.about, self.record(layer), self.catalogue.units(name)[number],
            number - 1 if number else None, number + 1 if number + 1 < layer.units else None,
            self.catalogue.peaks(name, number),
            [Band(band, examples) for band, examples in self.catalogue.bands(name, number).items()],
            _histogram(self.catalogue.sample(name, number), self.catalogue.units(name)[number].highest), self._shares(name, number),
            self.catalogue.alike(name, number, ALIKE_UNITS),
            {method: METHOD_WORDS[method] for method, units in self.catalogue.attributed.items() if (name, number) in units},
            self.catalogue.unreadable,
        )  # fmt: skip

    def image(self, number: int) -> ImagePage | None:
        found = self.catalogue.images.get(number)
        if found is None:
            return None
        by_layer: dict[str, list[Example]] = {}
        for example in self.catalogue.of_image(number):
            by_layer.setdefault(example.layer, []).append(example)
        layers = [Excited(self.record(layer), by_layer[layer.name]) for layer in self.catalogue.layers if layer.name in by_layer]
        return ImagePage(f"images/{number}.html", self.about, found, layers, self.catalogue.ties_in(number))

    def label(self, name: str) -> LabelPage | None:
        label = self._labels.get(name)
        if label is None:
            return None
        images = [image for image in self.catalogue.images.values() if image.label == label]
        count = self.catalogue.labels[label]
        overall = count / max(sum(self.catalogue.labels.values()), 1)
        return LabelPage(f"labels/{name}.html", self.about, label, count, overall, self._fond(images), images)

    def words(self) -> WordsPage:
        return WordsPage("words.html", self.about)

    def all_of_them(self) -> Iterator[Callable[[], Page | None]]:
        """Every page of an exported site, to be made when it is its turn."""
        yield self.network
        yield self.words
        for layer in self.catalogue.layers:
            name = slug(layer.name)
            yield partial(self.layer, name)
            for unit in range(layer.units):
                yield partial(self.unit, name, unit)
        for image in self.catalogue.images:
            yield partial(self.image, image)
        for label in self._labels:
            yield partial(self.label, label)

    def record(self, layer: Layer) -> LayerRecord:
        """The layer in short."""
        if layer.name not in self._records:
            atlas = self.catalogue.atlas
            drawn = resolve_patch_kind(atlas, layer, "auto")
            self._records[layer.name] = LayerRecord(
                layer.name, layer.kind, layer.units, layer.map_height, layer.map_width, layer.receptive_field_height, layer.receptive_field_width,
                layer.activation, drawn, *patch_size(atlas, layer, drawn), self.catalogue.dead.get(layer.name, 0),
                len(self.catalogue.no_preference(layer.name)),
            )  # fmt: skip
        return self._records[layer.name]

    def search(self) -> dict[str, Any]:
        """What the search box looks through."""
        return {
            "layers": [[layer.name, slug(layer.name), layer.units] for layer in self.catalogue.layers],
            "labels": [[label, name] for name, label in self._labels.items()],
            "images": [[image.key, number] for number, image in self.catalogue.images.items()],
        }

    def _glance(self, row: Row) -> Row:
        """The row with the units that stand out most among those of its strip."""
        units = self.catalogue.units(row.layer.name)
        return Row(row.layer, sorted(row.strip, key=lambda unit: -(units[unit].standing or 0))[:GLANCE_UNITS])

    def _strip(self, layer: Layer) -> list[int]:
        counts = self.catalogue.peaks_a_unit(layer.name)
        counts[list(self.catalogue.no_preference(layer.name))] = 0
        return draw_units(counts, layer.name, seed=0) if counts.any() else []

    def _shares(self, layer: str, unit: int) -> list[LabelShare]:
        found, known = self.catalogue.labels_of(layer, unit), self.catalogue.labels
        every, peaks = sum(known.values()), sum(found.values())
        return [
            LabelShare(label, count, count / peaks, known[label] / every if label in known else None)
            for label, count in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
        ]

    def _fond(self, images: list[ImageRecord]) -> list[Fond]:
        """The units with most peaks in these images."""
        found: dict[tuple[str, int], int] = {}
        for image in images:
            for layer, unit in self.catalogue.excited_by(image.image):
                found[layer, unit] = found.get((layer, unit), 0) + 1
        best = sorted(found.items(), key=lambda pair: (-pair[1], self.catalogue.place(pair[0][0]), pair[0][1]))[:LABEL_UNITS]
        return [Fond(layer, unit, count, len(self.catalogue.peak_images(layer, unit))) for (layer, unit), count in best]


def _histogram(values: NDArray[np.float32], highest: float | None) -> Histogram | None:
    """Of the sample's finite values; it reaches up to the highest value that the unit has anywhere."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    low, high = float(finite.min()), max(float(finite.max()), highest if highest is not None else -np.inf)
    counts, _ = np.histogram(finite, BINS, (low, high if high > low else low + 1))
    return Histogram(low, high, counts.tolist())


def _about(catalogue: Catalogue) -> About:
    atlas, said = catalogue.atlas, catalogue.atlas.manifest
    written = datetime.fromtimestamp((atlas.folder / MANIFEST).stat().st_mtime, UTC)
    network, images = said["network"], said["images"]
    height, width = atlas.input_size
    return About(
        atlas.folder.absolute().name, str(network["model"]), str(network.get("weights")), str(network.get("hash", ""))[:16],
        _images_in_words(images), str(images.get("hash", ""))[:16], int(said["read"]), int(said.get("skipped", 0)), atlas.k,
        int(said.get("sample", 0)), str(said.get("precision", "fp32")), height, width, written.strftime("%Y-%m-%d %H:%M"), catalogue.missing,
    )  # fmt: skip


def _images_in_words(said: dict[str, Any]) -> str:
    """Where the images were, without the machine's own folders: an exported site is for everybody."""
    kind = said.get("kind")
    if kind == "folder":
        return f"folder {str(said.get('folder', '')).rstrip('/').rpartition('/')[2]}"
    if kind == "list":
        return f"a list of {len(said.get('paths', ())):,} files"
    if kind == "files":
        return f"{len(said.get('files', ())):,} files of many images"
    return str(said.get("name") or said.get("type") or kind)
