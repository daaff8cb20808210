"""How long a scan takes beside a plain evaluation loop over the same image files: in turn, in one run, A B A B.

    python benchmarks/evaluation_loop.py [--images FOLDER] [--repeats N]

The loop is the one that people write: torchvision's evaluation transforms, a DataLoader with two workers, eager float32, no hooks.
Both read the same files and end with a result; start-up (imports, building the network) counts for neither.
"""

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

import unitscope
from unitscope.demonstration import demo_images
from unitscope.networks import Network, load_network
from unitscope.records import Preprocessing

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
NETWORKS = {"torchvision:alexnet": 600, "torchvision:resnet18": 600, "demo:efficientnet-lite0": 600, "torchvision:vgg16": 96}
"""The networks and how many images each gets at most."""


@dataclass(frozen=True)
class Files:
    """Image files as a data set."""

    paths: list[Path]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, image: int) -> Tensor:
        return self.transform(Image.open(self.paths[image]).convert("RGB"))


def transform_of(said: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """torchvision's chain for the same inputs."""
    return transforms.Compose(
        [
            transforms.Resize(said.resize, transforms.InterpolationMode(said.interpolation)),
            transforms.CenterCrop(said.crop),
            transforms.ToTensor(),
            transforms.Normalize(said.mean, said.std),
        ]
    )


def evaluation_loop(network: Network, paths: list[Path]) -> float:
    """Seconds that a plain loop takes."""
    assert network.preprocessing is not None
    started = perf_counter()
    loader = DataLoader(Files(paths, transform_of(network.preprocessing)), batch_size=32, num_workers=2)
    with torch.no_grad():
        found = torch.cat([network.module(images).argmax(1) for images in loader])
    assert len(found) == len(paths)
    return perf_counter() - started


def scan(network: Network, paths: list[Path]) -> float:
    """Seconds that a scan of all default layers takes, from files to a written atlas."""
    with TemporaryDirectory() as folder:
        started = perf_counter()
        unitscope.scan(network, paths, Path(folder, "atlas"))
        return perf_counter() - started


def processor() -> str:
    """The processor's name as the system gives it."""
    said = Path("/proc/cpuinfo")
    lines = said.read_text().splitlines() if said.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--images", type=Path, help="a folder of images; the ImageNet sample if it is there, else the demo's")
    arguments.add_argument("--repeats", type=int, default=3)
    said = arguments.parse_args()
    folder = said.images or (SAMPLE if SAMPLE.is_dir() else demo_images(Path("demo/images")))
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    print(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"{'network':28} {'images':>6} {'loop':>8} {'scan':>8} {'scan / loop':>12}")
    for model, count in NETWORKS.items():
        network, chosen = load_network(model, "default" if model.startswith("demo:") else "none"), paths[:count]
        pairs = [(evaluation_loop(network, chosen), scan(network, chosen)) for _ in range(said.repeats)]
        loop, scanned = (median(times) for times in zip(*pairs, strict=True))
        ratio = median(b / a for a, b in pairs)
        print(f"{model:28} {len(chosen):6} {loop:6.1f} s {scanned:6.1f} s {ratio:12.2f}", flush=True)


if __name__ == "__main__":
    main()
