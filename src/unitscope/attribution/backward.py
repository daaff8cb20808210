"""From the peaks of one layer to their projections: batches go through copies of the network side by side."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from unitscope.atlas.attribution_images import Projection, encoded
from unitscope.attribution.methods import Cells, Method, Projected
from unitscope.attribution.windows import Entry, Window, batches, cropped, window_for
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError
from unitscope.images.protocol import Pixels
from unitscope.layers import TracedLayer, tapped
from unitscope.records import Peak
from unitscope.session.again import Again, comes_back
from unitscope.session.lanes import Networks, ahead, lanes
from unitscope.session.replicas import cached_images

BATCH_SIZES = {"cpu": 8}
BATCH_SIZE = 32
"""Images at once by device, and on others: on a processor few, so that fields of one size meet, and no lane is left with a long rest."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What a batch gave: projections of peaks, and the peaks whose values did not come back, with what did."""

    projections: list[Projection]
    differing: list[tuple[Peak, float]]


@dataclass(frozen=True, slots=True)
class Descent:
    """The peaks of one layer on their way down to pixels, by one method; `near` is how far apart small values may be."""

    again: Again
    networks: Networks
    method: Method
    name: str
    near: float

    def projections(self, peaks: Sequence[Peak]) -> Generator[Projection, None, None]:
        """In no order that means anything. Raises `AtlasError` where a value doesn't come back.

        Infinite peaks, and those of cells that see padding alone, have none.

        A window that gives another value than the whole image did shows that the network isn't the same everywhere on it; its
        peaks are done again on the whole image.
        """
        size = self.again.trace.shape[1], self.again.trace.shape[2]
        left = [peak for peak in peaks if isfinite(peak.value) and _sees(peak, size)]
        if not left:
            return
        order = next(place for place, traced in enumerate(self.again.trace.layers) if traced.name == self.name)
        whole = Window.whole(size)
        first = whole if self.method.whole else window_for(left, self.again.trace.layers[: order + 1], size)
        for window in dict.fromkeys((first, whole)):
            differing: list[tuple[Peak, float]] = []
            with closing(self._batches(left, window)) as batches_done:
                for done in batches_done:
                    yield from done.projections
                    differing += done.differing
            left = [peak for peak, _ in differing]
            if not left:
                return
        peak, found = differing[0]
        raise AtlasError(
            f"the image {self.again.loader.source.key(peak.image)!r} has changed: unit {peak.unit} of layer {self.name!r} had "
            f"{peak.value:.7g} in it and has {found:.7g} now"
        )

    def _batches(self, peaks: Sequence[Peak], window: Window) -> Generator[_Done, None, None]:
        traced = next(layer for layer in self.again.layers if layer.name == self.name)
        at_once = cached_images(self.again.trace, BATCH_SIZES.get(self.again.form.device.type, BATCH_SIZE))
        run = partial(_run, self, cropped(traced, window), window)
        with lanes(self.networks.lanes, self.again.form.device) as submit:

            def work(batch: tuple[Entry, ...]) -> "Future[_Done]":
                load = partial(_pixels, self.again, batch, window)
                if not self.again.loader.source.thread_safe:  # a data set is read in the thread that asked for projections
                    load = partial(list, load())
                return submit(partial(run, load), batch)

            yield from ahead(work, batches(peaks, window, at_once), 2 * len(self.networks.lanes))


def _run(
    layer: Descent,
    traced: TracedLayer,
    window: Window,
    load: Callable[[], list[Pixels]],
    network: nn.Module,
    batch: tuple[Entry, ...],
) -> _Done:
    """One batch: load, cut, bring down."""
    images = layer.again.loader.normalised(load(), layer.again.form)
    rounds = _rounds(batch, traced, images.device)
    done = _Done([], [])
    try:
        for number, result in enumerate(layer.method.project(partial(_maps, network, traced), images, rounds)):
            _take(layer, done, result, [(entry, number) for entry in batch], window)
    except Exception:
        if window == Window.whole(window.input_size):
            raise
        return _Done([], [(peak, float("nan")) for entry in batch for peak in entry.peaks])  # the whole image will tell
    return done


def _sees(peak: Peak, size: tuple[int, int]) -> bool:
    """False for a cell that sees padding alone."""
    box = peak.box.clipped(*size)
    return box.height > 0 and box.width > 0


def _take(layer: Descent, done: _Done, result: Projected, places: list[tuple[Entry, int]], window: Window) -> None:
    """Keep one round's results; entries whose peaks are through by then have none."""
    values, pixels = result.values.tolist(), result.pixels.float().cpu().numpy()
    for place, (entry, number) in enumerate(places):
        if number >= len(entry.peaks):
            continue
        peak = entry.peaks[number]
        if not comes_back(peak.value, values[place], layer.near):
            done.differing.append((peak, values[place]))
            continue
        box = peak.box.clipped(*window.input_size)
        inside = (
            slice(None),
            slice(int(box.top) - entry.top, int(box.bottom) - entry.top),
            slice(int(box.left) - entry.left, int(box.right) - entry.left),
        )
        done.projections.append(Projection(peak.layer, peak.unit, peak.rank, box, *encoded(pixels[place][inside])))


def _rounds(batch: tuple[Entry, ...], traced: TracedLayer, device: torch.device) -> list[Cells]:
    """The cells of the first peaks of all entries, then of the second ones …; an entry that has no more gives its last again."""
    rounds = []
    for number in range(max(len(entry.peaks) for entry in batch)):
        peaks = [entry.peaks[min(number, len(entry.peaks) - 1)] for entry in batch]
        cells = [(peak.unit, *entry.cell(peak, traced)) for entry, peak in zip(batch, peaks, strict=True)]
        rounds.append(Cells(*torch.tensor(cells, device=device).unbind(1)))
    return rounds


def _pixels(again: Again, batch: tuple[Entry, ...], window: Window) -> list[Pixels]:
    """What each entry shows; an image is decoded once. Raises `AtlasError` where one can't be read any more."""
    loaded = {image: again.loader.load(image) for image in {entry.image for entry in batch}}
    found = []
    for entry in batch:
        one = loaded[entry.image]
        if one.pixels is None:
            raise AtlasError(f"the image {one.key!r} {one.reason}; {WHERE_IMAGES_ARE}")
        box = entry.box(window)
        rows, columns = slice(int(box.top), int(box.bottom)), slice(int(box.left), int(box.right))
        found.append(one.pixels[rows, columns] if again.loader.preprocessing is not None else one.pixels[:, rows, columns])
    return found


def _maps(network: nn.Module, traced: TracedLayer, images: Tensor) -> Tensor:
    """The layer's maps of some images; the pass ends there."""
    held: list[Tensor] = []
    with tapped(network, [traced], lambda _, maps: held.append(maps)) as tap:
        tap.run(images)
    return held[0]
