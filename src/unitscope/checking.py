"""check(): do the stored peaks come back?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from unitscope.arguments import whole_number
from unitscope.atlas import Atlas
from unitscope.networks import Network
from unitscope.networks.precision import plain_tensors
from unitscope.records import Peak
from unitscope.session.again import Again, comes_back, near, opened_again
from unitscope.session.trials import rounded

VARIANTS, MARGIN = 16, 4
"""In how many ways the last bits of an image are changed, and how many times as far as then a value may be."""


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

    `network` is needed where the atlas was made from a module in memory, or names code to build it with. A value comes back where it
    agrees to 1e-4 of itself or 1e-5 of its layer's highest value: the last bits of a convolution depend on the batch that an image is in.
    Where the scan found that rounding moves a layer's values further than that, so far is allowed. A value that still differs is allowed
    four times what it moves when the last bits of its own image change: some images amplify rounding that noise doesn't.

    Images are found by their keys, so others may have come since. Raises `AtlasError` where the weights are not those that were
    scanned.
    """
    batch_size = whole_number("batch_size", batch_size)
    with opened_again(atlas, network, device) as again:
        peaks = [Peak(**row) for row in atlas.table("peaks").to_pylist()]
        replay = Replay(again, {layer.name: near(atlas, layer.name) for layer in atlas.layers})
        return CheckResult(len(peaks), list(replay.differences(peaks, batch_size)))


@dataclass(frozen=True, slots=True)
class Replay:
    """Runs chosen images again and reads chosen cells.

    `near` is how far apart small values of a layer may be.
    """

    again: Again
    near: Mapping[str, float]

    def differences(self, peaks: Sequence[Peak], batch_size: int) -> Iterator[Difference]:
        """The peaks whose values don't come back, image by image."""
        by_image = [(image, list(of)) for image, of in groupby(sorted(peaks, key=_image), key=_image)]
        for start in range(0, len(by_image), batch_size):
            batch = dict(by_image[start : start + batch_size])
            apart = [(peak, found, reason) for peak, found, reason in self._found(batch) if not self._comes_back(peak, found)]
            moved = self._moved_by_rounding([(peak, found) for peak, found, _ in apart if found is not None])
            for peak, found, reason in apart:
                if found is None or not abs(found - peak.value) <= MARGIN * moved.get(peak, 0.0):  # NaN is no near value
                    key = self.again.loader.source.key(peak.image)
                    yield Difference(peak.layer, peak.unit, peak.rank, key, peak.value, found, reason)

    def _comes_back(self, peak: Peak, found: float | None) -> bool:
        return found is not None and comes_back(peak.value, found, self.near[peak.layer])

    def _found(self, batch: dict[int, list[Peak]]) -> Iterator[tuple[Peak, float | None, str]]:
        """Every peak of some images with the value that stands in its cell now."""
        loaded = [self.again.loader.load(image) for image in batch]
        for one in loaded:
            if one.pixels is None:
                yield from ((peak, None, one.reason) for peak in batch[one.image])
        good = [one for one in loaded if one.pixels is not None]
        if good:
            values = self._values(self.again.inputs(good), [batch[one.image] for one in good])
            yield from ((peak, value, "") for peak, value in values)

    def _moved_by_rounding(self, apart: Sequence[tuple[Peak, float]]) -> dict[Peak, float]:
        """How far values move when the last bits of their image change."""
        moved: dict[Peak, float] = {}
        found = dict(apart)
        for image, of_image in groupby(sorted(found, key=_image), key=_image):
            peaks = list(of_image)
            several = self.again.inputs([self.again.loader.load(image)] * VARIANTS)
            for peak, value in self._values(self.again.form.convert(rounded(several)), [peaks] * VARIANTS):
                moved[peak] = max(moved.get(peak, 0.0), abs(value - found[peak]))
        return moved

    def _values(self, images: Tensor, peaks: Sequence[Sequence[Peak]]) -> Iterator[tuple[Peak, float]]:
        """What stands in the cells of each image's peaks, in one forward pass."""
        wanted: dict[str, list[tuple[int, Peak]]] = {layer.name: [] for layer in self.again.layers}
        for place, of_image in enumerate(peaks):
            for peak in of_image:
                wanted[peak.layer].append((place, peak))

        def look(number: int, maps: Tensor) -> list[float]:
            where = [(i, p.unit, p.y, p.x) for i, p in wanted[self.again.layers[number].name]]
            cells = torch.tensor(where, dtype=torch.long, device=maps.device).reshape(-1, 4)
            return maps[tuple(cells.T)].float().tolist()

        for traced, values in zip(self.again.layers, self.again.each(images, look), strict=True):
            yield from ((peak, value) for (_, peak), value in zip(wanted[traced.name], values, strict=True))


def _image(peak: Peak) -> int:
    return peak.image
