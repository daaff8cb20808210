"""score_units(): how well each unit's patches predict its response to images that they don't show."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from unitscope.atlas import Atlas, check_table_writable, tables_by_layer
from unitscope.atlas.patches import CELL_COLUMNS, boxes_on_input, patch_size, resolve_patch_kind
from unitscope.atlas.tables import FACETS, SCORES
from unitscope.embedding.embedders import MIN_CELLS, Embedder, open_embedder
from unitscope.embedding.patches import ImageMaps, means_in_boxes
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.images.content import evenly_spaced
from unitscope.images.keys import key_hash
from unitscope.records import Layer
from unitscope.scoring.facets import MIN_Z, SMALLEST_FACET, clearness, find_facets, principal_axes
from unitscope.scoring.statistics import monosemanticity, predictability, scaled, unit_norm

DEFAULT_EMBEDDER = "lpips-alex"
LOWEST_PATCHES = 9
"""How many of the lowest of the sample stand against the peaks."""
TAIL_SHARE = 10
"""One in so many images of the sample excites a unit much, and one in so many little."""
MIN_QUERIES = 5
"""With fewer images than this in a tail that no patch shows, there is no predictability: an interval over so few says too little."""
MAX_LOCALISED_SHARE = 1 / 4
"""Patches larger than this share of the input have no localisation."""
MAX_POSITIONS = 15
"""How many positions along a side are looked at, at most, for what looks like the patches."""
UNITS_AT_ONCE = 128
FALSE_FACETS = 0.05
"""The share of sets of random patches that may fall into several facets."""

MAX_RANDOM_SETS = 256
"""How many sets of random patches a layer's threshold is made of, at most: the share above it is then exact to 1.4 %."""

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


def score_units(
    atlas: Atlas,
    embedder: "Embedder | str" = DEFAULT_EMBEDDER,
    *,
    layers: Sequence[str] | str | None = None,
    crops: bool = False,
    on_units: Callable[[int], None] | None = None,
) -> pa.Table:
    """How well every unit's patches predict its response to images that they don't show, as the table `scores` of the atlas, and the
    groups that its candidates fall into, as the table `facets`.

    *Predictability*: a variant of the machine interpretability score of Zimmermann et al. 2024 (OpenReview oYyEsVz6DX). The unit's peaks
    stand against its nine lowest patches of the sample; of each pair of other images, one of the upper tenth of the sample and one of the
    lower, is the one that excites the unit more also the one that looks more like the peaks? People are right in 92 ± 2 of 100 (Borowski
    et al. 2021). *Monosemanticity*: the mean cosine of all pairs of patches of the sample, weighed by the responses (Pach et al. 2025).
    *Localisation*: in how many images of the upper tenth what looks most like the peaks lies where the unit responds.

    Each with what chance gives. `embedder` says what looks alike: `demo`, `lpips-alex`, a model string, or an `Embedder`; not the network
    that was scanned. Its maps are averaged over each patch, centred on the mean of the layer's patches, and compared by cosine; with `crops`
    each patch is cut out and embedded by itself, which takes hours for many layers, and has no localisation.

    A run that was stopped goes on with the next layer. Raises `UnitscopeError` where the embedder is missing or is the scanned network, and
    where the sample is too small.
    """
    check_table_writable(SCORES, atlas)
    chosen = atlas.layers_matching(layers)
    images_of_sample = _sampled_images(atlas)
    opened = open_embedder(embedder)
    if opened.weights_hash == atlas.manifest["network"]["hash"]:
        raise UnitscopeError(f"the embedder {opened.name!r} is the network that was scanned; give another --embedder")
    parameters = {"embedder": opened.name, "embedder_hash": opened.weights_hash, "crops": crops}
    versions = {"torch": torch.__version__}
    with (
        closing(ImageMaps(atlas, opened, crops)) as images,
        tables_by_layer((SCORES, FACETS), atlas, chosen, parameters=parameters, versions=versions) as (scores, facets),
    ):
        for layer in chosen:
            if not (scores.has(layer) and facets.has(layer)):
                of_layer = _layer_tables(atlas, layer, images, images_of_sample)
                scores.add(layer, of_layer.scores)
                facets.add(layer, of_layer.facets)
            if on_units is not None:
                on_units(layer.units)
    return atlas.table(SCORES.name)


@dataclass(frozen=True, slots=True)
class LayerTables:
    """A layer's rows of the tables `scores` and `facets`."""

    scores: pa.Table
    facets: pa.Table


