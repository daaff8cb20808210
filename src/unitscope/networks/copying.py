"""Copies of a network: modules, and whatever objects, functions and references they hold, with the parameters shared.

As `copy.deepcopy`, with what that leaves as it is: functions whose variables lead back to the network, weak references, keys.
"""

import copy
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
ATOMS = (
    int, float, complex, str, bytes, type(None), type(...), type, torch.dtype, torch.device, torch.Size, torch.memory_format,
    types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
FUNCTIONS = (types.FunctionType, types.MethodType, partial)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
REFERENCES = (weakref.ref, *PROXIES, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


class Copying:
    """One copy of a network in the making. Objects that several refer to stay one object; what can't be copied (a lock, an open file)
    stays shared. Forward hooks of the user's are copied where `hooks` says so."""

    def __init__(self, network: nn.Module, hooks: bool) -> None:
        self._hooks = hooks
        self._modules = list(network.modules())
        self._memo: dict[Any, Any] = {}  # what became of each object, by its `id`, as `copy.deepcopy` keeps it
        storages = self._memo.setdefault("torch", {})
        for parameter in network.parameters():
            self._keep(parameter, _sharing(parameter))
            if torch._C._has_storage(parameter):
                storages[parameter.untyped_storage()._cdata] = parameter.untyped_storage()
        for parameter in network.parameters():
            self._copy_attributes(parameter)
        for module in self._modules:
            self._allocate(module)
        for module in reversed(self._modules):  # children first: a module may look at them when it is given its state
            self._fill(module)

    def of(self, value: Any) -> Any:
        """The value's copy."""
        if isinstance(value, ATOMS):
            return value
        if id(value) not in self._memo:
            self._keep(value, self._copied(value))
        return self._memo[id(value)]

    def _keep(self, value: Any, made: Any) -> None:
        self._memo[id(value)] = made
        self._memo.setdefault(id(self._memo), []).append(value)  # or another object might get its `id`

    def _copied(self, value: Any) -> Any:
        if isinstance(value, REFERENCES):  # first, since a proxy looks like a module
            return self._referring(value)
        if isinstance(value, nn.Module):
            return self._hidden(value)
        if isinstance(value, FUNCTIONS):
            return self._rebound(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if type(value) in (dict, OrderedDict):
            made = type(value)()
            self._keep(value, made)
            made.update((self._key(key), self.of(item)) for key, item in value.items())
            return made
        if type(value) in (list, deque):
            made = value.copy()
            self._keep(value, made)
            for index, item in enumerate(value):
                made[index] = self.of(item)
            return made
        if type(value) in (tuple, set, frozenset):
            return type(value)(self.of(item) for item in value)
        return self._object(value)

    def _key(self, key: Any) -> Any:
        """A key; the number of a module, which is its address, as well."""
        if type(key) is int and isinstance(self._memo.get(key), nn.Module):
            return id(self._memo[key])
        return self.of(key)

    def _tensor(self, value: Tensor) -> Tensor:
        """A tensor of its own. Those that share memory still do, and with the parameters all share theirs."""
        plain = value.detach()
        try:
            made = copy.deepcopy(plain, self._memo)
        except Exception:
            made = plain.clone()
        if isinstance(value, nn.Parameter):
            made = _parameter(type(value), made)
        self._keep(value, made)
        self._copy_attributes(value)
        return made

    def _copy_attributes(self, tensor: Tensor) -> None:
        """What somebody hung on a tensor, as a mask on a weight."""
        for name, attribute in vars(tensor).items():
            setattr(self._memo[id(tensor)], name, self.of(attribute))

    def _object(self, value: Any) -> Any:
        """An object's copy. One with parts that can't be copied is not copied in part, unless it leads to a module: a copy of what holds an
        open file might close it."""
        held = reached([value], lambda part: () if isinstance(part, nn.Module) else _data(part))
        if not all(map(_is_copyable, held)) and not any(isinstance(part, nn.Module) for part in reached([value], _everything)):
            return value
        try:
            return self._remade(value)
        except Exception:
            return value

    def _remade(self, value: Any) -> Any:
        if hasattr(type(value), "__deepcopy__"):
            return copy.deepcopy(value, self._memo)
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return value
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        made = make(*(self.of(argument) for argument in arguments))
        self._keep(value, made)
        if state is not None:
            _give(made, self.of(state))
        for item in items or ():
            made.append(self.of(item))
        for key, item in pairs or ():
            made[self._key(key)] = self.of(item)
        return made

    # ── modules ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _allocate(self, module: nn.Module) -> None:
        """A module without its state; of a compiled one the copy is that of the module that was compiled."""
        plain = uncompiled(module)
        if id(plain) not in self._memo:
            self._keep(plain, copy.deepcopy(plain) if is_script(plain) else _new(type(plain)))
        self._keep(module, self._memo[id(plain)])

    def _hidden(self, module: nn.Module) -> nn.Module:
        """A module that the network holds without having it registered. Its parameters are copied."""
        for one in module.modules():
            if id(one) not in self._memo:
                self._modules.append(one)
                self._allocate(one)
        for one in module.modules():
            self._fill(one)
        made: nn.Module = self._memo[id(module)]
        return made

    def _fill(self, module: nn.Module) -> None:
        made = self._memo[id(module)]
        if uncompiled(module) is not module or is_script(module):
            return
        attributes, slots = _state(module)
        state = {name: self.of(value) for name, value in attributes.items() if name not in (*FORWARD_HOOKS, *BACKWARD_HOOKS)}
        for name in BACKWARD_HOOKS:
            state[name] = OrderedDict()
        for name in FORWARD_HOOKS:
            kept = {key: hook for key, hook in attributes.get(name, {}).items() if self._hooks or is_torchs(hook)}
            state[name] = OrderedDict((key, self._hook(hook)) for key, hook in kept.items())
        made.__dict__.update(state)
        if type(module).__setstate__ is not nn.Module.__setstate__:
            _give(made, state)
        for name, value in slots.items():
            object.__setattr__(made, name, self.of(value))
        if isinstance(module, dict):
            dict.update(made, self.of(dict(module)))
        elif isinstance(module, list):
            list.extend(made, self.of(list(module)))

    # ── functions and references ────────────────────────────────────────────────────────────────────────────────────

    def _hook(self, hook: Any) -> Any:
        return self.of(hook) if is_torchs(hook) or isinstance(hook, FUNCTIONS) or self._leads_to(hook) else hook

    def _rebound(self, function: Any) -> Any:
        """A function, bound to the copy where it is bound to the network, with copies of those variables that lead there."""
        if isinstance(function, types.MethodType):
            return types.MethodType(function.__func__, self.of(function.__self__))
        if isinstance(function, partial):
            keywords = {name: self.of(value) for name, value in function.keywords.items()}
            return partial(self.of(function.func), *map(self.of, function.args), **keywords)
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.of(compiled)
        if not any(self._leads_to(value) for value in _variables(function)):
            return function
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self._keep(function, made)
        made.__defaults__ = self._led(function.__defaults__)
        made.__kwdefaults__ = self._led(function.__kwdefaults__)
        made.__dict__.update(function.__dict__)
        for before, after in zip(function.__closure__ or (), cells, strict=True):
            if after is not before and (content := content_of(before)) is not before:
                after.cell_contents = self.of(content)
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        """An empty cell for a variable that leads to the network, the same for all functions that have it; any other cell itself."""
        if id(cell) not in self._memo:
            self._keep(cell, types.CellType() if self._leads_to(content_of(cell)) else cell)
        made: types.CellType = self._memo[id(cell)]
        return made

    def _led(self, values: Any) -> Any:
        """Default values, copied where they lead to the network."""
        if isinstance(values, dict):
            return {name: self.of(value) if self._leads_to(value) else value for name, value in values.items()}
        return values and tuple(self.of(value) if self._leads_to(value) else value for value in values)

    def _referring(self, value: Any) -> Any:
        """Weak references, to the copy of what they refer to where that is part of the network."""
        if isinstance(value, weakref.WeakMethod):
            method = value()
            return value if method is None else weakref.WeakMethod(types.MethodType(method.__func__, self._part(method.__self__)))
        if isinstance(value, weakref.ref):
            target = value()
            return value if target is None or self._part(target) is target else weakref.ref(self._part(target))
        if isinstance(value, PROXIES):
            target = _behind(value)
            return value if self._part(target) is target else weakref.proxy(self._part(target))
        if isinstance(value, weakref.WeakKeyDictionary):
            return weakref.WeakKeyDictionary({self._part(key): self.of(one) for key, one in value.items()})
        if isinstance(value, weakref.WeakValueDictionary):
            return weakref.WeakValueDictionary({self._key(key): self._part(one) for key, one in value.items()})
        return weakref.WeakSet(self._part(one) for one in value)

    def _part(self, value: Any) -> Any:
        """The copy of a part of the network; what isn't one stays what it is, since nobody would hold its copy."""
        return self.of(value) if id(value) in self._owned else value

    @cached_property
    def _owned(self) -> set[int]:
        """The `id`s of all that the network holds as data, in whatever containers and objects."""
        return {id(one) for one in reached([_state(module)[0] for module in self._modules], _data)} | set(map(id, self._modules))

    def _leads_to(self, value: Any) -> bool:
        """True where the network can be reached from a value."""
        return any(id(one) in self._owned for one in reached([value], _everything))


def content_of(cell: types.CellType) -> Any:
    """What a variable of a function holds, the cell itself where nothing was put into it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def is_torchs(hook: Any) -> bool:
    """True for hooks that torch itself works with, as for weight norm."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself or, where `torch.compile` made it, the one that was compiled."""
    inner = getattr(module, "_orig_mod", None)
    return uncompiled(inner) if isinstance(inner, nn.Module) else module


def _sharing(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same class on the same numbers."""
    return _parameter(type(parameter), parameter.detach())


def _parameter(kind: type[nn.Parameter], numbers: Tensor) -> nn.Parameter:
    if kind is not nn.Parameter and issubclass(kind, nn.Parameter):
        made: nn.Parameter = torch.Tensor._make_subclass(kind, numbers, False)
        return made
    return nn.Parameter(numbers, requires_grad=False)


def _new(kind: type[Any]) -> Any:
    try:
        return object.__new__(kind)
    except TypeError:  # one that is a dict or a list as well
        return kind.__new__(kind)  # type: ignore[call-overload]


def _state(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """A module's attributes, but for those that it leaves out when it is pickled (a Lightning module its trainer), and its slots."""
    try:
        state = module.__getstate__()
    except Exception:
        state = None
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if not isinstance(attributes, dict):
        attributes = {name: value for name, value in module.__dict__.items() if name != "_compiled_call_impl"}
    return attributes, slots if isinstance(slots, dict) else {}


def _is_copyable(value: Any) -> bool:
    """False for what has no copies: an open file, a lock, a generator."""
    if isinstance(value, (nn.Module, Tensor, *FUNCTIONS, *REFERENCES)) or hasattr(type(value), "__deepcopy__"):
        return True
    try:
        value.__reduce_ex__(4)
    except Exception:
        return False
    return True


def _give(made: Any, state: Any) -> None:
    """Give an object its state, as unpickling does."""
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        made.__dict__.update(attributes)
    for name, value in (slots or {}).items():
        setattr(made, name, value)


# ── what can be reached ─────────────────────────────────────────────────────────────────────────────────────────────


def reached(values: list[Any], parts: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """The values, their parts, the parts of these, and so on."""
    met: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) not in met and not isinstance(value, ATOMS):
            met.add(id(value))
            yield value
            waiting.extend(parts(value))


def _data(value: Any) -> Iterator[Any]:
    """What a value holds; a function holds nothing but what was bound to it."""
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
        for name in (n for kind in type(value).__mro__ for n in kind.__dict__.get("__slots__", ()) if n != "__dict__"):
            if hasattr(value, name):
                yield getattr(value, name)


def _everything(value: Any) -> Iterator[Any]:
    """What can be come to from a value, through functions and weak references too."""
    if isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, PROXIES):
        yield _behind(value)
    elif isinstance(value, types.FunctionType):
        yield from _variables(value)
    else:
        yield from _data(value)


def _behind(proxy: Any) -> Any:
    """What a weak proxy stands for."""
    return proxy.__repr__.__self__


def _variables(function: types.FunctionType) -> Iterator[Any]:
    """The values of a function's closure and of its defaults."""
    yield from map(content_of, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
