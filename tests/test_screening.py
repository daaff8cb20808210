"""Screening in bfloat16: what is stored is float32, and nearly always the same peaks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from interruptions import Told, bytes_of
from networks import see_through, small_network
from torch import Tensor, nn

import unitscope
from unitscope.errors import UnitscopeError
from unitscope.runners.local import LocalRunner
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.screening import candidate_images, no_gain_reason, screen_shards
from unitscope.scanning.shards import OnImages, scan_shards
from unitscope.session.opening import open_session
from unitscope.session.session import Session
from unitscope.topk import TopK


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()


IMAGES = torch.randn(1500, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@contextmanager
def opened(network: nn.Module, images: Tensor, out: Path) -> Iterator[tuple[Session, ScanPlan, Checkpoint]]:
    """What a scan of these images in bfloat16 needs, on whatever processor: results are the same where its instructions are emulated."""
    plan = ScanPlan(len(images), candidates=12, precision="bf16")
    with open_session(network, images) as session, Checkpoint(out, {}, save_every_s=0).locked() as checkpoint:
        yield session, plan, checkpoint


def screened(network: nn.Module, images: Tensor, out: Path, on_images: OnImages = lambda _: None) -> PartialResult:
    with opened(network, images, out) as (session, plan, checkpoint):
        result = screen_shards(session, plan, LocalRunner(), checkpoint, on_images)
        checkpoint.remove()
        return result


def scanned(network: nn.Module, images: Tensor, out: Path) -> PartialResult:
    with opened(network, images, out) as (session, plan, checkpoint):
        result = scan_shards(session, plan, LocalRunner(), checkpoint, lambda _: None)
        checkpoint.remove()
        return result


def peaks_of(result: PartialResult) -> set[tuple[int, int, int]]:
    """Unit, image and cell of all peaks."""
    unit = torch.arange(len(result.top_k.images))[:, None].expand_as(result.top_k.images)
    return set(zip(*(t.flatten().tolist() for t in (unit, result.top_k.images, result.top_k.cells)), strict=True))


def sample_by_image(result: PartialResult) -> Tensor:
    return result.sample.values[result.sample.images.argsort()]


def test_peaks_and_sample_are_those_of_float32(tmp_path: Path) -> None:
    exact, result = scanned(network(), IMAGES, tmp_path / "fp32"), screened(network(), IMAGES, tmp_path / "bf16")
    assert 200 < result.images_run_twice < 750
    assert len(peaks_of(result) & peaks_of(exact)) >= 0.995 * len(peaks_of(exact))
    torch.testing.assert_close(result.top_k.values, exact.top_k.values, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(sample_by_image(result), sample_by_image(exact), rtol=1e-4, atol=1e-5)
    assert (result.read, result.contents, result.skipped) == (exact.read, exact.contents, exact.skipped)


def test_statistics_are_those_of_bfloat16_but_for_the_highest_value(tmp_path: Path) -> None:
    exact, result = scanned(network(), IMAGES, tmp_path / "fp32"), screened(network(), IMAGES, tmp_path / "bf16")
    assert result.statistics.extremes is not None
    assert exact.statistics.extremes is not None
    torch.testing.assert_close(result.statistics.extremes.highest, exact.statistics.extremes.highest, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.statistics.extremes.lowest, exact.statistics.extremes.lowest, rtol=0.05, atol=0.02)
    for name in ("mean", "squares"):
        values, expected = (getattr(r.statistics.total(), name) / len(IMAGES) ** (name == "squares") for r in (result, exact))
        torch.testing.assert_close(values, expected, rtol=0.05, atol=0.02)
    assert torch.equal(result.statistics.total().count, exact.statistics.total().count)


def test_images_that_bfloat16_cant_tell_apart_crowd_nobody_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one_unit = nn.Sequential(nn.Conv2d(3, 1, 3))  # with more units others would have the same images run again
    alike = 2 * IMAGES[:1] + 1e-4 * torch.randn(33, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images = torch.cat([alike, IMAGES[1:1400] / 2])
    exact, result = scanned(one_unit, images, tmp_path / "fp32"), screened(one_unit, images, tmp_path / "bf16")
    assert torch.equal(result.top_k.images, exact.top_k.images)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [700, 1_499])
def test_a_screened_scan_is_resumed_in_either_stage(tmp_path: Path, stop_after: int) -> None:
    undisturbed = screened(network(), IMAGES, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        screened(network(), IMAGES, tmp_path / "atlas", on_images=Told(stop_after))
    assert (tmp_path / ".atlas.scan").exists()
    progress = Told()
    resumed = screened(network(), IMAGES, tmp_path / "atlas", on_images=progress)
    assert progress[0] >= min(stop_after, 700) - 64
    assert sum(progress) == 1500
    assert peaks_of(resumed) == peaks_of(undisturbed)
    assert torch.equal(sample_by_image(resumed), sample_by_image(undisturbed))


def test_where_it_gains_nothing_it_says_so_and_runs_in_float32(tmp_path: Path) -> None:
    images = torch.randn(20, 3, 14, 14)
    exact = unitscope.scan(small_network(), images, tmp_path / "fp32")
    with pytest.warns(UserWarning, match="bf16 would gain nothing here, so this runs in fp32: "):
        atlas = unitscope.scan(small_network(), images, tmp_path / "bf16", precision="bf16")
    assert (atlas.manifest["precision"], atlas.manifest["images_run_twice"]) == ("fp32", 0)
    assert bytes_of(tmp_path / "bf16") == bytes_of(tmp_path / "fp32")
    assert exact.manifest == atlas.manifest


def reason(network: nn.Module, images: Tensor, out: Path, is_fast: bool = True) -> str:
    with opened(network, images, out) as (session, plan, _):
        return no_gain_reason(session, plan, is_fast)


def test_a_device_without_fast_bfloat16_gains_nothing(tmp_path: Path) -> None:
    assert reason(network(), IMAGES, tmp_path / "a", is_fast=False) == "this cpu has no fast bfloat16 arithmetic"
    assert reason(network(), IMAGES, tmp_path / "a") == ""


def test_few_images_for_many_units_gain_nothing(tmp_path: Path) -> None:
    text = reason(small_network(), torch.randn(20, 3, 14, 14), tmp_path / "a")
    assert text == "about 100% of the 20 images would have to run again for 15 units"


class Strict(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise TypeError("float32 only, please")
        return super().forward(images)


def test_a_network_that_does_not_run_in_bfloat16_gains_nothing(tmp_path: Path) -> None:
    text = reason(Strict(nn.Conv2d(3, 1, 3)), IMAGES, tmp_path / "a")
    assert text == "the network doesn't run in bfloat16: float32 only, please"


class Stubborn(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(images.float())


def test_a_layer_that_computes_in_float32_gains_nothing(tmp_path: Path) -> None:
    assert reason(Stubborn(), IMAGES, tmp_path / "a") == "a layer of the network computes in torch.float32"


def test_candidates_are_the_first_k_and_those_near() -> None:
    result = PartialResult.empty(2, 4, 5)
    result.top_k = TopK(
        torch.tensor([[10.0, 9.0, 8.9, 5.0], [1.0, torch.nan, torch.nan, torch.nan]]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.tensor([[1, 2, 3, 4], [5, 2**63 - 1, 2**63 - 1, 2**63 - 1]]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    )
    assert candidate_images(result, k=2) == {1, 2, 3, 5}


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnitscopeError, match="precision is fp32 or bf16, not 'fp16'"):
        unitscope.scan(see_through(1), torch.ones(1, 1, 2, 2), tmp_path / "atlas", precision="fp16")
