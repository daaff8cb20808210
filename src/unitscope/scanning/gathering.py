"""One run over the shards: parts are merged as they come, kept now and then, and what failed is told at the end."""

from collections.abc import Callable, Iterator, Sequence

from unitscope.errors import ImagesError, ScanUnfinished
from unitscope.images import FILE_BITS
from unitscope.records import Shard
from unitscope.runners import Failed, Runner
from unitscope.scanning.checkpoints import Checkpoint
from unitscope.scanning.lanes import Networks
from unitscope.scanning.parts import Part
from unitscope.scanning.workers import Job, Worker

Tell = Callable[[int], None]


def gather(networks: Networks, job: Job, runner: Runner, checkpoint: Checkpoint, tell: Tell) -> Part:
    """The merged part of all shards, from those that an earlier scan finished on. `tell` hears how many more images were scanned.

    Raises `ScanUnfinished` where shards failed, after the others are done and kept, and `ImagesError` where nothing can be read.
    """
    whole = checkpoint.load() or Part.empty(sum(job.units), job.plan.k)
    if whole.listed:
        tell(whole.listed)
    failed = []
    for result in runner.map(lambda: Worker(networks, job), _left(job, whole)):
        if isinstance(result, Failed):
            failed.append(result)
        else:
            tell(result.listed)
            whole.merge(result)
            checkpoint.offer(whole)
    if failed and not whole.moments.blocks:
        raise ScanUnfinished(f"nothing could be scanned: {failed[0].reason}")
    if failed:
        checkpoint.save(whole)
        raise ScanUnfinished(_told(failed, job))
    if not whole.read:
        reason = next(iter(whole.skipped.values()), ("", ""))
        raise ImagesError(f"none of {whole.listed} images can be read; {reason[0]!r} {reason[1]}")
    return whole


def _left(job: Job, whole: Part) -> Iterator[Shard]:
    """The shards that are still to be done: of those with images that are wanted, those that aren't merged yet."""
    wanted = None
    if job.only is not None:
        wanted = {image >> FILE_BITS if job.plan.files else image // job.plan.shard_images for image in job.only}
    for shard in job.plan.shards():
        if (wanted is None or shard.number in wanted) and not whole.moments.holds(shard.number):
            yield shard


def _told(failed: Sequence[Failed], job: Job) -> str:
    first = failed[0]
    kept = "All others were, and are kept: start the same scan again to try these once more"
    if job.plan.files:
        return f"{len(failed)} of {job.plan.files} files could not be scanned: {first.reason}. {kept}"
    keys = " to ".join(repr(job.loader.source.key(image)) for image in (first.shard.start, first.shard.stop - 1))
    images = sum(one.shard.stop - one.shard.start for one in failed)
    return f"{images:,} images in {len(failed)} shards could not be scanned, among them {keys}: {first.reason}. {kept}"
