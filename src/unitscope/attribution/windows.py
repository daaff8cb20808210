"""Peaks in batches: which pixels go through the network together, and which cells are asked for.

A cell depends on its field alone. So where fields are small only a window around each is run, cut on the grid of the strides, and a
border of the image stays one; where they are large, one pass over an image serves all its peaks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil, lcm

from unitscope.layers import TracedLayer
from unitscope.records import Box, Peak

MOST_WINDOWS = 256
ROUNDS = 16
"""How many peaks share a forward pass at most: an image that excites many units would have a batch to itself for the rest."""


@dataclass(frozen=True, slots=True)
class Window:
    """The size of what is run, in network-input pixels, and the grid on which it is cut; sizes are (down, across)."""

    size: tuple[int, int]
    input_size: tuple[int, int]
    step: tuple[int, int]

    @classmethod
    def whole(cls, input_size: tuple[int, int]) -> "Window":
        return cls(input_size, input_size, (1, 1))

    @classmethod
    def around(cls, peaks: Sequence[Peak], layers: Sequence[TracedLayer], input_size: tuple[int, int]) -> "Window":
        """As small as can be for these peaks; `layers` are all up to theirs."""
        step_y, step_x = (lcm(*filter(None, steps)) for steps in zip(*(_strides(t) for t in layers), strict=True))
        height, width = max(p.bottom - p.top for p in peaks), max(p.right - p.left for p in peaks)
        return cls((_length(height, step_y, input_size[0]), _length(width, step_x, input_size[1])), input_size, (step_y, step_x))

    @property
    def share(self) -> float:
        """Of the input that is run."""
        return self.size[0] * self.size[1] / (self.input_size[0] * self.input_size[1])

    def place(self, peak: Peak) -> tuple[int, int]:
        """Top and left of the peak's window."""
        sides = zip((peak.top, peak.left), self.size, self.input_size, self.step, strict=True)
        top, left = (max(0, min(start // step * step, whole - size)) for start, size, whole, step in sides)
        return top, left


def _strides(traced: TracedLayer) -> tuple[int, int]:
    return traced.layer.stride_y, traced.layer.stride_x


def _length(field: int, step: int, whole: int) -> int:
    """The least length that holds a field wherever it begins between two steps, and reaches the far border in whole steps."""
    least = field + step - 1
    return min(least + (whole - least) % step, whole)


@dataclass(frozen=True, slots=True)
class Entry:
    """One window of one image, and the peaks whose fields lie in it."""

    image: int
    top: int
    left: int
    peaks: tuple[Peak, ...]

    def box(self, window: Window) -> Box:
        return Box(self.top, self.left, self.top + window.size[0], self.left + window.size[1])

    def cell(self, peak: Peak, traced: TracedLayer) -> tuple[int, int]:
        """The peak's cell in the map of the window alone."""
        return peak.y - self.top // (traced.layer.stride_y or 1), peak.x - self.left // (traced.layer.stride_x or 1)


def window_for(peaks: Sequence[Peak], layers: Sequence[TracedLayer], input_size: tuple[int, int]) -> Window:
    """Windows where they cost less than whole images: a forward and a backward pass each, where an image's forward pass is shared."""
    window, whole = Window.around(peaks, layers, input_size), Window.whole(input_size)
    images = len({peak.image for peak in peaks})
    return window if 2 * window.share * len(peaks) < len(peaks) + images else whole


def entries(peaks: Sequence[Peak], window: Window) -> list[Entry]:
    """The windows of all peaks: those with as many peaks together, image by image, so that a batch's rounds are full."""
    held: dict[tuple[int, int, int], list[Peak]] = {}
    for peak in peaks:
        held.setdefault((peak.image, *window.place(peak)), []).append(peak)
    found = [
        Entry(*place, few)
        for place, of_place in held.items()
        for few in _shared_out(sorted(of_place, key=partial(_area, window)))
    ]
    return sorted(found, key=lambda entry: (-len(entry.peaks), entry.image, entry.top, entry.left))


def _area(window: Window, peak: Peak) -> int:
    """Pixels of the peak's field that lie on the input."""
    box = peak.box.clipped(*window.input_size)
    return int(box.height * box.width)


def _shared_out(peaks: Sequence[Peak]) -> Iterator[tuple[Peak, ...]]:
    """Into as few parts as can be of `ROUNDS` at most, of nearly one length; in the order given, so small fields meet small ones."""
    parts = ceil(len(peaks) / ROUNDS)
    yield from (tuple(peaks[part::parts]) for part in range(parts))


def batches(peaks: Sequence[Peak], window: Window, images: int) -> Iterator[tuple[Entry, ...]]:
    """As many windows at once as have the pixels of `images` images."""
    length = max(1, min(MOST_WINDOWS, int(images / window.share)))
    left = iter(entries(peaks, window))
    while batch := tuple(islice(left, length)):
        yield batch


def cropped(traced: TracedLayer, window: Window) -> TracedLayer:
    """The layer as it is on a window alone: its map is smaller by whole strides."""
    layer = traced.layer
    less_y = (window.input_size[0] - window.size[0]) // (layer.stride_y or 1)
    less_x = (window.input_size[1] - window.size[1]) // (layer.stride_x or 1)
    return replace(traced, layer=replace(layer, map_height=layer.map_height - less_y, map_width=layer.map_width - less_x))
