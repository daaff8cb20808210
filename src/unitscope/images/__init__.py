"""Images: where they come from (`sources`, `datasets`, and `archives` that hold many), how they become pixels (`pixels`), where a box
lies on them (`geometry`)."""

from unitscope.images.archives import FILE_BITS, ArchiveSource, ShardUnreadable
from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource
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
    "FILE_BITS",
    "ArchiveSource",
    "Changed",
    "DatasetSource",
    "FolderSource",
    "Geometry",
    "ImageSource",
    "Item",
    "ListSource",
    "ShardUnreadable",
    "Skipped",
    "Source",
    "SourceImage",
    "as_source",
    "as_text",
    "contradictions",
    "count_of",
    "display",
    "few_labels",
    "finder",
    "fingerprint",
    "holds",
    "items_of",
    "keys_hash",
    "known_labels",
    "prepare",
    "reopened",
    "same_images",
    "skipping_errors",
]  # fmt: skip
