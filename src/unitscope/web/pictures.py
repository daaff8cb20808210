"""Pictures on the pages, as the bytes of image files: source images, attributions, and patches in a square."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from unitscope.atlas import Atlas
from unitscope.atlas.attribution_images import MAX_STEPS, ZERO_PIXEL
from unitscope.atlas.figures import block_notice
from unitscope.atlas.packed import JPEG_QUALITY, block_side
from unitscope.atlas.patches import cut_attributions, cut_from_input, resolve_patch_kind
from unitscope.atlas.reading import MAX_PATCHES
from unitscope.drawing import (
    ACCENT,
    LOWERS,
    PAGE_GROUND,
    Ground,
    cut_patch,
    draw_grid,
    draw_missing_patch,
    draw_notice,
)
from unitscope.errors import ImagesError
from unitscope.images import Changed, Skipped
from unitscope.records import Peak
from unitscope.web.page_records import Example
from unitscope.web.queries import AtlasQueries

PATCH_PX, LARGE_PATCH_PX = 64, 160
ATTRIBUTION_PX = 2 * PATCH_PX
ZERO_GROUND = Ground(((ZERO_PIXEL,) * 3, (ZERO_PIXEL,) * 3), (ZERO_PIXEL,) * 3)
"""Where no attribution says anything, it is zero."""
MAX_HEAT, HEAT_BLUR_PX = 0.8, 2
"""How much of a patch its strongest attribution hides, and how far that is blurred: gradients are speckled."""
MAX_IMAGE_PX = 1024
"""The longer side of a source image on a page."""


def draw_image(atlas: Atlas, image: int) -> bytes:
    """A source image as displayed, as JPEG, its longer side at most 1,024 pixels.

    Raises `Skipped` or `ImagesError` where it can't be read any more.
    """
    packed = _packed_picture(atlas, image, atlas.key(image))
    return _draw_picture(atlas.picture(image)) if packed is None else packed


def draw_source_image(atlas: Atlas, image: int) -> bytes:
    """The same from the image itself, also where the atlas has a small picture of it."""
    return _draw_picture(atlas.picture(image))


def draw_predicted_image(atlas: Atlas, image: int, key: str) -> bytes:
    """The same of an image that the atlas mentions for what the network predicts alone."""
    packed = _packed_picture(atlas, image, key)
    return _draw_picture(atlas.picture_of_key(image, key)) if packed is None else packed


def _packed_picture(atlas: Atlas, image: int, key: str) -> bytes | None:
    return None if atlas.packed_pictures is None else atlas.packed_pictures.content(image, key)


def _draw_picture(picture: Image.Image) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((MAX_IMAGE_PX, MAX_IMAGE_PX), Image.Resampling.BICUBIC)
    return _encode(picture, "JPEG", quality=90)


def draw_attributions(atlas: Atlas, method: str, layer: str, unit: int, patch_kind: str = "auto") -> bytes:
    """What a method found in a unit's patches, in the order of the patches, as WebP."""
    return _encode(_attributions(atlas, method, layer, unit, patch_kind, PAGE_GROUND), "WEBP", quality=82, method=1)


def draw_heat(atlas: Atlas, method: str, layer: str, unit: int, patch_kind: str = "auto") -> bytes:
    """How strong that is, to be laid over the patches, as WebP: the stronger, the less is seen through it. Orange is above zero, blue below;
    of activation maps that are rectified there is nothing below."""
    square = _attributions(atlas, method, layer, unit, patch_kind, ZERO_GROUND)
    return _heat(square, method == "activation" and atlas.layer(layer).rectified)


def draw_activation_heat(
    atlas: Atlas, layer: str, unit: int, activations: NDArray[np.float32], patch_kind: str = "auto"
) -> bytes:
    """The same of activation maps over the network's input, of shape (peak, y, x), each as a share of its strongest value."""
    patch_count = min(atlas.k, MAX_PATCHES)
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist()][:patch_count]

    def draw(values: NDArray[np.float32]) -> Image.Image:
        shares = np.nan_to_num(values / (np.abs(values[np.isfinite(values)]).max(initial=0) or 1))
        return Image.fromarray(np.rint(ZERO_PIXEL + MAX_STEPS * shares.clip(-1, 1)).astype(np.uint8)).convert("RGB")

    on_input = {(peak.unit, peak.rank): partial(draw, values) for peak, values in zip(peaks, activations, strict=False)}
    kind = resolve_patch_kind(atlas, atlas.layer(layer), patch_kind)
    images = cut_from_input(atlas, peaks, kind, on_input, ATTRIBUTION_PX, ZERO_GROUND)
    square = draw_grid(list(images.values()), block_side(patch_count) ** 2, ATTRIBUTION_PX, gap_px=0, ground=ZERO_GROUND)
    return _heat(square, atlas.layer(layer).rectified)


