"""Replicas of a network that run in turn, operator by operator: if they share state, that shows, and always in the same way."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.layers.tapping import tapped
from unitscope.layers.tracing import TracedLayer
from unitscope.networks.precision import exact_inference

PATIENCE_S = 3.0
"""How long one waits for the other's operator: a replica that waits for a lock which the other holds never comes to its own."""


@dataclass(slots=True)
class Turns:
    """Whose turn it is. A replica that is through, or doesn't come to its operator, is waited for no longer."""

    count: int
    _turn: int = 0
    _through: set[int] = field(default_factory=set)
    _free: bool = False
    _changed: Condition = field(default_factory=Condition)

    def begin(self, number: int) -> None:
        """Wait for the first turn."""
        with self._changed:
            self._wait(number)

    def pass_on(self, number: int) -> None:
        """Give the turn to the next, and wait until it comes round."""
        with self._changed:
            self._give(number)
            self._wait(number)

    def end(self, number: int) -> None:
        """Have no more turns."""
        with self._changed:
            self._through.add(number)
            self._give(number)

    def _give(self, number: int) -> None:
        if self._turn == number:
            following = [(number + step) % self.count for step in range(1, self.count + 1)]
            self._turn = next((other for other in following if other not in self._through), number)
            self._changed.notify_all()

    def _wait(self, number: int) -> None:
        if not self._free and not self._changed.wait_for(lambda: self._free or self._turn == number, PATIENCE_S):
            self._free = True
            self._changed.notify_all()


class Alternating(TorchDispatchMode):
    """While it is on, every operator of this thread is followed by one of the others'."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self, turns: Turns, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._turns, self._number = turns, number

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._turns.pass_on(self._number)
        return result


def side_by_side(networks: Sequence[nn.Module], images: Sequence[Tensor], layers: Sequence[TracedLayer]) -> list[list[Tensor]]:
    """Each network's maps for its images, layer by layer, as far as it came: run in turn, a thread and one core each."""
    turns = Turns(len(networks))
    with _threads(len(networks)) as pool:
        waiting: list[Future[list[Tensor]]] = [
            pool.submit(_run, turns, number, network, batch, layers)
            for number, (network, batch) in enumerate(zip(networks, images, strict=True))
        ]
        return [future.result() for future in waiting]


def _run(turns: Turns, number: int, network: nn.Module, images: Tensor, layers: Sequence[TracedLayer]) -> list[Tensor]:
    maps: dict[int, Tensor] = {}
    turns.begin(number)
    try:
        # An error is a difference like others: the layers that are missing show it.
        with suppress(Exception), torch.no_grad(), exact_inference(network, images.device):
            tap = tapped(network, layers, lambda layer, found: maps.update({layer: found.clone()}))
            with tap as tapping, Alternating(turns, number):
                tapping.run(images)
    finally:
        turns.end(number)
    read = next((place for place in range(len(layers)) if place not in maps), len(layers))
    return [maps[place] for place in range(read)]


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "trial", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
