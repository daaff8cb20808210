"""Images: where they come from (`sources` says which source is meant, `protocol` what all of them give), how they become pictures
(`decoding`) and inputs (`pixels`), where a box lies on them (`geometry`)."""

from unitscope.images.archives import ArchiveSource
from unitscope.images.content import contradictions
from unitscope.images.datasets import DatasetSource
from unitscope.images.decoding import decode_image
from unitscope.images.geometry import Geometry
from unitscope.images.image_files import FolderSource, ListSource
from unitscope.images.numbered import NumberedSource
from unitscope.images.pixels import prepare
from unitscope.images.protocol import (
    Changed,
    ImageSource,
    Item,
    ShardUnreadable,
    Skipped,
    SourceImage,
    skipping_errors,
    valid_text,
)  # fmt: skip
from unitscope.images.sources import as_source, reopen, same_images

__all__ = [
    "ArchiveSource", "Changed", "DatasetSource", "FolderSource", "Geometry", "ImageSource", "Item", "ListSource", "NumberedSource",
    "ShardUnreadable", "Skipped", "SourceImage", "as_source", "contradictions", "decode_image", "prepare", "reopen", "same_images",
    "skipping_errors", "valid_text",
]  # fmt: skip
