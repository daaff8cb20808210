"""What a worker does with a batch: the fast way and the plain one agree, and the plain one never waits for a device."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.images import as_source
from unitscope.layers import choose_layers, trace
from unitscope.records import Shard
from unitscope.runners import Failed
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.worker import Job, Worker
from unitscope.session.lanes import Networks
from unitscope.session.loader import Loaded, Loader

SHARD = Shard(0, 0, 8)


def worker_for(network: nn.Module, images: Tensor, per_image: int = 1) -> tuple[Worker, list[Loaded]]:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    loader = Loader(as_source(images), None, shape)
    traced = trace(network, torch.zeros(1, *shape))
    chosen = choose_layers(traced)
    plan = ScanPlan(tuple(layer.name for layer in chosen), len(images), per_image=per_image)
    job = Job(plan, traced, tuple(chosen), loader, 0)
    return Worker(Networks(network, traced, chosen), job), [loader.load(image) for image in range(len(images))]


@pytest.mark.parametrize("network", [small_network(), Reused()])
def test_the_fast_way_reads_what_the_plain_one_reads(network: nn.Module) -> None:
    size = 14 if isinstance(network, nn.Sequential) else 6
    worker, loaded = worker_for(network.eval(), torch.randn(8, 3, size, size))
    fast, plain = worker._pooled(network, SHARD, loaded), worker._compared(network, SHARD, loaded)
    assert fast is not None
    assert plain.reading is not None
    for name in ("values", "cells", "has_nan"):
        assert torch.equal(getattr(fast.reading, name), getattr(plain.reading, name))


def test_a_nan_sends_a_pass_the_plain_way() -> None:
    images = torch.randn(8, 3, 14, 14)
    images[3, 0, 5, 5] = torch.nan
    worker, loaded = worker_for(small_network().eval(), images)
    assert worker._pooled(worker.networks.module, SHARD, loaded) is None
    reading = worker._compared(worker.networks.module, SHARD, loaded).reading
    assert reading is not None
    assert reading.has_nan[3].all()
    assert not reading.has_nan[[0, 1, 2, 4, 5, 6, 7]].any()


class Waiting(TorchDispatchMode):
    """Notes the operators after which a program has to wait until a device has computed something."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive", "is_nonzero"}:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def test_the_plain_way_never_waits_for_a_device() -> None:
    """No GPU is here, so this watches for the operators that would make a program wait for one."""
    worker, loaded = worker_for(small_network().eval(), torch.randn(8, 3, 14, 14))
    with Waiting() as mode:
        worker._compared(worker.networks.module, SHARD, loaded)
    assert mode.waits == []
    with mode:
        worker._pooled(worker.networks.module, SHARD, loaded)
    assert mode.waits == ["is_nonzero"] or mode.waits == ["_local_scalar_dense"]  # one look for NaN


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
    worker, _ = worker_for(Fragile(), images)
    worker = Worker(worker.networks, replace(worker.job, plan=replace(worker.job.plan, batch_size=1, k=2)))
    failed, done = worker([Shard(0, 0, 4), Shard(1, 4, 8)])
    assert failed == Failed(Shard(0, 0, 4), "RuntimeError: too bright")
    assert isinstance(done, PartialResult)
    assert done.best.values.tolist() == [[4.0, 3.0]]
