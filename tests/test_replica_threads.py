"""Replica threads: each call has a replica of its own, and the process is afterwards as it was."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interruptions import bytes_of
from networks import small_network
from torch import Tensor, nn

import unitscope
from unitscope.session.replica_threads import replica_threads, results_in_order

CPU = torch.device("cpu")


def item_of(replica: nn.Module, item: int) -> int:
    return item


def test_no_replica_is_used_twice_at_any_moment() -> None:
    in_use: set[int] = set()
    clashes = []

    def use(replica: nn.Module, item: int) -> int:
        clashes.append(id(replica) in in_use)
        in_use.add(id(replica))
        time.sleep(0.002)
        in_use.discard(id(replica))
        return item

    with replica_threads([nn.Identity(), nn.Identity()], CPU) as threads:
        results = list(results_in_order(lambda item: threads.submit(use, item), range(40), max_pending=5))
    assert results == list(range(40))
    assert not any(clashes)


def test_the_threads_of_torch_are_shared_out_and_given_back() -> None:
    count_before, names_before = torch.get_num_threads(), {thread.name for thread in threading.enumerate()}
    torch.set_num_threads(2)
    try:
        with replica_threads([nn.Identity(), nn.Identity()], CPU) as threads:
            assert threads.submit(lambda replica: torch.get_num_threads()).result() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), replica_threads([nn.Identity()], CPU) as threads:
            threads.submit(lambda replica, number: 1 / number, 0).result()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(count_before)
    assert {thread.name for thread in threading.enumerate()} == names_before


def test_no_more_than_so_many_are_pending() -> None:
    submitted: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            submitted.append(item)
            yield item

    with replica_threads([nn.Identity()], CPU) as threads:
        results = results_in_order(lambda item: threads.submit(item_of, item), items(), max_pending=3)
        next(results)
        assert len(submitted) == 3
        assert list(results) == list(range(1, 10))


class Counting(nn.Module):
    """Keeps in itself what it saw last, as careless networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()
        self.last: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.last = images
        time.sleep(0.001)
        return self.network(self.last)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_atlas_does_not_depend_on_the_number_of_replicas(tmp_path: Path, threads: int) -> None:
    torch.manual_seed(0)
    network, images, before = Counting(), torch.randn(75, 3, 14, 14), torch.get_num_threads()
    tables = []
    for count in (1, threads):
        torch.set_num_threads(count)
        try:
            unitscope.scan(network, images, tmp_path / f"{count} {len(tables)}", batch_size=4)
        finally:
            torch.set_num_threads(before)
        tables.append(bytes_of(tmp_path / f"{count} {len(tables)}"))
    assert tables[0] == tables[1]
    assert network.last is None or network.last.shape[0] <= 2  # of the passes that look at the network itself
