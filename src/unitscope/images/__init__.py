"""Images: where they come from (`sources`, `datasets`, `archives`; all keep to `protocol`), how they become pixels (`pixels`), where a box
lies on them (`geometry`)."""

from unitscope.images.archives import ArchiveSource
from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource
from unitscope.images.geometry import Geometry
from unitscope.images.image_files import FolderSource, ListSource
from unitscope.images.numbered import NumberedSource
from unitscope.images.pixels import display, prepare
from unitscope.images.protocol import (
    Changed,
    ImageSource,
    Item,
    ShardUnreadable,
    Skipped,
    SourceImage,
    as_text,
    skipping_errors,
)  # fmt: skip
from unitscope.images.sources import as_source, reopened, same_images

__all__ = [
    "ArchiveSource", "Changed", "DatasetSource", "FolderSource", "Geometry", "ImageSource", "Item", "ListSource", "NumberedSource",
    "ShardUnreadable", "Skipped", "SourceImage", "as_source", "as_text", "contradictions", "display", "prepare", "reopened", "same_images",
    "skipping_errors",
]  # fmt: skip
