"""check(): do the stored peaks come back?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite

import torch
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.networks import Network
from unitscope.precision import plain_tensors
from unitscope.records import Peak
from unitscope.scanning.again import Again, comes_back, opened_again


@dataclass(frozen=True, slots=True)
class Difference:
    """A stored value that does not come back; `found` is None where the image can't be read."""

    layer: str
    unit: int
    rank: int
    key: str
    stored: float
    found: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How many peaks were looked at, and those that differ."""

    peaks: int
    differences: list[Difference]


@plain_tensors()
def check(atlas: Atlas, network: "nn.Module | Network | None" = None, batch_size: int = 32, device: str = "auto") -> CheckResult:
    """Run the images of the peaks again and compare every stored value with what stands in its cell now.

    `network` is needed where the atlas was made from a module in memory. A value comes back where it agrees to 1e-4 of itself or
    1e-5 of its layer's highest value: the last bits of a convolution depend on the batch that an image is in.

    Images are found by their keys, so others may have come since. Raises `AtlasError` where the weights are not those that were
    scanned.
    """
    with opened_again(atlas, network, device) as again:
        replay = Replay(again)
        peaks = [Peak(**row) for row in atlas.table("peaks").to_pylist()]
        return CheckResult(len(peaks), list(replay.differences(peaks, batch_size)))


@dataclass(frozen=True, slots=True)
class Replay:
    """Runs chosen images again and reads chosen cells."""

    again: Again

    def differences(self, peaks: Sequence[Peak], batch_size: int) -> Iterator[Difference]:
        """The peaks whose values don't come back, image by image."""
        scale = {layer.name: 0.0 for layer in self.again.layers}
        for peak in peaks:
            if isfinite(peak.value):
                scale[peak.layer] = max(scale[peak.layer], abs(peak.value))
        by_image = [(image, list(of)) for image, of in groupby(sorted(peaks, key=_image), key=_image)]
        for start in range(0, len(by_image), batch_size):
            batch = dict(by_image[start : start + batch_size])
            for peak, found, reason in self._found(batch):
                if found is None or not comes_back(peak.value, found, scale[peak.layer]):
                    key = self.again.loader.source.key(peak.image)
                    yield Difference(peak.layer, peak.unit, peak.rank, key, peak.value, found, reason)

    def _found(self, batch: dict[int, list[Peak]]) -> Iterator[tuple[Peak, float | None, str]]:
        """Every peak of some images with the value that stands in its cell now."""
        loaded = [self.again.loader.load(image) for image in batch]
        for one in loaded:
            if one.pixels is None:
                yield from ((peak, None, one.reason) for peak in batch[one.image])
        good = [one for one in loaded if one.pixels is not None]
        if not good:
            return
        wanted: dict[str, list[tuple[int, Peak]]] = {layer.name: [] for layer in self.again.layers}
        for place, one in enumerate(good):
            for peak in batch[one.image]:
                wanted[peak.layer].append((place, peak))

        def look(number: int, maps: Tensor) -> list[float]:
            where = [(i, p.unit, p.y, p.x) for i, p in wanted[self.again.layers[number].name]]
            cells = torch.tensor(where, dtype=torch.long, device=maps.device).reshape(-1, 4)
            return maps[tuple(cells.T)].float().tolist()

        images = self.again.loader.normalised([one.pixels for one in good if one.pixels is not None], self.again.form)
        for traced, values in zip(self.again.layers, self.again.each(images, look), strict=True):
            yield from ((peak, value, "") for (_, peak), value in zip(wanted[traced.name], values, strict=True))


def _image(peak: Peak) -> int:
    return peak.image
