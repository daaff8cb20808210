"""The pictures on the pages: blocks of nine patches, and the images that they are cut from.

The units of a layer are drawn together, image by image, so that an image that holds peaks of many units is decoded once; what the
first units need comes first.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from io import BytesIO
from math import ceil, sqrt
from threading import Condition, Lock, Thread
from typing import Any

from PIL import Image

from unitscope.atlas.figures import block_notice
from unitscope.atlas.patches import MAX_PATCHES, cut_attributions, resolve_patch_kind
from unitscope.drawing import Crop, cut_patch, draw_grid, draw_missing_patch, draw_notice
from unitscope.errors import ImagesError
from unitscope.images import Changed, Skipped
from unitscope.records import Peak
from unitscope.web.queries import Catalogue

PATCH_PX = 64
PICTURE_PX = 1024
UNITS_AT_ONCE = 512
KEPT_BYTES = 16 << 20

Unit = tuple[str, int]
"""A layer's name and the number of one of its units."""


class Pictures:
    """Draws blocks and images of an atlas in a few threads, and keeps the blocks that were asked for last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._batches: list[Batch] = []
        self._kept: OrderedDict[Unit, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._changed = Condition()
        self._threads: list[Thread] = []

    def block(self, unit: Unit) -> "Future[bytes]":
        """A unit's patches in a square, as WebP; cancelled where what it was drawn with is given up."""
        with self._changed:
            if unit in self._kept:
                self._kept.move_to_end(unit)
                return _done(self._kept[unit])
            found = next((batch for batch in self._batches if unit in batch.results), None)
            if found is not None:
                self._batches.remove(found)
                self._batches.append(found)
                found.hurry(unit)
                return found.results[unit]
        return self.draw([unit])[unit]

    def prepare(self, units: Sequence[Unit]) -> None:
        """Begin to draw these blocks, which a page shows, but those that are there; what pages before needed is given up."""
        with self._changed:
            for batch in [batch for batch in self._batches if batch.prepared]:
                self._give_up(batch)
            known = self._kept.keys() | {unit for batch in self._batches for unit in batch.results}
        lacking = [unit for unit in dict.fromkeys(units) if unit not in known]
        for start in reversed(range(0, len(lacking), UNITS_AT_ONCE)):  # what is asked for last is drawn first
            self.draw(lacking[start : start + UNITS_AT_ONCE], prepared=True)

    def draw(self, units: Sequence[Unit], prepared: bool = False) -> "dict[Unit, Future[bytes]]":
        """Draw the blocks of these units before all that was asked for earlier."""
        batch = Batch(self._catalogue, units, prepared)
        with self._changed:
            if batch.to_cut:
                self._batches.append(batch)
            while len(self._threads) < max(2, os.cpu_count() or 2):
                self._threads.append(Thread(target=self._work, daemon=True, name="pictures"))
                self._threads[-1].start()
            self._changed.notify_all()
        return batch.results

    def picture(self, image: int) -> bytes:
        """A source image as displayed, as JPEG, its longer side at most 1,024 pixels.

        Raises `Skipped` or `ImagesError` where it can't be had any more.
        """
        picture = self._catalogue.atlas.picture(image).convert("RGB")
        picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
        return _encoded(picture, "JPEG", quality=90)

    def projections(self, method: str, unit: Unit) -> bytes:
        """What a method found in a unit's patches, in the same places, as WebP."""
        atlas, (layer, number) = self._catalogue.atlas, unit
        places = min(atlas.k, MAX_PATCHES)
        peaks = [Peak(**row) for row in atlas.peaks(layer, number).to_pylist()][:places]
        found = cut_attributions(atlas, peaks, resolve_patch_kind(atlas, atlas.layer(layer), "auto"), method, 2 * PATCH_PX)
        return _block([found[peak.unit, peak.rank] for peak in peaks], places, 2 * PATCH_PX)

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._newest()
                while batch is None:
                    self._changed.wait()
                    batch = self._newest()
                image, rows = batch.to_cut.popitem(last=False)
            try:
                blocks = batch.cut(image, rows)
            except Exception as error:  # whoever waits for a block is told; the thread goes on
                with self._changed:
                    self._give_up(batch, error)
                continue
            with self._changed:
                for unit, block in blocks.items():
                    self._keep(unit, block)
                if batch.finished and batch in self._batches:
                    self._batches.remove(batch)
            for unit, block in blocks.items():
                with suppress(InvalidStateError):
                    batch.results[unit].set_result(block)

    def _give_up(self, batch: "Batch", error: Exception | None = None) -> None:
        """Draw no more of a batch; who waits for it is told. The lock is held."""
        batch.to_cut.clear()
        if batch in self._batches:
            self._batches.remove(batch)
        for future in batch.results.values():
            with suppress(InvalidStateError):
                if error is None:
                    future.cancel()
                else:
                    future.set_exception(error)

    def _newest(self) -> "Batch | None":
        return next((batch for batch in reversed(self._batches) if batch.to_cut), None)

    def _keep(self, unit: Unit, block: bytes) -> None:
        self._kept_bytes += len(block) - len(self._kept.pop(unit, b""))
        self._kept[unit] = block
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


