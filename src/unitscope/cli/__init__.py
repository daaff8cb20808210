"""The command line: one command a verb, each a thin face of the function of the same name."""

import json
import os
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unitscope.cli.parsing import gathered, lines_of, network_of, overrides_of, runner_of, units_of, workers_of
from unitscope.cli.printing import note_refused, picture_format, print_table, progress, save_picture, stop
from unitscope.cli.serving import serve_atlas, trusted
from unitscope.errors import WHERE_IMAGES_ARE, ImagesWarning, UnitscopeError

WHAT_IMAGES = (
    "A folder of images, a .txt file with one path a line (and a label after it), a glob, tar shards or Parquet files, here or behind a URL "
    "('s3://bucket/train-{000..127}.tar'), or hf:NAME:SPLIT."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A microscope for the units of trained networks.",
)

Model = Annotated[
    str, typer.Argument(help="torchvision:NAME, timm:NAME, demo:efficientnet-lite0, PACKAGE.MODULE:FACTORY or PATH.py:FACTORY")
]
AtlasFolder = Annotated[Path, typer.Argument(metavar="ATLAS", help="The folder of an atlas.")]
Weights = Annotated[
    str,
    typer.Option(help="default, none (random, by --seed), or the path of a state dict; PATH:KEY for one of several in a file."),
]
Seed = Annotated[int, typer.Option(help="Seed of random weights.")]
Resize = Annotated[str | None, typer.Option(metavar="N | H W", help="Length of the shorter side, or height and width.")]
Crop = Annotated[str | None, typer.Option(metavar="N | H W", help="What is cut from the centre.")]
Mean = Annotated[str | None, typer.Option(metavar="M …", help="Mean per channel, for values from 0 to 1.")]
Std = Annotated[str | None, typer.Option(metavar="S …", help="Standard deviation per channel.")]
ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW HIGH", help="The values that are black and white in images of more than 8 bits, where files don't say."
    ),
]
Channels = Annotated[int | None, typer.Option(help="1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.")]
Layers = Annotated[list[str] | None, typer.Option(metavar="GLOB …", help="Glob patterns of layer names.")]
Units = Annotated[str | None, typer.Option(metavar="N …", help="Numbers of units, and ranges of them: 0-8 17.")]
Patch = Annotated[str, typer.Option(help="auto, field, effective or image: what of the image is drawn.")]
Attribution = Annotated[str | None, typer.Option(metavar="METHOD", help="Draw what this method found beside the patches.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Images = Annotated[str | None, typer.Option(help="Where the images are now, if they have moved.")]
Beside = Annotated[Path | None, typer.Option(metavar="ATLAS", help="Another atlas, to compare with.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code that the atlas names to build its network with, PATH.py or PACKAGE.MODULE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _show_version(asked: bool | None) -> None:
    if asked:
        print(f"unitscope {version('unitscope')}")
        raise typer.Exit


@app.callback()
def with_version(
    asked: Annotated[
        bool | None, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = None,
) -> None:
    """A microscope for the units of trained networks."""


@app.command()
def layers(
    model: Model, weights: Weights = "none", seed: Seed = 0, resize: Resize = None, crop: Crop = None, mean: Mean = None,
    std: Std = None, channels: Channels = None, value_range: ValueRange = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List every layer of a network in call order: name, kind, units, map, field, stride; and what its values depend on."""
    from unitscope.session.opening import trace_network, trial_of

    network, preprocessing = network_of(model, weights, seed, overrides_of(resize, crop, mean, std, channels, value_range))
    trace = trace_network(network, preprocessing)
    trial = trial_of(network, trace)
    if as_json:
        rows = [
            {"layer": t.name} | {k: v for k, v in asdict(t.layer).items() if k != "name"} | {"default": t.default}
            for t in trace.layers
        ]
        refused = [{"layer": r.name, "reason": r.reason, "default": r.default} for r in trace.unreadable]
        unknown = sorted(trace.unknown_operators)
        found = {"left_out": refused, "operators_without_rule": unknown, "trial": trial.described()}
        print(json.dumps({"layers": rows} | found, indent=1))
        return
    table = Table("layer", "kind", "units", "map", "field", "stride", "activation", "default", box=None)
    for traced in trace.layers:
        one = traced.layer
        sizes = (
            f"{one.map_height} x {one.map_width}",
            f"{one.receptive_field_height} x {one.receptive_field_width}",
            f"{one.stride_y} x {one.stride_x}",
        )
        table.add_row(one.name, one.kind, str(one.units), *sizes, one.activation, "yes" if traced.default else "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    note_refused(trace)
    for finding in trial.findings():
        print(finding, file=sys.stderr)


@app.command()
def scan(
    model: Model, images: Annotated[str, typer.Argument(help=WHAT_IMAGES)],
    out: Annotated[Path, typer.Option(help="The folder to write the atlas to.")] = Path("atlas"),
    weights: Weights = "default", seed: Seed = 0, layers: Layers = None,
    k: Annotated[int, typer.Option(help="Peaks a unit.")] = 9,
    per_image: Annotated[int, typer.Option(help="Peaks a unit may have in one image, half a field apart.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 32,
    workers: Annotated[
        str, typer.Option(help="Threads that decode files (auto: 2), or processes that read a data set (auto: none, but this one).")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Scan the first images only.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16: screen in bfloat16, rank in float32.")] = "fp32",
    sample: Annotated[int, typer.Option(help="Images of which every unit's value is kept, to compare with.")] = 200,
    runner: Annotated[str, typer.Option(help="here, or ray: on all machines of a Ray cluster.")] = "here",
    address: Annotated[str | None, typer.Option(help="The Ray cluster's; auto finds that of this machine, none starts one here.")] = None,
    cpus_per_worker: Annotated[int, typer.Option(help="Cores of one Ray worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of one Ray worker.")] = 0,
    device: Device = "auto", resize: Resize = None, crop: Crop = None, mean: Mean = None, std: Std = None, channels: Channels = None,
    value_range: ValueRange = None,
) -> None:  # fmt: skip
    """Find the patches that excite every unit most, and keep them in an atlas."""
    from unitscope.atlas import new_atlas_folder
    from unitscope.images import as_source

    overrides = overrides_of(resize, crop, mean, std, channels, value_range)
    new_atlas_folder(out)
    spread = runner_of(runner, address, cpus_per_worker, gpus_per_worker)
    source = as_source(images)
    network, preprocessing = network_of(model, weights, seed, overrides)
    options = {"layers": layers, "k": k, "per_image": per_image, "batch_size": batch_size, "device": device}
    options["workers"] = workers_of(workers)
    options |= {"precision": precision, "sample": sample}
    _scan(network, source, out, preprocess=preprocessing, limit=limit, runner=spread, **options)


@app.command()
def sheet(
    atlas: AtlasFolder, layer: Annotated[str, typer.Argument(help="Name of a layer.")],
    out: Annotated[Path | None, typer.Option(help="The PNG file to write; ATLAS-LAYER.png if not given.")] = None,
    units: Units = None, patch: Patch = "auto", attribution: Attribution = None, images: Images = None,
) -> None:  # fmt: skip
    """Draw all units of a layer, nine patches each."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}.png")
    numbers = units_of(units)
    picture_format(path)  # or the work would be for nothing
    opened = Atlas(atlas, images=images)
    save_picture(opened.sheet(layer, units=numbers, patch=patch, attribution=attribution), path)


@app.command()
def figure(
    atlas: AtlasFolder, out: Annotated[Path | None, typer.Option(help="The PNG or PDF file to write; ATLAS.png if not given.")] = None,
    layers: Layers = None, units: Units = None, patch: Patch = "auto", attribution: Attribution = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of units.")] = 0, images: Images = None,
) -> None:  # fmt: skip
    """Draw the network from shallow to deep: up to six layers, nine units each, nine patches a unit."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}.png")
    picture_format(path)  # or the work would be for nothing
    image = Atlas(atlas, images=images).figure(
        layers=layers, units=units_of(units), patch=patch, seed=seed, size_px=96, attribution=attribution
    )
    save_picture(image, path)


@app.command()
def attribute(
    atlas: AtlasFolder,
    method: Annotated[str, typer.Option(help="deconvnet, guided_backprop, gradient, integrated_gradients or occlusion.")] = "deconvnet",
    layers: Layers = None, units: Units = None, images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Find what in each patch excites the unit, and keep an image of it for every peak."""
    from unitscope.atlas import Atlas
    from unitscope.attribution import attribute as attribute_peaks

    numbers = units_of(units)
    opened = Atlas(atlas, images=images)
    try:
        with progress(None, method, "peaks") as advance:
            done = attribute_peaks(
                opened, method, trusted(opened, trust_code), layers=layers, units=numbers, device=device, on_peaks=advance
            )
    except KeyboardInterrupt:
        stop("stopped; the same command goes on from here", 130)
    print(f"{done:,} peaks in {atlas / 'attributions' / f'{method}.parquet'}; draw them with --attribution {method}")


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def check(
    atlas: AtlasFolder, images: Images = None, device: Device = "auto", trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run the images of the peaks again and report every value that does not come back."""
    from unitscope.atlas import Atlas
    from unitscope.checking import check as check_atlas

    opened = Atlas(atlas, images=images)
    result = check_atlas(opened, trusted(opened, trust_code), device=device)
    if as_json:
        print(json.dumps(asdict(result), indent=1))
    else:
        for one in result.differences:
            found = one.reason if one.found is None else f"is {one.found:.7g} now"
            print(f"{one.layer} unit {one.unit} rank {one.rank}, {one.key}: was {one.stored:.7g}, {found}")
        print(f"{result.peaks - len(result.differences):,} of {result.peaks:,} peaks come back")
    if result.differences:
        raise typer.Exit(1)


@app.command()
def serve(
    atlas: AtlasFolder, beside: Beside = None,
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine's own let others look.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any that is free.")] = 8000,
    images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Open an atlas in the browser: every layer, unit and image has a page."""
    from unitscope.atlas import Atlas

    first, second = Atlas(atlas, images=images), Atlas(beside) if beside else None
    serve_atlas(first, second, host, port, device, trust_code)


@app.command()
def export(
    atlas: AtlasFolder, site: Annotated[Path, typer.Argument(metavar="SITE", help="The folder to write.")],
    beside: Beside = None, images: Images = None,
) -> None:  # fmt: skip
    """Write the same pages as files, for any static host or to be opened from a disk."""
    from unitscope.atlas import Atlas
    from unitscope.web import export as export_site

    first, second = Atlas(atlas, images=images), Atlas(beside) if beside else None
    units = sum(layer.units for one in (first, second) if one for layer in one.layers)
    with progress(units, "exporting", "units") as advance:
        written = export_site(first, site, second, on_units=advance)
    for key, reason in islice(written.lacking.items(), 1):
        print(
            f"{len(written.lacking):,} images, and the patches in them, could not be drawn: {key!r} {reason}; {WHERE_IMAGES_ARE}",
            file=sys.stderr,
        )
    print(f"{written.files:,} files, {written.bytes / 1e6:,.0f} MB in {site}; open {site / 'index.html'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("unitscope-demo"),
    images: Annotated[Path | None, typer.Option(help="Your own folder of images.")] = None,
    limit: Annotated[int | None, typer.Option(help="Scan the first images only.")] = None,
    device: Device = "auto",
    serve: Annotated[bool, typer.Option("--serve", help="Open the explorer at the end.")] = False,
) -> None:
    """Scan EfficientNet-Lite0 with its ImageNet weights over photographs that come with Python packages, and draw the figure."""
    from unitscope.atlas import Atlas
    from unitscope.demonstration import demo_images
    from unitscope.images import FolderSource

    place, source = out / "atlas", FolderSource(images or demo_images(out / "images"))
    if (place / "atlas.json").exists():
        said = Atlas(place).manifest
        if said["images"].get("folder") != source.description["folder"] or said["listed"] != min(
            len(source), limit or len(source)
        ) + len(source.passed_over):
            raise UnitscopeError(f"the atlas in {str(place)!r} is one of other images; give another --out")
        print(f"using the atlas that is in {place} already")
    else:
        network, preprocessing = network_of("demo:efficientnet-lite0", "default", 0, overrides_of())
        _scan(network, source, place, preprocess=preprocessing, limit=limit, device=device)
    save_picture(Atlas(place).figure(size_px=96), out / "figure.png")
    if serve:
        serve_atlas(Atlas(place), None, "127.0.0.1", 8000, device, trust_code=False)
    else:
        print(f"to look at every unit: {Path(sys.argv[0])} serve {place}")


def main() -> None:
    """Run a command; a `UnitscopeError` becomes one line and exit status 1, a warning one line on the way."""
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    warnings.simplefilter("always", ImagesWarning)
    try:
        app(args=gathered(app, sys.argv[1:]))
    except UnitscopeError as error:
        stop(f"{type(error).__name__}: {error}", 1)
    except (OSError, UnicodeError, MemoryError) as error:  # a file, or memory, that the system doesn't give
        stop(f"{type(error).__name__}: {error}", 1)


def _scan(network: Any, images: Any, out: Path, **options: Any) -> None:
    from unitscope.images import as_source
    from unitscope.scanning import scan as scan_images
    from unitscope.scanning.checkpoint import checkpoint_folder

    source = as_source(images)
    total = source.count(options.get("limit"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with progress(total) as advance:
            atlas = scan_images(network, source, out, on_images=advance, **options)
    except KeyboardInterrupt:
        kept = checkpoint_folder(Path(os.path.realpath(out))).exists()
        stop("stopped; the same command goes on from the last checkpoint" if kept else "stopped; nothing was written", 130)
    skipped = atlas.manifest["skipped"]
    print(
        f"{atlas.manifest['read']:,} images, {len(atlas.layers)} layers, {sum(layer.units for layer in atlas.layers):,} units in {out}"
    )
    if again := atlas.manifest.get("again"):
        print(f"{again:,} of {atlas.manifest['read']:,} images ran again in fp32 ({again / atlas.manifest['read']:.1%})")
    if skipped:
        print(f"{skipped:,} files were skipped; why is in {out / 'skipped.parquet'}")
