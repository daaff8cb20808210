"""occlude(): what unit and classifier make of an image while a square of it is covered (Zeiler & Fergus 2014, section 4.2)."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.attribution_images import Attribution, encode_attribution
from unitscope.atlas.tables import CLASS_PROBABILITY
from unitscope.attribution.methods import occlusion_squares
from unitscope.attribution.store import AttributionStore
from unitscope.errors import AtlasError
from unitscope.layers import TracedLayer
from unitscope.networks import Network
from unitscope.networks.outputs import class_scores, describe_output
from unitscope.records import Peak
from unitscope.session.replica_threads import ReplicaThreads
from unitscope.session.session import Session, read_layers_and_output
from unitscope.session.stored import comes_back, layer_tolerance, open_atlas_session

BATCH_IMAGES = 32
METHOD = "occlusion"
"""The attribution whose images say how far a unit drops."""


Square = tuple[slice, slice]
"""The rows and columns of the input that are covered."""


def occlude(
    atlas: Atlas,
    layer: str,
    units: Sequence[int] | None = None,
    network: "nn.Module | Network | None" = None,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """For the images of some units' peaks, class probabilities and the units' values while a grey square slides over them.

    The table `class_probability` of the atlas has a row an image: the probability of its class, and the number of the most probable class, for
    each position of the square, row by row. With `classes`, the labels in the order of the network's outputs, the class is
    that of the image's label (`labelled`); else, and for an image without such a label, the one that the network finds most
    probable in the whole image. A label that stands there twice says nothing of the class. How far the given `units` drop in the same
    passes is added to the attributions by `occlusion`, for peaks that have none yet; `attribute` makes the same. A table that is there is
    replaced.

    Raises `AtlasError` for a unit that the layer doesn't have, where the network gives no class scores, of shape (image, class), or
    where `classes` are more or fewer than those, and `ImagesError` where an image is gone.
    """
    unit_numbers = atlas.layer(layer).unit_numbers(units)
    peaks_by_image = _peaks_by_image(atlas, layer, unit_numbers)
    check_table_writable(CLASS_PROBABILITY, atlas)
    labels = {row["image"]: row["label"] for row in atlas.table("images").to_pylist()}
    label_counts = Counter(classes or ())
    class_numbers = {label: number for number, label in enumerate(classes or ()) if label_counts[label] == 1}
    rows = []
    with ExitStack() as stack:
        store = None if units is None else stack.enter_context(AttributionStore(atlas, METHOD).locked())
        session = stack.enter_context(open_atlas_session(atlas, network, device))
        threads = stack.enter_context(session.running(to_output=True))
        occlusion = Occlusion(session, threads, atlas.layer(layer).name, layer_tolerance(atlas, layer))
        _check_classes(occlusion, next(iter(peaks_by_image)), classes)
        for image, peaks in peaks_by_image.items():
            occluded = occlusion.of_image(image, [] if store is None else store.missing(layer, peaks))
            rows.append(_class_probability_row(image, occluded, class_numbers.get(labels.get(image) or "")))
            if store is not None:
                for attribution in occluded.attributions:
                    store.add(attribution)
            if on_images is not None:
                on_images(1)
        if store is not None:
            store.finish()
    parameters = {"layer": layer, "units": unit_numbers, "classes": None if classes is None else len(classes)}
    table = pa.Table.from_pylist(rows, schema=CLASS_PROBABILITY.schema)
    return write_table(table, CLASS_PROBABILITY, atlas, parameters=parameters, versions={"torch": torch.__version__})


def _peaks_by_image(atlas: Atlas, layer: str, units: Sequence[int] | None) -> dict[int, list[Peak]]:
    """The peaks of the chosen units, by image. Raises `AtlasError` where there are none."""
    chosen_units = None if units is None else set(units)
    peaks = [Peak(**row) for row in atlas.peaks(layer).to_pylist() if chosen_units is None or row["unit"] in chosen_units]
    if not peaks:
        raise AtlasError(f"the chosen units of layer {layer!r} have no peaks in the atlas {str(atlas.folder)!r}")
    images = sorted({peak.image for peak in peaks})
    return {image: [peak for peak in peaks if peak.image == image] for image in images}


def _check_classes(occlusion: "Occlusion", image: int, classes: Sequence[str] | None) -> None:
    """Raises `AtlasError` where the labels are not as many as the network's outputs; found with one image, before all the others."""
    output_count = occlusion.probabilities_of(image).shape[1]
    if classes is not None and len(classes) != output_count:
        raise AtlasError(
            f"{len(classes):,} classes were given, but the network has {output_count:,} outputs; give one label for each, in their order"
        )


@dataclass(frozen=True, slots=True)
class Occluded:
    """What came of one image: class probabilities of the whole image, of shape (class,), and of shape (square, class) while squares
    cover it, which slide over it in so many rows; and how far units drop, as attributions."""

    whole: NDArray[np.float32]
    covered: NDArray[np.float32]
    rows: int
    attributions: list[Attribution]


