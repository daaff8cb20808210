"""What units are tuned to: Gabor functions and colours that are known."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from photographs import write_photographs
from PIL import Image
from torch import nn

import unitscope
from unitscope.errors import UnitscopeError
from unitscope.naming.patch_features import FEATURES, PatchFeatures, explained_share
from unitscope.naming.stimuli import colour_of_hue, normal_of
from unitscope.naming.visual import tune_visually
from unitscope.naming.words import describe
from unitscope.records import Preprocessing

SIZE, FIELD = 96, 21
AS_IT_IS = Preprocessing(SIZE, (SIZE, SIZE), (0.0,) * 3, (1.0,) * 3)


def gabor(angle: float, period: float, phase: float, deviation: float = 4.0) -> torch.Tensor:
    """Filters of a Gabor function, the same in every colour, without a mean."""
    y, x = np.mgrid[:FIELD, :FIELD] - (FIELD - 1) / 2
    across = normal_of(angle)
    wave = np.cos(2 * np.pi * (x * across[0] + y * across[1]) / period - math.radians(phase))
    window = np.exp(-(x**2 + y**2) / (2 * deviation**2))
    return torch.from_numpy(np.stack([window * (wave - (wave * window).sum() / window.sum())] * 3))


def colour(hue: float) -> torch.Tensor:
    """Filters that are one for a hue, and zero for grey."""
    direction = np.array(colour_of_hue(hue)) - 0.5
    return torch.from_numpy(np.broadcast_to(direction[:, None, None], (3, FIELD, FIELD)).copy())


GABORS = [(0, 8, 0), (20, 6, 90), (45, 9, 180), (67, 12, 270), (90, 7, 45), (118, 10, 130), (140, 8.5, 10), (171, 6.5, 300)]
COLOURS = [0, 35, 77, 150, 212, 301]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    convolution = nn.Conv2d(3, len(GABORS) + len(COLOURS), FIELD, padding=FIELD // 2, bias=False)
    filters = [gabor(*unit) for unit in GABORS] + [colour(hue) for hue in COLOURS]
    with torch.no_grad():
        convolution.weight.copy_(torch.stack(filters))
    return nn.Sequential(convolution).eval()


@pytest.fixture(scope="module")
def rows(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("visual")
    write_photographs(folder / "images", 40)
    atlas = unitscope.scan(network, folder / "images", folder / "atlas", preprocess=AS_IT_IS)
    return tune_visually(atlas, network).to_pylist()


def turned(first: float, second: float, circle: float) -> float:
    """How far apart two angles are on a circle."""
    return abs((first - second + circle / 2) % circle - circle / 2)


@pytest.mark.parametrize("unit", range(len(GABORS)))
def test_gabor_functions_are_found(rows: list[dict[str, float]], unit: int) -> None:
    angle, period, phase = GABORS[unit]
    row = rows[unit]
    assert turned(row["angle"], angle, 180) <= 5
    assert row["period_px"] == pytest.approx(period, rel=0.1)
    assert turned(row["phase"], phase, 360) <= 20
    assert row["phase_modulation"] == pytest.approx(1, abs=0.05)
    assert row["angle_selectivity"] > 0.3


@pytest.mark.parametrize("unit", range(len(COLOURS)))
def test_hues_are_found(rows: list[dict[str, float]], unit: int) -> None:
    row = rows[len(GABORS) + unit]
    assert turned(row["hue"], COLOURS[unit], 360) <= 10
    assert row["hue_gain"] > 0
    assert row["hue_opponent"] == pytest.approx(row["hue_gain"], rel=0.05)
    assert abs(row["brightness_gain"]) < 0.01 * row["hue_gain"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("match", 45, 270, 0.8, 0, 0), "edge at 45°, dark below"),
        (("match", 45, 90, 0.8, 0, 0), "edge at 45°, dark above"),
        (("match", 90, 90, 0.8, 0, 0), "vertical edge, dark on the left"),
        (("match", 0, 0, 0.8, 0, 0), "horizontal bright line"),
        (("match", 135, 180, 0.8, 0, 0), "dark line at 135°"),
        (("energy", 90, 0, 4, 0, 0), "fine vertical stripes"),
        (("energy", 30, 0, 2, 0, 0), "coarse stripes at 30°"),
        (("red", 0, 0, 1, 30, 0), "orange"),
        (("brightness", 0, 0, 1, 0, -1), "dark"),
    ],
)
def test_words(arguments: tuple[str, float, float, float, float, float], words: str) -> None:
    assert describe(*arguments) == words


@pytest.mark.parametrize("angle", [0, 30, 44, 60, 90, 120, 136, 150, 179])
def test_the_dark_side_of_an_edge_is_dark(angle: float) -> None:
    """Drawn as the filter that has the phase: bright where the words don't say dark."""
    side = describe("match", angle, 90, 0.8, 0, 0).rpartition(", dark ")[2]
    filters = gabor(angle, 30, 90)[0]
    halves = {
        "above": filters[: FIELD // 2], "below": filters[FIELD // 2 + 1 :],
        "on the left": filters[:, : FIELD // 2], "on the right": filters[:, FIELD // 2 + 1 :],
    }  # fmt: skip
    assert halves[side].sum() == min(half.sum() for half in halves.values())


def test_words_of_what_is_no_number() -> None:
    nan = float("nan")
    assert [describe(feature, nan, nan, nan, nan, nan) for feature in ("match", "energy", "red", "yellow", "brightness")] == [
        None
    ] * 5


# ── what it explains ────────────────────────────────────────────────────────────────────────────────────────────────


def test_explained_is_what_least_squares_explain() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 120, len(FEATURES)))
    weights = rng.normal(size=(4, len(FEATURES)))
    responses = np.einsum("uif,uf->ui", features, weights) + rng.normal(size=(4, 120)) * np.array([0, 1, 3, 10])[:, None]
    responses[3, ::7] = np.nan
    halves = rng.integers(0, 2, 120)
    explained, _ = explained_share(PatchFeatures(responses, features.astype(np.float32), halves))
    for unit in range(4):
        is_value = np.isfinite(responses[unit])
        in_a, in_b = is_value & (halves == 0), is_value & (halves == 1)
        design = np.column_stack([features[unit], np.ones(120)])
        fitted = design @ np.linalg.lstsq(design[in_a], responses[unit, in_a], rcond=None)[0]
        residual = ((responses[unit] - fitted)[in_b] ** 2).sum()
        total = ((responses[unit, in_b] - responses[unit, in_b].mean()) ** 2).sum()
        assert explained[unit] == pytest.approx(max(0, 1 - residual / total), abs=0.01)


