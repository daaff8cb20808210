"""The pages of one atlas: each is built from its tables, shown by its template as HTML, and by `/api` as JSON."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from unitscope.atlas.depth import DEPTH_PLOTS, SIZE_PLOT
from unitscope.atlas.figures import choose_overview_layers, draw_units
from unitscope.atlas.packed import block_side
from unitscope.atlas.reading import MAX_PATCHES
from unitscope.atlas.schema import MANIFEST
from unitscope.atlas.tables import ATTRIBUTION_METHODS
from unitscope.records import Layer, ceiling
from unitscope.web.addresses import file_name, slug
from unitscope.web.checked_tables import ImageEntry
from unitscope.web.meanings import MAX_NARROWER
from unitscope.web.page_records import (
    AtlasSummary,
    Band,
    ClassImage,
    ClassLink,
    ClassPage,
    ConceptLink,
    ConceptPage,
    ConceptUnit,
    DepthCurve,
    DepthPlot,
    GlossaryPage,
    ImagePage,
    LabelPage,
    LabelShare,
    LabelUnit,
    LayerPage,
    LayerPeaks,
    LayerRow,
    MistakePage,
    NetworkPage,
    NotesPage,
    Page,
    PredictionsPage,
    SortKey,
    TourStop,
    UnitEntry,
    UnitPage,
)  # fmt: skip
from unitscope.web.purpose_records import Confusion
from unitscope.web.queries import AtlasQueries
from unitscope.web.sort_keys import SORT_KEYS
from unitscope.web.tour import tour_of
from unitscope.web.unit_kinds import STAGE_WORDS, KindUnits, kinds_of
from unitscope.wordnet import in_words

OVERVIEW_UNITS = 4
MAX_SIMILAR_UNITS = 12
IMAGE_UNITS = 5
"""Of how many units of a layer an image's page shows blocks."""
MIN_LIFT = 2
"""How many times as frequent as among all images a label is among a unit's peaks, that the unit can be found by it."""
MAX_LABEL_UNITS = 60
MAX_CONCEPT_UNITS = 20_000
"""Of more, a page has the best alone, and its tables have all."""
MAX_MISTAKES = 200
"""How many of the most frequent mistakes are listed, and how many of the most certain ones."""
CERTAIN_IMAGES = 12
"""How many images are shown of which the network is most certain and wrong."""
CLASS_IMAGES = 12
"""How many of its images a class's page shows."""


