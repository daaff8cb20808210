"""How much of a unit's response to photographs brightness, colour, contrast and its best grating explain, from patches of the sample."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.meaning import TUNING_IMAGES
from unitscope.atlas.patches import CELL_COLUMNS, boxes_on_input, resolve_patch_kind
from unitscope.embedding.patches import seen_pixels
from unitscope.errors import ImagesWarning, UnitscopeError
from unitscope.images.keys import image_half, key_hash
from unitscope.naming.stimuli import RED_AXIS, YELLOW_AXIS, normal_of
from unitscope.naming.tuning_curves import GratingTuning
from unitscope.records import Layer

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FEATURES = ("match", "energy", "brightness", "red", "yellow", "contrast")
"""How well a patch matches the unit's grating, with its phase and with any; the mean brightness and the mean of both axes of colour of the
patch; the standard deviation of its brightness."""
IMAGES_PER_FEATURE = 3
"""A half needs this many images for each feature, or `explained` is null."""
RIDGE = 1e-3
SMALLEST_DEVIATION = 1e-7
"""Features that vary less don't count: they are rounding."""


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """Of a layer's units in images of the sample: the responses, of shape (unit, image), NaN for none; the features of the patches, of shape
    (unit, image, feature); and which half each image is in."""

    responses: Floats
    features: NDArray[np.float32]
    halves: Integers


def patch_features(atlas: Atlas, waves: Sequence[GratingTuning | None]) -> Iterator[PatchFeatures]:
    """The features of every layer's patches. `waves` has each layer's tuning to gratings, None where there are no such features."""
    images = _chosen_images(atlas)
    tables = [_SampledBoxes.of(atlas, layer, images) for layer in atlas.layers]
    kept, gone = [], []
    for column, image in enumerate(images.tolist()):
        try:
            picture = np.divide(seen_pixels(atlas, image), 255, dtype=np.float32)
        except UnitscopeError as error:
            gone.append(str(error))
            continue
        kept.append(column)
        sums, luma = _sums(picture), picture.mean(2, dtype=np.float32)
        for table, of_layer in zip(tables, waves, strict=True):
            table.features[:, column, 2:] = _means_in_boxes(sums, table.boxes[:, column])
            if of_layer is not None:
                table.features[:, column, :2] = _matches(luma, table, column, of_layer)
    if gone and not kept:
        raise UnitscopeError(f"no image of the sample can be had, so patches can't be looked at: {gone[0]}")
    if gone:
        warnings.warn(f"{len(gone)} of {len(images)} images of the sample can't be had: {gone[0]}", ImagesWarning, stacklevel=3)
    halves = np.array([image_half(atlas.key(image)) for image in images[kept].tolist()], dtype=np.int64)
    for table in tables:
        yield PatchFeatures(table.responses[:, kept], table.features[:, kept], halves)


@dataclass(frozen=True, slots=True)
class _SampledBoxes:
    """A layer's responses to images of the sample and the boxes of its patches, of shape (unit, image, side)."""

    responses: Floats
    boxes: NDArray[np.int32]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, atlas: Atlas, layer: Layer, images: Integers) -> "_SampledBoxes":
        """`images` in ascending order. Where the layer has no value of one, it is NaN."""
        table = atlas.sample(layer.name)
        numbers = table["image"].to_numpy()
        is_among = np.isin(numbers, images)
        unit, value, *cells = (table[name].to_numpy()[is_among] for name in ("unit", "value", *CELL_COLUMNS))
        column = np.searchsorted(images, numbers[is_among])
        shape = (layer.units, len(images))
        responses, boxes = np.full(shape, np.nan), np.zeros((*shape, 4), dtype=np.int32)
        boxes[..., 2:] = 1
        responses[unit, column] = value
        kind = resolve_patch_kind(atlas, layer, "auto")
        boxes[unit, column] = boxes_on_input(atlas, layer, kind, dict(zip(CELL_COLUMNS, cells, strict=True)))
        return cls(responses, boxes, np.zeros((*shape, len(FEATURES)), dtype=np.float32))


def _chosen_images(atlas: Atlas) -> Integers:
    """Images of the sample whose keys have the lowest hashes, in ascending order: the same ones however the data set is sorted."""
    numbers = np.unique(atlas.table("sample", columns=("image",))["image"].to_numpy()).tolist()
    lowest = sorted(numbers, key=lambda image: key_hash(atlas.key(image)))[:TUNING_IMAGES]
    return np.array(sorted(lowest), dtype=np.int64)


def _sums(picture: NDArray[np.float32]) -> Floats:
    """Sums of brightness, both axes of colour and squared brightness over all that is above and to the left, of shape (y, x, number)."""
    height, width, _ = picture.shape
    luma = picture.mean(2)
    planes = np.stack([luma, picture @ RED_AXIS, picture @ YELLOW_AXIS, luma**2], axis=-1)
    sums = np.zeros((height + 1, width + 1, planes.shape[2]))
    sums[1:, 1:] = planes.cumsum(0, dtype=np.float64).cumsum(1)
    return sums


