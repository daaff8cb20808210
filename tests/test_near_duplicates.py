"""Near-duplicates among a unit's highest images: none takes a second place, and nothing else is lost."""

import io
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from planted import see_through
from torch import nn

import unitscope
from unitscope.images.perceptual_hash import MAX_DISTANCE, differing_bits, perceptual_hash
from unitscope.records import ImageRecord
from unitscope.scanning.near_duplicates import near_duplicates


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """Pixels with more in the low frequencies than in the high ones, as photographs have."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(size, size)))
    distance = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    pixels = np.fft.irfft2(spectrum / np.maximum(distance, 1 / size), s=(size, size))
    grey = 128 + 50 * pixels / pixels.std()
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def encoded(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def smaller(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2)).resize((width, height)))


def brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels * 1.1 + 4, 0, 255).astype(np.uint8)


def distance(first: np.ndarray, second: np.ndarray) -> int:
    hashes = [perceptual_hash(pixels) for pixels in (first, second)]
    assert None not in hashes
    return int(differing_bits(np.array(hashes[:1], dtype=np.uint64), np.array(hashes[1:], dtype=np.uint64))[0])


@pytest.mark.parametrize("change", [encoded, smaller, brighter])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_changes_that_leave_a_picture_the_same_leave_its_hash(change: object, size: int) -> None:
    for seed in range(20):
        assert distance(photograph(seed, size), change(photograph(seed, size))) <= MAX_DISTANCE


def test_hashes_of_other_pictures_are_far_apart() -> None:
    hashes = np.array([perceptual_hash(photograph(seed)) for seed in range(300)], dtype=np.uint64)
    apart = differing_bits(hashes[:, None], hashes[None])[np.triu_indices(300, 1)]
    assert apart.min() > MAX_DISTANCE
    assert apart.mean() == pytest.approx(31.5, abs=0.5)


def test_differing_bits_beside_counting() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2**63, 50, dtype=np.uint64), rng.integers(0, 2**63, 50, dtype=np.uint64)
    expected = [bin(a ^ b).count("1") for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert differing_bits(first, second).tolist() == expected


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((64, 64, 3), 90, dtype=np.uint8),
        np.zeros((4, 400, 3), dtype=np.uint8),
        np.full((64, 64, 3), 2.5, dtype=np.float32),
        np.full((64, 64, 3), np.nan, dtype=np.float32),
        np.full((64, 64, 3), np.inf, dtype=np.float32),
        np.random.default_rng(0).normal(size=(1, 1, 9)).astype(np.float32),
    ],
)
def test_what_shows_nothing_has_no_hash(pixels: np.ndarray) -> None:
    assert perceptual_hash(pixels) is None


def test_a_candidate_is_left_out_for_one_that_stands_alone_before_it() -> None:
    """Greedy, beside a loop: a near-duplicate of a near-duplicate stays where it is far from all that are kept."""
    rng = np.random.default_rng(1)
    bases = rng.integers(0, 2**62, 6, dtype=np.uint64)
    hashes = [
        int(base) ^ int(sum(1 << int(bit) for bit in rng.choice(62, rng.integers(0, 5), replace=False)))
        for base in np.tile(bases, 5)
    ]
    records = {
        number: ImageRecord(number, str(number), 1, 1, None, perceptual_hash=None if number % 7 == 0 else hash_)
        for number, hash_ in enumerate(hashes)
    }
    images = np.stack([rng.permutation(30)[:20] for _ in range(40)])
    images[:, 11] = images[:, 3]  # another cell of the same image
    found = near_duplicates(images, records)
    for row, is_found in zip(images.tolist(), found.tolist(), strict=True):
        kept: list[int] = []
        for image, is_left_out in zip(row, is_found, strict=True):
            own = records[image].perceptual_hash
            near = [
                other
                for other in kept
                if other != image
                and own is not None
                and records[other].perceptual_hash is not None
                and bin(own ^ records[other].perceptual_hash).count("1") <= MAX_DISTANCE
            ]
            assert is_left_out == bool(near)
            if not near:
                kept.append(image)


class Pictures:
    """Pictures of which some are the first one, encoded anew."""

    def __init__(self, pixels: list[np.ndarray]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, image: int) -> Image.Image:
        return Image.fromarray(self.pixels[image])


@pytest.mark.parametrize("copies", [1, 8, 60])
def test_duplicates_never_take_two_places(copies: int, tmp_path: Path) -> None:
    brightest = brighter(photograph(0))
    pixels = [*(photograph(seed) // 2 for seed in range(1, 40)), *(encoded(brightest) for _ in range(copies)), brightest]
    preprocessing = unitscope.Preprocessing(64, (64, 64), (0.0,) * 3, (1.0,) * 3)
    atlas = unitscope.scan(see_through(3, nn.ReLU()), Pictures(pixels), tmp_path / "atlas", preprocess=preprocessing)
    is_copy = np.arange(len(pixels)) >= 39
    for unit in range(3):
        images = atlas.peaks("1", unit)["image"].to_numpy()
        assert is_copy[images].sum() == 1
        assert is_copy[images[0]]
        candidates = atlas.table("candidates", "1").filter(pc.field("unit") == unit)
        assert len(candidates) == min(50, len(pixels))
        shown = candidates.filter(pc.invert(candidates["near_duplicate"]))["image"].to_pylist()
        assert images.tolist() == shown[: len(images)]
        others = 50 - is_copy[candidates["image"].to_numpy()].sum()
        assert len(images) == min(9, 1 + others)
    assert unitscope.check(atlas, see_through(3, nn.ReLU())).differences == []


def test_candidates_are_those_of_brute_force_and_hold_the_peaks(tmp_path: Path) -> None:
    images = torch.randn(70, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    atlas = unitscope.scan(see_through(4), images, tmp_path / "atlas", candidates=20)
    highest = images.amax((2, 3))
    for unit in range(4):
        candidates = atlas.table("candidates", "0").filter(pc.field("unit") == unit)
        assert candidates["image"].to_pylist() == highest[:, unit].argsort(descending=True)[:20].tolist()
        assert not any(candidates["near_duplicate"].to_pylist())
        assert atlas.peaks("0", unit)["image"].to_pylist() == candidates["image"].to_pylist()[:9]


def test_candidates_fewer_than_k_are_refused(tmp_path: Path) -> None:
    with pytest.raises(unitscope.UnitscopeError, match="candidates must be at least k, 9, not 8"):
        unitscope.scan(see_through(1), torch.randn(5, 1, 8, 8), tmp_path / "atlas", candidates=8)
