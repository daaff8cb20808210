"""Pictures on the pages, as the bytes of image files: source images, attributions, and patches in a square."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from unitscope.atlas import Atlas
from unitscope.atlas.packed import JPEG_QUALITY, block_side
from unitscope.atlas.patches import cut_attributions, resolve_patch_kind
from unitscope.atlas.reading import MAX_PATCHES
from unitscope.drawing import PAGE_GROUND, Crop, cut_patch, draw_grid, draw_missing_patch, draw_notice
from unitscope.errors import ImagesError
from unitscope.images import Changed, Skipped
from unitscope.records import Peak
from unitscope.web.page_records import Example
from unitscope.web.queries import AtlasQueries

PATCH_PX = 64
ATTRIBUTION_PX = 2 * PATCH_PX
MAX_IMAGE_PX = 1024
"""The longer side of a source image on a page."""


def draw_image(atlas: Atlas, image: int) -> bytes:
    """A source image as displayed, as JPEG, its longer side at most 1,024 pixels.

    Raises `Skipped` or `ImagesError` where it can't be read any more.
    """
    packed = _packed_picture(atlas, image, atlas.key(image))
    return _draw_picture(atlas.picture(image)) if packed is None else packed


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


def draw_attributions(atlas: Atlas, method: str, layer: str, unit: int) -> bytes:
    """What a method found in a unit's patches, in the order of the patches, as WebP."""
    patch_count = min(atlas.k, MAX_PATCHES)
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist()][:patch_count]
    patch_kind = resolve_patch_kind(atlas, atlas.layer(layer), "auto")
    images = cut_attributions(atlas, peaks, patch_kind, method, ATTRIBUTION_PX)
    square = _in_square([images[peak.unit, peak.rank] for peak in peaks], patch_count, ATTRIBUTION_PX)
    return _encode(square, "WEBP", quality=82, method=1)


def draw_bands(queries: AtlasQueries, layer: str, unit: int) -> bytes | None:
    """Three images of the sample in each of four rows, around a unit's quantiles, as JPEG: the packed ones, or cut from their images."""
    packed = queries.atlas.packed_patches
    if packed is not None and packed.has_bands:
        return packed.block(layer, unit, "bands")
    bands = queries.bands(layer, unit)
    if not bands:
        return None
    grid = Image.new("RGB", (3 * PATCH_PX, len(bands) * PATCH_PX), PAGE_GROUND.empty)
    for row, examples in enumerate(bands.values()):
        for column, example in enumerate(examples):
            grid.paste(_cut_example(queries.atlas, example), (column * PATCH_PX, row * PATCH_PX))
    return _encode(grid, "JPEG", quality=JPEG_QUALITY)


def _cut_example(atlas: Atlas, example: Example) -> Image.Image:
    image = example.source_image
    try:
        picture = atlas.shown_picture(image.image)
    except (Skipped, ImagesError) as reason:
        return draw_missing_patch(PATCH_PX, isinstance(reason, Changed), PAGE_GROUND)
    crop = Crop(example.patch_box, example.visible_box).scaled(picture.height / image.height, picture.width / image.width)
    return cut_patch(picture, crop, PATCH_PX, PAGE_GROUND)


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
