"""The blocks of nine patches on the pages, drawn in a few threads.

The units of a layer are drawn together, image by image, so that an image that holds peaks of many units is decoded once. What the
first units need comes first.
"""

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Condition, Lock, Thread

from cachetools import LRUCache
from PIL import Image

from unitscope.atlas.figures import block_notice
from unitscope.atlas.packed import PackedPatches
from unitscope.atlas.reading import MAX_PATCHES
from unitscope.drawing import PAGE_GROUND, cut_patch, draw_missing_patch
from unitscope.errors import ImagesError
from unitscope.images import Changed, Skipped
from unitscope.web.kept_blocks import KeptBlocks
from unitscope.web.pictures import PATCH_PX, draw_block
from unitscope.web.queries import AtlasQueries

LOG = logging.getLogger(__name__)
UNITS_PER_BATCH = 512
"""How many blocks are drawn together at most: with nine patches of 64 x 64 pixels each, 57 MB."""
MAX_PREPARED = 4
"""For how many parts of pages blocks are drawn before anybody asks: several people look, and a large page has some of these parts."""
CACHE_BYTES = 16 << 20
"""The 1,280 blocks of EfficientNet-Lite0's last layer, of 12 kB each on average; blocks of its first layers take 3 kB."""

Unit = tuple[str, int]
"""A layer's name and the number of one of its units."""


class BlockDrawer:
    """Draws blocks of an atlas in a few threads, and keeps those that were last asked for, with `kept` on the disk, too.

    Threads start with the first block. Patches are of the kind `patch_kind`: `auto`, `field` or `image`.
    """

    def __init__(self, queries: AtlasQueries, patch_kind: str = "auto", kept: KeptBlocks | None = None) -> None:
        self._queries, self._patch_kind, self._kept = queries, patch_kind, kept
        self._batches: list[BlockBatch] = []
        self._asked: deque[tuple[BlockBatch, int]] = deque()
        self._cache: LRUCache[Unit, bytes] = LRUCache(CACHE_BYTES, getsizeof=len)
        self._changed = Condition()
        self._threads: list[Thread] = []

    def block(self, unit: Unit) -> "Future[bytes]":
        """A unit's patches in a square, as JPEG. The future is cancelled where its batch is given up."""
        if self._packed is not None:
            return _finished_future(self._packed_block(self._packed, *unit))
        with self._changed:
            if unit in self._cache:
                return _finished_future(self._cache[unit])
            batch = next((batch for batch in self._batches if unit in batch.blocks), None)
            if batch is not None:
                self._asked.extend((batch, image) for image in batch.images(unit))
                return batch.blocks[unit]
        content = self._kept.get(unit) if self._kept is not None else None
        if content is None:
            return self.draw([unit])[unit]
        with self._changed:
            self._cache[unit] = content
        return _finished_future(content)

    @property
    def _packed(self) -> PackedPatches | None:
        return self._queries.atlas.packed_patches if self._patch_kind == "auto" else None

    def _packed_block(self, packed: PackedPatches, layer: str, unit: int) -> bytes:
        """As it lies in the atlas, but where something has to be written over it, or there is none."""
        content, tie = packed.block(layer, unit), self._queries.ties(layer).get(unit)
        if content is not None and not block_notice([content], tie):
            return content
        patch_count = min(self._queries.atlas.k, MAX_PATCHES)
        patches = packed.patches(layer, unit)[: len(self._queries.peak_rows(layer, unit))]
        return draw_block(patches, patch_count, block_notice(patches, tie), packed.size_px)

    def prepare(self, units: Sequence[Unit]) -> None:
        """Begin to draw the blocks that a page shows, but those that are drawn, when nobody waits for others; what pages opened long ago needed
        is given up."""
        if self._packed is not None:
            return
        with self._changed:
            prepared = [batch for batch in self._batches if batch.is_prepared]
            for batch in prepared[: max(0, len(prepared) - MAX_PREPARED)]:
                self._give_up(batch)
            drawn = self._cache.keys() | {unit for batch in self._batches for unit in batch.blocks}
        undrawn = [unit for unit in dict.fromkeys(units) if unit not in drawn and (self._kept is None or unit not in self._kept)]
        for start in reversed(range(0, len(undrawn), UNITS_PER_BATCH)):  # what is asked for last is drawn first
            self.draw(undrawn[start : start + UNITS_PER_BATCH], is_prepared=True)

    def draw_all(self, units: Sequence[Unit]) -> "Mapping[Unit, Future[bytes]]":
        """The blocks of these units: packed ones, or drawn before all that was asked for earlier."""
        if self._packed is not None:
            return {unit: self.block(unit) for unit in units}
        return self.draw(units)

    def draw(self, units: Sequence[Unit], is_prepared: bool = False) -> "Mapping[Unit, Future[bytes]]":
        """Draw the blocks of these units, as soon as those are drawn that were asked for earlier."""
        batch = BlockBatch(self._queries, units, self._patch_kind, is_prepared)
        batch.plan()
        with self._changed:
            if batch.uncut_rows:
                self._batches.append(batch)
                if not is_prepared:
                    self._asked.extend((batch, image) for image in batch.uncut_rows)
            while len(self._threads) < max(2, os.cpu_count() or 2):
                self._threads.append(Thread(target=self._draw_batches, daemon=True, name="draw blocks"))
                self._threads[-1].start()
            self._changed.notify_all()
        return batch.blocks

    def _draw_batches(self) -> None:
        """What a thread does, image by image."""
        while True:
            with self._changed:
                while (next_image := self._next_image()) is None:
                    self._changed.wait()
                batch, image, rows = next_image
            try:
                blocks = batch.cut_image(image, rows)
            except Exception as error:  # whoever waits for a block gets it; the thread goes on
                LOG.debug("the patches of image %d can't be drawn", image, exc_info=True)
                with self._changed:
                    self._give_up(batch, error)
            else:
                self._store(batch, blocks)

    def _next_image(self) -> "tuple[BlockBatch, int, list[tuple[Unit, int]]] | None":
        """What somebody waits for, in the order in which it was asked for; else what the last page may need."""
        while self._asked:
            batch, image = self._asked.popleft()
            if image in batch.uncut_rows:
                return batch, image, batch.uncut_rows.pop(image)
        batch_of_page = next((batch for batch in reversed(self._batches) if batch.uncut_rows), None)
        return None if batch_of_page is None else (batch_of_page, *batch_of_page.uncut_rows.popitem(last=False))

    def _store(self, batch: "BlockBatch", blocks: Mapping[Unit, bytes]) -> None:
        """Keep finished blocks, and give them to whoever waits."""
        with self._changed:
            self._cache.update(blocks)
            if batch.is_finished and batch in self._batches:
                self._batches.remove(batch)
        for unit, block in blocks.items():
            with suppress(InvalidStateError):  # the batch was given up meanwhile
                batch.blocks[unit].set_result(block)
        for unit, block in blocks.items():
            if self._kept is not None and unit not in batch.uncertain:
                self._kept.keep(unit, block)

    def _give_up(self, batch: "BlockBatch", error: Exception | None = None) -> None:
        """Draw no more of a batch: its futures are cancelled, or raise the error. The lock is held."""
        batch.uncut_rows.clear()
        if batch in self._batches:
            self._batches.remove(batch)
        for future in batch.blocks.values():
            with suppress(InvalidStateError):  # it is finished
                if error is None:
                    future.cancel()
                else:
                    future.set_exception(error)


