"""colour_or_shape(): does a unit look for colour, detail, shape or place?"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from unitscope.atlas import Atlas
from unitscope.experiments.tables import place_for_table, write_table
from unitscope.networks import Network, as_float32
from unitscope.networks.precision import plain_tensors
from unitscope.records import Preprocessing
from unitscope.session.again import Again, opened_again
from unitscope.spatial_max import highest_cell

BATCH_IMAGES = 16
LUMA = (0.299, 0.587, 0.114)
BLUR_SHARE = 1 / 56

SHARES = ("grey", "blurred", "scrambled", "mirrored")
SCHEMA = pa.schema(
    [("layer", pa.string()), ("unit", pa.int32()), ("peaks", pa.int32()), *((name, pa.float32()) for name in SHARES)]
)


@plain_tensors()
def colour_or_shape(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """What is left of every unit's peaks when their images are changed, as `experiments/colour_or_shape.parquet`.

    Four shares a unit, the mean over its peaks above zero of the highest value in the changed image over the peak's own: in *grey*
    (Rec. 601 luma); *blurred* by a Gaussian with a deviation of 1/56 of the shorter side; with the phase *scrambled* (the same
    random phases added in all colours: spectrum and colours stay, shapes go; of an image's own number, so the same every time); and
    *mirrored* left to right. A unit that dies in grey looks for colour, one that dies when scrambled for shape. A value that a
    rectifier would silence counts as zero; a unit without peaks above zero has no shares.

    Every image of a peak is read once. Raises `ImagesError` where one is gone.
    """
    place = place_for_table(atlas.folder / "experiments" / "colour_or_shape.parquet")
    with opened_again(atlas, network, device) as again:
        images = sorted(set(atlas.table("peaks")["image"].to_pylist()))
        found = _Shares(atlas, again)
        left = iter(images)
        while batch := list(islice(left, BATCH_IMAGES)):
            found.add(batch)
            if on_images is not None:
                on_images(len(batch))
        return write_table(found.table(), place)


class _Shares:
    """The sums of shares of all units while images come by."""

    def __init__(self, atlas: Atlas, again: Again) -> None:
        self._again = again
        self._peaks = {layer.name: _positive(atlas.peaks(layer.name)) for layer in atlas.layers}
        self._sums = {layer.name: np.zeros((len(SHARES), layer.units)) for layer in atlas.layers}
        self._counts = {layer.name: np.bincount(self._peaks[layer.name]["unit"], minlength=layer.units) for layer in atlas.layers}

    def add(self, images: Sequence[int]) -> None:
        again = self._again
        inputs = as_float32(again.inputs(again.loader.load(image) for image in images))
        for row, changed in enumerate(changes(inputs, images, again.loader.preprocessing)):
            highest = again.each(again.form.convert(changed), lambda _, maps: _highest(maps).cpu().numpy())
            for traced, values in zip(again.layers, highest, strict=True):
                self._add(row, traced.name, images, values, traced.layer.rectified)

    def _add(self, row: int, layer: str, images: Sequence[int], values: np.ndarray, rectified: bool) -> None:
        peaks = self._peaks[layer]
        places = np.searchsorted(images, peaks["image"])
        here = (places < len(images)) & (np.asarray(images)[np.minimum(places, len(images) - 1)] == peaks["image"])
        units, now = peaks["unit"][here], values[places[here], peaks["unit"][here]]
        share = (np.maximum(now, 0) if rectified else now) / peaks["value"][here]
        np.add.at(self._sums[layer][row], units, share)

    def table(self) -> pa.Table:
        """A row a unit."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMA.names}
        for layer, sums in self._sums.items():
            counts = self._counts[layer]
            columns["layer"].append(np.full(len(counts), layer, dtype=object))
            columns["unit"].append(np.arange(len(counts), dtype=np.int32))
            columns["peaks"].append(counts.astype(np.int32))
            for name, row in zip(SHARES, sums, strict=True):
                columns[name].append(np.where(counts > 0, row / np.maximum(counts, 1), np.nan).astype(np.float32))
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        return pa.table({name: pa.array(values, from_pandas=True) for name, values in joined.items()}).cast(SCHEMA)


def _highest(maps: Float[Tensor, "image unit y x"]) -> Float[Tensor, "image unit"]:
    """Each unit's highest value, whatever is no number."""
    highest = maps.float().flatten(2).amax(2)
    return highest_cell(maps).values if highest.isnan().any() else highest


def _positive(peaks: pa.Table) -> dict[str, np.ndarray]:
    """Unit, image and value of the peaks above zero."""
    values = peaks["value"].to_numpy()
    kept = np.isfinite(values) & (values > 0)
    return {name: peaks[name].to_numpy()[kept] for name in ("unit", "image", "value")}


def changes(
    inputs: Float[Tensor, "image channel y x"], images: Sequence[int], preprocessing: Preprocessing | None
) -> Iterator[Float[Tensor, "image channel y x"]]:
    """The inputs in grey, blurred, scrambled and mirrored, as the network takes them."""
    yield _grey(inputs, preprocessing)
    deviation = min(inputs.shape[2:]) * BLUR_SHARE
    yield gaussian_blur(inputs, [2 * round(3 * deviation) + 1] * 2, [max(deviation, 0.3)] * 2)
    yield torch.stack([_scrambled(one, number) for one, number in zip(inputs, images, strict=True)])
    yield inputs.flip(3)


def _grey(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """Luma in all of three colours; other inputs have none, or none that is known."""
    if inputs.shape[1] != 3:
        return inputs
    said = (preprocessing.mean, preprocessing.std) if preprocessing else ((0.0,), (1.0,))
    mean, std = (inputs.new_tensor(values)[:, None, None] for values in said)
    luma: Tensor = ((inputs * std + mean) * inputs.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    grey: Tensor = (luma - mean) / std
    return grey.expand_as(inputs)


def _scrambled(one: Float[Tensor, "channel y x"], seed: int) -> Float[Tensor, "channel y x"]:
    """The same spectrum with other phases, those of noise, so that the result is real."""
    noise = torch.randn(one.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(one)
    turn = torch.fft.rfft2(noise)
    turn = turn / turn.abs().clamp(min=1e-12)
    turn[0, 0] = 1  # the mean colour stays
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(one) * turn, s=one.shape[1:])
    return scrambled
