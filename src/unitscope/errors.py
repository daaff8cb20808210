"""The errors that a user can mend, and pieces of their messages.

UnitscopeError
├── NetworkError      a network that can't be found, built, loaded or run
├── LayerNotFound     a pattern that matches no layer of the network
├── LayoutError       a layer whose layout can't be told
├── ImagesError       no images, or none that can be read
├── ScanUnfinished    some shards failed; the others were scanned and kept
└── AtlasError        an atlas that is missing, broken, or in the way of a new one
"""

from collections.abc import Iterable
from difflib import get_close_matches

WHERE_IMAGES_ARE = "if the images have moved, say where they are with --images (images= in Python)"


class UnitscopeError(Exception):
    """Base of every error that unitscope raises on purpose. Its message is one line that says what to do."""


class NetworkError(UnitscopeError):
    """A network, its weights or its preprocessing can't be found, built, loaded or run."""


class LayerNotFound(UnitscopeError):
    """A layer name or pattern that matches nothing."""


class LayoutError(UnitscopeError):
    """A layer whose layout can't be told: which axes of its output are image, unit, y and x."""


class ImagesError(UnitscopeError):
    """The images can't be found, or none of them can be read."""


class ScanUnfinished(UnitscopeError):
    """Some images could not be scanned. The others are kept, and the same scan resumes from there."""


class AtlasError(UnitscopeError):
    """A folder that should be an atlas and isn't, or one that is in the way of a new atlas."""


class ImagesWarning(UserWarning):
    """Some of the images that were needed couldn't be read."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def suggestion(name: str, valid_names: Iterable[str]) -> str:
    """A sentence with the valid names that are closest to a name; empty where none is close."""
    close = get_close_matches(name, list(valid_names), n=3, cutoff=0.5)
    return f" Close: {', '.join(map(repr, close))}." if close else ""
