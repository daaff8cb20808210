"""Variables of the classes of a network's modules, which all its copies share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

NOT_OWN = ("torch", "builtins")
"""The packages whose classes are left alone."""


@contextmanager
def class_variables_kept(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Afterwards variables of the network's own classes are as they were, and whenever the function that is given is called.

    Lists, dicts, sets and tensors in them have the content that they had.
    """
    classes = {
        own: None for module in network.modules() for own in type(module).__mro__ if own.__module__.split(".")[0] not in NOT_OWN
    }
    restore = [
        partial(_put_back, own, variables, [*map(_content, variables.values())])
        for own in classes
        for variables in [_variables(own)]
    ]

    def put_back() -> None:
        for put in restore:
            put()

    try:
        yield put_back
    finally:
        put_back()


def _variables(own: type) -> dict[str, Any]:
    return {name: value for name, value in vars(own).items() if not name.startswith("__")}


def _content(value: Any) -> Any:
    """A copy of what the value holds, where that can change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict, set) else None


def _put_back(own: type, variables: dict[str, Any], contents: list[Any]) -> None:
    for name, value in _variables(own).items():
        if name not in variables:
            delattr(own, name)
        elif value is not variables[name]:
            setattr(own, name, variables[name])
    for name in variables.keys() - vars(own).keys():
        setattr(own, name, variables[name])
    for value, content in zip(variables.values(), contents, strict=True):
        if isinstance(value, Tensor):
            if not torch.equal(value, content):
                value.detach().copy_(content)
        elif type(value) is list:
            value[:] = content
        elif type(value) in (dict, set):
            value.clear()
            value.update(content)
