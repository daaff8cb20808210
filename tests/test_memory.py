"""How much memory a scan takes: as much for many images as for few, and for attention in windows little more than its values."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCAN = """
import resource, sys
sys.path.insert(0, "tests")
from pathlib import Path
import unitscope
from networks import small_network

images = sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2])]
preprocessing = unitscope.Preprocessing(None, (14, 14), (0.5,) * 3, (0.5,) * 3)
unitscope.scan(small_network(), images, Path(sys.argv[1], "..", f"atlas {sys.argv[2]}"), preprocess=preprocessing)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system doesn't tell a process its own peak")
def test_twenty_thousand_images_take_no_more_memory_than_one_thousand(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "images").mkdir()
    for number in range(20_000):
        (tmp_path / "images" / f"{number:05}.png").symlink_to(tmp_path / f"{number % 20}.png")
    few, many = (resident_memory_of_scan(tmp_path / "images", count) for count in (1_000, 20_000))
    assert many < 1.05 * few


def resident_memory_of_scan(folder: Path, count: int) -> int:
    """The most memory that a process of its own held while it scanned so many images of the folder, in the system's unit."""
    command = [sys.executable, "-c", SCAN, str(folder), str(count)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=600)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


TRACE = """
import resource, sys
import torch
from torch import nn
from unitscope.layers import trace

WINDOW, HEADS = 8, 6


class ShiftedWindows(nn.Module):
    \"\"\"A layer norm and attention in windows of the shifted map, as Swin and its kin have it.\"\"\"

    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)

    def forward(self, maps):  # of shape (image, y, x, channel)
        images, height, width, channels = maps.shape
        shifted = self.norm(maps).roll((-4, -4), (1, 2))
        windows = shifted.view(images, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels).permute(0, 1, 3, 2, 4, 5)
        tokens = self.qkv(windows.reshape(-1, WINDOW**2, channels)).view(-1, WINDOW**2, 3, HEADS, channels // HEADS)
        query, key, value = tokens.permute(2, 0, 3, 1, 4)
        mixed = (query @ key.mT).softmax(-1) @ value
        windows = mixed.transpose(1, 2).reshape(images, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
        return maps + windows.permute(0, 1, 3, 2, 4, 5).reshape(maps.shape).roll((4, 4), (1, 2))


class Network(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 36, 3, padding=1), nn.Sequential(*(ShiftedWindows(36) for _ in range(blocks)))

    def forward(self, images):
        return self.blocks(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


trace(Network(int(sys.argv[1])), torch.randn(1, 3, 64, 64))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of a process's peak is the system's own")
def test_tracing_keeps_no_bounds_that_do_not_vary() -> None:
    one, four = (kilobytes_of_trace(blocks) for blocks in (1, 4))
    assert (four - one) / 3 < 120_000  # a block takes 44 megabytes; with bounds that are copied for each number, 244


def kilobytes_of_trace(blocks: int) -> int:
    command = [sys.executable, "-c", TRACE, str(blocks)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=600)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)
