"""Pictures on disk for tests that go the whole way."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photographs(
    folder: Path, count: int = 6, size: tuple[int, int] = (48, 64), labels: tuple[str, ...] = ("cat", "dog")
) -> Path:
    """Pictures of soft noise, one sub-folder a label, and the folder back; the same ones every time."""
    rng = np.random.default_rng(0)
    for image in range(count):
        label_folder = folder / labels[image % len(labels)]
        label_folder.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(label_folder / f"{image:03}.png")
    return folder
