"""What every runner must do: each shard to some worker, each result to the caller, once."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from unitscope.records import Shard
from unitscope.runners import Runner, Work
from unitscope.runners.local import LocalRunner

SHARDS = [Shard(number, number * 10, number * 10 + 10) for number in range(7)]


def make_numbering() -> Work[int]:
    def work(shards: Iterable[Shard]) -> Iterator[int]:
        for shard in shards:
            yield shard.number

    return work


def make_failing() -> Work[int]:
    def work(shards: Iterable[Shard]) -> Iterator[int]:
        for shard in shards:
            if shard.number == 3:
                raise ZeroDivisionError("shard 3")
            yield shard.number

    return work


class RunnerContract:
    """Subclasses make a runner."""

    def runner(self) -> Runner:
        raise NotImplementedError

    def results(self, make_worker: Callable[[], Work[int]]) -> list[int]:
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


class TestHere(RunnerContract):
    def runner(self) -> Runner:
        return LocalRunner()
