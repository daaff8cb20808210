"""scan(): images → network → spatial maxima → top k → atlas."""

import os
import warnings
from collections.abc import Mapping, Sequence
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
from unitscope.atlas.schema import MAX_INPUT_VALUES, MAX_RANK
from unitscope.errors import UnitscopeError
from unitscope.images import ImageSource, Skipped, as_source, skipping_errors
from unitscope.images.keys import HALVES
from unitscope.images.label_files import as_labels, check_labels, labels_hash
from unitscope.layers import unknown_operators, unreadable_layers
from unitscope.networks import Network
from unitscope.networks.classes import OutputClass, as_classes
from unitscope.networks.precision import plain_tensors
from unitscope.runners.local import LocalRunner
from unitscope.scanning.checkpoint import Checkpoint, clear_finished
from unitscope.scanning.class_units import class_units
from unitscope.scanning.effective_fields import with_effective_fields
from unitscope.scanning.options import Options, ScanOptions, options_of
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan, default_candidates
from unitscope.scanning.screening import has_bfloat16, no_gain_reason, screen_shards
from unitscope.scanning.shards import scan_shards
from unitscope.scanning.tables import classes_table, layers_table, tables_without_layers
from unitscope.scanning.tuning import MAX_TUNING_BYTES, FixedPoint, tuning_bytes
from unitscope.session.loader import Loader
from unitscope.session.opening import as_network, loader_for, new_session, operators_without_rule, preprocessing_of
from unitscope.session.readers import reader_count
from unitscope.session.session import Session

TOO_MANY_LABELS = (
    "the mean responses to {} of {:,} units would take too much memory, so there are none; scan fewer layers for them"
)


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
    `batch_size` images (32) run together. `workers` threads decode files, one a core unless told otherwise; a data set is read in the
    caller's thread alone or, with two workers and more, by as many processes with a pickled copy each. With `precision` bf16 the
    images are screened in bfloat16 first, and only those that may hold peaks run in float32; where that gains nothing a warning says
    so. Of one image a unit gets one peak, or `per_image` that are half a field apart. With `inner` only cells count whose receptive fields
    lie on the image, so that no patch shows padding; layers without such cells keep all. Of every unit the highest `candidates` (50, or
    12 with bf16) are kept, of which the first that are no near-duplicates of others are its peaks. Where nothing rectifies, the k lowest are
    kept in the same way, unless `troughs` is false; a scan in bf16 has none. The `sample` has 200 images. `limit` scans the
    first images only. `labels`, a mapping from keys or a CSV file, take the place of those that the images have, and `classes`, a list or
    a file with one a line, of those that come with the network's weights; without `tuning` no means by label are kept. What was scanned is
    saved every `checkpoint_every_s` seconds. `on_images` is told of progress.

    A scan that was stopped is resumed when it is started again. The network is left as it was: it is a copy that runs. First
    it runs on noise; a warning says where values depend on more than their image.

    Raises `UnitscopeError` for anything that the caller can mend, before anything is written; `ScanUnfinished`, one of its
    children, where some images couldn't be scanned while the others were and are kept.
    """
    clear_finished(Path(os.path.realpath(out)))
    with plain_tensors():
        folder, scan_options, patterns = new_atlas_folder(out), options_of(options), layer_patterns(layers)
        k = whole_number("k", k, maximum=MAX_RANK)
        scanned, source = as_network(network), as_source(images)
        readers, plan = _readers(source, scan_options), _plan(source, k, scan_options)
        loader = _loader(scanned, source, plan, scan_options)
        weights_hash = scanned.hash()
        _warn_of_changing_images(source)
        worker_device = getattr(scan_options.runner, "device", None)
        device = "cpu" if worker_device else scan_options.device
        session = new_session(scanned, loader, patterns, device, readers, scan_options.inner)
        _warn_of_findings(scanned, session)
        plan = _with_tuning(_affordable(plan, session, scan_options), session, scan_options)
        outputs = class_units(session, as_classes(scan_options.classes), scanned.classes)
        worker_session = session.on_device(torch.device(worker_device)) if worker_device else session
        manifest = _manifest(scanned, weights_hash, worker_session, plan, patterns) | _inner_cells(session, scan_options)
        manifest |= {"class_layers": outputs.layers}
        with Checkpoint(
            folder, _checkpoint_plan(manifest, session, plan), scan_options.checkpoint_every_s
        ).locked() as checkpoint:
            new_atlas_folder(out)  # another scan may have come first
            result = _scanned(worker_session, plan, scan_options, checkpoint)
            _write(out, result, session, plan, manifest, outputs.classes)
            checkpoint.remove()
    return Atlas(out, images=images)


def _readers(source: ImageSource, options: Options) -> int:
    """How many readers there are in this process, or in each of the runner's workers."""
    return reader_count(options.workers, source, getattr(options.runner, "cpus_per_worker", None))


