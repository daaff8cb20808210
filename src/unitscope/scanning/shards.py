"""One run over the shards: parts are merged as they come, kept now and then, and what failed is told at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from unitscope.errors import AtlasError, ImagesError, ScanUnfinished
from unitscope.images import FILE_BITS, FileSource, ImageSource, Skipped, Source, skipping_errors
from unitscope.images.content import spread
from unitscope.records import Shard
from unitscope.runners import Failed, Runner
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.worker import Job, Worker
from unitscope.session.lanes import Networks
from unitscope.session.opening import none_read

MOST_CHECKED = 32
"""How many of the images that an earlier scan has read are looked at before it goes on."""

Tell = Callable[[int], None]


def gather(networks: Networks, job: Job, runner: Runner, checkpoint: Checkpoint, tell: Tell) -> PartialResult:
    """The merged part of all shards, from those that an earlier scan finished on. `tell` hears how many more images were scanned.

    Raises `ScanUnfinished` where shards failed, after the others are done and kept, and `ImagesError` where nothing can be read.
    """
    whole = checkpoint.load() or PartialResult.empty(sum(job.units), job.plan.k, job.plan.sample)
    _check_images(whole, job, checkpoint)
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
        raise ImagesError(
            none_read(whole.listed, job.loader.source, whole.skipped) if whole.listed else _nothing_in(job.loader.source)
        )
    return whole


def _check_images(whole: PartialResult, job: Job, checkpoint: Checkpoint) -> None:
    """Raises `AtlasError` where some of the images that an earlier scan has read are others now."""
    source, notes = job.loader.source, sorted(whole.notes.items())
    if isinstance(source, FileSource):
        return  # to find one image may be to read a whole file; the plan's fingerprint has to do
    for image, note in (notes[place] for place in spread(len(notes), MOST_CHECKED)):
        now = None if note.content is None else _content(source, image)
        if now is not None and now != note.content:
            raise AtlasError(
                f"an unfinished scan was of other images: {note.key!r} holds other content than then. Give another --out, or remove the "
                f"folder {str(checkpoint.folder)!r}"
            )


def _content(source: ImageSource, image: int) -> int | None:
    with suppress(Skipped), skipping_errors():  # one that can't be read any more proves nothing
        return source.content(image)
    return None


def _nothing_in(source: Source) -> str:
    files = source.files if isinstance(source, FileSource) else []
    return f"there are no images: {', '.join(map(repr, files[:3]))}{' …' if len(files) > 3 else ''} hold nothing"


def _left(job: Job, whole: PartialResult) -> Iterator[Shard]:
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
