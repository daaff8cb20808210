"""Following one forward pass, operator by operator."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.receptive_fields.bounds import ROWS, UNIT, Planes, no_planes, sees_nothing
from unitscope.receptive_fields.memory import Contents, MemoryLayout, memory_layout
from unitscope.receptive_fields.operations import NoRule, Operation, everything, operator_name, storage_of, tensors_in
from unitscope.receptive_fields.rules import rule_for


@dataclass(frozen=True, slots=True)
class Known:
    """What a tensor sees, where it lay when that became known, and how many writes its memory had had by then."""

    tensor: Tensor
    layout: MemoryLayout
    planes: Planes
    writes: int


class FieldMode(TorchDispatchMode):
    """Watch a forward pass; afterwards `planes(tensor)` and `fields_of(planes, …)` tell what each tensor can see.

    Tensors are told apart by identity and kept alive for the length of the pass, so use it on one image. Call `start` with
    the images first.

    An in-place operation changes what other tensors in the same memory hold, and `x.data = y` gives a tensor other memory. So writes
    are counted for every memory; what a tensor sees that was met before the last write, or in other memory, is read from planes laid
    out like the memory itself.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self._known: dict[int, Known] = {}
        self._contents: dict[int, Contents] = {}

    def start(self, images: Tensor) -> None:
        """Take `images`, of shape (1, channel, y, x), as the input whose pixels are counted."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32)[:, None]
        columns = torch.arange(width, dtype=torch.float32)
        not_whole = torch.zeros(1, dtype=torch.float32)
        planes = [p for axis in (rows, columns) for p in (-axis, axis + 1, -axis, axis + 1, not_whole, axis)]
        planes.append(torch.arange(images.shape[1], dtype=torch.float32)[:, None, None])
        self._keep(images, [p.expand(images.shape) for p in planes])

    def planes(self, tensor: Tensor) -> Planes | None:
        """The planes of a tensor of this pass; None where it doesn't depend on the images."""
        contents = self._contents.get(storage_of(tensor))
        if contents is None:
            return None
        layout, known = memory_layout(tensor), self._known.get(id(tensor))
        if known is not None and known.writes == contents.writes and known.layout == layout:
            return known.planes
        with _plain_tensors():
            return contents.read(layout)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func) or is_of_lists(func):  # in inference mode operators come before they are taken apart
            with self:
                return taken_apart(func, args, kwargs)
        arguments = named_arguments(func, args, kwargs)
        if operator_name(func) == "as_strided":  # in place it changes what `restriding` must know
            arguments["strides_before"] = arguments["self"].stride()
        seen = {id(t): p for t in tensors_in(arguments.values()) if (p := self.planes(t)) is not None}
        output = func(*args, **kwargs)
        if seen and operator_name(func) != "set":  # what a tensor sees in its new memory is known from that memory
            with _plain_tensors():
                self._follow(func, arguments, seen, output)
        return output

    def _follow(self, func: Any, arguments: dict[str, Any], seen: dict[int, Planes], output: Any) -> None:
        outputs = list(tensors_in([output]))
        written = list(tensors_in(arguments[name] for name in written_arguments(func, arguments)))
        outputs += [t for t in written if all(t is not o for o in outputs)]
        storages = frozenset(map(storage_of, written))
        read = {name: value for name, value in arguments.items() if name not in _arguments_of(func).outputs}
        operation = Operation(func, read, _given(read, seen) if written else seen, outputs, storages)
        for tensor, planes in zip(outputs, self._followed(operation), strict=True):
            if storage_of(tensor) not in storages:
                self._keep(tensor, planes)
            elif storage_of(tensor) in self._contents or not sees_nothing(planes):
                self._write(tensor, planes)

    def _followed(self, operation: Operation) -> list[Planes]:
        """The planes of the outputs by the operator's rule; an operator that has none, or breaks it, takes everything and is named."""
        if not operation.outputs:
            return []
        rule = rule_for(operation)
        if rule is not None and operation.planes:
            try:
                return _of_all_outputs(rule(operation), operation)
            except (NoRule, RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError):
                pass
        if all(map(sees_nothing, operation.inputs())):
            return [no_planes(output.shape) for output in operation.outputs]
        self.unknown.add(operation.name)
        return everything(operation)

    def _keep(self, tensor: Tensor, planes: Planes) -> None:
        layout = memory_layout(tensor)
        contents = self._contents_of(tensor)
        contents.add(layout, planes)
        self._known[id(tensor)] = Known(tensor, layout, planes, contents.writes)

    def _write(self, tensor: Tensor, planes: Planes) -> None:
        self._contents_of(tensor).write(memory_layout(tensor), planes)
        self._keep(tensor, planes)

    def _contents_of(self, tensor: Tensor) -> Contents:
        storage = storage_of(tensor)
        if storage not in self._contents:
            self._contents[storage] = Contents(tensor.untyped_storage())
        return self._contents[storage]


def is_composite(func: Any) -> bool:
    """True for an operator that is made of others; outside inference mode torch takes it apart before a mode sees it."""
    return bool(_has_kernel(func.name(), "CompositeImplicitAutograd"))


@cache
def is_of_lists(func: Any) -> bool:
    """True for an operator that does the same to every tensor of a list, such as `_foreach_add_`."""
    return operator_name(func).startswith("_foreach_") and bool(_has_kernel(func.name(), "CompositeExplicitAutograd"))


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs of a composite operator, by those that it is made of: by torch's own kernel, not one of its compiler's."""
    keys = torch._C.DispatchKey
    return func._op_dk(keys.CompositeImplicitAutograd if is_composite(func) else keys.CompositeExplicitAutograd, *args, **kwargs)


@cache
def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _plain_tensors() -> AbstractContextManager[Any]:
    """Planes are ordinary tensors, also where a network enters inference mode: they are written to later, outside it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _of_all_outputs(planes: list[Planes], operation: Operation) -> list[Planes]:
    """What a rule says, checked, and for outputs that it says nothing of (statistics, counts), everything."""
    for known, output in zip(planes, operation.outputs, strict=False):
        if len(known) != UNIT + 1 or not known[ROWS].shape == known[UNIT].shape == output.shape:
            raise NoRule
    return [*planes, *(everything(operation)[len(planes) :] if len(planes) < len(operation.outputs) else [])]


def _given(arguments: dict[str, Any], seen: dict[int, Planes]) -> dict[int, Planes]:
    return {id(t): seen[id(t)] for t in tensors_in(arguments.values()) if id(t) in seen}


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, those that weren't given with their defaults."""
    known = _arguments_of(func)
    return known.defaults | dict(zip(known.names, args, strict=False)) | kwargs


def written_arguments(func: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The names of the arguments that the operator writes into."""
    if operator_name(func) in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):  # which don't say so
        return ("running_mean", "running_var") if arguments["training"] else ()
    return _arguments_of(func).written


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments that an operator takes: the names of all, the defaults of some, and the names of those that it writes into.

    `outputs` are those that it writes into and never reads, as torch's own do with what is given as `out=`.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    written: tuple[str, ...]
    outputs: tuple[str, ...]


@cache
def _arguments_of(func: Any) -> Arguments:
    arguments = func._schema.arguments
    return Arguments(
        tuple(a.name for a in arguments),
        {a.name: a.default_value for a in arguments if a.has_default_value()},
        tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
        tuple(a.name for a in arguments if a.is_out and func.namespace == "aten"),
    )
