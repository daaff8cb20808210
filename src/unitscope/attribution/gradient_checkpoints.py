"""Gradients through gradient checkpointing (`torch.utils.checkpoint`).

The non-reentrant kind keeps the graph and computes the saved tensors again (see `methods`). The reentrant kind keeps no graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.utils.checkpoint import CheckpointFunction

_users = 0
_lock = Lock()


@contextmanager
def keep_checkpoint_graphs() -> Iterator[None]:
    """Reentrant checkpoints keep their graph, as other calls do, while the block lasts.

    torch has no switch for that, so `CheckpointFunction.apply` is replaced, in all threads. A training in another thread meanwhile gets
    the same values and needs more memory.
    """
    global _users
    with _lock:
        _users += 1
        CheckpointFunction.apply = staticmethod(_call)  # `checkpoint` looks it up there, however it was imported
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                del CheckpointFunction.apply  # which uncovers the inherited method


def _call(function: Callable[..., Any], preserve_random_state: bool, *arguments: Any) -> Any:
    """In place of a checkpoint, the plain call."""
    return function(*arguments)