class Blind(nn.Module):
    """Two layers that see how bright a picture is; one is NaN where it is too bright."""

    def __init__(self, is_blind_first: bool) -> None:
        super().__init__()
        self.first, self.second = nn.ReLU(), nn.ReLU()
        self.is_blind_first = is_blind_first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1, keepdim=True)
        bright = grey / (grey.mean((2, 3), keepdim=True) < 0.5).float().where(grey.mean((2, 3), keepdim=True) < 0.5, torch.nan)
        first, second = (bright, grey) if self.is_blind_first else (grey, bright)
        return self.second(second) + self.first(first)


class Greys:
    """Pictures of one grey each, in order, from black to white."""

    def __init__(self, is_reversed: bool = False, gone: frozenset[int] = frozenset()) -> None:
        self.order, self.gone = range(250)[:: -1 if is_reversed else 1], gone

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, image: int) -> Image.Image:
        if image in self.gone:
            raise OSError("it is gone")
        return Image.new("RGB", (16, 16), (self.order[image],) * 3)


GREYS_AS_THEY_ARE = Preprocessing(16, (16, 16), (0.0,) * 3, (1.0,) * 3)


def explained_by_layer(table: pa.Table) -> dict[str, float]:
    return dict(zip(table["layer"].to_pylist(), table["explained"].to_pylist(), strict=True))


