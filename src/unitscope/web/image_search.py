"""Search by image: the units that an uploaded image excites as much as the images of the atlas."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from math import ceil
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitscope.atlas import Atlas
from unitscope.atlas.explanations import explained_layer
from unitscope.atlas.samples import z_scores
from unitscope.images import Geometry, Skipped, decode_image
from unitscope.records import Box, ClassChange, ClassScore, ImageExplanation, Layer, Response, UnitEffect
from unitscope.web.page_records import AtlasSummary
from unitscope.web.pages import PageBuilder
from unitscope.web.purpose_records import Trust
from unitscope.web.queries import AtlasQueries

MAX_UPLOAD_MB, MAX_UPLOAD_PIXELS = 20, 50_000_000
"""An image of 50 million pixels takes 150 MB when it is decoded."""
TOO_LARGE = f"has more than {MAX_UPLOAD_PIXELS // 1_000_000} million pixels"
MAX_UNITS_PER_LAYER = 12
ROUNDING = 1e-5
"""A value differs in its last bits with the batch that its image is in; values that differ by no more than this share are equal."""

MAX_MAP_SIDE = 28
"""Maps of effects are drawn in so many cells along a side, at most."""

RunNetwork = Callable[[Image.Image], Sequence[Response]]
"""Runs the network over an image; it is passed in, so that pages need no network."""


@dataclass(frozen=True, slots=True)
class WhyQuestion:
    """What of an image is to be explained: a class, the predicted one where it is None, and not another; by the units of one layer, with some
    units taken away."""

    explained: str | None = None
    against: str | None = None
    layer: str | None = None
    taken_away: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: Mapping[str, str], taken_away: Sequence[str]) -> "WhyQuestion":
        """From the parameters of an address; units that are taken away are written LAYER:UNIT."""
        by_layer: dict[str, list[int]] = {}
        for text in taken_away:
            layer, _, unit = text.rpartition(":")
            if layer and unit.isdecimal() and len(unit) < MAX_DIGITS:
                by_layer.setdefault(layer, []).append(int(unit))
        explained, against, shown_layer = (parameters.get(name, "").strip() or None for name in ("class", "not", "layer"))
        return cls(explained, against, shown_layer, by_layer)


ExplainImage = Callable[[Image.Image, WhyQuestion], ImageExplanation]
"""Says why the network gives an image its class; it is passed in, as the network is."""
MAX_DIGITS = 10
IMAGE_PARAMETERS = ("image", "predicted-image")
"""What an address calls the number of an image of the atlas, and of one that it mentions for what the network predicts alone: of these, numbers
may be those of others."""


@dataclass(frozen=True, slots=True)
class CarryingUnit:
    """A unit that raises the score in an image, or lowers it; `map` says where, as rows, columns and whole numbers from -99 to 99. `name` and
    `predictability` are those of `names` and `scores`."""

    layer: str
    unit: int
    name: str | None
    predictability: float | None
    effect: float
    share: float
    map: str | None


@dataclass(frozen=True, slots=True)
class RemovedUnit:
    """A unit that was taken away, and what it is called."""

    layer: str
    unit: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Why:
    """Why an image has its class, by the units of one layer. `input_box` is the part of the image that the network sees, in its pixels.

    Where units were taken away, `score_before` is the score with all units, and `changes` has what became of the classes.
    """

    top: list[ClassScore]
    explained: ClassScore
    against: ClassScore | None
    score: float
    layer: str
    layers: list[str]
    trust: Trust
    raising: list[CarryingUnit]
    lowering: list[CarryingUnit]
    taken_away: list[RemovedUnit]
    score_before: float | None
    changes: list[ClassChange]
    input_box: Box


@dataclass(frozen=True, slots=True)
class ExcitedUnit:
    """A unit that an image excites.

    `rank` is the one that the image would take among the unit's peaks, None where it would take none; `share_below` the share of the
    sample whose values are lower. `box` is in pixels of the image as displayed.
    """

    layer: str
    unit: int
    value: float
    rank: int | None
    share_below: float
    box: Box


@dataclass(frozen=True, slots=True)
class ExcitedLayer:
    """The units of one layer that an image excites most."""

    layer: Layer
    units: list[ExcitedUnit]


@dataclass(frozen=True, slots=True)
class AtlasImage:
    """An image of the atlas; one that isn't known is mentioned for what the network predicts alone, and has no page."""

    image: int
    key: str
    is_known: bool


