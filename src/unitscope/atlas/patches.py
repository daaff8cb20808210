"""Patches of an atlas: which box of the source image each shows, and its pixels. How they are cut is `unitscope.drawing`'s."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitscope.atlas.attribution_images import ZERO_PIXEL, draw_attribution
from unitscope.atlas.packed import PackedPatches
from unitscope.atlas.reading import AtlasReader
from unitscope.drawing import SHEET_GROUND, Crop, Ground, cut_patch, draw_missing_patch
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError, ImagesWarning, first_line
from unitscope.images import Changed, Geometry, Skipped
from unitscope.records import Box, Layer, Peak, Preprocessing

PATCH_KINDS = ("auto", "field", "effective", "image")
SMALL_FIELD_SHARE = 1 / 8
"""A receptive field whose sides are no more than this share of the input's is drawn as it is (`docs/questions.md`)."""

CELL_COLUMNS = ("y", "x", "top", "left", "bottom", "right")
"""What a table says of a cell: where it stands on the activation map, and the sides of its receptive field."""

UnitRank = tuple[int, int]
"""The number of a unit of a layer, and the rank of one of its peaks."""


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """How peaks are drawn: what a patch shows, the method whose attribution stands beside it, if any, and the side in pixels; with
    `from_images` from the images themselves, also where the atlas has packed patches. With `troughs` those are drawn in place of peaks.

    Raises `AtlasError` where attribution is asked for troughs: there is none.
    """

    kind: str = "auto"
    attribution: str | None = None
    size_px: int = 64
    from_images: bool = False
    troughs: bool = False

    def __post_init__(self) -> None:
        if self.troughs and self.attribution is not None:
            raise AtlasError(f"{self.attribution!r} is of peaks, not of troughs; leave one of the two away")


def draw_patch(atlas: AtlasReader, peak: Peak, options: PatchOptions) -> Image.Image:
    """One peak's patch. Raises `AtlasError` where its image is gone or has changed."""
    kind = resolve_patch_kind(atlas, atlas.layer(peak.layer), options.kind)
    try:
        return _Pictures(atlas, kind, options).cut(peak.image, [peak])[peak.unit, peak.rank]
    except Skipped as reason:
        raise AtlasError(
            f"image {atlas.key(peak.image)!r} of the atlas {str(atlas.folder)!r} can't be drawn any more: it {reason}; {WHERE_IMAGES_ARE}"
        ) from reason


# ── which box ───────────────────────────────────────────────────────────────────────────────────────────────────────


def resolve_patch_kind(atlas: AtlasReader, layer: Layer, kind: str) -> str:
    """What the patches of a layer show: `field`, `effective` or `image`.

    `auto` is the receptive field or, where that is no small part of the input, the effective receptive field. The further a receptive
    field reaches, the less of it matters and the more of it is padding; small ones are drawn as they are, since they are exact. From an
    eighth of the input's sides on, sizes go on growing where the one takes over from the other (`docs/questions.md`).

    So `effective` is the receptive field of layers where that is no larger than an eighth of the input's sides: none is measured there.

    Raises `AtlasError` for another word, and for `effective` where the effective receptive field could not be measured.
    """
    if kind not in PATCH_KINDS:
        raise AtlasError(f"patch is one of {', '.join(PATCH_KINDS)}, not {kind!r}")
    if kind == "effective" and layer.effective_field_height is None:
        sizes = (layer.receptive_field_height, layer.receptive_field_width)
        if all(size <= SMALL_FIELD_SHARE * side for size, side in zip(sizes, atlas.input_size, strict=True)):
            return "field"
        raise AtlasError(f"the effective field of layer {layer.name!r} could not be measured; draw its field or the image")
    if kind != "auto":
        return kind
    area = layer.receptive_field_height * layer.receptive_field_width
    is_large = area > SMALL_FIELD_SHARE**2 * atlas.input_size[0] * atlas.input_size[1]
    is_effective_smaller = 0 < (layer.effective_field_height or 0) * (layer.effective_field_width or 0) < area
    return "effective" if is_large and is_effective_smaller else "field"


def patch_size(atlas: AtlasReader, layer: Layer, kind: str) -> tuple[int, int]:
    """Height and width of what a patch of that kind shows, in network-input pixels."""
    if kind == "image":
        return atlas.input_size
    if kind == "effective":
        return (
            layer.effective_field_height or layer.receptive_field_height,
            layer.effective_field_width or layer.receptive_field_width,
        )
    return layer.receptive_field_height, layer.receptive_field_width


def patch_crops(atlas: AtlasReader, peaks: Sequence[Peak], kind: str, image_sizes: Sequence[tuple[int, int]]) -> list[Crop]:
    """What the patches of some peaks of one layer show of their source images, whose heights and widths `image_sizes` gives.

    `kind` is `field`, `effective` or `image`. Sheets and packed blocks draw this; pages draw the same of many rows at once (`web.examples`).

    An effective receptive field is moved so that as much of it as possible lies on the input: padding is part of a receptive field, but
    nothing that a unit responds to.
    """
    boxes = [None] * len(peaks) if kind == "field" else _boxes_on_input(atlas, peaks, kind)
    crops = []
    for peak, box, size in zip(peaks, boxes, image_sizes, strict=True):
        geometry, seen = _geometry_and_seen(atlas.preprocessing, *size)
        on_image = peak.source_box if box is None else geometry.to_source(box)
        crops.append(Crop(on_image, on_image.intersection(seen)))
    return crops


