"""One way to get something out of a network and a folder of images, timed in a process of its own.

    python benchmarks/ways.py WAY MODEL FOLDER COUNT

Prints one line of JSON: the seconds, from files to a result. Start-up (imports, building the network) doesn't count.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from time import perf_counter, process_time
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import unitscope
import unitscope.scanning  # imports aren't timed
from unitscope.layers import Trace, TracedLayer, choose_layers, tapped
from unitscope.networks import Network, load_network
from unitscope.records import Preprocessing
from unitscope.session.opening import trace_network
from unitscope.session.replica_threads import ReplicaThreads, replica_threads
from unitscope.session.replicas import images_per_pass, make_replicas

BATCH, WORKERS = 32, 2


@dataclass(frozen=True)
class Files(Dataset[tuple[Tensor, int]]):
    """Image files as people load them, labelled by what their names begin with, as ImageNet's are."""

    paths: list[Path]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, image: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[image]).convert("RGB")), self.labels[self.paths[image].resolve().name]

    @cached_property
    def labels(self) -> dict[str, int]:
        words = {path.resolve().name: path.resolve().name.partition("_")[0] for path in self.paths}
        numbers = {word: number for number, word in enumerate(sorted(set(words.values())))}
        return {name: numbers[word] % 1000 for name, word in words.items()}


