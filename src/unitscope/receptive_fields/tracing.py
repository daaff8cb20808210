"""Tracing of dependencies: one forward pass is followed, operator by operator."""

import logging
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.receptive_fields.bounds import DependencyBounds, compact, depends_on_images, image_bounds, no_dependencies
from unitscope.receptive_fields.elementwise import everything
from unitscope.receptive_fields.memory import StorageBounds, StorageView, storage_view
from unitscope.receptive_fields.operators import (
    NoRule,
    OperatorCall,
    decompose,
    is_composite,
    is_foreach,
    named_arguments,
    operator_name,
    signature_of,
    storage_id,
    tensors_in,
    written_arguments,
)
from unitscope.receptive_fields.rules import rule_for

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorBounds:
    """The bounds of a tensor, where it lay when they became known, and how many writes its storage had had by then."""

    tensor: Tensor
    view: StorageView
    bounds: DependencyBounds
    writes: int


class DependencyMode(TorchDispatchMode):
    """Follow a forward pass; afterwards `bounds_of(tensor)` says what each element of a tensor depends on.

    Tensors are told apart by identity and kept alive for the length of the pass, so use it on one image. Call `start` with
    the images first. `unknown_operators` counts calls of operators without a rule, by name.

    An in-place operation changes what other tensors in the same storage hold, and `x.data = y` gives a tensor another storage. So
    writes are counted for every storage; for a tensor that was met before the last write, or in another storage, bounds are read from
    those of the storage itself.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown_operators: Counter[str] = Counter()
        self._tensors: dict[int, TensorBounds] = {}
        self._storages: dict[int, StorageBounds] = {}

    def start(self, images: Tensor) -> None:
        """Take `images`, of shape (1, channel, y, x), as the input whose pixels are counted."""
        self._keep(images, image_bounds(images.shape))

    def bounds_of(self, tensor: Tensor) -> DependencyBounds | None:
        """The bounds of a tensor of this pass; None where it doesn't depend on the images."""
        storage = self._storages.get(storage_id(tensor))
        if storage is None:
            return None
        view, noted = storage_view(tensor), self._tensors.get(id(tensor))
        if noted is not None and noted.writes == storage.writes and noted.view == view:
            return noted.bounds
        with _plain_tensors():
            return storage.read(view)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func) or is_foreach(func):  # in inference mode operators come before they are decomposed
            with self:
                return decompose(func, args, kwargs)
        arguments = named_arguments(func, args, kwargs)
        if operator_name(func) == "as_strided":  # in place it changes what its rule must know
            arguments["strides_before"] = arguments["self"].stride()
        bounds_by_id = {id(t): bounds for t in tensors_in(arguments.values()) if (bounds := self.bounds_of(t)) is not None}
        output = func(*args, **kwargs)
        if bounds_by_id and operator_name(func) != "set":  # which gives a tensor a storage whose bounds are known
            with _plain_tensors():
                self._follow(func, arguments, bounds_by_id, output)
        return output

    def _follow(self, func: Any, arguments: dict[str, Any], bounds_by_id: dict[int, DependencyBounds], output: Any) -> None:
        """Note the bounds of what an operator returned and of what it wrote."""
        outputs = list(tensors_in([output]))
        written = list(tensors_in(arguments[name] for name in written_arguments(func, arguments)))
        outputs += [tensor for tensor in written if all(tensor is not output for output in outputs)]
        storages = frozenset(map(storage_id, written))
        read = {name: value for name, value in arguments.items() if name not in signature_of(func).outputs}
        if written:
            bounds_by_id = {id(t): bounds_by_id[id(t)] for t in tensors_in(read.values()) if id(t) in bounds_by_id}
        call = OperatorCall(func, read, bounds_by_id, outputs, storages)
        for tensor, bounds in zip(outputs, map(compact, self._bounds_of_outputs(call)), strict=True):
            if storage_id(tensor) not in storages:
                self._keep(tensor, bounds)
            elif storage_id(tensor) in self._storages or depends_on_images(bounds):
                self._write(tensor, bounds)

    def _bounds_of_outputs(self, call: OperatorCall) -> list[DependencyBounds]:
        """The bounds of the outputs by the operator's rule; an operator that has none, or breaks it, takes everything and is named."""
        if not call.outputs:
            return []
        rule = rule_for(call)
        if rule is not None and call.bounds_by_id:
            try:
                return _of_all_outputs(rule(call), call)
            except NoRule:
                pass
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError):
                LOG.debug("the rule of %s fails", call.name, exc_info=True)
        if not any(map(depends_on_images, call.all_bounds())):
            return [no_dependencies(output.shape) for output in call.outputs]
        self.unknown_operators[call.name] += 1
        return everything(call)

    def _keep(self, tensor: Tensor, bounds: DependencyBounds) -> None:
        """Note the bounds of a tensor that lies in memory of its own, or whose bounds are those of what was there."""
        view, storage = storage_view(tensor), self._storage_of(tensor)
        storage.add(view, bounds)
        self._tensors[id(tensor)] = TensorBounds(tensor, view, bounds, storage.writes)

    def _write(self, tensor: Tensor, bounds: DependencyBounds) -> None:
        """Note the bounds of a tensor that an operator wrote into."""
        self._storage_of(tensor).write(storage_view(tensor), bounds)
        self._keep(tensor, bounds)

    def _storage_of(self, tensor: Tensor) -> StorageBounds:
        number = storage_id(tensor)
        if number not in self._storages:
            self._storages[number] = StorageBounds(tensor.untyped_storage())
        return self._storages[number]


def _plain_tensors() -> AbstractContextManager[Any]:
    """Bounds are ordinary tensors, also where a network enters inference mode: they are written to later, outside it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _of_all_outputs(bounds: list[DependencyBounds], call: OperatorCall) -> list[DependencyBounds]:
    """What a rule gives, checked, and for outputs that it gives nothing for (statistics, counts), everything."""
    for output_bounds, output in zip(bounds, call.outputs, strict=False):
        if not output_bounds.shape == output_bounds.unit_number.shape == output.shape:
            raise NoRule
    return [*bounds, *(everything(call)[len(bounds) :] if len(bounds) < len(call.outputs) else [])]