def _class_probability_row(image: int, occluded: Occluded, class_number: int | None) -> dict[str, object]:
    number = int(occluded.whole.argmax()) if class_number is None else class_number
    return {
        "image": image, "class": number, "labelled": class_number is not None, "uncovered": float(occluded.whole[number]),
        "rows": occluded.rows, "columns": len(occluded.covered) // occluded.rows,
        "probability": occluded.covered[:, number].tolist(), "most_probable": occluded.covered.argmax(1).tolist(),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Occlusion:
    """Runs images of one layer's peaks with squares of them covered. `tolerance` is how far apart small values may be."""

    session: Session
    threads: ReplicaThreads
    layer: str
    tolerance: float

    @property
    def _traced(self) -> TracedLayer:
        return next(traced for traced in self.session.layers if traced.name == self.layer)

    def probabilities_of(self, image: int) -> NDArray[np.float32]:
        """Of the whole image, of shape (1, class)."""
        _, probabilities = self.threads.submit(self._run, self._inputs(image), (), ()).result()
        return probabilities

    def of_image(self, image: int, peaks: Sequence[Peak]) -> Occluded:
        """Raises `AtlasError` where a peak's value doesn't come back in the whole image."""
        inputs = self._inputs(image)
        height, width = inputs.shape[2:]
        all_squares, length = list(occlusion_squares(height, width)), self.session.images_per_pass(BATCH_IMAGES)
        runs = [
            self.threads.submit(self._run, inputs, peaks, all_squares[start : start + length])
            for start in range(0, len(all_squares), length)
        ]
        values, whole = self.threads.submit(self._run, inputs, peaks, ()).result()
        values_by_square, covered = (np.concatenate(results) for results in zip(*(run.result() for run in runs), strict=True))
        self._check_values(peaks, values[0])
        attributions = self._attributions(peaks, values[0] - values_by_square, all_squares, (height, width))
        rows = len({square_rows.start for square_rows, _ in all_squares})
        return Occluded(whole[0], covered, rows, attributions)

    def _inputs(self, image: int) -> Tensor:
        loader = self.session.loader
        return self.session.inputs([loader.load(loader.item(image))])

    def _run(
        self, replica: nn.Module, inputs: Tensor, peaks: Sequence[Peak], covered: Sequence[Square]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The values of the peaks' cells, of shape (square, peak), and class probabilities, of shape (square, class).

        One pass over as many copies of an image as squares, each with one of them covered; over the whole image where there are none.
        """
        images = inputs.repeat(max(len(covered), 1), 1, 1, 1)
        for image, (rows, columns) in zip(images, covered, strict=False):
            image[:, rows, columns] = 0  # the mean colour
        cells = torch.tensor([(peak.unit, peak.y, peak.x) for peak in peaks], dtype=torch.long, device=images.device)

        def read_cells(layer: int, maps: Tensor) -> NDArray[np.float32]:
            unit, y, x = cells.reshape(-1, 3).T
            values: NDArray[np.float32] = maps[:, unit, y, x].float().cpu().numpy()
            return values

        inputs = self.session.input_format.convert(images)
        [values], output = read_layers_and_output(replica, [self._traced], inputs, read_cells)
        return values, _probabilities(output)

    def _check_values(self, peaks: Sequence[Peak], values: NDArray[np.float32]) -> None:
        for peak, value in zip(peaks, values.tolist(), strict=True):
            if not comes_back(peak.value, value, self.tolerance):
                raise AtlasError(
                    f"the image {self.session.loader.source.key(peak.image)!r} has changed: unit {peak.unit} of layer {self.layer!r} had "
                    f"{peak.value:.7g} in it and has {value:.7g} now"
                )

    def _attributions(
        self, peaks: Sequence[Peak], drops: NDArray[np.float32], covered: Sequence[Square], size: tuple[int, int]
    ) -> list[Attribution]:
        """For each peak the mean drop over the squares that cover a pixel, as the method `occlusion` of attribution has it."""
        counts = np.zeros((1, *size), dtype=np.float32)
        sums = np.zeros((len(peaks), *size), dtype=np.float32)
        for (rows, columns), drop in zip(covered, drops, strict=True):
            counts[:, rows, columns] += 1
            sums[:, rows, columns] += drop[:, None, None]
        means = sums / counts
        attributions = []
        for peak, mean in zip(peaks, means, strict=True):
            box = peak.box.clipped(*size)
            if isfinite(peak.value) and box.height > 0 and box.width > 0:
                pixels = mean[None, int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
                attributions.append(Attribution(peak.layer, peak.unit, peak.rank, box, *encode_attribution(pixels)))
        return attributions


def _probabilities(output: Any) -> NDArray[np.float32]:
    scores = class_scores(output)
    if scores is None:
        raise AtlasError(f"the network gives no class scores of shape (image, class), but {describe_output(output)}")
    probabilities: NDArray[np.float32] = scores.float().softmax(1).cpu().numpy()
    return probabilities
