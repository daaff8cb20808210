"""Runners spread shards over processes and machines. A runner knows nothing of networks, images or atlases."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from unitscope.records import Shard

Result = TypeVar("Result", covariant=True)
ShardWorker = Callable[[Iterable[Shard]], Iterator[Result]]
"""A worker: it takes shards one by one and gives one result for each, in the same order. It may take shards ahead of the results."""


@dataclass(frozen=True, slots=True)
class FailedShard:
    """In place of a shard's result, the reason why there is none."""

    shard: Shard
    reason: str


@runtime_checkable
class Mergeable(Protocol):
    """A result that takes in others of its kind, so that a worker can send one for several shards."""

    def merge(self, other: "Mergeable") -> None: ...


@runtime_checkable
class Runner(Protocol):
    """Gives every shard to some worker and every result to the caller, in any order, each shard once.

    Mergeable results may come merged. A shard over which workers are lost repeatedly gives a `FailedShard`. A runner whose workers are in
    other processes has an attribute `device`: the type of device that they compute on, as torch names it.
    """

    def map(self, make_worker: Callable[[], ShardWorker[Result]], shards: Iterable[Shard]) -> Iterator[Result | FailedShard]:
        """The results of all shards. `make_worker` is called once in every process that works."""
        ...