class BlockBatch:
    """Units whose blocks are drawn together.

    `blocks` holds the block of each unit, finished or to come; `uncut_rows`, by image, the peaks whose patches no thread has begun to
    cut. `is_prepared` says that a page may need the blocks, and the next page not any more. `uncertain` are units with an image that is
    missing, or that nobody knows to be the one that was scanned: they may look different another time.
    """

    def __init__(self, queries: AtlasQueries, units: Sequence[Unit], patch_kind: str, is_prepared: bool = False) -> None:
        self._queries, self._patch_kind = queries, patch_kind
        self.is_prepared = is_prepared
        self.blocks: dict[Unit, Future[bytes]] = {unit: Future() for unit in units}
        self.uncertain: set[Unit] = set()
        self.uncut_rows: OrderedDict[int, list[tuple[Unit, int]]] = OrderedDict()
        self._patch_count = min(queries.atlas.k, MAX_PATCHES)
        self._patches: dict[Unit, dict[int, Image.Image]] = {}
        self._uncut_counts: dict[Unit, int] = {}
        self._lock = Lock()

    def plan(self) -> None:
        """Find the images that hold the patches. The block of a unit without peaks is drawn at once."""
        for unit, block in self.blocks.items():
            rows = self._rows(unit)
            for row in rows:
                self.uncut_rows.setdefault(self._queries.peak_image(row), []).append((unit, row))
            self._uncut_counts[unit] = len(rows)
            if not rows:
                block.set_result(self._draw_block(unit, []))

    @property
    def is_finished(self) -> bool:
        return not any(self._uncut_counts.values())

    def images(self, unit: Unit) -> list[int]:
        """The images of a unit's patches that are yet to be cut."""
        images = dict.fromkeys(self._queries.peak_image(row) for row in self._rows(unit))
        return [image for image in images if image in self.uncut_rows]

    def cut_image(self, image: int, rows: Sequence[tuple[Unit, int]]) -> dict[Unit, bytes]:
        """Cut the patches of one image; gives the blocks that lacked no other patch."""
        has_changed = False
        try:
            picture = self._queries.atlas.shown_picture(image)
        except (Skipped, ImagesError) as reason:
            picture, has_changed = None, isinstance(reason, Changed)
        if picture is None or self._queries.atlas.content(image) is None:
            self.uncertain.update(unit for unit, _ in rows)
        blocks = {}
        for unit, row in rows:
            patch = draw_missing_patch(PATCH_PX, has_changed, PAGE_GROUND) if picture is None else self._cut_patch(picture, row)
            patches = self._add_patch(unit, row, patch)
            if patches is not None:
                blocks[unit] = self._draw_block(unit, patches)
        return blocks

    def _rows(self, unit: Unit) -> range:
        return self._queries.peak_rows(*unit)[: self._patch_count]

    def _cut_patch(self, picture: Image.Image, row: int) -> Image.Image:
        peak = self._queries.peak(row)
        image = peak.source_image
        crop = peak.crop(self._patch_kind).scaled(picture.height / image.height, picture.width / image.width)
        return cut_patch(picture, crop, PATCH_PX, PAGE_GROUND)

    def _add_patch(self, unit: Unit, row: int, patch: Image.Image) -> list[Image.Image] | None:
        """Keep a patch; gives all patches of its unit, strongest first, where it was the last to come."""
        with self._lock:
            self._patches.setdefault(unit, {})[row] = patch
            self._uncut_counts[unit] -= 1
            if self._uncut_counts[unit]:
                return None
            patches = self._patches.pop(unit)
        return [patches[row] for row in sorted(patches)]

    def _draw_block(self, unit: Unit, patches: Sequence[Image.Image]) -> bytes:
        layer, number = unit
        return draw_block(patches, self._patch_count, block_notice(patches, self._queries.ties(layer).get(number)))


def _finished_future(content: bytes) -> "Future[bytes]":
    future: Future[bytes] = Future()
    future.set_result(content)
    return future
