"""One call of an operator, and the rules that most operators share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import (
    NOTHING,
    PLACE_PLANES,
    UNIT,
    Planes,
    as_global,
    cleared,
    expanded,
    no_planes,
    union,
    varying,
    whole,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of an ATen operator.

    `arguments` are those that it reads, by name: an `out=` isn't among them. `planes` are those of its tensors, by `id`. `outputs`
    are the tensors that it returned, and those that it wrote into and didn't return. The call is over: tensors hold what is left in
    them, and `written` are the storages that it wrote into.
    """

    func: Any
    arguments: dict[str, Any]
    planes: dict[int, Planes]
    outputs: list[Tensor]
    written: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        return operator_name(self.func)

    @property
    def shape(self) -> torch.Size:
        return self.outputs[0].shape

    def inputs(self) -> list[Planes]:
        return list(self.planes.values())

    def input(self) -> Planes:
        return self.planes[next(iter(self.planes))]

    def only(self, name: str) -> bool:
        """True where the argument of that name is the only one that depends on the images."""
        return self.planes.keys() == {id(self.arguments.get(name))}

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name, default)
        return default if value is None else value

    def planes_of(self, name: str) -> Planes | None:
        """The planes of that argument; None where it isn't a tensor that depends on the images."""
        return self.planes.get(id(self.arguments.get(name)))

    def planes_or_nothing(self, name: str) -> Planes:
        return self.planes_of(name) or no_planes(self.arguments[name].shape)

    def overwrote(self, tensor: Tensor) -> bool:
        """True where the tensor may not hold any more what the operator read."""
        return storage_of(tensor) in self.written

    def value(self, name: str) -> Tensor:
        """The tensor of that name, for its values. Raises `NoRule` where the operator wrote over them."""
        tensor: Tensor = self.arguments[name]
        if self.overwrote(tensor):
            raise NoRule
        return tensor

    def applied_to(self, arguments: dict[str, Any]) -> Any:
        """What the operator makes of other arguments, in the form that writes into none of them."""
        return without_writing(self.func)(**arguments)


Rule = Callable[[Operation], list[Planes]]


class NoRule(Exception):
    """Raised by a rule for a call that it doesn't know."""


@cache
def without_writing(func: Any) -> Any:
    """The operator that gives the same and writes nowhere: `tril` for `tril_` and for `tril.out`. Raises `NoRule` where there is none."""
    if not func._schema.is_mutable:
        return func
    space, _, name = func._schema.name.partition("::")
    pure = getattr(getattr(torch.ops, space), name.rstrip("_"), None)
    overload = func._schema.overload_name.removesuffix("out").rstrip("_") or "default"
    names = [] if pure is None else sorted(pure.overloads(), key=lambda name: name != overload)
    for same in (getattr(pure, name) for name in names):
        if not same._schema.is_mutable and _read_names(same) == _read_names(func):
            return same
    raise NoRule


def _read_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments if not argument.is_out]


def everything(op: Operation) -> list[Planes]:
    """Every output element depends on every input element."""
    joined = union([whole(p) for p in op.inputs()])
    return [as_global(expanded(joined, out.shape)) for out in op.outputs]


def pointwise(op: Operation) -> list[Planes]:
    """An output element depends on the input elements of the same place, after broadcasting. It belongs to the same unit as in those
    inputs that aren't broadcast: a gate may be made of other units. It stands where the first input stands that has a place."""
    result = []
    for out in op.outputs:
        inputs = [expanded(p, out.shape) for p in op.inputs()]
        joined = union(inputs)
        if len(inputs) > 1:
            for number in PLACE_PLANES:
                joined[number] = _first_place([p[number] for p in inputs])
        whole = [p for p in op.inputs() if p[UNIT].shape == out.shape]
        if 0 < len(whole) < len(op.planes):
            joined[UNIT] = union(whole)[UNIT]
        result.append(joined)
    return result


def _first_place(places: list[Tensor]) -> Tensor:
    first, *others = map(varying, places)
    for other in others:
        if bool((first == NOTHING).any()):
            first = torch.where(first == NOTHING, other, first)
    return first.expand(places[0].shape)


def movement(op: Operation) -> list[Planes]:
    """Data is moved and not mixed: do the same to the planes."""
    if any(op.overwrote(t) for t in tensors_in(op.arguments.values()) if id(t) not in op.planes):
        raise NoRule
    per_plane = []
    for number in range(len(op.input())):
        moved = op.applied_to({k: _with_plane(v, op.planes, number) for k, v in op.arguments.items()})
        per_plane.append(list(tensors_in([moved])))
    return [list(planes) for planes in zip(*per_plane, strict=True)]


def movement_into_zeros(op: Operation) -> list[Planes]:
    """The same where what nothing is moved to becomes zero."""
    (moved,) = movement(op)
    arguments = {k: torch.ones(v.shape, dtype=torch.bool) if isinstance(v, Tensor) else v for k, v in op.arguments.items()}
    ones = op.applied_to(arguments)
    return [cleared(moved, ~ones)]


def constant(op: Operation) -> list[Planes]:
    """New or overwritten memory that holds nothing of the images."""
    if not op.only("self"):  # such as the mean of random numbers
        raise NoRule
    return [no_planes(op.shape)]


def _with_plane(value: Any, planes: dict[int, Planes], number: int) -> Any:
    if isinstance(value, Tensor):
        return planes[id(value)][number] if id(value) in planes else value.cpu()
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return [v if v is None else _with_plane(v, planes, number) for v in value]
    return value


def operator_name(func: Any) -> str:
    """The name of an ATen operator without overload, the same in place and not: `relu` for `aten::relu_`."""
    return str(func._schema.name).removeprefix("aten::").rstrip("_")


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among the values, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def storage_of(tensor: Tensor) -> int:
    """The number of the storage that holds the tensor's elements."""
    return int(tensor.untyped_storage()._cdata)
