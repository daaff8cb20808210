"""Which pixels go through the network together, and which peaks are attributed in one pass.

A cell depends on its receptive field alone. Where receptive fields are small, only a window of the image around each is run. Windows are
cut at multiples of the strides, and a border of the image stays a border. Where receptive fields are large, one pass over an image serves
all its peaks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil, lcm

from unitscope.layers import TracedLayer
from unitscope.records import Box, Peak

MAX_WINDOWS = 256
"""In one batch, however small they are."""
MAX_PEAKS_PER_PASS = 16
"""How many peaks share a forward pass at most. Without a limit an image with many peaks would have a batch to itself for the last ones."""


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The size of the windows that are run, and where they may begin: at multiples of `step`, or where they end with the input.

    Sizes are (height, width) in network-input pixels.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    step: tuple[int, int]

    @classmethod
    def whole_image(cls, input_size: tuple[int, int]) -> "WindowGrid":
        return cls(input_size, input_size, (1, 1))

    @classmethod
    def smallest(cls, field_size: tuple[int, int], step: tuple[int, int], input_size: tuple[int, int]) -> "WindowGrid":
        """The smallest windows for receptive fields of that size."""
        height, width = (_window_length(*axis) for axis in zip(field_size, step, input_size, strict=True))
        return cls((height, width), input_size, step)

    @classmethod
    def for_peaks(cls, peaks: Sequence[Peak], layers: Sequence[TracedLayer], input_size: tuple[int, int]) -> "WindowGrid":
        """The smallest windows for the receptive fields of these peaks; `layers` are the peaks' layer and all before it."""
        strides = [(traced.layer.stride_y, traced.layer.stride_x) for traced in layers]
        step_y, step_x = (lcm(*filter(None, of_axis)) for of_axis in zip(*strides, strict=True))
        field_size = max(peak.bottom - peak.top for peak in peaks), max(peak.right - peak.left for peak in peaks)
        return cls.smallest(field_size, (step_y, step_x), input_size)

    @property
    def share(self) -> float:
        """A window's share of the input's pixels."""
        return self.size[0] * self.size[1] / (self.input_size[0] * self.input_size[1])

    def corner(self, peak: Peak) -> tuple[int, int]:
        """Top and left of the window that holds the peak's receptive field."""
        axes = zip((peak.top, peak.left), self.size, self.input_size, self.step, strict=True)
        top, left = (max(0, min(start // step * step, length - size)) for start, size, length, step in axes)
        return top, left


def _window_length(field_length: int, step: int, input_length: int) -> int:
    """The smallest length that holds a receptive field wherever it begins between two steps, and reaches the far border in whole steps."""
    smallest = field_length + step - 1
    return min(smallest + (input_length - smallest) % step, input_length)


@dataclass(frozen=True, slots=True)
class PeakWindow:
    """One window of one image, and peaks whose receptive fields lie in it."""

    image: int
    top: int
    left: int
    peaks: tuple[Peak, ...]

    def box(self, grid: WindowGrid) -> Box:
        return Box(self.top, self.left, self.top + grid.size[0], self.left + grid.size[1])

    def cell(self, peak: Peak, traced: TracedLayer) -> tuple[int, int]:
        """Row and column of the peak's cell in the activation map of the window alone."""
        return peak.y - self.top // (traced.layer.stride_y or 1), peak.x - self.left // (traced.layer.stride_x or 1)


def choose_grid(peaks: Sequence[Peak], layers: Sequence[TracedLayer], input_size: tuple[int, int]) -> WindowGrid:
    """Windows where they cost less than whole images.

    A window takes a forward and a backward pass for each peak; on whole images the peaks of an image share the forward pass.
    """
    grid = WindowGrid.for_peaks(peaks, layers, input_size)
    image_count = len({peak.image for peak in peaks})
    windows_are_cheaper = 2 * grid.share * len(peaks) < len(peaks) + image_count
    return grid if windows_are_cheaper else WindowGrid.whole_image(input_size)


def peak_windows(peaks: Sequence[Peak], grid: WindowGrid) -> list[PeakWindow]:
    """The windows of all peaks, those with the most peaks first, so that the windows of a batch have about as many; then by image."""
    peaks_of_window: dict[tuple[int, int, int], list[Peak]] = {}
    for peak in peaks:
        peaks_of_window.setdefault((peak.image, *grid.corner(peak)), []).append(peak)
    windows = [
        PeakWindow(image, top, left, part)
        for (image, top, left), all_peaks in peaks_of_window.items()
        for part in _split_evenly(sorted(all_peaks, key=partial(_visible_area, grid)))
    ]
    return sorted(windows, key=lambda window: (-len(window.peaks), window.image, window.top, window.left))


def _visible_area(grid: WindowGrid, peak: Peak) -> int:
    """How many pixels of the input the peak's receptive field has."""
    box = peak.box.clipped(*grid.input_size)
    return int(box.height * box.width)


def _split_evenly(peaks: Sequence[Peak]) -> Iterator[tuple[Peak, ...]]:
    """The fewest parts of at most `MAX_PEAKS_PER_PASS` peaks, of nearly one length, whose n-th peaks stand close in the order."""
    part_count = ceil(len(peaks) / MAX_PEAKS_PER_PASS)
    yield from (tuple(peaks[part::part_count]) for part in range(part_count))


def window_batches(peaks: Sequence[Peak], grid: WindowGrid, image_count: int) -> Iterator[tuple[PeakWindow, ...]]:
    """The windows of all peaks in batches, each with about as many pixels as that many whole images."""
    length = max(1, min(MAX_WINDOWS, int(image_count / grid.share)))
    remaining = iter(peak_windows(peaks, grid))
    while batch := tuple(islice(remaining, length)):
        yield batch


def crop_layer(traced: TracedLayer, grid: WindowGrid) -> TracedLayer:
    """The layer as it is on a window alone: its activation map is smaller by whole strides."""
    layer = traced.layer
    less_y = (grid.input_size[0] - grid.size[0]) // (layer.stride_y or 1)
    less_x = (grid.input_size[1] - grid.size[1]) // (layer.stride_x or 1)
    return replace(traced, layer=replace(layer, map_height=layer.map_height - less_y, map_width=layer.map_width - less_x))
