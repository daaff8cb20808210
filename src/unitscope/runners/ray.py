"""The runner that spreads shards over a Ray cluster: workers that come and go, and a caller that loses nothing."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from time import monotonic, sleep
from typing import Any

from unitscope.errors import UnitscopeError
from unitscope.records import Shard
from unitscope.runners import Failed, Mergeable, Result, Work

TRIES = 3
CHUNK_S = 30.0
LARGEST_CHUNK = 64
LOOK_AGAIN_S = 5.0


@dataclass(slots=True)
class Chunk:
    """Shards that one worker does in one go. `lost` counts the workers that were lost over it."""

    shards: list[Shard]
    lost: int = 0
    started: float = 0.0


@dataclass(slots=True)
class Hand:
    """One worker process: Ray's handle for it, and the chunk that it is busy with, None while it starts or waits."""

    actor: Any
    chunk: Chunk | None = None


class RayRunner:
    """One worker for every `cpus_per_worker` cores of the cluster, or for every GPU with `gpus_per_worker=1`.

    `address` is that of a running cluster (`auto` finds the one that this machine belongs to); without one Ray is started here.
    Shards are handed out as workers come free. A lost worker's shards go to others; a shard over which three workers were lost
    gives a `Failed`. Workers that join later are taken on.

    Raises `UnitscopeError` where Ray isn't installed, or no cluster is found.
    """

    def __init__(self, address: str | None = None, *, cpus_per_worker: int = 1, gpus_per_worker: float = 0) -> None:
        if find_spec("ray") is None:
            raise UnitscopeError("this needs Ray: pip install 'unitscope[ray]'")
        if cpus_per_worker < 1:
            raise UnitscopeError(f"cpus_per_worker must be at least 1, not {cpus_per_worker}")
        self.address, self.cpus_per_worker, self.gpus_per_worker = address, cpus_per_worker, gpus_per_worker

    @property
    def device(self) -> str:
        """Where workers compute."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def map(self, make_worker: Callable[[], Work[Result]], shards: Iterable[Shard]) -> Iterator[Result | Failed]:
        with _connected(self.address) as ray:
            crew = Crew(ray, ray.put(make_worker), self)
            queue = Queue(shards)
            try:
                yield from crew.results(queue)
            finally:
                crew.dismiss()


@dataclass(slots=True)
class Queue:
    """Shards that wait, and those that must be done again; chunks grow until one takes half a minute, and shrink at the end."""

    _shards: Iterable[Shard]
    _ready: deque[Shard] = field(default_factory=deque)
    _again: deque[Chunk] = field(default_factory=deque)
    _length: int = 1

    def __post_init__(self) -> None:
        self._shards = iter(self._shards)

    def take(self, workers: int) -> Chunk | None:
        """The next chunk; None where nothing waits."""
        if self._again:
            return self._again.popleft()
        enough = 2 * workers * self._length
        self._ready.extend(islice(self._shards, max(0, enough - len(self._ready))))
        length = min(self._length, -(-len(self._ready) // (2 * workers)))
        return Chunk([self._ready.popleft() for _ in range(length)]) if self._ready else None

    def done(self, chunk: Chunk) -> None:
        """Learn from a finished chunk how long the next ones may be."""
        shard_s = (monotonic() - chunk.started) / len(chunk.shards)
        self._length = max(1, min(2 * self._length, LARGEST_CHUNK, int(CHUNK_S / max(shard_s, 1e-3))))

    def lost(self, chunk: Chunk) -> Iterator[Failed]:
        """Take back the chunk of a lost worker, one shard at a time, so that the one that does it shows; or give it up."""
        if len(chunk.shards) == 1 and chunk.lost + 1 >= TRIES:
            yield Failed(chunk.shards[0], f"its worker was lost {TRIES} times")
            return
        self._again.extend(Chunk([shard], chunk.lost + 1) for shard in chunk.shards)


class Crew:
    """The worker processes of one run."""

    def __init__(self, ray: Any, make_worker: Any, runner: RayRunner) -> None:
        self._ray, self._make_worker, self._runner = ray, make_worker, runner
        self._hands: dict[Any, Hand] = {}  # by what they are to answer
        self._free: list[Hand] = []
        self._looked = -LOOK_AGAIN_S
        self._stillborn, self._worked = 0, False
        # Ray gives a worker as many threads as cores, and doesn't start it again by itself.
        self._kind = ray.remote(num_cpus=runner.cpus_per_worker, num_gpus=runner.gpus_per_worker, max_restarts=0)(Hired)

    def results(self, queue: Queue) -> Iterator[Any]:
        """All results, as they come."""
        while True:
            self._hire()
            self._hand_out(queue)
            if self._free and not any(hand.chunk for hand in self._hands.values()):
                return
            if not self._hands:
                self._wait_for_room()
                continue
            answered, _ = self._ray.wait(list(self._hands), num_returns=1, timeout=LOOK_AGAIN_S)
            for answer in answered:
                yield from self._taken(answer, self._hands.pop(answer), queue)

    def _wait_for_room(self) -> None:
        """Machines that were there may come back; ones that never were are not waited for."""
        if not self._worked:
            raise UnitscopeError("the Ray cluster has no room for a single worker; lower --cpus-per-worker")
        sleep(LOOK_AGAIN_S)

    def dismiss(self) -> None:
        """End all workers."""
        for hand in (*self._hands.values(), *self._free):
            self._ray.kill(hand.actor)

    def _hire(self) -> None:
        """As many workers as the cluster has room for; looked at now and then, since nodes come and go."""
        if monotonic() - self._looked < LOOK_AGAIN_S:
            return
        self._looked = monotonic()
        there = self._ray.cluster_resources()
        room = int(there.get("CPU", 0)) // self._runner.cpus_per_worker
        if self._runner.gpus_per_worker:
            room = min(room, int(there.get("GPU", 0) / self._runner.gpus_per_worker))
        for _ in range(room - len(self._hands) - len(self._free)):
            hand = Hand(self._kind.remote(self._make_worker))
            self._hands[hand.actor.ready.remote()] = hand

    def _hand_out(self, queue: Queue) -> None:
        while self._free and (chunk := queue.take(len(self._hands) + len(self._free))):
            hand = self._free.pop()
            hand.chunk, chunk.started = chunk, monotonic()
            self._hands[hand.actor.run.remote(chunk.shards)] = hand

    def _taken(self, answer: Any, hand: Hand, queue: Queue) -> Iterator[Any]:
        """What a worker answered. After an error that isn't the work's own the worker is not used again: what it has seen may be lost."""
        chunk, hand.chunk = hand.chunk, None
        try:
            results = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._ray.kill(hand.actor)
            self._looked = -LOOK_AGAIN_S
            if chunk:
                yield from queue.lost(chunk)
                return
            self._stillborn += 1
            if self._stillborn >= TRIES:
                raise UnitscopeError(f"no worker could be started: {_last_line(error)}") from error
            return
        self._free.append(hand)
        self._stillborn, self._worked = 0, True
        if chunk:
            queue.done(chunk)
            yield from results


class Hired:
    """What runs in a worker process."""

    def __init__(self, make_worker: Callable[[], Work[Any]]) -> None:
        self._work = make_worker()

    def ready(self) -> None:
        """Answers when the worker is made."""

    def run(self, shards: list[Shard]) -> list[Any]:
        """The results of some shards, merged where they can be."""
        whole, others = None, []
        for result in self._work(shards):
            if not isinstance(result, Mergeable):
                others.append(result)
            elif whole is None:
                whole = result
            else:
                whole.merge(result)
        return others if whole is None else [whole, *others]


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected for as long as the block lasts; a connection that was there before stays."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or every start warns of a change to come
    import ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(
                address=address, include_dashboard=None if address else False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnitscopeError(f"there is no Ray cluster at {address or 'this machine'!r}: {_last_line(error)}") from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