def _means_in_boxes(sums: Floats, boxes: NDArray[np.int32]) -> Floats:
    """Brightness, both axes of colour, and contrast in each box, as far as it lies on the input, of shape (box, number)."""
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    top, left = np.clip(boxes[:, 0], 0, height - 1), np.clip(boxes[:, 1], 0, width - 1)
    bottom, right = np.clip(boxes[:, 2], top + 1, height), np.clip(boxes[:, 3], left + 1, width)
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    means: Floats = total / ((bottom - top) * (right - left))[:, None]
    means[:, 3] = np.sqrt(np.maximum(means[:, 3] - means[:, 0] ** 2, 0))
    return means


def _matches(luma: NDArray[np.float32], table: _SampledBoxes, column: int, waves: GratingTuning) -> NDArray[np.float32]:
    """How well each unit's patch in an image matches its grating under a window of the size of the field: with its phase, and with any."""
    boxes = table.boxes[:, column]
    height, width = (int(length) for length in (boxes[:, 2:] - boxes[:, :2]).max(0))
    y, x = np.arange(height), np.arange(width)
    rows = np.clip(boxes[:, 0, None] + y, 0, luma.shape[0] - 1)
    columns = np.clip(boxes[:, 1, None] + x, 0, luma.shape[1] - 1)
    patches = luma[rows[:, :, None], columns[:, None, :]]
    across = np.array([normal_of(angle) for angle in waves.angle])
    phase_x, phase_y = (
        2 * np.pi * (axis - (len(axis) - 1) / 2)[None, :] * across[:, side, None] / waves.period_px[:, None]
        for side, axis in ((0, x), (1, y))
    )
    window_y, window_x = (np.hanning(length + 2)[1:-1] for length in (height, width))
    wave_y = (window_y * np.exp(-1j * phase_y)).astype(np.complex64)
    wave_x = (window_x * np.exp(-1j * phase_x)).astype(np.complex64)
    product = np.einsum("uyx,uy,ux->u", patches, wave_y, wave_x, optimize=True)
    share = wave_y.sum(1) * wave_x.sum(1) / (window_y.sum() * window_x.sum())
    product -= share * np.einsum("uyx,y,x->u", patches, window_y, window_x, optimize=True)  # brightness alone doesn't match
    match = (product * np.exp(1j * np.deg2rad(waves.phase))).real
    return np.stack([match, np.abs(product)], axis=1).astype(np.float32)


def explained_share(patches: PatchFeatures) -> tuple[Floats, Floats]:
    """The share of the variance of each unit's responses in half b that a linear model of half a explains, at least 0, of shape (unit), and
    the weights of the features there, in their standard deviations, of shape (unit, feature).

    NaN, and weights of 0, where a half has too few images or equal responses.
    """
    is_value = np.isfinite(patches.responses)
    in_a, in_b = is_value & (patches.halves == 0), is_value & (patches.halves == 1)
    features = patches.features.astype(np.float64)
    mean, deviation = _moments(features, in_a)
    usable = deviation > SMALLEST_DEVIATION
    design = np.where(usable[:, None], (features - mean[:, None]) / np.where(usable, deviation, 1)[:, None], 0)
    responses = np.where(is_value, patches.responses, 0)
    count_a, count_b = in_a.sum(1), in_b.sum(1)
    mean_a = (responses * in_a).sum(1) / np.maximum(count_a, 1)
    centred = (responses - mean_a[:, None]) * is_value
    of_a = design * in_a[:, :, None]
    gram = of_a.transpose(0, 2, 1) @ of_a
    gram += np.eye(len(FEATURES)) * np.where(usable, RIDGE * count_a[:, None], 1)[:, None]
    weights = np.linalg.solve(gram, of_a.transpose(0, 2, 1) @ centred[:, :, None])[:, :, 0]
    residual = ((centred - np.einsum("uif,uf->ui", design, weights)) ** 2 * in_b).sum(1)
    mean_b = (centred * in_b).sum(1) / np.maximum(count_b, 1)
    total = ((centred - mean_b[:, None]) ** 2 * in_b).sum(1)
    spread_a = (centred**2 * in_a).sum(1)
    fits = (np.minimum(count_a, count_b) >= IMAGES_PER_FEATURE * len(FEATURES)) & (total > 0) & (spread_a > 0)
    explained = np.where(fits, np.maximum(0, 1 - residual / np.where(total > 0, total, 1)), np.nan)
    return explained, np.where(fits[:, None], weights, 0)


def _moments(features: Floats, is_among: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each unit's features over some of its images, of shape (unit, feature)."""
    count = np.maximum(is_among.sum(1), 1)[:, None]
    mean: Floats = (features * is_among[:, :, None]).sum(1) / count
    variance = ((features - mean[:, None]) ** 2 * is_among[:, :, None]).sum(1) / count
    return mean, np.sqrt(variance)
