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
    """One column of a table, with a line that describes it. Files written before there was an `optional` one lack it."""

    name: str
    type: pa.DataType
    description: str
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """True for whole and floating-point numbers; truth values are none."""
        return bool(pa.types.is_integer(self.type) or pa.types.is_floating(self.type))


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What a table holds, and which command makes it.

    `level` says what a row is about: `layer`, `unit`, `peak`, `image`, `label`, or several of them, as in `unit × image`. The values of
    the columns `key` identify a row. `command` has the words ATLAS, LAYER and UNIT where an atlas, a layer and a unit are to be named.
    `file` is the path of the table in its folder. An atlas may lack an `optional` core table.
    """

    name: str
    level: str
    key: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]
    command: str
    file: str
    optional: bool = False

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


def _core_table(name: str, level: str, key: str, description: str, *columns: Column, optional: bool = False) -> TableSpec:
    command = "unitscope scan MODEL IMAGES --out ATLAS"
    return TableSpec(name, level, tuple(key.split()), description, columns, command, f"{name}.parquet", optional)


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
        Column("shares_units_of", pa.string(), "the layer whose units these are, seen through activations and normalisations; null where they are its own", optional=True),
    ),
    _core_table(
        "images", "image", "image", "The images that a candidate, a trough or the sample mentions",
        _IMAGE,
        Column("key", pa.string(), "the image's name: its path relative to the source"),
        Column("width", pa.int32(), "the width as displayed, in source pixels"),
        Column("height", pa.int32(), "the height as displayed, in source pixels"),
        Column("label", pa.string(), "the image's class by the data set; null where it has none"),
        Column("content", pa.uint64(), "a 64-bit hash of the file's bytes or, where there is no file, of the pixels"),
        Column("perceptual_hash", pa.uint64(), "63 bits of which near-duplicates share all but six or fewer; null where the image shows nothing to tell it by"),
    ),
    _core_table(
        "labels", "label", "label", "How many images have each label",
        Column("label", pa.string(), "a class of the data set"),
        Column("images", pa.int64(), "how many of all images had it"),
    ),
    _core_table(
        "peaks", "peak", "layer unit rank", "The highest values of each unit, without near-duplicates, with the cells where they stand",
        _LAYER, _UNIT, _RANK, _VALUE, _IMAGE, *_CELL, *_INPUT_BOX, *_SOURCE_BOX,
    ),
    _core_table(
        "troughs", "trough", "layer unit rank", "The lowest values of each unit of layers that nothing rectifies, without near-duplicates, with the cells where they stand",
        _LAYER, _UNIT,
        Column("rank", pa.int16(), "the trough's rank in its unit; 1 is the lowest"),
        Column("value", pa.float32(), "the unit's lowest value over its activation map"),
        _IMAGE, *_CELL, *_INPUT_BOX, *_SOURCE_BOX,
        Column("tied", pa.int64(), "how many images share the unit's k-th lowest value; 0 where it has fewer than k troughs"),
        optional=True,
    ),
    _core_table(
        "candidates", "candidate", "layer unit candidate", "More of the highest values of each unit, near-duplicates too: what the peaks were chosen from",
        _LAYER, _UNIT,
        Column("candidate", pa.int16(), "the candidate's place in its unit; 1 is the highest"),
        _VALUE, _IMAGE, *_CELL, *_INPUT_BOX,
        Column("near_duplicate", pa.bool_(), "true for a near-duplicate of an image that stands before it, which is no peak for that reason"),
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
        "halves", "unit × half", "layer unit half", "Statistics of each unit's responses to the labelled images of each half",
        _LAYER, _UNIT,
        Column("half", pa.string(), "a, on which names are chosen, or b, on which they are tested: a bit of the hash of the image's key"),
        Column("images", pa.int64(), "how many labelled images of the half gave the unit a value"),
        Column("mean", pa.float64(), "the mean of the responses, which are spatial maxima"),
        Column("std", pa.float64(), "their standard deviation"),
        Column("skewness", pa.float64(), "their third standardised moment; NaN where all are equal"),
    ),
    _core_table(
        "tuning", "unit × label", "layer unit label", "The mean response of each unit to the images of each label, in each half",
        _LAYER, _UNIT,
        Column("label", pa.string(), "a class of the data set"),
        Column("images_a", pa.int32(), "how many images of that label in half a gave the unit a finite value"),
        Column("mean_a", pa.float64(), "the mean of their responses; null where there are none"),
        Column("images_b", pa.int32(), "the same in half b"),
        Column("mean_b", pa.float64(), "the same in half b"),
    ),
    _core_table(
        "classes", "class", "class", "What the network's outputs are called",
        Column("class", pa.int32(), "the position among the outputs, from 0"),
        Column("name", pa.string(), "the class's name"),
        Column("node", pa.string(), "its WordNet id; null where nobody knows it"),
    ),
    _core_table(
        "skipped", "image", "key", "What was met among the images and not scanned",
        Column("key", pa.string(), "the name of the file, member or item"),
        Column("reason", pa.string(), "why it was not scanned"),
    ),
)  # fmt: skip

ATTRIBUTION_METHODS = {
    "activation": "The unit's own activation map around the peak, spread over the pixels",
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

NAMES = added_table(
    "names", "unit", ("layer", "unit"), "What each unit's response goes with best: a label, a group of labels, a text, or what it is tuned to",
    (
        _LAYER, _UNIT,
        Column("name", pa.string(), "what the unit responds to, in words; null where nothing holds on images that it was not chosen on, and for dead units"),
        Column("kind", pa.string(), "what the name is: a class or a group of classes, a text, or visual where an angle or a colour explains more"),
        Column("node", pa.string(), "the concept's id: of the class tree, or the label; null for other names"),
        Column("nearest", pa.string(), "the concept that the figures are about, whether it holds or not; null where none has enough images"),
        Column("r_a", pa.float32(), "Pearson's correlation of response and membership in half a of the images, on which it was chosen"),
        Column("r_b", pa.float32(), "the same in half b, on which it was tested"),
        Column("images_b", pa.int32(), "the labelled images of half b that gave the unit a value; for texts, those of the sample"),
        Column("p_value", pa.float64(), "the chance of such a correlation in half b where responses are permuted among images"),
        Column("explained", pa.float32(), "the share of the response's variance that the unit's visual tuning explains, to be held beside r_b squared; null where it wasn't looked for"),
        Column("base_rate", pa.float32(), "the share of labelled images that belong to the concept; null for texts, as all that follows"),
        Column("peaks_inside", pa.int32(), "how many of the unit's peaks are in images of the concept"),
        Column("peaks", pa.int32(), "how many of its peaks are in labelled images"),
        Column("f1", pa.float32(), "F1 in the sample's half b, above the threshold that is best in its half a"),
        Column("average_precision", pa.float32(), "the area under precision and recall in the sample's half b; null below ten images of the concept"),
        Column("sample_base_rate", pa.float32(), "what that would be by chance: the share of the sample's half b in the concept"),
    ),
    "unitscope name ATLAS",
)  # fmt: skip

VISUAL_TUNING = added_table(
    "visual_tuning", "unit", ("layer", "unit"), "The angle, spatial frequency, phase and colour that each unit is tuned to",
    (
        _LAYER, _UNIT,
        Column("description", pa.string(), "the tuning in words; null where it explains too little of the response"),
        Column("explained", pa.float32(), "the share of the response's variance over half b of the sample that it explains, fitted on half a"),
        Column("grating_gain", pa.float32(), "the response to the best grating above that to middle grey"),
        Column("angle", pa.float32(), "the angle of that grating's lines in degrees: 0 horizontal, 45 up to the right, 90 vertical"),
        Column("angle_selectivity", pa.float32(), "how sharp the angle is: 0 where all give the same, 1 where one alone gives a response"),
        Column("period_px", pa.float32(), "the period of that grating, in network-input pixels"),
        Column("cycles_per_receptive_field", pa.float32(), "how many periods of it the receptive field holds"),
        Column("phase", pa.float32(), "the phase of that grating in the middle of the field, in degrees: 0 a bright line, 180 a dark one, 90 and 270 edges"),
        Column("phase_modulation", pa.float32(), "how much of the response depends on the phase: 0 for none of it"),
        Column("hue", pa.float32(), "the hue that excites the unit most, in degrees: red 0, green 120, blue 240"),
        Column("hue_gain", pa.float32(), "the response to that hue everywhere, above that to middle grey"),
        Column("hue_opponent", pa.float32(), "how far below that to middle grey the response to the opposite hue is"),
        Column("brightness_gain", pa.float32(), "the response to white above that to black"),
    ),
    "unitscope name ATLAS",
)  # fmt: skip

SCORES = added_table(
    "scores", "unit", ("layer", "unit"), "How well each unit's patches predict its response to images that they don't show",
    (
        _LAYER, _UNIT,
        Column("predictability", pa.float32(), "the share of pairs of unseen images, one that excites the unit much and one little, that its patches tell right"),
        Column("predictability_low", pa.float32(), "the lower end of its 95 % interval, by bootstrap over images"),
        Column("predictability_high", pa.float32(), "the upper end of that interval"),
        Column("predictability_shuffled", pa.float32(), "the same where it is shuffled which images excite the unit: chance is a half"),
        Column("pairs", pa.int32(), "how many pairs there were"),
        Column("monosemanticity", pa.float32(), "how much alike the patches of the sample are, weighed by response: the mean cosine of their pairs"),
        Column("monosemanticity_shuffled", pa.float32(), "the same where responses are shuffled among the images"),
        Column("localisation", pa.float32(), "the share of unseen images in which what looks most like the patches lies where the unit responds; null where patches are large"),
        Column("localisation_chance", pa.float32(), "the share of positions that would count as such"),
        Column("facets", pa.int32(), "how many groups the unit's candidates fall into, by a test that prefers one; 0 where there are none"),
        Column("facets_shuffled", pa.int32(), "the same of as many patches drawn at random from the sample"),
        Column("embedder", pa.string(), "the network that says how much alike patches are"),
    ),
    "unitscope score ATLAS",
)  # fmt: skip

FACETS = added_table(
    "facets", "candidate", ("layer", "unit", "candidate"), "Which group of its unit's candidates each candidate belongs to",
    (
        _LAYER, _UNIT,
        Column("candidate", pa.int16(), "the candidate's place in its unit, as in the table candidates; near-duplicates have no row"),
        Column("facet", pa.int16(), "the group's number, from 1, in the order of their highest candidates"),
    ),
    "unitscope score ATLAS",
)  # fmt: skip

_CLASS = Column("class", pa.int32(), "the position among the network's outputs, from 0")

MEAN_MAPS = added_table(
    "mean_maps", "activation map", ("layer", "unit"), "What each unit passes on, on average over the images, at each cell: what takes its place where it is knocked out",
    (
        _LAYER, _UNIT,
        Column("map", pa.list_(pa.float32()), "the mean of what comes out of the unit (of its activation, if it has one) at each cell, in the order of the output, with class tokens and the like"),
    ),
    "unitscope effects ATLAS",
)  # fmt: skip

EFFECTS = added_table(
    "effects", "unit × class", ("layer", "unit", "class"), "What each unit does to each class: how far the class's score would fall in its images if the unit passed on its mean, to first order",
    (
        _LAYER, _UNIT, _CLASS,
        Column("effect", pa.float32(), "the mean over the class's images, in the score's units; above zero the unit raises the class"),
        Column("standard_error", pa.float32(), "its standard error over these images; null where there is one"),
        Column("share", pa.float32(), "the effect's size as a share of those of all units of its layer"),
        Column("images", pa.int32(), "how many images the mean is over"),
    ),
    "unitscope effects ATLAS",
)  # fmt: skip

EFFECT_LAYERS = added_table(
    "effect_layers", "layer", ("layer",), "How far effects of a layer's units can be believed",
    (
        _LAYER,
        Column("exact", pa.bool_(), "true where only linear operations follow, so that first order is the truth"),
        Column("r", pa.float32(), "Pearson's correlation of first order with the drop that knocking the unit out gives; null without --verify"),
        Column("slope", pa.float32(), "the drop for each unit of first order, by least squares through zero"),
        Column("knockouts", pa.int32(), "how many pairs of a unit and an image that was measured on"),
    ),
    "unitscope effects ATLAS --verify N",
)  # fmt: skip

PREDICTIONS = added_table(
    "predictions", "image", ("label_class", "predicted", "rank"), "How often images of each class are taken for which, with the most certain ones",
    (
        Column("label_class", pa.int32(), "the position of the class that the image's label is; -1 where it has none"),
        Column("predicted", pa.int32(), "the position of the highest output"),
        Column("rank", pa.int16(), "the image's place among those of that label and that prediction; 1 is the most certain"),
        Column("images", pa.int64(), "how many images have that label and that prediction"),
        _IMAGE,
        Column("key", pa.string(), "the image's name"),
        Column("probability", pa.float32(), "the probability of the prediction: the softmax of the outputs"),
        Column("top_classes", pa.list_(pa.int32()), "the positions of the five highest outputs"),
        Column("top_probabilities", pa.list_(pa.float32()), "their probabilities"),
    ),
    "unitscope effects ATLAS",
)  # fmt: skip

KNOCKOUTS = added_table(
    "knockouts", "units × class", ("layer", "units", "replacement", "class"), "What taking units away for real does to each class",
    (
        _LAYER,
        Column("units", pa.string(), "the numbers of the units that were taken away together, with spaces between"),
        Column("replacement", pa.string(), "what they passed on instead: mean, their mean map, or zero"),
        _CLASS,
        Column("images", pa.int32(), "how many images of the class that was measured on"),
        Column("logit_drop", pa.float32(), "how far the class's score fell in these images, on average"),
        Column("standard_error", pa.float32(), "its standard error over these images; null where there is one"),
        Column("probability_drop", pa.float32(), "how far the class's probability fell, on average"),
        Column("right_before", pa.float32(), "the share of these images in which the class came first, before"),
        Column("right_after", pa.float32(), "the same after"),
    ),
    "unitscope knock-out ATLAS LAYER UNIT",
)  # fmt: skip

MISTAKES = added_table(
    "mistakes", "unit × confusion", ("label_class", "predicted", "layer", "unit"), "The units that speak most for a wrong class, in images that are taken for it",
    (
        Column("label_class", pa.int32(), "the position of the class that the images' labels are"),
        Column("predicted", pa.int32(), "the position of the class that they are taken for"),
        _LAYER, _UNIT,
        Column("difference", pa.float32(), "how much more the unit speaks for the wrong class than in images rightly taken for it, less the same of the right class"),
        Column("on_predicted", pa.float32(), "its mean effect on the wrong class's score in these images"),
        Column("on_predicted_right", pa.float32(), "the same in images that are rightly taken for that class"),
        Column("on_label", pa.float32(), "its mean effect on the right class's score in these images"),
        Column("on_label_right", pa.float32(), "the same in images that are rightly taken for it"),
        Column("images", pa.int32(), "how many images of the one class are taken for the other"),
    ),
    "unitscope effects ATLAS",
)  # fmt: skip

SHORTCUTS = added_table(
    "shortcuts", "unit × class", ("class", "layer", "unit", "evidence"), "Candidates for shortcuts: units that raise a class where they should not",
    (
        _CLASS, _LAYER, _UNIT,
        Column("evidence", pa.string(), "mistakes: the unit raises the class more in images wrongly taken for it than in right ones; off object: what raises it lies off the object"),
        Column("effect", pa.float32(), "its mean effect on the class's score, in the images wrongly taken for it or, for off object, in all of the class"),
        Column("effect_right", pa.float32(), "the same in images rightly taken for it; null for off object"),
        Column("off_share", pa.float32(), "the share of what raises the class that lies off the object; null for mistakes"),
        Column("r", pa.float32(), "for mistakes, the correlation of the effect with being wrong, over the images taken for the class; for off object, that of the unit's highest value with the class"),
        Column("p_value", pa.float64(), "the chance of so much where labels, or objects, are dealt out among the images"),
        Column("images", pa.int32(), "how many images that is over"),
        Column("by_chance", pa.int32(), "how many candidates the class has where labels, or objects, are dealt out at random"),
    ),
    "unitscope effects ATLAS",
)  # fmt: skip

PATCHES = added_table(
    "patches", "block", ("layer", "unit"), "Every unit's patches, so that none has to be cut from an image",
    (
        _LAYER, _UNIT,
        Column("peaks", pa.binary(), "JPEG: the patches of the peaks, row by row, the strongest first; null for a unit without peaks"),
        Column("bands", pa.binary(), "JPEG: three images of the sample in each of four rows, around its 99, 90 and 50 per cent quantile and the lowest; null without --bands"),
        Column("troughs", pa.binary(), "JPEG: the patches of the troughs, row by row, the lowest first; null for a unit without troughs", optional=True),
    ),
    "unitscope pack ATLAS",
)  # fmt: skip

PICTURES = added_table(
    "pictures", "image", ("image", "key"), "Small versions of the images that the atlas mentions",
    (
        _IMAGE,
        Column("key", pa.string(), "the image's name"),
        Column("picture", pa.binary(), "JPEG: the image as displayed, its longer side shortened"),
    ),
    "unitscope pack ATLAS",
)  # fmt: skip

CIRCUITS = added_table(
    "circuits", "unit × unit", ("layer", "unit", "source_layer", "source_unit"), "Which units of earlier layers feed each unit, in the images of its peaks, on ways that pass no other layer",
    (
        _LAYER, _UNIT,
        Column("source_layer", pa.string(), "the earlier layer"),
        Column("source_unit", pa.int32(), "the unit of that layer; -1 for all of its units that have no row of their own"),
        Column("contribution", pa.float32(), "what it passes on, times the gradient of the peak's value with respect to that, summed over cells: the mean over the peaks"),
        Column("share", pa.float32(), "its size as a share of those of all units that feed it"),
        Column("peaks", pa.int16(), "how many peaks the mean is over"),
    ),
    "unitscope circuits ATLAS",
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

DEPTH = TableSpec(
    "depth", "layer", ("layer",), "What units are like from the first layer to the last",
    (
        _LAYER,
        Column("units", pa.int32(), "how many units the layer has"),
        Column("receptive_field_height", pa.int32(), "the height of an inner cell's receptive field, in network-input pixels"),
        Column("effective_field_height", pa.int32(), "the height of the effective receptive field; null where the receptive field is small"),
        Column("named", pa.float32(), "the share of units that are named after a class, a group of classes or a text"),
        Column("visual", pa.float32(), "the share of units that are named after what they are tuned to: an angle, a colour, brightness, contrast"),
        Column("r", pa.float32(), "the mean correlation of units with the nearest concept, on the half that it was not chosen on"),
        Column("r_chance", pa.float32(), "the standard deviation of such a correlation where responses are permuted among images; its mean is 0"),
        Column("predictability", pa.float32(), "the mean share of pairs of unseen images that patches tell right"),
        Column("predictability_shuffled", pa.float32(), "the same where it is shuffled which images excite a unit"),
        Column("several_facets", pa.float32(), "the share of units whose candidates fall into several groups"),
        Column("several_facets_shuffled", pa.float32(), "the same of patches drawn at random"),
        Column("grey", pa.float32(), "the mean share of the peaks' values that is left when the images are grey"),
        Column("scrambled", pa.float32(), "the mean share of the peaks' values that is left when the images' phases are scrambled"),
        Column("dead", pa.float32(), "the share of dead units"),
        Column("tied", pa.float32(), "the share of units whose last peaks tie with images beyond them"),
    ),
    "unitscope depth ATLAS", "depth.parquet",
)  # fmt: skip


def _by_name(specs: Iterable[TableSpec]) -> dict[str, TableSpec]:
    return {spec.name: spec for spec in specs}


CORE_TABLES = _by_name(_CORE)
"""The tables that a scan writes. A change needs a decision record and a new format version."""
ADDED_TABLES = _by_name(
    (
        *(_attribution_table(*method) for method in ATTRIBUTION_METHODS.items()),
        COLOUR_OR_SHAPE,
        NAMES,
        VISUAL_TUNING,
        SCORES,
        FACETS,
        MEAN_MAPS,
        EFFECTS,
        EFFECT_LAYERS,
        PREDICTIONS,
        KNOCKOUTS,
        MISTAKES,
        SHORTCUTS,
        CIRCUITS,
        PATCHES,
        PICTURES,
        CLASS_PROBABILITY,
    )
)
"""The tables that commands add to an atlas."""
ATLAS_TABLES = CORE_TABLES | ADDED_TABLES
OWN_TABLES = _by_name((SETTLING, PROBE, INVARIANCE, DEPTH))
"""Tables that belong to no single atlas and lie in a folder of their own."""
