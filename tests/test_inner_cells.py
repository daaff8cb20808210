"""Scans of those cells alone whose receptive fields lie on the image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import unitscope


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 5, padding=2), nn.ReLU(),
        nn.Conv2d(5, 6, 7, padding=3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 3),
    ).eval()  # fmt: skip


IMAGES = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
IMAGES[:, :, :2] *= 4  # what lies at the border excites most


def scanned(folder: Path, **options: object) -> unitscope.Atlas:
    with pytest.warns(
        UserWarning, match=r"layer '6' .*has no cells whose receptive field lies on the image, so all of them count"
    ):
        return unitscope.scan(network(), IMAGES, folder / "atlas", k=3, sample=10, inner=True, **options)


def test_peaks_statistics_and_sample_are_those_of_inner_cells(tmp_path: Path) -> None:
    """Against the maps without their border, cut by hand: two cells of the second layer see no padding."""
    atlas, layers = scanned(tmp_path), network()
    assert atlas.manifest["without_inner_cells"] == ["6"]
    cuts = {"1": (0, slice(1, 15)), "4": (3, slice(3, 5)), "6": (5, slice(0, 4))}
    for name, (index, cells) in cuts.items():
        with torch.no_grad():
            maps = layers[: index + 1](IMAGES)[..., cells, cells]
        highest = maps.flatten(2).amax(2)
        kept = highest if name == "6" else highest.masked_fill(highest <= 0, torch.nan)
        expected = kept.nan_to_num(-torch.inf).topk(3, dim=0).values
        for row in atlas.peaks(name).to_pylist():
            assert row["value"] == pytest.approx(float(expected[row["rank"] - 1, row["unit"]]), rel=1e-4)
            assert float(maps[row["image"], row["unit"], row["y"], row["x"]]) == pytest.approx(row["value"], rel=1e-4)
        sample = atlas.sample(name).to_pylist()
        assert all(row["value"] == pytest.approx(float(highest[row["image"], row["unit"]]), rel=1e-4, abs=1e-6) for row in sample)
        np.testing.assert_allclose(atlas.units(name)["mean"], highest.mean(0), rtol=1e-3, atol=1e-5)
        assert (atlas.layer(name).map_height, atlas.layer(name).map_width) == tuple(maps.shape[2:])


def test_no_patch_shows_padding_where_there_are_inner_cells(tmp_path: Path) -> None:
    atlas = scanned(tmp_path, per_image=2)
    for name in ("1", "4"):
        rows = atlas.peaks(name).to_pylist()
        assert rows
        assert all(row["top"] >= 0 and row["left"] >= 0 and row["bottom"] <= 16 and row["right"] <= 16 for row in rows)


def test_whatever_runs_the_images_again_reads_inner_cells_too(tmp_path: Path) -> None:
    atlas = scanned(tmp_path)
    assert unitscope.check(atlas, network()).differences == []
    assert unitscope.attribute(atlas, "gradient", network(), layers=["1", "4"]) == len(atlas.peaks("1")) + len(atlas.peaks("4"))
    everywhere = unitscope.scan(network(), IMAGES, tmp_path / "everywhere", k=3)
    assert min(row["top"] for row in everywhere.peaks("1").to_pylist()) < 0
    assert "inner" not in everywhere.manifest