class Batch:
    """Units whose blocks are drawn together. `to_cut` holds the peaks' rows of each image that nobody has begun with; `prepared`
    says that a page may need them, and the next one not any more."""

    def __init__(self, catalogue: Catalogue, units: Sequence[Unit], prepared: bool = False) -> None:
        self._catalogue = catalogue
        self.prepared = prepared
        self._places = min(catalogue.atlas.k, MAX_PATCHES)
        self.results: dict[Unit, Future[bytes]] = {unit: Future() for unit in units}
        self.to_cut: OrderedDict[int, list[tuple[Unit, int]]] = OrderedDict()
        self._patches: dict[Unit, dict[int, Image.Image]] = {}
        self._lacking: dict[Unit, int] = {}
        self._counting = Lock()
        for unit in units:
            rows = catalogue.rows(*unit)[: self._places]
            for row in rows:
                self.to_cut.setdefault(catalogue.image_of(row), []).append((unit, row))
            self._lacking[unit] = len(rows)
            if not rows:
                self.results[unit].set_result(self._block(unit, []))

    @property
    def finished(self) -> bool:
        return not any(self._lacking.values())

    def hurry(self, unit: Unit) -> None:
        """Cut what this unit lacks next."""
        for row in reversed(self._catalogue.rows(*unit)[: self._places]):
            image = self._catalogue.image_of(row)
            if image in self.to_cut:
                self.to_cut.move_to_end(image, last=False)

    def cut(self, image: int, rows: Sequence[tuple[Unit, int]]) -> dict[Unit, bytes]:
        """Cut the patches of one image; gives the blocks that lacked nothing else."""
        changed = False
        try:
            picture = self._catalogue.atlas.picture(image)
        except (Skipped, ImagesError) as reason:
            picture, changed = None, isinstance(reason, Changed)
        finished = {}
        for unit, row in rows:
            patch = draw_missing_patch(PATCH_PX, changed) if picture is None else self._patch(picture, row)
            with self._counting:
                patches = self._patches.setdefault(unit, {})
                patches[row] = patch
                self._lacking[unit] -= 1
                whole = self._patches.pop(unit) if not self._lacking[unit] else None
            if whole is not None:
                finished[unit] = self._block(unit, [whole[row] for row in sorted(whole)])
        return finished

    def _block(self, unit: Unit, patches: Sequence[Image.Image]) -> bytes:
        layer, number = unit
        return _block(patches, self._places, PATCH_PX, block_notice(patches, self._catalogue.ties(layer).get(number)))

    def _patch(self, picture: Image.Image, row: int) -> Image.Image:
        peak = self._catalogue.example(row)
        return cut_patch(picture, Crop(peak.drawn, peak.seen), PATCH_PX, transparent=True)


def _block(patches: Sequence[Image.Image], places: int, size_px: int, words: str = "") -> bytes:
    """Patches row by row in a square, as WebP; nothing where there are fewer than there is room for. `words` say what is wrong with them."""
    block = draw_grid(patches, ceil(sqrt(places)) ** 2, size_px, gap_px=0, transparent=True)
    draw_notice(block, words)
    return _encoded(block, "WEBP", quality=82, method=1)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _done(content: bytes) -> "Future[bytes]":
    future: Future[bytes] = Future()
    future.set_result(content)
    return future
