"""From a picture to the pixels that the network gets.

They are those of torchvision's evaluation transforms on Pillow images: resize with antialiasing, then a crop in the centre.
"""

from math import ceil, floor

import numpy as np
from PIL import Image

from unitscope.images.geometry import Geometry
from unitscope.images.protocol import Pixels, Skipped
from unitscope.images.value_ranges import Range, check_16_bit_colours, to_eight_bits
from unitscope.records import MAX_IMAGE_PIXELS, Box, Preprocessing

MAX_WHOLE_RESIZE_PIXELS = 16_000_000
"""Above so many pixels, an image is not resized whole when its crop is much smaller: 16 million in RGB are 48 MB."""
MUCH_LARGER = 8
"""How many times as many pixels as the crop count as much larger than it."""
FILTER_REACH_PX = 4
"""How far beyond a pixel a filter of Pillow's reads, in pixels of the smaller image: Lanczos needs 3, one more for rounding."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""
PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
"""The mode in which Pillow resizes pictures with alpha."""
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The network's input before it is normalised: uint8 of shape (y, x, channel). Raises `Skipped`."""
    image = in_channels(image, preprocessing.channels, preprocessing.value_range)
    geometry = Geometry.of(preprocessing, image.height, image.width)
    height, width = geometry.resized
    if height * width > MAX_IMAGE_PIXELS:
        raise Skipped(f"is so long that it would be {width} x {height} pixels when resized")
    (top, left), (crop_height, crop_width) = geometry.offset, geometry.input
    resampling = FILTERS[preprocessing.interpolation]
    if height * width > max(MAX_WHOLE_RESIZE_PIXELS, MUCH_LARGER * crop_height * crop_width):
        part = Box(top, left, top + crop_height, left + crop_width).clipped(height, width)
        image = _resized_part(image, geometry, part, resampling)
        top, left = top - int(part.top), left - int(part.left)
    elif (height, width) != geometry.source:
        image = image.resize((width, height), resampling)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(image).reshape(crop_height, crop_width, -1)


def in_channels(image: Image.Image, channels: int, value_range: Range | None = None) -> Image.Image:
    """The image in 8 bits and 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha) channels.

    Grey of more bits is scaled down, from `value_range` or what the file says; transparency is dropped where it isn't asked for, as
    in the usual loaders. Raises `Skipped`.
    """
    if channels not in MODES:
        raise Skipped(f"image files have 1 to 4 channels, not {channels}; give a data set of tensors instead")
    check_16_bit_colours(image, value_range)
    if image.mode.startswith(("I", "F")):
        image = to_eight_bits(image, value_range)
    elif image.mode == "LAB":
        image = image.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _resized_part(image: Image.Image, geometry: Geometry, part: Box, resampling: Image.Resampling) -> Image.Image:
    """A box of the resized image without the rest of it, which of a strip one pixel wide would take gigabytes.

    Columns first, then rows, as Pillow itself goes: pixels are the same, but for a step of 255 here and there, since it takes boxes in float32.
    """
    (scale_y, scale_x), (width, height) = geometry.scale, (int(part.width), int(part.height))
    margin = FILTER_REACH_PX * max(scale_y, 1)
    first_row, end_row = max(0, floor(part.top * scale_y - margin)), min(image.height, ceil(part.bottom * scale_y + margin))
    rows = image.crop((0, first_row, image.width, end_row))
    if image.mode in PREMULTIPLIED and resampling != Image.Resampling.NEAREST:
        rows = rows.convert(PREMULTIPLIED[image.mode])
    rows = rows.resize((width, rows.height), resampling, box=(part.left * scale_x, 0, part.right * scale_x, rows.height))
    top, bottom = part.top * scale_y - first_row, part.bottom * scale_y - first_row
    rows = rows.resize((width, height), resampling, box=(0, top, width, bottom))
    return rows if rows.mode == image.mode else rows.convert(image.mode)
