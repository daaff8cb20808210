"""Every vision network that people use, scanned: one of each family, with random weights, over eight photographs.

    python benchmarks/network_coverage.py [--only WORD] [--again] [--jobs N] [--results FILE] [--page docs/networks.md]

Of every network it notes how many default layers are read and why others are left out; whether the receptive fields of twenty positions
hold every pixel whose gradient (in float64) isn't zero; whether every unit's values in every image are those that plain hooks see;
whether `check` finds them again; whether the figure can be drawn; and seconds. Each runs in a process of its own. What is done stands in
FILE, a line of JSON a network, and isn't done again; so a run may be stopped, and go on. At the end the table is written as a page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import chain, permutations
from math import prod
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import torch
from bench import SAMPLE, machine
from network_families import all_models, write_configuration
from torch import Tensor, nn

import unitscope
from unitscope.demonstration import write_demo_images
from unitscope.layers import Trace, TracedLayer, trace, unknown_operators
from unitscope.networks import Network
from unitscope.networks.gradients import ContiguousNormGradients
from unitscope.networks.isolation import isolated_copy
from unitscope.session.noise import perturb_last_bits
from unitscope.session.opening import blank_input

HERE = Path(__file__).parent
IMAGES, POSITIONS, TIMEOUT_S = 8, 20, 1800
SPREAD = 0.2
CLOSE = 2e-4
"""How far a value may be from that of hooks, as a share of the layer's highest: batches and folded copies round differently."""
ROUNDING_FACTOR = 4
"""Where rounding alone moves values further than that, they may be so many times as far."""


# ── what is measured of one ─────────────────────────────────────────────────────────────────────────────────────────


def load(model: str) -> Network:
    """The network, with random weights, those too that are all of one value when a network is made: scales and shifts of norms, and of residual
    branches, which may be 0, so that nothing would be seen of what goes through them."""
    network = _untrained(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in chain(network.module.named_parameters(), network.module.named_buffers()):
            is_weight = isinstance(tensor, nn.Parameter) or name.endswith(
                ("weight", "bias")
            )  # which frozen norms keep as buffers
            if is_weight and tensor.is_floating_point() and tensor.numel() > 1 and tensor.amin() == tensor.amax():
                tensor.add_(SPREAD * torch.randn(tensor.shape, generator=generator))
    return network


def _untrained(model: str) -> Network:
    scheme, _, name = model.partition(":")
    if scheme == "transformers":
        with tempfile.TemporaryDirectory() as folder:
            return unitscope.load_network(f"transformers:{write_configuration(name, Path(folder))}", "none")
    return unitscope.load_network(str(HERE / model) if scheme.endswith(".py") else model, "none")


def preprocessing_of_size(size: Any) -> unitscope.Preprocessing:
    """ImageNet's, for networks without their own; of the size that a configuration says, if any."""
    height, width = (size, size) if isinstance(size, int) else size or (224, 224)
    return unitscope.Preprocessing((height, width), (height, width), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def measured(model: str, photographs: Path) -> dict[str, Any]:
    """All figures of one network."""
    started = perf_counter()
    network = load(model)
    preprocessing = network.preprocessing or preprocessing_of_size(
        getattr(getattr(network.module, "config", None), "image_size", None)
    )
    traced = trace(network.module, blank_input((preprocessing.channels, *preprocessing.crop), torch.device("cpu")))
    figures: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in network.module.parameters()),
        "layers": sum(layer.is_default for layer in traced.layers),
        "all_layers": len(traced.layers),
        "left_out": [[layer.name, layer.reason] for layer in traced.unreadable if layer.is_default],
        "operators_without_rule": unknown_operators(traced.layers),
        "trace_s": perf_counter() - started,
    }
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        atlas = unitscope.scan(network, photographs, Path(folder, "atlas"), preprocess=preprocessing)
        figures["scan_s"] = perf_counter() - started
        figures["units"] = sum(layer.units for layer in atlas.layers)
        figures |= values_against_hooks(network, traced, atlas, preprocessing)
        result = unitscope.check(atlas, network)
        figures["checked"] = f"{result.peaks - len(result.differences)} of {result.peaks}"
        figures["check_differences"] = len(result.differences)
        figure = np.asarray(atlas.figure())
        figures["figure"] = bool(figure.std() > 1)
    return figures | fields_against_gradients(network, traced)


