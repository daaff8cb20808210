"""An atlas made ready for questions from pages: which peaks a unit has, which units an image excites, which units are similar."""

import logging
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import attrgetter
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.depth import depth_table
from unitscope.atlas.meaning import UnitMeaning, read_meanings
from unitscope.atlas.patches import patch_size, resolve_patch_kind
from unitscope.atlas.samples import BANDS, SAMPLE_COLUMNS, LayerSample, NumpyColumns, SampleStatistics, read_sample
from unitscope.atlas.tables import ATTRIBUTION_METHODS, FACETS
from unitscope.atlas.ties import Tie, find_ties, units_without_preference
from unitscope.errors import AtlasError, ImagesError
from unitscope.records import Layer
from unitscope.web.addresses import slug
from unitscope.web.checked_tables import (
    ImageEntry,
    read_attributed_units,
    read_images,
    read_layers,
    read_peaks,
    read_troughs,
    read_units,
)
from unitscope.web.examples import Examples
from unitscope.web.meanings import NamedUnits
from unitscope.web.numbered_rows import NumberedRows
from unitscope.web.page_records import Example, Facet, Histogram, PatchSize, SimilarUnit, UnitStatistics
from unitscope.web.peak_table import PeaksByImage, PeakTable
from unitscope.web.purpose import PurposeQueries
from unitscope.web.sample_runs import SampleRun
from unitscope.web.unit_numbers import UnitNumbers
from unitscope.web.unit_runs import UnitRuns
from unitscope.web.unit_statistics import describe_units
from unitscope.web.unit_tables import LayerTables, UnitTables

