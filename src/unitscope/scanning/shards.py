"""One run over the shards of a scan: partial results are merged as they come and saved now and then; what failed is told at the end."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from unitscope.errors import AtlasError, ImagesError, ScanUnfinished
from unitscope.images import ImageSource, Skipped, skipping_errors
from unitscope.images.content import evenly_spaced
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
    merged = checkpoint.load() or PartialResult.of_plan(session.layers, plan)
    source = session.loader.source
    _check_images(merged, source, checkpoint)
    if merged.listed:
        on_images(merged.listed)
    failed_shards = []
    remaining = _remaining_shards(source, plan, merged, only_images)
    for result in runner.map(partial(Worker, session, plan, only_images), remaining):
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
        raise ScanUnfinished(_failures_text(failed_shards, source))
    if not merged.read:
        raise ImagesError(none_read(merged.listed, source, merged.skipped) if merged.listed else source.empty_text())
    return merged


def _check_images(merged: PartialResult, source: ImageSource, checkpoint: Checkpoint) -> None:
    """Raises `AtlasError` where some of the images that an earlier scan has read are others now."""
    records = [merged.image_records[image] for image in sorted(merged.image_records)]
    for record in (records[index] for index in evenly_spaced(len(records), MAX_IMAGES_CHECKED)):
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


def _remaining_shards(
    source: ImageSource, plan: ScanPlan, merged: PartialResult, only_images: frozenset[int] | None
) -> Iterator[Shard]:
    """The shards that are still to be scanned: those with images that are wanted, and that aren't merged yet."""
    wanted_images = None if only_images is None else sorted(only_images)
    for shard in source.shards(plan.shard_images, plan.images):
        is_wanted = wanted_images is None or _any_in(wanted_images, shard)
        if is_wanted and not merged.statistics.has_shard(shard.number):
            yield shard


def _any_in(sorted_images: Sequence[int], shard: Shard) -> bool:
    """True where one of these numbers is that of an image of the shard."""
    index = bisect_left(sorted_images, shard.start)
    return index < len(sorted_images) and sorted_images[index] < shard.stop


def _failures_text(failed: Sequence[FailedShard], source: ImageSource) -> str:
    shards = source.unscanned_text([failure.shard for failure in failed])
    return f"{shards}: {failed[0].reason}. All others were, and are kept: start the same scan again to try these once more"
