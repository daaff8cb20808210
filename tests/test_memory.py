"""How much memory a scan takes: as much for many images as for few."""

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
