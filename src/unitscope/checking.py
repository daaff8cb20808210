"""check(): do the stored peaks come back?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.arguments import whole_number
from unitscope.atlas import Atlas
from unitscope.networks import Network
from unitscope.session.loader import LoadedImage
from unitscope.session.noise import perturb_last_bits
from unitscope.session.session import ImageBatch, Session, read_layers
from unitscope.session.stored import comes_back, layer_tolerance, open_atlas_session

ROUNDED_COPIES = 16
"""How many copies of an image, with other last bits, show how far rounding moves its values."""
ROUNDING_MARGIN = 4
"""How many times as far as in those copies a value may be."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A stored value, of a peak or of a trough, that does not come back; `found` is None where the image can't be read."""

    layer: str
    unit: int
    rank: int
    key: str
    stored: float
    found: float | None
    reason: str
    is_trough: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How many peaks and troughs were looked at, and those that differ."""

    peaks: int
    differences: list[Difference]
    troughs: int = 0


def check(atlas: Atlas, network: "nn.Module | Network | None" = None, batch_size: int = 32, device: str = "auto") -> CheckResult:
    """Run the images of the peaks, and of the troughs where there are any, again and compare every stored value with what stands in its cell now.

    `network` is needed where the atlas was made from a module in memory, or names code to build it with. A value comes back where it
    agrees to 1e-4 of itself or 1e-5 of its layer's highest value: the last bits of a convolution depend on the batch that an image is in.
    Where the scan found that rounding moves a layer's values further than that, so far is allowed. A value that still differs is allowed
    four times what it moves when the last bits of its own image change: some images amplify rounding that noise doesn't.

    Images are found by their keys, so others may have come since. Raises `AtlasError` where the weights are not those that were
    scanned.
    """
    batch_size = whole_number("batch_size", batch_size)
    with open_atlas_session(atlas, network, device) as session:
        tolerances = np.array([layer_tolerance(atlas, traced.name) for traced in session.layers])
        peaks = StoredPeaks.of(atlas, session)
        differences = list(Comparison(session, peaks, tolerances).differences(batch_size))
        trough_count = int(peaks.is_trough.sum())
        return CheckResult(len(peaks.value) - trough_count, differences, trough_count)


@dataclass(frozen=True, slots=True)
class StoredPeaks:
    """The peaks and troughs of an atlas by image. Each array has one element a peak; `layer` is an index among the session's layers."""

    layer: NDArray[np.int64]
    unit: NDArray[np.int32]
    rank: NDArray[np.int16]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    value: NDArray[np.float32]
    image: NDArray[np.int64]
    is_trough: NDArray[np.bool_]

    @classmethod
    def of(cls, atlas: Atlas, session: Session) -> "StoredPeaks":
        peaks = atlas.table("peaks")
        names = ["layer", "unit", "rank", "y", "x", "value", "image"]
        troughs = atlas.table("troughs", columns=names) if atlas.has_troughs else peaks.select(names).slice(0, 0)
        table = pa.concat_tables([peaks.select(names), troughs])
        layer_index = {traced.name: index for index, traced in enumerate(session.layers)}
        layer_names = table["layer"].combine_chunks().dictionary_encode()
        layer = np.array([layer_index[name] for name in layer_names.dictionary.to_pylist()])[layer_names.indices.to_numpy()]
        columns = {name: table[name].to_numpy() for name in names[1:]} | {"is_trough": np.arange(len(table)) >= len(peaks)}
        order = np.lexsort((columns["is_trough"], columns["rank"], columns["unit"], layer, columns["image"]))
        return cls(layer[order], **{name: column[order] for name, column in columns.items()})

    @property
    def images(self) -> list[int]:
        """The images that have peaks, by number."""
        return [int(image) for image in np.unique(self.image)]

    def of_image(self, image: int) -> NDArray[np.int64]:
        """The rows of an image's peaks."""
        return np.arange(*np.searchsorted(self.image, [image, image + 1]))


