"""Scans that are stopped and hindered, and what is left to compare."""

from pathlib import Path

import torch
from networks import small_network
from torch import Tensor, nn

IMAGES = torch.randn(96, 3, 14, 14, generator=torch.Generator().manual_seed(0)).round(decimals=1)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of an atlas."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Told(list[int]):
    """Is told of progress, and stops the scan as Ctrl-C does once it was told of more than so many images."""

    def __init__(self, most: int = 1_000_000) -> None:
        super().__init__()
        self.most = most

    def __call__(self, images: int) -> None:
        self.append(images)
        if sum(self) > self.most:
            raise KeyboardInterrupt


class Moody(nn.Module):
    """A small network that takes a while, and fails over some of the images."""

    def __init__(self, dislikes: tuple[int, ...] = (), seconds: float = 0.0) -> None:
        super().__init__()
        self.network, self.seconds = small_network(), seconds
        self.dislikes = set(map(tuple, IMAGES[list(dislikes), 0, 0].tolist()))

    def forward(self, images: Tensor) -> Tensor:
        import time

        time.sleep(self.seconds)
        if self.dislikes & set(map(tuple, images[:, 0, 0].tolist())):
            raise RuntimeError("I don't like that one\nreally")
        return self.network(images)
