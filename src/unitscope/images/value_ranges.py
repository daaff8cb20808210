"""Which values are black and white, where pixels have more than 8 bits.

An 8-bit picture says it by being one. Others are asked in this order: the user (`--value-range`), the file (BitsPerSample or the sample
values of a TIFF, `sBIT` of a PNG, formats whose white is always 65,535), and for 16-bit grey the values: where none of them reaches
the upper half of 16 bits, they may as well be those of 10, 12 or 14. What nobody says is never guessed: the image is skipped.
"""

import logging
from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
from PIL import Image

from unitscope.images.protocol import Pixels, Skipped

Range = tuple[float, float]
"""The values that are black and white."""

# Keys of `Image.info`, under which `note_value_range` keeps what Pillow forgets.
RANGE_IN_FILE = "unitscope_value_range"
"""The range that the file says."""
HAS_16_BIT_COLOURS = "unitscope_16_bit_colours"
"""The file holds 16 bits a colour, of which Pillow reads the upper 8."""
WHITE_IS_LOW = "unitscope_white_is_low"
"""Low values are white."""
IS_SIGNED = "unitscope_signed"
"""The file's 16 bits have a sign, and Pillow's haven't."""

FULL_16_BITS: Range = (0, 65535)
UPPER_HALF_OF_16_BITS = 1 << 15
UPPER_HALF_OF_8_BITS = 1 << 7
FLAG = "--value-range LOW HIGH (value_range= of a Preprocessing)"

# Tags and values of TIFF 6.0.
BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339
SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 340, 341
FORMAT_IS_SIGNED, WHITE_IS_ZERO = 2, 0


def note_value_range(image: Image.Image) -> None:
    """Write into `image.info` what the file says of its values; to be called before they are loaded, or Pillow has forgotten it."""
    tiles: Any = getattr(image, "tile", ())
    if not image.mode.startswith("I") and any(";16" in str(tile[3]) or tile[0] == "SGI16" for tile in tiles):
        image.info[HAS_16_BIT_COLOURS] = True
    if not image.mode.startswith(("I", "F")):
        return
    try:
        _note_grey(image)
    except Exception:  # broken tags say nothing
        logging.getLogger(__name__).debug("tags of a %s file that can't be read", image.format, exc_info=True)


def to_eight_bits(image: Image.Image, value_range: Range | None) -> Image.Image:
    """A picture of integers or floats in one channel, from black to white in 8 bits.

    Raises `Skipped` where nobody says which values those are.
    """
    values = np.asarray(image)
    if IS_SIGNED in image.info:
        values = values.view(np.int16).astype(np.int32)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise Skipped("has pixels that are no numbers (NaN)")
    low, high = value_range or image.info.get(RANGE_IN_FILE) or _range_by_values(image.mode, values)
    scaled = _scaled(values, low, high)
    return Image.fromarray(255 - scaled if WHITE_IS_LOW in image.info else scaled)


def check_16_bit_colours(image: Image.Image, value_range: Range | None) -> None:
    """Raises `Skipped` for colours of 16 bits that may be those of fewer: Pillow reads the upper 8."""
    if HAS_16_BIT_COLOURS not in image.info:
        return
    if value_range is not None and value_range != FULL_16_BITS:
        low, high = value_range
        raise Skipped(f"has 16-bit colours, of which Pillow reads the upper 8 bits, so their range can't be {low:g} to {high:g}")
    colours = image if image.mode == "L" else image.convert("LA" if "A" in image.getbands() else "L")
    highest = int(np.asarray(colours).reshape(image.height, image.width, -1)[..., 0].max())
    if value_range is None and 0 < highest < UPPER_HALF_OF_8_BITS:
        raise Skipped(
            "has 16-bit colours in the lower half of their range, which may be those of 10, 12 or 14 bits: convert it to 8 bits, or "
            "say --value-range 0 65535 where white is 65535"
        )


