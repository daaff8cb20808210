"""Pictures of a few colours, a network whose units respond to them, and embedders that see them: what is true is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import unitscope

SIDE = 16
HUES = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1]])
NAMES = ("red", "green", "blue", "yellow")
PREPROCESSING = unitscope.Preprocessing(SIDE, (SIDE, SIDE), (0.0,) * 3, (1.0,) * 3)


class Patterns:
    """Pictures of one of four colours with noise; the label is the colour."""

    def __init__(self, count: int = 300) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def hue(self, image: int) -> int:
        return int(np.random.default_rng(image).integers(len(HUES)))

    def __getitem__(self, image: int) -> tuple[Image.Image, str]:
        if image >= self.count:
            raise IndexError(image)
        rng = np.random.default_rng(image + 10_000)
        noise = np.kron(rng.normal(0, 0.12, (SIDE // 2, SIDE // 2, 1)), np.ones((2, 2, 1)))
        pixels = np.clip(HUES[self.hue(image)] + noise, 0, 1)
        return Image.fromarray((255 * pixels).astype(np.uint8)), NAMES[self.hue(image)]


class Colours(nn.Module):
    """Units: how red, how green, how blue, how bright a corner is, and red or blue. Read behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        self.activation = nn.ReLU()
        self.either = nn.Conv2d(4, 5, 1, bias=False)
        self.last = nn.ReLU()
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])[..., None, None])
            self.mix.bias.copy_(torch.tensor([0.5, 0.5, 0.5, -1.5]))
            self.either.weight.copy_(torch.eye(5, 4)[..., None, None])
            self.either.weight[4, 0] = self.either.weight[4, 2] = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.either(self.activation(nn.functional.avg_pool2d(self.mix(images), 4))))


class ColourEmbedder:
    """How much of each colour each quarter of a picture has: no network, and nothing of the scanned one. Its texts are names of colours."""

    name, weights_hash, size = "colours", "none", (8, 8)

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def maps(self, pictures: torch.Tensor) -> torch.Tensor:
        near = torch.from_numpy(HUES).float()
        apart = torch.cdist((pictures / 255).flatten(1, 2), near.expand(len(pictures), -1, -1))
        return self.weight * (-8 * apart).softmax(2).mT.unflatten(2, (8, 8))

    def embed_images(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.maps(pictures).mean((2, 3))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        known = torch.tensor([[float(name in text.split()) for name in NAMES] for text in texts])
        return known + 0.01 * torch.randn(known.shape, generator=torch.Generator().manual_seed(0))


def colour_atlas(folder: Path, **options: object) -> unitscope.Atlas:
    return unitscope.scan(Colours().eval(), Patterns(), folder, preprocess=PREPROCESSING, sample=300, **options)
