"""The runner that works in the caller's process."""

from collections.abc import Callable, Iterable, Iterator

from unitscope.records import Shard
from unitscope.runners import Result, ShardWorker


class LocalRunner:
    """One worker, in this process, shard after shard."""

    def map(self, make_worker: Callable[[], ShardWorker[Result]], shards: Iterable[Shard]) -> Iterator[Result]:
        yield from make_worker()(shards)
