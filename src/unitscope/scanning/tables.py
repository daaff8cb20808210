"""From the result of a scan to the tables of an atlas."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from unitscope.atlas import CORE_TABLES
from unitscope.images import Geometry
from unitscope.images.keys import HALVES
from unitscope.layers import TracedLayer
from unitscope.networks.classes import OutputClass
from unitscope.receptive_fields import Array
from unitscope.records import ImageRecord, Layer, Preprocessing
from unitscope.scanning.near_duplicates import distinct_peaks
from unitscope.scanning.partial_results import PartialResult, layers_with_troughs, unit_ranges
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.running_statistics import ImageGroup, Moments
from unitscope.scanning.sample import Sample
from unitscope.scanning.tuning import FixedPoint, Tuning
from unitscope.topk import NO_IMAGE, TopK

Columns = dict[str, Any]
SIDES = ("top", "left", "bottom", "right")
MAX_TUNING_ROWS = 1 << 20
"""How many rows of the tuning are made at once."""


def layers_table(layers: Sequence[Layer]) -> pa.Table:
    """The layers with their effective receptive fields."""
    rows = [asdict(layer) for layer in layers]
    columns = {("layer" if name == "name" else name): [row[name] for row in rows] for name in Layer.__slots__}
    return _table("layers", columns)


def tables_without_layers(
    result: PartialResult,
    layers: Sequence[TracedLayer],
    plan: ScanPlan,
    preprocessing: Preprocessing | None,
) -> dict[str, Iterable[pa.Table]]:
    """All other tables of the atlas, sorted by layer order, unit and rank, or by image, or by label; troughs only where layers have them.

    Each comes in pieces, which are made when they are asked for: by the threads that write them, and no large table is ever whole in memory.
    """
    records = result.mentioned_records()
    peaks, is_near_duplicate = distinct_peaks(result.top_k, records, plan.k)
    troughs, _ = distinct_peaks(result.troughs, records, plan.k)
    result = replace(result, troughs=troughs)  # what was left out names no image
    images = [record for _, record in sorted(result.mentioned_records().items())]
    geometries = ImageGeometries.of(images, preprocessing)
    labels, moments = sorted(result.labels), result.statistics.total()
    ranges, total = list(unit_ranges(layers)), moments.of_all_groups()
    pieces: dict[str, Iterable[Columns]] = {  # what takes longest comes first
        "tuning": _tuning_columns(result.tuning, layers, plan.fixed_point),
        "sample": _sample_columns(result.sample, layers),
        "images": [_image_columns(images)],
        "labels": [{"label": labels, "images": [result.labels[label] for label in labels]}],
        "peaks": (_peak_columns(peaks, *layer, geometries) for layer in ranges),
        "candidates": (_candidate_columns(result.top_k, is_near_duplicate, *layer) for layer in ranges),
        "units": (_unit_columns(result, peaks, total, *layer) for layer in ranges),
        "halves": (_half_columns(moments, *layer) for layer in ranges),
        "skipped": [_skipped_columns(result.skipped)],
    }
    if trough_ranges := list(unit_ranges([layers[index] for index in layers_with_troughs(layers, plan)])):
        pieces["troughs"] = (_trough_columns(troughs, *layer, geometries) for layer in trough_ranges)
    return {name: map(partial(_table, name), of_table) for name, of_table in pieces.items()}


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


def _peak_columns(peaks: TopK, traced: TracedLayer, unit_range: slice, geometries: ImageGeometries) -> Columns:
    unit, rank, columns = _ranked_columns(peaks, traced, unit_range)
    axes = dict(zip(SIDES, (0, 1, 0, 1), strict=True))
    image = columns["image"]
    on_source = {f"source_{side}": geometries.to_source(image, columns[side], axes[side]).astype(np.float32) for side in SIDES}
    return {"unit": unit, "rank": rank + 1, **columns, **on_source}


def _trough_columns(troughs: TopK, traced: TracedLayer, unit_range: slice, geometries: ImageGeometries) -> Columns:
    """Of troughs whose values are negated."""
    columns = _peak_columns(troughs, traced, unit_range, geometries)
    return columns | {"value": -columns["value"], "tied": troughs.tied[unit_range].numpy()[columns["unit"]]}


def _candidate_columns(top_k: TopK, is_near_duplicate: Array, traced: TracedLayer, unit_range: slice) -> Columns:
    unit, rank, columns = _ranked_columns(top_k, traced, unit_range)
    return {"unit": unit, "candidate": rank + 1, **columns, "near_duplicate": is_near_duplicate[unit_range][unit, rank]}


def _ranked_columns(top_k: TopK, traced: TracedLayer, unit_range: slice) -> tuple[Array, Array, Columns]:
    """Unit and rank, from 0, of all that a layer's units keep, and the columns that they share."""
    values, images, cells = (tensor[unit_range].numpy() for tensor in (top_k.values, top_k.images, top_k.cells))
    unit, rank = np.nonzero(images != NO_IMAGE)
    y, x = np.divmod(cells[unit, rank], traced.layer.map_width)
    sides = dict(zip(SIDES, traced.receptive_fields.boxes(unit, y, x), strict=True))
    columns: Columns = {
        "layer": _repeated(traced.name, len(unit)),
        "value": values[unit, rank],
        "image": images[unit, rank],
        "y": y,
        "x": x,
        **sides,
    }
    return unit, rank, columns


