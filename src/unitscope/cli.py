"""The command line: one command a verb, each a thin face of the function of the same name."""

import json
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unitscope.errors import WHERE_IMAGES_ARE, ImagesWarning, UnitscopeError
from unitscope.files import check_writable, why, written

WHAT_IMAGES = (
    "A folder of images, a .txt file with one path a line (and a label after it), a glob, tar shards or Parquet files, here or behind a URL "
    "('s3://bucket/train-{000..127}.tar'), or hf:NAME:SPLIT."
)
MOST_UNITS = 1_000_000
LISTS = {"--layers", "--units", "--mean", "--std", "--crop", "--resize", "--value-range"}

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


@app.command()
def layers(
    model: Model, weights: Weights = "none", seed: Seed = 0, resize: Resize = None, crop: Crop = None, mean: Mean = None,
    std: Std = None, channels: Channels = None, value_range: ValueRange = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List every layer of a network in call order: name, kind, units, map, field, stride; and what its values depend on."""
    from unitscope.scanning import traced_layers, trial_of

    network, preprocessing = _network(model, weights, seed, _overrides(resize, crop, mean, std, channels, value_range))
    trace = traced_layers(network, preprocessing)
    trial = trial_of(network, trace)
    if as_json:
        rows = [
            {"layer": t.name} | {k: v for k, v in asdict(t.layer).items() if k != "name"} | {"default": t.default}
            for t in trace.layers
        ]
        refused = [{"layer": r.name, "reason": r.reason, "default": r.default} for r in trace.refused]
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
    _note_refused(trace)
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
    from unitscope.atlas import place_for
    from unitscope.images import as_source

    overrides = _overrides(resize, crop, mean, std, channels, value_range)
    place_for(out)
    spread = _runner(runner, address, cpus_per_worker, gpus_per_worker)
    source = as_source(images)
    network, preprocessing = _network(model, weights, seed, overrides)
    options = {"layers": layers, "k": k, "per_image": per_image, "batch_size": batch_size, "device": device}
    options["workers"] = _workers(workers)
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
    numbers = _units(units)
    _picture_format(path)  # or the work would be for nothing
    opened = Atlas(atlas, images=images)
    _save(opened.sheet(layer, units=numbers, patch=patch, attribution=attribution), path)


@app.command()
def figure(
    atlas: AtlasFolder, out: Annotated[Path | None, typer.Option(help="The PNG or PDF file to write; ATLAS.png if not given.")] = None,
    layers: Layers = None, units: Units = None, patch: Patch = "auto", attribution: Attribution = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of units.")] = 0, images: Images = None,
) -> None:  # fmt: skip
    """Draw the network from shallow to deep: up to six layers, nine units each, nine patches a unit."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}.png")
    _picture_format(path)  # or the work would be for nothing
    image = Atlas(atlas, images=images).figure(
        layers=layers, units=_units(units), patch=patch, seed=seed, size_px=96, attribution=attribution
    )
    _save(image, path)


