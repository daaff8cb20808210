"""The units of a network in one row, numbered through all its layers."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitscope.records import Layer


class UnitNumbers:
    """The units of a network, numbered through all its layers."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._names = [layer.name for layer in layers]
        self._firsts = list(accumulate((layer.units for layer in layers), initial=0))
        self._first_of_layer = dict(zip(self._names, self._firsts, strict=False))
        self._starts = np.array(self._firsts, dtype=np.int64)
        self.count = self._firsts[-1]

    def number(self, layer: str, unit: int) -> int:
        """The number of a layer's unit."""
        return self._first_of_layer[layer] + unit

    def unit(self, number: int) -> tuple[str, int]:
        """Layer and number in it of the unit of that number."""
        layer_index = bisect_right(self._firsts, number) - 1
        return self._names[layer_index], number - self._firsts[layer_index]

    def of_columns(self, layers: NDArray[Any], units: NDArray[Any]) -> NDArray[np.int64]:
        """The numbers of units of layers given by their place; -1 for those that aren't there."""
        is_layer = (layers >= 0) & (layers < len(self._names))
        places = np.where(is_layer, layers, 0)
        is_unit = is_layer & (units >= 0) & (units < np.diff(self._starts)[places])
        return np.where(is_unit, self._starts[places] + units, -1)

    def layers_and_units(self, numbers: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of the layers, and the numbers in them, of the units of these numbers."""
        layers = np.searchsorted(self._starts, numbers, side="right") - 1
        return layers, numbers - self._starts[layers]
