"""scan(): images → network → taps → top k → atlas."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from unitscope.arguments import layer_patterns, whole_number
from unitscope.atlas import Atlas, new_atlas_folder, write_atlas
from unitscope.atlas.schema import MOST_INPUT, MOST_PEAKS
from unitscope.errors import UnitscopeError
from unitscope.images import (
    FileSource,
    Skipped,
    Source,
    as_source,
    few_labels,
    fingerprint,
    keys_hash,
    skipping_errors,
)  # fmt: skip
from unitscope.layers import choose_layers, trace, unreadable_layers
from unitscope.networks import Network
from unitscope.networks.precision import plain_tensors
from unitscope.runners.local import LocalRunner
from unitscope.scanning.checkpoint import Checkpoint, clear_finished
from unitscope.scanning.effective_fields import with_effective_fields
from unitscope.scanning.options import Options, ScanOptions, options_of
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.screening import screened, why_not
from unitscope.scanning.shards import gather
from unitscope.scanning.tables import table_of_layers, tables
from unitscope.scanning.worker import Job
from unitscope.session.lanes import Networks
from unitscope.session.loader import Loader
from unitscope.session.opening import blank_input, chosen_device, known_network, loader_for, preprocessing_said, unknown_said
from unitscope.session.readers import reader_count


@plain_tensors()
def scan(
    network: "str | nn.Module | Network",
    images: Any,
    out: str | os.PathLike[str] = "atlas",
    *,
    layers: Sequence[str] | None = None,
    k: int = 9,
    **options: Unpack[ScanOptions],
) -> Atlas:
    """One forward-only pass over the images that keeps the `k` patches which excite each unit most, as an atlas in `out`.

    `network` is a model string (with its default weights), an `nn.Module`, or what `load_network` gives. `images` is a folder, a
    list of paths, or a map-style data set of PIL images or of preprocessed tensors (channel, y, x), alone or with labels.
    `images` may also name a `.txt` list, tar shards or Parquet files, here or behind URLs, or `hf:NAME:SPLIT`.
    `layers` are glob patterns; without them all default layers are scanned, but for those that can't be read.

    The options, all by name: `preprocess` is a `Preprocessing` or a torchvision preset, and is needed for pictures with a network that
    has none. `device` is auto, cpu, cuda or mps. `runner` spreads the work (`RayRunner`, whose workers have devices of their own).
    `batch_size` images (32) run together. `workers` threads decode files, two unless told otherwise; a data set is read in the
    caller's thread alone or, with two workers and more, by as many processes with a pickled copy each. With `precision` bf16 the
    images are screened in bfloat16 first, and only those that may hold peaks run in float32; where that gains nothing a warning says
    so. Of one image a unit gets one peak, or `per_image` that are half a field apart. The `sample` has 200 images. `limit` scans the
    first images only; `on_images` is told of progress.

    A scan that was stopped goes on where it was when it is started again. The network is left as it was: it is a copy that runs. First
    it runs on noise; a warning says where values depend on more than their image.

    Raises `UnitscopeError` for anything that the caller can mend, before anything is written; `ScanUnfinished`, one of its
    children, where some images couldn't be scanned while the others were and are kept.
    """
    clear_finished(Path(os.path.realpath(out)))
    place, chosen, patterns = new_atlas_folder(out), options_of(options), layer_patterns(layers)
    k = whole_number("k", k, most=MOST_PEAKS)
    known, source = known_network(network), as_source(images)
    count, plan = reader_count(chosen.workers, source), _plan(source, k, chosen)
    loader = loader_for(source, preprocessing_said(chosen.preprocess, known), plan.images, known.model)
    if prod(loader.shape) > MOST_INPUT:
        raise UnitscopeError(
            f"an input of {loader.shape} has more than {MOST_INPUT:,} numbers; give smaller images, or a smaller crop"
        )
    weights, away = known.hash(), getattr(chosen.runner, "device", None)
    _warn_of_chance(source)
    target = chosen_device("cpu" if away else chosen.device)
    job, networks = _set_up(known, plan, loader, patterns, count, target)
    there, theirs = _elsewhere(job, networks, torch.device(away)) if away else (job, networks)
    for finding in networks.trial.findings():
        warnings.warn(f"{known.model!r}: {finding}", stacklevel=3)
    described = _described(known, weights, there, patterns)
    asked = described | {"images": described["images"] | {"labels": few_labels(source, plan.images)}}
    with Checkpoint(place, asked | {"scanned": job.plan.layers, "listed": plan.images}).held() as checkpoint:
        new_atlas_folder(out)  # another scan may have come first
        run = screened if job.plan.precision == "bf16" else gather
        tell = (lambda _: None) if chosen.on_images is None else chosen.on_images
        part = run(theirs, there, LocalRunner() if chosen.runner is None else chosen.runner, checkpoint, tell)
        part.skipped |= {plan.images + number: over for number, over in enumerate(source.passed_over.items())}
        counts = {"listed": part.listed, "read": part.read, "skipped": len(part.skipped), "again": part.again}
        with ThreadPoolExecutor(1, "tables") as beside:
            others = beside.submit(tables, part, job.layers, loader.preprocessing)
            layers_table = table_of_layers(with_effective_fields(networks, job, part))
        contents = {"images": described["images"] | {"contents": f"{part.contents:016x}"}}
        found = {"trial": networks.trial.described()} | contents
        write_atlas(out, others.result() | {"layers": layers_table}, described | counts | found)
        checkpoint.drop()
    return Atlas(out, images=images)


def _plan(source: Source, k: int, chosen: Options) -> ScanPlan:
    """The plan without its layers, which nobody knows yet."""
    plan = ScanPlan((), 0, k, chosen.per_image, chosen.batch_size, chosen.precision, sample=chosen.sample)
    if isinstance(source, FileSource):
        if chosen.limit is not None:
            raise UnitscopeError("limit is for images that are numbered one by one; give fewer files instead")
        return replace(plan, files=len(source.files))
    return replace(plan, images=len(source) if chosen.limit is None else min(chosen.limit, len(source)))


def _set_up(
    network: Network, plan: ScanPlan, loader: Loader, patterns: Sequence[str] | None, workers: int, device: torch.device
) -> tuple[Job, Networks]:
    """What is to be done on this device, and with which networks."""
    traced = trace(network.module, blank_input(loader.shape, device))
    chosen = choose_layers(traced, patterns, network.model)
    if traced.unknown_operators:
        warnings.warn(f"receptive fields of {network.model!r}: {unknown_said(traced)}", stacklevel=3)
    networks = Networks(network.module, traced, chosen)
    plan = replace(plan, layers=tuple(layer.name for layer in chosen))
    return _affordable(Job(plan, traced, tuple(chosen), loader, workers), networks), networks


def _elsewhere(job: Job, networks: Networks, device: torch.device) -> tuple[Job, Networks]:
    """The same for workers on another device."""
    traced = replace(job.trace, input_format=replace(job.trace.input_format, device=device))
    return replace(job, trace=traced), Networks(networks.module, traced, networks.chosen)


def _affordable(job: Job, networks: Networks) -> Job:
    """The job as asked for, or in float32 where bfloat16 would gain nothing, which a warning tells."""
    if job.plan.precision == "bf16" and (reason := why_not(job, networks)):
        warnings.warn(f"bf16 would gain nothing here, so this runs in fp32: {reason}", stacklevel=3)
        return replace(job, plan=replace(job.plan, precision="fp32"))
    return job


def _warn_of_chance(source: Source) -> None:
    """A data set that crops or flips at random can't be asked for an image again."""
    if isinstance(source, FileSource) or source.thread_safe:
        return
    with suppress(Skipped), skipping_errors():  # whoever reads it all says what is wrong with the first
        if source.content(0) != source.content(0):
            warnings.warn(
                "the data set gives another image each time that it is asked for the same one, so patches can't be drawn nor peaks checked",
                stacklevel=3,
            )


# ── the manifest ────────────────────────────────────────────────────────────────────────────────────────────────────


def _described(network: Network, weights: str, job: Job, patterns: Sequence[str] | None) -> dict[str, Any]:
    """What is scanned, and how, as `atlas.json` says it. No time stands in it, so that the same plan gives the same bytes."""
    source, plan = job.loader.source, job.plan
    return {
        "unitscope": version("unitscope"),
        "torch": torch.__version__,
        "network": {"model": network.model, "weights": network.weights, "seed": network.seed, "hash": weights},
        "preprocessing": job.loader.preprocessing and asdict(job.loader.preprocessing),
        "input": job.loader.shape,
        "images": {
            **source.description,
            "hash": keys_hash(source, plan.images),
            "fingerprint": fingerprint(source, plan.images),
        },
        "layers": list(patterns) if patterns else None,
        "left_out": [{"layer": r.name, "reason": r.reason} for r in unreadable_layers(job.trace, patterns)],
        "operators_without_rule": sorted(job.trace.unknown_operators),
        "k": plan.k,
        "per_image": plan.per_image,
        "sample": plan.sample,
        "batch_size": plan.batch_size,
        "precision": plan.precision,
        "device": job.device.type,
    }