@app.command()
def attribute(
    atlas: AtlasFolder,
    method: Annotated[str, typer.Option(help="deconvnet, guided, gradient, integrated or occlusion.")] = "deconvnet",
    layers: Layers = None, units: Units = None, images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Find what in each patch excites the unit, and keep an image of it for every peak."""
    from unitscope.atlas import Atlas
    from unitscope.attribution import attribute as attribute_peaks

    numbers = _units(units)
    opened = Atlas(atlas, images=images)
    try:
        with _progress(None, method, "peaks") as advance:
            done = attribute_peaks(
                opened, method, _trusted(opened, trust_code), layers=layers, units=numbers, device=device, on_peaks=advance
            )
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on from here", 130)
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

    overrides = _overrides(resize, crop, mean, std, channels, value_range)
    _picture_format(out / "figure.png")  # or the work would be for nothing
    preprocessing = preprocessing_for(load_network(model, "none", 0), overrides)
    evolution = evolve_network(
        model, checkpoints, images, out, layers=layers, preprocess=preprocessing, device=device,
        on_checkpoint=lambda name: print(f"scanning {name}", file=sys.stderr),
    )  # fmt: skip
    _print_table(evolution.settling())
    _save(evolution.figure(), out / "figure.png")


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
    network, preprocessing = _network(model, weights, seed, _overrides(resize, crop, mean, std, channels, value_range))
    with _progress(None, "reading") as advance:
        table = probe_layers(network, images, out, layers=layers, preprocess=preprocessing, device=device, on_images=advance)
    _print_table(table)
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
    network, preprocessing = _network(model, weights, seed, _overrides(resize, crop, mean, std, channels, value_range))
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
    with _progress(None, "changing") as advance:
        table = change_images(opened, _trusted(opened, trust_code), device=device, on_images=advance)
    _print_table(table.group_by("layer", use_threads=False).aggregate([(name, "mean") for name in table.column_names[3:]]))


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
    from unitscope.attribution import attribute as attribute_peaks
    from unitscope.experiments import occlusion
    from unitscope.experiments.plots import draw_occlusion, plot_format

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}-{unit}-occluded.png")
    plot_format(path)  # or the work would be for nothing
    opened, names = Atlas(atlas, images=images), _lines(classes) if classes else None
    known, network = opened.layer(layer).name, _trusted(opened, trust_code)
    with _progress(None, "covering") as advance:
        occlusion(opened, known, [unit], network, classes=names, device=device, on_images=advance)
        attribute_peaks(opened, "occlusion", network, layers=[known], units=[unit], device=device)
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
    result = check_atlas(opened, _trusted(opened, trust_code), device=device)
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
    _serve(first, second, host, port, device, trust_code)


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
    with _progress(units, "exporting", "units") as advance:
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
        network, preprocessing = _network("demo:efficientnet-lite0", "default", 0, _overrides())
        _scan(network, source, place, preprocess=preprocessing, limit=limit, device=device)
    _save(Atlas(place).figure(size_px=96), out / "figure.png")
    if serve:
        _serve(Atlas(place), None, "127.0.0.1", 8000, device, trust_code=False)
    else:
        print(f"to look at every unit: {Path(sys.argv[0])} serve {place}")


def main() -> None:
    """Run a command; a `UnitscopeError` becomes one line and exit status 1, a warning one line on the way."""
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    warnings.simplefilter("always", ImagesWarning)
    try:
        app(args=gathered(sys.argv[1:]))
    except UnitscopeError as error:
        _stop(f"{type(error).__name__}: {error}", 1)
    except (OSError, UnicodeError, MemoryError) as error:  # a file, or memory, that the system doesn't give
        _stop(f"{type(error).__name__}: {error}", 1)


def gathered(arguments: Sequence[str]) -> list[str]:
    """`--layers A B` as `--layers A --layers B`, and `--units 1 2` as `--units 1,2`, since an option takes one word.

    Words are an option's once the command has its own; before that an option takes one.
    """
    group = typer.main.get_command(app)
    command = getattr(group, "commands", {}).get(arguments[0] if arguments else "")
    if command is None:
        return list(arguments)
    valued = {name for p in command.params if p.param_type_name == "option" and not p.is_flag for name in p.opts}
    missing = sum(p.param_type_name == "argument" for p in command.params)
    many = any(p.nargs == -1 for p in command.params)  # an argument of many words takes those that are nobody's
    result, option, words = [arguments[0]], "", iter(arguments[1:])
    for word in words:
        if word.startswith("--"):
            option = word
            result += [word, *islice(words, 1)] if word in valued else [word]
        elif option in LISTS and not missing:
            result += [option, word] if option == "--layers" else [f"{result.pop()},{word}"]
        else:
            missing, option = max(0, missing - 1), "" if many else option
            result.append(word)
    return result


def _stop(text: str, status: int) -> NoReturn:
    print(" ".join(text.split()), file=sys.stderr)
    raise SystemExit(status)


def _scan(network: Any, images: Any, out: Path, **options: Any) -> None:
    from unitscope.images import as_source, count_of
    from unitscope.scanning import scan as scan_images
    from unitscope.scanning.checkpoints import folder_for

    source = as_source(images)
    count, limit = count_of(source), options.get("limit")
    total = count if count is None or limit is None else min(count, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _progress(total) as advance:
            atlas = scan_images(network, source, out, on_images=advance, **options)
    except KeyboardInterrupt:
        kept = folder_for(Path(os.path.realpath(out))).exists()
        _stop("stopped; the same command goes on from the last checkpoint" if kept else "stopped; nothing was written", 130)
    skipped = atlas.manifest["skipped"]
    print(
        f"{atlas.manifest['read']:,} images, {len(atlas.layers)} layers, {sum(layer.units for layer in atlas.layers):,} units in {out}"
    )
    if again := atlas.manifest.get("again"):
        print(f"{again:,} of {atlas.manifest['read']:,} images ran again in fp32 ({again / atlas.manifest['read']:.1%})")
    if skipped:
        print(f"{skipped:,} files were skipped; why is in {out / 'skipped.parquet'}")


def _print_table(table: Any) -> None:
    shown = Table(*table.column_names, box=None)
    for row in table.to_pylist():
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _workers(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _runner(name: str, address: str | None, cpus_per_worker: int, gpus_per_worker: float) -> Any:
    if name == "here":
        return None
    if name != "ray":
        raise typer.BadParameter(f"--runner is here or ray, not {name!r}")
    from unitscope.runners.on_ray import RayRunner

    return RayRunner(address, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)


def _trusted(atlas: Any, trust_code: bool) -> Any:
    """The network of an atlas whose code the user trusts; None leaves it to the verb, which runs no such code."""
    if not trust_code or atlas.manifest["network"]["model"].startswith("module:"):
        return None
    from unitscope.scanning.again import trusted_network

    return trusted_network(atlas)


def _serve(atlas: Any, beside: Any, host: str, port: int, device: str, trust_code: bool) -> None:
    from unitscope.web import Offer, explorer
    from unitscope.web.app import LOOPBACK
    from unitscope.web.serving import server

    own = host in (*LOOPBACK, "::1")
    off = _why_no_search(atlas, trust_code)
    with ExitStack() as stack:
        fires = _listener(atlas, device, trust_code, stack) if off is None else None
        application = explorer(atlas, Offer(beside, fires, (*LOOPBACK, host) if own else ("*",), off))
        bound = _bound(host, port)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{bound.getsockname()[1]}/ shows {atlas.folder}; Ctrl+C ends it", flush=True)
        if not own:
            print("whoever reaches this machine can see the atlas and its images", file=sys.stderr)
        server(application).run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(
            (address[0], address[1]), family=family
        )  # who opens the address printed next may have to wait
    except OSError as error:
        raise UnitscopeError(f"can't listen on {host} port {port}: {error}; give another --host or --port") from error


def _why_no_search(atlas: Any, trust_code: bool) -> str | None:
    """Why an image of one's own can't be searched with: no known way to the input, or a network that isn't built unasked."""
    if atlas.preprocessing is None:
        return f"the atlas {str(atlas.folder)!r} was made from tensors, so there is no known way from an image to its input"
    in_memory = atlas.manifest["network"]["model"].startswith("module:")
    reason: str | None = atlas.why_no_network
    return None if trust_code and not in_memory else reason


def _listener(atlas: Any, device: str, trust_code: bool, stack: ExitStack) -> Callable[[Any], Any]:
    """Runs the network over an image; the network is loaded for the first one."""
    held: list[Callable[[Any], Any]] = []
    loading = Lock()

    def listen(image: Any) -> Any:
        with loading:
            if not held:
                from unitscope.listening import listening

                held.append(stack.enter_context(listening(atlas, _trusted(atlas, trust_code), device)))
        return held[0](image)

    return listen


@contextmanager
def _progress(total: int | None, what: str = "scanning", each: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar with images per second and time left; nothing where nobody looks."""
    words, columns = TextColumn("{task.description}"), (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        words, *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[0].speed
            doing = "measuring effective fields" if progress.finished and what == "scanning" else what
            progress.update(task, rate=f"{speed:.1f} {each}/s" if speed else "", description=doing)

        yield advance


def _network(model: str, weights: str, seed: int, overrides: Any) -> tuple[Any, Any]:
    from unitscope.networks import load_network, preprocessing_for

    network = load_network(model, weights, seed)
    return network, preprocessing_for(network, overrides)


def _overrides(
    resize: str | None = None,
    crop: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    channels: int | None = None,
    value_range: str | None = None,
) -> Any:
    from unitscope.networks import Overrides

    sizes = _numbers(resize, int, "--resize"), _numbers(crop, int, "--crop")
    for option, size in zip(("--resize", "--crop"), sizes, strict=True):
        if size is not None and len(size) > 2:
            raise typer.BadParameter(f"{option} takes one number or two, not {len(size)}")
    resized = None if sizes[0] is None else sizes[0][0] if len(sizes[0]) == 1 else (sizes[0][0], sizes[0][1])
    cropped = None if sizes[1] is None else (sizes[1][0], sizes[1][-1])
    means, stds = _numbers(mean, float, "--mean"), _numbers(std, float, "--std")
    values = _numbers(value_range, float, "--value-range")
    if values is not None and len(values) != 2:
        raise typer.BadParameter(f"--value-range takes two numbers, not {len(values)}")
    return Overrides(
        resized, cropped, tuple(means) if means else None, tuple(stds) if stds else None, channels,
        None if values is None else (values[0], values[1]),
    )  # fmt: skip


def _lines(path: Path) -> list[str]:
    """The lines of a text file without the space around them and without empty ones at the end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = why(error) if isinstance(error, OSError) else "it isn't text in UTF-8"
        raise UnitscopeError(f"{str(path)!r} can't be read: {reason}") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def _units(text: str | None) -> list[int] | None:
    """Numbers of units, and ranges of them: `0-8,17`."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"--units takes numbers and ranges, as in 0-8 17, not {part!r}")
        start, stop = int(first), int(last or first)
        if stop < start or stop - start > MOST_UNITS:
            raise typer.BadParameter(f"--units takes ranges from a lower to a higher number, as in 0-8, not {part!r}")
        found += range(start, stop + 1)
    return found


def _numbers(text: str | None, kind: Callable[[str], Any], option: str) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers with commas between, not {text!r}") from None


def _save(image: Any, path: Path) -> None:
    kind = _picture_format(path)
    with written(path, f"the picture {str(path)!r}", UnitscopeError) as aside:
        try:
            image.save(aside, kind, **({"resolution": 200, "quality": 95} if kind == "PDF" else {}))
        except (ValueError, KeyError) as error:  # larger than the format can hold, or colours that it doesn't have
            raise UnitscopeError(
                f"the picture {str(path)!r} can't be written as {kind}: {error}; .png holds everything"
            ) from error
    print(f"drawn to {path}")


def _picture_format(path: Path) -> str:
    """The format that a path's ending means. Raises `UnitscopeError` where there is none, or where nothing can be written there."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        raise UnitscopeError(
            f"the picture {str(path)!r} can't be written: {path.suffix!r} is no picture format; end it with .png or .pdf"
        )
    check_writable(path, f"the picture {str(path)!r}", UnitscopeError)
    return kind


def _note_refused(trace: Any) -> None:
    from unitscope.scanning import unknown_said

    if trace.refused:
        print(
            f"{len(trace.refused)} more can't be scanned: {trace.refused[0].name!r}: {trace.refused[0].reason}",
            file=sys.stderr,
        )
    if trace.unknown_operators:
        print(unknown_said(trace), file=sys.stderr)
