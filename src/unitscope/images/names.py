"""What the names of files tell: which are pictures."""

import os
from functools import cache

from PIL import Image, ImageFile


def is_picture_name(path: str) -> bool:
    """True where Pillow opens files with the path's last ending."""
    return os.path.splitext(path)[1].lower() in picture_endings()


@cache
def picture_endings() -> frozenset[str]:
    """Every ending of a format that Pillow opens, such as `.jpg`; formats for which it has a name and no decoder don't count."""
    format_by_ending = Image.registered_extensions()
    stubs = {name for name, (factory, _) in Image.OPEN.items() if _is_stub(factory)}
    endings = {ending for ending, name in format_by_ending.items() if name in Image.OPEN and name not in stubs}
    return frozenset(endings | {".mpo"})  # Pillow opens these as JPEG, under whose name they don't stand


def _is_stub(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