def _unit_columns(result: PartialResult, peaks: TopK, total: Moments, traced: TracedLayer, unit_range: slice) -> Columns:
    statistics, unit_count, extremes = result.statistics, traced.layer.units, result.statistics.extremes
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
        "dead": (peaks.images[unit_range, 0] == NO_IMAGE).numpy(),
        "tied": peaks.tied[unit_range].numpy(),
    }


def _half_columns(moments: Moments, traced: TracedLayer, unit_range: slice) -> Columns:
    """Two rows a unit, one a half; none where no image has a label."""
    halves = slice(ImageGroup.A, ImageGroup.B + 1)
    count, mean, squares, cubes = (
        getattr(moments, name)[halves, unit_range].numpy().T.ravel() for name in ("count", "mean", "squares", "cubes")
    )
    if not moments.count[halves].any():
        count, mean, squares, cubes = (values[:0] for values in (count, mean, squares, cubes))
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = squares / count
        skewness = cubes / count / variance**1.5
    return {
        "layer": _repeated(traced.name, len(count)),
        "unit": np.repeat(np.arange(traced.layer.units), 2)[: len(count)],
        "half": np.tile(HALVES, traced.layer.units)[: len(count)],
        "images": count,
        "mean": np.where(count > 0, mean, np.nan),
        "std": np.sqrt(variance),
        "skewness": skewness,
    }


def classes_table(classes: Sequence[OutputClass]) -> pa.Table:
    """What the network's outputs are called."""
    columns = {
        "class": range(len(classes)),
        "name": [output.name for output in classes],
        "node": pa.array([output.node for output in classes], pa.string()),
    }
    return _table("classes", columns)


def _tuning_columns(tuning: Tuning, layers: Sequence[TracedLayer], fixed_point: FixedPoint | None) -> Iterator[Columns]:
    """The mean responses by label, some units at a time: the whole table may take a gigabyte."""
    labels = tuning.labels
    if not labels or fixed_point is None:
        return
    for (traced, unit_range), step in zip(unit_ranges(layers), fixed_point.steps, strict=True):
        units_at_once = max(1, MAX_TUNING_ROWS // len(labels))
        for start in range(unit_range.start, unit_range.stop, units_at_once):
            units = slice(start, min(start + units_at_once, unit_range.stop))
            numbers = np.arange(units.start - unit_range.start, units.stop - unit_range.start, dtype=np.int32)
            yield {
                "layer": _repeated(traced.name, len(numbers) * len(labels)),
                "unit": np.repeat(numbers, len(labels)),
                "label": pa.DictionaryArray.from_arrays(np.tile(np.arange(len(labels), dtype=np.int32), len(numbers)), labels),
                **_half_means(tuning, labels, ImageGroup.A, units, step),
                **_half_means(tuning, labels, ImageGroup.B, units, step),
            }


def _half_means(tuning: Tuning, labels: Sequence[str], half: ImageGroup, units: slice, step: float) -> Columns:
    """By unit and label; a mean is null where no image of the half gave a value."""
    images = np.zeros((units.stop - units.start, len(labels)), dtype=np.int32)
    means = np.zeros(images.shape)
    met = [row for row, label in enumerate(labels) if (label, half) in tuning.sums]
    if met:
        keys = [(labels[row], half) for row in met]
        counts = np.tile(np.array([tuning.images[key] for key in keys], dtype=np.int32), (len(images), 1))
        for column, key in enumerate(keys):
            if key in tuning.missing:
                counts[:, column] -= tuning.missing_images(key, units).numpy()
        sums = torch.stack([tuning.sums[key][units] for key in keys], 1).numpy()
        images[:, met], means[:, met] = counts, sums * step / np.maximum(counts, 1)
    name = HALVES[half - ImageGroup.A]
    return {f"images_{name}": images.ravel(), f"mean_{name}": pa.array(means.ravel(), mask=images.ravel() == 0)}


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
    return columns | {name: pa.array(columns[name], pa.uint64()) for name in ("content", "perceptual_hash")}


def _skipped_columns(skipped: Mapping[int, tuple[str, str]]) -> Columns:
    keys_and_reasons = [skipped[image] for image in sorted(skipped)]
    return {"key": [key for key, _ in keys_and_reasons], "reason": [reason for _, reason in keys_and_reasons]}


def _repeated(name: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), [name])


def _table(name: str, columns: Columns) -> pa.Table:
    """A table, or a piece of one, with the types of its name; strings may have a dictionary."""
    return pa.table({field.name: _array(columns[field.name], field.type) for field in CORE_TABLES[name].schema})


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    if len(values) == 0:
        return pa.array([], type_)
    array = pa.array(values)
    return array if pa.types.is_dictionary(array.type) else array.cast(type_)
