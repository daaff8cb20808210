"""An atlas's tables, checked: nobody knows who wrote them, and pages must not break over them.

Every function raises `AtlasError` where tables contradict each other or hold impossible values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unitscope.atlas import Atlas
from unitscope.atlas.reading import MAX_BOX_SIDE_PX
from unitscope.atlas.samples import NumpyColumns
from unitscope.errors import AtlasError
from unitscope.records import Layer

MAX_UNITS, MAX_UNITS_PER_LAYER = 2_000_000, 1 << 18
"""What pages can show: a unit takes about 450 bytes of HTML on the page of its layer, and 380 of memory while that page is built."""
SIDES = (("top", "bottom"), ("left", "right"))


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image that the atlas mentions; sizes in pixels, as displayed."""

    image: int
    key: str
    width: int
    height: int
    label: str | None


def read_layers(atlas: Atlas) -> list[Layer]:
    """All layers in call order. Their unit counts are checked: so much memory would be taken."""
    unit_counts = [layer.units for layer in atlas.layers]
    if sum(unit_counts) != (rows := atlas.row_count("units")):
        raise atlas.broken(f"its layers have {sum(unit_counts):,} units, but its table of units {rows:,}")
    if sum(unit_counts) > MAX_UNITS or max(unit_counts, default=0) > MAX_UNITS_PER_LAYER:
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} has {sum(unit_counts):,} units, {max(unit_counts):,} in one layer; pages show up to "
            f"{MAX_UNITS:,}, {MAX_UNITS_PER_LAYER:,} in one layer"
        )
    return atlas.layers


def read_images(atlas: Atlas) -> dict[int, ImageEntry]:
    """The images that the atlas mentions, by number."""
    table = atlas.table("images")
    if any(table[name].null_count for name in ("image", "key", "width", "height")):
        raise atlas.broken("an image lacks its number, key or size")
    rows = table.select(ImageEntry.__slots__).to_pylist()
    images = {row["image"]: ImageEntry(**row) for row in rows}
    for image in images.values():
        if not (0 < image.width <= MAX_BOX_SIDE_PX and 0 < image.height <= MAX_BOX_SIDE_PX):
            raise atlas.broken(f"image {image.image} is {image.width} x {image.height} pixels large")
    return images


def read_peaks(atlas: Atlas, images: Mapping[int, ImageEntry]) -> NumpyColumns:
    """All peaks by layer, unit and rank. `layer` is the layer's index in call order; the other columns are those of the table."""
    return _checked_peaks(atlas, atlas.table("peaks"), images)


def read_troughs(atlas: Atlas, layer: Layer, images: Mapping[int, ImageEntry]) -> NumpyColumns:
    """The troughs of a layer by unit and rank, as `read_peaks` gives peaks; none where it, or the atlas, has none."""
    return _checked_peaks(atlas, atlas.troughs(layer.name), images)


def _checked_peaks(atlas: Atlas, table: pa.Table, images: Mapping[int, ImageEntry]) -> NumpyColumns:
    """Peaks, or troughs, by layer, unit and rank."""
    layer_index = pc.index_in(table["layer"], pa.array([layer.name for layer in atlas.layers], pa.string()))
    if layer_index.null_count or any(table[name].null_count for name in table.column_names):
        raise atlas.broken("a peak is of no layer that it has, or lacks a column")
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "layer"} | {"layer": layer_index.to_numpy()}
    _check_peak_cells(atlas, columns)
    _check_peak_images(atlas, columns, images)
    _check_peak_boxes(atlas, columns)
    order = np.lexsort((columns["rank"], columns["unit"], columns["layer"]))
    return {name: column[order] for name, column in columns.items()}


def _check_peak_cells(atlas: Atlas, peaks: NumpyColumns) -> None:
    sizes = [(layer.units, layer.map_height, layer.map_width) for layer in atlas.layers]
    limits = np.array(sizes, dtype=np.int64).reshape(-1, 3)[peaks["layer"]]
    if any(((peaks[name] < 0) | (peaks[name] >= limits[:, axis])).any() for axis, name in enumerate(("unit", "y", "x"))):
        raise atlas.broken("a peak is of a unit or a cell that its layer doesn't have")
    if ((peaks["rank"] < 1) | (peaks["rank"] > atlas.k)).any():
        raise atlas.broken(f"a peak has another rank than 1 to {atlas.k}")


def _check_peak_images(atlas: Atlas, peaks: NumpyColumns, images: Mapping[int, ImageEntry]) -> None:
    is_listed = np.isin(peaks["image"], np.fromiter(images, dtype=np.int64, count=len(images)))
    if not is_listed.all():
        raise atlas.broken(f"a peak names image {peaks['image'][~is_listed][0]}, which its images table lacks")


def _check_peak_boxes(atlas: Atlas, peaks: NumpyColumns) -> None:
    for prefix in ("", "source_"):
        for start, stop in SIDES:
            starts, stops = peaks[prefix + start].astype(np.float64), peaks[prefix + stop].astype(np.float64)
            if not ((np.abs(starts) <= MAX_BOX_SIDE_PX) & (np.abs(stops) <= MAX_BOX_SIDE_PX)).all():
                raise atlas.broken("a peak's box lies beyond any image")
            if not (starts < stops).all():
                raise atlas.broken("a peak's box has no pixels")


def read_units(atlas: Atlas, layer: Layer) -> list[dict[str, Any]]:
    """The statistics of a layer's units, as rows by unit."""
    rows = {row["unit"]: row for row in atlas.units(layer.name).to_pylist()}
    if set(rows) != set(range(layer.units)):
        raise atlas.broken(f"its units table has other units of layer {layer.name!r} than 0 to {layer.units - 1}")
    return [rows[unit] for unit in range(layer.units)]


def read_attributed_units(atlas: Atlas, method: str) -> set[tuple[str, int]]:
    """Layer and number of the units that a method of attribution was used on, of those units that the layers have."""
    unit_counts = {layer.name: layer.units for layer in atlas.layers}
    return {(layer, unit) for layer, unit in atlas.attributed(method) if 0 <= unit < unit_counts.get(layer, 0)}
