"""Variables of the classes of a network's modules, which all copies of the network share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FOREIGN_PACKAGES = ("torch", "builtins")
"""The packages whose classes are left alone."""


@dataclass(frozen=True, slots=True)
class ClassSnapshot:
    """The variables of one class, and copies of the contents of those that are lists, dicts, sets or tensors."""

    cls: type
    variables: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def take(cls, observed: type) -> "ClassSnapshot":
        variables = _variables(observed)
        return cls(observed, variables, {name: _copy_content(value) for name, value in variables.items()})

    def restore(self) -> None:
        """Give the class the variables and contents that it had."""
        for name, value in _variables(self.cls).items():
            if name not in self.variables:
                delattr(self.cls, name)
            elif value is not self.variables[name]:
                setattr(self.cls, name, self.variables[name])
        for name in self.variables.keys() - vars(self.cls).keys():
            setattr(self.cls, name, self.variables[name])
        for name, value in self.variables.items():
            _restore_content(value, self.contents[name])


@dataclass(frozen=True, slots=True)
class ClassVariables:
    """Snapshots of all classes of a network's modules, but for those of torch and Python."""

    snapshots: list[ClassSnapshot]

    @classmethod
    def of(cls, network: nn.Module) -> "ClassVariables":
        classes = {base: None for module in network.modules() for base in type(module).__mro__}
        return cls([ClassSnapshot.take(base) for base in classes if base.__module__.split(".")[0] not in FOREIGN_PACKAGES])

    def restore(self) -> None:
        """Give all classes the variables and contents that they had."""
        for snapshot in self.snapshots:
            snapshot.restore()


@contextmanager
def restore_class_variables(network: nn.Module) -> Iterator[ClassVariables]:
    """After the block the variables of the network's own classes are as before it; the snapshot may restore them within it too."""
    variables = ClassVariables.of(network)
    try:
        yield variables
    finally:
        variables.restore()


def _variables(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("__")}


def _copy_content(value: Any) -> Any:
    """A copy of what a list, dict, set or tensor holds; None for other values."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict, set) else None


def _restore_content(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value, content):
            value.detach().copy_(content)
    elif type(value) is list:
        value[:] = content
    elif type(value) in (dict, set):
        value.clear()
        value.update(content)
