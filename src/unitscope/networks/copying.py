"""Copies of a network: modules, and whatever objects, functions and references they hold, with shared parameters.

`copy.deepcopy` doesn't suffice. It leaves functions as they are whose variables lead back to the network, weak references to its parts,
and keys that are the `id` of a module; and it copies parameters.
"""

import copy
import logging
import types
import weakref
from collections import OrderedDict, deque
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.networks.references import (
    ATOMS,
    PROXIES,
    cell_content,
    function_variables,
    held_objects,
    proxy_target,
    reachable,
    referenced_objects,
)

log = logging.getLogger(__name__)

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
FUNCTIONS = (types.FunctionType, types.MethodType, partial)
WEAK_REFERENCES = (weakref.ref, *PROXIES, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


def copy_network(network: nn.Module, with_hooks: bool) -> nn.Module:
    """A copy of the network that shares its parameters and nothing else that changes.

    Objects that are referred to several times are copied once. What can't be copied (a lock, an open file) is shared. The copy has no
    backward hooks, and forward hooks of the user's only `with_hooks`; those of torch itself, as for weight norm, it always has. Modules
    that `torch.compile` made are copied uncompiled.
    """
    copier = _NetworkCopier(network, with_hooks)
    copier.copy_registered()
    copied: nn.Module = copier.copy(network)
    return copied


class _NetworkCopier:
    """Copies the objects of one network."""

    def __init__(self, network: nn.Module, with_hooks: bool) -> None:
        self._network, self._with_hooks = network, with_hooks
        self._modules = list(network.modules())
        # From an object's `id` to its copy, in the form of the memo of `copy.deepcopy`, which gets it too: the originals stand under the
        # memo's own `id`, and torch's storages under 'torch'.
        self._memo: dict[Any, Any] = {}

    def copy_registered(self) -> None:
        """Share the parameters and copy the registered modules."""
        self._share_parameters()
        for module in self._modules:
            self._allocate_module(module)
        for module in reversed(self._modules):  # children first, since a module may look at them in its `__setstate__`
            self._fill_module(module)

    def copy(self, value: Any) -> Any:
        """The value's copy."""
        if isinstance(value, ATOMS):
            return value
        if id(value) not in self._memo:
            self._remember(value, self._make_copy(value))
        return self._memo[id(value)]

    def _remember(self, original: Any, copied: Any) -> None:
        self._memo[id(original)] = copied
        self._memo.setdefault(id(self._memo), []).append(original)  # while it lives no other object gets its `id`

    def _make_copy(self, value: Any) -> Any:
        if isinstance(value, WEAK_REFERENCES):  # first, since a proxy passes for an instance of its target's class
            return self._copy_weak_reference(value)
        if isinstance(value, nn.Module):
            return self._copy_unregistered_module(value)
        if isinstance(value, FUNCTIONS):
            return self._copy_function(value)
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if type(value) in (dict, OrderedDict, list, deque, tuple, set, frozenset):
            return self._copy_container(value)
        return self._copy_object(value)

    # ── containers and objects ──────────────────────────────────────────────────────────────────────────────────────

    def _copy_container(self, container: Any) -> Any:
        """A copy of a built-in container. One that may hold itself is remembered before its items are copied."""
        if isinstance(container, dict):
            copied: Any = type(container)()
            self._remember(container, copied)
            copied.update((self._copy_key(key), self.copy(value)) for key, value in container.items())
            return copied
        if isinstance(container, (list, deque)):
            copied = container.copy()
            self._remember(container, copied)
            for index, item in enumerate(container):
                copied[index] = self.copy(item)
            return copied
        return type(container)(self.copy(item) for item in container)

    def _copy_key(self, key: Any) -> Any:
        """The copy of a dictionary's key; of the `id` of a module the `id` of its copy."""
        if type(key) is int and isinstance(self._memo.get(key), nn.Module):
            return id(self._memo[key])
        return self.copy(key)

    def _copy_object(self, value: Any) -> Any:
        """An object's copy; the object itself where it can't be copied.

        An object with parts that can't be copied is only copied if it leads to a module. A copy of what holds an open file might close it.
        """
        parts = reachable([value], lambda part: () if isinstance(part, nn.Module) else held_objects(part))
        if not all(map(_is_copyable, parts)) and not _leads_to_module(value):
            return value
        try:
            return self._rebuild_object(value)
        except Exception:
            log.debug("a %s can't be copied and is shared", type(value).__name__, exc_info=True)
            return value

    def _rebuild_object(self, value: Any) -> Any:
        """As `copy.deepcopy`, with this object's memo and copies."""
        if hasattr(type(value), "__deepcopy__"):
            return copy.deepcopy(value, self._memo)
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return value
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        copied = make(*(self.copy(argument) for argument in arguments))
        self._remember(value, copied)
        if state is not None:
            _set_state(copied, self.copy(state))
        for item in items or ():
            copied.append(self.copy(item))
        for key, item in pairs or ():
            copied[self._copy_key(key)] = self.copy(item)
        return copied

    # ── tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _share_parameters(self) -> None:
        """Remember for each parameter another one on the same memory, and for the memory itself."""
        storages = self._memo.setdefault("torch", {})
        for parameter in self._network.parameters():
            self._remember(parameter, _new_parameter(type(parameter), parameter.detach()))
            if torch._C._has_storage(parameter):
                storages[parameter.untyped_storage()._cdata] = parameter.untyped_storage()
        for parameter in self._network.parameters():
            self._copy_attributes(parameter)

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor's copy. Copies share memory where their originals do; what shares a parameter's memory still does."""
        plain = tensor.detach()
        try:
            copied = copy.deepcopy(plain, self._memo)
        except Exception:
            log.debug("a %s can't be deep-copied and is cloned", type(tensor).__name__, exc_info=True)
            copied = plain.clone()
        if isinstance(tensor, nn.Parameter):
            copied = _new_parameter(type(tensor), copied)
        self._remember(tensor, copied)
        self._copy_attributes(tensor)
        return copied

    def _copy_attributes(self, tensor: Tensor) -> None:
        """Copy the attributes that the user set on a tensor, such as a mask on a weight."""
        for name, attribute in vars(tensor).items():
            setattr(self._memo[id(tensor)], name, self.copy(attribute))

    # ── modules ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _allocate_module(self, module: nn.Module) -> None:
        """Remember an empty module of the same class; for a compiled module that of the module that was compiled."""
        plain = uncompiled(module)
        if id(plain) not in self._memo:
            self._remember(plain, copy.deepcopy(plain) if is_torchscript(plain) else _new_instance(type(plain)))
        self._remember(module, self._memo[id(plain)])

    def _copy_unregistered_module(self, module: nn.Module) -> nn.Module:
        """A copy of a module that the network holds without having it registered. Its parameters are copied too."""
        for submodule in module.modules():
            if id(submodule) not in self._memo:
                self._modules.append(submodule)
                self._allocate_module(submodule)
        for submodule in module.modules():
            self._fill_module(submodule)
        copied: nn.Module = self._memo[id(module)]
        return copied

    def _fill_module(self, module: nn.Module) -> None:
        """Give the copy of a module its state."""
        copied = self._memo[id(module)]
        if uncompiled(module) is not module or is_torchscript(module):
            return
        attributes, slots = _module_state(module)
        state = self._copy_state(attributes)
        copied.__dict__.update(state)
        if type(module).__setstate__ is not nn.Module.__setstate__:
            _set_state(copied, state)
        for name, value in slots.items():
            object.__setattr__(copied, name, self.copy(value))
        if isinstance(module, dict):
            dict.update(copied, self.copy(dict(module)))
        elif isinstance(module, list):
            list.extend(copied, self.copy(list(module)))

    def _copy_state(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """A module's attributes, copied, with those of its hooks that the copy is to have."""
        state = {name: self.copy(value) for name, value in attributes.items() if name not in (*FORWARD_HOOKS, *BACKWARD_HOOKS)}
        for name in BACKWARD_HOOKS:
            state[name] = OrderedDict()
        for name in FORWARD_HOOKS:
            hooks = {key: hook for key, hook in attributes.get(name, {}).items() if self._with_hooks or is_torch_hook(hook)}
            state[name] = OrderedDict((key, self._copy_hook(hook)) for key, hook in hooks.items())
        return state

    def _copy_hook(self, hook: Any) -> Any:
        copies = is_torch_hook(hook) or isinstance(hook, FUNCTIONS) or self._leads_to_network(hook)
        return self.copy(hook) if copies else hook

    # ── functions and weak references ───────────────────────────────────────────────────────────────────────────────

    def _copy_function(self, function: Any) -> Any:
        """A function that is bound to the copy where the original is bound to the network."""
        if isinstance(function, types.MethodType):
            return types.MethodType(function.__func__, self.copy(function.__self__))
        if isinstance(function, partial):
            keywords = {name: self.copy(value) for name, value in function.keywords.items()}
            return partial(self.copy(function.func), *map(self.copy, function.args), **keywords)
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.copy(compiled)
        if not any(self._leads_to_network(value) for value in function_variables(function)):
            return function
        return self._copy_closure(function)

    def _copy_closure(self, function: types.FunctionType) -> types.FunctionType:
        """A function of the same code, with copies of those cells of its closure, and of those defaults, that lead to the network."""
        cells = tuple(self._copy_cell(cell) for cell in function.__closure__ or ())
        copied = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self._remember(function, copied)  # before the cells are filled, since the function may be in one of them
        copied.__defaults__ = function.__defaults__ and tuple(map(self._copy_default, function.__defaults__))
        if function.__kwdefaults__ is not None:
            copied.__kwdefaults__ = {name: self._copy_default(value) for name, value in function.__kwdefaults__.items()}
        copied.__dict__.update(function.__dict__)
        for cell, new_cell in zip(function.__closure__ or (), cells, strict=True):
            if new_cell is not cell and (content := cell_content(cell)) is not cell:
                new_cell.cell_contents = self.copy(content)
        return copied

    def _copy_cell(self, cell: types.CellType) -> types.CellType:
        """An empty cell for one that leads to the network, the same for all functions that share it; else the cell itself."""
        if id(cell) not in self._memo:
            self._remember(cell, types.CellType() if self._leads_to_network(cell_content(cell)) else cell)
        copied: types.CellType = self._memo[id(cell)]
        return copied

    def _copy_default(self, value: Any) -> Any:
        return self.copy(value) if self._leads_to_network(value) else value

    def _copy_weak_reference(self, reference: Any) -> Any:
        """A weak reference to the copy of its target, where that is part of the network."""
        if isinstance(reference, weakref.WeakMethod):
            method = reference()
            if method is None:
                return reference
            return weakref.WeakMethod(types.MethodType(method.__func__, self._copy_if_owned(method.__self__)))
        if isinstance(reference, weakref.ref):
            target = reference()
            copied = self._copy_if_owned(target)
            return reference if copied is target else weakref.ref(copied)
        if isinstance(reference, PROXIES):
            target = proxy_target(reference)
            copied = self._copy_if_owned(target)
            return reference if copied is target else weakref.proxy(copied)
        if isinstance(reference, weakref.WeakKeyDictionary):
            return weakref.WeakKeyDictionary({self._copy_if_owned(key): self.copy(value) for key, value in reference.items()})
        if isinstance(reference, weakref.WeakValueDictionary):
            return weakref.WeakValueDictionary(
                {self._copy_key(key): self._copy_if_owned(value) for key, value in reference.items()}
            )
        return weakref.WeakSet(self._copy_if_owned(item) for item in reference)

    def _copy_if_owned(self, target: Any) -> Any:
        """The copy of a weak reference's target that the network holds; any other target itself, since nothing would hold its copy."""
        return self.copy(target) if id(target) in self._owned_ids else target

    @cached_property
    def _owned_ids(self) -> set[int]:
        """The `id`s of all objects that the network holds as data, in whatever containers and objects."""
        states = [_module_state(module)[0] for module in self._modules]
        return {id(value) for value in reachable(states, held_objects)} | set(map(id, self._modules))

    def _leads_to_network(self, value: Any) -> bool:
        """True where part of the network can be reached from a value."""
        return any(id(part) in self._owned_ids for part in reachable([value], referenced_objects))


def is_torchscript(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def is_torch_hook(hook: Any) -> bool:
    """True for hooks that torch itself registers, as for weight norm."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that was compiled, where `torch.compile` made this one; else the module itself."""
    original = getattr(module, "_orig_mod", None)
    return uncompiled(original) if isinstance(original, nn.Module) else module


def _leads_to_module(value: Any) -> bool:
    return any(isinstance(part, nn.Module) for part in reachable([value], referenced_objects))


def _is_copyable(value: Any) -> bool:
    """False for what has no copies: an open file, a lock, a generator."""
    if isinstance(value, (nn.Module, Tensor, *FUNCTIONS, *WEAK_REFERENCES)) or hasattr(type(value), "__deepcopy__"):
        return True
    try:
        value.__reduce_ex__(4)
    except Exception:
        log.debug("a %s has no copies", type(value).__name__, exc_info=True)
        return False
    return True


def _new_parameter(cls: type[nn.Parameter], data: Tensor) -> nn.Parameter:
    """A parameter of that class on that memory, which gets no gradient."""
    if cls is not nn.Parameter and issubclass(cls, nn.Parameter):
        parameter: nn.Parameter = torch.Tensor._make_subclass(cls, data, False)
        return parameter
    return nn.Parameter(data, requires_grad=False)


def _new_instance(cls: type[Any]) -> Any:
    """An instance whose `__init__` wasn't called."""
    try:
        return object.__new__(cls)
    except TypeError:  # the class is a dict or a list as well
        return cls.__new__(cls)  # type: ignore[call-overload]


def _module_state(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """A module's attributes and slots, without those that it leaves out when it is pickled (a Lightning module its trainer)."""
    try:
        state = module.__getstate__()
    except Exception:
        log.debug("the state of a %s can't be had; its attributes are copied", type(module).__name__, exc_info=True)
        state = None
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if not isinstance(attributes, dict):
        attributes = {name: value for name, value in module.__dict__.items() if name != "_compiled_call_impl"}
    return attributes, slots if isinstance(slots, dict) else {}


def _set_state(instance: Any, state: Any) -> None:
    """Give an object its state, as unpickling does."""
    if hasattr(instance, "__setstate__"):
        instance.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        instance.__dict__.update(attributes)
    for name, value in (slots or {}).items():
        setattr(instance, name, value)
