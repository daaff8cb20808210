"""Images: where they come from (`sources`, and `files` that hold many), how they become pixels (`pixels`), where a box lies on them (`geometry`)."""

from unitscope.images.files import FILE_BITS, FileBroken, FileSource, Item
from unitscope.images.geometry import Geometry
from unitscope.images.pixels import Skipped, display, prepare
from unitscope.images.sources import (
    DatasetSource,
    FolderSource,
    ImageSource,
    ListSource,
    Source,
    as_source,
    count_of,
    holds,
    items_of,
    keys_hash,
    reopened,
)  # fmt: skip

__all__ = [
    "FILE_BITS", "DatasetSource", "FileBroken", "FileSource", "FolderSource", "Geometry", "ImageSource", "Item", "ListSource",
    "Skipped", "Source", "as_source", "count_of", "display", "holds", "items_of", "keys_hash", "prepare", "reopened",
]  # fmt: skip