class PageBuilder:
    """Builds the pages of one atlas. A method gives None where there is no such page. With `has_activations` activation maps can be had of units that
    none were stored of, and with `can_explain` the network says why images have their classes."""

    def __init__(self, queries: AtlasQueries, has_activations: bool = False, can_explain: bool = False) -> None:
        self.queries, self._has_activations, self._can_explain = queries, has_activations, can_explain

    @cached_property
    def atlas_summary(self) -> AtlasSummary:
        """What every page says of the atlas."""
        return _atlas_summary(self.queries)

    @cached_property
    def _labels_by_slug(self) -> dict[str, str]:
        return {slug(label): label for label in self.queries.labels}

    @cached_property
    def _images_by_label(self) -> dict[str, list[ImageEntry]]:
        by_label: dict[str, list[ImageEntry]] = {}
        for image in self.queries.images.values():
            if image.label is not None:
                by_label.setdefault(image.label, []).append(image)
        return by_label

    @cached_property
    def _labelled_images(self) -> int:
        return sum(self.queries.labels.values())

    def network_page(self) -> NetworkPage:
        rows = {layer.name: self._layer_row(layer) for layer in self.queries.layers}
        overview = [self._overview_row(rows[layer.name]) for layer in choose_overview_layers(self.queries.layers)] if rows else []
        return NetworkPage(
            "index.html", self.atlas_summary, overview, list(rows.values()), _depth_plots(self.queries.depth), self._tour
        )

    @cached_property
    def _tour(self) -> list[TourStop]:
        return tour_of(self.queries)

    def layer_page(self, layer_slug: str) -> LayerPage | None:
        layer = self.queries.layer_by_slug(layer_slug)
        if layer is None:
            return None
        added = self.queries.layer_tables(layer.name)
        units = [
            UnitEntry(
                statistics,
                labels,
                added.values_of(statistics.unit),
                meaning.name,
                meaning.belief,
                (meaning.facets or 0) > 1,
            )
            for statistics, meaning, labels in zip(
                self.queries.unit_statistics(layer.name),
                self.queries.meanings(layer.name),
                self._typical_labels(layer),
                strict=True,
            )
        ]
        sort_keys = [*SORT_KEYS, *(key for key in self.queries.unit_tables.sort_keys if key.column in added.columns)]
        return LayerPage(
            f"layers/{layer_slug}.html", self.atlas_summary, layer, self.queries.patch_size(layer.name),
            self.queries.dead_counts[layer.name], len(self.queries.no_preference(layer.name)), *self.queries.neighbours(layer.name),
            self.queries.views(layer.name), sort_keys, units, sorted({label for unit in units for label in unit.labels}),
            sorted({unit.name for unit in units if unit.name is not None}), dict(added.errors),
        )  # fmt: skip

    def unit_page(self, layer_slug: str, unit: int) -> UnitPage | None:
        queries, layer = self.queries, self.queries.layer_by_slug(layer_slug)
        if layer is None or not 0 <= unit < layer.units:
            return None
        name, statistics = layer.name, queries.unit_statistics(layer.name)[unit]
        meaning = queries.meanings(name)[unit]
        attributed = [method for method, units in queries.attributed_units.items() if (name, unit) in units]
        has_live = self._has_activations and "activation" not in attributed
        heat_methods = ["activation", *attributed] if has_live else attributed
        if layer.map_height * layer.map_width == 1:  # its activation is one value for the whole picture
            heat_methods = [method for method in heat_methods if method != "activation"]
        return UnitPage(
            f"units/{layer_slug}/{unit}.html", self.atlas_summary, layer, queries.patch_size(name), block_side(min(queries.atlas.k, MAX_PATCHES)), statistics,
            meaning, meaning.sentence(),
            queries.facets(name, unit, MAX_PATCHES),
            views=queries.views(name),
            previous_unit=unit - 1 if unit else None,
            next_unit=unit + 1 if unit + 1 < layer.units else None,
            peaks=queries.peaks(name, unit),
            troughs=queries.troughs(name, unit),
            trough_tie=queries.trough_ties(name).get(unit),
            bands=[] if statistics.dead else [Band(band, examples) for band, examples in queries.bands(name, unit).items()],
            histogram=None if statistics.dead else queries.histogram(name, unit),
            labels=self._label_shares(name, unit),
            similar_units=queries.similar_units(name, unit, MAX_SIMILAR_UNITS),
            ceiling=ceiling(layer.activation),
            attribution_methods={method: ATTRIBUTION_METHODS[method] for method in attributed},
            heat_methods=heat_methods,
            missing_methods=[method for method in ATTRIBUTION_METHODS if method not in heat_methods],
            attribution_errors=queries.attribution_errors,
            tables=queries.layer_tables(name).tables_of(unit),
            table_errors=dict(queries.layer_tables(name).errors),
            effects=queries.purpose.unit_effects(name, unit),
            circuit=queries.purpose.unit_circuit(name, unit),
            class_position=queries.purpose.class_of(name, unit),
        )  # fmt: skip

    def image_page(self, image: int, most: int | None = IMAGE_UNITS) -> ImagePage | None:
        """With so many peaks of each layer, or with all of them."""
        record = self.queries.images.get(image)
        if record is None:
            return None
        layers = [self._layer_peaks(layer, rows, most) for layer, rows in self.queries.peak_rows_in_image(image)]
        return ImagePage(
            f"images/{image}.html", self.atlas_summary, record, layers, self.queries.no_preference_peaks(image),
            self.queries.purpose.prediction(image, record.key), self.queries.purpose.has_predictions, self._can_explain,
        )  # fmt: skip

    def _layer_peaks(self, layer: Layer, rows: Sequence[int], most: int | None) -> LayerPeaks:
        statistics, meanings = self.queries.unit_statistics(layer.name), self.queries.meanings(layer.name)

        def place(row: int) -> tuple[int, float, int]:
            unit, rank = self.queries.unit_and_rank(row)
            return rank, -(statistics[unit].z_score or 0), unit

        shown = self.queries.peaks_of_rows(sorted(rows, key=place)[:most])
        names = {peak.unit: name for peak in shown if (name := meanings[peak.unit].name) is not None}
        return LayerPeaks(layer, shown, len(rows), names)

    def label_page(self, label_slug: str) -> LabelPage | None:
        label = self._labels_by_slug.get(label_slug)
        if label is None:
            return None
        images = self._images_by_label.get(label, [])
        image_count = self.queries.labels[label]
        base_rate = image_count / self._labelled_images
        return LabelPage(
            f"labels/{label_slug}.html", self.atlas_summary, label, image_count, base_rate, self._label_units(images), images,
            self._label_classes.get(label),
        )  # fmt: skip

    def concept_page(self, concept_slug: str, most: int | None = MAX_CONCEPT_UNITS) -> ConceptPage | None:
        """With so many units, or with all of them."""
        concepts = self.queries.concepts
        node = self._concepts_by_slug.get(concept_slug)
        if node is None:
            return self._kind_page(concept_slug, most)
        units = list(concepts.units[node])
        kinds = [
            ConceptLink(kind_node, kind.kind.name, len(kind.units))
            for kind_node, kind in self._kinds.items()
            if any(name.node == node for name in kind.names)
        ]
        return ConceptPage(
            f"concepts/{concept_slug}.html", self.atlas_summary, node, concepts.names[node], concepts.definition(node), len(units),
            units[:most], concepts.broader(node), concepts.narrower(node), kinds, is_kind=False,
        )  # fmt: skip

    def _kind_page(self, kind_slug: str, most: int | None) -> ConceptPage | None:
        node = next((node for node in self._kinds if slug(node) == kind_slug), None)
        if node is None:
            return None
        kind, units, names = self._kinds[node].kind, list(self._kinds[node].units), list(self._kinds[node].names)[:MAX_NARROWER]
        return ConceptPage(
            f"concepts/{kind_slug}.html", self.atlas_summary, node, kind.name, kind.definition, len(units), units[:most], [],
            names, [], is_kind=True,
        )  # fmt: skip

    @cached_property
    def _kinds(self) -> dict[str, KindUnits]:
        """Kinds of names, by node; a name of such an id hides one."""
        return {node: kind for node, kind in kinds_of(self.queries).items() if node not in self.queries.concepts.names}

    @cached_property
    def _concepts_by_slug(self) -> dict[str, str]:
        return {slug(node): node for node in self.queries.concepts.names}

    # ── what the network predicts ────────────────────────────────────────────────────────────────────────────────

    def predictions_page(self) -> PredictionsPage | None:
        purpose = self.queries.purpose
        if not purpose.confusions:
            return None
        labelled, right = purpose.labelled_and_right
        images = sum(confusion.images for confusion in purpose.confusions.values())
        classes = [
            ClassLink(position, purpose.class_name(position), *self._images_and_right(position)) for position in purpose.classes
        ]
        return PredictionsPage(
            "predictions.html", self.atlas_summary, images, labelled, right, _listed_mistakes(purpose.mistakes),
            purpose.most_certain(CERTAIN_IMAGES), classes,
        )  # fmt: skip

    def class_page(self, position: int) -> ClassPage | None:
        purpose = self.queries.purpose
        if position not in purpose.classes:
            return None
        shown = [layer.name for layer in reversed(choose_overview_layers(self.queries.layers))]
        mistakes, label = purpose.mistakes, self._class_labels.get(position)
        return ClassPage(
            f"classes/{position}.html", self.atlas_summary, position, purpose.class_name(position), *self._images_and_right(position),
            purpose.class_layers(position, shown), purpose.class_knockouts(position),
            [found for found in mistakes if found.label_class == position], [found for found in mistakes if found.predicted == position],
            purpose.candidates(position), purpose.output_units(position), label, 0 if label is None else self.queries.labels[label],
            self._class_images(position, label),
        )  # fmt: skip

    def _class_images(self, position: int, label: str | None) -> list[ClassImage]:
        """Some of a class's images with its label, evenly from the first to the last; without one, of those whose prediction is known."""
        purpose, images = self.queries.purpose, self.queries.images
        if label is None:
            numbers = sorted(image.image for image in purpose.predicted_images_of(position) if image.is_known)
        else:
            numbers = [image.image for image in self._images_by_label.get(label, [])]
        count = min(len(numbers), CLASS_IMAGES)
        shown = [images[numbers[place * len(numbers) // count]] for place in range(count)]
        return [ClassImage(image, purpose.prediction(image.image, image.key)) for image in shown]

    @cached_property
    def _class_labels(self) -> dict[int, str]:
        """The label of each class, where images say which one that is: effects may have been measured by other labels than the scan read."""
        pairs: set[tuple[int, str]] = set()
        for (position, _), confusion in self.queries.purpose.confusions.items():
            for shown in confusion.shown:
                label = self.queries.images[shown.image].label if shown.is_known else None
                if label is not None and label in self.queries.labels and position >= 0:
                    pairs.add((position, label))
        of_class, of_label = Counter(position for position, _ in pairs), Counter(label for _, label in pairs)
        return {position: label for position, label in pairs if of_class[position] == of_label[label] == 1}

    @cached_property
    def _label_classes(self) -> dict[str, int]:
        return {label: position for position, label in self._class_labels.items()}

    def mistake_page(self, label_class: int, predicted: int) -> MistakePage | None:
        confusion = self.queries.purpose.confusions.get((label_class, predicted))
        if confusion is None:
            return None
        return MistakePage(
            f"mistakes/{label_class}-{predicted}.html",
            self.atlas_summary,
            confusion,
            self.queries.purpose.mistaken_units(label_class, predicted),
            self.queries.purpose.missing_images(confusion),
            self._can_explain,
        )

    def _images_and_right(self, position: int) -> tuple[int, int]:
        right = self.queries.purpose.confusions.get((position, position))
        return self._images_of_class[position], 0 if right is None else right.images

    @cached_property
    def _images_of_class(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for (position, _), confusion in self.queries.purpose.confusions.items():
            counts[position] += confusion.images
        return counts

    @property
    def network_sort_keys(self) -> list[SortKey]:
        """What units of all layers can be sorted by, those of some layers as well."""
        return [*SORT_KEYS, *self.queries.unit_tables.sort_keys]

    def glossary_page(self) -> GlossaryPage:
        return GlossaryPage("glossary.html", self.atlas_summary)

    def notes_page(self) -> NotesPage:
        return NotesPage("notes.html", self.atlas_summary)

    def whole_pages(self) -> Iterator[Callable[[], Page | None]]:
        """The pages that are files of an exported site, each to be built when it is its turn."""
        yield self.network_page
        yield self.glossary_page
        yield self.notes_page
        yield self.predictions_page
        for layer in self.queries.layers:
            yield partial(self.layer_page, slug(layer.name))

    def other_parts(self) -> Iterator[str]:
        """The paths, without an ending, of all pages but these and those of units."""
        yield from (f"images/{image}" for image in self.queries.images)
        yield from (f"labels/{label_slug}" for label_slug in self._labels_by_slug)
        yield from (f"concepts/{concept_slug}" for concept_slug in self._concepts_by_slug)
        yield from (f"concepts/{slug(node)}" for node in self._kinds)
        yield from (f"classes/{position}" for position in self.queries.purpose.classes)
        for confusion in self.queries.purpose.confusions.values():
            yield f"mistakes/{confusion.label_class}-{confusion.predicted}"

    def part(self, path: str) -> Page | None:
        """The page at a path without an ending, of a unit or one of `other_parts`."""
        kind, *names = path.split("/")
        match kind:
            case "units":
                return self.unit_page(names[0], int(names[1]))
            case "images":
                return self.image_page(int(names[0]))
            case "labels":
                return self.label_page(names[0])
            case "concepts":
                return self.concept_page(names[0])
            case "classes":
                return self.class_page(int(names[0]))
            case "mistakes":
                label_class, _, predicted = names[0].rpartition("-")
                return self.mistake_page(int(label_class), int(predicted))
        return None

    def search_index(self, with_files: bool = False) -> dict[str, Any]:
        """What the search box looks through; `with_files` says where layers' pages lie in an exported site."""
        concepts = self.queries.concepts
        return {
            "layers": [
                [layer.name, slug(layer.name), layer.units, *([file_name(slug(layer.name))] if with_files else ())]
                for layer in self.queries.layers
            ],
            "kinds": [
                [found.kind.name, found.kind.words, slug(node), len(found.units), self._best(found.units)]
                for node, found in self._kinds.items()
            ],
            "tour": [[stop.stage, STAGE_WORDS[stop.stage], stop.layer, slug(stop.layer), stop.unit] for stop in self._tour],
            "names": [
                [
                    concepts.names[node],
                    concept_slug,
                    len(units := concepts.units[node]),
                    self._best(units),
                ]
                for concept_slug, node in self._concepts_by_slug.items()
            ],
            "labels": [[in_words(label), label_slug] for label_slug, label in self._labels_by_slug.items()],
            "images": [[image.key, image.image] for image in self.queries.images.values()],
            "classes": [[self.queries.purpose.class_name(position), position] for position in self.queries.purpose.classes],
        }

    def _best(self, units: Sequence[ConceptUnit]) -> str:
        """The unit that a list of search results shows."""
        return f"{slug(units[0].layer)}/{units[0].unit}"

    def _layer_row(self, layer: Layer) -> LayerRow:
        """The layer with up to nine of its units, drawn at random among those that show a preference."""
        counts, no_preference = self.queries.peak_counts(layer.name), self.queries.no_preference(layer.name)
        counts[list(no_preference)] = 0
        units = draw_units(counts, layer.name, seed=0) if counts.any() else []
        dead_units = self.queries.dead_counts[layer.name]
        return LayerRow(layer, self.queries.patch_size(layer.name), dead_units, len(no_preference), units)

    def _overview_row(self, row: LayerRow) -> LayerRow:
        """The row with those of its units whose highest values have the highest z-scores."""
        statistics = self.queries.unit_statistics(row.layer.name)
        units = sorted(row.units, key=lambda unit: -(statistics[unit].z_score or 0))[:OVERVIEW_UNITS]
        return LayerRow(row.layer, row.patch, row.dead_units, row.no_preference_units, units)

    def _label_shares(self, layer: str, unit: int) -> list[LabelShare]:
        image_counts, peak_counts = self.queries.labels, self.queries.label_counts(layer, unit)
        all_images, all_peaks = self._labelled_images, sum(peak_counts.values())
        return [
            LabelShare(label, peaks, peaks / all_peaks, image_counts[label] / all_images if label in image_counts else None)
            for label, peaks in sorted(peak_counts.items(), key=lambda entry: (-entry[1], entry[0]))
        ]

    def _typical_labels(self, layer: Layer) -> list[list[str]]:
        """The labels that each unit's peaks have twice as often as all images do; one peak alone counts of a label of one image alone."""
        counts = self.queries.label_counts_of_units(layer.name)
        images = np.array([self.queries.labels[label] for label in counts.labels], dtype=np.int64)[counts.label]
        lifts = self._labelled_images / np.bincount(counts.unit, counts.peaks, layer.units)[counts.unit]
        is_typical = (counts.peaks * lifts >= MIN_LIFT * images) & ((counts.peaks > 1) | (images == 1))
        typical: list[list[str]] = [[] for _ in range(layer.units)]
        for unit, label in zip(counts.unit[is_typical].tolist(), counts.label[is_typical].tolist(), strict=True):
            typical[unit].append(counts.labels[label])
        return typical

    def _label_units(self, images: list[ImageEntry]) -> list[LabelUnit]:
        """The units with most peaks in these images."""
        peak_counts = Counter(unit for image in images for unit in self.queries.units_with_peaks_in(image.image))
        ranked = sorted(peak_counts, key=lambda unit: (-peak_counts[unit], self.queries.layer_index(unit[0]), unit[1]))
        once = {self.queries.original(*unit): unit for unit in reversed(ranked)}  # of several layers that show it, the first
        return [
            LabelUnit(layer, unit, peak_counts[layer, unit], len(self.queries.peak_rows(layer, unit)))
            for layer, unit in [unit for unit in ranked if once[self.queries.original(*unit)] == unit][:MAX_LABEL_UNITS]
        ]


def _listed_mistakes(mistakes: Sequence[Confusion]) -> list[Confusion]:
    """The most frequent mistakes and the most certain ones, in the order given."""
    certain = {id(mistake) for mistake in sorted(mistakes, key=lambda mistake: -mistake.probability)[:MAX_MISTAKES]}
    return [mistake for place, mistake in enumerate(mistakes) if place < MAX_MISTAKES or id(mistake) in certain]


def _depth_plots(depth: pa.Table) -> list[DepthPlot]:
    """Those of shares and means that have curves; none of a network of one layer."""
    plots = []
    for title, columns in DEPTH_PLOTS.items():
        curves = [
            DepthCurve(plotted.label, plotted.number, plotted.is_control, depth[plotted.column].to_pylist())
            for plotted in columns
            if title != SIZE_PLOT and depth[plotted.column].null_count < len(depth)
        ]
        if curves and len(depth) > 1:
            plots.append(DepthPlot(title, curves))
    return plots


def _atlas_summary(queries: AtlasQueries) -> AtlasSummary:
    atlas, manifest = queries.atlas, queries.atlas.manifest
    written = datetime.fromtimestamp((atlas.folder / MANIFEST).stat().st_mtime, UTC)
    network, images = manifest["network"], manifest["images"]
    input_height, input_width = atlas.input_size
    return AtlasSummary(
        name=atlas.folder.absolute().name,
        model=_without_folders(str(network["model"])),
        weights=_without_folders(str(network.get("weights"))),
        network_hash=str(network.get("hash", ""))[:16],
        image_source=_describe_source(images),
        image_list_hash=str(images.get("hash", ""))[:16],
        read_images=int(manifest["read"]),
        skipped_images=int(manifest.get("skipped", 0)),
        k=atlas.k,
        sample_size=int(manifest.get("sample", 0)),
        precision=str(manifest.get("precision", "fp32")),
        input_height=input_height,
        input_width=input_width,
        has_labels=bool(queries.labels),
        written=written.strftime("%Y-%m-%d %H:%M"),
        images_error=queries.images_error,
    )


def _without_folders(text: str) -> str:
    """A model string, or what weights are called, without the machine's own folders, since an exported site is for everybody.

    >>> _without_folders("/home/me/nets.py:small"), _without_folders("transformers:C:\\\\mine\\\\vit"), _without_folders("timm:hf_hub/x")
    ('nets.py:small', 'transformers:vit', 'timm:hf_hub/x')
    """
    return re.sub(r"(?<![^:])(?:[A-Za-z]:)?[/\\](?:[^/\\:]*[/\\])*", "", text)


def _describe_source(images: dict[str, Any]) -> str:
    """Where the images were, without the machine's own folders, since an exported site is for everybody."""
    kind = images.get("kind")
    if kind == "folder":
        return f"folder {str(images.get('folder', '')).rstrip('/').rpartition('/')[2]}"
    if kind == "list":
        return f"a list of {len(images.get('paths', ())):,} files"
    if kind == "files":
        return f"{len(images.get('files', ())):,} files of many images"
    return str(images.get("name") or images.get("type") or kind)