LOG = logging.getLogger(__name__)
UNITS_KEPT = 1 << 15
"""Of how many units statistics, names and numbers of added tables stay in memory: some 2 kB each, so 65 MB. And what pages show of their
samples: some 700 bytes each, so 23 MB."""
LAYERS_KEPT = 4
"""Of how many layers troughs do."""
ROWS_PER_RUN = 1 << 17
"""How many rows of the sample are read at once, for units that stand beside each other."""
UNITS_PER_FACET_RUN, FACET_UNITS_KEPT = 256, 1 << 12
"""For how many units facets and candidates are read at once, and stay in memory: some 40 bytes a candidate, so 8 MB."""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How many peaks of each unit of a layer have each label, by unit and label; `label` is the place among `labels`.

    Shapes of `unit`, `label` and `peaks` are (pair,).
    """

    labels: list[str]
    unit: NDArray[np.int64]
    label: NDArray[np.int64]
    peaks: NDArray[np.int64]


class AtlasQueries:
    """Answers questions about one atlas. Its peaks stay in memory, the samples of a few layers too.

    Tables are read when a question needs them first: of large ones the rows of a run of units, of which what pages show is kept. Every
    method raises `AtlasError` where they contradict each other or hold impossible values.
    """

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self._lock = Lock()
        self._statistics: MutableMapping[Any, list[UnitStatistics]] = LRUCache(UNITS_KEPT, len)
        self._sample_statistics: dict[Any, SampleStatistics] = {}
        self._sample_values: dict[Any, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        self._ties: dict[Any, dict[int, Tie]] = {}
        self._layer_tables: MutableMapping[Any, LayerTables] = LRUCache(UNITS_KEPT, len)
        self._meanings: MutableMapping[Any, list[UnitMeaning]] = LRUCache(UNITS_KEPT, len)
        self._troughs: MutableMapping[Any, PeakTable] = LRUCache(LAYERS_KEPT)
        self._trough_ties: dict[Any, dict[int, Tie]] = {}
        units_per_run = ROWS_PER_RUN // max(1, int(atlas.manifest.get("sample", 0)))
        self._sample_runs = UnitRuns(self._read_sample, units_per_run, UNITS_KEPT)
        self._facet_runs = UnitRuns(self._read_facets, UNITS_PER_FACET_RUN, FACET_UNITS_KEPT)

    def check(self) -> None:
        """Raises `AtlasError` where the tables that every page needs are broken."""
        _ = self.layers, self.labels

    def read_for_layers(self) -> None:
        """Read what the page of every layer needs, before somebody waits for it. Errors are left to the pages, which show them."""
        with self._no_errors():
            _ = self._peaks, self.images_error
            for layer in self.layers[:1]:  # small tables are read whole
                _ = self.layer_tables(layer.name), self.meanings(layer.name), self.unit_statistics(layer.name)

    def read_for_units(self) -> None:
        """The same for the pages of units."""
        with self._no_errors():
            _ = self._preferring_peaks, self._examples
            self.purpose.read_ahead()

    @contextmanager
    def _no_errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            LOG.debug("the tables of %s can't be read ahead", self.atlas.folder, exc_info=True)

    @property
    def layers_to_read_ahead(self) -> list[Layer]:
        """The layers whose pages can be made before somebody waits for them: all of them, where what those need stays in memory."""
        return self.layers if sum(self.unit_counts.values()) <= UNITS_KEPT else []

    # ── layers, images, labels ───────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def layers(self) -> list[Layer]:
        """All layers in call order."""
        return read_layers(self.atlas)

    @cached_property
    def _layers_by_slug(self) -> dict[str, Layer]:
        return {slug(layer.name): layer for layer in self.layers}

    @cached_property
    def _layer_indices(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.layers)}

    @cached_property
    def _patch_sizes(self) -> dict[str, PatchSize]:
        return {layer.name: _patch_size(self.atlas, layer) for layer in self.layers}

    def layer_by_slug(self, layer_slug: str) -> Layer | None:
        """The layer of that slug; None where there is none."""
        return self._layers_by_slug.get(layer_slug)

    def layer_index(self, layer: str) -> int:
        """The layer's index in call order, from 0."""
        return self._layer_indices[layer]

    @cached_property
    def unit_counts(self) -> dict[str, int]:
        """How many units each layer has, in call order."""
        return {layer.name: layer.units for layer in self.layers}

    def _layer(self, name: str) -> Layer:
        return self.layers[self.layer_index(name)]

    def neighbours(self, layer: str) -> tuple[str | None, str | None]:
        """The names of the layers before and after one in call order."""
        index = self.layer_index(layer)
        previous_layer = self.layers[index - 1].name if index else None
        return previous_layer, self.layers[index + 1].name if index + 1 < len(self.layers) else None

    def original(self, layer: str, unit: int) -> tuple[str, int]:
        """The unit that a unit is, where its layer shows those of another one: layer and number."""
        return self._layer(layer).shares_units_of or layer, unit

    def views(self, layer: str) -> list[str]:
        """The other layers that show the same units."""
        own, _ = self.original(layer, 0)
        return [other.name for other in self.layers if other.name != layer and (other.shares_units_of or other.name) == own]

    def patch_size(self, layer: str) -> PatchSize:
        """What a layer's patches show, and how large that is."""
        return self._patch_sizes[layer]

    @cached_property
    def images(self) -> dict[int, ImageEntry]:
        """All images that the atlas mentions, by number."""
        return read_images(self.atlas)

    @cached_property
    def images_error(self) -> str | None:
        """Why the images can't be shown; None where they can, or where packed patches and pictures stand for them."""
        if self.atlas.packed_patches is not None and self.atlas.packed_pictures is not None:
            return None
        try:
            _ = self.atlas.source
        except ImagesError as error:
            return str(error)
        return None

    @cached_property
    def labels(self) -> dict[str, int]:
        """How many images have each label."""
        rows = self.atlas.table("labels").to_pylist()
        return {row["label"]: row["images"] for row in rows if row["label"] is not None and (row["images"] or 0) > 0}

    # ── attribution ──────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def attributed_units(self) -> dict[str, set[tuple[str, int]]]:
        """Layer and number of the units that each method was used on, of those methods whose tables can be read."""
        return {method: units for method, units in self._attributions.items() if not isinstance(units, AtlasError)}

    @cached_property
    def attribution_errors(self) -> dict[str, str]:
        """The methods whose tables can't be read, and why."""
        return {method: str(error) for method, error in self._attributions.items() if isinstance(error, AtlasError)}

    @cached_property
    def _attributions(self) -> dict[str, set[tuple[str, int]] | AtlasError]:
        return {method: self._read_attributed(method) for method in self.atlas.methods if method in ATTRIBUTION_METHODS}

    def _read_attributed(self, method: str) -> set[tuple[str, int]] | AtlasError:
        try:
            return read_attributed_units(self.atlas, method)
        except AtlasError as error:  # the pages show it
            return error

    # ── peaks ────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _peaks(self) -> PeakTable:
        return PeakTable.of(read_peaks(self.atlas, self.images), len(self.layers))

    def peak_rows(self, layer: str, unit: int) -> range:
        """The rows of a unit's peaks, strongest first; `peak` and `peak_image` take them."""
        return self._peaks.rows_of_unit(self.layer_index(layer), unit)

    def peak(self, row: int) -> Example:
        """The peak of that row, with its boxes."""
        return self.peaks_of_rows(slice(row, row + 1))[0]

    def peak_image(self, row: int) -> int:
        """The image of the peak of that row."""
        return self._peaks.image(row)

    def peaks(self, layer: str, unit: int) -> list[Example]:
        """A unit's peaks, strongest first."""
        rows = self.peak_rows(layer, unit)
        return self.peaks_of_rows(slice(rows.start, rows.stop))

    def peaks_of_rows(self, rows: slice | Sequence[int]) -> list[Example]:
        """The peaks of some rows of one layer, with their boxes."""
        columns = self._peaks.of_rows(rows)
        return self._with_boxes(self.layers[columns["layer"][0]], columns) if len(columns["layer"]) else []

    def peak_images(self, layer: str, unit: int) -> list[int]:
        """The images of a unit's peaks, strongest first."""
        rows = self.peak_rows(layer, unit)
        images: list[int] = self._peaks.columns["image"][rows.start : rows.stop].tolist()
        return images

    def peak_units_and_values(self, layer: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Unit and value of each peak of a layer, by unit and rank. Shapes are (peak,)."""
        unit, value = (self._peaks.column_of_layer(name, self.layer_index(layer)) for name in ("unit", "value"))
        return unit.astype(np.int64), value.astype(np.float64)

    def peak_counts(self, layer: str) -> NDArray[np.int64]:
        """How many peaks each unit of a layer has. The shape is (unit,)."""
        unit_of_peak = self._peaks.column_of_layer("unit", self.layer_index(layer))
        return np.bincount(unit_of_peak, minlength=self._layer(layer).units)

    @cached_property
    def _examples(self) -> Examples:
        return Examples(self.atlas, self.images)

    def _with_boxes(self, layer: Layer, columns: NumpyColumns) -> list[Example]:
        """Rows of peaks of one layer, or of its sample, with their boxes."""
        return self._examples.of_rows(layer, self.patch_size(layer.name).kind, columns)

    # ── troughs ──────────────────────────────────────────────────────────────────────────────────────────────────

    @cachedmethod(attrgetter("_troughs"), lock=attrgetter("_lock"))
    def _troughs_of_layer(self, layer: str) -> PeakTable:
        columns = read_troughs(self.atlas, self._layer(layer), self.images)
        return PeakTable.of(columns, len(self.layers))

    def troughs(self, layer: str, unit: int) -> list[Example]:
        """A unit's troughs, the lowest first; none where a rectifier follows its layer, or where the scan kept none."""
        table, index = self._troughs_of_layer(layer), self.layer_index(layer)
        rows = table.rows_of_unit(index, unit)
        return self._with_boxes(self.layers[index], table.of_rows(slice(rows.start, rows.stop)))

    # ── ties ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _dead_and_tied(self) -> pa.Table:
        return self.atlas.table("units").select(["layer", "unit", "dead", "tied"])

    @cached_property
    def dead_counts(self) -> Counter[str]:
        """How many dead units each layer has."""
        table = self._dead_and_tied
        return Counter(table.filter(table["dead"])["layer"].to_pylist())

    @cachedmethod(attrgetter("_ties"), lock=attrgetter("_lock"))
    def ties(self, layer: str) -> dict[int, Tie]:
        """The units of a layer some of whose peaks tie with images that the peaks don't show."""
        rows = self._dead_and_tied.filter(pc.equal(self._dead_and_tied["layer"], layer))
        return self._find_ties(layer, rows, self._peaks)

    @cachedmethod(attrgetter("_trough_ties"), lock=attrgetter("_lock"))
    def trough_ties(self, layer: str) -> dict[int, Tie]:
        """The units of a layer some of whose troughs tie with images that the troughs don't show."""
        if not self.atlas.has_troughs:
            return {}
        rows = self.atlas.table("troughs", layer, columns=["unit", "tied"])
        return self._find_ties(layer, rows, self._troughs_of_layer(layer))

    def _find_ties(self, layer: str, rows: pa.Table, peaks: PeakTable) -> dict[int, Tie]:
        """The units of a layer the last of whose peaks tie; `rows` say of units how many images share their k-th value."""
        rows = rows.select(["unit", "tied"]).drop_null()
        unit, images = rows["unit"].to_numpy(), rows["tied"].to_numpy()
        tied = np.zeros(self._layer(layer).units, dtype=np.int64)
        is_unit = (unit >= 0) & (unit < len(tied))
        tied[unit[is_unit]] = images[is_unit]
        index = self.layer_index(layer)
        return find_ties({name: peaks.column_of_layer(name, index) for name in ("unit", "value", "image")}, tied)

    def no_preference(self, layer: str) -> set[int]:
        """The units of a layer that show no preference: all their peaks tie with images beyond them."""
        return set(units_without_preference(self.ties(layer)))

    @cached_property
    def _preferring_peaks(self) -> PeaksByImage:
        """The peaks of units that show a preference."""
        by_layer = [
            ~np.isin(self._peaks.column_of_layer("unit", index), list(self.no_preference(layer.name)))
            for index, layer in enumerate(self.layers)
        ]
        shows_preference = np.concatenate([*by_layer, np.zeros(0, dtype=np.bool_)])
        return PeaksByImage.of(self._peaks, shows_preference, UnitNumbers(self.layers))

    # ── images and similar units ─────────────────────────────────────────────────────────────────────────────────

    def _preferring_rows(self, image: int) -> NDArray[np.int64]:
        """The rows of the peaks in an image of units that show a preference."""
        return self._preferring_peaks.rows_of_image(image)

    def peak_rows_in_image(self, image: int) -> list[tuple[Layer, list[int]]]:
        """The rows of the peaks in an image of units that show a preference, layer by layer, by unit and rank."""
        rows = self._preferring_rows(image)
        layers = self._peaks.columns["layer"][rows]
        return [(self.layers[index], rows[layers == index].tolist()) for index in np.unique(layers).tolist()]

    def unit_and_rank(self, row: int) -> tuple[int, int]:
        """Unit and rank of the peak of a row."""
        columns = self._peaks.columns
        return int(columns["unit"][row]), int(columns["rank"][row])

    def no_preference_peaks(self, image: int) -> int:
        """How many peaks in an image are of units that show no preference."""
        return len(self._peaks.rows_of_image(image)) - len(self._preferring_rows(image))

    def units_with_peaks_in(self, image: int) -> Iterator[tuple[str, int]]:
        """Layer and unit of every peak in an image, of units that show a preference."""
        rows = self._preferring_rows(image)
        layers, units = self._peaks.columns["layer"][rows], self._peaks.columns["unit"][rows]
        return ((self.layers[layer].name, unit) for layer, unit in zip(layers.tolist(), units.tolist(), strict=True))

    def similar_units(self, layer: str, unit: int, max_units: int) -> list[SimilarUnit]:
        """The units whose peaks share most images with a unit's, at least two; among equals those of near layers first.

        Units that show no preference are similar to none. A unit that several layers show is there once.
        """
        if unit in self.no_preference(layer):
            return []
        layers, units, shared = self._preferring_peaks.units_with_shared_images(self.peak_images(layer, unit))
        own_layer = self.layer_index(layer)
        distances = np.abs(layers - own_layer)
        order = np.argsort(distances - shared * len(self.layers), kind="stable")
        similar: dict[tuple[str, int], SimilarUnit] = {self.original(layer, unit): SimilarUnit(layer, unit, 0)}
        for i in order.tolist():
            name, other = self.layers[layers[i]].name, int(units[i])
            similar.setdefault(self.original(name, other), SimilarUnit(name, other, int(shared[i])))
            if len(similar) > max_units:
                break
        return list(similar.values())[1:]

    def label_counts(self, layer: str, unit: int) -> Counter[str]:
        """How many of a unit's peaks have each label; none where it shows no preference."""
        if unit in self.no_preference(layer):
            return Counter()
        labels = (self.images[image].label for image in self.peak_images(layer, unit))
        return Counter(label for label in labels if label is not None)

    def label_counts_of_units(self, layer: str) -> LabelCounts:
        """The same of all units of a layer at once, of those labels that `labels` has."""
        labels, images, label_of_image = self._labels_by_image
        unit, image = (self._peaks.column_of_layer(name, self.layer_index(layer)) for name in ("unit", "image"))
        label = label_of_image[np.searchsorted(images, image)]
        is_counted = (label >= 0) & ~np.isin(unit, list(self.no_preference(layer)))
        keys, peaks = np.unique(unit[is_counted].astype(np.int64) * len(labels) + label[is_counted], return_counts=True)
        unit_of_key, label_of_key = np.divmod(keys, max(1, len(labels)))
        return LabelCounts(labels, unit_of_key, label_of_key, peaks)

    @cached_property
    def _labels_by_image(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """All labels in order; all images in order, and the place of the label of each, -1 where it has none."""
        labels, images = sorted(self.labels), sorted(self.images)
        places: dict[str | None, int] = {label: place for place, label in enumerate(labels)}
        of_images = [places.get(self.images[image].label, -1) for image in images]
        return labels, np.asarray(images, dtype=np.int64), np.asarray(of_images, dtype=np.int64)

    # ── statistics and the sample ────────────────────────────────────────────────────────────────────────────────

    def unit_sample(self, layer: str, unit: int) -> NumpyColumns:
        """A unit's values in the sample, from the lowest to the highest, with their images and cells."""
        return read_sample(self.atlas, self._layer(layer), range(unit, unit + 1))

    @cachedmethod(attrgetter("_sample_values"), lock=attrgetter("_lock"))
    def sample_values(self, layer: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A layer's values in the sample, by unit and value, and the first row of each unit: small enough for all layers to stay in memory."""
        record = self._layer(layer)
        sample = LayerSample.of(read_sample(self.atlas, record, range(record.units), ("unit", "value")), record.units)
        return sample.columns["value"].astype(np.float32), sample.unit_starts

    @cachedmethod(attrgetter("_sample_statistics"), lock=attrgetter("_lock"))
    def sample_statistics(self, layer: str) -> SampleStatistics:
        """Mean, standard deviation and highest value of each unit's sample."""
        return SampleStatistics.of(self.atlas, self._layer(layer))

    @cachedmethod(attrgetter("_statistics"), lock=attrgetter("_lock"))
    def unit_statistics(self, layer: str) -> list[UnitStatistics]:
        """The statistics of a layer's units, by unit."""
        rows = read_units(self.atlas, self._layer(layer))
        return describe_units(rows, self.sample_statistics(layer), self.ties(layer))

    @cached_property
    def unit_tables(self) -> UnitTables:
        """The added tables that have a row a unit."""
        return UnitTables.of(self.atlas)

    @cachedmethod(attrgetter("_layer_tables"), lock=attrgetter("_lock"))
    def layer_tables(self, layer: str) -> LayerTables:
        """What added tables say of a layer's units."""
        return self.unit_tables.of_layer(self.atlas, layer)

    @cachedmethod(attrgetter("_meanings"), lock=attrgetter("_lock"))
    def meanings(self, layer: str) -> list[UnitMeaning]:
        """What is known of each unit of a layer."""
        return read_meanings(self.atlas, layer)

    @cached_property
    def depth(self) -> pa.Table:
        """What units are like from the first layer to the last."""
        return depth_table(self.atlas)

    @cached_property
    def purpose(self) -> PurposeQueries:
        """What units are for, and what the network predicts."""
        return PurposeQueries(self.atlas, lambda: {image.image: image.key for image in self.images.values()})

    @cached_property
    def concepts(self) -> NamedUnits:
        """The names that units have."""
        return NamedUnits.of(self.atlas)

    def facets(self, layer: str, unit: int, max_examples: int) -> list[Facet]:
        """The facets of a unit, each with so many of its candidates, the highest first; none where it has one facet, or none were looked for."""
        if (self.meanings(layer)[unit].facets or 0) < 2:
            return []
        try:
            run = self._facet_runs.run(layer, unit)
        except AtlasError:  # pages say why it can't be read
            return []
        candidates = run.of_number(unit)
        facets = []
        for facet in np.unique(candidates["facet"]).tolist():
            rows = np.flatnonzero(candidates["facet"] == facet)
            shown = {name: column[rows[:max_examples]] for name, column in candidates.items()}
            facets.append(Facet(facet, len(rows), self._sampled(layer, unit, shown)))
        return facets

    def _read_facets(self, layer: str, units: range) -> NumberedRows:
        """The candidates that have a facet, by unit and place, with the facet's number."""
        facets = self.atlas.rows_of_units(FACETS.name, layer, units, ("unit", "candidate", "facet")).drop_null()
        candidates = self.atlas.rows_of_units("candidates", layer, units, ("candidate", *SAMPLE_COLUMNS)).drop_null()
        keys = [table["unit"].to_numpy().astype(np.int64) << 16 | table["candidate"].to_numpy() for table in (facets, candidates)]
        _, of_facets, of_candidates = np.intersect1d(*keys, return_indices=True)  # sorted by unit and candidate
        joined = candidates.take(of_candidates).append_column("facet", facets["facet"].take(of_facets))
        return NumberedRows.of(joined, "unit")

    def bands(self, layer: str, unit: int) -> dict[str, list[Example]]:
        """Images of the sample around its 99, 90 and 50 per cent quantile and at its lowest, for a unit; none without a sample."""
        columns, sizes = self._sample_runs.run(layer, unit).bands(unit)
        if not any(sizes):
            return {}
        examples = iter(self._sampled(layer, unit, columns))
        return {name: list(islice(examples, size)) for name, size in zip(BANDS, sizes, strict=True)}

    def histogram(self, layer: str, unit: int) -> Histogram | None:
        """Of the sample's finite values; it reaches up to the highest value that the unit has in any image. None where there are none."""
        return self._sample_runs.run(layer, unit).histogram(unit)

    def _read_sample(self, layer: str, units: range) -> SampleRun:
        record = self._layer(layer)
        units = units[: max(0, record.units - units.start)]
        sample = LayerSample.of(read_sample(self.atlas, record, units), record.units)
        statistics = self.unit_statistics(layer)
        return SampleRun.of(sample, units, [statistics[unit].highest for unit in units])

    def _sampled(self, layer: str, unit: int, columns: NumpyColumns) -> list[Example]:
        """Rows of the sample, or of candidates, of one unit, with their boxes."""
        return self._with_boxes(self._layer(layer), {**columns, "unit": np.full(len(columns["image"]), unit)})


def _patch_size(atlas: Atlas, layer: Layer) -> PatchSize:
    kind = resolve_patch_kind(atlas, layer, "auto")
    return PatchSize(kind, *patch_size(atlas, layer, kind))