@lru_cache(maxsize=4096)
def _geometry_and_seen(preprocessing: Preprocessing | None, height: int, width: int) -> tuple[Geometry, Box]:
    """How an image of that size becomes the network's input, and the part of it that does."""
    geometry = Geometry.of(preprocessing, height, width)
    return geometry, geometry.to_source(Box(0, 0, *geometry.input)).clipped(height, width)


def _boxes_on_input(atlas: AtlasReader, peaks: Sequence[Peak], kind: str) -> list[Box]:
    """The boxes that the patches of peaks of one layer show, unclipped, in network-input pixels."""
    if not peaks:
        return []
    cells = {name: np.array([getattr(peak, name) for peak in peaks]) for name in CELL_COLUMNS}
    return [Box(*sides) for sides in boxes_on_input(atlas, atlas.layer(peaks[0].layer), kind, cells).tolist()]


def boxes_on_input(atlas: AtlasReader, layer: Layer, kind: str, cells: Mapping[str, Any]) -> NDArray[np.float64]:
    """The boxes that patches of some cells of a layer show, of shape (cell, side): top, left, bottom and right, unclipped, in network-input
    pixels. `cells` has the columns that peaks and sample have: the cell, and the sides of its receptive field."""
    count, (input_height, input_width) = len(cells["y"]), atlas.input_size
    if kind == "image":
        return np.tile([0.0, 0.0, input_height, input_width], (count, 1))
    top, left, bottom, right = (np.asarray(cells[side], dtype=np.float64) for side in ("top", "left", "bottom", "right"))
    if kind == "field":
        return np.stack([top, left, bottom, right], axis=1)
    height, width = patch_size(atlas, layer, kind)
    y = _centres(top, bottom, np.asarray(cells["y"], dtype=np.int64), layer.map_height, input_height)
    x = _centres(left, right, np.asarray(cells["x"], dtype=np.int64), layer.map_width, input_width)
    top, left = _moved_inside(y - height / 2, height, input_height), _moved_inside(x - width / 2, width, input_width)
    return np.stack([top, left, top + height, left + width], axis=1)


def _centres(
    start: NDArray[np.float64], stop: NDArray[np.float64], index: NDArray[np.int64], count: int, input_length: int
) -> NDArray[np.float64]:
    """Where cells lie on the input along one axis: the middle of the receptive field or, where that is the whole input, the cell's own
    position among the `count` there are."""
    is_whole = (start == 0) & (stop == input_length)
    return np.where(is_whole, (index + 0.5) * input_length / count, (start + stop) / 2)


def _moved_inside(start: NDArray[np.float64], length: float, available: float) -> NDArray[np.float64]:
    """Where ranges of that length start when they are moved into the available one, or centred on it where they are longer."""
    return np.full_like(start, (available - length) / 2) if length >= available else start.clip(0, available - length)


# ── its pixels ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class PatchCount:
    """How many patches were to be drawn, and for each that couldn't be, why."""

    requested: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def patches_counted() -> Iterator[PatchCount]:
    """Counts the patches that are drawn in the block. A warning says how many lack their image.

    Raises `ImagesError` where all do.
    """
    count = PatchCount()
    yield count
    if not count.failures:
        return
    text = f"{len(count.failures):,} of {count.requested:,} patches could not be drawn: image {count.failures[0]}; {WHERE_IMAGES_ARE}"
    if len(count.failures) == count.requested:
        raise ImagesError(text)
    warnings.warn(text, ImagesWarning, stacklevel=5)


def cut_patches(
    atlas: AtlasReader, peaks: Sequence[Peak], options: PatchOptions, count: PatchCount
) -> dict[UnitRank, Image.Image]:
    """The patches of one layer's peaks: the packed ones, or cut from the images, of which each is decoded once, several at a time."""
    if not peaks:
        return {}
    layer = atlas.layer(peaks[0].layer)
    if packed := packed_patches(atlas, layer, options):
        return _packed_by_rank(packed, peaks, options)
    pictures = _Pictures(atlas, resolve_patch_kind(atlas, layer, options.kind), options)
    count.requested += len(peaks)
    by_image = groupby(sorted(peaks, key=lambda peak: peak.image), key=lambda peak: peak.image)
    work = [(image, list(image_peaks)) for image, image_peaks in by_image]

    def cut_from_image(image: int, image_peaks: Sequence[Peak]) -> dict[UnitRank, Image.Image]:
        try:
            return pictures.cut(image, image_peaks)
        except Skipped as reason:
            count.failures += [f"{atlas.key(image)!r} {reason}"] * len(image_peaks)
            missing = draw_missing_patch(options.size_px, isinstance(reason, Changed))
            return {(p.unit, p.rank): missing for p in image_peaks}

    if not pictures.are_packed and not atlas.source.thread_safe:  # a data set is read in the thread that draws
        return _merged(cut_from_image(image, image_peaks) for image, image_peaks in work)
    with ThreadPoolExecutor(thread_name_prefix="draw") as pool:
        return _merged(pool.map(cut_from_image, *zip(*work, strict=True)))


