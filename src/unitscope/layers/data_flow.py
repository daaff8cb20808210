"""The data flow of one forward pass: which operators made which values, and inside which module calls.

A *value* is a number that stands for the content of a tensor at one moment; an in-place operator gives the same tensor a new
value. Operators that only reshape keep the value. So questions such as "what is done with the output of this convolution?" have
answers that don't depend on whether a network uses modules, functions or in-place operators.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.receptive_fields import (
    SELECTS_BOXES,
    DependencyBounds,
    DependencyMode,
    depends_on_images,
    operator_name,
    selects_by_values,
    tensors_in,
)

VALUE_KEEPING = {
    "view",
    "_unsafe_view",
    "reshape",
    "alias",
    "detach",
    "clone",
    "contiguous",
    "_to_copy",
    "lift_fresh",
    "squeeze",
    "unsqueeze",
}
"""Operators whose output has the value of their input."""
WRITES_ROWS = {
    "index_put",
    "_index_put_impl",
    "index_add",
    "index_copy",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "masked_scatter",
    "copy",
}
"""Operators that write into their first argument, whose shape they keep."""


@dataclass(frozen=True, slots=True)
class LoggedOperator:
    """One operator: its name, the values that it read and made, and the number of the leaf call that it ran in, if any.

    `apply` is what it does to its first argument, the others being as they were; `shape` is that of what it made.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    call_number: int | None
    apply: Callable[[Tensor], Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoggedTensor:
    """A tensor at the moment when a module got or returned it: its value, bounds (None where it is made without the images) and shape.

    `selected_by` names the operator that selected what it is made of by what the image shows, as proposals of a detector; then its shape may
    be another one for another image. It is empty where none did. `unknown_operators` are those that it is made with whose bounds no rule says.
    """

    value: int
    bounds: DependencyBounds | None
    shape: tuple[int, ...]
    selected_by: str = ""
    unknown_operators: frozenset[str] = frozenset()

    @property
    def depends_on_images(self) -> bool:
        """True where any element does; a class token, before it attends to the others, doesn't."""
        return self.bounds is not None and depends_on_images(self.bounds)


@dataclass(slots=True)
class ModuleCall:
    """One call of one module: the `nth_call` of the module at `path`, from 1; `number` counts all calls of the pass as they start.

    `input` is its first tensor argument, `output` what it returned, None where that isn't a tensor. `operators` are those that run in a
    leaf call.
    """

    path: str
    module: nn.Module
    nth_call: int
    number: int
    input: LoggedTensor | None = None
    output: LoggedTensor | None = None
    output_type: str = ""
    operators: list[LoggedOperator] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return next(self.module.children(), None) is None

    @property
    def depends_on_images(self) -> bool:
        """True where the input or the output does."""
        return any(tensor is not None and tensor.depends_on_images for tensor in (self.input, self.output))

    @property
    def layer_name(self) -> str:
        return name_of_call(self.path, self.nth_call)


def name_of_call(path: str, nth_call: int) -> str:
    """The name of the layer that is that call of the module at that path."""
    return path if nth_call == 1 else f"{path}#{nth_call}"


def first_tensor_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a layer's input is: the first argument of a module that is a tensor."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


class DataFlowMode(TorchDispatchMode):
    """Follow a forward pass; afterwards `calls` holds every module call, in the order in which they finished, and `operators` every
    operator that made a value."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self, dependencies: DependencyMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[ModuleCall] = []
        self.operators: list[LoggedOperator] = []
        self._dependencies = dependencies
        self._values: dict[int, tuple[Tensor, int]] = {}
        self._selected_by: dict[int, str] = {}
        self._unknown_operators: dict[int, frozenset[str]] = {}
        self._running: list[ModuleCall] = []
        self._call_counts: Counter[str] = Counter()
        self._foreign_values = 0

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Hook every module below the network for as long as the block lasts."""
        handles = []
        for path, module in network.named_modules():
            # The network as a whole is no layer, and compiled modules take no such hooks.
            if path and not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(self._start_hook(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._finish))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def constants(self) -> set[int]:
        """The values of tensors that are made without the images."""
        dependent = {value for tensor, value in self._values.values() if self._dependencies.bounds_of(tensor) is not None}
        return {value for _, value in self._values.values()} - dependent

    def _value(self, tensor: Tensor) -> int:
        """The value that the tensor holds now; tensors that no operator made count up from 0, operators' results down from -1."""
        if id(tensor) not in self._values:
            self._values[id(tensor)] = (tensor, self._foreign_values)
            self._foreign_values += 1
        return self._values[id(tensor)][1]

    def _logged(self, tensor: Tensor) -> LoggedTensor:
        value = self._value(tensor)
        bounds, unknown_operators = self._dependencies.bounds_of(tensor), self._unknown_operators.get(value, frozenset())
        return LoggedTensor(value, bounds, tuple(tensor.shape), self._selected_by.get(value, ""), unknown_operators)

    def _start_hook(self, path: str) -> Any:
        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            number = self._call_counts.total()
            self._call_counts[path] += 1
            call = ModuleCall(path, module, self._call_counts[path], number)
            tensor = first_tensor_argument(args, kwargs)
            if tensor is not None:
                call.input = self._logged(tensor)
            self._running.append(call)

        return start

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._running.pop()
        call.output_type = type(output).__name__
        if isinstance(output, Tensor):
            call.output = self._logged(output)
        self.calls.append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        inputs = tuple(self._value(tensor) for tensor in tensors_in(args))
        unknown_before = self._dependencies.unknown_operators.copy()
        output = func(*args, **(kwargs or {}))
        outputs = list(tensors_in([output]))
        name = operator_name(func)
        if name in VALUE_KEEPING and inputs:
            self._values[id(outputs[0])] = (outputs[0], inputs[0])
        elif outputs:
            other_args = tuple(args[1:])
            value = -1 - len(self.operators)
            if selected_by := self._selector(func, name, args, inputs):
                self._selected_by[value] = selected_by
            unknown_operators = [self._unknown_operators[value] for value in inputs if value in self._unknown_operators]
            if unknown_operators or self._dependencies.unknown_operators != unknown_before:
                new = self._dependencies.unknown_operators - unknown_before
                self._unknown_operators[value] = frozenset(new).union(*unknown_operators)
            self._log(name, inputs, outputs, lambda first: func(first, *other_args, **(kwargs or {})))
        return output

    def _selector(self, func: Any, name: str, args: tuple[Any, ...], inputs: tuple[int, ...]) -> str:
        """The operator that selected, by what the image shows, what this one makes its output of: this one or one before; '' for none.

        What is written into a tensor by rows leaves its shape as it is. After boxes were selected there is nothing of one image any more,
        whatever it is written into.
        """
        selectors = [self._selected_by.get(value, "") for value in inputs]
        if SELECTS_BOXES in selectors:
            return SELECTS_BOXES
        if name in WRITES_ROWS:
            return selectors[0]
        if selects_by_values(func, tensors_in(args)) and any(self._depends_on_images(tensor) for tensor in tensors_in(args)):
            return name
        return next(filter(None, selectors), "")

    def _depends_on_images(self, tensor: Tensor) -> bool:
        bounds = self._dependencies.bounds_of(tensor)
        return bounds is not None and depends_on_images(bounds)

    def _log(self, name: str, inputs: tuple[int, ...], outputs: list[Tensor], apply: Callable[[Tensor], Any]) -> None:
        """Give the outputs a value of their own, and log the operator, in the leaf call that it runs in too."""
        leaf = self._running[-1] if self._running and self._running[-1].is_leaf else None
        value = -1 - len(self.operators)
        for tensor in outputs:
            self._values[id(tensor)] = (tensor, value)
        operator = LoggedOperator(name, inputs, value, leaf.number if leaf else None, apply, tuple(outputs[0].shape))
        self.operators.append(operator)
        if leaf:
            leaf.operators.append(operator)
