"""Images: where they come from (`sources`, `datasets`, and `files` that hold many), how they become pixels (`pixels`), where a box
lies on them (`geometry`)."""

from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource
from unitscope.images.files import FILE_BITS, FileBroken, FileSource
from unitscope.images.geometry import Geometry
from unitscope.images.pixels import display, prepare
from unitscope.images.protocol import Changed, ImageSource, Item, Skipped, SourceImage, as_text, skipping_errors
from unitscope.images.sources import (
    FolderSource,
    ListSource,
    Source,
    as_source,
    count_of,
    few_labels,
    finder,
    fingerprint,
    holds,
    items_of,
    keys_hash,
    known_labels,
    reopened,
    same_images,
)  # fmt: skip

__all__ = [
    "FILE_BITS", "Changed", "DatasetSource", "FileBroken", "FileSource", "FolderSource", "Geometry", "ImageSource", "Item", "ListSource",
    "Skipped", "Source", "SourceImage", "as_source", "as_text", "contradictions", "count_of", "display", "few_labels", "finder", "fingerprint", "holds",
    "items_of", "keys_hash", "known_labels", "prepare", "reopened", "same_images",
    "skipping_errors",
]  # fmt: skip
