"""The commands of the experiments, those of the paper and their like."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unitscope.cli.networks import network_of, trusted
from unitscope.cli.output import picture_format, print_table, progress, save_picture
from unitscope.cli.parameters import (
    WHAT_IMAGES,
    AtlasFolder,
    Channels,
    Crop,
    Device,
    Images,
    Layers,
    Mean,
    Model,
    Resize,
    Seed,
    Std,
    TrustCode,
    ValueRange,
    Weights,
)
from unitscope.cli.parsing import lines_of, overrides_of


def evolve(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT …", help="State dicts, from early to late.")],
    model: Annotated[str, typer.Option(help="What the weights are of: a model string, as for scan.")],
    images: Annotated[str, typer.Option(help=WHAT_IMAGES)],
    out: Annotated[Path, typer.Option(help="The folder to write the atlases to.")] = Path("evolution"),
    layers: Layers = None, device: Device = "auto",
    resize: Resize = None, crop: Crop = None, mean: Mean = None, std: Std = None, channels: Channels = None,
    value_range: ValueRange = None,
) -> None:  # fmt: skip
    """Scan a network at several moments of its training, and draw how its units came to be."""
    from unitscope.experiments import evolve as evolve_network
    from unitscope.networks import load_network, preprocessing_for

    overrides = overrides_of(resize, crop, mean, std, channels, value_range)
    picture_format(out / "figure.png")  # or the work would be for nothing
    preprocessing = preprocessing_for(load_network(model, "none", 0), overrides)
    evolution = evolve_network(
        model, checkpoints, images, out, layers=layers, preprocess=preprocessing, device=device,
        on_checkpoint=lambda name: print(f"scanning {name}", file=sys.stderr),
    )  # fmt: skip
    print_table(evolution.settling())
    save_picture(evolution.figure(), out / "figure.png")


def probe(
    model: Model, images: Annotated[str, typer.Argument(help="A folder with a sub-folder for each label, or another labelled source.")],
    out: Annotated[Path, typer.Option(help="The folder to write the table and the plot to.")] = Path("probe"),
    weights: Weights = "default", seed: Seed = 0, layers: Layers = None,
    device: Device = "auto", resize: Resize = None, crop: Crop = None, mean: Mean = None, std: Std = None, channels: Channels = None,
    value_range: ValueRange = None,
) -> None:  # fmt: skip
    """Train a linear classifier on each layer's features: what is a layer good for?"""
    from unitscope.experiments import probe as probe_layers
    from unitscope.experiments.plots import draw_probe, plot_format

    plot_format(out / "probe.png")  # or the work would be for nothing
    network, preprocessing = network_of(model, weights, seed, overrides_of(resize, crop, mean, std, channels, value_range))
    with progress(None, "reading") as advance:
        table = probe_layers(network, images, out, layers=layers, preprocess=preprocessing, device=device, on_images=advance)
    print_table(table)
    draw_probe(table, out / "probe.png")
    print(f"drawn to {out / 'probe.png'}")


def invariance(
    model: Model, images: Annotated[str, typer.Argument(help=WHAT_IMAGES)],
    out: Annotated[Path, typer.Option(help="The folder to write the table and the plot to.")] = Path("invariance"),
    weights: Weights = "default", seed: Seed = 0, layers: Layers = None,
    device: Device = "auto", resize: Resize = None, crop: Crop = None, mean: Mean = None, std: Std = None, channels: Channels = None,
    value_range: ValueRange = None,
) -> None:  # fmt: skip
    """Move, enlarge and turn a few images: how far do each layer's features go with them?"""
    from unitscope.experiments import invariance as move_images
    from unitscope.experiments.plots import draw_invariance, plot_format

    plot_format(out / "invariance.png")  # or the work would be for nothing
    network, preprocessing = network_of(model, weights, seed, overrides_of(resize, crop, mean, std, channels, value_range))
    table = move_images(network, images, out, layers=layers, preprocess=preprocessing, device=device)
    draw_invariance(table, out / "invariance.png")
    print(f"drawn to {out / 'invariance.png'}")


def colour_or_shape(
    atlas: AtlasFolder, images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """See what is left of every unit's peaks in grey, blurred, scrambled and mirrored images."""
    from unitscope.atlas import Atlas
    from unitscope.experiments import colour_or_shape as change_images

    opened = Atlas(atlas, images=images)
    with progress(None, "changing") as advance:
        table = change_images(opened, trusted(opened, trust_code), device=device, on_images=advance)
    print_table(table.group_by("layer", use_threads=False).aggregate([(name, "mean") for name in table.column_names[3:]]))


def occlude(
    atlas: AtlasFolder, layer: Annotated[str, typer.Argument(help="Name of a layer.")],
    unit: Annotated[int, typer.Argument(help="Number of a unit.")],
    out: Annotated[Path | None, typer.Option(help="The PNG file to write; ATLAS-LAYER-UNIT-occluded.png if not given.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A file with the labels in the order of the network's outputs, one a line.")] = None,
    images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Slide a grey square over a unit's images: where does the unit drop, and what does the classifier see?"""
    from unitscope.atlas import Atlas
    from unitscope.experiments import occlude as occlude_peaks
    from unitscope.experiments.plots import draw_occlusion, plot_format

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}-{unit}-occluded.png")
    plot_format(path)  # or the work would be for nothing
    opened, names = Atlas(atlas, images=images), lines_of(classes) if classes else None
    known, network = opened.layer(layer).name, trusted(opened, trust_code)
    with progress(None, "covering") as advance:
        occlude_peaks(opened, known, [unit], network, classes=names, device=device, on_images=advance)
    draw_occlusion(opened, known, unit, names, path)
    print(f"drawn to {path}")
