"""Which objects can be reached from an object: through what it holds, and through functions and weak references."""

import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

ATOMS = (
    int, float, complex, str, bytes, type(None), type(...), type, torch.dtype, torch.device, torch.Size, torch.memory_format,
    types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
"""Types of values that can't lead to a network, and that need no copy."""
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)


def reachable(roots: list[Any], children: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """The roots, their children, the children of these, and so on; each object once, without atoms."""
    visited: set[int] = set()
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) not in visited and not isinstance(value, ATOMS):
            visited.add(id(value))
            yield value
            waiting.extend(children(value))


def held_objects(value: Any) -> Iterator[Any]:
    """What an object holds as data: items, attributes, slots and bound arguments; nothing of plain functions and weak references."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif not isinstance(value, (types.FunctionType, weakref.ref, *PROXIES)):
        yield from getattr(value, "__dict__", {}).values()
        slots = (name for cls in type(value).__mro__ for name in cls.__dict__.get("__slots__", ()) if name != "__dict__")
        for name in slots:
            if hasattr(value, name):
                yield getattr(value, name)


def referenced_objects(value: Any) -> Iterator[Any]:
    """What an object holds, and what functions and weak references lead to."""
    if isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, PROXIES):
        yield proxy_target(value)
    elif isinstance(value, types.FunctionType):
        yield from function_variables(value)
    else:
        yield from held_objects(value)


def function_variables(function: types.FunctionType) -> Iterator[Any]:
    """The values of a function's closure and of its parameters' defaults."""
    yield from map(cell_content, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def cell_content(cell: types.CellType) -> Any:
    """The value of a closure's cell; the cell itself where it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def proxy_target(proxy: Any) -> Any:
    """The object that a weak proxy stands for."""
    return proxy.__repr__.__self__
