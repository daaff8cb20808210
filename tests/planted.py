"""An atlas whose units tie in known ways, and who shares what by plain counting."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks import see_through
from PIL import Image
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.records import Preprocessing

IMAGES, LABELS = 24, ("cat", "dog", "fish")
AS_IT_IS = Preprocessing(None, (16, 16), (0.0,) * 3, (1.0,) * 3)
HIGHEST = np.stack(
    [
        np.full(IMAGES, 200),  # red: all images share the highest value
        [201 + i if i < 5 else 200 for i in range(IMAGES)],  # green: five are above the value that the others share
        [100 + 5 * i for i in range(IMAGES)],  # blue: no two are equal
    ],
    axis=1,
)
"""The highest value of each image and colour."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What counting says of a unit: which ranks hold a value that more images share than are shown, and how many share it."""

    first: int
    last: int
    shown: int
    images: int


def shared(highest: np.ndarray, k: int = 9) -> Shared | None:
    """By sorting a unit's values in all images, and counting."""
    values = highest.tolist()
    top_values = sorted(values, reverse=True)[:k]
    shown, sharing_images = top_values.count(top_values[-1]), values.count(top_values[-1])
    if len(top_values) < k or sharing_images == shown:
        return None
    return Shared(k - shown + 1, k, shown, sharing_images)


def planted_network() -> nn.Module:
    """Two layers whose units are the input's colours."""
    return see_through(3, nn.ReLU(), *see_through(3), nn.ReLU()).eval()


def planted_images(folder: Path) -> Path:
    """Dark noise with one pixel of each colour's highest value, a sub-folder a label."""
    rng = np.random.default_rng(0)
    for image, highest in enumerate(HIGHEST):
        pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        for colour, value in enumerate(highest):
            pixels[(*rng.integers(0, 16, 2), colour)] = value
        label_folder = folder / LABELS[image % len(LABELS)]
        label_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(label_folder / f"{image:03}.png")
    return folder


def planted_atlas(folder: Path, name: str = "planted") -> Atlas:
    return unitscope.scan(planted_network(), planted_images(folder / "images"), folder / name, preprocess=AS_IT_IS)
