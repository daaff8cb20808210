"""Replicas that take turns, operator by operator: if they share state, that shows, and always in the same way."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.layers.tapping import tapped
from unitscope.layers.tracing import TracedLayer
from unitscope.networks.precision import exact_inference

log = logging.getLogger(__name__)

TURN_TIMEOUT_S = 3.0
"""How long a replica waits for its turn. One that waits for a lock which another replica holds never ends its own turn."""


@dataclass(slots=True)
class Turns:
    """Whose turn it is. Replicas that have ended get no turn. After a timeout nobody waits any more."""

    count: int
    _current: int = 0
    _ended: set[int] = field(default_factory=set)
    _timed_out: bool = False
    _condition: Condition = field(default_factory=Condition)

    def wait_for_first(self, replica: int) -> None:
        """Wait for the replica's first turn."""
        with self._condition:
            self._wait(replica)

    def next_turn(self, replica: int) -> None:
        """End the replica's turn, and wait for its next one."""
        with self._condition:
            self._end_turn(replica)
            self._wait(replica)

    def leave(self, replica: int) -> None:
        """End the replica's last turn."""
        with self._condition:
            self._ended.add(replica)
            self._end_turn(replica)

    def _end_turn(self, replica: int) -> None:
        if self._current == replica:
            followers = [(replica + step) % self.count for step in range(1, self.count + 1)]
            self._current = next((follower for follower in followers if follower not in self._ended), replica)
            self._condition.notify_all()

    def _wait(self, replica: int) -> None:
        may_go_on = self._timed_out or self._condition.wait_for(
            lambda: self._timed_out or self._current == replica, TURN_TIMEOUT_S
        )
        if not may_go_on:
            self._timed_out = True
            self._condition.notify_all()


class TakingTurns(TorchDispatchMode):
    """While this mode is on, every operator of its thread is followed by one of each other replica."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, which takes over a second, to keep it away from this mode

    def __init__(self, turns: Turns, replica: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._turns, self._replica = turns, replica

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._turns.next_turn(self._replica)
        return result


def run_interleaved(replicas: Sequence[nn.Module], images: Sequence[Tensor], layers: Sequence[TracedLayer]) -> list[list[Tensor]]:
    """Each replica's maps of its images, layer by layer, as far as it came: they take turns, each in a thread on one core."""
    turns = Turns(len(replicas))
    with _one_core_threads(len(replicas)) as pool:
        futures: list[Future[list[Tensor]]] = [
            pool.submit(_run, turns, number, replica, batch, layers)
            for number, (replica, batch) in enumerate(zip(replicas, images, strict=True))
        ]
        return [future.result() for future in futures]


def _run(turns: Turns, number: int, replica: nn.Module, images: Tensor, layers: Sequence[TracedLayer]) -> list[Tensor]:
    maps_by_layer: dict[int, Tensor] = {}

    def keep(index: int, maps: Tensor) -> None:
        maps_by_layer[index] = maps.clone()

    turns.wait_for_first(number)
    try:
        with (
            torch.no_grad(),
            exact_inference(replica, images.device),
            tapped(replica, layers, keep) as tap,
            TakingTurns(turns, number),
        ):
            tap.run(images)
    except Exception:  # an error is a difference as others are: layers are missing
        log.debug("a replica fails while it takes turns", exc_info=True)
    finally:
        turns.leave(number)
    read_count = next((index for index in range(len(layers)) if index not in maps_by_layer), len(layers))
    return [maps_by_layer[index] for index in range(read_count)]


@contextmanager
def _one_core_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operators use one core each."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "trial", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
