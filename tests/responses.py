"""An atlas whose units respond as they are told: the responses are the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import unitscope
from unitscope.atlas import Atlas

LAYER = "1"


class Responses(Dataset[tuple[torch.Tensor, str]]):
    """Images of one pixel with a channel for each unit: its response."""

    def __init__(self, responses: np.ndarray, labels: Sequence[str | None]) -> None:
        self.responses, self.labels = torch.from_numpy(responses.astype(np.float32)), labels

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, image: int) -> Any:
        pixels, label = self.responses[image][:, None, None], self.labels[image]
        return (pixels, -1 if label is None else label)


def reading_network() -> nn.Module:
    """A layer whose units are the channels, whatever values these have: what is ranked is what goes into the activation."""
    return nn.Sequential(nn.Flatten(), nn.Tanh()).eval()


def responding_atlas(folder: Path, responses: np.ndarray, labels: Sequence[str | None], **options: Any) -> Atlas:
    """The atlas of units with these responses, of shape (image, unit), to images with these labels."""
    return unitscope.scan(reading_network(), Responses(responses, labels), folder, **options)


def halves(images: int) -> np.ndarray:
    """The half that each image is in, by the key that a data set's images have: its number."""
    from hashlib import blake2b

    hashes = (int.from_bytes(blake2b(str(image).encode(), digest_size=8).digest(), "big") >> 1 for image in range(images))
    return np.array([number % 2 for number in hashes])
