"""Lanes: threads side by side, each with a copy of the network of its own.

On a processor, several forward passes on one core each are done sooner than one pass spread over all cores: nobody waits for the
slowest thread of every layer. And what a pass computes doesn't depend on how many lanes there are.
"""

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import nn

from unitscope.layers import Trace, TracedLayer
from unitscope.networks.precision import exact_inference
from unitscope.session.replicas import Replicas, lowered, replicas
from unitscope.session.trials import Trial

MOST_LANES = 8
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt(3)

Item = TypeVar("Item")
Result = TypeVar("Result")
Submit = Callable[[Callable[[nn.Module, Any], Any], Any], "Future[Any]"]


class Networks:
    """The network's replicas, one a lane, made where and when they are first asked for; other processes make their own.

    With a `dtype`, the replicas compute in it.
    """

    def __init__(self, module: nn.Module, trace: Trace, chosen: Sequence[TracedLayer], dtype: torch.dtype | None = None) -> None:
        self.module, self.trace, self.chosen, self.dtype = module, trace, chosen, dtype

    @cached_property
    def _replicas(self) -> Replicas:
        return replicas(self.module, self.trace, self.chosen, lane_count(self.trace.input_format.device))

    @cached_property
    def lanes(self) -> list[nn.Module]:
        made = self._replicas.networks
        return made if self.dtype is None else [lowered(network, self.dtype) for network in made]

    @property
    def trial(self) -> Trial:
        """What was found out about the network on the way."""
        return self._replicas.trial

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("lanes", "_replicas")}


def lane_count(device: torch.device) -> int:
    """One lane a core on a processor, up to eight, which then share the cores; one lane on other devices."""
    return min(torch.get_num_threads(), MOST_LANES) if device.type == "cpu" else 1


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


@contextmanager
def lanes(networks: Sequence[nn.Module], device: torch.device) -> Iterator[Submit]:
    """For as long as the block lasts, a function that has a lane call a function with its network and one argument.

    torch's number of threads, which is one for the whole process, is shared out among the lanes meanwhile.
    """
    free: SimpleQueue[nn.Module] = SimpleQueue()
    for network in networks:
        free.put(network)

    def run(work: Callable[[nn.Module, Any], Any], item: Any) -> Any:
        network = free.get()
        try:
            return work(network, item)
        finally:
            free.put(network)

    before = torch.get_num_threads()
    share = max(1, before // len(networks))
    pool = ThreadPoolExecutor(len(networks), thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(share,))
    try:
        torch.set_num_threads(share)
        with ExitStack() as stack:
            stack.enter_context(memory_kept())
            for network in networks:
                stack.enter_context(exact_inference(network, device))
            yield lambda work, item: pool.submit(run, work, item)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def ahead(submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], most: int) -> Iterator[Result]:
    """The results of all items in order, with at most so many on the way at a time."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