def ranked_tensors(network: nn.Module, layers: Sequence[TracedLayer], images: Tensor) -> list[Tensor]:
    """What plain hooks see of every layer in one pass: what goes into its call or comes out, as it is."""
    tensors: dict[int, Tensor] = {}
    handles, calls = [], dict.fromkeys((layer.module_path for layer in layers), 0)
    for path in calls:
        of_path = {(layer.nth_call, layer.reads_input): i for i, layer in enumerate(layers) if layer.module_path == path}

        def before(_: nn.Module, args: Any, kwargs: Any, path: str = path, of_path: Mapping[Any, int] = of_path) -> None:
            calls[path] += 1
            if (calls[path], True) in of_path:
                tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
                tensors[of_path[calls[path], True]] = tensor.clone()  # an activation may write into it

        def after(_: nn.Module, __: Any, output: Any, path: str = path, of_path: Mapping[Any, int] = of_path) -> None:
            if (calls[path], False) in of_path:
                tensors[of_path[calls[path], False]] = output.clone()

        module = network.get_submodule(path)
        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [tensors[i] for i in range(len(layers))]


def values_against_hooks(network: Network, traced: Trace, atlas: unitscope.Atlas, preprocessing: Any) -> dict[str, Any]:
    """In how many layers the values of all units in all images are highest values along some dimensions of what hooks see."""
    layers = [layer for layer in traced.layers if layer.is_default]
    plain, nudged = isolated_copy(network.module), None
    wrong = []
    expected: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    images = sorted(atlas.table("images").to_pylist(), key=lambda row: row["image"])
    for row in images:
        pixels = input_of(atlas, row["image"], preprocessing)
        with torch.no_grad():
            for layer, tensor in zip(layers, ranked_tensors(plain, layers, traced.input_format.convert(pixels)), strict=True):
                expected[layer.name].append(tensor.float())
    sample = {layer.name: np.full((len(images), layer.layer.units), np.nan, np.float32) for layer in layers}
    index = {row["image"]: i for i, row in enumerate(images)}
    for layer in layers:
        table = atlas.sample(layer.name)
        rows = [index[image] for image in table["image"].to_pylist()]
        sample[layer.name][rows, table["unit"].to_numpy()] = table["value"].to_numpy()
    for layer in layers:
        values = torch.from_numpy(sample[layer.name])
        tensors, units, cells = expected[layer.name], layer.layer.units, layer.layer.map_height * layer.layer.map_width
        if any(holds(values, maxima, CLOSE) for maxima in possible_maxima(tensors, units, cells)):
            continue
        inputs = [input_of(atlas, row["image"], preprocessing) for row in images]
        nudged = with_other_last_bits(network.module) if nudged is None else nudged
        tolerance = ROUNDING_FACTOR * max(deviation_by_rounding(plain, nudged, layer, traced, image) for image in inputs)
        if not any(holds(values, maxima, tolerance) for maxima in possible_maxima(tensors, units, cells)):
            wrong.append(layer.name)
    return {"values_wrong": wrong}


def deviation_by_rounding(plain: nn.Module, nudged: nn.Module, layer: TracedLayer, traced: Trace, image: Tensor) -> float:
    """How far the last bits of an image, or of the weights, move a layer's values, as a share of its highest: far where a network compares
    values with a threshold. The weights' count apart, since what an image changes may be small beside what is the same for all."""
    with torch.no_grad():
        values, of_image, of_weights = (
            ranked_tensors(network, [layer], traced.input_format.convert(pixels))[0]
            for network, pixels in ((plain, image), (plain, perturb_last_bits(image)), (nudged, image))
        )
    moved = max(float((other - values).abs().amax()) for other in (of_image, of_weights))
    return moved / float(values.abs().amax().clamp(min=1e-20))


def with_other_last_bits(network: nn.Module) -> nn.Module:
    """A copy with weights of its own, which differ in their last bits; an isolated copy would share them."""
    nudged, generator = deepcopy(network).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in nudged.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + torch.finfo(torch.float32).eps * torch.randn(parameter.shape, generator=generator))
    return nudged


def holds(values: Tensor, maxima: Tensor, tolerance: float) -> bool:
    scale = maxima.nan_to_num(0, 0, 0).abs().amax().clamp(min=1e-20)
    return bool(((values - maxima).abs().nan_to_num(0) <= tolerance * scale).all())


