"""check(): what comes back but for rounding is let pass, and what is wrong is reported."""

import shutil
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import unitscope
from unitscope.atlas import CORE_TABLES
from unitscope.checking import Difference
from unitscope.records import Peak


class Unlike(nn.Module):
    """Divides by the variance over units, which in flat places is nothing but rounding."""

    def forward(self, maps: Tensor) -> Tensor:
        centred = maps - maps.mean(1, keepdim=True)
        return centred / (centred.var(1, keepdim=True) + 1e-12)


def network_that_amplifies_in_flat_places() -> nn.Module:
    """All units are the same but for the last one, which adds up pixels of another colour."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    kernel = torch.randn(3, 3, 3)
    convolution.weight.data = torch.stack([kernel, kernel.flip(0), kernel.roll(1, 0), kernel.flip(1)])
    convolution.bias.data = torch.full((4,), 0.3)
    return nn.Sequential(convolution, Unlike(), nn.Conv2d(4, 3, 1)).eval()


def half_flat_images() -> Tensor:
    images = torch.randn(40, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    images[:, :, :7] = torch.linspace(0.1, 2, 40)[:, None, None, None]
    return images


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> unitscope.Atlas:
    return unitscope.scan(
        network_that_amplifies_in_flat_places(), half_flat_images(), tmp_path_factory.mktemp("flat") / "atlas", batch_size=7
    )


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_rounding_that_shows_in_some_images_only_is_no_difference(atlas: unitscope.Atlas, batch_size: int) -> None:
    assert unitscope.check(atlas, network_that_amplifies_in_flat_places(), batch_size=batch_size).differences == []


def differences(atlas: unitscope.Atlas, peaks: list[Peak], folder: Path) -> list[Difference]:
    """What `check` says of a copy of the atlas with these peaks."""
    shutil.copytree(atlas.folder, folder)
    rows = [{name: getattr(peak, name) for name in CORE_TABLES["peaks"].schema.names} for peak in peaks]
    pq.write_table(pa.Table.from_pylist(rows, schema=CORE_TABLES["peaks"].schema), folder / "peaks.parquet")
    changed = unitscope.Atlas(folder, images=half_flat_images())
    return unitscope.check(changed, network_that_amplifies_in_flat_places(), batch_size=5).differences


@pytest.mark.parametrize("wrong", [lambda v: v * 1.01 + 1, lambda v: -v - 1, lambda v: 3 * v + 100, lambda v: nan, lambda v: inf])
def test_a_wrong_value_is_reported(atlas: unitscope.Atlas, wrong: object, tmp_path: Path) -> None:
    peaks = [Peak(**row) for row in atlas.table("peaks").to_pylist()]
    first = [replace(peak, value=wrong(peak.value)) for peak in peaks if peak.layer == "0"]
    others = [peak for peak in peaks if peak.layer != "0"]
    assert {d.layer for d in differences(atlas, [*first, *others], tmp_path / "some")} == {"0"}
    assert len(differences(atlas, first, tmp_path / "first")) == len(first)
