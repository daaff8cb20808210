"""From an image file to the picture that people see, and to its hash."""

import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from unitscope.errors import first_line
from unitscope.files import os_error_text
from unitscope.images.content import hash_of_bytes, hash_of_stream
from unitscope.images.protocol import Skipped, SourceImage
from unitscope.images.value_ranges import note_value_range
from unitscope.records import MAX_IMAGE_PIXELS

MAX_SIDE_PX = 1_000_000
"""No side of an image file may be longer. JPEG ends at 65,535 and WebP at 16,383; the header of a PNG or TIFF file may claim more."""
HASHED_IN_MEMORY_BYTES = 64 << 20
"""Larger files are hashed a piece at a time, and read a second time to be decoded."""

_opening = threading.Lock()
"""Held while Pillow's own limit is lifted."""


def read_file(path: Path, label: str | None = None) -> SourceImage:
    """The image in a file with the hash of the file's bytes. Raises `Skipped`."""
    with _regular_file(path) as file:
        if os.fstat(file.fileno()).st_size > HASHED_IN_MEMORY_BYTES:
            return SourceImage(decode_image(path), label, hash_of_stream(file))
        return read_bytes(file.read(), label)


def read_bytes(content: bytes, label: str | None = None) -> SourceImage:
    """The image that these bytes of a file are, with their hash. Raises `Skipped`."""
    return SourceImage(decode_image(BytesIO(content)), label, hash_of_bytes(content))


def content_of_file(path: Path) -> int | None:
    """The hash of a file's bytes; None where they can't be read."""
    with suppress(Skipped, OSError), _regular_file(path) as file:
        return hash_of_stream(file)
    return None


def decode_image(file: Path | BytesIO) -> Image.Image:
    """The image as people see it: the first frame, upright by its EXIF orientation, in its own mode.

    Raises `Skipped` for files that are no image, or broken, or larger than 500 million pixels.
    """
    try:
        if isinstance(file, Path):
            _check_regular(file)
        with _large_images_allowed():
            image = Image.open(file)
        with image:
            if image.format == "EPS":
                raise Skipped("is PostScript, a program that Pillow would run")
            check_size(image)
            note_value_range(image)
            image.load()
            return _turned_upright(image)
    except Skipped:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to, struct.error for one
        raise Skipped(_decoding_error_text(error)) from error


def check_size(image: Image.Image) -> None:
    """Raises `Skipped` for an image without pixels, with over 500 million, or with a side of over a million."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise Skipped(f"has {image.width} x {image.height} pixels, more than {MAX_IMAGE_PIXELS // 1_000_000} million")
    if image.width * image.height == 0:
        raise Skipped("has no pixels")
    if max(image.size) > MAX_SIDE_PX:
        raise Skipped(f"has {image.width} x {image.height} pixels, a side longer than {MAX_SIDE_PX // 1_000_000} million")


def _turned_upright(image: Image.Image) -> Image.Image:
    """The image itself, turned as its EXIF orientation says; broken EXIF data turns nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        logging.getLogger(__name__).debug("EXIF data that can't be read", exc_info=True)
    return image


@contextmanager
def _regular_file(path: Path) -> Iterator[Any]:
    """The open file. Raises `Skipped` for what is none."""
    try:
        _check_regular(path)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise Skipped(f"can't be opened: {os_error_text(error)}") from error
    except (ValueError, MemoryError) as error:
        raise Skipped(f"can't be opened: {first_line(error)}") from error


def _check_regular(path: Path) -> None:
    """Raises `Skipped` for folders, devices and pipes: to open a pipe may take for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Skipped("is no regular file")


def _decoding_error_text(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow knows"
    lines = str(error).splitlines() or [""]
    return f"can't be decoded: {lines[0] or type(error).__name__}"


@contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Lift Pillow's own limit, which lies below ours. It is one for the whole process, so it is lifted for one opening at a time."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pillows_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit
