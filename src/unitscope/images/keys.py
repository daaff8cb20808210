"""What follows from an image's key alone, on every machine: its place in random orders, and the half that it is in."""

from hashlib import blake2b

HALVES = ("a", "b")
"""What the halves of the images are called in tables, by their number."""


def key_hash(key: str) -> int:
    """A number between 0 and 2⁶³ that depends on nothing but the key."""
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def image_half(key: str) -> int:
    """The half that an image is in: 0 for a, on which names are chosen, 1 for b, on which they are tested."""
    return key_hash(key) & 1
