"""The contract of runners: each shard goes to some worker and each result to the caller, once. And the parts that need no cluster."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from unitscope.errors import UnitscopeError
from unitscope.records import Shard
from unitscope.runners import FailedShard, Runner, ShardWorker
from unitscope.runners.local import LocalRunner
from unitscope.runners.ray import CHUNK_S, MAX_CHUNK_SHARDS, Chunk, RayRunner, ShardQueue

SHARDS = [Shard(number, number * 10, number * 10 + 10) for number in range(7)]


def make_numbering() -> ShardWorker[int]:
    def work(shards: Iterable[Shard]) -> Iterator[int]:
        for shard in shards:
            yield shard.number

    return work


def make_failing() -> ShardWorker[int]:
    def work(shards: Iterable[Shard]) -> Iterator[int]:
        for shard in shards:
            if shard.number == 3:
                raise ZeroDivisionError("shard 3")
            yield shard.number

    return work


class ShardNumbers:
    """A result that can be merged."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def merge(self, other: "ShardNumbers") -> None:
        self.numbers += other.numbers


def make_merging() -> ShardWorker[ShardNumbers | FailedShard]:
    """Shard 3 fails."""

    def work(shards: Iterable[Shard]) -> Iterator[ShardNumbers | FailedShard]:
        for shard in shards:
            yield FailedShard(shard, "too bright") if shard.number == 3 else ShardNumbers(shard.number)

    return work


class RunnerContract:
    """Subclasses give a runner."""

    def runner(self) -> Runner:
        raise NotImplementedError

    def results(self, make_worker: Callable[[], ShardWorker[Any]]) -> list[Any]:
        return list(self.runner().map(make_worker, SHARDS))

    def test_it_is_a_runner(self) -> None:
        assert isinstance(self.runner(), Runner)

    def test_every_shard_gives_one_result(self) -> None:
        assert sorted(self.results(make_numbering)) == list(range(7))

    def test_no_shards_give_no_results(self) -> None:
        assert list(self.runner().map(make_numbering, [])) == []

    def test_a_workers_error_reaches_the_caller(self) -> None:
        with pytest.raises(ZeroDivisionError, match="shard 3"):
            self.results(make_failing)

    def test_mergeable_results_hold_every_shard_once_and_failed_ones_come_alone(self) -> None:
        results = self.results(make_merging)
        numbers = [number for result in results if isinstance(result, ShardNumbers) for number in result.numbers]
        assert sorted(numbers) == [0, 1, 2, 4, 5, 6]
        assert [result for result in results if isinstance(result, FailedShard)] == [FailedShard(SHARDS[3], "too bright")]


class TestLocalRunner(RunnerContract):
    def runner(self) -> Runner:
        return LocalRunner()


# ── what the runner on Ray does without a cluster ───────────────────────────────────────────────────────────────────


def chunk_lengths(shard_s: float, shard_count: int) -> list[int]:
    """The lengths of the chunks that one worker gets, one after the other, when every shard takes so many seconds."""
    now_s = 0.0
    queue = ShardQueue(iter([Shard(number, number, number + 1) for number in range(shard_count)]), lambda: now_s)
    lengths = []
    while chunk := queue.take(worker_count=1):
        lengths.append(len(chunk.shards))
        now_s += shard_s * len(chunk.shards)
        queue.finish(chunk)
    assert sum(lengths) == shard_count
    return lengths


def test_chunks_double_until_one_takes_half_a_minute_and_shrink_at_the_end() -> None:
    lengths = chunk_lengths(shard_s=CHUNK_S / 10, shard_count=60)
    assert lengths[:6] == [1, 2, 4, 8, 10, 10]
    assert lengths == lengths[:6] + sorted(lengths[6:], reverse=True)
    assert lengths[-1] == 1


def test_a_chunk_is_one_shard_where_that_takes_longer_and_no_more_than_so_many_where_it_takes_no_time() -> None:
    assert chunk_lengths(shard_s=2 * CHUNK_S, shard_count=5) == [1] * 5
    assert max(chunk_lengths(shard_s=0.0, shard_count=1_000)) == MAX_CHUNK_SHARDS


def test_a_lost_chunk_comes_back_shard_by_shard_and_a_shard_that_loses_three_workers_fails() -> None:
    queue = ShardQueue(iter([]), lambda: 0.0)
    assert list(queue.give_back(Chunk(SHARDS[:2]))) == []
    first, second = queue.take(worker_count=1), queue.take(worker_count=1)
    assert first is not None
    assert second is not None
    assert [first.shards, second.shards] == [SHARDS[:1], SHARDS[1:2]]
    assert list(queue.give_back(first)) == []
    first = queue.take(worker_count=1)
    assert first is not None
    assert list(queue.give_back(first)) == [FailedShard(SHARDS[0], "its worker was lost 3 times")]
    assert queue.take(worker_count=1) is None


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it isn't installed
    with pytest.raises(UnitscopeError, match=r"this needs Ray: pip install 'unitscope\[ray\]'"):
        RayRunner()
