"""pack(): every unit's patches, and small versions of the images, put into tables of the atlas, so that it needs no image any more.

Each image is decoded once. Its patches belong to many units, so they wait, uncompressed, in a file without a name, until all are cut.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from math import ceil
from threading import Lock
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from unitscope.atlas.atlas import Atlas
from unitscope.atlas.packed import BAND_PATCHES, JPEG_QUALITY, PATCH_SIDES_PX, PICTURE_SIDES_PX, block_side
from unitscope.atlas.patches import PatchCount, boxes_on_input, patches_counted, resolve_patch_kind
from unitscope.atlas.reading import MAX_PATCHES
from unitscope.atlas.samples import BAND_EXAMPLES, BANDS, LayerSample, read_sample
from unitscope.atlas.tables import PATCHES, PICTURES, PREDICTIONS
from unitscope.atlas.writing import check_table_writable, table_writer
from unitscope.drawing import PAGE_GROUND, Crop, cut_patch, draw_missing_patch
from unitscope.errors import UnitscopeError
from unitscope.images import Changed, Geometry, Skipped
from unitscope.records import Box, Layer

PATCH_PX, PICTURE_PX = 64, 320
UNITS_TOGETHER = 64
"""How many units, and pictures, share a row group: some 600 kB, all that has to be read for one of them."""
WAITING_IMAGES = 8
"""How many images are decoded before their pictures are written, for each thread."""
UNCOMPRESSED = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""Options of a table whose cells are compressed already."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    units: int
    pictures: int
    size_bytes: int


def pack(
    atlas: Atlas,
    *,
    bands: bool = False,
    troughs: bool = False,
    pictures_px: int | None = PICTURE_PX,
    size_px: int = PATCH_PX,
    on_images: Callable[[int], None] | None = None,
) -> Packed:
    """Put the patches of every unit into the atlas, as its table `patches`, and small versions of the images that it mentions (`pictures`).

    From then on sheets, figures and pages are drawn from these, and the atlas can go where its images don't. Patches are squares with sides
    of `size_px` pixels; the longer side of a picture has `pictures_px`, or there are none, where that is None. With `troughs` those of
    the troughs are packed, too, where the atlas has them, and with `bands` the images of the sample that a unit is compared with.

    Raises `ImagesError` where the images are gone; a warning says how many patches lack theirs.
    """
    _check_side("size_px", size_px, PATCH_SIDES_PX)
    if pictures_px is not None:
        _check_side("pictures_px", pictures_px, PICTURE_SIDES_PX)
    for spec in (PATCHES, PICTURES):
        check_table_writable(spec, atlas)
    _ = atlas.source
    columns = ("peaks", *(("troughs",) if troughs and atlas.has_troughs else ()), *(("bands",) if bands else ()))
    plan = _planned(atlas, columns)
    with ExitStack() as stack:
        parameters = {"size_px": size_px, "bands": bands, "troughs": "troughs" in columns}
        patches = stack.enter_context(table_writer(PATCHES, atlas, parameters=parameters, options=UNCOMPRESSED))
        pictures, picture_count = None, 0
        if pictures_px is not None:
            pictures = stack.enter_context(
                table_writer(PICTURES, atlas, parameters={"pictures_px": pictures_px}, options=UNCOMPRESSED)
            )
        count = stack.enter_context(patches_counted())  # raises before a table is put in its place
        count.requested = len(plan.image)
        spool = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=atlas.folder)), (size_px, size_px, 3))
        cutting = _Cutting(atlas, plan, size_px, pictures_px, count, spool)
        for rows in _in_groups(cutting.pictures(on_images), UNITS_TOGETHER):
            if pictures is not None:
                pictures.write_table(pa.Table.from_pylist(rows, PICTURES.schema))
                picture_count += len(rows)
        for rows in _in_groups(cutting.blocks(), UNITS_TOGETHER):
            patches.write_table(pa.Table.from_pylist(rows, PATCHES.schema))
    atlas.forget_packed()
    files = [atlas.folder / spec.file for spec in (PATCHES, PICTURES)]
    if pictures_px is None:
        with suppress(FileNotFoundError):
            files.pop().unlink()  # those of an earlier run would go along with the atlas
    return Packed(sum(layer.units for layer in atlas.layers), picture_count, sum(file.stat().st_size for file in files))


def _check_side(name: str, side: int, limits: tuple[int, int]) -> None:
    if not limits[0] <= side <= limits[1]:
        raise UnitscopeError(f"{name} is a number of pixels from {limits[0]} to {limits[1]:,}, not {side}")


# ── which patches ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Plan:
    """All patches, as columns: the image, the slot among all slots of all units, and the box in pixels of the network's input."""

    image: NDArray[np.int64]
    slot: NDArray[np.int64]
    box: NDArray[np.float64]
    blocks: Sequence["_Blocks"]

    @cached_property
    def rows_of_image(self) -> Mapping[int, NDArray[np.int64]]:
        """The rows of each image."""
        order = np.argsort(self.image, kind="stable")
        images, starts = np.unique(self.image[order], return_index=True)
        return dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True))


