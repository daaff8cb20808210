"""The commands of the experiments: those of the paper, and others of their kind."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unitscope.cli.networks import load_with_preprocessing, network_by_trusted_code
from unitscope.cli.output import check_picture_path, print_drawn, print_table, progress_bar, save_picture
from unitscope.cli.parameters import (
    IMAGES_HELP,
    AsJson,
    AtlasFolder,
    Device,
    Images,
    LayerName,
    LayerPatterns,
    Model,
    MovedImages,
    NetworkOptions,
    PreprocessingOptions,
    TrustCode,
)
from unitscope.cli.parsing import read_lines


def evolve(
    checkpoints: Annotated[list[Path], Parameter(help="State dicts, from early to late.")], /, *,
    model: Annotated[str, Parameter(help="What the weights are of: a model string, as for scan.")],
    images: Annotated[str, Parameter(help=IMAGES_HELP)],
    out: Annotated[Path, Parameter(help="The folder to write the atlases to.")] = Path("evolution"),
    layers: LayerPatterns = None, device: Device = "auto", preprocessing: PreprocessingOptions = PreprocessingOptions(),
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Scan a network at several checkpoints of its training, and draw how its units came to be."""
    from unitscope import experiments

    check_picture_path(out / "figure.png")  # or the work would be for nothing
    _, preprocess = load_with_preprocessing(model, NetworkOptions(weights="none", preprocessing=preprocessing))
    evolution = experiments.evolve(
        model, checkpoints, images, out, layers=layers, preprocess=preprocess, device=device, on_checkpoint=_print_checkpoint
    )
    print_table(evolution.settling(), as_json)
    save_picture(evolution.figure(), out / "figure.png")
    print_drawn(out / "figure.png", as_json)


def probe(
    model: Model, images: Annotated[str, Parameter(help="A folder with a sub-folder for each label, or another labelled source.")], /, *,
    out: Annotated[Path, Parameter(help="The folder to write the table and the plot to.")] = Path("probe"),
    layers: LayerPatterns = None, device: Device = "auto", network_options: NetworkOptions = NetworkOptions(), as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a linear classifier on each layer's features: what is a layer good for?"""
    from unitscope import experiments
    from unitscope.experiments.plots import draw_probe, plot_format

    plot_format(out / "probe.png")  # or the work would be for nothing
    network, preprocess = load_with_preprocessing(model, network_options)
    with progress_bar(None, "reading") as advance:
        table = experiments.probe(network, images, out, layers=layers, preprocess=preprocess, device=device, on_images=advance)
    print_table(table, as_json)
    draw_probe(table, out / "probe.png")
    print_drawn(out / "probe.png", as_json)


def invariance(
    model: Model, images: Images, /, *,
    out: Annotated[Path, Parameter(help="The folder to write the table and the plot to.")] = Path("invariance"),
    layers: LayerPatterns = None, device: Device = "auto", network_options: NetworkOptions = NetworkOptions(),
) -> None:  # fmt: skip
    """Move, enlarge and turn a few images: how far do each layer's features go with them?"""
    from unitscope import experiments
    from unitscope.experiments.plots import draw_invariance, plot_format

    plot_format(out / "invariance.png")  # or the work would be for nothing
    network, preprocess = load_with_preprocessing(model, network_options)
    table = experiments.invariance(network, images, out, layers=layers, preprocess=preprocess, device=device)
    draw_invariance(table, out / "invariance.png")
    print_drawn(out / "invariance.png")


def colour_or_shape(
    atlas: AtlasFolder, /, *, images: MovedImages = None, device: Device = "auto", trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """See what is left of every unit's peaks in grey, blurred, scrambled and mirrored images."""
    from unitscope import experiments
    from unitscope.atlas import Atlas

    opened = Atlas(atlas, images=images)
    with progress_bar(None, "changing") as advance:
        network = network_by_trusted_code(opened, trust_code)
        table = experiments.colour_or_shape(opened, network, device=device, on_images=advance)
    shares = table.column_names[3:]
    print_table(table.group_by("layer", use_threads=False).aggregate([(share, "mean") for share in shares]), as_json)


def occlude(
    atlas: AtlasFolder, layer: LayerName, unit: Annotated[int, Parameter(help="Number of a unit.")], /, *,
    out: Annotated[Path | None, Parameter(help="The PNG file to write; ATLAS-LAYER-UNIT-occluded.png if not given.")] = None,
    classes: Annotated[Path | None, Parameter(help="A file with the labels in the order of the network's outputs, one a line.")] = None,
    images: MovedImages = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Slide a grey square over a unit's images: where does the unit drop, and what does the classifier see?"""
    from unitscope import experiments
    from unitscope.atlas import Atlas
    from unitscope.experiments.plots import draw_occlusion, plot_format

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}-{unit}-occluded.png")
    plot_format(path)  # or the work would be for nothing
    opened, labels = Atlas(atlas, images=images), read_lines(classes) if classes else None
    layer_name, network = opened.layer(layer).name, network_by_trusted_code(opened, trust_code)
    with progress_bar(None, "covering") as advance:
        experiments.occlude(opened, layer_name, [unit], network, classes=labels, device=device, on_images=advance)
    draw_occlusion(opened, layer_name, unit, labels, path)
    print_drawn(path)


def _print_checkpoint(name: str) -> None:
    print(f"scanning {name}", file=sys.stderr)