def possible_maxima(tensors: Sequence[Tensor], units: int, cells: int) -> Iterator[Tensor]:
    """Highest values of shape (image, unit), for every choice of dimensions that could be units, in any order: filters that several heads or
    keys share are numbered together. Of tokens so many as there are `cells` may count alone, or all but ten at the ends."""
    stacked = torch.stack(list(tensors))  # of shape (image, …), each of one image alone
    dims = range(1, stacked.dim())
    for count in range(stacked.dim()):
        for unit_dims in permutations(dims, count):
            if prod(stacked.shape[dim] for dim in unit_dims) != units:
                continue
            others = [dim for dim in dims if dim not in unit_dims]
            maps = stacked.permute(0, *unit_dims, *others).reshape(len(stacked), units, *(stacked.shape[dim] for dim in others))
            if not others:
                yield maps
                continue
            yield maps.flatten(2).amax(2)
            token_dims = [2 + i for i, dim in enumerate(others) if stacked.shape[dim] > 1]
            for dim in token_dims:
                length = maps.shape[dim]
                for kept in dict.fromkeys((cells, *range(length - 1, max(0, length - 11), -1))):
                    for first in range(length - kept + 1):
                        yield maps.narrow(dim, first, kept).flatten(2).amax(2)


def input_of(atlas: unitscope.Atlas, image: int, preprocessing: Any) -> Tensor:
    """One image as the network's input, by torchvision's transforms."""
    from torchvision import transforms

    key = next(row["key"] for row in atlas.table("images").to_pylist() if row["image"] == image)
    mode = transforms.InterpolationMode(preprocessing.interpolation)
    steps = [] if preprocessing.resize is None else [transforms.Resize(preprocessing.resize, mode)]
    steps += [transforms.CenterCrop(preprocessing.crop), transforms.ToTensor()]
    steps += [transforms.Normalize(preprocessing.mean, preprocessing.std)]
    from PIL import Image

    with Image.open(Path(atlas.manifest["images"]["folder"]) / key) as opened:
        return transforms.Compose(steps)(opened.convert("RGB" if preprocessing.channels == 3 else "L"))[None]


def fields_against_gradients(network: Network, traced: Trace) -> dict[str, Any]:
    """Of positions drawn at random, how many boxes miss a pixel whose gradient isn't zero, and how many end where the gradient ends."""
    layers = [layer for layer in traced.layers if layer.is_default]
    generator = np.random.default_rng(0)
    channels, height, width = traced.input_shape
    noise = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    try:
        plain = isolated_copy(network.module).double()
        leaf = noise.requires_grad_()
        with ContiguousNormGradients():
            tensors = ranked_tensors(plain, layers, leaf.clone())
    except Exception as error:
        return {"fields": 0, "fields_too_small": 0, "fields_exact": 0, "fields_why": f"{type(error).__name__}: {error}"[:200]}
    checked = too_small = exact = 0
    small = [i for i, layer in enumerate(layers) if layer.layer.receptive_field_height < height]
    missed = []
    for number in range(POSITIONS):
        choices = small if small and number % 2 else range(len(layers))
        layer = layers[choices[generator.integers(len(choices))]]
        maps = layer.layout.maps(tensors[layers.index(layer)])
        unit, y, x = (int(generator.integers(length)) for length in maps.shape[1:])
        if not maps.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(maps[0, unit, y, x], leaf, retain_graph=True, allow_unused=True, materialize_grads=True)
        support = (gradient[0] != 0).any(0)
        box = layer.receptive_fields.box(unit, y, x).clipped(height, width)
        rows, columns = support.any(1).nonzero(), support.any(0).nonzero()
        checked += 1
        if not len(rows):
            continue
        found = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        fits = box.top <= found[0] and box.left <= found[1] and box.bottom >= found[2] and box.right >= found[3]
        if not fits:
            missed.append([layer.name, unit, y, x, list(found), [box.top, box.left, box.bottom, box.right]])
        too_small += not fits
        exact += found == (box.top, box.left, box.bottom, box.right)
    return {"fields": checked, "fields_too_small": too_small, "fields_exact": exact, "fields_missed": missed}


# ── all of them ─────────────────────────────────────────────────────────────────────────────────────────────────────