def packed_patches(atlas: AtlasReader, layer: Layer, options: PatchOptions) -> PackedPatches | None:
    """The packed patches that a layer's are drawn from; None where they show something else than is asked for, which is what `auto` does."""
    is_auto = resolve_patch_kind(atlas, layer, options.kind) == resolve_patch_kind(atlas, layer, "auto")
    packed = atlas.packed_patches if is_auto and not options.from_images else None
    return None if packed is None or (options.troughs and not packed.has_troughs) else packed


def _packed_by_rank(packed: PackedPatches, peaks: Sequence[Peak], options: PatchOptions) -> dict[UnitRank, Image.Image]:
    column, size_px = "troughs" if options.troughs else "peaks", options.size_px
    by_unit = {unit: packed.patches(peaks[0].layer, unit, column) for unit in {peak.unit for peak in peaks}}
    missing = draw_missing_patch(size_px)
    return {
        (peak.unit, peak.rank): by_unit[peak.unit][peak.rank - 1].resize((size_px, size_px), Image.Resampling.BICUBIC)
        if peak.rank <= len(by_unit[peak.unit])
        else missing
        for peak in peaks
    }


@dataclass(frozen=True)
class _Pictures:
    """The images that patches are cut from: the packed pictures where there are any, else the images themselves."""

    atlas: AtlasReader
    kind: str
    options: PatchOptions

    @property
    def are_packed(self) -> bool:
        return not self.options.from_images and self.atlas.packed_pictures is not None

    def cut(self, image: int, peaks: Sequence[Peak]) -> dict[UnitRank, Image.Image]:
        """The patches of some peaks that lie in one image. Raises `Skipped` where it can't be had."""
        atlas, size_px = self.atlas, self.options.size_px
        picture = atlas.shown_picture(image) if self.are_packed else atlas.picture(image)
        size = atlas.image_size(image)
        scale = picture.height / size[0], picture.width / size[1]
        crops = patch_crops(atlas, peaks, self.kind, [size] * len(peaks))
        return {
            (peak.unit, peak.rank): cut_patch(picture, crop.scaled(*scale), size_px)
            for peak, crop in zip(peaks, crops, strict=True)
        }


def cut_attributions(
    atlas: AtlasReader, peaks: Sequence[Peak], kind: str, method: str, size_px: int, ground: Ground = SHEET_GROUND
) -> dict[UnitRank, Image.Image]:
    """What a method found for the peaks of one layer, in the boxes of their patches; an empty picture where it wasn't used.

    Raises `AtlasError` where the method has no table, or a stale or broken one.
    """
    keys = {(peak.unit, peak.rank) for peak in peaks}
    units = sorted({peak.unit for peak in peaks})
    rows = atlas.attributions(method, peaks[0].layer, units).to_pylist() if peaks else []
    on_input = {
        (row["unit"], row["rank"]): partial(_attribution_on_input, atlas, row)
        for row in rows
        if (row["unit"], row["rank"]) in keys
    }
    return cut_from_input(atlas, peaks, kind, on_input, size_px, ground)


def cut_from_input(
    atlas: AtlasReader,
    peaks: Sequence[Peak],
    kind: str,
    on_input: Mapping[UnitRank, Callable[[], Image.Image]],
    size_px: int,
    ground: Ground,
) -> dict[UnitRank, Image.Image]:
    """The boxes of the patches of some peaks of one layer, cut from pictures of the network's input, which `on_input` draws; an empty picture
    where there is none."""
    pictures = {}
    for peak, box in zip(peaks, _boxes_on_input(atlas, peaks, kind), strict=True):
        key = peak.unit, peak.rank
        crop = Crop.of(box, Box(0, 0, *atlas.input_size), atlas.input_size)
        has_picture = key in on_input
        pictures[key] = (
            cut_patch(on_input[key](), crop, size_px, ground)
            if has_picture
            else Image.new("RGB", (size_px, size_px), ground.empty)
        )
    return pictures


def _attribution_on_input(atlas: AtlasReader, row: Mapping[str, Any]) -> Image.Image:
    """A row of `attributions`, drawn on the network's whole input: grey where it says nothing."""
    canvas = Image.new("RGB", atlas.input_size[::-1], (ZERO_PIXEL,) * 3)
    try:
        canvas.paste(draw_attribution(row["image"], row["bottom"] - row["top"]), (row["left"], row["top"]))
    except Exception as error:  # whatever a broken image, or one of another size, leads to
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} holds an attribution of layer {row['layer']!r} unit {row['unit']} that can't be drawn: "
            f"{first_line(error)}"
        ) from error
    return canvas


def _merged(parts: Iterator[dict[UnitRank, Image.Image]]) -> dict[UnitRank, Image.Image]:
    return {key: picture for part in parts for key, picture in part.items()}
