"""What can go wrong that a user can mend.

UnitscopeError
├── NetworkError      a network that can't be found, built, loaded or run
├── LayerNotFound     a pattern that no layer of the network answers to
├── LayoutError       a layer whose output has no units, or no places, that can be told apart
├── ImagesError       no images, or none that can be read
├── ScanUnfinished    shards that failed, while the others were scanned and kept
└── AtlasError        an atlas that is missing, incomplete, or in the way
"""

from collections.abc import Iterable
from difflib import get_close_matches

WHERE_IMAGES_ARE = "if the images have moved, say where they are with --images (images= in Python)"


class UnitscopeError(Exception):
    """Base of every error that unitscope raises on purpose; its text is one line that says what to do."""


class NetworkError(UnitscopeError):
    """A network, its weights or its preprocessing can't be had as asked."""


class LayerNotFound(UnitscopeError):
    """A layer name or pattern that matches nothing."""


class LayoutError(UnitscopeError):
    """A layer whose output has no units that unitscope can tell apart yet."""


class ImagesError(UnitscopeError):
    """The images can't be found, or none of them can be read."""


class ScanUnfinished(UnitscopeError):
    """Some images could not be scanned; what was scanned is kept, and the same scan goes on from there."""


class AtlasError(UnitscopeError):
    """A folder that isn't an atlas where one is expected, or is in the way where none is."""


class ImagesWarning(UserWarning):
    """Some of the images couldn't be read where they were needed."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def suggestion(asked: str, known: Iterable[str]) -> str:
    """A sentence that names the known words closest to the asked one; empty where none is close."""
    close = get_close_matches(asked, list(known), n=3, cutoff=0.5)
    return f" Close: {', '.join(map(repr, close))}." if close else ""
