"""What an image holds, whatever its name or number: a 64-bit hash (XXH3) of its file's bytes or, where there is no file, of its pixels."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from xxhash import xxh3_64, xxh3_64_intdigest

from unitscope.images.protocol import Pixels

FINGERPRINT_IMAGES = 8
"""How many images are hashed to tell two collections apart: few, since each is read once more than a scan needs."""
PIECE_BYTES = 1 << 20


def hash_of_bytes(content: bytes) -> int:
    """The hash of a file's bytes."""
    return int(xxh3_64_intdigest(content))


def hash_of_stream(file: Any) -> int:
    """The same of an open file, from its position to its end, without all of it in memory."""
    digest = xxh3_64()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return int(digest.intdigest())


def hash_of_pixels(pixels: Image.Image | Pixels) -> int:
    """The hash of a picture's mode, size, palette, transparency and pixels, or of an array's type, shape and values."""
    if isinstance(pixels, Image.Image):
        palette = bytes(pixels.getpalette(None) or ()) if pixels.mode in ("P", "PA") else b""
        transparency = f"{pixels.info['transparency']!r} " if "transparency" in pixels.info else ""
        header = f"{pixels.mode} {pixels.width} {pixels.height} {transparency}".encode() + palette
        content = pixels.tobytes()
    else:
        header, content = f"{pixels.dtype} {pixels.shape} ".encode(), np.ascontiguousarray(pixels).tobytes()
    digest = xxh3_64(header)
    digest.update(content)
    return int(digest.intdigest())


def image_hash(key: str, content: int | None) -> int:
    """A 64-bit hash of an image's key and content together; 0 where nobody knows its content.

    The hash of a collection is the sum of these modulo 2⁶⁴ (`sum_of_hashes`): it doesn't depend on the order, sums of parts add up, and
    an image can be taken out again.
    """
    if content is None:
        return 0
    return hash_of_bytes(f"{content:016x} ".encode() + key.encode("utf-8", "surrogateescape"))


def sum_of_hashes(hashes: Iterable[int]) -> int:
    """The sum modulo 2⁶⁴.

    >>> sum_of_hashes([(1 << 64) - 1, 3]), sum_of_hashes([2, -3]) == (1 << 64) - 1
    (2, True)
    """
    return sum(hashes) % (1 << 64)


def evenly_spaced(count: int, at_most: int = FINGERPRINT_IMAGES) -> list[int]:
    """Some numbers from 0 to `count - 1`: the first, the last and some between, each once.

    >>> evenly_spaced(600, 4), evenly_spaced(2, 4)
    ([0, 200, 399, 599], [0, 1])
    """
    if count == 0:
        return []
    return sorted({round(float(number)) for number in np.linspace(0, count - 1, min(at_most, count))})


def contradictions(fingerprint: Mapping[str, str | None], other: Mapping[str, str | None]) -> list[str]:
    """The images that two fingerprints (or their labels) know and tell differently; None, which is unknown, contradicts nothing."""
    return [
        image
        for image, content in fingerprint.items()
        if content is not None and other.get(image) is not None and other[image] != content
    ]
