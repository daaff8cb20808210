"""Gradient checkpointing (`torch.utils.checkpoint`), whose two kinds hide the graph each in its own way, and how a gradient comes through.

The one that is not reentrant keeps the graph and computes the saved tensors again; the reentrant one keeps no graph at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.utils.checkpoint import CheckpointFunction

_HOLDERS: list[None] = []
_LOCK = Lock()


@contextmanager
def graphs_kept() -> Iterator[None]:
    """Reentrant checkpoints keep their graph, like any other call, for as long as the block lasts.

    torch has no switch for that. It holds in all threads; whoever trains in another meanwhile gets the same values, for more memory.
    """
    with _LOCK:
        _HOLDERS.append(None)
        CheckpointFunction.apply = staticmethod(_called)  # found there by every `checkpoint`, however it was imported
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS.pop()
            if not _HOLDERS:
                del CheckpointFunction.apply  # what it inherits is there again


def _called(function: Callable[..., Any], preserve_random_state: bool, *arguments: Any) -> Any:
    return function(*arguments)
