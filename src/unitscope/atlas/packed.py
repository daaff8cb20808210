"""The packed pictures of an atlas: every unit's patches, and small versions of images, as JPEG in two of its tables.

Nobody knows who wrote them: what is decoded here is no larger than it should be.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache
from PIL import Image

from unitscope.atlas.table_files import TableFile, table_errors
from unitscope.errors import AtlasError, first_line
from unitscope.records import Layer

PATCH_SIDES_PX, PICTURE_SIDES_PX = (16, 512), (32, 4096)
"""The shortest and the longest side that a packed patch, and a packed picture, may have."""
JPEG_QUALITY = 80
BAND_PATCHES = 12
"""Three patches around each of four quantiles of the sample."""
MAX_GROUP_BYTES = 256 << 20
"""A row group of the table of patches takes about a megabyte; one that says that it takes far more isn't read."""
GROUPS_KEPT = 24


def block_side(slot_count: int) -> int:
    """How many patches stand side by side in a block that has room for so many."""
    return ceil(sqrt(slot_count))


class PackedPatches:
    """The patches of every unit, a JPEG a unit: `peaks` and `troughs` as in a block, and `bands`, the sample's, three for each of four
    quantiles. `has_bands` and `has_troughs` say whether those were packed.

    Raises `AtlasError` where the table is broken.
    """

    def __init__(self, file: TableFile, layers: Sequence[Layer], patch_count: int) -> None:
        self._rows = _BinaryRows(file.path)
        self.size_px = _side(file, "size_px", PATCH_SIDES_PX)
        self._patch_count = patch_count
        self._starts: dict[str, int] = {}
        self._units = {layer.name: layer.units for layer in layers}
        start = 0
        for layer in layers:
            self._starts[layer.name] = start
            start += layer.units
        if file.row_count != start:
            raise AtlasError(f"table {str(file.path)!r} is broken: it has {file.row_count:,} rows for {start:,} units")
        parameters: Mapping[str, Any] = file.provenance.parameters if file.provenance else {}
        self.has_bands, self.has_troughs = bool(parameters.get("bands")), bool(parameters.get("troughs"))

    def block(self, layer: str, unit: int, column: str = "peaks") -> bytes | None:
        """A unit's patches as JPEG, as they lie in the table; None for a unit without any."""
        if not 0 <= unit < self._units[layer]:
            return None
        return self._rows.get(column, self._starts[layer] + unit)

    def patches(self, layer: str, unit: int, column: str = "peaks") -> list[Image.Image]:
        """The slots of a unit's block one by one, in RGB: `peaks` strongest first, `troughs` lowest first, `bands` quantile by quantile. Empty
        slots are there, too."""
        content = self.block(layer, unit, column)
        if content is None:
            return []
        across = BAND_PATCHES // 4 if column == "bands" else block_side(self._patch_count)
        slots = BAND_PATCHES if column == "bands" else across**2
        size = across * self.size_px, slots // across * self.size_px
        block = decode_packed(content, f"the patches of layer {layer!r} unit {unit}")
        if block.size != size:
            raise AtlasError(
                f"the packed patches of layer {layer!r} unit {unit} can't be drawn: they are {block.size}, not {size} pixels large"
            )
        px = self.size_px
        return [
            block.crop((slot % across * px, slot // across * px, (slot % across + 1) * px, (slot // across + 1) * px))
            for slot in range(slots)
        ]


class PackedPictures:
    """Small versions of the images that an atlas mentions, as JPEG. Raises `AtlasError` where the table is broken."""

    def __init__(self, file: TableFile) -> None:
        self._rows = _BinaryRows(file.path)
        self._file = file
        self.side_px = _side(file, "pictures_px", PICTURE_SIDES_PX)

    @cached_property
    def _numbers(self) -> Mapping[tuple[int, str], int]:
        table = self._file.read(["image", "key"])
        return {key: row for row, key in enumerate(zip(table["image"].to_pylist(), table["key"].to_pylist(), strict=True))}

    def content(self, image: int, key: str) -> bytes | None:
        """The picture of an image as JPEG, as it lies in the table; None where it has none."""
        row = self._numbers.get((image, key))
        return None if row is None else self._rows.get("picture", row)

    def picture(self, image: int, key: str) -> Image.Image | None:
        """The same, decoded."""
        content = self.content(image, key)
        if content is None:
            return None
        picture = decode_packed(content, f"the picture of image {key!r}")
        if max(picture.size) > PICTURE_SIDES_PX[1]:
            raise AtlasError(f"the packed picture of image {key!r} can't be drawn: it is {picture.size} pixels large")
        return picture


class _BinaryRows:
    """Binary cells of a Parquet file by row; the row groups that were last read stay in memory. May be asked from several threads."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._groups: LRUCache[tuple[str, int], pa.ChunkedArray] = LRUCache(GROUPS_KEPT)
        with table_errors(path):
            self._file = pq.ParquetFile(path)
        self._stops: list[int] = []
        for group in range(self._file.num_row_groups):
            self._stops.append((self._stops[-1] if self._stops else 0) + self._file.metadata.row_group(group).num_rows)

    def get(self, column: str, row: int) -> bytes | None:
        group = bisect_right(self._stops, row)
        with self._lock:
            if (column, group) not in self._groups:
                self._groups[column, group] = self._read(column, group)
            cells = self._groups[column, group]
        value = cells[row - (self._stops[group - 1] if group else 0)].as_py()
        return value if isinstance(value, bytes) and _is_jpeg(value) else None

    def _read(self, column: str, group: int) -> pa.ChunkedArray:
        if self._file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
            raise AtlasError(f"table {str(self._path)!r} can't be read: a group of its rows is too large")
        with table_errors(self._path):
            return self._file.read_row_group(group, [column])[column]


def _is_jpeg(content: bytes) -> bool:
    """Browsers get it as such, whatever it is."""
    return content.startswith(b"\xff\xd8\xff")


def decode_packed(content: bytes, what: str) -> Image.Image:
    """A JPEG in RGB, no larger than a packed picture may be. Raises `AtlasError` where it can't be decoded; `what` it is, is in the text."""
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as image:
            if image.width * image.height > PICTURE_SIDES_PX[1] ** 2:
                raise AtlasError(f"{what} can't be drawn: it says that it is {image.width} x {image.height} pixels large")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except AtlasError:
        raise
    except Exception as error:  # whatever a file that lies about itself leads to
        raise AtlasError(f"{what} can't be drawn: {first_line(error)}") from error


def _side(file: TableFile, name: str, limits: tuple[int, int]) -> int:
    parameters: Mapping[str, Any] = file.provenance.parameters if file.provenance else {}
    side = parameters.get(name)
    if not isinstance(side, int) or not limits[0] <= side <= limits[1]:
        raise AtlasError(f"table {str(file.path)!r} is broken: it says that {name} is {side!r}")
    return side
