"""The scan from images to tables, against brute force."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import unitscope


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 5 * 5, 4),
    )


@pytest.mark.parametrize("count", [1, 5, 33, 70])
def test_an_atlas_holds_the_top_nine_of_brute_force(tmp_path: Path, count: int) -> None:
    network, images = small_network(), torch.randn(count, 3, 14, 14)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", workers=1)
    assert [layer.name for layer in atlas.layers] == ["1", "4", "6"]
    assert network.training
    maps, x = {}, images
    for name, module in network.eval().named_children():
        if name in ("1", "4"):
            maps[name] = x.detach().clone().flatten(2)
        x = module(x)
    maps["6"] = x.detach()[..., None]
    for layer in atlas.layers:
        highest, cells = maps[layer.name].max(2)
        for unit in range(layer.units):
            found = atlas.peaks(layer.name, unit=unit).to_pylist()
            order = sorted(range(count), key=lambda i: (-float(highest[i, unit]), i))
            best = [i for i in order if not layer.rectified or highest[i, unit] > 0][:9]
            assert [row["image"] for row in found] == best
            np.testing.assert_allclose([row["value"] for row in found], highest[best, unit].numpy(), rtol=1e-4, atol=1e-6)
            assert [row["y"] * layer.map_width + row["x"] for row in found] == cells[best, unit].tolist()


def test_looking_at_an_atlas_loads_no_torch() -> None:
    code = "import sys, unitscope.drawing, unitscope.atlas; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_scan_stored_comes_back(tmp_path: Path) -> None:
    network, images = small_network(), torch.randn(40, 3, 14, 14)
    atlas = unitscope.scan(network, images, tmp_path / "atlas")
    result = unitscope.check(atlas, network, batch_size=7)
    assert result.peaks == atlas.table("peaks").num_rows > 0
    assert result.differences == []
    changed = unitscope.Atlas(tmp_path / "atlas", images=images + 0.1)
    assert unitscope.check(changed, network).differences