def _plan(source: ImageSource, k: int, options: Options) -> ScanPlan:
    images = source.count(options.limit)
    candidates = options.candidates or default_candidates(k, options.precision)
    troughs = options.precision != "bf16" if options.troughs is None else options.troughs
    return ScanPlan(images, k, candidates, options.per_image, options.batch_size, options.precision, options.sample, troughs)


def _loader(network: Network, source: ImageSource, plan: ScanPlan, options: Options) -> Loader:
    loader = loader_for(source, preprocessing_of(options.preprocess, network), plan.images, network.model)
    if (labels := as_labels(options.labels)) is not None:
        check_labels(labels, source)
        loader = replace(loader, labels=labels)
    if prod(loader.shape) > MAX_INPUT_VALUES:
        raise UnitscopeError(
            f"an input of {loader.shape} has more than {MAX_INPUT_VALUES:,} numbers; give smaller images, or a smaller crop"
        )
    return loader


def _affordable(plan: ScanPlan, session: Session, options: Options) -> ScanPlan:
    """The plan, in float32 where bfloat16 would gain nothing; a warning says so."""
    if plan.precision == "bf16" and (reason := no_gain_reason(session, plan, has_bfloat16(session.device))):
        _warn(f"bf16 would gain nothing here, so this runs in fp32: {reason}")
        candidates = options.candidates or default_candidates(plan.k, "fp32")
        return replace(plan, precision="fp32", candidates=candidates, troughs=options.troughs is None)
    return plan


def _with_tuning(plan: ScanPlan, session: Session, options: Options) -> ScanPlan:
    """The plan with sums by label, where they are wanted, images may have labels, and these are not too many. A warning says so."""
    loader = session.loader
    known = loader.source.labels() if loader.labels is None and plan.images is not None else None
    labels = None if known is None else set(known) - {None}
    if not options.tuning or labels == set():
        return plan
    label_halves = len(HALVES) * len(labels or ())
    if options.limit is None and tuning_bytes(label_halves, sum(session.unit_counts)) > MAX_TUNING_BYTES:
        _warn(TOO_MANY_LABELS.format(f"{len(labels or ()):,} labels", sum(session.unit_counts)))
        return plan
    return replace(plan, fixed_point=FixedPoint.of(session.trial.magnitudes, plan.images))


def _warn_of_changing_images(source: ImageSource) -> None:
    """A data set that crops or flips at random can't be asked for an image again."""
    if source.thread_safe:
        return
    with suppress(Skipped), skipping_errors():  # whoever reads it all says what is wrong with the first
        if source.content(0) != source.content(0):
            _warn(
                "the data set gives another image each time that it is asked for the same one, so patches can't be drawn nor peaks checked"
            )


def _warn_of_findings(network: Network, session: Session) -> None:
    """What the trace and the trial on noise found that whoever reads the atlas must know."""
    if operators := unknown_operators(session.layers):
        _warn(f"receptive fields of {network.model!r}: {operators_without_rule(operators)}")
    for finding in session.trial.findings():
        _warn(f"{network.model!r}: {finding}")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)  # at the line that called `scan`


