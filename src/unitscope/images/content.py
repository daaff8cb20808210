"""What an image is, whatever its name or number: a 64-bit hash (XXH3) of its file's bytes or, where there is no file, of its pixels."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from xxhash import xxh3_64, xxh3_64_intdigest

from unitscope.images.protocol import Pixels

FINGERPRINT_IMAGES = 8
"""How many images are hashed to tell two collections apart."""


def hash_of_bytes(content: bytes) -> int:
    """Of a file's bytes."""
    return int(xxh3_64_intdigest(content))


def hash_of_stream(file: Any) -> int:
    """Of an open file from where it stands to its end, a piece at a time."""
    digest = xxh3_64()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return int(digest.intdigest())


def hash_of_pixels(pixels: Image.Image | Pixels) -> int:
    """Of a picture's mode, size, colours, transparency and pixels, or of an array's type, shape and values."""
    if isinstance(pixels, Image.Image):
        palette = bytes(pixels.getpalette(None) or ()) if pixels.mode in ("P", "PA") else b""
        see_through = f"{pixels.info['transparency']!r} " if "transparency" in pixels.info else ""
        head = f"{pixels.mode} {pixels.width} {pixels.height} {see_through}".encode() + palette
        content = pixels.tobytes()
    else:
        head, content = f"{pixels.dtype} {pixels.shape} ".encode(), np.ascontiguousarray(pixels).tobytes()
    digest = xxh3_64(head)
    digest.update(content)
    return int(digest.intdigest())


def image_hash(key: str, content: int | None) -> int:
    """A 64-bit number of what an image is called and holds; 0 where nobody knows what it holds.

    A collection's total is the sum of these modulo 2⁶⁴: it doesn't depend on their order, totals of parts add up, and an image can be
    taken out again.
    """
    if content is None:
        return 0
    return hash_of_bytes(f"{content:016x} ".encode() + key.encode("utf-8", "surrogateescape"))


def sum_of_hashes(numbers: Iterable[int]) -> int:
    """The sum modulo 2⁶⁴.

    >>> sum_of_hashes([(1 << 64) - 1, 3]), sum_of_hashes([2, -3]) == (1 << 64) - 1
    (2, True)
    """
    return sum(numbers) % (1 << 64)


def evenly_spaced(count: int, few: int = FINGERPRINT_IMAGES) -> list[int]:
    """A few numbers from 0 to `count - 1`: the first, the last and some between, each once.

    >>> evenly_spaced(600, 4), evenly_spaced(2, 4)
    ([0, 200, 399, 599], [0, 1])
    """
    return sorted({round(float(number)) for number in np.linspace(0, count - 1, min(few, count))}) if count else []


def contradictions(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> list[str]:
    """The images of which one fingerprint says another thing than the other; what one of them doesn't know, None, proves nothing."""
    return [image for image, said in one.items() if None not in (said, other.get(image)) and other[image] != said]
