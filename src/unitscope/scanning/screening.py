"""Screening in bfloat16: a fast first look at all images, and an exact second one at those that may hold peaks.

A forward pass in bfloat16 takes half the time where the hardware has it, and its values are right to two or three digits. So it
can't rank, but it can rule out: an image that comes up to no unit's k-th value, nor near it, holds no peak. The others run again in
float32, and those values are ranked and stored. The statistics over all images are those of the first look.
"""

from dataclasses import replace
from math import exp

import torch
from torch import nn

from unitscope.errors import first_line
from unitscope.runners import Runner
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.shards import Tell, gather
from unitscope.scanning.worker import Job
from unitscope.session.lanes import Networks
from unitscope.session.replicas import lowered, maps_of_noise
from unitscope.topk import NO_IMAGE

MARGIN = 0.03
"""How far below its k-th value a unit's candidates may be, as a share of it."""
CANDIDATES = 4
"""How many times as many images as peaks are looked at again for a unit, at most."""
WORTH = 1 / 3
"""The share of images to run again from which on screening costs more than it saves."""


def why_not(job: Job, networks: Networks) -> str:
    """Why a scan of this plan would gain nothing from bfloat16; empty where it would."""
    plan, device = job.plan, job.device
    if not has_bfloat16(device):
        return f"this {device.type} has no fast bfloat16 arithmetic"
    images, wanted = plan.images, sum(job.units) * plan.k + plan.sample
    if images and (share := 1 - exp(-wanted / images)) > WORTH:
        return f"about {share:.0%} of the {images:,} images would have to run again for {sum(job.units):,} units"
    return _refuses(networks.lanes[0], job)


def screened(networks: Networks, job: Job, runner: Runner, checkpoint: Checkpoint, tell: Tell) -> PartialResult:
    """The part of a whole scan, screened. `part.again` says how many images ran again."""
    look = replace(_in_bfloat16(job), plan=replace(job.plan, k=CANDIDATES * job.plan.k))
    first = checkpoint.named("screened")
    rough = gather(Networks(networks.module, job.trace, networks.chosen, torch.bfloat16), look, runner, first, tell)
    first.save(rough)
    only = candidates(rough, job.plan.k)
    exact = gather(networks, replace(job, only=only), runner, checkpoint, lambda _: None)
    return _joined(rough, exact)


def candidates(rough: PartialResult, k: int) -> frozenset[int]:
    """The images that may hold peaks: those of every unit's k first, of others near the k-th value, and of the sample."""
    values, images = rough.best.values, rough.best.images
    floor = values[:, k - 1 : k]
    near = (values >= floor - MARGIN * floor.abs()) | floor.isnan()
    kept = images[near & (images != NO_IMAGE)]
    return frozenset(kept.unique().tolist()) | frozenset(rough.sample.images.tolist())


def _joined(rough: PartialResult, exact: PartialResult) -> PartialResult:
    """Peaks and sample of the second look, and the statistics of the first, whose highest values are the exact ones."""
    extremes, best = rough.moments.extremes, exact.best.values[:, 0]
    if extremes is not None:
        rough.moments.extremes = replace(extremes, highest=torch.where(best.isnan(), extremes.highest, best))
    exact.moments, exact.labels, exact.skipped = rough.moments, rough.labels, rough.skipped
    exact.again, exact.read, exact.contents = exact.read, rough.read, rough.contents
    return exact


def has_bfloat16(device: torch.device) -> bool:
    """True where products of bfloat16 are faster than those of float32; torch has no public word for it on processors.

    Of x86 processors that is so with AMX; with AVX-512's own instructions for bfloat16 torch 2.14 takes half as long again as in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = ("_is_amx_tile_supported", "_is_arm_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in known)


def _refuses(network: nn.Module, job: Job) -> str:
    """What a pass in bfloat16 stumbles over; empty where it runs."""
    try:
        maps = maps_of_noise(lowered(network, torch.bfloat16), _in_bfloat16(job).trace, job.layers)
    except Exception as error:
        return f"the network doesn't run in bfloat16: {first_line(error)}"
    other = next((found.dtype for found in maps if found.dtype != torch.bfloat16), None)
    return f"a layer of the network computes in {other}" if other else ""


def _in_bfloat16(job: Job) -> Job:
    return replace(job, trace=replace(job.trace, input_format=replace(job.trace.input_format, dtype=torch.bfloat16)))