@dataclass(frozen=True)
class _Blocks:
    """The blocks of one layer's units in one column of the table: where their slots begin, and how many of them each unit fills."""

    layer: Layer
    column: str
    start: int
    slots: int
    filled: NDArray[np.int64]

    @property
    def stop(self) -> int:
        return self.start + len(self.filled) * self.slots


def _planned(atlas: Atlas, columns: Collection[str]) -> _Plan:
    images, slots, boxes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    blocks: list[_Blocks] = []
    start = 0
    for layer in atlas.layers:
        kind = resolve_patch_kind(atlas, layer, "auto")
        for column, slot_count, cells, places in _columns(atlas, layer, columns):
            images.append(cells["image"].astype(np.int64))
            slots.append(start + cells["unit"].astype(np.int64) * slot_count + places)
            boxes.append(boxes_on_input(atlas, layer, kind, cells))
            blocks.append(_Blocks(layer, column, start, slot_count, np.bincount(cells["unit"], minlength=layer.units)))
            start = blocks[-1].stop
    return _Plan(np.concatenate(images), np.concatenate(slots), np.concatenate(boxes), blocks)


def _columns(
    atlas: Atlas, layer: Layer, columns: Collection[str]
) -> Iterator[tuple[str, int, Mapping[str, NDArray[Any]], NDArray[np.int64]]]:
    """For each of these columns of the table that the layer has its name, how many slots a unit has, the cells that fill them, and which one
    each fills."""
    shown = min(atlas.k, MAX_PATCHES)
    yield "peaks", block_side(shown) ** 2, *_ranked_cells(atlas.peaks(layer.name), shown)
    if "troughs" in columns and len(table := atlas.troughs(layer.name)):
        yield "troughs", block_side(shown) ** 2, *_ranked_cells(table, shown)
    if "bands" not in columns:
        return
    sample = LayerSample.of(read_sample(atlas, layer, range(layer.units)), layer.units)
    chosen = [
        (row, number * BAND_EXAMPLES + place)
        for unit in range(layer.units)
        if len(sample.rows(unit))
        for number, quantile in enumerate(BANDS.values())
        for place, row in enumerate(sample.band_rows(unit, quantile))
    ]
    rows, places = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
    yield "bands", BAND_PATCHES, {name: column[rows] for name, column in sample.columns.items()}, places


def _ranked_cells(table: pa.Table, shown: int) -> tuple[Mapping[str, NDArray[Any]], NDArray[np.int64]]:
    """The cells of peaks or troughs that are shown, and which slot each fills."""
    cells = {name: table[name].to_numpy() for name in table.column_names if name != "layer"}
    cells = {name: column[cells["rank"] <= shown] for name, column in cells.items()}
    return cells, cells["rank"].astype(np.int64) - 1


