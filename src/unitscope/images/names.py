"""What the names of files say: which are pictures."""

from functools import cache

from PIL import Image, ImageFile


@cache
def picture_endings() -> frozenset[str]:
    """Every ending of a format that Pillow opens, such as `.jpg`; formats for which it has a name and no decoder don't count."""
    endings = Image.registered_extensions()
    stubs = {name for name, (factory, _) in Image.OPEN.items() if _is_stub(factory)}
    opened = {ending for ending, name in endings.items() if name in Image.OPEN and name not in stubs}
    return frozenset(opened | {".mpo"})  # Pillow opens these as JPEG, under whose name they don't stand


def _is_stub(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
