"""One run over the shards of a scan: partial results are merged as they come and saved now and then; what failed is told at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from unitscope.errors import AtlasError, ImagesError, ScanUnfinished
from unitscope.images import FILE_BITS, ArchiveSource, ImageSource, Skipped, Source, skipping_errors
from unitscope.images.content import spread
from unitscope.records import Shard
from unitscope.runners import FailedShard, Runner
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.worker import Worker
from unitscope.session.opening import none_read
from unitscope.session.session import Session

MAX_IMAGES_CHECKED = 32
"""How many of the images that an earlier scan has read are looked at before it is resumed."""

OnImages = Callable[[int], None]
"""Told how many more images were scanned."""


def scan_shards(
    session: Session,
    plan: ScanPlan,
    runner: Runner,
    checkpoint: Checkpoint,
    on_images: OnImages,
    only_images: frozenset[int] | None = None,
) -> PartialResult:
    """The merged result of all shards, or of those with `only_images`. An earlier scan's checkpoint is resumed.

    Raises `ScanUnfinished` where shards failed, after the others are done and saved, and `ImagesError` where nothing can be read.
    """
    merged = checkpoint.load() or PartialResult.empty(sum(session.unit_counts), plan.k, plan.sample)
    source = session.loader.source
    _check_images(merged, source, checkpoint)
    if merged.listed:
        on_images(merged.listed)
    failed_shards = []
    for result in runner.map(partial(Worker, session, plan, only_images), _remaining_shards(plan, merged, only_images)):
        if isinstance(result, FailedShard):
            failed_shards.append(result)
        else:
            on_images(result.listed)
            merged.merge(result)
            checkpoint.offer(merged)
    if failed_shards and not merged.statistics.blocks:
        raise ScanUnfinished(f"nothing could be scanned: {failed_shards[0].reason}")
    if failed_shards:
        checkpoint.save(merged)
        raise ScanUnfinished(_failures_text(failed_shards, plan, source))
    if not merged.read:
        raise ImagesError(none_read(merged.listed, source, merged.skipped) if merged.listed else _no_images_text(source))
    return merged


def _check_images(merged: PartialResult, source: Source, checkpoint: Checkpoint) -> None:
    """Raises `AtlasError` where some of the images that an earlier scan has read are others now."""
    if isinstance(source, ArchiveSource):
        return  # to find one image may be to read a whole file; the plan's fingerprint has to do
    records = [merged.image_records[image] for image in sorted(merged.image_records)]
    for record in (records[index] for index in spread(len(records), MAX_IMAGES_CHECKED)):
        content = None if record.content is None else _content(source, record.image)
        if content is not None and content != record.content:
            raise AtlasError(
                f"an unfinished scan was of other images: {record.key!r} holds other content than then. Give another --out, or remove the "
                f"folder {str(checkpoint.folder)!r}"
            )


def _content(source: ImageSource, image: int) -> int | None:
    with suppress(Skipped), skipping_errors():  # one that can't be read any more proves nothing
        return source.content(image)
    return None


def _no_images_text(source: Source) -> str:
    files = source.files if isinstance(source, ArchiveSource) else []
    return f"there are no images: {', '.join(map(repr, files[:3]))}{' …' if len(files) > 3 else ''} hold nothing"


def _remaining_shards(plan: ScanPlan, merged: PartialResult, only_images: frozenset[int] | None) -> Iterator[Shard]:
    """The shards that are still to be scanned: those with images that are wanted, and that aren't merged yet."""
    wanted = None
    if only_images is not None:
        wanted = {image >> FILE_BITS if plan.files else image // plan.shard_images for image in only_images}
    for shard in plan.shards():
        if (wanted is None or shard.number in wanted) and not merged.statistics.has_shard(shard.number):
            yield shard


def _failures_text(failed: Sequence[FailedShard], plan: ScanPlan, source: Source) -> str:
    first = failed[0]
    advice = "All others were, and are kept: start the same scan again to try these once more"
    if plan.files:
        return f"{len(failed)} of {plan.files} files could not be scanned: {first.reason}. {advice}"
    keys = " to ".join(repr(source.key(image)) for image in (first.shard.start, first.shard.stop - 1))
    images = sum(failure.shard.stop - failure.shard.start for failure in failed)
    return f"{images:,} images in {len(failed)} shards could not be scanned, among them {keys}: {first.reason}. {advice}"
