"""Operators as torch dispatches them: their names and arguments, and one call of one operator with what its inputs depend on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import DependencyBounds, no_dependencies

SELECTS_BOXES = "torchvision::nms"
"""Keeps those of overlapping boxes that score highest."""


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One call of an ATen operator.

    `arguments` are those that it reads, by name: an `out=` isn't among them. `bounds_by_id` are those of the tensors among them that
    depend on the images, by `id`. `outputs` are the tensors that it returned, and those that it wrote into and didn't return. The call
    is over: tensors hold what it left in them, and `written_storages` are those that it wrote into.
    """

    func: Any
    arguments: dict[str, Any]
    bounds_by_id: dict[int, DependencyBounds]
    outputs: list[Tensor]
    written_storages: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        return operator_name(self.func)

    @property
    def shape(self) -> torch.Size:
        """The shape of the first output."""
        return self.outputs[0].shape

    def all_bounds(self) -> list[DependencyBounds]:
        """The bounds of every input that depends on the images."""
        return list(self.bounds_by_id.values())

    def first_bounds(self) -> DependencyBounds:
        """The bounds of the first input that depends on the images."""
        return next(iter(self.bounds_by_id.values()))

    def depends_only_on(self, name: str) -> bool:
        """True where the argument of that name is the only one that depends on the images."""
        return self.bounds_by_id.keys() == {id(self.arguments.get(name))}

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name; the default where it is missing or None."""
        value = self.arguments.get(name, default)
        return default if value is None else value

    def bounds_of(self, name: str) -> DependencyBounds | None:
        """The bounds of that argument; None where it isn't a tensor that depends on the images."""
        return self.bounds_by_id.get(id(self.arguments.get(name)))

    def bounds_or_nothing(self, name: str) -> DependencyBounds:
        """The bounds of that argument, a tensor, whether it depends on the images or not."""
        return self.bounds_of(name) or no_dependencies(self.arguments[name].shape)

    def overwrote(self, tensor: Tensor) -> bool:
        """True where the tensor may not hold any more what the operator read."""
        return storage_id(tensor) in self.written_storages

    def value(self, name: str) -> Tensor:
        """The tensor of that name, for its values. Raises `NoRule` where the operator wrote over them."""
        tensor: Tensor = self.arguments[name]
        if self.overwrote(tensor):
            raise NoRule
        return tensor

    def apply(self, arguments: dict[str, Any]) -> Any:
        """What the operator gives for other arguments; it writes into none of them."""
        return without_writing(self.func)(**arguments)


DependencyRule = Callable[[OperatorCall], list[DependencyBounds]]
"""Gives the bounds of an operator's outputs; raises `NoRule` for a call that it doesn't know."""


class NoRule(Exception):
    """Raised by a rule for a call that it doesn't know."""


@dataclass(frozen=True, slots=True)
class OperatorSignature:
    """The arguments that an operator takes: the names of all, the defaults of some, and the names of those that it writes into.

    `outputs` are those that it writes into and never reads, as torch's own operators do with what is given as `out=`.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    written: tuple[str, ...]
    outputs: tuple[str, ...]


@cache
def signature_of(func: Any) -> OperatorSignature:
    """The arguments of an operator, by its schema."""
    arguments = func._schema.arguments
    return OperatorSignature(
        tuple(a.name for a in arguments),
        {a.name: a.default_value for a in arguments if a.has_default_value()},
        tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
        tuple(a.name for a in arguments if a.is_out and func.namespace == "aten"),
    )


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, those that weren't given with their defaults."""
    signature = signature_of(func)
    return signature.defaults | dict(zip(signature.names, args, strict=False)) | kwargs


def written_arguments(func: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The names of the arguments that the operator writes into."""
    if operator_name(func) in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):  # whose schemas don't say so
        return ("running_mean", "running_var") if arguments["training"] else ()
    return signature_of(func).written


@cache
def without_writing(func: Any) -> Any:
    """The operator that gives the same and writes nowhere: `tril` for `tril_` and for `tril.out`. Raises `NoRule` where there is none."""
    if not func._schema.is_mutable:
        return func
    namespace, _, name = func._schema.name.partition("::")
    functional = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    overload = func._schema.overload_name.removesuffix("out").rstrip("_") or "default"
    overloads = [] if functional is None else sorted(functional.overloads(), key=lambda name: name != overload)
    for candidate in (getattr(functional, name) for name in overloads):
        if not candidate._schema.is_mutable and _read_names(candidate) == _read_names(func):
            return candidate
    raise NoRule


def _read_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments if not argument.is_out]


def is_composite(func: Any) -> bool:
    """True for an operator that is made of others; outside inference mode torch decomposes it before a mode sees it."""
    return bool(_has_kernel(func.name(), "CompositeImplicitAutograd"))


@cache
def is_foreach(func: Any) -> bool:
    """True for an operator that does the same to every tensor of a list, such as `_foreach_add_`."""
    return operator_name(func).startswith("_foreach_") and bool(_has_kernel(func.name(), "CompositeExplicitAutograd"))


def decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs of a composite operator, by those that it is made of: by torch's own kernel, not one of its compiler's."""
    keys = torch._C.DispatchKey
    return func._op_dk(keys.CompositeImplicitAutograd if is_composite(func) else keys.CompositeExplicitAutograd, *args, **kwargs)


@cache
def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


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


def storage_id(tensor: Tensor) -> int:
    """The number of the storage that holds the tensor's elements."""
    return int(tensor.untyped_storage()._cdata)


def selects_by_values(func: Any, tensors: Iterable[Tensor]) -> bool:
    """True for operators whose output holds as many elements as the values of their inputs say, such as `nonzero` and indexing by a mask.

    Where indexing by a mask may be meant, indexing by numbers may be too, whose shape is known: `tensors` are the inputs.
    """
    if operator_name(func) == SELECTS_BOXES:
        return True
    is_selection = torch.Tag.dynamic_output_shape in func.tags
    return is_selection and (operator_name(func) != "index" or any(index.dtype in (torch.bool, torch.uint8) for index in tensors))
