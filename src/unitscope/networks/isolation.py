"""A copy of a network that is run in its place, so that whatever running changes is the copy's.

The copy has its own modules, buffers and other state, and shares the parameters (see `copying`). Compiled parts are copied uncompiled.
The user's hooks are left out, unless the network needs them (see `needs_hooks`).
"""

import logging
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unitscope.networks.copying import FORWARD_HOOKS, copy_network, is_torch_hook, uncompiled
from unitscope.networks.references import cell_content

log = logging.getLogger(__name__)


def isolated_copy(network: nn.Module, with_hooks: bool = False) -> nn.Module:
    """A copy of the network in eval mode, without the user's forward hooks unless `with_hooks`."""
    copied = copy_network(uncompiled(network), with_hooks)
    for module in copied.modules():
        module.training = False  # eval() does more in some networks
    return copied


def has_hooks(network: nn.Module) -> bool:
    """True where the user has registered forward hooks; those of torch itself, as for weight norm, don't count."""
    return any(not is_torch_hook(hook) for hook in _forward_hooks(network))


def needs_hooks(network: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> bool:
    """True where the network gives other outputs, or an error, without the user's hooks. `run` gives the outputs of a copy.

    The hooks run for one pass. Then what they can reach (variables, containers and objects that their code names) is restored.
    """
    try:
        without_hooks = run(isolated_copy(network))
    except Exception:
        log.debug("the network doesn't run without its hooks", exc_info=True)
        return True
    try:
        with _restore_reachable(list(_forward_hooks(network))):
            with_hooks = run(isolated_copy(network, with_hooks=True))
    except Exception:
        log.debug("the network doesn't run with its hooks", exc_info=True)
        return False
    return len(with_hooks) != len(without_hooks) or not all(map(_are_equal, with_hooks, without_hooks))


def _are_equal(output: Tensor, other: Tensor) -> bool:
    return output.shape == other.shape and torch.equal(output.nan_to_num(), other.nan_to_num())


def _forward_hooks(network: nn.Module) -> Iterator[Any]:
    return (hook for module in network.modules() for name in FORWARD_HOOKS for hook in module.__dict__.get(name, {}).values())


# ── what hooks can reach ────────────────────────────────────────────────────────────────────────────────────────────

Restorer = Callable[[], Any]
"""A function that restores one variable or the content of one container."""


@contextmanager
def _restore_reachable(hooks: list[Any]) -> Iterator[None]:
    """After the block variables of these hooks, and the contents of containers and objects in them, are as before it."""
    restorers = [restorer for hook in hooks for restorer in _hook_restorers(hook)]
    try:
        yield
    finally:
        for restore in reversed(restorers):
            restore()


def _hook_restorers(hook: Any) -> Iterator[Restorer]:
    """For whatever a hook can reach: its object, arguments, closure, defaults and global variables."""
    if isinstance(hook, partial):
        yield from _hook_restorers(hook.func)
        yield from _content_restorers(*hook.args, *hook.keywords.values())
    elif isinstance(hook, types.MethodType):
        yield from _hook_restorers(hook.__func__)
        yield from _content_restorers(hook.__self__)
    elif isinstance(hook, types.FunctionType):
        yield from _content_restorers(*(hook.__defaults__ or ()))
        for cell in hook.__closure__ or ():
            if (content := cell_content(cell)) is not cell:
                yield partial(setattr, cell, "cell_contents", content)
                yield from _content_restorers(content)
        for name in hook.__code__.co_names:
            if name in hook.__globals__:
                yield partial(hook.__globals__.__setitem__, name, hook.__globals__[name])
                yield from _content_restorers(hook.__globals__[name])
    else:
        yield from _content_restorers(hook)


def _content_restorers(*values: Any) -> Iterator[Restorer]:
    """For the contents of containers and of objects, and of the containers in these objects."""
    for value in values:
        if isinstance(value, (list, deque)):
            yield partial(_restore_content, value, list(value), "extend")
        elif isinstance(value, (dict, set)):
            yield partial(_restore_content, value, value.copy(), "update")
        elif not isinstance(value, (nn.Module, type, types.ModuleType, types.FunctionType)) and hasattr(value, "__dict__"):
            attributes = vars(value)
            yield partial(_restore_content, attributes, dict(attributes), "update")
            yield from _content_restorers(*(item for item in attributes.values() if isinstance(item, (list, deque, dict, set))))


def _restore_content(container: Any, content: Any, add_all: str) -> None:
    container.clear()
    getattr(container, add_all)(content)
