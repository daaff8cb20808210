"""From the peaks of one layer down to pixels: batches of images go through replicas of the network side by side, forward and back."""

import logging
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from unitscope.atlas.attribution_images import Attribution, encode_attribution
from unitscope.attribution.methods import BatchAttribution, Method, TargetCells
from unitscope.attribution.windows import PeakWindow, WindowGrid, choose_grid, crop_layer, window_batches
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError
from unitscope.images.protocol import Pixels
from unitscope.layers import TracedLayer, tapped
from unitscope.records import Box, Peak
from unitscope.session.loader import LoadedImage, Loader
from unitscope.session.replica_threads import ReplicaThreads, results_in_order
from unitscope.session.replicas import images_in_cache
from unitscope.session.session import Session
from unitscope.session.stored import comes_back

log = logging.getLogger(__name__)

BATCH_SIZES = {"cpu": 8}
BATCH_SIZE = 32
"""Images at once by device, and on others: on a processor few, so that receptive fields of one size meet, and no replica is left with a
long rest."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch gave: the attributions of its peaks, and the peaks whose values did not come back, with the values that did."""

    attributions: list[Attribution] = field(default_factory=list)
    differing: list[tuple[Peak, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LayerAttribution:
    """The attribution of one layer's peaks by one method; `tolerance` is how far apart small values may be."""

    session: Session
    method: Method
    traced: TracedLayer
    tolerance: float

    def attributions(self, peaks: Sequence[Peak]) -> Generator[Attribution, None, None]:
        """In no order that means anything. Raises `AtlasError` where a value doesn't come back.

        Infinite peaks, and those of cells that see padding alone, have none.

        A window that gives another value than the whole image did shows that the network isn't the same everywhere on it; its
        peaks are done again on the whole image.
        """
        _, height, width = self.session.trace.input_shape
        remaining = [peak for peak in peaks if isfinite(peak.value) and _sees_pixels(peak, (height, width))]
        if not remaining:
            return
        whole = WindowGrid.whole_image((height, width))
        for grid in dict.fromkeys((self._grid(remaining, whole), whole)):
            differing: list[tuple[Peak, float]] = []
            with closing(self._batch_results(remaining, grid)) as results:
                for result in results:
                    yield from result.attributions
                    differing += result.differing
            remaining = [peak for peak, _ in differing]
            if not remaining:
                return
        peak, value = differing[0]
        raise AtlasError(
            f"the image {self.session.loader.source.key(peak.image)!r} has changed: unit {peak.unit} of layer {self.traced.name!r} had "
            f"{peak.value:.7g} in it and has {value:.7g} now"
        )

    def _grid(self, peaks: Sequence[Peak], whole: WindowGrid) -> WindowGrid:
        if self.method.needs_whole_image:
            return whole
        layers = self.session.trace.layers
        order = next(index for index, traced in enumerate(layers) if traced.name == self.traced.name)
        return choose_grid(peaks, layers[: order + 1], whole.input_size)

    def _batch_results(self, peaks: Sequence[Peak], grid: WindowGrid) -> Generator[BatchResult, None, None]:
        batch_size = images_in_cache(self.session.trace, BATCH_SIZES.get(self.session.device.type, BATCH_SIZE))
        with self.session.running() as threads:
            submit = partial(self._submit, threads, grid)
            yield from results_in_order(submit, window_batches(peaks, grid, batch_size), 2 * len(self.session.replicas.networks))

    def _submit(self, threads: ReplicaThreads, grid: WindowGrid, batch: tuple[PeakWindow, ...]) -> "Future[BatchResult]":
        if self.session.loader.source.thread_safe:
            return threads.submit(self._load_and_run, grid, batch)
        return threads.submit(self._run, grid, batch, self._pixels(batch, grid))  # a data set is read in the caller's thread

    # ── in a replica's thread ───────────────────────────────────────────────────────────────────────────────────────

    def _load_and_run(self, replica: nn.Module, grid: WindowGrid, batch: tuple[PeakWindow, ...]) -> BatchResult:
        return self._run(replica, grid, batch, self._pixels(batch, grid))

    def _run(self, replica: nn.Module, grid: WindowGrid, batch: tuple[PeakWindow, ...], pixels: Sequence[Pixels]) -> BatchResult:
        inputs = self.session.loader.normalise(pixels, self.session.input_format)
        on_window = crop_layer(self.traced, grid)
        rounds = _rounds(batch, on_window, inputs.device)
        result = BatchResult()
        try:
            for number, attribution in enumerate(self.method.attribute(partial(_maps, replica, on_window), inputs, rounds)):
                self._add(result, attribution, batch, number, grid)
        except Exception:
            if grid == WindowGrid.whole_image(grid.input_size):
                raise
            log.debug("a window of %s fails; the whole image is taken", self.traced.name, exc_info=True)
            return BatchResult([], [(peak, float("nan")) for window in batch for peak in window.peaks])
        return result

    def _add(
        self, result: BatchResult, attribution: BatchAttribution, batch: tuple[PeakWindow, ...], number: int, grid: WindowGrid
    ) -> None:
        """Keep what one round gave. Windows that have no more peaks in it gave nothing."""
        values, pixels = attribution.values.tolist(), attribution.pixels.float().cpu().numpy()
        for index, window in enumerate(batch):
            if number >= len(window.peaks):
                continue
            peak = window.peaks[number]
            if not comes_back(peak.value, values[index], self.tolerance):
                result.differing.append((peak, values[index]))
                continue
            box = peak.box.clipped(*grid.input_size)
            rows = slice(int(box.top) - window.top, int(box.bottom) - window.top)
            columns = slice(int(box.left) - window.left, int(box.right) - window.left)
            image = encode_attribution(pixels[index][:, rows, columns])
            result.attributions.append(Attribution(peak.layer, peak.unit, peak.rank, box, *image))

    def _pixels(self, batch: tuple[PeakWindow, ...], grid: WindowGrid) -> list[Pixels]:
        """What each window shows; an image is decoded once. Raises `AtlasError` where one can't be read any more."""
        loader = self.session.loader
        loaded = {image: loader.load(loader.item(image)) for image in {window.image for window in batch}}
        return [_cropped_pixels(loaded[window.image], window.box(grid), loader) for window in batch]


def _cropped_pixels(image: LoadedImage, box: Box, loader: Loader) -> Pixels:
    if image.pixels is None:
        raise AtlasError(f"the image {image.key!r} {image.skip_reason}; {WHERE_IMAGES_ARE}")
    rows, columns = slice(int(box.top), int(box.bottom)), slice(int(box.left), int(box.right))
    channels_last = loader.preprocessing is not None
    return image.pixels[rows, columns] if channels_last else image.pixels[:, rows, columns]


def _sees_pixels(peak: Peak, size: tuple[int, int]) -> bool:
    """False for a cell that sees padding alone."""
    box = peak.box.clipped(*size)
    return box.height > 0 and box.width > 0


def _rounds(batch: tuple[PeakWindow, ...], traced: TracedLayer, device: torch.device) -> list[TargetCells]:
    """The cells of the first peaks of all windows, then of the second ones …; a window that has no more gives its last again."""
    rounds = []
    for number in range(max(len(window.peaks) for window in batch)):
        peaks = [window.peaks[min(number, len(window.peaks) - 1)] for window in batch]
        cells = [(peak.unit, *window.cell(peak, traced)) for window, peak in zip(batch, peaks, strict=True)]
        rounds.append(TargetCells(*torch.tensor(cells, device=device).unbind(1)))
    return rounds


def _maps(network: nn.Module, traced: TracedLayer, images: Tensor) -> Tensor:
    """The layer's maps of some images; the pass ends there."""
    maps_of_layer: list[Tensor] = []
    with tapped(network, [traced], lambda _, maps: maps_of_layer.append(maps)) as tap:
        tap.run(images)
    return maps_of_layer[0]