@pytest.mark.parametrize("is_blind_first", [True, False])
def test_layers_that_have_no_value_in_some_images(is_blind_first: bool, tmp_path: Path) -> None:
    network = Blind(is_blind_first).eval()
    atlas = unitscope.scan(network, Greys(), tmp_path / "atlas", preprocess=GREYS_AS_THEY_ARE, layers=["first", "second"])
    explained = explained_by_layer(tune_visually(atlas, network))
    assert explained["first"] == pytest.approx(1, abs=1e-3)
    assert explained["second"] == pytest.approx(1, abs=1e-3)


def test_images_that_are_gone(tmp_path: Path) -> None:
    network = Blind(False).eval()
    atlas = unitscope.scan(network, Greys(), tmp_path / "atlas", preprocess=GREYS_AS_THEY_ARE, layers=["first"])
    table = tune_visually(atlas, network)
    with pytest.warns(UserWarning, match="of 200 images of the sample can't be had.*it is gone"):
        fewer = tune_visually(unitscope.Atlas(atlas.folder, images=Greys(gone=frozenset(range(0, 250, 5)))), network)
    assert fewer["explained"][0].as_py() == pytest.approx(table["explained"][0].as_py(), abs=0.01)
    with pytest.raises(UnitscopeError, match="no image of the sample can be had.*it is gone"):
        tune_visually(unitscope.Atlas(atlas.folder, images=Greys(gone=frozenset(range(250)))), network)
    assert atlas.table("visual_tuning").equals(fewer)


def test_of_a_large_sample_images_are_taken_by_chance(tmp_path: Path) -> None:
    """The first 200 of these pictures are dark: what is true of all of them must come out."""
    network = Blind(False).eval()
    atlas = unitscope.scan(network, Greys(), tmp_path / "atlas", preprocess=GREYS_AS_THEY_ARE, layers=["first"], sample=250)
    seen: list[int] = []

    class Watched(Greys):
        def __getitem__(self, image: int) -> Image.Image:
            seen.append(image)
            return super().__getitem__(image)

    tune_visually(unitscope.Atlas(atlas.folder, images=Watched()), network)
    assert len(set(seen)) == 200
    assert np.mean(np.array(sorted(set(seen))) >= 200) == pytest.approx(0.2, abs=0.08)


class Pale:
    """Pictures of one pale colour each, from cyan over grey to red."""

    def __len__(self) -> int:
        return 250

    def __getitem__(self, image: int) -> Image.Image:
        chroma = 0.06 * (image / 125 - 1)
        return Image.new("RGB", (16, 16), tuple(round(255 * part) for part in colour_of_hue(0, chroma)))


class Reddish(nn.Module):
    """A unit that responds to red, and to strong red as `slope` says."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.unit, self.slope = nn.Identity(), slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        direction = torch.tensor(np.array(colour_of_hue(0)) - 0.5, dtype=torch.float32)
        red = ((images - 0.5) * (direction / direction.norm())[:, None, None]).sum(1, keepdim=True)
        return self.unit(red + (self.slope - 1) * torch.relu(red - 0.08))


@pytest.mark.parametrize(("slope", "words"), [(1, "red"), (-15, None)])
def test_a_colour_is_named_only_where_photographs_agree(slope: float, words: str | None, tmp_path: Path) -> None:
    network = Reddish(slope).eval()
    atlas = unitscope.scan(network, Pale(), tmp_path / "atlas", preprocess=GREYS_AS_THEY_ARE, layers=["unit"])
    (row,) = tune_visually(atlas, network).to_pylist()
    assert row["explained"] > 0.9
    assert row["description"] == words
