"""Following one forward pass, operator by operator."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.fields.planes import Planes, expanded, union, whole
from unitscope.fields.rules import GLOBAL, Operation, everything, operator_name, rule_for, tensors_in


class FieldMode(TorchDispatchMode):
    """Watch a forward pass; afterwards `planes(tensor)` and `fields(planes)` tell what each tensor can see.

    Tensors are told apart by identity and kept alive for the length of the pass, so use it on one image. Call `start` with
    the images first.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self._kept: dict[int, tuple[Tensor, Planes, int]] = {}
        self._written: dict[int, Planes] = {}

    def start(self, images: Tensor) -> None:
        """Take `images`, of shape (1, channel, y, x), as the input whose pixels are counted."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32)[:, None]
        columns = torch.arange(width, dtype=torch.float32)
        planes = [p for axis in (rows, columns) for p in (-axis, axis + 1, -axis, axis + 1, torch.zeros(1))]
        self._keep(images, [p.expand(images.shape) for p in planes])

    def planes(self, tensor: Tensor) -> Planes | None:
        """The planes of a tensor of this pass; None where it doesn't depend on the images."""
        kept = self._kept.get(id(tensor))
        written = self._written.get(_storage(tensor))
        if kept is not None and tensor._version <= kept[2]:
            return kept[1]
        if written is None:
            return None
        anywhere = expanded(written, tensor.shape)  # a view of this memory was changed in place, who knows where
        return union([kept[1], anywhere]) if kept else anywhere

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        arguments = _named_arguments(func, args, kwargs)
        if operator_name(func) == "as_strided":  # in place it changes what `restriding` must know
            arguments["strides_before"] = args[0].stride()
        seen = [(t, p) for t in tensors_in(arguments.values()) if (p := self.planes(t)) is not None]
        output = func(*args, **kwargs)
        if seen:
            self._follow(func, arguments, seen, output)
        return output

    def _follow(self, func: Any, arguments: dict[str, Any], seen: list[tuple[Tensor, Planes]], output: Any) -> None:
        operation = Operation(func, arguments, {id(t): p for t, p in seen}, list(tensors_in([output])))
        rule = rule_for(operation)
        followed = rule(operation) if operation.outputs else []
        if rule is everything and operation.name not in GLOBAL:
            self.unknown.add(operation.name)
        for tensor, planes in zip(operation.outputs, followed, strict=False):
            self._keep(tensor, planes, written=func._schema.is_mutable)

    def _keep(self, tensor: Tensor, planes: Planes, written: bool = False) -> None:
        # An in-place operation raises the version after this call returns, hence the one more.
        self._kept[id(tensor)] = (tensor, planes, tensor._version + written)
        if written:
            anywhere = whole(planes)
            before = self._written.get(_storage(tensor))
            self._written[_storage(tensor)] = (
                [torch.maximum(a, b) for a, b in zip(before, anywhere, strict=True)] if before else anywhere
            )


def _named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [a.name for a in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
