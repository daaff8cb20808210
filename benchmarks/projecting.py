"""How long deconvnet projections of a layer's peaks take, beside captum called once a unit with its nine images, in turn.

    python benchmarks/projecting.py FOLDER [--repeats N]

Both begin with the image files and the peaks, and end with the pixels; unitscope also writes its table. Prints a table in Markdown.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from captum.attr import NeuronDeconvolution
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.networks import Network, load_network
from unitscope.session.session import Session
from unitscope.session.stored import open_atlas_session

CASES = [
    ("torchvision:alexnet", "features.1", 64, 16),
    ("torchvision:alexnet", "features.4", 192, 16),
    ("torchvision:alexnet", "features.11", 256, 16),
    ("torchvision:vgg16", "features.15", 64, 4),
    ("torchvision:vgg16", "features.29", 128, 4),
]
"""A network, one of its layers, how many units, and how many of them captum gets, whose time a unit is always the same."""


def without_inplace(network: Network) -> Network:
    """captum can't follow rectifiers that overwrite their input."""
    for module in network.module.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network


def ours(atlas: Atlas, network: Network, layer: str, units: list[int]) -> float:
    shutil.rmtree(atlas.folder / "tables", ignore_errors=True)
    started = perf_counter()
    done = unitscope.attribute(atlas, "deconvnet", network, layers=[layer], units=units)
    return done / (perf_counter() - started)


def captums(atlas: Atlas, network: Network, layer: str, units: list[int]) -> float:
    done, started = 0, perf_counter()
    with open_atlas_session(atlas, network) as session:
        module = dict(session.plain_copy.named_modules())[f"features.{int(layer.split('.')[1]) - 1}"]
        tool = NeuronDeconvolution(session.plain_copy, module)
        for unit in units:
            if not (peaks := atlas.peaks(layer, unit).to_pylist()):
                continue  # a dead unit
            images = inputs(session, [peak["image"] for peak in peaks])
            # One cell an image: a selector that is called with the layer's output.
            rows = [torch.tensor([peak[name] for peak in peaks]) for name in ("y", "x")]
            tool.attribute(images, lambda maps, unit=unit, rows=rows: maps[torch.arange(len(maps)), unit, rows[0], rows[1]])
            done += len(peaks)
    return done / (perf_counter() - started)


def inputs(session: Session, images: list[int]) -> torch.Tensor:
    return session.inputs([session.loader.load(session.loader.item(image)) for image in images]).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(
        "### Deconvnet projections, peaks a second\n\n| layer | units | captum, a unit at a time | unitscope | times |\n| --- | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in dict.fromkeys(model for model, *_ in CASES):
            network = without_inplace(load_network(model, "none", 0))
            cases = [
                (layer, list(range(many)), list(range(few))) for case_model, layer, many, few in CASES if case_model == model
            ]
            atlas = unitscope.scan(
                network, arguments.folder, Path(folder) / model.split(":")[1], layers=[layer for layer, *_ in cases]
            )
            for layer, units, few_units in cases:
                runs = [
                    (captums(atlas, network, layer, few_units), ours(atlas, network, layer, units))
                    for _ in range(arguments.repeats)
                ]
                captum_rate, our_rate = (median(run[index] for run in runs) for index in (0, 1))
                times = median(our / captum for captum, our in runs)
                print(
                    f"| {model.split(':')[1]} {layer} | {len(units)} | {captum_rate:.1f} | {our_rate:.1f} | {times:.1f} |",
                    flush=True,
                )
    print()


if __name__ == "__main__":
    main()
