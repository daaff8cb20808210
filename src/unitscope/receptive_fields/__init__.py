"""Receptive fields: which input pixels every cell of every tensor can depend on.

A `FieldMode` watches one forward pass. For every tensor that derives from the images it keeps, for every element, the first and
last input row and column that the element depends on. These bounds travel as ordinary tensors ("planes") beside the real ones:
moving data moves the planes in the same way, arithmetic unites them, convolution and pooling take the union over a window.
Rows and columns are independent, since fields are boxes. Where a plane doesn't vary along a dimension that dimension has
stride 0 and costs nothing, so a pass takes little more time than the network's own.

One more plane holds the number of the unit that an element belongs to, so that the axis of units can be told wherever it is moved.

Composite operators are taken apart. One that the mode doesn't know makes every output depend on the whole of its inputs, and its
name is kept in `unknown`.

Two kinds of bounds are kept. The *inner* ones count real pixels alone and are the smallest possible. The *outer* ones count
padding too, as if the map went on beyond its border, so that all cells of a convolution have fields of one size.

`watching` follows the pass; `rules` says what each operator does, with those of `windows`, `products`, `reductions` and `indexing`;
`planes` is the arithmetic, `memory` follows what is written, `boxes` is the result.
"""

from unitscope.receptive_fields.bounds import COLUMNS, PLACE, ROWS, UNIT, Array, Planes, runs_along, sees_nothing, varying
from unitscope.receptive_fields.fields import Fields, fields_of
from unitscope.receptive_fields.operations import operator_name, tensors_in
from unitscope.receptive_fields.tracing import (
    FieldMode,
    is_composite,
    is_of_lists,
    named_arguments,
    taken_apart,
    written_arguments,
)

__all__ = [
    "COLUMNS",
    "PLACE",
    "ROWS",
    "UNIT",
    "Array",
    "FieldMode",
    "Fields",
    "Planes",
    "fields_of",
    "is_composite",
    "is_of_lists",
    "named_arguments",
    "operator_name",
    "runs_along",
    "sees_nothing",
    "taken_apart",
    "tensors_in",
    "varying",
    "written_arguments",
]  # fmt: skip
