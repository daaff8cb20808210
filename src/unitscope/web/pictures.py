"""Pictures on the pages, as the bytes of image files: source images, attributions, and patches in a square."""

from collections.abc import Sequence
from io import BytesIO
from math import ceil, sqrt
from typing import Any

from PIL import Image

from unitscope.atlas import Atlas
from unitscope.atlas.patches import MAX_PATCHES, cut_attributions, resolve_patch_kind
from unitscope.drawing import draw_grid, draw_notice
from unitscope.records import Peak

PATCH_PX = 64
ATTRIBUTION_PX = 2 * PATCH_PX
MAX_IMAGE_PX = 1024
"""The longer side of a source image on a page."""


def draw_image(atlas: Atlas, image: int) -> bytes:
    """A source image as displayed, as JPEG, its longer side at most 1,024 pixels.

    Raises `Skipped` or `ImagesError` where it can't be read any more.
    """
    picture = atlas.picture(image).convert("RGB")
    picture.thumbnail((MAX_IMAGE_PX, MAX_IMAGE_PX), Image.Resampling.BICUBIC)
    return _encode(picture, "JPEG", quality=90)


def draw_attributions(atlas: Atlas, method: str, layer: str, unit: int) -> bytes:
    """What a method found in a unit's patches, in the order of the patches, as WebP."""
    patch_count = min(atlas.k, MAX_PATCHES)
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist()][:patch_count]
    patch_kind = resolve_patch_kind(atlas, atlas.layer(layer), "auto")
    images = cut_attributions(atlas, peaks, patch_kind, method, ATTRIBUTION_PX)
    return draw_square([images[peak.unit, peak.rank] for peak in peaks], patch_count, ATTRIBUTION_PX)


def draw_square(patches: Sequence[Image.Image], patch_count: int, size_px: int, mark_text: str = "") -> bytes:
    """Patches row by row in a square that has room for `patch_count`, as WebP; the rest of it is transparent.

    `mark_text` is written over them; none is written where it is empty.
    """
    square = draw_grid(patches, ceil(sqrt(patch_count)) ** 2, size_px, gap_px=0, transparent=True)
    draw_notice(square, mark_text)
    return _encode(square, "WEBP", quality=82, method=1)


def _encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()
