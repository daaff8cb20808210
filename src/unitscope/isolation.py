"""A copy of a network to run in place of the one that was given, so that whatever running it changes is the copy's.

The copy has modules, buffers and other state of its own, and shares the parameters. Compiled parts are the modules that were compiled.
Hooks that somebody hung on the network stay behind, unless the network needs them (see `needs_hooks`).
"""

import copy
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
ATOMS = (
    int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, torch.memory_format,
    types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip

Memo = dict[int, Any]
"""What became of each object, by its `id`; as `copy.deepcopy` keeps it."""


def isolated(network: nn.Module, hooks: bool = False) -> nn.Module:
    """The network's copy in eval mode, with forward hooks of the user's where `hooks` says so."""
    network = uncompiled(network)
    memo: Memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    originals = [module for module in network.modules() if uncompiled(module) is module]
    for module in originals:
        memo[id(module)] = copy.deepcopy(module) if _is_script(module) else object.__new__(type(module))
    for module in network.modules():
        if uncompiled(module) is not module:
            memo[id(module)] = memo[id(uncompiled(module))]
    for module in originals:
        if not _is_script(module):
            memo[id(module)].__dict__.update(_state(module, memo, hooks))
    for module in memo[id(network)].modules():
        module.training = False  # and not by eval(), which does more in some networks
    copied: nn.Module = memo[id(network)]
    return copied


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself or, where `torch.compile` made it, the one that was compiled."""
    inner = getattr(module, "_orig_mod", None)
    return uncompiled(inner) if isinstance(inner, nn.Module) else module


def has_hooks(network: nn.Module) -> bool:
    """True where somebody hung forward hooks on the network; those that torch itself works with, as for weight norm, are no such."""
    held = (hook for module in network.modules() for name in FORWARD_HOOKS for hook in module.__dict__.get(name, {}).values())
    return any(not _is_torchs(hook) for hook in held)


def needs_hooks(network: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> bool:
    """True where the network computes something else without its user's hooks, or doesn't run. `run` gives what a copy computes.

    The hooks are called for one pass. What they can reach (variables, containers and objects that their code names) is put back.
    """
    try:
        without = run(isolated(network))
    except Exception:
        return True
    hooks = [h for module in network.modules() for name in FORWARD_HOOKS for h in module.__dict__.get(name, {}).values()]
    try:
        with _put_back(hooks):
            those = run(isolated(network, hooks=True))
    except Exception:
        return False
    return len(those) != len(without) or not all(
        one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(those, without, strict=True)
    )


def _state(module: nn.Module, memo: Memo, hooks: bool) -> dict[str, Any]:
    """What the copy of a module holds."""
    held = _attributes(module)
    state = {name: _own(value, memo) for name, value in held.items() if name not in (*FORWARD_HOOKS, *BACKWARD_HOOKS)}
    for name in BACKWARD_HOOKS:
        state[name] = OrderedDict()
    for name in FORWARD_HOOKS:
        kept = {key: hook for key, hook in held.get(name, {}).items() if hooks or _is_torchs(hook)}
        state[name] = OrderedDict((key, _rebound(hook, memo)) for key, hook in kept.items())
    return state


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, but for those that it leaves out when it is pickled: a Lightning module its trainer, for one."""
    with suppress(Exception):
        state = module.__getstate__()
        if isinstance(state, dict):
            return state
    return {name: value for name, value in module.__dict__.items() if name != "_compiled_call_impl"}


def _own(value: Any, memo: Memo) -> Any:
    """The value's copy. What can't be copied (a lock, an open file) stays shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, ATOMS):
        return value
    if isinstance(value, (types.FunctionType, types.MethodType, partial)):
        return _rebound(value, memo)
    made = _copied(value, memo)
    memo[id(value)] = made
    memo.setdefault(id(memo), []).append(value)  # or another object might get its `id`
    return made


def _copied(value: Any, memo: Memo) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _own(one, memo)) for key, one in value.items())
    if type(value) in (list, tuple, set, deque):
        return type(value)(_own(one, memo) for one in value)
    scratch = dict(memo)
    try:
        made = copy.deepcopy(value, scratch)
    except Exception:
        return value
    memo |= scratch
    return made


def _rebound(function: Any, memo: Memo) -> Any:
    """A function whose variables are modules of the network, with the copy's modules in their place."""
    if isinstance(function, types.MethodType):
        return types.MethodType(function.__func__, memo.get(id(function.__self__), function.__self__))
    if isinstance(function, partial):
        return partial(function.func, *(memo.get(id(a), a) for a in function.args), **function.keywords)
    if not isinstance(function, types.FunctionType):
        return _own(function, memo) if _is_torchs(function) else function
    cells = function.__closure__ or ()
    if not any(id(_content(cell)) in memo for cell in cells):
        return function
    closure = tuple(types.CellType(memo[id(_content(cell))]) if id(_content(cell)) in memo else cell for cell in cells)
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return cell


def _is_torchs(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


# ── what hooks can reach ────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _put_back(hooks: list[Any]) -> Iterator[None]:
    """Variables of these functions, and what containers and objects in them hold, are afterwards as they were."""
    restore = [put for hook in hooks for put in _restoring(hook)]
    try:
        yield
    finally:
        for put in reversed(restore):
            put()


def _restoring(hook: Any) -> Iterator[Callable[[], Any]]:
    """Functions that put back what a hook can reach."""
    if isinstance(hook, partial):
        yield from _restoring(hook.func)
        yield from _refilling(*hook.args, *hook.keywords.values())
    elif isinstance(hook, types.MethodType):
        yield from _restoring(hook.__func__)
        yield from _refilling(hook.__self__)
    elif isinstance(hook, types.FunctionType):
        yield from _refilling(*(hook.__defaults__ or ()))
        for cell in hook.__closure__ or ():
            if (content := _content(cell)) is not cell:
                yield partial(setattr, cell, "cell_contents", content)
                yield from _refilling(content)
        for name in hook.__code__.co_names:
            if name in hook.__globals__:
                yield partial(hook.__globals__.__setitem__, name, hook.__globals__[name])
                yield from _refilling(hook.__globals__[name])
    else:
        yield from _refilling(hook)


def _refilling(*values: Any) -> Iterator[Callable[[], Any]]:
    """Functions that put back what containers hold, and objects, down to the containers in them."""
    for value in values:
        if isinstance(value, (list, deque)):
            yield partial(_refill, value, list(value), "extend")
        elif isinstance(value, (dict, set)):
            yield partial(_refill, value, value.copy(), "update")
        elif not isinstance(value, (nn.Module, type, types.ModuleType, types.FunctionType)) and hasattr(value, "__dict__"):
            yield partial(_refill, vars(value), dict(vars(value)), "update")
            yield from _refilling(*(one for one in vars(value).values() if isinstance(one, (list, deque, dict, set))))


def _refill(container: Any, content: Any, method: str) -> None:
    container.clear()
    getattr(container, method)(content)