def _scanned(session: Session, plan: ScanPlan, options: Options, checkpoint: Checkpoint) -> PartialResult:
    """The result of all shards."""
    runner = LocalRunner() if options.runner is None else options.runner
    on_images = (lambda _: None) if options.on_images is None else options.on_images
    run = screen_shards if plan.precision == "bf16" else scan_shards
    result = run(session, plan, runner, checkpoint, on_images)
    passed_over, first_free = session.loader.source.passed_over.items(), plan.images or 0
    if result.tuning.is_full:
        _warn(TOO_MANY_LABELS.format("so many labels", sum(session.unit_counts)))
    result.skipped |= {first_free + index: key_and_reason for index, key_and_reason in enumerate(passed_over)}
    return result


def _write(
    out: str | os.PathLike[str],
    result: PartialResult,
    session: Session,
    plan: ScanPlan,
    manifest: Mapping[str, Any],
    classes: Sequence[OutputClass],
) -> None:
    """Measure the effective receptive fields, and write the atlas."""
    layers = layers_table(with_effective_fields(session, result.sample))
    tables = tables_without_layers(result, session.layers, plan, session.loader.preprocessing)
    counts = {
        "listed": result.listed,
        "read": result.read,
        "skipped": len(result.skipped),
        "images_run_twice": result.images_run_twice,
    }
    images = {"images": manifest["images"] | {"contents": f"{result.contents:016x}"}}
    findings = {"trial": session.trial.described()}
    all_tables = {**tables, "layers": layers, "classes": classes_table(classes)}
    write_atlas(out, all_tables, {**manifest, **counts, **findings, **images})


# ── the manifest ────────────────────────────────────────────────────────────────────────────────────────────────────


def _manifest(
    network: Network, weights_hash: str, session: Session, plan: ScanPlan, patterns: Sequence[str] | None
) -> dict[str, Any]:
    """What is scanned, and how, as `atlas.json` says it. No time stands in it, so that the same plan gives the same bytes."""
    source, trace = session.loader.source, session.trace
    return {
        "unitscope": version("unitscope"),
        "torch": torch.__version__,
        "network": {"model": network.model, "weights": network.weights, "seed": network.seed, "hash": weights_hash},
        "preprocessing": session.loader.preprocessing and asdict(session.loader.preprocessing),
        "input": session.loader.shape,
        "images": {
            **source.description,
            "hash": source.hash(plan.images),
            "fingerprint": source.fingerprint(plan.images),
            **({} if session.loader.labels is None else {"labels_hash": labels_hash(session.loader.labels)}),
        },
        "layers": list(patterns) if patterns else None,
        "left_out": [{"layer": layer.name, "reason": layer.reason} for layer in unreadable_layers(trace, patterns)],
        "operators_without_rule": unknown_operators(session.layers),
        "tuning": plan.fixed_point is not None,
        "troughs": plan.troughs,
        "k": plan.k,
        "candidates": plan.candidates,
        "per_image": plan.per_image,
        "sample": plan.sample,
        "batch_size": plan.batch_size,
        "precision": plan.precision,
        "device": session.device.type,
    }


def _inner_cells(session: Session, options: Options) -> dict[str, Any]:
    """What the manifest says of a scan of inner cells alone: which layers have none, and keep all. A warning names them too."""
    if not options.inner:
        return {}
    names = [traced.name for traced in session.layers if traced.layout.inner is None]
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        _warn(f"layer {names[0]!r}{more} has no cells whose receptive field lies on the image, so all of them count")
    return {"inner": True, "without_inner_cells": names}


def _checkpoint_plan(manifest: Mapping[str, Any], session: Session, plan: ScanPlan) -> dict[str, Any]:
    """All that an unfinished scan must have in common with this one to be resumed."""
    labels = session.loader.source.fingerprint_labels(plan.images)
    layers = [traced.name for traced in session.layers]
    images = manifest["images"] | {"labels": labels}
    return {
        **manifest,
        "images": images,
        "scanned": layers,
        "listed": plan.images or 0,
        "fixed_point": plan.fixed_point and asdict(plan.fixed_point),
    }
