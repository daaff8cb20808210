"""The commands that scan a network, say which layers it has, and run an atlas's images again."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unitscope.cli.networks import network_of, trusted
from unitscope.cli.output import note_refused, progress, stop
from unitscope.cli.parameters import (
    WHAT_IMAGES,
    AsJson,
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
from unitscope.cli.parsing import overrides_of, runner_of, workers_of


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
    run_scan(network, source, out, preprocess=preprocessing, limit=limit, runner=spread, **options)


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


def run_scan(network: Any, images: Any, out: Path, **options: Any) -> None:
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
