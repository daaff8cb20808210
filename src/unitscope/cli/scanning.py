"""The commands that scan a network, say which layers it has, and run an atlas's images again."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unitscope.cli.drawing import PackFlags, pack_opened
from unitscope.cli.networks import load_with_preprocessing, network_by_trusted_code
from unitscope.cli.output import print_json, print_rows, progress_bar
from unitscope.cli.parameters import (
    AsJson,
    AtlasFolder,
    Device,
    Images,
    LayerPatterns,
    Model,
    MovedImages,
    NetworkOptions,
    TrustCode,
    UntrainedNetworkOptions,
)

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.checking import Difference
    from unitscope.layers import Trace, TracedLayer

LAYER_COLUMNS = ("layer", "kind", "units", "activation map", "receptive field", "stride", "activation", "default", "units of")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFlags:
    """What `scan` takes by name."""

    layers: LayerPatterns = None
    k: Annotated[int, Parameter(help="Peaks a unit.")] = 9
    per_image: Annotated[int, Parameter(help="Peaks a unit may have in one image, half a field apart.")] = 1
    batch_size: Annotated[int, Parameter(help="Images in one forward pass.")] = 32
    workers: Annotated[
        int | Literal["auto"],
        Parameter(
            help="Threads that decode files (auto: one a core), or processes that read a data set (auto: none, but this one).",
            metavar="N | auto",
            show_choices=False,
        ),
    ] = "auto"
    inner: Annotated[bool, Parameter(help="Only cells whose receptive field lies on the image: patches without padding.")] = False
    limit: Annotated[int | None, Parameter(help="Scan the first images only.")] = None
    precision: Annotated[str, Parameter(help="fp32, or bf16: screen in bfloat16, rank in float32.")] = "fp32"
    sample: Annotated[int, Parameter(help="Images of which every unit's value is kept, to compare with.")] = 200
    candidates: Annotated[
        int | None,
        Parameter(
            help="How many of each unit's highest values are kept to choose its peaks from, without near-duplicates; 50, or 12 under bf16, if not given.",
            metavar="N",
        ),
    ] = None
    labels: Annotated[Path | None, Parameter(help="A CSV file with the key and the label of every image.", metavar="FILE")] = None
    classes: Annotated[
        Path | None, Parameter(help="Text with the name of each of the network's classes, a line each.", metavar="FILE")
    ] = None
    tuning: Annotated[bool, Parameter(help="Keep every unit's mean response to each label.", negative="--no-tuning")] = True
    troughs: Annotated[
        bool | None,
        Parameter(
            help="Keep the lowest cells too, where nothing rectifies: on, but under bf16, if not given.",
            negative="--no-troughs",
            show_default=False,
        ),
    ] = None
    device: Device = "auto"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What runs the shards of a scan."""

    runner: Annotated[
        Literal["local", "ray"],
        Parameter(help="local: in this process; ray: on all machines of a Ray cluster.", metavar="NAME", show_choices=False),
    ] = "local"
    address: Annotated[
        str | None, Parameter(help="The Ray cluster's; auto finds that of this machine, none starts one here.")
    ] = None
    cpus_per_worker: Annotated[int, Parameter(help="Cores of one Ray worker.")] = 1
    gpus_per_worker: Annotated[float, Parameter(help="GPUs of one Ray worker.")] = 0

    def build(self) -> Any:
        """The runner; None for the one that a scan takes by itself. Raises `UnitscopeError` where Ray or its cluster is missing."""
        if self.runner == "local":
            return None
        from unitscope.runners.ray import RayRunner

        return RayRunner(self.address, cpus_per_worker=self.cpus_per_worker, gpus_per_worker=self.gpus_per_worker)


def layers(
    model: Model, /, *,
    trial: Annotated[bool, Parameter(help="Also run it on noise: do its values depend on more than the image? A scan does so anyway.")] = False,
    network_options: UntrainedNetworkOptions = UntrainedNetworkOptions(), as_json: AsJson = False,
) -> None:  # fmt: skip
    """List every layer of a network in call order: name, kind, units, map, field, stride."""
    from unitscope.session.opening import trace_network, trial_of

    network, preprocess = load_with_preprocessing(model, network_options)
    trace = trace_network(network, preprocess)
    result = trial_of(network, trace) if trial else None
    if as_json:
        print_json(_layers_json(trace) | ({} if result is None else {"trial": result.described()}))
        return
    print_rows(LAYER_COLUMNS, [_layer_row(traced) for traced in trace.layers])
    _warn_of_unread_layers(trace)
    for finding in () if result is None else result.findings():
        print(finding, file=sys.stderr)


