"""Reading an atlas: its manifest, its tables and the images that they mention."""

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from unitscope.arguments import layer_patterns
from unitscope.atlas.manifest import read_manifest
from unitscope.atlas.packed import PackedPatches, PackedPictures
from unitscope.atlas.table_files import TableFile, TableFolder, TableSummary
from unitscope.atlas.tables import ATTRIBUTION_METHODS, CORE_TABLES, PATCHES, PICTURES
from unitscope.atlas.ties import Tie, find_ties
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError, ImagesWarning, LayerNotFound, suggestion
from unitscope.images import Changed, ImageSource, Skipped, SourceImage, as_source, reopen, skipping_errors
from unitscope.images.pixels import in_channels
from unitscope.images.protocol import Pixels
from unitscope.images.value_ranges import Range
from unitscope.records import Layer, Preprocessing, match_layers, names_user_code

MAX_LAYERS = 100_000
MAX_BOX_SIDE_PX = 1 << 24
"""The longest side of an image or a box that a table may give: beyond any, and float32 holds it exactly."""


MAX_PATCHES = 9
"""How many patches of a unit are drawn at most: those that Zeiler & Fergus 2014 show."""


class AtlasReader:
    """The tables and images of an atlas. `Atlas`, which users open, draws them too."""

    def __init__(self, folder: str | os.PathLike[str], images: Any = None) -> None:
        self.folder = Path(folder)
        self._images = images
        self._tables = TableFolder(self.folder)
        self.manifest = read_manifest(self.folder)

    def __repr__(self) -> str:
        return f"Atlas({str(self.folder)!r}): {self.manifest['network']['model']}, {len(self.layers)} layers, {self.manifest['read']} images"

    @property
    def k(self) -> int:
        """How many peaks a unit has at most."""
        return int(self.manifest["k"])

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """How images became inputs; None where they came as tensors."""
        return msgspec.convert(self.manifest["preprocessing"], Preprocessing | None)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        _, height, width = self.manifest["input"]
        return int(height), int(width)

    @property
    def why_no_network(self) -> str | None:
        """Why the network that was scanned isn't built for whoever opens the atlas; None where it is.

        Code that an atlas names is whatever its maker wrote, so it runs only with the user's word.
        """
        model = self.manifest["network"]["model"]
        if model.startswith("module:"):
            return (
                f"the atlas {str(self.folder)!r} was made from a module in memory, {model.removeprefix('module:')!r}; give that in "
                "Python, as in unitscope.check(atlas, network)"
            )
        if names_user_code(model):
            return (
                f"the atlas {str(self.folder)!r} names code to build its network with, {model!r}, which isn't run unasked; if you trust "
                "it, give --trust-code, or network= in Python"
            )
        return None

    @cached_property
    def layers(self) -> list[Layer]:
        """All layers in call order. Raises `AtlasError` where they can't be a network's."""
        if (count := self.row_count("layers")) > MAX_LAYERS:
            raise self.broken(f"it says that the network has {count:,} layers")
        table = self.table("layers")
        if any(table[name].null_count for name in table.column_names if not name.startswith(("effective", "shares"))):
            raise self.broken("a layer lacks its name, kind or another column")
        layers = [Layer(name=row.pop("layer"), **row) for row in table.to_pylist()]
        if len({layer.name for layer in layers}) < len(layers):
            raise self.broken("two of its layers have the same name")
        for layer in layers:
            self._check_sizes(layer)
        return layers

    @cached_property
    def _layers_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def _check_sizes(self, layer: Layer) -> None:
        sizes = (layer.map_height, layer.map_width, layer.receptive_field_height, layer.receptive_field_width)
        effective_sizes = [size for size in (layer.effective_field_height, layer.effective_field_width) if size is not None]
        if not all(0 < size <= MAX_BOX_SIDE_PX for size in (*sizes, *effective_sizes)) or layer.units < 0:
            raise self.broken(f"its layer {layer.name!r} has {layer.units} units and sizes of {sizes} pixels")

    def broken(self, problem: str) -> AtlasError:
        """The error that says what is wrong with the atlas."""
        return AtlasError(f"the atlas {str(self.folder)!r} is broken: {problem}")

    @cached_property
    def source(self) -> ImageSource:
        """The images that were scanned. Raises `ImagesError` where they are gone."""
        if self._images is not None:
            return as_source(self._images)
        try:
            return reopen(self.manifest["images"])
        except ImagesError as error:
            raise ImagesError(f"{error}; {WHERE_IMAGES_ARE}") from error

    @cached_property
    def _image_rows(self) -> dict[int, dict[str, Any]]:
        """The row of every image that the atlas mentions, by number."""
        return {row["image"]: row for row in self.table("images").to_pylist()}

    def _image_row(self, image: int) -> dict[str, Any]:
        if image not in self._image_rows:
            raise self.broken(f"a peak names image {image}, which its images table lacks")
        return self._image_rows[image]

    def key(self, image: int) -> str:
        """The key of the image with that number, of those that the atlas mentions."""
        return str(self._image_row(image)["key"])

    def content(self, image: int) -> int | None:
        """The hash of what the image of that number held when it was scanned; None where that isn't known."""
        content = self._image_row(image)["content"]
        return None if content is None else int(content)

    def open_image(self, image: int) -> Image.Image | Pixels:
        """The source image with that number, found by its key, since files may have come or gone since the scan.

        Raises `Skipped` where it is gone or can't be read, and `Changed`, which is one, where it isn't the image that was scanned.
        """
        row = self._image_row(image)
        opened = self._read_image(image, row["key"])
        pixels = opened.pixels
        width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[2], pixels.shape[1])
        if (width, height) != (row["width"], row["height"]):
            raise Changed(f"has changed: it is {width} x {height} pixels now and was {row['width']} x {row['height']}")
        if None not in (row["content"], opened.content) and opened.content != row["content"]:
            raise Changed("has changed: it is not the image that was scanned")
        return pixels

    def mentions(self, image: int, key: str) -> bool:
        """True where the image of that number and key is among those that the atlas mentions."""
        row = self._image_rows.get(image)
        return row is not None and row["key"] == key

    @property
    def has_images(self) -> bool:
        """True where the images that were scanned are at hand."""
        try:
            _ = self.source
        except ImagesError:
            return False
        return True

    def shown_picture(self, image: int) -> Image.Image:
        """The packed picture of that image or, where it has none, the image itself; for people to look at. Raises as `open_image` does."""
        packed = self.packed_pictures.picture(image, self.key(image)) if self.packed_pictures is not None else None
        if packed is not None:
            return packed
        try:
            return self.picture(image)
        except ImagesError as error:
            if self.packed_pictures is None:
                raise
            raise Skipped("is not among the packed pictures, and the images are gone") from error

    def image_size(self, image: int) -> tuple[int, int]:
        """Height and width of an image as displayed, in pixels."""
        row = self._image_row(image)
        return int(row["height"]), int(row["width"])

    def _read_image(self, image: int, key: str) -> SourceImage:
        source = self.source
        with skipping_errors():
            number = image if source.has(image, key) else source.find(key)
            if number is None:
                raise Skipped("is no longer there")
            return source.read(number)

    def picture(self, image: int) -> Image.Image:
        """The source image with that number as a person looks at it, in 8 bits and three colours. Raises as `open_image` does."""
        return _as_picture(self.open_image(image), self._value_range)

    def picture_of_key(self, image: int, key: str) -> Image.Image:
        """The same of an image that the atlas doesn't mention, as it is now: a table says that it had that number and key. Raises `Skipped` where
        it is gone or can't be read."""
        return _as_picture(self.open_image_of_key(image, key), self._value_range)

    def open_image_of_key(self, image: int, key: str) -> Image.Image | Pixels:
        """The same as it was read, for the network."""
        return self._read_image(image, key).pixels

    def has_image_of_key(self, image: int, key: str) -> bool:
        """True where the images at hand have one of that key, which had that number."""
        try:
            with skipping_errors():
                return self.source.has(image, key) or self.source.find(key) is not None
        except Skipped:
            return False

    @property
    def _value_range(self) -> Range | None:
        return self.preprocessing.value_range if self.preprocessing else None

    @cached_property
    def packed_patches(self) -> PackedPatches | None:
        """The patches that `pack` has put into the atlas; None where it hasn't, or for other peaks."""
        file = self._packed_table(PATCHES.name)
        return None if file is None else PackedPatches(file, self.layers, min(self.k, MAX_PATCHES))

    @cached_property
    def packed_pictures(self) -> PackedPictures | None:
        """The small versions of images that `pack` has put into the atlas; None where it hasn't."""
        file = self._packed_table(PICTURES.name)
        return None if file is None else PackedPictures(file)

    def _packed_table(self, name: str) -> TableFile | None:
        if name not in self._tables.added_names:
            return None
        try:
            return self._tables.open(name)
        except AtlasError as error:
            warnings.warn(f"{error}; until then the images are needed", ImagesWarning, stacklevel=4)
            return None

    def forget_packed(self) -> None:
        """Have packed patches and pictures be looked for again, since they have changed."""
        for name in ("packed_patches", "packed_pictures"):
            self.__dict__.pop(name, None)

    def layer(self, name: str) -> Layer:
        """The layer of that name. Raises `LayerNotFound`."""
        layers = self._layers_by_name
        if name not in layers:
            raise LayerNotFound(
                f"the atlas {str(self.folder)!r} has no layer {name!r}.{suggestion(name, layers)} It has: {', '.join(layers)}"
            )
        return layers[name]

    def layers_matching(self, layers: Any) -> list[Layer]:
        """The layers that a name, a glob, or several of them match, in call order; all of them for None. Raises `LayerNotFound`."""
        patterns = layer_patterns(layers)
        if patterns is None:
            return self.layers
        if not patterns:
            raise LayerNotFound("layers is an empty list; name some, or leave it away for all")
        matches = match_layers(self.layers, patterns)
        for pattern, matching in matches.items():
            if not matching:
                self.layer(pattern)  # raises, and names what is close
        names = {layer.name for matching in matches.values() for layer in matching}
        return [layer for layer in self.layers if layer.name in names]

    def table(
        self, name: str, layer: str | None = None, unit: int | None = None, *, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """A whole table as Arrow, or the rows of one layer, or of one of its units, or some of its columns, in stored order.

        `tables()` lists what there is: core tables, tables that commands added, and those of other programs that say in their metadata
        what they hold. Raises `AtlasError` where there is no such table, where it can't be read, or where it is stale: made from other
        peaks than the atlas has.
        """
        units = None if unit is None else range(unit, unit + 1)
        return self._tables.read(name, None if layer is None else self.layer(layer).name, units, columns)

    def rows_of_units(self, name: str, layer: str, units: range, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a range of a layer's units in a table, in stored order. Raises as `table` does."""
        return self._tables.read(name, self.layer(layer).name, units, columns)

    def tables(self) -> list[TableSummary]:
        """Every table that is there, core tables first; for one that can't be read, why."""
        return self._tables.summaries()

    def row_count(self, name: str) -> int:
        """How many rows a table has, without reading it."""
        return self._tables.open(name).row_count

    @property
    def peaks_hash(self) -> str:
        """The XXH3 hash of `peaks.parquet`, which added tables name to say what they were made from."""
        return self._tables.peaks_hash

    def peaks(self, layer: str, unit: int | None = None) -> pa.Table:
        """Peaks of a layer, or of one of its units, by unit and rank. Columns as in the `peaks` table.

        Raises `LayerNotFound`, and `AtlasError` for a unit that the layer doesn't have.
        """
        return self._ranked_rows("peaks", "peak", layer, unit)

    @property
    def has_troughs(self) -> bool:
        """True where the scan kept the lowest values of layers that nothing rectifies."""
        return "troughs" in self._tables.core_names

    def troughs(self, layer: str, unit: int | None = None) -> pa.Table:
        """Troughs of a layer, or of one of its units, by unit and rank, of which 1 is the lowest. Columns as in the `peaks` table.

        No rows where a rectifier follows the layer, or where the scan kept none. Raises as `peaks` does.
        """
        columns = CORE_TABLES["peaks"].schema.names
        if not self.has_troughs:
            self.layer(layer).check_units([] if unit is None else [unit])
            return CORE_TABLES["peaks"].schema.empty_table()
        return self._ranked_rows("troughs", "trough", layer, unit).select(columns)

    def _ranked_rows(self, name: str, noun: str, layer: str, unit: int | None) -> pa.Table:
        table = self._unit_rows(name, layer)
        ranks = pc.min_max(table["rank"]).as_py()
        if table["rank"].null_count or (len(table) and not 1 <= ranks["min"] <= ranks["max"] <= self.k):
            raise self.broken(f"a {noun} of layer {layer!r} has another rank than 1 to {self.k}")
        if unit is None:
            return table
        self.layer(layer).check_units([unit])
        return table.filter(pc.field("unit") == unit)

    def units(self, layer: str, joined: bool | Sequence[str] = False) -> pa.Table:
        """Statistics of a layer's units, by unit.

        With `joined`, the columns of other tables with a row a unit stand beside them, as `TABLE.COLUMN`: those of the tables named, or
        of all that there are (True). They are null for units that a table doesn't have. Raises as `table` does.
        """
        table = self._unit_rows("units", layer)
        names = [t.name for t in self.tables() if t.level == "unit" and t.name != "units"] if joined is True else joined or ()
        for name in names:
            table = self._with_columns_of(name, table, layer)
        return table

    def _with_columns_of(self, name: str, units: pa.Table, layer: str) -> pa.Table:
        """A layer's units with the columns of another table of units beside them."""
        spec = self._tables.open(name).spec
        if set(spec.key) != {"layer", "unit"}:
            raise AtlasError(f"the table {name!r} can't be joined to units: its rows are by {', '.join(spec.key)}")
        table = self._unit_rows(name, layer)
        if pc.count_distinct(table["unit"]).as_py() < len(table):
            raise self.broken(f"its table {name} has two rows of one unit of layer {layer!r}")
        rows = pc.index_in(units["unit"].cast(pa.int64()), table["unit"].cast(pa.int64()).combine_chunks())
        table = table.drop_columns(list(spec.key)).take(rows)
        for column in table.column_names:
            units = units.append_column(f"{name}.{column}", table[column])
        return units

    def _unit_rows(self, name: str, layer: str) -> pa.Table:
        """The rows of a layer in a table with a column `unit`. Raises `AtlasError` where the layer doesn't have some of the units."""
        unit_count, table = self.layer(layer).units, self.table(name, layer)
        numbers = pc.min_max(table["unit"]).as_py()
        if table["unit"].null_count or not 0 <= (numbers["min"] or 0) <= (numbers["max"] or 0) < max(unit_count, 1):
            raise self.broken(f"its table {name} has other units of layer {layer!r} than 0 to {unit_count - 1}")
        return table

    def ties(self, layer: str) -> dict[int, Tie]:
        """The units of a layer whose last peaks only the order chose, since more images share their value than there are ranks left."""
        return self._ties(self.peaks(layer), self.units(layer), layer)

    def trough_ties(self, layer: str) -> dict[int, Tie]:
        """The same of its troughs: the units whose last troughs only the order chose."""
        return self._ties(self.troughs(layer), self._unit_rows("troughs", layer), layer) if self.has_troughs else {}

    def _ties(self, ranked: pa.Table, counts: pa.Table, layer: str) -> dict[int, Tie]:
        """The units of a layer whose last ranks tie; `counts` has the column `tied` of some of its units, in one row or several."""
        tied = np.zeros(self.layer(layer).units, dtype=np.int64)
        tied[counts["unit"].to_numpy()] = counts["tied"].fill_null(0).to_numpy()
        return find_ties({name: ranked[name].to_numpy() for name in ("unit", "value", "image")}, tied)

    def sample(self, layer: str, unit: int | None = None) -> pa.Table:
        """The layer's peaks in the sample of images, or those of one of its units, with the boxes of their cells, by unit and image."""
        if unit is not None:
            self.layer(layer).check_units([unit])
        return self.table("sample", layer, unit)

    @property
    def methods(self) -> list[str]:
        """The methods of attribution that have added a table."""
        return [name for name in self._tables.added_names if name in ATTRIBUTION_METHODS]

    def attributions(self, method: str, layer: str, unit: int | Sequence[int] | None = None) -> pa.Table:
        """What a method of `attribute` found for the peaks of a layer, or of one or some of its units, by unit and rank.

        Each row has a box of network-input pixels and an image of it, lossless WebP or PNG: `value = (pixel - 128) * scale`. Raises
        `AtlasError` as `table` does.
        """
        _check_method(method)
        rows = pc.field("layer") == self.layer(layer).name
        if unit is not None:
            rows &= pc.field("unit").isin([unit] if isinstance(unit, int) else list(unit))
        return self._tables.open(method, rows).read()

    def attributed(self, method: str) -> set[tuple[str, int]]:
        """Layer and number of the units that a method was used on."""
        _check_method(method)
        table = self.table(method, columns=["layer", "unit"]).drop_null()
        return set(zip(table["layer"].to_pylist(), table["unit"].to_pylist(), strict=True))


def _as_picture(image: Image.Image | Pixels, value_range: Range | None) -> Image.Image:
    """What a person looks at; tensors are spread from their lowest to their highest value, the first three channels as colours."""
    if isinstance(image, Image.Image):
        return in_channels(image, 3, value_range)
    channels = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    low, high = float(np.nanmin(channels)), float(np.nanmax(channels))
    spread = (np.nan_to_num(channels) - low) / (high - low or 1.0)
    return Image.fromarray((spread.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def _check_method(method: str) -> None:
    if method not in ATTRIBUTION_METHODS:
        names = tuple(ATTRIBUTION_METHODS)
        raise AtlasError(f"attribution is one of {', '.join(names)}, not {method!r}.{suggestion(method, names)}")
