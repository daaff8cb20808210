"""colour_or_shape(): does a unit look for colour, detail, shape or place?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.tables import COLOUR_OR_SHAPE
from unitscope.layers import TracedLayer
from unitscope.networks import Network, as_float32
from unitscope.records import Preprocessing
from unitscope.session.loader import LoadedImage
from unitscope.session.session import ImageBatch, Session, read_layers
from unitscope.session.stored import open_atlas_session
from unitscope.spatial_max import highest_cell, highest_cell_by_pooling

BATCH_IMAGES = 16
LUMA = (0.299, 0.587, 0.114)
BLUR_SHARE = 1 / 56

SHARES = ("grey", "blurred", "scrambled", "mirrored")


def colour_or_shape(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """What is left of every unit's peaks when their images are changed, as the table `colour_or_shape` of the atlas.

    Four shares a unit, the mean over its peaks above zero of the highest value in the changed image over the peak's own: in *grey*
    (Rec. 601 luma); *blurred* by a Gaussian with a deviation of 1/56 of the shorter side; with the phase *scrambled* (the same
    random phases added in all colours: spectrum and colours stay, shapes go; of an image's own number, so the same every time); and
    *mirrored* left to right. A unit that dies in grey looks for colour, one that dies when scrambled for shape. A value that a
    rectifier would silence counts as zero; a unit without peaks above zero has no shares.

    Every image of a peak is read once. Raises `ImagesError` where one is gone.
    """
    check_table_writable(COLOUR_OR_SHAPE, atlas)
    with open_atlas_session(atlas, network, device) as session:
        shares = SharesLeft.of(atlas)
        images = sorted(set(atlas.table("peaks")["image"].to_pylist()))
        run = partial(_maxima_of_changes, session)
        for batch_images, maxima_by_change in session.run_batches(session.batches(images, BATCH_IMAGES), run):
            for change, maxima in enumerate(maxima_by_change):
                shares.add(change, batch_images, maxima, session.layers)
            if on_images is not None:
                on_images(len(batch_images))
    return write_table(shares.table(), COLOUR_OR_SHAPE, atlas, versions={"torch": torch.__version__})


def _maxima_of_changes(
    session: Session, replica: nn.Module, batch: ImageBatch, loaded: list[LoadedImage]
) -> tuple[list[int], list[list[np.ndarray]]]:
    """The images' numbers and, for each change and layer, each unit's spatial maximum, of shape (image, unit)."""
    images = [item.image for item in batch.items]
    inputs = as_float32(session.inputs(loaded))
    return images, [
        read_layers(replica, session.layers, session.input_format.convert(changed), _maxima)
        for changed in changes(inputs, images, session.loader.preprocessing)
    ]


def _maxima(layer: int, maps: Float[Tensor, "image unit y x"]) -> np.ndarray:
    """Each unit's spatial maximum; NaN is none, unless all of a map is."""
    maxima, _ = highest_cell_by_pooling(maps)
    return (highest_cell(maps).values if maxima.isnan().any() else maxima).cpu().numpy()


@dataclass(frozen=True, slots=True)
class SharesLeft:
    """Sums of what is left of every unit's peaks, while images come by.

    By layer: unit, image and value of its peaks above zero; the sums, of shape (change, unit); how many peaks a unit has.
    """

    peaks: dict[str, dict[str, np.ndarray]]
    sums: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    @classmethod
    def of(cls, atlas: Atlas) -> "SharesLeft":
        peaks = {layer.name: _positive_peaks(atlas.peaks(layer.name)) for layer in atlas.layers}
        sums = {layer.name: np.zeros((len(SHARES), layer.units)) for layer in atlas.layers}
        counts = {layer.name: np.bincount(peaks[layer.name]["unit"], minlength=layer.units) for layer in atlas.layers}
        return cls(peaks, sums, counts)

    def add(self, change: int, images: Sequence[int], maxima: Sequence[np.ndarray], layers: Sequence[TracedLayer]) -> None:
        """Take in some images, in the order of their numbers, with every layer's maxima after a change."""
        for traced, of_layer in zip(layers, maxima, strict=True):
            peaks = self.peaks[traced.name]
            row = np.searchsorted(images, peaks["image"])
            is_among = (row < len(images)) & (np.asarray(images)[np.minimum(row, len(images) - 1)] == peaks["image"])
            unit = peaks["unit"][is_among]
            values = of_layer[row[is_among], unit]
            share = (np.maximum(values, 0) if traced.layer.rectified else values) / peaks["value"][is_among]
            np.add.at(self.sums[traced.name][change], unit, share)

    def table(self) -> pa.Table:
        """A row a unit."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in COLOUR_OR_SHAPE.schema.names}
        for layer, sums in self.sums.items():
            counts = self.counts[layer]
            columns["layer"].append(np.full(len(counts), layer, dtype=object))
            columns["unit"].append(np.arange(len(counts), dtype=np.int32))
            columns["peaks"].append(counts.astype(np.int32))
            for name, sums_of_change in zip(SHARES, sums, strict=True):
                mean = np.where(counts > 0, sums_of_change / np.maximum(counts, 1), np.nan)
                columns[name].append(mean.astype(np.float32))
        joined = {name: np.concatenate(pieces) for name, pieces in columns.items()}
        arrays = {name: pa.array(values, from_pandas=True) for name, values in joined.items()}
        return pa.table(arrays).cast(COLOUR_OR_SHAPE.schema)


def _positive_peaks(peaks: pa.Table) -> dict[str, np.ndarray]:
    """Unit, image and value of the peaks above zero."""
    values = peaks["value"].to_numpy()
    is_positive = np.isfinite(values) & (values > 0)
    return {name: peaks[name].to_numpy()[is_positive] for name in ("unit", "image", "value")}


def changes(
    inputs: Float[Tensor, "image channel y x"], images: Sequence[int], preprocessing: Preprocessing | None
) -> Iterator[Float[Tensor, "image channel y x"]]:
    """The inputs in grey, blurred, scrambled and mirrored, as the network takes them."""
    yield _grey(inputs, preprocessing)
    deviation = min(inputs.shape[2:]) * BLUR_SHARE
    yield gaussian_blur(inputs, [2 * round(3 * deviation) + 1] * 2, [max(deviation, 0.3)] * 2)
    yield torch.stack([_scrambled(pixels, seed=image) for pixels, image in zip(inputs, images, strict=True)])
    yield inputs.flip(3)


def _grey(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """Luma in all of three colours; other inputs have none, or none that is known."""
    if inputs.shape[1] != 3:
        return inputs
    normalisation = (preprocessing.mean, preprocessing.std) if preprocessing else ((0.0,), (1.0,))
    mean, std = (inputs.new_tensor(values)[:, None, None] for values in normalisation)
    luma: Tensor = ((inputs * std + mean) * inputs.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    grey: Tensor = (luma - mean) / std
    return grey.expand_as(inputs)


def _scrambled(pixels: Float[Tensor, "channel y x"], seed: int) -> Float[Tensor, "channel y x"]:
    """The same spectrum with other phases, those of noise, so that the result is real."""
    noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(pixels)
    spectrum = torch.fft.rfft2(noise)
    phases = spectrum / spectrum.abs().clamp(min=1e-12)
    phases[0, 0] = 1  # the mean colour stays
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(pixels) * phases, s=pixels.shape[1:])
    return scrambled
