"""How shards are spread over processes and machines. A runner knows nothing of networks, images or atlases."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

from unitscope.records import Shard

Result = TypeVar("Result", covariant=True)
Work = Callable[[Iterable[Shard]], Iterator[Result]]
"""A worker: takes shards as they come and gives one result for each, in the same order. It may look ahead."""


@runtime_checkable
class Runner(Protocol):
    """Gives every shard to some worker and the results to the caller, in any order, each shard once."""

    def map(self, make_worker: Callable[[], Work[Result]], shards: Iterable[Shard]) -> Iterator[Result]:
        """The results of all shards. `make_worker` is called once in every process that works."""
        ...
