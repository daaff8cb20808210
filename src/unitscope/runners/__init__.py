"""How shards are spread over processes and machines. A runner knows nothing of networks, images or atlases."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from unitscope.records import Shard

Result = TypeVar("Result", covariant=True)
Work = Callable[[Iterable[Shard]], Iterator[Result]]
"""A worker: takes shards as they come and gives one result for each, in the same order. It may look ahead."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The result of a shard that has none, and why."""

    shard: Shard
    reason: str


@runtime_checkable
class Mergeable(Protocol):
    """A result that can take in others of its kind, so that one result of several shards travels instead of several."""

    def merge(self, other: "Mergeable") -> None: ...


@runtime_checkable
class Runner(Protocol):
    """Gives every shard to some worker and the results to the caller, in any order, each shard once.

    Mergeable results may come merged. A shard whose worker is lost again and again gives a `Failed`. A runner whose workers are
    elsewhere says in an attribute `device` on what they compute, in torch's words.
    """

    def map(self, make_worker: Callable[[], Work[Result]], shards: Iterable[Shard]) -> Iterator[Result | Failed]:
        """The results of all shards. `make_worker` is called once in every process that works."""
        ...
