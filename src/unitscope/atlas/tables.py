"""The tables of an atlas: each is declared once, here, whoever writes it.

Core tables lie beside `atlas.json` and come from the scan. Added tables lie in `tables/`: other commands make them from the peaks. Some
tables belong to no single atlas and lie in a folder of their own.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from unitscope.errors import AtlasError

ADDED_FOLDER = "tables"
"""The folder in an atlas that holds the added tables."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, with a line that describes it."""

    name: str
    type: pa.DataType
    description: str

    @property
    def is_number(self) -> bool:
        """True for whole and floating-point numbers; truth values are none."""
        return bool(pa.types.is_integer(self.type) or pa.types.is_floating(self.type))


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What a table holds, and which command makes it.

    `level` says what a row is about: `layer`, `unit`, `peak`, `image`, `label`, or several of them, as in `unit × image`. The values of
    the columns `key` identify a row. `command` has the words ATLAS, LAYER and UNIT where an atlas, a layer and a unit are to be named.
    `file` is the path of the table in its folder.
    """

    name: str
    level: str
    key: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]
    command: str
    file: str

    @property
    def schema(self) -> pa.Schema:
        """The columns' names and types, in order."""
        return pa.schema([(column.name, column.type) for column in self.columns])

    @property
    def numeric_columns(self) -> list[Column]:
        """The columns that can be sorted by and plotted: numbers that aren't part of the key."""
        return [column for column in self.columns if column.is_number and column.name not in self.key]

    def command_for(self, folder: Path) -> str:
        """The command that makes this table of the atlas in that folder.

        >>> CORE_TABLES["peaks"].command_for(Path("my atlas"))
        "unitscope scan MODEL IMAGES --out 'my atlas'"
        """
        return self.command.replace("ATLAS", shlex.quote(str(folder)))