def _layer_tables(atlas: Atlas, layer: Layer, images: ImageMaps, images_of_sample: Ints) -> LayerTables:
    kind = resolve_patch_kind(atlas, layer, "auto")
    sampled = _sampled(atlas, layer, kind, images, images_of_sample)
    axes = principal_axes(sampled.embeddings)
    candidates = EmbeddedCandidates.of(atlas, layer, kind, images, sampled.centre, axes)
    is_point = (candidates.images >= 0) & ~candidates.is_near_duplicate
    min_z = _clearness_by_chance(*_random_patches(sampled, is_point.sum(1), axes, seed=0))
    facets = find_facets(candidates.points, is_point, min_z)
    columns = _layer_scores(atlas, layer, kind, images, sampled, candidates) | {
        "facets": facets.max(1, initial=-1) + 1,
        "facets_shuffled": find_facets(*_random_patches(sampled, is_point.sum(1), axes, seed=1), min_z).max(1, initial=-1) + 1,
    }
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    unit, candidate = np.nonzero(is_point)
    rows = {
        "layer": pa.repeat(layer.name, len(unit)),
        "unit": unit,
        "candidate": candidate + 1,
        "facet": facets[unit, candidate] + 1,
    }
    embedder = {"embedder": pa.repeat(images.embedder.name, layer.units)}
    return LayerTables(pa.table(arrays | embedder), pa.table(rows))


def _random_patches(sampled: "SampledLayer", counts: Ints, axes: Floats, seed: int) -> tuple[Floats, Bools]:
    """As many patches of each unit as it has candidates, drawn at random from the sample, as points for `find_facets`."""
    has_value = ~np.isnan(sampled.responses)
    order = np.where(has_value, np.random.default_rng(seed).random(has_value.shape), np.inf)
    drawn = np.argsort(order, axis=1, kind="stable")[:, : max(int(counts.max(initial=1)), 1)]
    is_point = (np.arange(drawn.shape[1]) < counts[:, None]) & np.take_along_axis(has_value, drawn, 1)
    points: Floats = (sampled.embeddings @ axes)[np.take_along_axis(sampled.patches, drawn, 1)]
    return points, is_point


def _clearness_by_chance(points: Floats, is_point: Bools) -> float:
    """From which clearness on a cut is clearer than those of random patches, but for a share of them. Sets too small to be cut don't count."""
    large_enough = np.flatnonzero(is_point.sum(1) >= 2 * SMALLEST_FACET)
    chosen = large_enough[evenly_spaced(len(large_enough), MAX_RANDOM_SETS)]
    by_chance = clearness(points[chosen], is_point[chosen])
    return max(MIN_Z, float(np.quantile(by_chance, 1 - FALSE_FACETS, method="higher"))) if len(by_chance) else MIN_Z


@dataclass(frozen=True, slots=True)
class SampledLayer:
    """A layer's responses to the images of the sample, and its patches there: which row of `embeddings` each is, of shape (unit, image).

    NaN is no response; its patch is any. `boxes` are those of the patches, a row each; `embeddings` are centred and of unit norm. `ranks`
    are those of the responses, 0 for the lowest, NaN last; equal ones are in an order of the unit's own, the same wherever the images stand.
    """

    images: Ints
    responses: Floats
    ranks: Ints
    patches: Ints
    boxes: Floats
    embeddings: Floats
    centre: Floats


