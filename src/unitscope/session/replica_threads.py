"""Threads side by side, each with a replica of the network of its own.

On a processor, several forward passes on one core each are done sooner than one pass spread over all cores: nobody waits for the
slowest thread of every layer. And what a pass computes doesn't depend on how many threads there are.
"""

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from unitscope.networks.precision import exact_inference

MAX_REPLICAS = 8
"""Beyond so many, passes on one core each wait for memory more than they compute."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt(3)

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def replica_count(device: torch.device) -> int:
    """One replica a core on a processor, up to eight, which then share the cores; one on other devices."""
    return min(torch.get_num_threads(), MAX_REPLICAS) if device.type == "cpu" else 1


@dataclass(frozen=True, slots=True)
class ReplicaThreads:
    """As many threads as replicas. A call gets a replica that no other call has meanwhile."""

    pool: ThreadPoolExecutor
    idle_replicas: SimpleQueue[nn.Module]

    def submit(
        self,
        function: Callable[Concatenate[nn.Module, Arguments], Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> "Future[Result]":
        """Have a thread call the function with its replica and these arguments."""
        return self.pool.submit(partial(self._call, function, *args, **kwargs))

    def _call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        replica = self.idle_replicas.get()
        try:
            return function(replica, *args, **kwargs)
        finally:
            self.idle_replicas.put(replica)


@contextmanager
def replica_threads(replicas: Sequence[nn.Module], device: torch.device) -> Iterator[ReplicaThreads]:
    """The replicas in threads of their own, in full precision, for as long as the block lasts.

    torch's number of threads, which is one for the whole process, is shared out among them meanwhile.
    """
    threads_before = torch.get_num_threads()
    threads_each = max(1, threads_before // len(replicas))
    pool = ThreadPoolExecutor(len(replicas), "replica", initializer=torch.set_num_threads, initargs=(threads_each,))
    idle_replicas: SimpleQueue[nn.Module] = SimpleQueue()
    for replica in replicas:
        idle_replicas.put(replica)
    try:
        torch.set_num_threads(threads_each)
        with ExitStack() as stack:
            stack.enter_context(memory_kept())
            for replica in replicas:
                stack.enter_context(exact_inference(replica, device))
            yield ReplicaThreads(pool, idle_replicas)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads_before)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Freed memory stays with the process for as long as the block lasts, where that is the C library's to say.

    A layer's map is made and freed in every pass. glibc gives blocks of that size back to the system at once, and to have each of
    their pages cleared anew costs as much as a convolution.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    try:
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(MMAP_THRESHOLD, 2**30)
        yield
    finally:  # as in any process that has freed a large block
        library.mallopt(TRIM_THRESHOLD, 2**26)
        library.mallopt(MMAP_THRESHOLD, 2**25)
        library.malloc_trim(0)


def results_in_order(submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], max_pending: int) -> Iterator[Result]:
    """The results of all items in order, with at most so many submitted and not yet taken."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
