"""Following one forward pass, operator by operator."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.fields.operations import NoRule, Operation, everything, operator_name, tensors_in
from unitscope.fields.planes import ROWS, UNIT, Planes, laid_out, no_planes, sees_nothing, unlaid
from unitscope.fields.rules import rule_for


class FieldMode(TorchDispatchMode):
    """Watch a forward pass; afterwards `planes(tensor)` and `fields_of(planes, …)` tell what each tensor can see.

    Tensors are told apart by identity and kept alive for the length of the pass, so use it on one image. Call `start` with
    the images first.

    An in-place operation changes what other tensors in the same memory hold. So writes are counted for every memory; what a tensor
    sees that was met before the last write is read from planes laid out like the memory itself.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self._kept: dict[int, tuple[Tensor, Planes, int]] = {}
        self._sharing: dict[int, list[int]] = {}
        self._memory: dict[int, Planes] = {}
        self._writes: Counter[int] = Counter()

    def start(self, images: Tensor) -> None:
        """Take `images`, of shape (1, channel, y, x), as the input whose pixels are counted."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32)[:, None]
        columns = torch.arange(width, dtype=torch.float32)
        planes = [p for axis in (rows, columns) for p in (-axis, axis + 1, -axis, axis + 1, torch.zeros(1), axis)]
        planes.append(torch.arange(images.shape[1], dtype=torch.float32)[:, None, None])
        self._keep(images, [p.expand(images.shape) for p in planes])

    def planes(self, tensor: Tensor) -> Planes | None:
        """The planes of a tensor of this pass; None where it doesn't depend on the images."""
        if self._fresh(id(tensor)):
            return self._kept[id(tensor)][1]
        if _storage(tensor) not in self._sharing:
            return None
        with _plain_tensors():
            return laid_out(self._remembered(tensor), tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):  # as in inference mode, where operators come before they are taken apart
            with self:
                return taken_apart(func, args, kwargs)
        arguments = named_arguments(func, args, kwargs)
        if operator_name(func) == "as_strided":  # in place it changes what `restriding` must know
            arguments["strides_before"] = args[0].stride()
        seen = [(t, p) for t in tensors_in(arguments.values()) if (p := self.planes(t)) is not None]
        output = func(*args, **kwargs)
        if seen:
            with _plain_tensors():
                self._follow(func, arguments, seen, output)
        return output

    def _follow(self, func: Any, arguments: dict[str, Any], seen: list[tuple[Tensor, Planes]], output: Any) -> None:
        operation = Operation(func, arguments, {id(t): p for t, p in seen}, list(tensors_in([output])))
        given = {_storage(tensor) for tensor in tensors_in(arguments.values())}
        for tensor, planes in zip(operation.outputs, self._followed(operation), strict=False):
            if func._schema.is_mutable and _storage(tensor) in given:
                self._write(tensor, planes)
            self._keep(tensor, planes)

    def _followed(self, operation: Operation) -> list[Planes]:
        """The planes of the outputs by the operator's rule; an operator that has none, or breaks it, takes everything and is named."""
        if not operation.outputs:
            return []
        rule = rule_for(operation)
        if rule is not None:
            try:
                return _of_all_outputs(rule(operation), operation)
            except (NoRule, RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError):
                pass
        if all(map(sees_nothing, operation.inputs())):
            return [no_planes(output.shape) for output in operation.outputs]
        self.unknown.add(operation.name)
        return everything(operation)

    def _keep(self, tensor: Tensor, planes: Planes) -> None:
        self._kept[id(tensor)] = (tensor, planes, self._writes[_storage(tensor)])
        self._sharing.setdefault(_storage(tensor), []).append(id(tensor))

    def _write(self, tensor: Tensor, planes: Planes) -> None:
        """Note that an operation wrote into this tensor. Where that is all of its memory, nothing else is left there."""
        if _storage(tensor) in self._memory or not _fills_its_memory(tensor):
            unlaid(self._remembered(tensor), planes, tensor)
        self._writes[_storage(tensor)] += 1

    def _remembered(self, tensor: Tensor) -> Planes:
        """Planes in the order of the tensor's memory, put together from all tensors in it that were met after the last write."""
        storage = _storage(tensor)
        if storage not in self._memory:
            memory = [p.clone() for p in no_planes(torch.Size([_length(tensor)]))]
            for number in self._sharing.get(storage, []):
                if self._fresh(number):
                    unlaid(memory, self._kept[number][1], self._kept[number][0])
            self._memory[storage] = memory
        return self._memory[storage]

    def _fresh(self, number: int) -> bool:
        return number in self._kept and self._kept[number][2] == self._writes[_storage(self._kept[number][0])]


def is_composite(func: Any) -> bool:
    """True for an operator that is made of others; outside inference mode torch takes it apart before a mode sees it."""
    return bool(_has_kernel(func.name(), "CompositeImplicitAutograd"))


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs of a composite operator, by those that it is made of: by torch's own kernel, not one of its compiler's."""
    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


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


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, those that weren't given with their defaults."""
    names, defaults = _arguments_of(func)
    return defaults | dict(zip(names, args, strict=False)) | kwargs


@cache
def _arguments_of(func: Any) -> tuple[list[str], dict[str, Any]]:
    arguments = func._schema.arguments
    return [a.name for a in arguments], {a.name: a.default_value for a in arguments if a.has_default_value()}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _length(tensor: Tensor) -> int:
    """How many elements of the tensor's type its memory holds."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _fills_its_memory(tensor: Tensor) -> bool:
    repeats = any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == _length(tensor) and not repeats
