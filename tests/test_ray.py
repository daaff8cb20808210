"""The runner on Ray, on a cluster of two nodes that is started on this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from interruptions import IMAGES, Moody, Told, bytes_of
from test_runners import SHARDS, RunnerContract

import unitscope
from unitscope.errors import ScanUnfinished, UnitscopeError
from unitscope.records import Shard
from unitscope.runners import FailedShard, Runner, ShardWorker
from unitscope.runners.ray import RayRunner

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one core each."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("cluster")
class TestRayRunner(RunnerContract):
    def runner(self) -> Runner:
        return RayRunner()


def make_deadly() -> ShardWorker[int]:
    """Its process is killed in shard 3."""

    def work(shards: Iterable[Shard]) -> Iterator[int]:
        for shard in shards:
            if shard.number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield shard.number

    return work


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_its_workers_fails_and_the_others_are_done() -> None:
    results = list(RayRunner().map(make_deadly, SHARDS))
    assert sorted(r for r in results if isinstance(r, int)) == [0, 1, 2, 4, 5, 6]
    assert [r for r in results if isinstance(r, FailedShard)] == [FailedShard(SHARDS[3], "its worker was lost 3 times")]


def make_nothing() -> ShardWorker[int]:
    raise ZeroDivisionError("no worker today")


@pytest.mark.usefixtures("cluster")
def test_workers_that_cannot_start_are_reported() -> None:
    with pytest.raises(UnitscopeError, match=r"no worker could be started: .*no worker today"):
        list(RayRunner().map(make_nothing, SHARDS))


@pytest.mark.usefixtures("cluster")
def test_a_worker_too_large_for_the_cluster_is_refused() -> None:
    with pytest.raises(UnitscopeError, match="has no room for a single worker"):
        list(RayRunner(cpus_per_worker=64).map(make_nothing, SHARDS))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local") / "atlas"
    unitscope.scan(Moody(), IMAGES, folder, batch_size=2)
    return bytes_of(folder)


@pytest.mark.usefixtures("cluster")
def test_the_atlas_is_byte_for_byte_the_local_one(tmp_path: Path, local: dict[str, bytes]) -> None:
    progress = Told()
    unitscope.scan(Moody(), IMAGES, tmp_path / "atlas", batch_size=2, runner=RayRunner(), on_images=progress)
    assert bytes_of(tmp_path / "atlas") == local
    assert sum(progress) == 96


@pytest.mark.usefixtures("cluster")
def test_a_worker_killed_in_mid_scan_changes_nothing(tmp_path: Path, local: dict[str, bytes]) -> None:
    import psutil

    killed: list[int] = []

    def kill_one(images: int) -> None:
        workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::RayWorker.run" in " ".join(p.info["cmdline"] or [])]
        if workers and len(killed) < 2:
            killed.append(workers[0].pid)
            workers[0].kill()

    unitscope.scan(Moody(seconds=0.1), IMAGES, tmp_path / "atlas", batch_size=2, runner=RayRunner(), on_images=kill_one)
    assert killed
    assert bytes_of(tmp_path / "atlas") == local


def test_a_node_killed_in_mid_scan_changes_nothing(tmp_path: Path, cluster: Any, local: dict[str, bytes]) -> None:
    extra = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    timers: list[Timer] = []

    def remove(images: int) -> None:
        if not timers:
            timers.append(Timer(1.0, cluster.remove_node, (extra, False)))
            timers[0].start()

    unitscope.scan(Moody(seconds=0.15), IMAGES, tmp_path / "atlas", batch_size=2, runner=RayRunner(), on_images=remove)
    assert len(timers) == 1
    timers[0].join()
    assert bytes_of(tmp_path / "atlas") == local


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_always_fails_is_reported_and_the_rest_is_kept(tmp_path: Path, local: dict[str, bytes]) -> None:
    with pytest.raises(
        ScanUnfinished, match=r"4 images in 1 shards could not be scanned, among them '8' to '11': RuntimeError: I don't"
    ):
        unitscope.scan(Moody((10,)), IMAGES, tmp_path / "atlas", batch_size=2, runner=RayRunner())
    assert not (tmp_path / "atlas").exists()
    progress = Told()
    unitscope.scan(Moody(), IMAGES, tmp_path / "atlas", batch_size=2, on_images=progress)
    assert progress == [92, 4]
    assert bytes_of(tmp_path / "atlas") == local


@pytest.mark.usefixtures("cluster")
def test_a_scan_on_ray_resumes(tmp_path: Path, local: dict[str, bytes]) -> None:
    often = {"batch_size": 2, "checkpoint_every_s": 0}
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(Moody(seconds=0.02), IMAGES, tmp_path / "atlas", runner=RayRunner(), on_images=Told(40), **often)
    second_run = Told()
    unitscope.scan(Moody(seconds=0.02), IMAGES, tmp_path / "atlas", runner=RayRunner(), on_images=second_run, **often)
    assert second_run[0] >= 12
    assert sum(second_run) == 96
    assert bytes_of(tmp_path / "atlas") == local


def test_the_command_line_scans_on_ray(tmp_path: Path, cluster: Any) -> None:
    """With a network from a file on this machine."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 80, 120)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef made():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    command = [sys.executable, "-m", "unitscope", "scan", f"{tmp_path / 'own.py'}:made", str(tmp_path / "images"), "--crop", "16"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--runner", "ray", "--address", cluster.address]
    process = subprocess.run([*command, "--out", str(tmp_path / "atlas")], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert unitscope.Atlas(tmp_path / "atlas").manifest["read"] == 6