@dataclass(frozen=True, slots=True)
class EmbeddedCandidates:
    """Each unit's candidates: images, -1 for none; which are near-duplicates of one before; which are the unit's peaks.

    `points` are their embeddings along the layer's main axes, of shape (unit, candidate, axis); `peak_means` the mean embedding of each unit's
    peaks, of shape (unit, number), zero where there are none. Embeddings are centred and of unit norm.
    """

    images: Ints
    is_near_duplicate: Bools
    is_peak: Bools
    points: Floats
    peak_means: Floats

    @classmethod
    def of(cls, atlas: Atlas, layer: Layer, kind: str, images: ImageMaps, centre: Floats, axes: Floats) -> "EmbeddedCandidates":
        """The embeddings come image by image: those of all candidates together may take gigabytes."""
        table = atlas.table("candidates", layer.name)
        unit, rank, image = table["unit"].to_numpy(), table["candidate"].to_numpy() - 1, table["image"].to_numpy()
        of_cell = {name: table[name].to_numpy() for name in CELL_COLUMNS}
        first, patch = _unique_patches(layer, image, of_cell)
        boxes = boxes_on_input(atlas, layer, kind, {name: values[first] for name, values in of_cell.items()})
        shape = (layer.units, int(rank.max(initial=0)) + 1)
        numbers, is_near_duplicate = np.full(shape, -1), np.zeros(shape, dtype=bool)
        numbers[unit, rank] = image
        is_near_duplicate[unit, rank] = table["near_duplicate"].to_numpy(zero_copy_only=False)
        is_distinct = (numbers >= 0) & ~is_near_duplicate
        is_peak = is_distinct & (is_distinct.cumsum(1) <= atlas.k)
        points = np.zeros((len(first), axes.shape[1]), dtype=np.float32)
        peak_sums = np.zeros((layer.units, len(centre)))
        peaks = np.flatnonzero(is_peak[unit, rank])
        peaks = peaks[np.argsort(patch[peaks], kind="stable")]
        patch_of_peak = patch[peaks]
        for rows, raw in images.embedded(image[first], boxes):
            embeddings = unit_norm(raw - centre)
            points[rows] = embeddings @ axes
            shown = slice(*np.searchsorted(patch_of_peak, (rows[0], rows[-1] + 1)))  # patches come in the order of their images
            np.add.at(peak_sums, unit[peaks[shown]], embeddings[patch_of_peak[shown] - rows[0]])
        points_of_unit = np.zeros((*shape, axes.shape[1]), dtype=np.float32)
        points_of_unit[unit, rank] = points[patch]
        peak_means = peak_sums / np.maximum(is_peak.sum(1, keepdims=True), 1)
        return cls(numbers, is_near_duplicate, is_peak, points_of_unit, peak_means)

    def seen_images(self) -> Ints:
        """The images of each unit's peaks, and those that are near-duplicates of any; -1 elsewhere."""
        return np.where(self.is_peak | self.is_near_duplicate, self.images, -1)


def _layer_scores(
    atlas: Atlas, layer: Layer, kind: str, images: ImageMaps, sampled: SampledLayer, candidates: EmbeddedCandidates
) -> dict[str, Any]:
    has_value, has_peak = ~np.isnan(sampled.responses), np.any(candidates.is_peak, axis=1, keepdims=True)
    is_lowest = (sampled.ranks < LOWEST_PATCHES) & has_value
    is_upper, is_lower = _tails(sampled, is_lowest | _is_among(sampled.images, candidates.seen_images()))
    high_minus_low = candidates.peak_means - _means(sampled, is_lowest)
    likeness = _likeness(sampled, high_minus_low, (is_upper | is_lower) & has_peak)
    rng = np.random.default_rng(0)
    scored = predictability(np.where(is_upper, likeness, np.nan), np.where(is_lower, likeness, np.nan), rng)
    shuffled_upper = _shuffled(is_upper, is_lower, rng)
    control = predictability(
        np.where(shuffled_upper, likeness, np.nan), np.where((is_upper | is_lower) & ~shuffled_upper, likeness, np.nan), rng
    )
    localised, chance = _localisation(atlas, layer, kind, images, sampled, candidates.peak_means, is_upper & has_peak)
    return {
        "layer": np.full(layer.units, layer.name, dtype=object),
        "unit": np.arange(layer.units),
        "predictability": scored.share,
        "predictability_low": scored.low,
        "predictability_high": scored.high,
        "predictability_shuffled": control.share,
        "pairs": (is_upper.sum(1) * is_lower.sum(1) * has_peak[:, 0]).astype(np.int32),
        **_monosemanticity(sampled, rng),
        "localisation": localised,
        "localisation_chance": chance,
    }


def _sampled_images(atlas: Atlas) -> Ints:
    """Raises `AtlasError` where the sample is too small for its tenths to hold images that no patch shows."""
    images = np.unique(atlas.table("sample", columns=("image",))["image"].to_numpy())
    if len(images) // TAIL_SHARE < LOWEST_PATCHES + MIN_QUERIES:
        raise AtlasError(
            f"the sample of {str(atlas.folder)!r} has {len(images)} images, too few for scores: a tenth must be {LOWEST_PATCHES + MIN_QUERIES} or "
            "more; scan with --sample 200 or more, of as many images"
        )
    return images


