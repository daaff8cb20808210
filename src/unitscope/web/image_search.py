"""What fires here: the units that an image of one's own excites as much as the images of the atlas."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitscope.images import Geometry, Skipped, decode_image
from unitscope.records import Box, Layer, Response
from unitscope.web.page_records import About, LayerRecord
from unitscope.web.pages import Pages
from unitscope.web.queries import Catalogue

MOST_MB, MOST_PIXELS = 20, 50_000_000
UNITS_SHOWN = 12
SAME = 1e-5
"""A value differs in its last bits with the batch that its image is in; so much doesn't count."""


Fires = Callable[[Image.Image], Sequence[Response]]
"""Runs the network over an image; handed in, so that pages need no network."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A unit that an image excites. `rank` is the place that it would take among the unit's peaks, None where it takes none;
    `share` is how much of the sample lies below. `box` is in pixels of the image as displayed."""

    layer: str
    unit: int
    value: float
    rank: int | None
    share: float
    box: Box


@dataclass(frozen=True, slots=True)
class FiringLayer:
    """The units of one layer that an image excites most."""

    layer: LayerRecord
    units: list[Firing]


@dataclass(frozen=True, slots=True)
class FiringPage:
    """All of them, and the image's size in pixels as displayed."""

    template: ClassVar[str] = "fired.html"
    path: str
    about: About
    width: int
    height: int
    layers: list[FiringLayer]


def opened(content: bytes) -> Image.Image:
    """An uploaded image as displayed. Raises `Skipped` where it is none, or has too many pixels."""
    large = f"has more than {MOST_PIXELS // 1_000_000} million pixels"
    try:
        with warnings.catch_warnings(action="error"), Image.open(BytesIO(content)) as image:
            size = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Skipped(large) from error
    except Exception as error:  # whatever a file that lies about itself leads to
        raise Skipped("is no image that can be read") from error
    if size[0] * size[1] > MOST_PIXELS:
        raise Skipped(large)
    return decode_image(BytesIO(content))


def fired(pages: Pages, image: Image.Image, responses: Sequence[Response]) -> FiringPage:
    """The units of each layer for which the image would be among the peaks, or stands above the whole sample."""
    catalogue = pages.catalogue
    layers = []
    for response in responses:
        layer = catalogue.atlas.layer(response.layer)
        units = _exciting(catalogue, layer, response, image)
        if units:
            layers.append(FiringLayer(pages.record(layer), units))
    return FiringPage("fires.html", pages.about, image.width, image.height, layers)


def _exciting(catalogue: Catalogue, layer: Layer, response: Response, image: Image.Image) -> list[Firing]:
    marks = catalogue.marks(layer.name)
    values = response.values.astype(np.float64)
    standing_above = marks.unit[marks.peaks > (values + SAME * np.abs(values))[marks.unit]]
    better = np.bincount(standing_above, minlength=layer.units)
    ranked = (better < catalogue.atlas.k) & ~_ties(catalogue, layer, values, better)
    above = values > marks.highest
    above[list(catalogue.no_preference(layer.name))] = False  # the sample reaches no more than the peaks do
    speaks = np.isfinite(values) & ((values > 0) | (not layer.rectified))
    standing = np.nan_to_num((values - marks.median) / np.where(marks.spread > 0, marks.spread, 1))
    candidates = np.flatnonzero(speaks & (ranked | above))
    order = candidates[np.lexsort((candidates, -standing[candidates]))][:UNITS_SHOWN]
    geometry = Geometry.of(catalogue.atlas.preprocessing, image.height, image.width)

    def firing(unit: int) -> Firing:
        share = (
            float((catalogue.sample(layer.name, unit) < values[unit]).mean()) if len(catalogue.sample(layer.name, unit)) else 0.0
        )
        box = geometry.to_source(Box(*(float(side) for side in response.boxes[unit])))
        rank = int(better[unit]) + 1 if ranked[unit] else None
        return Firing(layer.name, unit, float(values[unit]), rank, share, box)

    return [firing(int(unit)) for unit in order]


def _ties(catalogue: Catalogue, layer: Layer, values: NDArray[np.float64], better: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each unit, whether the value would come in only among peaks that tie with more images than are shown."""
    found = np.zeros(layer.units, dtype=np.bool_)
    marks = catalogue.marks(layer.name)
    for unit, tie in catalogue.ties(layer.name).items():
        tied = marks.peaks[np.searchsorted(marks.unit, unit) + tie.first - 1]
        found[unit] = better[unit] >= tie.first - 1 and not values[unit] > tied + SAME * abs(tied)
    return found
