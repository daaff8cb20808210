"""An atlas's tables, checked: nobody knows who wrote them, and pages must not break over them.

Every function raises `AtlasError` where tables contradict each other or hold what can't be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.reading import MAX_SIDE_PX
from unitscope.errors import AtlasError
from unitscope.records import Layer

Columns = Mapping[str, NDArray[Any]]

MOST_UNITS, MOST_UNITS_A_LAYER = 2_000_000, 1 << 18
"""What pages can show: all units of a layer stand on one."""
SIDES = (("top", "bottom"), ("left", "right"))


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that the atlas mentions; sizes in pixels, as displayed."""

    image: int
    key: str
    width: int
    height: int
    label: str | None


def layers_of(atlas: Atlas) -> list[Layer]:
    """All layers in call order."""
    _check_units(atlas)
    return atlas.layers


def _check_units(atlas: Atlas) -> None:
    """Raises `AtlasError` where `layers` has other units than `units`, or more than pages can show: so much memory would be taken."""
    counts = [layer.units for layer in atlas.layers]
    if sum(counts) != (rows := atlas.row_count("units")):
        raise atlas.broken(f"its layers have {sum(counts):,} units, but its table of units {rows:,}")
    if sum(counts) > MOST_UNITS or max(counts, default=0) > MOST_UNITS_A_LAYER:
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} has {sum(counts):,} units, {max(counts):,} in one layer; pages show up to {MOST_UNITS:,}, "
            f"{MOST_UNITS_A_LAYER:,} in one layer"
        )


def images_of(atlas: Atlas) -> dict[int, ImageRecord]:
    """The images that the atlas mentions, by number."""
    table = atlas.table("images")
    if any(table[name].null_count for name in ("image", "key", "width", "height")):
        raise atlas.broken("an image lacks its number, key or size")
    rows = table.select(ImageRecord.__slots__).to_pylist()
    found = {row["image"]: ImageRecord(**row) for row in rows}
    for one in found.values():
        if not (0 < one.width <= MAX_SIDE_PX and 0 < one.height <= MAX_SIDE_PX):
            raise atlas.broken(f"image {one.image} is {one.width} x {one.height} pixels large")
    return found


def peaks_of(atlas: Atlas, images: Mapping[int, ImageRecord]) -> Columns:
    """All peaks by layer, unit and rank; `place` is the layer's place in call order."""
    table = atlas.table("peaks")
    places = pc.index_in(table["layer"], pa.array([layer.name for layer in atlas.layers], pa.string()))
    if places.null_count or any(table[name].null_count for name in table.column_names):
        raise atlas.broken("a peak is of no layer that it has, or lacks a column")
    found = {name: table[name].to_numpy() for name in table.column_names if name != "layer"} | {"place": places.to_numpy()}
    _check_peaks(atlas, found, images)
    order = np.lexsort((found["rank"], found["unit"], found["place"]))
    return {name: column[order] for name, column in found.items()}


def _check_peaks(atlas: Atlas, peaks: Columns, images: Mapping[int, ImageRecord]) -> None:
    sizes = [(layer.units, layer.map_height, layer.map_width) for layer in atlas.layers]
    most = np.array(sizes, dtype=np.int64).reshape(-1, 3)[peaks["place"]]
    if any(((peaks[name] < 0) | (peaks[name] >= most[:, axis])).any() for axis, name in enumerate(("unit", "y", "x"))):
        raise atlas.broken("a peak is of a unit or a cell that its layer doesn't have")
    if ((peaks["rank"] < 1) | (peaks["rank"] > atlas.k)).any():
        raise atlas.broken(f"a peak has another rank than 1 to {atlas.k}")
    known = np.isin(peaks["image"], np.fromiter(images, dtype=np.int64, count=len(images)))
    if not known.all():
        raise atlas.broken(f"a peak names image {peaks['image'][~known][0]}, which its images table lacks")
    for side in (f"{prefix}{side}" for prefix in ("", "source_") for pair in SIDES for side in pair):
        if not (np.abs(peaks[side].astype(np.float64)) <= MAX_SIDE_PX).all():
            raise atlas.broken("a peak's box lies beyond any image")
    for start, stop in (*SIDES, *((f"source_{start}", f"source_{stop}") for start, stop in SIDES)):
        if not (peaks[start] < peaks[stop]).all():
            raise atlas.broken("a peak's box has no pixels")


def sample_of(atlas: Atlas, layer: Layer) -> Columns:
    """A layer's values in the sample but NaN, by unit, value and image."""
    table = atlas.sample(layer.name)
    if any(column.null_count for column in table.columns):
        raise atlas.broken("its sample lacks values")
    held = {name: table[name].to_numpy() for name in table.column_names if name != "layer"}
    most = {"unit": layer.units, "y": layer.map_height, "x": layer.map_width}
    if any(((held[name] < 0) | (held[name] >= size)).any() for name, size in most.items()):
        raise atlas.broken(f"its sample has units or cells that layer {layer.name!r} lacks")
    held = {name: column[~np.isnan(held["value"])] for name, column in held.items()}
    order = np.lexsort((held["image"], held["value"], held["unit"]))
    found = {name: column[order] for name, column in held.items()}
    del table, held
    pa.default_memory_pool().release_unused()  # Arrow keeps what it read the whole table with, as much as all else here
    return found


def units_of(atlas: Atlas, layer: Layer) -> list[dict[str, Any]]:
    """The statistics of a layer's units, as rows by unit."""
    rows = {row["unit"]: row for row in atlas.units(layer.name).to_pylist()}
    if set(rows) != set(range(layer.units)):
        raise atlas.broken(f"its units table has other units of layer {layer.name!r} than 0 to {layer.units - 1}")
    return [rows[unit] for unit in range(layer.units)]
