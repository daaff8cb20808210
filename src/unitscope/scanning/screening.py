"""Screening in bfloat16: a fast first look at all images, and an exact second one at those that may hold peaks.

A forward pass in bfloat16 takes half the time where the hardware has it, and its values are right to two or three digits. So it
can't rank, but it can rule out: an image that comes up to no unit's k-th value, nor near it, holds no peak. The others run again in
float32, and those values are ranked and stored. Statistics over all images, sums by label among them, are those of the first look.
"""

import logging
from dataclasses import replace
from math import exp

import torch

from unitscope.errors import first_line
from unitscope.runners import Runner
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.shards import OnImages, scan_shards
from unitscope.session.replicas import maps_of_noise
from unitscope.session.session import Session
from unitscope.topk import NO_IMAGE

log = logging.getLogger(__name__)

MARGIN = 0.03
"""How far below its k-th value a unit's candidates may be, as a share of it: ten times what bfloat16's eight bits round away."""
SCREENED_PER_CANDIDATE = 4
"""How many images as many as peaks are looked at again for a unit, at most. With eight copies of every image, twice as many lost one peak in
fourteen, four times as many none."""
MAX_RERUN_SHARE = 1 / 3
"""The share of images to run again from which on screening costs more than it saves."""


def no_gain_reason(session: Session, plan: ScanPlan, is_fast: bool) -> str:
    """Why a scan of this plan would gain nothing from bfloat16; empty where it would. `is_fast` says that the device has it."""
    if not is_fast:
        return f"this {session.device.type} has no fast bfloat16 arithmetic"
    unit_count = sum(session.unit_counts)
    mentioned = unit_count * plan.candidates + plan.sample
    if plan.images and (share := 1 - exp(-mentioned / plan.images)) > MAX_RERUN_SHARE:
        return f"about {share:.0%} of the {plan.images:,} images would have to run again for {unit_count:,} units"
    return _refusal(session.in_dtype(torch.bfloat16))


def screen_shards(session: Session, plan: ScanPlan, runner: Runner, checkpoint: Checkpoint, on_images: OnImages) -> PartialResult:
    """The result of a whole scan, screened. `images_run_twice` says how many images ran again."""
    screening_plan = replace(plan, candidates=SCREENED_PER_CANDIDATE * plan.candidates)
    screening_checkpoint = checkpoint.for_stage("screened")
    screened = scan_shards(session.in_dtype(torch.bfloat16), screening_plan, runner, screening_checkpoint, on_images)
    screening_checkpoint.save(screened)
    exact_plan = replace(plan, fixed_point=None)
    exact = scan_shards(session, exact_plan, runner, checkpoint, lambda _: None, candidate_images(screened, plan.candidates))
    return _combined(screened, exact)


def candidate_images(screened: PartialResult, k: int) -> frozenset[int]:
    """The images that may hold peaks: those of every unit's k first, of others near the k-th value, and of the sample."""
    values, images = screened.top_k.values, screened.top_k.images
    kth_values = values[:, k - 1 : k]
    may_hold_peak = (values >= kth_values - MARGIN * kth_values.abs()) | kth_values.isnan()
    candidates = images[may_hold_peak & (images != NO_IMAGE)]
    return frozenset(candidates.unique().tolist()) | frozenset(screened.sample.images.tolist())


def _combined(screened: PartialResult, exact: PartialResult) -> PartialResult:
    """Peaks and sample in float32, and the statistics of screening, whose highest values are the exact ones."""
    extremes, highest = screened.statistics.extremes, exact.top_k.values[:, 0]
    if extremes is not None:
        screened.statistics.extremes = replace(extremes, highest=torch.where(highest.isnan(), extremes.highest, highest))
    exact.statistics, exact.labels, exact.skipped = screened.statistics, screened.labels, screened.skipped
    exact.tuning = screened.tuning
    exact.images_run_twice, exact.read, exact.contents = exact.read, screened.read, screened.contents
    return exact


def has_bfloat16(device: torch.device) -> bool:
    """True where products of bfloat16 are faster than those of float32; torch has no public word for it on processors.

    Of x86 processors that is so with AMX; with AVX-512's own instructions for bfloat16 torch 2.14 takes half as long again as in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tests = ("_is_amx_tile_supported", "_is_arm_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def _refusal(session: Session) -> str:
    """What a pass in bfloat16 stumbles over; empty where it runs."""
    trace = replace(session.trace, input_format=session.input_format)
    try:
        maps = maps_of_noise(session.replicas.networks[0], trace, session.layers)
    except Exception as error:
        log.debug("a pass in bfloat16 fails", exc_info=True)
        return f"the network doesn't run in bfloat16: {first_line(error)}"
    dtype = next((of_layer.dtype for of_layer in maps if of_layer.dtype != torch.bfloat16), None)
    return f"a layer of the network computes in {dtype}" if dtype else ""