def _sampled(atlas: Atlas, layer: Layer, kind: str, images: ImageMaps, numbers: Ints) -> SampledLayer:
    table = atlas.sample(layer.name)
    is_finite = np.isfinite(table["value"].to_numpy())
    unit, image, value, *cells = (table[name].to_numpy()[is_finite] for name in ("unit", "image", "value", *CELL_COLUMNS))
    of_cell = dict(zip(CELL_COLUMNS, cells, strict=True))
    columns = np.searchsorted(numbers, image)
    first, patch = _unique_patches(layer, columns, of_cell)
    if not len(first):  # a layer of NaN: any patch stands for none
        first, of_cell = np.zeros(1, dtype=np.int64), {name: np.zeros(1, dtype=np.int64) for name in CELL_COLUMNS}
        columns = np.zeros(1, dtype=np.int64)
    boxes = boxes_on_input(atlas, layer, kind, {name: values[first] for name, values in of_cell.items()})
    raw = images.embed(numbers[columns[first]], boxes)
    centre = raw.mean(0)
    shape = (layer.units, len(numbers))
    responses, patches = np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    responses[unit, columns[: len(unit)]], patches[unit, columns[: len(unit)]] = value, patch
    by_hash = np.argsort(np.argsort([key_hash(atlas.key(number)) for number in numbers.tolist()]))
    ranks = _ranks(responses, np.random.default_rng(0).random(shape)[:, by_hash])
    return SampledLayer(numbers, responses, ranks, patches, boxes, unit_norm(raw - centre), centre)


def _unique_patches(layer: Layer, image: Ints, of_cell: Mapping[str, Ints]) -> tuple[Ints, Ints]:
    """Units may have one patch in common: which rows are the first of their patch, by image and cell, and which of these patches each row shows."""
    cell = of_cell["y"].astype(np.int64) * layer.map_width + of_cell["x"]
    _, first, patch = np.unique(image * layer.map_height * layer.map_width + cell, return_index=True, return_inverse=True)
    return first, patch


def _tails(sampled: SampledLayer, is_seen: Bools) -> tuple[Bools, Bools]:
    """The upper and the lower tenth of each unit's responses, without images that its patches show.

    Where one value reaches from one tail into the other, as the zeros of a unit that is seldom active do, images that have it are in one
    tail alone, the lower one if the upper has others: of two equal responses none is the higher. Both are empty where one is too small.
    """
    has_value = ~np.isnan(sampled.responses)
    counts = has_value.sum(1, keepdims=True)
    tail = counts // TAIL_SHARE
    is_upper, is_lower = (sampled.ranks >= counts - tail) & has_value, (sampled.ranks < tail) & has_value
    responses = np.where(has_value, sampled.responses, -np.inf)
    border = np.where(is_lower, responses, -np.inf).max(1, keepdims=True, initial=-np.inf)
    is_upper, is_lower = is_upper & ~is_seen, is_lower & ~is_seen
    is_above = is_upper & (responses > border)
    has_above = is_above.any(1, keepdims=True)
    is_below = is_lower & (responses < np.where(is_upper, responses, np.inf).min(1, keepdims=True, initial=np.inf))
    is_upper, is_lower = np.where(has_above, is_above, is_upper), np.where(has_above, is_lower, is_below)
    has_queries = np.minimum(is_upper.sum(1, keepdims=True), is_lower.sum(1, keepdims=True)) >= MIN_QUERIES
    return is_upper & has_queries, is_lower & has_queries


def _is_among(images: Ints, of_unit: Ints) -> Bools:
    """Which images, in ascending order, are among those of each unit, of shape (unit, image)."""
    is_among = np.zeros((len(of_unit), len(images) + 1), dtype=bool)
    column = np.searchsorted(images, of_unit)
    is_sampled = (column < len(images)) & (images[np.minimum(column, len(images) - 1)] == of_unit)
    is_among[np.arange(len(of_unit))[:, None], np.where(is_sampled, column, len(images))] = True
    return is_among[:, :-1]


def _ranks(responses: Floats, tie_breaks: Floats) -> Ints:
    """The rank of each image among a unit's responses, 0 for the lowest; NaN comes last. Equal ones come in the order of the tie breaks."""
    ranks = np.empty(responses.shape, dtype=np.int64)
    np.put_along_axis(ranks, np.lexsort((tie_breaks, responses), axis=1), np.arange(responses.shape[1])[None], axis=1)
    return ranks


def _means(sampled: SampledLayer, is_chosen: Bools) -> Floats:
    """The mean embedding of each unit's chosen patches."""
    weights = is_chosen / np.maximum(is_chosen.sum(1, keepdims=True), 1)
    return _weighed_sums(sampled, weights)