def _heat(square: Image.Image, is_rectified: bool) -> bytes:
    """Shades around grey as strength and sign."""
    values = (np.asarray(square, dtype=np.float32) - ZERO_PIXEL) / MAX_STEPS
    strongest = np.take_along_axis(values, np.abs(values).argmax(2)[..., None], 2)
    if is_rectified:
        strongest = strongest.clip(0)
    colours = np.where(strongest > 0, np.array(ACCENT), np.array(LOWERS))
    opacity = Image.fromarray((MAX_HEAT * 255 * np.abs(strongest[..., 0]).clip(0, 1)).astype(np.uint8))
    heat = Image.fromarray(colours.astype(np.uint8)).convert("RGBA")
    heat.putalpha(opacity.filter(ImageFilter.GaussianBlur(HEAT_BLUR_PX)))
    return _encode(heat, "WEBP", quality=60, method=1)


def _attributions(atlas: Atlas, method: str, layer: str, unit: int, patch_kind: str, ground: Ground) -> Image.Image:
    patch_count = min(atlas.k, MAX_PATCHES)
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist()][:patch_count]
    kind = resolve_patch_kind(atlas, atlas.layer(layer), patch_kind)
    images = cut_attributions(atlas, peaks, kind, method, ATTRIBUTION_PX, ground)
    slots = block_side(patch_count) ** 2
    return draw_grid([images[peak.unit, peak.rank] for peak in peaks], slots, ATTRIBUTION_PX, gap_px=0, ground=ground)


def draw_large_block(queries: AtlasQueries, layer: str, unit: int, patch_kind: str = "auto") -> bytes:
    """A unit's patches as `draw_block` has them, but larger: from small pictures in the atlas where it has any, else from the images. Where it
    has patches alone, these."""
    atlas = queries.atlas
    if atlas.packed_patches is not None and atlas.packed_pictures is None and patch_kind == "auto":
        packed = atlas.packed_patches.block(layer, unit)
        if packed is not None:
            return packed
    patch_count = min(atlas.k, MAX_PATCHES)
    patches = [_cut_example(atlas, peak, patch_kind, LARGE_PATCH_PX) for peak in queries.peaks(layer, unit)[:patch_count]]
    return draw_block(patches, patch_count, "" if patches else "dead", LARGE_PATCH_PX)


def draw_bands(queries: AtlasQueries, layer: str, unit: int, patch_kind: str = "auto") -> bytes | None:
    """Three images of the sample in each of four rows, around a unit's quantiles, as JPEG: the packed ones, or cut from their images."""
    packed = queries.atlas.packed_patches
    if packed is not None and packed.has_bands and patch_kind == "auto":
        return packed.block(layer, unit, "bands")
    bands = queries.bands(layer, unit)
    if not bands:
        return None
    grid = Image.new("RGB", (3 * PATCH_PX, len(bands) * PATCH_PX), PAGE_GROUND.empty)
    for row, examples in enumerate(bands.values()):
        for column, example in enumerate(examples):
            grid.paste(_cut_example(queries.atlas, example, patch_kind), (column * PATCH_PX, row * PATCH_PX))
    return _encode(grid, "JPEG", quality=JPEG_QUALITY)


def draw_troughs(queries: AtlasQueries, layer: str, unit: int, patch_kind: str = "auto") -> bytes | None:
    """A unit's troughs in a square, the lowest first, as JPEG: the packed ones, or cut from their images; None where it has none."""
    packed, tie = queries.atlas.packed_patches, queries.trough_ties(layer).get(unit)
    notice, patch_count = block_notice([unit], tie), min(queries.atlas.k, MAX_PATCHES)
    if packed is None or not packed.has_troughs or patch_kind != "auto":
        patches = [_cut_example(queries.atlas, example, patch_kind) for example in queries.troughs(layer, unit)[:patch_count]]
        return draw_block(patches, patch_count, notice) if patches else None
    content = packed.block(layer, unit, "troughs")
    if content is None or not notice:
        return content
    return draw_block(packed.patches(layer, unit, "troughs"), patch_count, notice, packed.size_px)


def _cut_example(atlas: Atlas, example: Example, patch_kind: str, size_px: int = PATCH_PX) -> Image.Image:
    image = example.source_image
    try:
        picture = atlas.shown_picture(image.image)
    except (Skipped, ImagesError) as reason:
        return draw_missing_patch(size_px, isinstance(reason, Changed), PAGE_GROUND)
    crop = example.crop(patch_kind).scaled(picture.height / image.height, picture.width / image.width)
    return cut_patch(picture, crop, size_px, PAGE_GROUND)


def draw_block(patches: Sequence[Image.Image], patch_count: int, notice: str = "", size_px: int = PATCH_PX) -> bytes:
    """Patches of that side row by row in a square that has room for `patch_count`, as JPEG; `notice` is written over them."""
    square = _in_square(patches, patch_count, size_px)
    draw_notice(square, notice)
    return _encode(square, "JPEG", quality=JPEG_QUALITY)


def _in_square(patches: Sequence[Image.Image], patch_count: int, size_px: int) -> Image.Image:
    return draw_grid(patches, block_side(patch_count) ** 2, size_px, gap_px=0, ground=PAGE_GROUND)


def _encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()