@dataclass(frozen=True, slots=True)
class ImageSearchResults:
    """The excited units of all layers, and the image's size in pixels as displayed. A piece of a page. `image` is None where it was uploaded."""

    template: ClassVar[str] = "image_search_results.html"
    path: str
    atlas: AtlasSummary
    width: int
    height: int
    layers: list[ExcitedLayer]
    why: Why | None = None
    image: AtlasImage | None = None


def find_image(queries: AtlasQueries, parameter: str, text: str) -> AtlasImage | None:
    """The image of the atlas whose number stands in a parameter of an address, one of `IMAGE_PARAMETERS`; None where there is no such image."""
    if not (text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS):
        return None
    number, is_known = int(text), parameter == IMAGE_PARAMETERS[0]
    if is_known:
        entry = queries.images.get(number)
        key = None if entry is None else entry.key
    else:
        key = queries.purpose.predicted_images.get(number)
    return None if key is None else AtlasImage(number, key, is_known)


def open_atlas_image(atlas: Atlas, found: AtlasImage) -> Image.Image:
    """An image of the atlas as the scan read it. Raises `Skipped` where it is gone, has changed or has too many pixels, `ImagesError` where all
    are gone."""
    if found.is_known:
        _check_pixels(*atlas.image_size(found.image))
        opened = atlas.open_image(found.image)
    else:
        opened = atlas.open_image_of_key(found.image, found.key)
    if not isinstance(opened, Image.Image):
        raise Skipped("is a tensor, from which there is no known way to the network's input")
    _check_pixels(*opened.size)
    return opened


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_UPLOAD_PIXELS:
        raise Skipped(TOO_LARGE)


def decode_upload(content: bytes) -> Image.Image:
    """An uploaded image as displayed. Raises `Skipped` where it is no image, or has too many pixels."""
    try:
        with warnings.catch_warnings(action="error"), Image.open(BytesIO(content)) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Skipped(TOO_LARGE) from error
    except Exception as error:  # whatever a file that lies about itself leads to
        raise Skipped("is no image that can be read") from error
    _check_pixels(width, height)
    return decode_image(BytesIO(content))


def search_by_image(pages: PageBuilder, image: Image.Image, responses: Sequence[Response]) -> ImageSearchResults:
    """The units of each layer for which the image would be among the peaks, or lies above the whole sample."""
    geometry = Geometry.of(pages.queries.atlas.preprocessing, image.height, image.width)
    layers = []
    for response in responses:
        layer = pages.queries.atlas.layer(response.layer)
        units = _excited_units(pages.queries, layer, response, geometry)
        if units:
            layers.append(ExcitedLayer(layer, units))
    return ImageSearchResults("image-search.html", pages.atlas_summary, image.width, image.height, layers)


def explained_image(pages: PageBuilder, image: Image.Image, explanation: ImageExplanation, question: WhyQuestion) -> Why:
    """The explanation of an image as a piece of a page."""
    atlas = pages.queries.atlas
    of_layer = explained_layer(atlas, explanation, question.layer)
    meanings = pages.queries.meanings(of_layer.layer)
    input_box = Geometry.of(atlas.preprocessing, image.height, image.width).to_source(Box(0, 0, *atlas.input_size))

    def carrying(units: Sequence[UnitEffect]) -> list[CarryingUnit]:
        return [
            CarryingUnit(
                of_layer.layer, unit.unit, meanings[unit.unit].name, meanings[unit.unit].predictability,
                unit.effect, unit.share, None if unit.map is None else _map_text(unit.map),
            )
            for unit in units
        ]  # fmt: skip

    def named(score: ClassScore) -> ClassScore:
        """By a name that no other class has."""
        return replace(score, name=pages.queries.purpose.class_names.get(score.position, score.name))

    against = None if explanation.against is None else named(explanation.against)
    return Why(
        [named(score) for score in explanation.top], named(explanation.explained), against, explanation.score, of_layer.layer,
        [found.layer for found in explanation.layers if found.raising or found.lowering], pages.queries.purpose.trust(of_layer.layer),
        carrying(of_layer.raising), carrying(of_layer.lowering),
        _removed_units(pages.queries, question), _score_before(explanation),
        [ClassChange(named(change.before), named(change.after)) for change in explanation.changes], input_box,
    )  # fmt: skip


