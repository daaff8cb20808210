"""From what a scan kept to the tables of an atlas."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unitscope.atlas import TABLES
from unitscope.images import Geometry
from unitscope.layers import TracedLayer
from unitscope.receptive_fields import Array
from unitscope.records import ImageNote, Layer, Preprocessing
from unitscope.scanning.partial_results import PartialResult, Sample, side_by_side
from unitscope.topk import NO_IMAGE

Columns = dict[str, Any]


def table_of_layers(layers: Sequence[Layer]) -> pa.Table:
    """The layers' records, with their effective fields, as a table."""
    return _table("layers", [_layer_columns(layers)])


def tables(part: PartialResult, traced: Sequence[TracedLayer], preprocessing: Preprocessing | None) -> dict[str, pa.Table]:
    """All other tables of the atlas, sorted as the contract says."""
    part.forget()
    places = Places.of(part.notes, preprocessing)
    return {
        "images": _table("images", [_image_columns(part.notes)]),
        "labels": _table("labels", [{"label": sorted(part.labels), "images": [part.labels[n] for n in sorted(part.labels)]}]),
        "peaks": _table("peaks", (_peak_columns(part, t, s, places) for t, s in side_by_side(traced))),
        "units": _table("units", (_unit_columns(part, t, s) for t, s in side_by_side(traced))),
        "sample": _table("sample", _sample_columns(part.sample, traced)),
        "skipped": _table("skipped", [_skipped_columns(part.skipped)]),
    }


@dataclass(frozen=True, slots=True)
class Places:
    """How input pixels lie on the mentioned images: scale and offset per image, found by the image's number."""

    images: Array
    scale: Array
    offset: Array

    @classmethod
    def of(cls, notes: Mapping[int, ImageNote], preprocessing: Preprocessing | None) -> "Places":
        images = sorted(notes)
        ways = [Geometry.of(preprocessing, notes[i].height, notes[i].width) for i in images]
        scale, offset = np.array([w.scale for w in ways]), np.array([w.offset for w in ways])
        return cls(np.array(images, dtype=np.int64), scale.reshape(-1, 2), offset.reshape(-1, 2))

    def to_source(self, images: Array, positions: Array, axis: int) -> Array:
        """Rows (axis 0) or columns (axis 1) of the input, in pixels of the source image."""
        row = np.searchsorted(self.images, images)
        source: Array = (positions + self.offset[row, axis]) * self.scale[row, axis]
        return source


def _peak_columns(part: PartialResult, traced: TracedLayer, units: slice, places: Places) -> Columns:
    values, images, cells = (t[units].numpy() for t in (part.best.values, part.best.images, part.best.cells))
    unit, rank = np.nonzero(images != NO_IMAGE)
    image, cell = images[unit, rank], cells[unit, rank]
    y, x = np.divmod(cell, traced.layer.map_width)
    top, left, bottom, right = traced.fields.boxes(unit, y, x)
    sides = {"top": (top, 0), "left": (left, 1), "bottom": (bottom, 0), "right": (right, 1)}
    return {
        "layer": _repeated(traced.name, len(unit)),
        "unit": unit,
        "rank": rank + 1,
        "value": values[unit, rank],
        "image": image,
        "y": y,
        "x": x,
        **{name: side for name, (side, _) in sides.items()},
        **{f"source_{name}": places.to_source(image, side, axis).astype(np.float32) for name, (side, axis) in sides.items()},
    }


def _unit_columns(part: PartialResult, traced: TracedLayer, units: slice) -> Columns:
    moments, count = part.moments, traced.layer.units
    total = moments.total()
    extremes = moments.extremes
    assert extremes is not None  # noqa: S101 - the scan has read an image
    valid = total.count[units].numpy()
    some = valid > 0
    std = np.sqrt(total.squares[units].numpy() / np.maximum(valid, 1))
    return {
        "layer": _repeated(traced.name, count),
        "unit": np.arange(count),
        "images": np.full(count, moments.images),
        "activation_rate": extremes.active[units].numpy() / moments.images,
        "mean": np.where(some, total.mean[units].numpy(), np.nan),
        "std": np.where(some, std, np.nan),
        "lowest": np.where(some, extremes.lowest[units].numpy(), np.nan),
        "highest": np.where(some, extremes.highest[units].numpy(), np.nan),
        "nan_images": extremes.spoilt[units].numpy(),
        "dead": (part.best.images[units, 0] == NO_IMAGE).numpy(),
        "tied": part.best.tied[units].numpy(),
    }


def _sample_columns(sample: Sample, traced: Sequence[TracedLayer]) -> Iterator[Columns]:
    order = sample.images.argsort()
    images = sample.images[order].numpy()
    by_unit = (np.ascontiguousarray(t.numpy()[order.numpy()].T) for t in (sample.values, sample.cells))
    all_values, all_cells = by_unit
    for one, units in side_by_side(traced):
        values, cells = all_values[units].ravel(), all_cells[units].ravel()
        some = ~np.isnan(values)
        y, x = np.divmod(cells[some], one.layer.map_width)
        unit = np.repeat(np.arange(one.layer.units, dtype=np.int32), len(images))[some]
        top, left, bottom, right = one.fields.boxes(unit, y, x)
        yield {
            "layer": _repeated(one.name, int(some.sum())),
            "unit": unit,
            "image": np.tile(images, one.layer.units)[some],
            "value": values[some],
            "y": y,
            "x": x,
            "top": top,
            "left": left,
            "bottom": bottom,
            "right": right,
        }


def _layer_columns(layers: Sequence[Layer]) -> Columns:
    rows = [asdict(layer) for layer in layers]
    return {("layer" if name == "name" else name): [row[name] for row in rows] for name in Layer.__slots__}


def _image_columns(notes: Mapping[int, ImageNote]) -> Columns:
    images = sorted(notes)
    columns: Columns = {name: [getattr(notes[i], name) for i in images] for name in ImageNote.__slots__}
    return {"image": images} | columns | {"content": pa.array(columns["content"], pa.uint64())}


def _skipped_columns(skipped: Mapping[int, tuple[str, str]]) -> Columns:
    images = sorted(skipped)
    return {"key": [skipped[i][0] for i in images], "reason": [skipped[i][1] for i in images]}


def _repeated(name: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(name), count)


def _table(name: str, columns: Any) -> pa.Table:
    schema = TABLES[name]
    batches = [
        pa.table([pa.array(c[f.name]).cast(f.type) if len(c[f.name]) else pa.array([], f.type) for f in schema], schema=schema)
        for c in columns
    ]
    return pa.concat_tables(batches)
