"""The runner that spreads shards over a Ray cluster. Workers and machines may come and go; no shard is lost."""

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
from unitscope.runners import FailedShard, Mergeable, Result, ShardWorker

log = logging.getLogger(__name__)

MAX_LOST_WORKERS = 3
"""Over one shard, or in a row at their start, before it is given up: a machine is lost now and then, a shard that kills its worker kills
every one."""
CHUNK_S = 30.0
"""How long one chunk should take: long beside a message between machines, and no great loss where a worker is lost."""
MAX_CHUNK_SHARDS = 64
"""However fast they are, since the results of a chunk, and so the progress, come together."""
POLL_S = 5.0
"""How often the cluster's resources are read."""


class RayRunner:
    """One worker for every `cpus_per_worker` cores of the cluster, or for every GPU with `gpus_per_worker=1`.

    `address` is that of a running cluster (`auto` finds the one that this machine belongs to). Without an address Ray is started on this
    machine. Idle workers get the next shards. The shards of a lost worker go to other workers; a shard over which three workers were
    lost gives a `FailedShard`. Workers start on machines that join later, too.

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
        """The type of device that workers compute on."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def map(self, make_worker: Callable[[], ShardWorker[Result]], shards: Iterable[Shard]) -> Iterator[Result | FailedShard]:
        with _connected_ray(self.address) as ray:
            pool = WorkerPool(ray, ray.put(make_worker), self)
            queue = ShardQueue(iter(shards))
            try:
                yield from pool.results(queue)
            finally:
                pool.stop()


@dataclass(slots=True)
class Chunk:
    """Shards that a worker does in one call. `lost_workers` counts the workers that were lost over it."""

    shards: list[Shard]
    lost_workers: int = 0
    started_s: float = 0.0


