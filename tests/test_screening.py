"""Screening in bfloat16: what is stored is float32, and nearly always the same peaks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from interruptions import Told, bytes_of
from networks import see_through, small_network
from torch import Tensor, nn

import unitscope
from unitscope.errors import UnitscopeError
from unitscope.scanning import checkpoint, screening
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.screening import candidates
from unitscope.topk import TopK


@pytest.fixture(autouse=True)
def equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor had the instructions: results are the same where they are emulated."""
    monkeypatch.setattr(screening, "has_bfloat16", lambda _: True)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()


IMAGES = torch.randn(1500, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def places(atlas: unitscope.Atlas) -> set[tuple[str, int, int, int, int]]:
    rows = atlas.table("peaks").to_pylist()
    return {(row["layer"], row["unit"], row["image"], row["y"], row["x"]) for row in rows}


def test_peaks_are_those_of_float32(tmp_path: Path) -> None:
    exact = unitscope.scan(network(), IMAGES, tmp_path / "fp32")
    atlas = unitscope.scan(network(), IMAGES, tmp_path / "bf16", precision="bf16")
    assert atlas.manifest["precision"] == "bf16"
    assert 200 < atlas.manifest["again"] < 750
    assert len(places(atlas) & places(exact)) >= 0.995 * len(places(exact))
    np.testing.assert_allclose(atlas.table("peaks")["value"], exact.table("peaks")["value"], rtol=1e-4, atol=1e-5)
    for name in ("sample", "images", "labels", "skipped"):
        left, right = atlas.table(name), exact.table(name)
        assert left.num_rows == right.num_rows or name == "images"
        if name == "sample":
            np.testing.assert_allclose(left["value"], right["value"], rtol=1e-4, atol=1e-5)
    found, expected = atlas.table("units"), exact.table("units")
    assert found["images"].equals(expected["images"])
    np.testing.assert_allclose(found["highest"], expected["highest"], rtol=1e-4)
    for name in ("mean", "std", "lowest", "activation_rate"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05, atol=0.02)
    assert unitscope.check(atlas, network()).differences == []


def test_images_that_bfloat16_cant_tell_apart_crowd_nobody_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 1, 3))  # with more units others would have the same images run again
    alike = 2 * IMAGES[:1] + 1e-4 * torch.randn(33, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images = torch.cat([alike, IMAGES[1:1400] / 2])
    exact = unitscope.scan(one, images, tmp_path / "fp32").table("peaks")
    found = unitscope.scan(one, images, tmp_path / "bf16", precision="bf16").table("peaks")
    assert found["image"].to_pylist() == exact["image"].to_pylist()


@pytest.mark.slow
def test_a_screened_scan_goes_on_in_either_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unitscope.scan(network(), IMAGES, tmp_path / "whole", precision="bf16")
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(network(), IMAGES, tmp_path / "atlas", precision="bf16", on_images=Told(700))
    assert not (tmp_path / "atlas").exists()
    with monkeypatch.context() as patched:
        patched.setattr(screening, "_joined", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unitscope.scan(network(), IMAGES, tmp_path / "atlas", precision="bf16")
    again = Told()
    unitscope.scan(network(), IMAGES, tmp_path / "atlas", precision="bf16", on_images=again)
    assert again == [1500]
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")


def test_where_it_gains_nothing_it_says_so_and_runs_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(20, 3, 14, 14)
    unitscope.scan(small_network(), images, tmp_path / "fp32")
    with pytest.warns(
        UserWarning, match=r"so this runs in fp32: about 100% of the 20 images would have to run again for 15 units"
    ):
        unitscope.scan(small_network(), images, tmp_path / "few", precision="bf16")
    monkeypatch.setattr(screening, "has_bfloat16", lambda _: False)
    with pytest.warns(UserWarning, match="so this runs in fp32: this cpu has no fast bfloat16 arithmetic"):
        unitscope.scan(small_network(), images, tmp_path / "old", precision="bf16")
    for name in ("few", "old"):
        assert bytes_of(tmp_path / name) == bytes_of(tmp_path / "fp32")


class Strict(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise TypeError("float32 only, please")
        return super().forward(images)


def test_a_network_that_does_not_run_in_bfloat16_runs_in_float32(tmp_path: Path) -> None:
    strict = Strict(nn.Conv2d(3, 1, 3))
    with pytest.warns(UserWarning, match=r"the network doesn't run in bfloat16: float32 only, please"):
        atlas = unitscope.scan(strict, IMAGES, tmp_path / "atlas", precision="bf16")
    assert (atlas.manifest["precision"], atlas.manifest["again"]) == ("fp32", 0)
    assert places(atlas) == places(unitscope.scan(strict, IMAGES, tmp_path / "plain"))


class Stubborn(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(images.float())


def test_a_layer_that_computes_in_float32_gains_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"a layer of the network computes in torch\.float32"):
        atlas = unitscope.scan(Stubborn(), IMAGES, tmp_path / "atlas", precision="bf16")
    assert atlas.manifest["precision"] == "fp32"


def test_candidates_are_the_first_k_and_those_near() -> None:
    part = PartialResult.empty(2, 4, 5)
    part.best = TopK(
        torch.tensor([[10.0, 9.0, 8.9, 5.0], [1.0, torch.nan, torch.nan, torch.nan]]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.tensor([[1, 2, 3, 4], [5, 2**63 - 1, 2**63 - 1, 2**63 - 1]]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    )
    assert candidates(part, k=2) == {1, 2, 3, 5}


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnitscopeError, match="precision is fp32 or bf16, not 'fp16'"):
        unitscope.scan(see_through(1), torch.ones(1, 1, 2, 2), tmp_path / "atlas", precision="fp16")
