"""Scores: how well patches predict, and how much alike what excites a unit is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from colours import PREPROCESSING, SIDE, ColourEmbedder, Colours, Patterns, colour_atlas
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unitscope
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.scoring import score_units
from unitscope.scoring.statistics import monosemanticity, predictability, scaled, unit_norm


def embeddings(seed: int, *shape: int) -> np.ndarray:
    return unit_norm(np.random.default_rng(seed).normal(size=shape))


def likeness(query: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> float:
    """The mean cosine with the highest patches less that with the lowest, one by one."""
    cosines = [[query @ p / np.linalg.norm(query) / np.linalg.norm(p) for p in patches] for patches in (highest, lowest)]
    return float(np.mean(cosines[0]) - np.mean(cosines[1]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_predictability_over_all_pairs(seed: int, uppers: int, lowers: int) -> None:
    rng = np.random.default_rng(seed)
    upper, lower = rng.integers(0, 5, (3, uppers)).astype(float), rng.integers(0, 5, (3, lowers)).astype(float)
    upper[1, 0] = np.nan
    found = predictability(upper, lower, rng)
    for unit in range(3):
        right = [
            (plus > minus) + (plus == minus) / 2
            for plus in upper[unit]
            for minus in lower[unit]
            if not np.isnan(plus) and not np.isnan(minus)
        ]
        if right:
            assert found.share[unit] == pytest.approx(np.mean(right))
            assert 0 <= found.low[unit] <= found.high[unit] <= 1
        else:
            assert np.isnan([found.share[unit], found.low[unit], found.high[unit]]).all()


def test_the_interval_holds_the_truth_nearly_as_often_as_it_says() -> None:
    """The images are drawn from two normal distributions one deviation apart: the share is known."""
    truth = 0.7602  # the normal distribution's value at 1 / sqrt(2)
    rng = np.random.default_rng(0)
    found = predictability(rng.normal(size=(600, 40)) + 1, rng.normal(size=(600, 40)), rng)
    assert found.share.mean() == pytest.approx(truth, abs=0.01)
    assert 0.9 <= np.mean((found.low <= truth) & (truth <= found.high)) <= 0.99


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 30))
def test_monosemanticity_is_the_sum_over_pairs(seed: int, images: int) -> None:
    vectors, weights = embeddings(seed, images, 7), np.random.default_rng(seed).random(images)
    pairs = [(i, j) for i in range(images) for j in range(images) if i != j]
    expected = sum(weights[i] * weights[j] * (vectors[i] @ vectors[j]) for i, j in pairs) / sum(
        weights[i] * weights[j] for i, j in pairs
    )
    assert monosemanticity(weights[None], weights[None] @ vectors)[0] == pytest.approx(expected, abs=1e-5)


def test_monosemanticity_that_is_none() -> None:
    vectors = embeddings(0, 4, 3)
    weights = np.array([[0, 0, 0, 0], [0, 0, 1.0, 0], [1, 1, 1, 1]])
    assert np.isnan(monosemanticity(weights, weights @ vectors)).tolist() == [True, True, False]
    same = np.tile(vectors[:1], (4, 1))
    assert monosemanticity(weights[2:], weights[2:] @ same)[0] == pytest.approx(1)


def test_responses_are_scaled_from_their_lowest_to_their_highest() -> None:
    assert scaled(np.array([[-2.0, 0, 2], [3, 3, 3]])).tolist() == [[0, 0.5, 1], [0, 0, 0]]


# ── from an atlas ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> unitscope.Atlas:
    return colour_atlas(tmp_path_factory.mktemp("colours") / "atlas")


def copy_of(atlas: unitscope.Atlas, folder: Path) -> unitscope.Atlas:
    shutil.copytree(atlas.folder, folder, ignore=shutil.ignore_patterns("tables"))
    return unitscope.Atlas(folder, images=Patterns())


def by_unit(table: pa.Table, layer: str) -> dict[int, dict[str, Any]]:
    return {row["unit"]: row for row in table.to_pylist() if row["layer"] == layer}


@pytest.fixture(scope="module")
def scores(atlas: unitscope.Atlas) -> dict[int, dict[str, Any]]:
    return by_unit(score_units(atlas, ColourEmbedder()), "last")


def test_patches_of_a_colour_predict_what_the_embedder_sees(scores: dict[int, dict[str, Any]]) -> None:
    for unit in range(3):
        row = scores[unit]
        assert row["predictability"] >= 0.97
        assert row["predictability_low"] <= row["predictability"] <= row["predictability_high"]
        assert row["monosemanticity"] > row["monosemanticity_shuffled"] + 0.2
        assert row["embedder"] == "colours"


def test_what_is_shuffled_predicts_nothing(scores: dict[int, dict[str, Any]]) -> None:
    assert np.mean([row["predictability_shuffled"] for row in scores.values()]) == pytest.approx(0.5, abs=0.1)


def test_a_unit_of_two_colours_has_two_facets(atlas: unitscope.Atlas, scores: dict[int, dict[str, Any]]) -> None:
    assert [scores[unit]["facets"] for unit in (0, 1, 2, 4)] == [1, 1, 1, 2]
    rows = atlas.table("facets", "last").filter(pc.field("unit") == 4).to_pylist()
    candidates = {row["candidate"]: row["image"] for row in atlas.table("candidates", "last").to_pylist() if row["unit"] == 4}
    pictures = Patterns()
    hues = {facet: {pictures.hue(candidates[row["candidate"]]) for row in rows if row["facet"] == facet} for facet in (1, 2)}
    assert sorted(hues.values(), key=min) == [{0}, {2}]


def test_predictability_beside_brute_force(atlas: unitscope.Atlas, scores: dict[int, dict[str, Any]]) -> None:
    """Pair by pair, patch by patch, from the pictures themselves."""
    embedder, pictures, layer, unit = ColourEmbedder(), Patterns(), atlas.layer("last"), 3
    sample = atlas.sample("last").to_pylist()
    assert layer.receptive_field_height == 4
    resized = torch.from_numpy(
        np.stack([np.asarray(pictures[image][0].resize((8, 8), Image.Resampling.BICUBIC)) for image in range(len(pictures))])
    )
    maps = embedder.maps(resized).numpy()

    def embedded(row: dict[str, Any]) -> np.ndarray:
        top, left = row["top"] // 2, row["left"] // 2
        return maps[row["image"], :, top : top + 2, left : left + 2].mean((1, 2))

    patches = {(row["image"], row["y"], row["x"]): embedded(row) for row in sample}
    centre = np.mean(list(patches.values()), axis=0)
    ranked = sorted((row for row in sample if row["unit"] == unit), key=lambda row: row["value"])
    peaks = atlas.peaks("last", unit).to_pylist()
    highest, lowest = ([unit_norm(embedded(row) - centre) for row in rows] for rows in (peaks, ranked[:9]))
    seen = {row["image"] for row in [*peaks, *ranked[:9]]}
    tail = len(ranked) // 10
    upper, lower = (
        [likeness(unit_norm(embedded(row) - centre), highest, lowest) for row in rows if row["image"] not in seen]
        for rows in (ranked[-tail:], ranked[:tail])
    )
    right = [(plus > minus) + (plus == minus) / 2 for plus in upper for minus in lower]
    assert scores[unit]["pairs"] == len(right)
    assert scores[unit]["predictability"] == pytest.approx(np.mean(right), abs=0.02)


def test_a_run_that_was_stopped_goes_on_with_the_next_layer(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(units: int) -> None:
        raise Stop

    whole = score_units(copy_of(atlas, tmp_path / "whole"), ColourEmbedder())
    stopped = copy_of(atlas, tmp_path / "stopped")
    with pytest.raises(Stop):
        score_units(stopped, ColourEmbedder(), on_units=stop)
    assert [path.name for path in (stopped.folder / "tables" / ".scores").glob("*.piece")] == ["000000.piece"]
    with pytest.raises(AtlasError, match="has no table 'scores' yet"):
        stopped.table("scores")
    piece = stopped.folder / "tables" / ".scores" / "000000.piece"
    rows = pq.read_table(piece)
    changed = rows.set_column(
        rows.schema.get_field_index("pairs"), rows.schema.field("pairs"), pa.array([7] * len(rows), pa.int32())
    )
    pq.write_table(changed, piece)  # so that it shows that the layer isn't scored again
    resumed = score_units(stopped, ColourEmbedder())
    first = resumed["layer"][0].as_py()
    assert set(resumed.filter(pc.field("layer") == first)["pairs"].to_pylist()) == {7}
    is_later = pc.field("layer") != first
    assert resumed.filter(is_later).equals(whole.filter(is_later))
    assert not (stopped.folder / "tables" / ".scores").exists()


def test_layers_that_arent_asked_for_stay(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    own = copy_of(atlas, tmp_path / "atlas")
    first = score_units(own, ColourEmbedder(), layers="activation")
    assert set(first["layer"].to_pylist()) == {"activation"}
    assert set(score_units(own, ColourEmbedder(), layers="last")["layer"].to_pylist()) == {"activation", "last"}
    with pytest.raises(
        AtlasError, match="has other layers, such as 'activation', made with .*crops False.*, not with .*crops True"
    ):
        score_units(own, ColourEmbedder(), layers="last", crops=True)
    every = score_units(own, ColourEmbedder(), crops=True)
    assert set(every["layer"].to_pylist()) == {layer.name for layer in own.layers}


def test_what_a_stopped_run_had_done_is_in_the_next_table(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(units: int) -> None:
        raise Stop

    own = copy_of(atlas, tmp_path / "atlas")
    with pytest.raises(Stop):
        score_units(own, ColourEmbedder(), on_units=stop)
    first = own.layers[0].name
    table = score_units(own, ColourEmbedder(), layers="last")
    assert set(table["layer"].to_pylist()) == {first, "last"}
    assert set(own.table("facets")["layer"].to_pylist()) == {first, "last"}


def test_two_runs_at_once(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    own, problems = copy_of(atlas, tmp_path / "atlas"), []

    def score_again(units: int) -> None:
        with pytest.raises(AtlasError, match="'scores' is at work on the atlas") as caught:
            score_units(own, ColourEmbedder(), layers="last")
        problems.append(caught)

    score_units(own, ColourEmbedder(), layers="activation", on_units=score_again)
    assert len(problems) == 1
    assert sorted(path.name for path in (own.folder / "tables").iterdir()) == ["facets.parquet", "scores.parquet"]


def test_crops_see_what_maps_see(atlas: unitscope.Atlas, scores: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    cropped = by_unit(score_units(copy_of(atlas, tmp_path / "atlas"), ColourEmbedder(), layers="last", crops=True), "last")
    for unit in range(3):
        assert cropped[unit]["predictability"] == pytest.approx(scores[unit]["predictability"], abs=0.05)
        assert cropped[unit]["localisation"] is None


def test_what_cant_be_an_embedder(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    own = copy_of(atlas, tmp_path / "atlas")
    score_units(own, ColourEmbedder(), layers="last")
    before = own.table("scores")
    with pytest.raises(UnitscopeError, match="gives NaN or infinite numbers for '"):
        score_units(own, ColourEmbedder(weight=float("nan")))
    scanned = ColourEmbedder()
    scanned.weights_hash = own.manifest["network"]["hash"]
    with pytest.raises(UnitscopeError, match="the embedder 'colours' is the network that was scanned"):
        score_units(own, scanned)
    for name, remedy in {
        "dreamsim": "pip install dreamsim",
        "nothing": "give one of demo, lpips-alex",
        "timm:nothing": "nothing",
    }.items():
        with pytest.raises(UnitscopeError, match=remedy):
            score_units(own, name)
    assert own.table("scores").equals(before)


def test_a_sample_too_small_for_its_tails(tmp_path: Path) -> None:
    small = unitscope.scan(Colours().eval(), Patterns(139), tmp_path / "atlas", preprocess=PREPROCESSING)
    with pytest.raises(AtlasError, match="139 images, too few for scores.* --sample 200 or more"):
        score_units(small, ColourEmbedder())


class SortedClasses:
    """Pictures in order of their twenty classes, which are how red they are; unit u responds where the blue pixel u is on, by chance."""

    def __init__(self, active: float, images: int = 200, units: int = 60) -> None:
        rng = np.random.default_rng(0)
        self.units, self.is_on = units, rng.random((images, units)) < active
        self.values = rng.random((images, units)) * 0.5 + 0.5

    def __len__(self) -> int:
        return len(self.is_on)

    def __getitem__(self, image: int) -> tuple[Image.Image, str]:
        if image >= len(self):
            raise IndexError(image)
        pixels = np.zeros((SIDE, SIDE, 3))
        pixels[..., 0] = image // 10 / 20
        pixels[..., 2].flat[: self.units] = self.is_on[image] * self.values[image]
        return Image.fromarray((255 * pixels).astype(np.uint8)), f"class {image // 10:02}"

    def network(self) -> torch.nn.Module:
        linear = torch.nn.Linear(3 * SIDE**2, self.units, bias=False)
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[torch.arange(self.units), 2 * SIDE**2 + torch.arange(self.units)] = 1
        return torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.ReLU()).eval()


class RedEmbedder:
    """How near a picture's red is to each of twenty values; `cells` along each side."""

    name, weights_hash, size = "red", "none", (8, 8)

    def __init__(self, cells: int = 8) -> None:
        self.cells = cells

    def maps(self, pictures: torch.Tensor) -> torch.Tensor:
        near = (-((pictures[..., :1].float() / 255 - torch.arange(20) / 20) ** 2) / 0.002).exp()
        return torch.nn.functional.adaptive_avg_pool2d(near.permute(0, 3, 1, 2), self.cells)