def transform_of(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """torchvision's evaluation transforms."""
    return transforms.Compose(
        [
            transforms.Resize(preprocessing.resize, transforms.InterpolationMode(preprocessing.interpolation)),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


def batches(network: Network, paths: list[Path]) -> Iterator[Tensor]:
    assert network.preprocessing is not None
    files = Files(paths, transform_of(network.preprocessing))
    yield from (images for images, _ in DataLoader(files, batch_size=BATCH, num_workers=WORKERS))


def loop(network: Network, paths: list[Path]) -> float:
    """The plain evaluation loop: a DataLoader, eager float32, no hooks."""
    started = perf_counter()
    with torch.no_grad():
        classes = torch.cat([network.module(images).argmax(1) for images in batches(network, paths)])
    assert len(classes) == len(paths)
    return perf_counter() - started


def hooks(network: Network, paths: list[Path]) -> float:
    """What a researcher writes: the loop, with hooks that keep every layer's highest values, and one topk at the end."""
    layers = default_layers(network)[1]
    maxima: dict[int, list[Tensor]] = {number: [] for number in range(len(layers))}
    started = perf_counter()
    with torch.no_grad(), tapped(network.module, layers, lambda number, maps: maxima[number].append(maps.amax((2, 3)))) as tap:
        for images in batches(network, paths):
            tap.run(images)
    best = [torch.cat(of_layer).topk(9, dim=0) for of_layer in maxima.values()]
    assert len(best) == len(layers)
    return perf_counter() - started


def scan(network: Network, paths: list[Path]) -> float:
    """All default layers, from files to a written atlas."""
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        unitscope.scan(network, paths, Path(folder, "atlas"), workers=WORKERS)
        return perf_counter() - started


def steady(network: Network, paths: list[Path], **options: Any) -> float:
    """The same, from the first images that are done to the last, and scaled to all: without start-up and tables."""
    progress: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        unitscope.scan(
            network, paths, Path(folder, "atlas"), on_images=lambda images: progress.append((perf_counter(), images)), **options
        )
    seconds, images = progress[-1][0] - progress[0][0], sum(images for _, images in progress[1:])
    return seconds / images * len(paths)


def ray(network: Network, paths: list[Path]) -> float:
    """As `steady`, on Ray: a worker of one core for every core."""
    return steady(network, paths, runner=unitscope.RayRunner())


NARROW = ["inception5b.branch3.0.bn"]
"""A layer of GoogLeNet that lies deep and has few units."""


def narrow(network: Network, paths: list[Path], precision: str = "fp32") -> float:
    """One narrow layer, from files to a written atlas."""
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        atlas = unitscope.scan(network, paths, Path(folder, "atlas"), layers=NARROW, precision=precision)
        seconds = perf_counter() - started
    print(f"{atlas.manifest['images_run_twice']} images ran again", file=sys.stderr)
    return seconds


def screened(network: Network, paths: list[Path]) -> float:
    """The same, screened in bfloat16."""
    return narrow(network, paths, "bf16")


def crp(network: Network, paths: list[Path]) -> float:
    """zennit-crp over all convolutions and linear layers, as its documentation does; reused activations it can't tell apart."""
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from crp.visualization import FeatureVisualization

    assert network.preprocessing is not None
    files = Files(paths, transform_of(network.preprocessing))
    modules = [name for name, module in network.module.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        concepts = {name: ChannelConcept() for name in modules}
        view = FeatureVisualization(
            CondAttribution(network.module), files, concepts, max_target="max", abs_norm=False, path=folder
        )
        started = perf_counter()
        view.run(None, 0, len(paths), batch_size=BATCH)
        return perf_counter() - started


def floor(network: Network, paths: list[Path]) -> float:
    """What nothing can be faster than: processor seconds of decode and resize and of the fastest forward pass, over the cores."""
    cores = torch.get_num_threads()
    return (decoding_s(network, paths) + len(paths) * cores * min(forward_s(network))) / cores


def decoding_s(network: Network, paths: list[Path]) -> float:
    """Processor seconds that Pillow takes to decode all files and resize them, on all cores at once."""
    preprocessing = network.preprocessing
    assert preprocessing is not None
    resize = transforms.Resize(preprocessing.resize, transforms.InterpolationMode(preprocessing.interpolation))

    def decode(thread_paths: list[Path]) -> None:
        for path in thread_paths:
            resize(Image.open(path).convert("RGB"))

    threads = [Thread(target=decode, args=(paths[start::WORKERS],)) for start in range(WORKERS)]
    started = process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return process_time() - started


def forward_s(network: Network) -> Iterator[float]:
    """Seconds an image of bare forward passes on ready batches: over all cores, and side by side; as given, and made fast."""
    trace, layers = default_layers(network)
    cores, length = torch.get_num_threads(), images_per_pass(network.module, trace, BATCH)
    fast = make_replicas(network.module, trace, layers, cores).networks
    for networks, images in (([network.module], BATCH), (fast[:1], BATCH), (fast, BATCH), (fast, length)):
        ready = trace.input_format.convert(torch.randn(images, *trace.input_shape))
        with replica_threads(networks, torch.device("cpu")) as threads:
            rounds = max(len(networks), 256 // images) if length > 4 else max(len(networks), 64 // images)
            run(threads, ready, len(networks))
            started = perf_counter()
            run(threads, ready, rounds)
            yield (perf_counter() - started) / rounds / images


def run(threads: ReplicaThreads, ready: Tensor, rounds: int) -> None:
    def forward(network: nn.Module, images: Tensor) -> None:
        with torch.no_grad():
            network(images.clone())

    for future in [threads.submit(forward, ready) for _ in range(rounds)]:
        future.result()


def default_layers(network: Network) -> tuple[Trace, list[TracedLayer]]:
    assert network.preprocessing is not None
    trace = trace_network(network, network.preprocessing)
    return trace, choose_layers(trace)


WAYS = {way.__name__: way for way in (loop, hooks, scan, crp, floor, steady, ray, narrow, screened)}


def main() -> None:
    way, model, folder, count = sys.argv[1:]
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = [paths[number % len(paths)] for number in range(int(count))]
    network = load_network(model, "default" if model.startswith("demo:") else "none")
    network.module(torch.zeros(2, 3, 224, 224))
    with tempfile.TemporaryDirectory() as links:
        for number, path in enumerate(paths):
            os.symlink(path.resolve(), Path(links, f"{number:06}{path.suffix}"))
        print(json.dumps({"seconds": WAYS[way](network, sorted(Path(links).iterdir()))}))


if __name__ == "__main__":
    main()