def added_table(
    name: str, level: str, key: Iterable[str], description: str, columns: Iterable[Column], command: str
) -> TableSpec:
    """The declaration of a table that lies in the folder of added tables. Raises `AtlasError` for a name that can't be a file's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise AtlasError(f"a table can't have the name {name!r}: a name has letters, digits, _, - and dots")
    return TableSpec(name, level, tuple(key), description, tuple(columns), command, f"{ADDED_FOLDER}/{name}.parquet")


def _core_table(name: str, level: str, key: str, description: str, *columns: Column) -> TableSpec:
    command = "unitscope scan MODEL IMAGES --out ATLAS"
    return TableSpec(name, level, tuple(key.split()), description, columns, command, f"{name}.parquet")


_LAYER = Column("layer", pa.string(), "the layer's name")
_UNIT = Column("unit", pa.int32(), "the unit's number in its layer, from 0")
_RANK = Column("rank", pa.int16(), "the peak's rank in its unit; 1 is the highest")
_VALUE = Column("value", pa.float32(), "the unit's highest value over its activation map")
_IMAGE = Column("image", pa.int64(), "the image's number in the order of the source")
_CELL = (
    Column("y", pa.int32(), "the row of the cell on the activation map"),
    Column("x", pa.int32(), "the column of the cell on the activation map"),
)
_SIDES = ("top", "left", "bottom", "right")
_INPUT_BOX = tuple(
    Column(side, pa.int32(), f"the {side} of the cell's receptive field, in network-input pixels, unclipped") for side in _SIDES
)
_SOURCE_BOX = tuple(Column(f"source_{side}", pa.float32(), f"the same {side}, in source pixels, unclipped") for side in _SIDES)

_CORE = (
    _core_table(
        "layers", "layer", "layer", "The layers that were scanned, in call order",
        _LAYER,
        Column("kind", pa.string(), "the class of the layer's module"),
        Column("units", pa.int32(), "how many units the layer has"),
        Column("map_height", pa.int32(), "the height of the activation maps, in cells"),
        Column("map_width", pa.int32(), "the width of the activation maps, in cells"),
        Column("receptive_field_height", pa.int32(), "the height of an inner cell's receptive field, in network-input pixels"),
        Column("receptive_field_width", pa.int32(), "the width of an inner cell's receptive field, in network-input pixels"),
        Column("effective_field_height", pa.int32(), "the height of the effective receptive field; null for small receptive fields, and where it could not be measured"),
        Column("effective_field_width", pa.int32(), "the width of the effective receptive field; null for small receptive fields, and where it could not be measured"),
        Column("effective_field_measured", pa.bool_(), "the effective receptive field was measured; false where it lies between those of measured layers"),
        Column("stride_y", pa.int32(), "how far apart the fields of two cells one below the other lie, in network-input pixels"),
        Column("stride_x", pa.int32(), "how far apart the fields of two cells side by side lie, in network-input pixels"),
        Column("activation", pa.string(), "the activation that follows the ranked value: relu, relu6, gelu, … or none"),
        Column("order", pa.int32(), "the layer's number in call order, among all that could be scanned"),
    ),
    _core_table(
        "images", "image", "image", "The images that a peak or the sample mentions",
        _IMAGE,
        Column("key", pa.string(), "the image's name: its path relative to the source"),
        Column("width", pa.int32(), "the width as displayed, in source pixels"),
        Column("height", pa.int32(), "the height as displayed, in source pixels"),
        Column("label", pa.string(), "the image's class by the data set; null where it has none"),
        Column("content", pa.uint64(), "a 64-bit hash of the file's bytes or, where there is no file, of the pixels"),
    ),
    _core_table(
        "labels", "label", "label", "How many images have each label",
        Column("label", pa.string(), "a class of the data set"),
        Column("images", pa.int64(), "how many of all images had it"),
    ),
    _core_table(
        "peaks", "peak", "layer unit rank", "The highest values of each unit, with the cells where they stand",
        _LAYER, _UNIT, _RANK, _VALUE, _IMAGE, *_CELL, *_INPUT_BOX, *_SOURCE_BOX,
    ),
    _core_table(
        "units", "unit", "layer unit", "Statistics of each unit's spatial maxima over all images",
        _LAYER, _UNIT,
        Column("images", pa.int64(), "how many images were read"),
        Column("activation_rate", pa.float64(), "the share of images in which the spatial maximum is above zero"),
        Column("mean", pa.float64(), "the mean of the spatial maxima"),
        Column("std", pa.float64(), "the standard deviation of the spatial maxima"),
        Column("lowest", pa.float32(), "the lowest spatial maximum"),
        Column("highest", pa.float32(), "the highest spatial maximum"),
        Column("nan_images", pa.int64(), "in how many images the activation map held a NaN"),
        Column("dead", pa.bool_(), "true where no image gave a peak"),
        Column("tied", pa.int64(), "how many images share the k-th value; 0 where there are fewer than k peaks"),
    ),
    _core_table(
        "sample", "unit × image", "layer unit image", "The highest value of each unit in each image of the uniform random sample",
        _LAYER, _UNIT, _IMAGE, _VALUE, *_CELL, *_INPUT_BOX,
    ),
    _core_table(
        "skipped", "image", "key", "What was met among the images and not scanned",
        Column("key", pa.string(), "the name of the file, member or item"),
        Column("reason", pa.string(), "why it was not scanned"),
    ),
)  # fmt: skip

ATTRIBUTION_METHODS = {
    "deconvnet": "The peak brought down by a deconvnet: through the filters turned over, the switches of the pooling, and a rectifier wherever the network has one",
    "guided_backprop": "Guided backpropagation: the gradient, where it is positive on both sides of every rectifier",
    "gradient": "The gradient of the peak with respect to the pixels",
    "integrated_gradients": "Integrated gradients: the peak's value, shared out among the pixels from the mean colour on",
    "occlusion": "How far the peak drops where a grey square covers the image: light where it matters",
}
"""What each method of attribution draws. `unitscope.attribution`, which needs torch, computes them; each has a table of its name."""


def _attribution_table(method: str, description: str) -> TableSpec:
    box = (
        Column(side, pa.int32(), f"the {side} of the part of the field that lies on the input, in network-input pixels")
        for side in _SIDES
    )
    columns = (
        _LAYER, _UNIT, _RANK, *box,
        Column("scale", pa.float32(), "what one step of a pixel is worth: value = (pixel - 128) * scale"),
        Column("image", pa.binary(), "the signed values in that box as 8-bit pixels, lossless WebP or PNG"),
    )  # fmt: skip
    return added_table(
        method, "peak", ("layer", "unit", "rank"), description, columns, f"unitscope attribute ATLAS --method {method}"
    )


def _share_left(name: str, change: str) -> Column:
    return Column(name, pa.float32(), f"the share of the peaks' values that is left when the images are {change}")


COLOUR_OR_SHAPE = added_table(
    "colour_or_shape", "unit", ("layer", "unit"), "What is left of a unit's peaks when their images are changed",
    (
        _LAYER, _UNIT,
        Column("peaks", pa.int32(), "how many of the unit's peaks are above zero"),
        _share_left("grey", "grey"),
        _share_left("blurred", "blurred"),
        _share_left("scrambled", "scrambled in their phases"),
        _share_left("mirrored", "mirrored left to right"),
    ),
    "unitscope colour-or-shape ATLAS",
)  # fmt: skip

CLASS_PROBABILITY = added_table(
    "class_probability", "image", ("image",), "The class probabilities of an image while a grey square slides over it",
    (
        _IMAGE,
        Column("class", pa.int32(), "the number of the class that `uncovered` and `probability` are about"),
        Column("labelled", pa.bool_(), "true where that class is the image's label"),
        Column("uncovered", pa.float32(), "the probability of the class in the whole image"),
        Column("rows", pa.int32(), "how many positions of the square lie one below the other"),
        Column("columns", pa.int32(), "how many positions of the square lie side by side"),
        Column("probability", pa.list_(pa.float32()), "the probability of the class for each position of the square, row by row"),
        Column("most_probable", pa.list_(pa.int32()), "the most probable class for each position of the square, row by row"),
    ),
    "unitscope occlude ATLAS LAYER UNIT",
)  # fmt: skip

SETTLING = TableSpec(
    "settling", "layer × checkpoint", ("layer", "before", "after"), "How far a layer stays as it was from one checkpoint to the next",
    (
        _LAYER,
        Column("before", pa.string(), "the name of the earlier checkpoint's atlas"),
        Column("after", pa.string(), "the name of the later checkpoint's atlas"),
        Column("overlap", pa.float32(), "the share of a unit's peaks that lie in the same images in both, the mean over units"),
        Column("jumps", pa.float32(), "the share of units whose strongest image is another"),
    ),
    "unitscope evolve CHECKPOINT …", "evolution.parquet",
)  # fmt: skip

PROBE = TableSpec(
    "probe", "layer", ("layer",), "How well a linear classifier tells the labels apart from a layer's pooled features",
    (
        _LAYER,
        Column("features", pa.int32(), "how many features the classifier was given: the layer's units"),
        Column("accuracy", pa.float32(), "the mean accuracy over the folds"),
        Column("deviation", pa.float32(), "the standard deviation of the accuracy over the folds"),
        Column("chance", pa.float32(), "the share of the most frequent label"),
        Column("images", pa.int32(), "how many images were used"),
        Column("folds", pa.int32(), "how many folds the cross-validation has"),
    ),
    "unitscope probe MODEL IMAGES", "probe.parquet",
)  # fmt: skip

INVARIANCE = TableSpec(
    "invariance", "image × transformation × layer", ("image", "transformation", "amount", "layer"),
    "How far a layer's features move when the image is moved, enlarged or turned",
    (
        Column("image", pa.string(), "the image's key"),
        Column("transformation", pa.string(), "translation, scale or rotation"),
        Column("amount", pa.float32(), "the share of the height, the factor, or the degrees"),
        _LAYER,
        Column("distance", pa.float32(), "the Euclidean distance of the features from those of the image as it was"),
        Column("norm", pa.float32(), "the Euclidean norm of the features of the image as it was"),
        Column("probability", pa.float32(), "the probability of the image's class; null where the network doesn't classify"),
    ),
    "unitscope invariance MODEL IMAGES", "invariance.parquet",
)  # fmt: skip


def _by_name(specs: Iterable[TableSpec]) -> dict[str, TableSpec]:
    return {spec.name: spec for spec in specs}


CORE_TABLES = _by_name(_CORE)
"""The tables that a scan writes. A change needs a decision record and a new format version."""
ADDED_TABLES = _by_name(
    (*(_attribution_table(*method) for method in ATTRIBUTION_METHODS.items()), COLOUR_OR_SHAPE, CLASS_PROBABILITY)
)
"""The tables that commands add to an atlas."""
ATLAS_TABLES = CORE_TABLES | ADDED_TABLES
OWN_TABLES = _by_name((SETTLING, PROBE, INVARIANCE))
"""Tables that belong to no single atlas and lie in a folder of their own."""