@pytest.mark.parametrize("active", [0.02, 0.04, 0.07, 0.3])
def test_units_that_have_to_do_with_nothing_are_not_predicted_however_the_images_are_sorted(
    active: float, tmp_path: Path
) -> None:
    """Most responses of these units are equal, to zero: which of those images are in a tail must not follow their order."""
    images = SortedClasses(active)
    own = unitscope.scan(images.network(), images, tmp_path / "atlas", preprocess=PREPROCESSING)
    table = score_units(own, RedEmbedder())
    last = table.filter(pc.field("layer") == own.layers[-1].name)
    scored = last.filter(pc.field("pairs") > 0)
    low, high = scored["predictability_low"].to_numpy(), scored["predictability_high"].to_numpy()
    assert np.sum((low > 0.5) | (high < 0.5)) <= 1 + 0.12 * len(scored)
    has_queries = np.minimum(images.is_on.sum(0), 20) - 9 >= 5  # of the upper tenth, behind nine peaks
    assert [value is not None for value in last["predictability"].to_pylist()] == has_queries.tolist()


class RedSquares:
    """Grey pictures of 32 pixels; three in four have a red square of four somewhere, of a size of redness of its own."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, image: int) -> Image.Image:
        if image >= len(self):
            raise IndexError(image)
        rng = np.random.default_rng(image)
        pixels = np.full((32, 32, 3), 0.5)
        top, left = rng.integers(0, 8, 2) * 4
        if image % 4:
            pixels[top : top + 4, left : left + 4] = [0.5 + rng.random() * 0.4, 0.1, 0.1]
        return Image.fromarray((255 * pixels).astype(np.uint8))


class SeesColours(ColourEmbedder):
    size = (32, 32)

    def maps(self, pictures: torch.Tensor) -> torch.Tensor:
        colours = (pictures.float() / 255 - 0.5).permute(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(torch.cat([colours, torch.full_like(colours[:, :1], 0.1)], 1), 2)


def test_what_looks_like_the_patches_lies_where_the_unit_responds(tmp_path: Path) -> None:
    """Units of which one sees redness and one has nothing to do with it; both have patches of four pixels."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 4, 4, bias=False)).eval()
    with torch.no_grad():
        network[0].weight[0] = torch.tensor([1.0, -1, -1])[:, None, None] / 16
        network[0].weight[1] = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)) / 100
    preprocess = unitscope.Preprocessing(32, (32, 32), (0.5,) * 3, (1.0,) * 3)
    own = unitscope.scan(network, RedSquares(), tmp_path / "atlas", preprocess=preprocess, sample=400)
    red, _ = score_units(own, SeesColours()).to_pylist()
    assert red["localisation"] >= 0.95
    assert 0.005 < red["localisation_chance"] < 0.03


