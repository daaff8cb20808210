"""A copy of a network to run in place of the one that was given, so that whatever running it changes is the copy's.

The copy has modules, buffers and other state of its own, and shares the parameters. Compiled parts are the modules that were compiled.
Hooks that somebody hung on the network stay behind, unless the network needs them (see `needs_hooks`).
"""

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.networks.copying import FORWARD_HOOKS, Copying, content_of, is_torchs, uncompiled


def isolated_copy(network: nn.Module, hooks: bool = False) -> nn.Module:
    """The network's copy in eval mode, with forward hooks of the user's where `hooks` says so."""
    network = uncompiled(network)
    copied: nn.Module = Copying(network, hooks).of(network)
    for module in copied.modules():
        module.training = False  # and not by eval(), which does more in some networks
    return copied


def has_hooks(network: nn.Module) -> bool:
    """True where somebody hung forward hooks on the network; those that torch itself works with, as for weight norm, are no such."""
    held = (hook for module in network.modules() for name in FORWARD_HOOKS for hook in module.__dict__.get(name, {}).values())
    return any(not is_torchs(hook) for hook in held)


def needs_hooks(network: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> bool:
    """True where the network computes something else without its user's hooks, or doesn't run. `run` gives what a copy computes.

    The hooks are called for one pass. What they can reach (variables, containers and objects that their code names) is put back.
    """
    try:
        without = run(isolated_copy(network))
    except Exception:
        return True
    hooks = [h for module in network.modules() for name in FORWARD_HOOKS for h in module.__dict__.get(name, {}).values()]
    try:
        with _put_back(hooks):
            those = run(isolated_copy(network, hooks=True))
    except Exception:
        return False
    return len(those) != len(without) or not all(
        one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(those, without, strict=True)
    )


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
            if (content := content_of(cell)) is not cell:
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