def _weighed_sums(sampled: SampledLayer, weights: Floats) -> Floats:
    """For each unit the sum of its patches' embeddings, each times its weight."""
    embeddings = torch.from_numpy(sampled.embeddings.astype(np.float32))
    sums = embedding_bag(
        torch.from_numpy(sampled.patches), embeddings, per_sample_weights=torch.from_numpy(weights.astype(np.float32)), mode="sum"
    )
    result: Floats = sums.numpy()
    return result


def _likeness(sampled: SampledLayer, high_minus_low: Floats, is_wanted: Bools) -> Floats:
    """How much more the patch of each wanted image looks like the highest ones than like the lowest; NaN for others."""
    likeness = np.full(is_wanted.shape, np.nan)
    for start in range(0, len(is_wanted), UNITS_AT_ONCE):
        unit, image = np.nonzero(is_wanted[start : start + UNITS_AT_ONCE])
        unit += start
        embeddings = sampled.embeddings[sampled.patches[unit, image]]
        likeness[unit, image] = np.einsum("pc,pc->p", embeddings, high_minus_low[unit])
    return likeness


def _shuffled(is_upper: Bools, is_lower: Bools, rng: np.random.Generator) -> Bools:
    """As many of the images of both tails as the upper has, drawn at random, unit by unit."""
    order = np.where(is_upper | is_lower, rng.random(is_upper.shape), np.inf)
    shuffled: Bools = _ranks(order, order) < is_upper.sum(1, keepdims=True)
    return shuffled


def _monosemanticity(sampled: SampledLayer, rng: np.random.Generator) -> dict[str, Any]:
    has_value = ~np.isnan(sampled.responses)
    lowest = np.where(has_value, sampled.responses, np.inf).min(1, keepdims=True)
    weights = scaled(np.where(has_value, sampled.responses, np.where(np.isfinite(lowest), lowest, 0)))
    shuffled = weights[:, rng.permutation(weights.shape[1])]
    return {
        name: monosemanticity(of_unit, _weighed_sums(sampled, of_unit))
        for name, of_unit in (("monosemanticity", weights), ("monosemanticity_shuffled", shuffled))
    }


def _localisation(
    atlas: Atlas,
    layer: Layer,
    kind: str,
    images: ImageMaps,
    sampled: SampledLayer,
    peak_embeddings: Floats,
    is_query: Bools,
) -> tuple[Floats, Floats]:
    """In what share of its queries each unit's patches are found where the unit responds, and what chance gives."""
    (height, width), (input_height, input_width) = patch_size(atlas, layer, kind), atlas.input_size
    none = np.full(layer.units, np.nan)
    if images.crops or height * width >= MAX_LOCALISED_SHARE * input_height * input_width:
        return none, none
    top, left = _positions(height, input_height), _positions(width, input_width)
    tops, lefts = (values.ravel() for values in np.meshgrid(top, left, indexing="ij"))
    grid = np.stack([tops, lefts, tops + height, lefts + width], axis=1).astype(np.float64)
    centres = np.stack([tops + height / 2, lefts + width / 2], axis=1)
    hits, chances, counts = np.zeros(layer.units), np.zeros(layer.units), is_query.sum(1)
    for column, (_, maps) in enumerate(images.of(sampled.images.tolist())):
        units = np.flatnonzero(is_query[:, column])
        if maps.shape[0] * maps.shape[1] < MIN_CELLS:
            return none, none
        if not len(units):
            continue
        positions = unit_norm(means_in_boxes(maps, grid, atlas.input_size) - sampled.centre)
        boxes = sampled.boxes[sampled.patches[units, column]]
        cells = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], axis=1) / 2
        is_within = np.abs(centres[None] - cells[:, None]) <= (height / 2, width / 2)
        is_near = np.logical_and(is_within[:, :, 0], is_within[:, :, 1])
        best = (peak_embeddings[units] @ positions.T).argmax(1)
        hits[units] += is_near[np.arange(len(units)), best]
        chances[units] += is_near.mean(1)
    with np.errstate(invalid="ignore"):
        return hits / counts, chances / counts


def _positions(length: float, available: float) -> Floats:
    """Starts of ranges of that length that cover the available one, each overlapping the next by half or more."""
    count = int(min(MAX_POSITIONS, max(1, np.ceil(2 * (available - length) / length) + 1)))
    positions: Floats = np.linspace(0, max(available - length, 0), count)
    return positions