@dataclass(slots=True)
class ShardQueue:
    """The shards that wait, in chunks. Chunks grow until one takes half a minute, and shrink when few shards are left."""

    _unread: Iterator[Shard]
    _clock: Callable[[], float] = monotonic
    _waiting: deque[Shard] = field(default_factory=deque)
    _returned: deque[Chunk] = field(default_factory=deque)
    _chunk_shards: int = 1

    def take(self, worker_count: int) -> Chunk | None:
        """The next chunk, which starts now; None where nothing waits."""
        chunk = self._returned.popleft() if self._returned else self._next_chunk(worker_count)
        if chunk is not None:
            chunk.started_s = self._clock()
        return chunk

    def _next_chunk(self, worker_count: int) -> Chunk | None:
        target_count = 2 * worker_count * self._chunk_shards
        self._waiting.extend(islice(self._unread, max(0, target_count - len(self._waiting))))
        length = min(self._chunk_shards, -(-len(self._waiting) // (2 * worker_count)))
        return Chunk([self._waiting.popleft() for _ in range(length)]) if self._waiting else None

    def finish(self, chunk: Chunk) -> None:
        """Set the length of the next chunks by the time that this one took."""
        shard_s = (self._clock() - chunk.started_s) / len(chunk.shards)
        self._chunk_shards = max(1, min(2 * self._chunk_shards, MAX_CHUNK_SHARDS, int(CHUNK_S / max(shard_s, 1e-3))))

    def give_back(self, chunk: Chunk) -> Iterator[FailedShard]:
        """Take back the chunk of a lost worker, as one chunk a shard to find the shard at fault; or fail that shard."""
        if len(chunk.shards) == 1 and chunk.lost_workers + 1 >= MAX_LOST_WORKERS:
            yield FailedShard(chunk.shards[0], f"its worker was lost {MAX_LOST_WORKERS} times")
            return
        self._returned.extend(Chunk([shard], chunk.lost_workers + 1) for shard in chunk.shards)


@dataclass(slots=True)
class WorkerHandle:
    """A worker process: Ray's actor, and the chunk that it works on, None while it starts or is idle."""

    actor: Any
    chunk: Chunk | None = None


class WorkerPool:
    """The worker processes of one run."""

    def __init__(self, ray: Any, make_worker: Any, runner: RayRunner) -> None:
        self._ray, self._make_worker, self._runner = ray, make_worker, runner
        self._busy: dict[Any, WorkerHandle] = {}  # by Ray's reference to their next answer
        self._idle: list[WorkerHandle] = []
        self._polled_s = -POLL_S
        self._failed_starts, self._any_started = 0, False
        # Ray gives a worker as many threads as cores. It must not restart one, since that would have lost its state.
        self._actor_class = ray.remote(num_cpus=runner.cpus_per_worker, num_gpus=runner.gpus_per_worker, max_restarts=0)(
            RayWorker
        )

    def results(self, queue: ShardQueue) -> Iterator[Any]:
        """All results, as they come."""
        while True:
            self._start_workers()
            self._assign_chunks(queue)
            if self._idle and not any(worker.chunk for worker in self._busy.values()):
                return
            if not self._busy:
                self._wait_for_machines()
                continue
            answers, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=POLL_S)
            for answer in answers:
                yield from self._results_of(answer, self._busy.pop(answer), queue)

    def stop(self) -> None:
        """End all workers."""
        for worker in (*self._busy.values(), *self._idle):
            self._ray.kill(worker.actor)

    def _wait_for_machines(self) -> None:
        """Machines that had workers may come back. Where no worker ever started, nothing is waited for."""
        if not self._any_started:
            raise UnitscopeError("the Ray cluster has no room for a single worker; lower --cpus-per-worker")
        sleep(POLL_S)

    def _start_workers(self) -> None:
        """Start as many workers as the cluster has room for; from time to time, since machines come and go."""
        if monotonic() - self._polled_s < POLL_S:
            return
        self._polled_s = monotonic()
        for _ in range(self._room() - len(self._busy) - len(self._idle)):
            worker = WorkerHandle(self._actor_class.remote(self._make_worker))
            self._busy[worker.actor.ready.remote()] = worker

    def _room(self) -> int:
        """How many workers the cluster has room for."""
        resources = self._ray.cluster_resources()
        room = int(resources.get("CPU", 0)) // self._runner.cpus_per_worker
        if self._runner.gpus_per_worker:
            room = min(room, int(resources.get("GPU", 0) / self._runner.gpus_per_worker))
        return room

    def _assign_chunks(self, queue: ShardQueue) -> None:
        while self._idle and (chunk := queue.take(len(self._busy) + len(self._idle))):
            worker = self._idle.pop()
            worker.chunk = chunk
            self._busy[worker.actor.run.remote(chunk.shards)] = worker

    def _results_of(self, answer: Any, worker: WorkerHandle, queue: ShardQueue) -> Iterator[Any]:
        """The results in a worker's answer. A worker that was lost is not used again: its state may be lost."""
        chunk, worker.chunk = worker.chunk, None
        try:
            results = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            log.debug("a worker was lost", exc_info=True)
            yield from self._replace(worker, chunk, queue, error)
            return
        self._idle.append(worker)
        self._failed_starts, self._any_started = 0, True
        if chunk:
            queue.finish(chunk)
            yield from results

    def _replace(self, worker: WorkerHandle, chunk: Chunk | None, queue: ShardQueue, error: Exception) -> Iterator[FailedShard]:
        """End a lost worker, so that another one starts, and give its chunk back."""
        self._ray.kill(worker.actor)
        self._polled_s = -POLL_S
        if chunk:
            yield from queue.give_back(chunk)
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_LOST_WORKERS:
            raise UnitscopeError(f"no worker could be started: {_last_line(error)}") from error


class RayWorker:
    """The actor: it runs a `ShardWorker` in a process of the cluster."""

    def __init__(self, make_worker: Callable[[], ShardWorker[Any]]) -> None:
        self._worker = make_worker()

    def ready(self) -> None:
        """Answers once the worker is made."""

    def run(self, shards: list[Shard]) -> list[Any]:
        """The results of some shards; the mergeable ones are merged to one."""
        merged, unmergeable = None, []
        for result in self._worker(shards):
            if not isinstance(result, Mergeable):
                unmergeable.append(result)
            elif merged is None:
                merged = result
            else:
                merged.merge(result)
        return unmergeable if merged is None else [merged, *unmergeable]


@contextmanager
def _connected_ray(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected while the block lasts. A connection that the caller had stays."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or every start warns of a change to come
    import ray

    had_connection = ray.is_initialized()
    if not had_connection:
        try:
            ray.init(
                address=address, include_dashboard=None if address else False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnitscopeError(f"there is no Ray cluster at {address or 'this machine'!r}: {_last_line(error)}") from error
    try:
        yield ray
    finally:
        if not had_connection:
            ray.shutdown()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
