"""From the result of a scan to the tables of an atlas."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unitscope.atlas import CORE_TABLES
from unitscope.images import Geometry
from unitscope.layers import TracedLayer
from unitscope.receptive_fields import Array
from unitscope.records import ImageRecord, Layer, Preprocessing
from unitscope.scanning.partial_results import PartialResult, unit_ranges
from unitscope.scanning.sample import Sample
from unitscope.topk import NO_IMAGE

Columns = dict[str, Any]
SIDES = ("top", "left", "bottom", "right")


def layers_table(layers: Sequence[Layer]) -> pa.Table:
    """The layers with their effective receptive fields."""
    rows = [asdict(layer) for layer in layers]
    columns = {("layer" if name == "name" else name): [row[name] for row in rows] for name in Layer.__slots__}
    return _table("layers", [columns])


def tables_without_layers(
    result: PartialResult, layers: Sequence[TracedLayer], preprocessing: Preprocessing | None
) -> dict[str, pa.Table]:
    """All other tables of the atlas, sorted by layer order, unit and rank, or by image, or by label."""
    records = result.mentioned_records()
    images = [records[image] for image in sorted(records)]
    geometries = ImageGeometries.of(images, preprocessing)
    labels = sorted(result.labels)
    return {
        "images": _table("images", [_image_columns(images)]),
        "labels": _table("labels", [{"label": labels, "images": [result.labels[label] for label in labels]}]),
        "peaks": _table("peaks", (_peak_columns(result, *layer, geometries) for layer in unit_ranges(layers))),
        "units": _table("units", (_unit_columns(result, *layer) for layer in unit_ranges(layers))),
        "sample": _table("sample", _sample_columns(result.sample, layers)),
        "skipped": _table("skipped", [_skipped_columns(result.skipped)]),
    }


@dataclass(frozen=True, slots=True)
class ImageGeometries:
    """How input pixels lie on the mentioned images: scale and offset (down, across) of each, found by the image's number."""

    images: Array
    scale: Array
    offset: Array

    @classmethod
    def of(cls, images: Sequence[ImageRecord], preprocessing: Preprocessing | None) -> "ImageGeometries":
        """Of images in the order of their numbers."""
        geometries = [Geometry.of(preprocessing, image.height, image.width) for image in images]
        scale, offset = np.array([g.scale for g in geometries]), np.array([g.offset for g in geometries])
        numbers = np.array([image.image for image in images], dtype=np.int64)
        return cls(numbers, scale.reshape(-1, 2), offset.reshape(-1, 2))

    def to_source(self, images: Array, positions: Array, axis: int) -> Array:
        """Rows (axis 0) or columns (axis 1) of the input, in pixels of the source image."""
        row = np.searchsorted(self.images, images)
        source: Array = (positions + self.offset[row, axis]) * self.scale[row, axis]
        return source


def _peak_columns(result: PartialResult, traced: TracedLayer, unit_range: slice, geometries: ImageGeometries) -> Columns:
    top_k = result.top_k
    values, images, cells = (tensor[unit_range].numpy() for tensor in (top_k.values, top_k.images, top_k.cells))
    unit, rank = np.nonzero(images != NO_IMAGE)
    image = images[unit, rank]
    y, x = np.divmod(cells[unit, rank], traced.layer.map_width)
    sides = dict(zip(SIDES, traced.receptive_fields.boxes(unit, y, x), strict=True))
    axes = dict(zip(SIDES, (0, 1, 0, 1), strict=True))
    on_source = {f"source_{side}": geometries.to_source(image, sides[side], axes[side]).astype(np.float32) for side in SIDES}
    return {
        "layer": _repeated(traced.name, len(unit)),
        "unit": unit,
        "rank": rank + 1,
        "value": values[unit, rank],
        "image": image,
        "y": y,
        "x": x,
        **sides,
        **on_source,
    }


def _unit_columns(result: PartialResult, traced: TracedLayer, unit_range: slice) -> Columns:
    statistics, unit_count = result.statistics, traced.layer.units
    total, extremes = statistics.total(), statistics.extremes
    assert extremes is not None  # noqa: S101 - the scan has read an image
    finite_images = total.count[unit_range].numpy()
    has_values = finite_images > 0
    std = np.sqrt(total.squares[unit_range].numpy() / np.maximum(finite_images, 1))
    return {
        "layer": _repeated(traced.name, unit_count),
        "unit": np.arange(unit_count),
        "images": np.full(unit_count, statistics.images),
        "activation_rate": extremes.active_images[unit_range].numpy() / statistics.images,
        "mean": np.where(has_values, total.mean[unit_range].numpy(), np.nan),
        "std": np.where(has_values, std, np.nan),
        "lowest": np.where(has_values, extremes.lowest[unit_range].numpy(), np.nan),
        "highest": np.where(has_values, extremes.highest[unit_range].numpy(), np.nan),
        "nan_images": extremes.nan_images[unit_range].numpy(),
        "dead": (result.top_k.images[unit_range, 0] == NO_IMAGE).numpy(),
        "tied": result.top_k.tied[unit_range].numpy(),
    }


def _sample_columns(sample: Sample, layers: Sequence[TracedLayer]) -> Iterator[Columns]:
    order = sample.images.argsort()
    images = sample.images[order].numpy()
    values_by_unit, cells_by_unit = (
        np.ascontiguousarray(tensor.numpy()[order.numpy()].T) for tensor in (sample.values, sample.cells)
    )
    for traced, unit_range in unit_ranges(layers):
        values, cells = values_by_unit[unit_range].ravel(), cells_by_unit[unit_range].ravel()
        has_value = ~np.isnan(values)
        y, x = np.divmod(cells[has_value], traced.layer.map_width)
        unit = np.repeat(np.arange(traced.layer.units, dtype=np.int32), len(images))[has_value]
        yield {
            "layer": _repeated(traced.name, int(has_value.sum())),
            "unit": unit,
            "image": np.tile(images, traced.layer.units)[has_value],
            "value": values[has_value],
            "y": y,
            "x": x,
            **dict(zip(SIDES, traced.receptive_fields.boxes(unit, y, x), strict=True)),
        }


def _image_columns(images: Sequence[ImageRecord]) -> Columns:
    columns: Columns = {name: [getattr(image, name) for image in images] for name in ImageRecord.__slots__}
    return columns | {"content": pa.array(columns["content"], pa.uint64())}


def _skipped_columns(skipped: Mapping[int, tuple[str, str]]) -> Columns:
    keys_and_reasons = [skipped[image] for image in sorted(skipped)]
    return {"key": [key for key, _ in keys_and_reasons], "reason": [reason for _, reason in keys_and_reasons]}


def _repeated(name: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(name), count)


def _table(name: str, pieces: Iterable[Columns]) -> pa.Table:
    """A table of several pieces, one below the other, with the schema of its name."""
    schema = CORE_TABLES[name].schema

    def column(columns: Columns, field: pa.Field) -> pa.Array:
        return pa.array(columns[field.name]).cast(field.type) if len(columns[field.name]) else pa.array([], field.type)

    return pa.concat_tables([pa.table([column(columns, field) for field in schema], schema=schema) for columns in pieces])
