"""What a worker gives for shards: every unit's spatial maxima, whatever way they are found, and nothing of a shard that fails."""

import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn

from unitscope.images import as_source
from unitscope.layers import choose_layers, trace
from unitscope.records import Shard
from unitscope.runners import FailedShard
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.worker import Worker
from unitscope.session.loader import Loader
from unitscope.session.session import Session


def worker_for(network: nn.Module, images: Tensor, batch_size: int = 32, k: int = 9, per_image: int = 1) -> Worker:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    traced = trace(network, torch.zeros(1, *shape))
    session = Session(network, traced, tuple(choose_layers(traced)), Loader(as_source(images), None, shape))
    return Worker(session, ScanPlan(len(images), k, candidates=k, per_image=per_image, batch_size=batch_size))


def result_of(worker: Worker, image_count: int) -> PartialResult:
    (result,) = worker([Shard(0, 0, image_count)])
    assert isinstance(result, PartialResult)
    return result


def assert_equal_results(left: PartialResult, right: PartialResult) -> None:
    for name in ("values", "images", "cells"):
        assert torch.equal(getattr(left.top_k, name).nan_to_num(0), getattr(right.top_k, name).nan_to_num(0))
    for name in ("count", "mean", "squares"):
        assert torch.equal(getattr(left.statistics.total(), name), getattr(right.statistics.total(), name))
    assert torch.equal(left.sample.values, right.sample.values)
    assert torch.equal(left.sample.cells, right.sample.cells)


@pytest.mark.parametrize("network", [small_network(), Reused()])
def test_pooling_finds_what_comparing_finds(network: nn.Module) -> None:
    """Of images among which one is spoilt maps are compared, which knows NaN; of others they are pooled."""
    size = 14 if isinstance(network, nn.Sequential) else 6
    images = torch.randn(8, 3, size, size)
    spoilt = torch.cat([images, torch.full((1, 3, size, size), torch.nan)])
    pooled, compared = worker_for(network.eval(), images), worker_for(network.eval(), spoilt, batch_size=16)
    of_images, of_all = result_of(pooled, 8), result_of(compared, 9)
    in_sample = of_all.sample.images < 8
    of_all.sample.values, of_all.sample.cells = of_all.sample.values[in_sample], of_all.sample.cells[in_sample]
    assert_equal_results(of_images, of_all)
    assert of_all.statistics.extremes is not None
    assert (of_all.statistics.extremes.nan_images == 1).all()


def test_nan_is_counted_and_takes_nothing_from_other_images() -> None:
    images = torch.randn(8, 3, 14, 14)
    images[3, 0, 5, 5] = torch.nan
    result = result_of(worker_for(small_network().eval(), images), 8)
    assert result.statistics.extremes is not None
    assert (result.statistics.extremes.nan_images == 1).all()
    without = result_of(worker_for(small_network().eval(), images[[0, 1, 2, 4, 5, 6, 7]]), 7)
    kept = result.top_k.values[(result.top_k.images != 3) & ~result.top_k.values.isnan()]
    torch.testing.assert_close(kept, without.top_k.values[~without.top_k.values.isnan()])  # in another batch


class Fragile(nn.Module):
    """Fails where a pixel is above a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.same.weight)

    def forward(self, images: Tensor) -> Tensor:
        if (images > 100).any():
            raise RuntimeError("too bright")
        return self.same(images)


def test_a_shard_that_fails_in_its_middle_leaves_nothing_behind() -> None:
    """Its first images are the brightest; they must not keep others out, since it may come back as another."""
    images = torch.arange(1.0, 9)[:, None, None, None].flip(0).clone()
    images[3] = 200
    worker = worker_for(Fragile(), images, batch_size=1, k=2)
    failed, result = worker([Shard(0, 0, 4), Shard(1, 4, 8)])
    assert failed == FailedShard(Shard(0, 0, 4), "RuntimeError: too bright")
    assert isinstance(result, PartialResult)
    assert result.top_k.values.tolist() == [[4.0, 3.0]]