def _removed_units(queries: AtlasQueries, question: WhyQuestion) -> list[RemovedUnit]:
    return [
        RemovedUnit(layer, unit, queries.meanings(layer)[unit].name)
        for layer, units in question.taken_away.items()
        for unit in dict.fromkeys(units)
    ]


def _score_before(explanation: ImageExplanation) -> float | None:
    """The score that is explained, of the network with all its units; None where none was taken away."""
    before = {change.before.position: change.before.score for change in explanation.changes}
    if not before:
        return None
    against = 0.0 if explanation.against is None else before[explanation.against.position]
    return before[explanation.explained.position] - against


def _map_text(values: NDArray[np.float32]) -> str:
    """A map in few cells: rows, columns, and each value as a share of the largest one, in 99ths."""
    step_y, step_x = (ceil(length / MAX_MAP_SIDE) for length in values.shape)
    height, width = (ceil(length / step) for length, step in zip(values.shape, (step_y, step_x), strict=True))
    padded = np.zeros((height * step_y, width * step_x))
    padded[: values.shape[0], : values.shape[1]] = np.nan_to_num(values)
    means = padded.reshape(height, step_y, width, step_x).mean((1, 3))
    shares = np.rint(99 * means / (np.abs(means).max() or 1)).astype(int)
    return " ".join(map(str, [height, width, *shares.ravel().tolist()]))


def _excited_units(queries: AtlasQueries, layer: Layer, response: Response, geometry: Geometry) -> list[ExcitedUnit]:
    """The units with the highest z-scores among those for which the image would be a peak, or lies above the whole sample."""
    values, sample = response.values.astype(np.float64), queries.sample_statistics(layer.name)
    ranks = _ranks(queries, layer, values)
    is_above_sample = values > sample.highest
    is_above_sample[list(queries.no_preference(layer.name))] = False  # the sample reaches no more than the peaks do
    responds = np.isfinite(values) & ((values > 0) | (not layer.rectified))
    candidates = np.flatnonzero(responds & ((ranks > 0) | is_above_sample))
    sorted_values, unit_starts = queries.sample_values(layer.name)
    by_z_score = candidates[np.argsort(-z_scores(values, sample)[candidates], kind="stable")]  # NaN comes last
    return [
        ExcitedUnit(
            layer.name,
            unit,
            float(values[unit]),
            int(ranks[unit]) or None,
            _share_below(sorted_values[unit_starts[unit] : unit_starts[unit + 1]], values[unit]),
            geometry.to_source(Box(*(float(side) for side in response.boxes[unit]))),
        )
        for unit in by_z_score[:MAX_UNITS_PER_LAYER].tolist()
    ]


def _share_below(sample: NDArray[np.float32], value: float) -> float:
    return float((sample < value).mean()) if len(sample) else 0.0


def _ranks(queries: AtlasQueries, layer: Layer, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rank that each unit's value would take among its peaks. Shapes are (unit,).

    0 where it would take none, or only one among peaks that tie with more images than are shown.
    """
    unit_of_peak, peaks = queries.peak_units_and_values(layer.name)
    is_higher = peaks > (values + ROUNDING * np.abs(values))[unit_of_peak]
    ranks = np.bincount(unit_of_peak[is_higher], minlength=layer.units) + 1
    ranks[ranks > queries.atlas.k] = 0
    for unit, tie in queries.ties(layer.name).items():
        tied_value = peaks[np.searchsorted(unit_of_peak, unit) + tie.first - 1]
        if ranks[unit] >= tie.first and not values[unit] > tied_value + ROUNDING * abs(tied_value):
            ranks[unit] = 0
    return ranks
