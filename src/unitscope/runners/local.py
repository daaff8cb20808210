"""The runner that works in this process."""

from collections.abc import Callable, Iterable, Iterator

from unitscope.records import Shard
from unitscope.runners import Result, Work


class LocalRunner:
    """One worker, in this process, shard after shard."""

    def map(self, make_worker: Callable[[], Work[Result]], shards: Iterable[Shard]) -> Iterator[Result]:
        yield from make_worker()(shards)
