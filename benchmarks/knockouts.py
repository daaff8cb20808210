"""Units taken away one after the other: unitscope beside a plain loop of forward passes with a hook, in turn, in one run.

    python benchmarks/knockouts.py [--images N] [--units N] [--repeats N]

On EfficientNet-Lite0: so many units of every layer, drawn at random, in so many photographs. Every one is taken away by both, and the drops
of the scores are compared. Printed are milliseconds a unit and image, and how many times as long the loop takes.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from bench import SAMPLE, machine
from torch import Tensor, nn
from verbs import link_images

import unitscope
from unitscope.atlas import Atlas
from unitscope.demonstration import write_demo_images
from unitscope.effects import knock_out, measure_effects
from unitscope.images import prepare

MODEL, BATCH = "demo:efficientnet-lite0", 32


def inputs(network: unitscope.networks.Network, folder: Path) -> Tensor:
    from PIL import Image

    preprocessing = network.preprocessing
    assert preprocessing is not None
    pixels = np.stack([prepare(Image.open(file).convert("RGB"), preprocessing) for file in sorted(folder.iterdir())])
    mean, std = (np.array(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2).contiguous()


def by_hand(module: nn.Module, path: str, nth_call: int, unit: int, mean_map: Tensor, images: Tensor, before: Tensor) -> float:
    """The mean drop of the classes' scores without one unit, as one writes it."""
    calls = 0

    def hook(_: nn.Module, args: object, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls != nth_call:
            return None
        output = output.clone()
        output[:, unit] = mean_map.reshape(output.shape[2:])
        return output

    drops = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            batch, of_batch = images[start : start + BATCH], before[start : start + BATCH]
            calls, handle = 0, module.get_submodule(path).register_forward_hook(hook)
            after = module(batch)
            handle.remove()
            drops.append((of_batch - after)[range(len(batch)), of_batch.argmax(1)])
    return float(torch.cat(drops).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--units", type=int, default=2, help="of every layer")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    network = unitscope.load_network(MODEL)
    module = network.module.eval()
    source = SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images"))
    ratios, ours, theirs = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = link_images(source, Path(temporary, "images"), arguments.images)
        atlas = unitscope.scan(network, folder, Path(temporary, "atlas"))
        measure_effects(atlas, network, by="prediction")
        images = inputs(network, folder)
        with torch.no_grad():
            before = torch.cat([module(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
        rng = np.random.default_rng(0)
        chosen = {
            layer.name: rng.choice(layer.units, min(arguments.units, layer.units), replace=False).tolist()
            for layer in atlas.layers
            if layer.name != "_fc"
        }
        runs = sum(map(len, chosen.values())) * len(images)
        for _ in range(arguments.repeats):
            started = perf_counter()
            groups = {layer: [[unit] for unit in units] for layer, units in chosen.items()}
            rows = knock_out(Atlas(atlas.folder), groups, network, by="prediction").to_pylist()
            found = {
                (layer, unit): sum(
                    row["logit_drop"] * row["images"] for row in rows if (row["layer"], row["units"]) == (layer, str(unit))
                )
                / len(images)
                for layer, units in chosen.items()
                for unit in units
            }
            seconds = perf_counter() - started
            started, expected = perf_counter(), {}
            for layer, units in chosen.items():
                maps = dict(zip(*(atlas.table("mean_maps", layer)[name].to_pylist() for name in ("unit", "map")), strict=True))
                path, _, call = layer.partition("#")
                for unit in units:
                    expected[layer, unit] = by_hand(module, path, int(call or 1), unit, torch.tensor(maps[unit]), images, before)
            naive = perf_counter() - started
            assert all(abs(found[key] - expected[key]) < 1e-3 for key in found), "both take the same away"
            ours.append(seconds / runs * 1e3)
            theirs.append(naive / runs * 1e3)
            ratios.append(naive / seconds)
    print(machine())
    print(
        f"{runs:,} units and images: {median(ours):.1f} ms by unitscope, {median(theirs):.1f} ms by hand, {median(ratios):.2f} times as long ({ratios})"
    )


if __name__ == "__main__":
    main()
