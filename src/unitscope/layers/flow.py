"""A log of one forward pass: which operators made which values, and inside which module calls.

A *value* is a number that stands for the content of a tensor at one moment; an in-place operator gives the same tensor a new
value. Operators that only reshape keep the value. So questions such as "what is done with the output of this convolution?" have
answers that don't depend on whether a network uses modules, functions or in-place operators.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.receptive_fields import DependencyBounds, DependencyMode, operator_name, tensors_in

SAME_VALUES = {
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


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: its name, the values that it read and made, and the number of the leaf call that it ran in, if any.

    `apply` is what it does to its first argument, the others being as they were; `shape` is that of what it made.
    """

    name: str
    read: tuple[int, ...]
    made: int
    call: int | None
    apply: Callable[[Tensor], Any]
    shape: tuple[int, ...]


@dataclass(slots=True)
class Call:
    """One call of one module; `count` is 1 for the first call of that module.

    `read` and `made` are the values of its first input and of its output, None where that isn't a tensor. The bounds and shapes
    are those of the same moments.
    """

    name: str
    module: nn.Module
    count: int
    number: int
    read: int | None = None
    made: int | None = None
    read_bounds: DependencyBounds | None = None
    made_bounds: DependencyBounds | None = None
    read_shape: tuple[int, ...] = ()
    made_shape: tuple[int, ...] = ()
    output_type: str = ""
    finished: int = -1
    operators: list[Operator] = field(default_factory=list)

    @property
    def leaf(self) -> bool:
        return next(self.module.children(), None) is None

    @property
    def layer_name(self) -> str:
        return call_name(self.name, self.count)


def call_name(module: str, count: int) -> str:
    """The name of the layer that is the `count`-th call of a module."""
    return module if count == 1 else f"{module}#{count}"


class FlowMode(TorchDispatchMode):
    """Watch a forward pass; afterwards `calls` holds every module call, in the order in which they finished."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self, dependencies: DependencyMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.operators: list[Operator] = []
        self._dependencies = dependencies
        self._values: dict[int, tuple[Tensor, int]] = {}
        self._running: list[Call] = []
        self._counts: dict[str, int] = {}
        self._started = 0
        self._given = 0

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator["FlowMode"]:
        """Hook every module below the network for as long as the block lasts."""
        handles = []
        for name, module in network.named_modules():
            # The network as a whole is no layer, and compiled modules take no such hooks.
            if name and not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave))
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def value(self, tensor: Tensor) -> int:
        """The value that the tensor holds now; tensors that no operator made count up from 0, operators' results down from -1."""
        if id(tensor) not in self._values:
            self._values[id(tensor)] = (tensor, self._given)
            self._given += 1
        return self._values[id(tensor)][1]

    @property
    def constants(self) -> set[int]:
        """The values of tensors that hold nothing of the images."""
        depend = {value for tensor, value in self._values.values() if self._dependencies.bounds(tensor) is not None}
        return {value for _, value in self._values.values()} - depend

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._counts[name] = self._counts.get(name, 0) + 1
            call = Call(name, module, self._counts[name], self._started)
            self._started += 1
            given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            if given is not None:
                call.read, call.read_bounds, call.read_shape = (
                    self.value(given),
                    self._dependencies.bounds(given),
                    tuple(given.shape),
                )
            self._running.append(call)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._running.pop()
        call.output_type = type(output).__name__
        if isinstance(output, Tensor):
            call.made, call.made_bounds, call.made_shape = (
                self.value(output),
                self._dependencies.bounds(output),
                tuple(output.shape),
            )
        call.finished = len(self.calls)
        self.calls.append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        values = tuple(self.value(t) for t in tensors_in(args))
        output = func(*args, **(kwargs or {}))
        made = list(tensors_in([output]))
        name = operator_name(func)
        if name in SAME_VALUES and values:
            self._values[id(made[0])] = (made[0], values[0])
        elif made:
            rest = tuple(args[1:])
            self._note(name, values, made, lambda first: func(first, *rest, **(kwargs or {})))
        return output

    def _note(self, name: str, values: tuple[int, ...], made: list[Tensor], apply: Callable[[Tensor], Any]) -> None:
        """Give what was made a value of its own, and log the operator, in the leaf call that it runs in too."""
        leaf = self._running[-1] if self._running and self._running[-1].leaf else None
        number = -1 - len(self.operators)
        for tensor in made:
            self._values[id(tensor)] = (tensor, number)
        operator = Operator(name, values, number, leaf.number if leaf else None, apply, tuple(made[0].shape))
        self.operators.append(operator)
        if leaf:
            leaf.operators.append(operator)