def scan(
    model: Model, images: Images, /, *, out: Annotated[Path, Parameter(help="The folder to write the atlas to.")] = Path("atlas"),
    scan_options: ScanFlags = ScanFlags(), runner_options: RunnerOptions = RunnerOptions(),
    network_options: NetworkOptions = NetworkOptions(),
    pack: Annotated[bool, Parameter(help="Put patches and small pictures into the atlas afterwards, as pack does.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Find the patches that excite every unit most, and keep them in an atlas."""
    from unitscope.atlas import new_atlas_folder
    from unitscope.images import as_source

    new_atlas_folder(out)
    shard_runner = runner_options.build()
    source = as_source(images)
    network, preprocess = load_with_preprocessing(model, network_options)
    atlas = run_scan(network, source, out, preprocess=preprocess, runner=shard_runner, **asdict(scan_options))
    if pack:
        pack_opened(atlas, PackFlags())


def check(
    atlas: AtlasFolder, /, *, images: MovedImages = None, device: Device = "auto", trust_code: TrustCode = False, as_json: AsJson = False,
) -> int:  # fmt: skip
    """Run the images of the peaks, and of the troughs, again and report every value that does not come back."""
    from unitscope import checking
    from unitscope.atlas import Atlas

    opened = Atlas(atlas, images=images)
    result = checking.check(opened, network_by_trusted_code(opened, trust_code), device=device)
    if as_json:
        print_json(asdict(result))
    else:
        for difference in result.differences:
            print(_difference_text(difference))
        differing = sum(difference.is_trough for difference in result.differences)
        print(f"{result.peaks - len(result.differences) + differing:,} of {result.peaks:,} peaks come back")
        if result.troughs:
            print(f"{result.troughs - differing:,} of {result.troughs:,} troughs come back")
    return 1 if result.differences else 0


def run_scan(network: Any, images: Any, out: Path, **options: Any) -> "Atlas":
    """Scan with a progress bar, and print what the atlas holds. The options are those of `unitscope.scan`."""
    from unitscope import scanning
    from unitscope.images import as_source
    from unitscope.scanning.checkpoint import checkpoint_folder

    source = as_source(images)
    total = source.count(options.get("limit"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with progress_bar(total) as advance:
            atlas = scanning.scan(network, source, out, on_images=advance, **options)
    except KeyboardInterrupt as interrupt:
        resumable = checkpoint_folder(Path(os.path.realpath(out))).exists()
        consequence = "the same command goes on from the last checkpoint" if resumable else "nothing was written"
        raise KeyboardInterrupt(f"stopped; {consequence}") from interrupt
    _print_scanned(atlas, out)
    return atlas


def _print_scanned(atlas: "Atlas", out: Path) -> None:
    image_count, rescreened_count = atlas.manifest["read"], atlas.manifest.get("images_run_twice")
    unit_count = sum(layer.units for layer in atlas.layers)
    print(f"{image_count:,} images, {len(atlas.layers)} layers, {unit_count:,} units in {out}")
    if rescreened_count:
        print(f"{rescreened_count:,} of {image_count:,} images ran again in fp32 ({rescreened_count / image_count:.1%})")
    if skipped_count := atlas.manifest["skipped"]:
        print(f"{skipped_count:,} files were skipped; why is in {out / 'skipped.parquet'}")


def _layer_row(traced: "TracedLayer") -> list[str]:
    layer = traced.layer
    return [
        layer.name,
        layer.kind,
        str(layer.units),
        f"{layer.map_height} x {layer.map_width}",
        f"{layer.receptive_field_height} x {layer.receptive_field_width}",
        f"{layer.stride_y} x {layer.stride_x}",
        layer.activation,
        "yes" if traced.is_default else "",
        layer.shares_units_of or "",
    ]


def _layers_json(trace: "Trace") -> dict[str, Any]:
    from unitscope.layers import unknown_operators

    return {
        "layers": [_layer_json(traced) for traced in trace.layers],
        "left_out": [{"layer": layer.name, "reason": layer.reason, "default": layer.is_default} for layer in trace.unreadable],
        "operators_without_rule": unknown_operators(trace.layers),
    }


def _layer_json(traced: "TracedLayer") -> dict[str, Any]:
    columns = asdict(traced.layer)
    return {"layer": columns.pop("name")} | columns | {"default": traced.is_default}


def _warn_of_unread_layers(trace: "Trace") -> None:
    from unitscope.layers import unknown_operators
    from unitscope.session.opening import operators_without_rule

    if trace.unreadable:
        first = trace.unreadable[0]
        print(f"{len(trace.unreadable)} more can't be scanned: {first.name!r}: {first.reason}", file=sys.stderr)
    if operators := unknown_operators(trace.layers):
        print(operators_without_rule(operators), file=sys.stderr)


def _difference_text(difference: "Difference") -> str:
    value_now = difference.reason if difference.found is None else f"is {difference.found:.7g} now"
    rank = f"{'trough' if difference.is_trough else 'rank'} {difference.rank}"
    peak = f"{difference.layer} unit {difference.unit} {rank}, {difference.key}"
    return f"{peak}: was {difference.stored:.7g}, {value_now}"
