"""From an image file to the pixels that are shown and to those that the network gets.

The pixels are those of torchvision's evaluation transforms on Pillow images: resize with antialiasing, then a crop in the centre.
"""

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unitscope.errors import first_line
from unitscope.files import os_error_text
from unitscope.images.content import hash_of_bytes, hash_of_stream
from unitscope.images.geometry import Geometry
from unitscope.images.protocol import Pixels, Skipped, SourceImage
from unitscope.images.value_ranges import Range, check_16_bit_colours, note_value_range, to_eight_bits
from unitscope.records import Box, Preprocessing

MAX_PIXELS = 500_000_000
MAX_SIDE_PX = 1_000_000
MOST_RESIZED = 16_000_000
"""Above so many pixels, an image is not resized whole when its crop is much smaller."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LARGE_FILE = 64 << 20
"""Files of more bytes are not held in memory to be hashed."""
_opening = threading.Lock()


def read_file(path: Path, label: str | None = None) -> SourceImage:
    """The image in a file with the hash of the file's bytes. Raises `Skipped`."""
    with _regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGE_FILE:
            return SourceImage(decode_image(path), label, hash_of_stream(file))
        return read_bytes(file.read(), label)


def read_bytes(content: bytes, label: str | None = None) -> SourceImage:
    """The image that these bytes of a file are, with their hash. Raises `Skipped`."""
    return SourceImage(decode_image(BytesIO(content)), label, hash_of_bytes(content))


def content_of_file(path: Path) -> int | None:
    """The hash of a file's bytes; None where they can't be read."""
    with suppress(Skipped, OSError), _regular(path) as file:
        return hash_of_stream(file)
    return None


@contextmanager
def _regular(path: Path) -> Iterator[Any]:
    """The open file. Raises `Skipped` for what is none: to open a pipe may take for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Skipped("is no regular file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise Skipped(f"can't be opened: {os_error_text(error)}") from error
    except (ValueError, MemoryError) as error:
        raise Skipped(f"can't be opened: {first_line(error)}") from error


def decode_image(file: Path | BytesIO) -> Image.Image:
    """The image as people see it: decoded, first frame, upright by its EXIF orientation, in its own mode.

    Raises `Skipped` for files that are no image, or broken, or larger than 500 million pixels.
    """
    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            raise Skipped("is no regular file")
        with _large_images_allowed():
            image = Image.open(file)
        with image:
            if image.format == "EPS":
                raise Skipped("is PostScript, a program that Pillow would run")
            check_size(image)
            note_value_range(image)
            image.load()
            return upright(image)
    except Skipped:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        raise Skipped(_reason(error)) from error
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to, struct.error for one
        raise Skipped(_reason(error)) from error


def upright(image: Image.Image) -> Image.Image:
    """The image itself, turned as its EXIF orientation says; broken EXIF data turns nothing."""
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


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


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The network's input before it is normalised: uint8 of shape (y, x, channel)."""
    image = in_channels(image, preprocessing.channels, preprocessing.value_range)
    geometry = Geometry.of(preprocessing, image.height, image.width)
    height, width = geometry.resized
    if height * width > MAX_PIXELS:
        raise Skipped(f"is so long that it would be {width} x {height} pixels when resized")
    (top, left), (crop_height, crop_width) = geometry.offset, geometry.input
    if height * width > max(MOST_RESIZED, 8 * crop_height * crop_width):
        part = Box(top, left, top + crop_height, left + crop_width).clipped(height, width)
        image = _resized_part(image, geometry, part, FILTERS[preprocessing.interpolation])
        top, left = top - int(part.top), left - int(part.left)
    elif (height, width) != geometry.source:
        image = image.resize((width, height), FILTERS[preprocessing.interpolation])
    image = image.crop((left, top, left + crop_width, top + crop_height))
    pixels = np.asarray(image)
    return pixels.reshape(crop_height, crop_width, -1)


def _resized_part(image: Image.Image, geometry: Geometry, part: Box, interpolation: Image.Resampling) -> Image.Image:
    """A box of the resized image without the rest of it, which of a strip one pixel wide would take gigabytes.

    Columns first, then rows, as Pillow itself goes: pixels are the same, but for a step of 255 here and there, since it takes boxes in float32.
    """
    (down, across), (width, height) = geometry.scale, (int(part.width), int(part.height))
    margin = 4 * max(down, 1)  # no filter reaches further
    first, last = max(0, floor(part.top * down - margin)), min(image.height, ceil(part.bottom * down + margin))
    rows = image.crop((0, first, image.width, last))
    if image.mode in PREMULTIPLIED and interpolation != Image.Resampling.NEAREST:
        rows = rows.convert(PREMULTIPLIED[image.mode])
    rows = rows.resize((width, rows.height), interpolation, box=(part.left * across, 0, part.right * across, rows.height))
    rows = rows.resize((width, height), interpolation, box=(0, part.top * down - first, width, part.bottom * down - first))
    return rows if rows.mode == image.mode else rows.convert(image.mode)


def check_size(image: Image.Image) -> None:
    """Raises `Skipped` for an image without pixels, with over 500 million, or with a side of over a million."""
    if image.width * image.height > MAX_PIXELS:
        raise Skipped(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 1_000_000} million")
    if image.width * image.height == 0:
        raise Skipped("has no pixels")
    if max(image.size) > MAX_SIDE_PX:
        raise Skipped(f"has {image.width} x {image.height} pixels, a side longer than {MAX_SIDE_PX // 1_000_000} million")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow knows"
    said = (str(error).splitlines() or [""])[0]
    return f"can't be decoded: {said or type(error).__name__}"


@contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Pillow's own limit lies below ours; it is one for the whole process, so it is lifted for one opening at a time."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
