"""Which values are black and white, where pixels have more than 8 bits.

An 8-bit picture says it by being one. Others are asked in this order: the user (`--value-range`), the file (BitsPerSample or the sample
values of a TIFF, `sBIT` of a PNG, formats whose white is always 65,535), and for 16-bit grey the values: where none of them reaches
the upper half of 16 bits, they may as well be those of 10, 12 or 14. What nobody says is never guessed: the image is skipped.
"""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import Any

import numpy as np
from PIL import Image

from unitscope.images.protocol import Pixels, Skipped

Range = tuple[float, float]

SAID, COLOURS = "unitscope_value_range", "unitscope_16_bit_colours"
"""Keys of `Image.info`: what the file says of its values, and that it holds 16 bits a colour, of which Pillow reads the upper 8."""
NEGATIVE, MINUS = "unitscope_white_is_low", "unitscope_signed"
"""Two more: that low values are white, and that Pillow's 16 bits without a sign have one in the file."""
SIXTEEN: Range = (0, 65535)
FLAG = "--value-range LOW HIGH (value_range= of a Preprocessing)"
BITS, PHOTOMETRIC, FORMAT, STATISTICS, SAMPLES = 258, 262, 339, (280, 281), (340, 341)  # tags of TIFF 6.0
SIGNED, WHITE_IS_ZERO = 2, 0


def note_value_range(image: Image.Image) -> None:
    """Write into `image.info` what the file says of its values; to be called before they are loaded, or Pillow has forgotten it."""
    tiles: Any = getattr(image, "tile", ())
    if not image.mode.startswith("I") and any(";16" in str(tile[3]) or tile[0] == "SGI16" for tile in tiles):
        image.info[COLOURS] = True
    if image.mode.startswith(("I", "F")):
        with suppress(Exception):  # broken tags say nothing
            if image.format == "FITS" and image.mode == "I;16":
                image.info[MINUS] = True
            if image.format == "TIFF" and _first(getattr(image, "tag_v2", {}).get(PHOTOMETRIC)) == WHITE_IS_ZERO:
                image.info[NEGATIVE] = True  # of 8 bits Pillow turns them itself
            said = _SAID_BY.get(image.format or "", _by_nobody)(image)
            if said is not None and said[0] < said[1] and all(map(isfinite, said)):
                image.info[SAID] = (float(said[0]), float(said[1]))


def to_eight_bits(image: Image.Image, value_range: Range | None) -> Image.Image:
    """A picture of integers or floats in one channel, from black to white in 8 bits.

    Raises `Skipped` where nobody says which values those are.
    """
    values = np.asarray(image)
    if MINUS in image.info:
        values = values.view(np.int16).astype(np.int32)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise Skipped("has pixels that are no numbers (NaN)")
    low, high = value_range or image.info.get(SAID) or _by_values(image.mode, values)
    scaled = _scaled(values, low, high)
    return Image.fromarray(255 - scaled if NEGATIVE in image.info else scaled)


def check_16_bit_colours(image: Image.Image, value_range: Range | None) -> None:
    """Raises `Skipped` for colours of 16 bits that may be those of fewer: Pillow reads the upper 8."""
    if COLOURS not in image.info:
        return
    if value_range is not None and value_range != SIXTEEN:
        raise Skipped(
            f"has 16-bit colours, of which Pillow reads the upper 8 bits, so their range can't be {_words(value_range)}"
        )
    colours = image if image.mode == "L" else image.convert("LA" if "A" in image.getbands() else "L")
    highest = int(np.asarray(colours).reshape(image.height, image.width, -1)[..., 0].max())
    if value_range is None and 0 < highest < 128:
        raise Skipped(
            "has 16-bit colours in the lower half of their range, which may be those of 10, 12 or 14 bits: convert it to 8 bits, or "
            "say --value-range 0 65535 where white is 65535"
        )


def _scaled(values: Pixels, low: float, high: float) -> Pixels:
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":  # as a table, which takes a quarter of the memory
        of_each: Pixels = _scaled(np.arange(65536, dtype=np.int64), low, high)[values]
        return of_each
    shares = (values.astype(np.float64) - low) * (255 / (high - low))
    scaled: Pixels = np.rint(shares.clip(0, 255)).astype(np.uint8)
    return scaled


def _by_values(mode: str, values: Pixels) -> Range:
    if not mode.startswith("I;16") or values.dtype.kind == "i":
        kind = "32-bit floats" if mode == "F" else "32-bit integers" if mode == "I" else "16-bit signed integers"
        raise Skipped(f"pixels are {kind} from {values.min():g} to {values.max():g}, whose range isn't known; say it with {FLAG}")
    highest = int(values.max())
    if 0 < highest < 1 << 15:
        raise Skipped(
            f"pixels are 16-bit integers up to {highest}, and nothing says whether white is 65535 or, as in 10, 12 or 14 bits, less: "
            f"their range isn't known; say it with {FLAG}"
        )
    return SIXTEEN


def _by_tiff(image: Any) -> Range | None:
    tags, signed = image.tag_v2, _first(image.tag_v2.get(FORMAT)) == SIGNED
    low, high = (_first(tags.get(tag)) for tag in SAMPLES)
    if high is not None and (low is not None or (image.mode != "F" and not signed)):
        return float(low or 0), float(high)
    bits, white = _first(tags.get(BITS)), _first(tags.get(STATISTICS[1]))
    if image.mode == "F" or signed:
        return None
    if bits is not None and bits < 16:
        return 0, 2**bits - 1
    # What TIFF 6.0 keeps for statistics says the range where it can be nothing else: the highest value that so many bits have.
    depth = int(white or 0).bit_length()
    return (0, 2**depth - 1) if depth >= 8 and white == 2**depth - 1 else None


def _by_png(image: Any) -> Range | None:
    """By the standard samples fill all 16 bits, scaled up from those that `sBIT` says. Where they visibly aren't, those are all they have."""
    bits = _significant_bits(image.fp)
    if bits is None or not 1 <= bits < 16:
        return None
    image.load()
    values = np.asarray(image).astype(np.int64)
    upper = values >> (16 - bits)
    scaled = (values == upper << (16 - bits)) | (np.abs(values - upper * (65535 / (2**bits - 1))) < 1)
    return SIXTEEN if scaled.all() or values.max() >= 2**bits else (0, 2**bits - 1)


def _significant_bits(file: Any) -> int | None:
    """What the chunk `sBIT` of an open PNG file says of grey; the file stands afterwards where it stood."""
    before = file.tell()
    try:
        file.seek(8)
        while (head := file.read(8))[4:] not in (b"", b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                return int(file.read(1)[0])
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(before)


def _first(said: Any) -> Any:
    return said[0] if isinstance(said, (tuple, list)) else said


def _words(value_range: Range) -> str:
    return "{:g} to {:g}".format(*value_range)


def _by_nobody(_: Any) -> Range | None:
    return None


def _by_pgm(image: Any) -> Range | None:
    return SIXTEEN if image.mode == "I" else None


def _by_jpeg_2000(_: Any) -> Range | None:
    return SIXTEEN


_SAID_BY: dict[str, Callable[[Any], Range | None]] = {"TIFF": _by_tiff, "PNG": _by_png, "PPM": _by_pgm, "JPEG2000": _by_jpeg_2000}
"""Pillow itself brings grey of PGM and JPEG 2000 files to 16 bits, whatever depth they have."""
