"""Receptive fields: which input pixels every cell of every tensor can depend on.

A `DependencyMode` follows one forward pass. For every tensor that derives from the images it keeps, for every element, the first and
last input row and column that the element depends on. These *dependency bounds* travel as ordinary tensors beside the real ones:
moving data moves its bounds in the same way, arithmetic unites them, convolution and pooling take the union over a window.
Rows and columns are independent, since receptive fields are boxes. Where a bound doesn't vary along a dimension that dimension has
stride 0 and costs nothing, so a pass takes little more time than the network's own.

One more tensor holds the number of the unit that an element belongs to, so that the axis of units can be told wherever it is moved.

Composite operators are decomposed. One that the mode doesn't know makes every output depend on the whole of its inputs, and its
name is kept in `unknown_operators`.

Two kinds of bounds are kept. The *inner* ones count real pixels alone and are the smallest possible. The *outer* ones count
padding too, as if the map went on beyond its border, so that all cells of a convolution have fields of one size.

- `bounds`: dependency bounds, and how they unite.
- `rules`: the table of what each operator's outputs depend on, with the rules of `elementwise`, `indexing`, `windows` (which stands on
  the arithmetic of `sliding`), `products` and `reductions`; `operators`: one call of an operator, as a rule gets it.
- `tracing`: the pass is followed; `memory`: where tensors share memory that is written into.
- `fields`: the result, a box for every cell.
"""

from unitscope.receptive_fields.bounds import Array, DependencyBounds, depends_on_images, runs_along, unexpand
from unitscope.receptive_fields.fields import ReceptiveFields
from unitscope.receptive_fields.operators import (
    SELECTS_BOXES,
    decompose,
    is_composite,
    is_foreach,
    named_arguments,
    operator_name,
    selects_by_values,
    storage_id,
    tensors_in,
    written_arguments,
)
from unitscope.receptive_fields.tracing import DependencyMode

__all__ = [
    "SELECTS_BOXES",
    "Array",
    "DependencyBounds",
    "DependencyMode",
    "ReceptiveFields",
    "decompose",
    "depends_on_images",
    "is_composite",
    "is_foreach",
    "named_arguments",
    "operator_name",
    "runs_along",
    "selects_by_values",
    "storage_id",
    "tensors_in",
    "unexpand",
    "written_arguments",
]  # fmt: skip
