"""Images: where they come from (`sources`), how they become pixels (`pixels`), where a box lies on them (`geometry`)."""

from unitscope.images.geometry import Geometry
from unitscope.images.pixels import Skipped, display, prepare
from unitscope.images.sources import DatasetSource, FolderSource, ImageSource, ListSource, as_source, keys_hash, reopened

__all__ = [
    "DatasetSource", "FolderSource", "Geometry", "ImageSource", "ListSource", "Skipped", "as_source", "display",
    "keys_hash", "prepare", "reopened",
]  # fmt: skip