def _note_grey(image: Image.Image) -> None:
    if image.format == "FITS" and image.mode == "I;16":
        image.info[IS_SIGNED] = True
    if image.format == "TIFF" and _first(image.tag_v2.get(PHOTOMETRIC_INTERPRETATION)) == WHITE_IS_ZERO:  # type: ignore[attr-defined]
        image.info[WHITE_IS_LOW] = True  # of 8 bits Pillow turns them itself
    range_of = RANGES_BY_FORMAT.get(image.format or "")
    value_range = None if range_of is None else range_of(image)
    if value_range is not None and value_range[0] < value_range[1] and all(map(isfinite, value_range)):
        image.info[RANGE_IN_FILE] = (float(value_range[0]), float(value_range[1]))


def _scaled(values: Pixels, low: float, high: float) -> Pixels:
    """The values in 8 bits: `low` and what lies below becomes 0, `high` and what lies above 255."""
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":  # as a table, which takes a quarter of the memory
        table: Pixels = _scaled(np.arange(65536, dtype=np.int64), low, high)[values]
        return table
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    eight_bits: Pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return eight_bits


def _range_by_values(mode: str, values: Pixels) -> Range:
    if not mode.startswith("I;16") or values.dtype.kind == "i":
        kind = "32-bit floats" if mode == "F" else "32-bit integers" if mode == "I" else "16-bit signed integers"
        raise Skipped(f"pixels are {kind} from {values.min():g} to {values.max():g}, whose range isn't known; say it with {FLAG}")
    highest = int(values.max())
    if 0 < highest < UPPER_HALF_OF_16_BITS:
        raise Skipped(
            f"pixels are 16-bit integers up to {highest}, and nothing says whether white is 65535 or, as in 10, 12 or 14 bits, less: "
            f"their range isn't known; say it with {FLAG}"
        )
    return FULL_16_BITS


def _range_in_tiff(image: Any) -> Range | None:
    tags = image.tag_v2
    signed = _first(tags.get(SAMPLE_FORMAT)) == FORMAT_IS_SIGNED
    low, high = _first(tags.get(SMIN_SAMPLE_VALUE)), _first(tags.get(SMAX_SAMPLE_VALUE))
    if high is not None and (low is not None or (image.mode != "F" and not signed)):
        return float(low or 0), float(high)
    if image.mode == "F" or signed:
        return None
    bits, max_sample = _first(tags.get(BITS_PER_SAMPLE)), _first(tags.get(MAX_SAMPLE_VALUE))
    if bits is not None and bits < 16:
        return 0, 2**bits - 1
    # What TIFF 6.0 keeps for statistics says the range where it can be nothing else: the highest value that so many bits have.
    depth = int(max_sample or 0).bit_length()
    return (0, 2**depth - 1) if depth >= 8 and max_sample == 2**depth - 1 else None


def _range_in_png(image: Any) -> Range | None:
    """By the standard samples fill all 16 bits, scaled up from those that `sBIT` says. Where they visibly aren't, those are all they have."""
    bits = _significant_bits(image.fp)
    if bits is None or not 1 <= bits < 16:
        return None
    image.load()
    values = np.asarray(image).astype(np.int64)
    upper = values >> (16 - bits)
    scaled_up = (values == upper << (16 - bits)) | (np.abs(values - upper * (65535 / (2**bits - 1))) < 1)
    return FULL_16_BITS if scaled_up.all() or values.max() >= 2**bits else (0, 2**bits - 1)


def _significant_bits(file: Any) -> int | None:
    """What the chunk `sBIT` of an open PNG file says of grey; the file's position stays."""
    position = file.tell()
    try:
        file.seek(8)  # behind the signature
        while (header := file.read(8))[4:] not in (b"", b"IDAT", b"IEND"):
            if header[4:] == b"sBIT":
                return int(file.read(1)[0])
            length = int.from_bytes(header[:4], "big")
            file.seek(length + 4, 1)  # the data and their checksum
        return None
    finally:
        file.seek(position)


def _range_in_pgm(image: Any) -> Range | None:
    return FULL_16_BITS if image.mode == "I" else None


def _range_in_jpeg_2000(_: Any) -> Range | None:
    return FULL_16_BITS


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


RANGES_BY_FORMAT: dict[str, Callable[[Any], Range | None]] = {
    "TIFF": _range_in_tiff, "PNG": _range_in_png, "PPM": _range_in_pgm, "JPEG2000": _range_in_jpeg_2000,
}  # fmt: skip
"""How each format says its range. Pillow itself brings grey of PGM and JPEG 2000 files to 16 bits, whatever depth they have."""