def link_photographs(folder: Path) -> Path:
    """Eight photographs of those at hand, in a folder of their own."""
    source = SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images"))
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    for number in range(IMAGES):
        original = files[number * len(files) // IMAGES]
        (folder / f"{number}{original.suffix}").symlink_to(original.resolve())
    return folder


def run_one(family: str, model: str) -> dict[str, Any]:
    """The figures of one network, from a process of its own, or how that failed."""
    command = [sys.executable, __file__, "--one", model]
    started = perf_counter()
    try:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
        figures = (
            json.loads(result.stdout.splitlines()[-1])
            if result.returncode == 0
            else {"error": result.stderr.strip()[-600:] or f"ended with status {result.returncode}"}
        )
    except subprocess.TimeoutExpired:
        figures = {"error": f"took more than {TIMEOUT_S} s"}
    return {"family": family, "model": model, "commit": commit(), "seconds": perf_counter() - started, **figures}


def print_one(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(json.dumps(measured(model, link_photographs(Path(folder)))))
        except unitscope.UnitscopeError as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only models whose family or name contains this")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many networks run at the same time")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "network_coverage.jsonl")
    parser.add_argument("--page", type=Path, help="write the table there")
    parser.add_argument("--one", metavar="MODEL", help="measure this one here, and print its line")
    arguments = parser.parse_args()
    if arguments.one:
        print_one(arguments.one)
        return
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    results = {row["model"]: row for row in map(json.loads, lines)}
    known = {row["family"]: row["model"] for row in results.values()}
    done = set() if arguments.again else set(results)
    lock = Lock()

    def run(family: str, model: str) -> None:
        row = run_one(family, model)
        with lock:
            results[model] = row
            arguments.results.write_text("".join(json.dumps(row) + "\n" for row in results.values()))
            print(summary(row), flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:  # which begins while the smallest networks of timm are still looked for
        for family, model in all_models(known):
            if arguments.only in f"{family} {model}" and model not in done:
                pool.submit(run, family, model)
    if arguments.page:
        arguments.page.write_text(page(list(results.values())), encoding="utf-8")


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def summary(row: Mapping[str, Any]) -> str:
    """One network in one line."""
    if "error" in row:
        return f"{row['model']}: {row['error'].splitlines()[-1][:300]}"
    return (
        f"{row['model']}: {row['layers']} layers, {len(row['left_out'])} left out, values wrong in {len(row['values_wrong'])}, fields "
        f"{row['fields_exact']}/{row['fields']} exact, {row['fields_too_small']} too small, check {row['checked']}, {row['seconds']:.0f} s"
    )


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page of the documentation."""
    scanned = [row for row in rows if "error" not in row]
    read, left_out = sum(row["layers"] for row in scanned), sum(len(row["left_out"]) for row in scanned)
    lines = [
        "# Networks",
        "",
        f"The smallest network of each family, with random weights, over {IMAGES} photographs (`make coverage`). {machine()}, commit {', '.join(sorted({row['commit'] for row in rows}))}.",
        "",
        f"{len(scanned)} of {len(rows)} networks are scanned, with {read:,} default layers; {left_out} more are left out ({read / (read + left_out):.1%} are read).",
        f"Of {sum(row['fields'] for row in scanned):,} receptive fields {sum(row['fields_exact'] for row in scanned):,} are exact and "
        f"{sum(row['fields_too_small'] for row in scanned)} too small; values are wrong in {sum(len(row['values_wrong']) for row in scanned)} layers; "
        f"`check` misses {sum(row['check_differences'] for row in scanned)} peaks.",
        "",
        f"*Fields*: of {POSITIONS} positions drawn at random, in how many the receptive field ends where the gradient (in float64) ends, and in",
        "how many it misses a pixel whose gradient isn't zero. *Values*: layers in which a unit's value in an image isn't what plain hooks see.",
        "",
        "| family | network | default layers | left out | fields: exact, too small | values wrong | check | seconds |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (row["family"], row["model"])):
        if "error" in row:
            lines.append(
                f"| {row['family']} | `{row['model']}` | {row['error'].splitlines()[-1][:200]} | | | | | {row['seconds']:.0f} |"
            )
            continue
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in row["left_out"]:
            names_by_reason.setdefault(reason, []).append(f"`{name}`")
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_by_reason.items())
        lines.append(
            f"| {row['family']} | `{row['model']}` | {row['layers']} | {reasons} | {row['fields_exact']} of {row['fields']}, {row['fields_too_small']} "
            f"| {len(row['values_wrong'])} | {row['checked']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