def test_a_map_of_one_cell_says_nothing_of_where(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    own = copy_of(atlas, tmp_path / "atlas")
    localised = [score_units(own, RedEmbedder(cells))["localisation"].null_count for cells in (8, 1)]
    assert localised[0] < localised[1] == sum(layer.units for layer in own.layers)


def test_units_without_a_number_have_no_scores_and_the_others_have(tmp_path: Path) -> None:
    class Partly(Colours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = super().forward(images)
            return self.broken(values / values.new_zeros(1, 5, 1, 1).index_fill(1, torch.tensor([0, 1]), 1))

    network = Partly().eval()
    network.broken = torch.nn.ReLU()
    own = unitscope.scan(network, Patterns(), tmp_path / "atlas", preprocess=PREPROCESSING, sample=300)
    rows = by_unit(score_units(own, ColourEmbedder()), "broken")
    assert rows[0]["predictability"] > 0.97
    assert [rows[unit]["predictability"] for unit in (2, 3)] == [None, None]
    assert [rows[unit]["monosemanticity"] for unit in (2, 3)] == [None, None]


def test_tensors_have_no_scores(tmp_path: Path) -> None:
    tensors = unitscope.scan(Colours().eval(), torch.rand(250, 3, SIDE, SIDE), tmp_path / "atlas")
    with pytest.raises(AtlasError, match="were tensors"):
        score_units(tensors, ColourEmbedder())


def test_scores_of_other_peaks_are_stale(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    own = copy_of(atlas, tmp_path / "atlas")
    score_units(own, ColourEmbedder())
    peaks = pq.read_table(own.folder / "peaks.parquet")
    pq.write_table(peaks.slice(0, len(peaks) - 1), own.folder / "peaks.parquet")
    with pytest.raises(AtlasError, match="'scores' .* is stale.* unitscope score"):
        unitscope.Atlas(own.folder).table("scores")
