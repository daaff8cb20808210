"""Lanes: threads that each have a network, and leave the process as they found it."""

import threading
import time
from pathlib import Path

import pytest
import torch
from interruptions import bytes_of
from networks import small_network
from torch import Tensor, nn

import unitscope
from unitscope.session.lanes import ahead, lanes


def test_every_lane_has_its_own_network_at_any_moment() -> None:
    networks, used, clashes = [nn.Identity(), nn.Identity()], set(), []

    def work(network: nn.Module, item: int) -> int:
        clashes.append(id(network) in used)
        used.add(id(network))
        time.sleep(0.002)
        used.discard(id(network))
        return item

    with lanes(networks, torch.device("cpu")) as submit:
        results = list(ahead(lambda item: submit(work, item), range(40), most=5))
    assert results == list(range(40))
    assert not any(clashes)


def test_the_threads_of_torch_are_shared_out_and_given_back() -> None:
    before, names = torch.get_num_threads(), {thread.name for thread in threading.enumerate()}
    torch.set_num_threads(2)
    try:
        with lanes([nn.Identity(), nn.Identity()], torch.device("cpu")) as submit:
            assert submit(lambda *_: torch.get_num_threads(), None).result() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), lanes([nn.Identity()], torch.device("cpu")) as submit:
            submit(lambda _, item: 1 / item, 0).result()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {thread.name for thread in threading.enumerate()} == names


def test_no_more_than_so_many_are_on_the_way() -> None:
    taken: list[int] = []

    def items() -> object:
        for item in range(10):
            taken.append(item)
            yield item

    with lanes([nn.Identity()], torch.device("cpu")) as submit:
        results = ahead(lambda item: submit(lambda _, one: one, item), items(), most=3)
        next(results)
        assert len(taken) == 3
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
def test_an_atlas_does_not_depend_on_the_number_of_lanes(tmp_path: Path, threads: int) -> None:
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