# ── their pixels ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Cutting:
    """Cuts all patches into the spool, image by image, and puts those of each unit together."""

    atlas: Atlas
    plan: _Plan
    size_px: int
    pictures_px: int | None
    count: PatchCount
    spool: "_Spool"

    def pictures(self, on_images: Callable[[int], None] | None) -> Iterator[dict[str, Any]]:
        """Cut the patches of all images, several at a time; gives the rows of `pictures` on the way."""
        thread_safe = self.atlas.source.thread_safe
        with ThreadPoolExecutor(os.cpu_count(), "pack") as pool:

            def submit(image: int, key: str) -> "Future[dict[str, Any] | None]":
                if thread_safe:
                    return pool.submit(lambda: self._cut(image, key, self._open(image, key)))
                return pool.submit(self._cut, image, key, self._open(image, key))  # a data set is read in this thread

            waiting: deque[Future[dict[str, Any] | None]] = deque()
            try:
                for image, key in self._images():
                    waiting.append(submit(image, key))
                    if len(waiting) > WAITING_IMAGES * (os.cpu_count() or 1):
                        yield from self._finished(waiting.popleft(), on_images)
                while waiting:
                    yield from self._finished(waiting.popleft(), on_images)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _finished(
        self, future: "Future[dict[str, Any] | None]", on_images: Callable[[int], None] | None
    ) -> Iterator[dict[str, Any]]:
        row = future.result()
        if on_images is not None:
            on_images(1)
        if row is not None:
            yield row

    def _images(self) -> list[tuple[int, str]]:
        """Number and key of every image that is opened."""
        table = self.atlas.table("images", columns=["image", "key"])
        keys = dict(zip(table["image"].to_pylist(), table["key"].to_pylist(), strict=True))
        with_patches = self.plan.rows_of_image
        for image in with_patches:
            self.atlas.key(image)  # raises where the atlas is broken
        if self.pictures_px is None:
            return [(image, keys[image]) for image in sorted(with_patches)]
        return sorted({*keys.items(), *_predicted_images(self.atlas)})

    def _open(self, image: int, key: str) -> Image.Image | Skipped:
        try:
            if self.atlas.mentions(image, key):
                return self.atlas.picture(image).convert("RGB")
            return self.atlas.picture_of_key(image, key).convert("RGB")
        except Skipped as reason:
            return reason

    def _cut(self, image: int, key: str, picture: Image.Image | Skipped) -> dict[str, Any] | None:
        """Cut the patches of an image; its row in `pictures`, if that is wanted and can be had."""
        rows = self.plan.rows_of_image.get(image, ()) if self.atlas.mentions(image, key) else ()
        if isinstance(picture, Skipped):
            self.count.failures += [f"{key!r} {picture}"] * len(rows)
            missing = draw_missing_patch(self.size_px, isinstance(picture, Changed), PAGE_GROUND)
            for row in rows:
                self.spool.write(int(self.plan.slot[row]), missing)
            return None
        size = picture.height, picture.width
        geometry = Geometry.of(self.atlas.preprocessing, *size)
        input_crop = geometry.to_source(Box(0, 0, *geometry.input))
        for row in rows:
            crop = Crop.of(geometry.to_source(Box(*self.plan.box[row].tolist())), input_crop, size)
            self.spool.write(int(self.plan.slot[row]), cut_patch(picture, crop, self.size_px, PAGE_GROUND))
        if self.pictures_px is None:
            return None
        picture.thumbnail((self.pictures_px, self.pictures_px), Image.Resampling.BICUBIC)
        return {"image": image, "key": key, "picture": _as_jpeg(picture)}

    def blocks(self) -> Iterator[dict[str, Any]]:
        """The rows of `patches`, from the patches in the spool."""
        by_layer: dict[str, list[_Blocks]] = {}
        for blocks in self.plan.blocks:
            by_layer.setdefault(blocks.layer.name, []).append(blocks)
        with ThreadPoolExecutor(os.cpu_count(), "pack") as pool:
            for layer in self.atlas.layers:
                for start in range(0, layer.units, UNITS_TOGETHER):
                    units = range(start, min(start + UNITS_TOGETHER, layer.units))
                    columns = {blocks.column: pool.map(partial(self._block, blocks), units) for blocks in by_layer[layer.name]}
                    for unit in units:
                        of_unit = {column: next(contents) for column, contents in columns.items()}
                        yield dict.fromkeys(PATCHES.schema.names) | {"layer": layer.name, "unit": unit} | of_unit

    def _block(self, blocks: _Blocks, unit: int) -> bytes | None:
        filled = int(blocks.filled[unit])
        if not filled:
            return None
        across = BAND_EXAMPLES if blocks.column == "bands" else block_side(blocks.slots)
        down, px = ceil(blocks.slots / across), self.size_px
        patches = self.spool.read(blocks.start + unit * blocks.slots, blocks.slots)
        if blocks.column != "bands":
            patches[filled:] = PAGE_GROUND.empty  # a sparse file reads as black
        grid = patches.reshape(down, across, px, px, 3).transpose(0, 2, 1, 3, 4).reshape(down * px, across * px, 3)
        return _as_jpeg(Image.fromarray(grid))


class _Spool:
    """Patches of one shape by number, in a file that has no name: it goes with the process. For several threads."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        self._file, self._shape, self._size = file, shape, int(np.prod(shape))
        self._lock = Lock()

    def write(self, number: int, patch: Image.Image) -> None:
        content = patch.tobytes()
        with self._lock:
            self._file.seek(number * self._size)
            self._file.write(content)

    def read(self, start: int, count: int) -> Pixels:
        """Some patches that follow each other; those that nobody wrote are black."""
        with self._lock:
            self._file.seek(start * self._size)
            content = self._file.read(count * self._size)
        return np.frombuffer(content.ljust(count * self._size, b"\0"), np.uint8).reshape(count, *self._shape).copy()


def _predicted_images(atlas: Atlas) -> list[tuple[int, str]]:
    """Images that pages show for what the network predicts."""
    if PREDICTIONS.name not in {table.name for table in atlas.tables() if table.problem is None}:
        return []
    table = atlas.table(PREDICTIONS.name).drop_null()
    return list(zip(table["image"].to_pylist(), table["key"].to_pylist(), strict=True))


def _as_jpeg(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def _in_groups(rows: Iterator[dict[str, Any]], length: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == length:
            yield group
            group = []
    if group:
        yield group
