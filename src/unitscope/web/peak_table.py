"""All peaks of an atlas in memory, to be looked up by unit and by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.atlas.samples import NumpyColumns
from unitscope.web.unit_numbers import UnitNumbers


@dataclass(frozen=True, slots=True)
class PeakTable:
    """The peaks as numpy columns, by layer, unit and rank; `layer` is the layer's index in call order.

    `layer_starts` holds the first row of each layer, and the number of rows at its end; `rows_by_image` all rows in the order of their
    images, `images` the image of each of those.
    """

    columns: NumpyColumns
    layer_starts: NDArray[np.int64]
    rows_by_image: NDArray[np.int64]
    images: NDArray[np.int64]

    @classmethod
    def of(cls, columns: NumpyColumns, layer_count: int) -> "PeakTable":
        """The table of these columns, sorted as the class says."""
        rows_by_image = np.argsort(columns["image"], kind="stable")
        layer_starts = np.searchsorted(columns["layer"], np.arange(layer_count + 1))
        return cls(columns, layer_starts, rows_by_image, columns["image"][rows_by_image])

    def rows_of_layer(self, layer: int) -> slice:
        return slice(int(self.layer_starts[layer]), int(self.layer_starts[layer + 1]))

    def column_of_layer(self, name: str, layer: int) -> NDArray[Any]:
        """The values of one column for a layer's peaks, by unit and rank."""
        return self.columns[name][self.rows_of_layer(layer)]

    def rows_of_unit(self, layer: int, unit: int) -> range:
        """The rows of a unit's peaks, strongest first."""
        units, start = self.column_of_layer("unit", layer), int(self.layer_starts[layer])
        first, stop = np.searchsorted(units, unit), np.searchsorted(units, unit, side="right")
        return range(start + int(first), start + int(stop))

    def rows_of_image(self, image: int) -> NDArray[np.int64]:
        """The rows of the peaks in an image, by layer, unit and rank."""
        start, stop = np.searchsorted(self.images, image), np.searchsorted(self.images, image, side="right")
        return self.rows_by_image[start:stop]

    def of_rows(self, rows: slice | Sequence[int]) -> NumpyColumns:
        """The columns of some rows."""
        return {name: column[rows] for name, column in self.columns.items()}

    def image(self, row: int) -> int:
        """The image of one peak."""
        return int(self.columns["image"][row])


@dataclass(frozen=True, slots=True)
class PeaksByImage:
    """Some of the peaks in the order of their images: the row of each, its image, and the number of its unit."""

    rows: NDArray[np.int64]
    images: NDArray[np.int64]
    units: NDArray[np.int32]
    numbers: UnitNumbers

    @classmethod
    def of(cls, peaks: PeakTable, is_chosen: NDArray[np.bool_], numbers: UnitNumbers) -> "PeaksByImage":
        """The chosen ones."""
        chosen = is_chosen[peaks.rows_by_image]
        rows = peaks.rows_by_image[chosen]
        units = numbers.of_columns(peaks.columns["layer"][rows], peaks.columns["unit"][rows])
        return cls(rows, peaks.images[chosen], units.astype(np.int32), numbers)

    def rows_of_image(self, image: int) -> NDArray[np.int64]:
        """The rows of the peaks in an image, by layer, unit and rank."""
        start, stop = np.searchsorted(self.images, [image, image + 1])
        return self.rows[start:stop]

    def units_with_shared_images(self, images: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The units with peaks in at least two of these images, by layer and number: index of the layer, number, and in how many they are."""
        of_images = np.unique(np.asarray(images, dtype=np.int64))
        spans = np.searchsorted(self.images, np.stack([of_images, of_images + 1]))
        units = [self.units[start:stop] for start, stop in spans.T.tolist()]
        shared = np.bincount(np.concatenate([np.zeros(0, dtype=np.int32), *units]))
        numbers = np.flatnonzero(shared > 1)
        return *self.numbers.layers_and_units(numbers), shared[numbers]