@dataclass(frozen=True, slots=True)
class PeakValues:
    """Rows of stored peaks, and for each the value that stands in its cell now."""

    rows: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs images of peaks again. `tolerances` say how far apart small values of each layer may be."""

    session: Session
    peaks: StoredPeaks
    tolerances: NDArray[np.float64]

    def differences(self, batch_size: int) -> Iterator[Difference]:
        """The peaks whose values don't come back, image by image."""
        batches = self.session.batches(self.peaks.images, batch_size)
        for differences in self.session.run_batches(batches, self._of_batch):
            yield from differences

    def _of_batch(self, replica: nn.Module, batch: ImageBatch, loaded: list[LoadedImage]) -> list[Difference]:
        differences = [
            self._difference(int(row), None, image.skip_reason)
            for image in loaded
            if image.pixels is None
            for row in self.peaks.of_image(image.image)
        ]
        readable = [image for image in loaded if image.pixels is not None]
        if not readable:
            return differences
        rows = [self.peaks.of_image(image.image) for image in readable]
        values = self._cell_values(replica, self.session.inputs(readable), rows)
        for image, of_image in zip(readable, values, strict=True):
            differing = self._differing(of_image)
            moved = self._moved_by_rounding(replica, image, differing) if len(differing.rows) else np.empty(0)
            distance = np.abs(differing.values - self.peaks.value[differing.rows])
            too_far = np.flatnonzero(~(distance <= ROUNDING_MARGIN * moved))  # NaN is near nothing
            differences += [self._difference(int(differing.rows[index]), float(differing.values[index])) for index in too_far]
        return differences

    def _difference(self, row: int, value: float | None, reason: str = "") -> Difference:
        peaks = self.peaks
        layer, key = self.session.layers[peaks.layer[row]].name, self.session.loader.source.key(int(peaks.image[row]))
        unit, rank, stored, is_trough = (column[row].item() for column in (peaks.unit, peaks.rank, peaks.value, peaks.is_trough))
        return Difference(layer, unit, rank, key, stored, value, reason, is_trough)

    def _differing(self, computed: PeakValues) -> PeakValues:
        """Those that are further apart than rounding explains in general."""
        tolerance = self.tolerances[self.peaks.layer[computed.rows]]
        differs = ~comes_back(self.peaks.value[computed.rows], computed.values, tolerance)
        return PeakValues(computed.rows[differs], computed.values[differs])

    def _moved_by_rounding(self, replica: nn.Module, image: LoadedImage, computed: PeakValues) -> NDArray[np.float64]:
        """How far each value moves when the last bits of its image change."""
        copies = perturb_last_bits(self.session.inputs([image] * ROUNDED_COPIES))
        of_copies = self._cell_values(replica, self.session.input_format.convert(copies), [computed.rows] * ROUNDED_COPIES)
        moved: NDArray[np.float64] = np.abs(np.stack([copy.values for copy in of_copies]) - computed.values).max(axis=0)
        return moved

    def _cell_values(self, replica: nn.Module, inputs: Tensor, rows: Sequence[NDArray[np.int64]]) -> list[PeakValues]:
        """What stands in the cells of some peaks of each image, in one forward pass."""
        every_row = np.concatenate(rows)
        image = np.repeat(np.arange(len(rows)), [len(of_image) for of_image in rows])
        by_layer = np.argsort(self.peaks.layer[every_row], kind="stable")
        layer_starts = np.searchsorted(self.peaks.layer[every_row][by_layer], np.arange(len(self.session.layers) + 1))

        def read_cells(layer: int, maps: Tensor) -> NDArray[np.float64]:
            selected = by_layer[layer_starts[layer] : layer_starts[layer + 1]]
            of_layer = every_row[selected]
            cells = np.stack([image[selected], self.peaks.unit[of_layer], self.peaks.y[of_layer], self.peaks.x[of_layer]])
            values: NDArray[np.float64] = maps[tuple(torch.from_numpy(cells).to(maps.device))].double().cpu().numpy()
            return values

        values = np.empty(len(every_row))
        values[by_layer] = np.concatenate(read_layers(replica, self.session.layers, inputs, read_cells))
        stops = np.cumsum([len(of_image) for of_image in rows])[:-1]
        return [PeakValues(*pair) for pair in zip(rows, np.split(values, stops), strict=True)]
