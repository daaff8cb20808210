"""Names: what units respond to by the labels, how that is tested, and what gets no name."""

import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from responses import LAYER, Responses, halves, responding_atlas

import unitscope
from unitscope.atlas.depth import depth_table
from unitscope.atlas.meaning import read_meanings
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.naming import ClassTree, name_units
from unitscope.naming.correlations import LayerTuning
from unitscope.naming.retrieval import average_precision, best_thresholds, f1_at
from unitscope.permutations import false_discoveries_controlled, membership_p_values
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries

DOGS = ("n02085620", "n02099601", "n02106662", "n02110341")
CARS = ("n02814533", "n03100240", "n04285008")
OTHERS = ("n07747607", "n07749582", "n07753592", "n09246464")
LABELS = (*DOGS, *CARS, *OTHERS)
IMAGES = 440


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return [LABELS[number] for number in np.random.default_rng(2).integers(0, len(LABELS), IMAGES)]


def of(labels: list[str], members: tuple[str, ...]) -> np.ndarray:
    return np.array([label in members for label in labels])


# ── the tree ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wordnet_above_imagenet() -> None:
    tree = ClassTree.of_imagenet()
    assert len(tree.parents) == 1860
    assert sum(len(parents) > 1 for parents in tree.parents.values()) == 75
    assert not tree.cycle()
    dog = tree.concepts(LABELS)
    row = dog.names.index("dog")
    assert dog.nodes[row] == "n02084071"
    assert [LABELS[column] for column in np.flatnonzero(dog.members[row])] == list(DOGS)


@pytest.mark.parametrize(
    ("label", "node"),
    [
        ("n02084071", "n02084071"), ("dog", "n02084071"), ("Dog", "n02084071"), ("tench, Tinca tinca", "n01440764"),
        ("airplane", "n02691156"), ("automobile", "n02958343"), ("sports_car", "n04285008"),
        ("cup", None), ("bank", None), ("control", None), ("crane", None), ("crane (134)", None), ("no such thing", None),
    ],
)  # fmt: skip
def test_which_node_a_label_means(label: str, node: str | None) -> None:
    assert ClassTree.of_imagenet().node_of(label) == node


def test_of_nodes_with_the_same_labels_the_most_specific_stays() -> None:
    tree = ClassTree(
        {"poodle": ["dog"], "dog": ["canine"], "canine": ["animal"], "tabby": ["cat"], "cat": ["animal"], "animal": []}
    )
    concepts = tree.concepts(["poodle", "tabby", "spoon"])
    assert concepts.nodes == ("animal", "poodle", "spoon", "tabby")
    assert concepts.outside == ("spoon",)


def test_a_tree_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "tree.csv").write_text("child,parent\ncat,animal\ndog,animal\nanimal,thing\n\ncar,thing\n")
    concepts = ClassTree.read(tmp_path / "tree.csv").concepts(["car", "cat", "dog"])
    assert dict(zip(concepts.nodes, concepts.members.tolist(), strict=True)) == {
        "animal": [False, True, True],
        "car": [True, False, False],
        "cat": [False, True, False],
        "dog": [False, False, True],
        "thing": [True, True, True],
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\nb,c\nc,a\n", "cycle: . → . → . → ."),
        ("x,x\n", "cycle: x → x"),
        ("a,b,c\n", "line 1"),
        ("a\n", "line 1"),
        ("", "empty"),
        ('a,"' + "b" * 140_000, "is no CSV file: field larger"),
    ],
)
def test_trees_that_are_none(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "tree.csv").write_text(text)
    with pytest.raises(UnitscopeError, match=problem):
        ClassTree.read(tmp_path / "tree.csv")


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_that_are_membership_are_named_so(labels: list[str], tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=IMAGES)
    responses = np.stack([of(labels, DOGS), of(labels, CARS) * 3.0 + noise, of(labels, DOGS[:1]), noise], axis=1)
    table = name_units(responding_atlas(tmp_path / "atlas", responses, labels))
    rows = table.to_pylist()
    assert [row["name"] for row in rows] == ["dog", "car", "Chihuahua", None]
    dog = rows[0]
    assert dog["r_a"] == pytest.approx(1)
    assert dog["r_b"] == pytest.approx(1)
    assert dog["peaks_inside"] == dog["peaks"] == 9
    assert dog["base_rate"] == pytest.approx(of(labels, DOGS).mean())
    assert dog["f1"] == dog["average_precision"] == 1
    assert rows[3]["nearest"] is not None


def test_a_concept_needs_five_images_in_each_half(tmp_path: Path) -> None:
    labels = [*(f"single {image}" for image in range(60)), *["common"] * 60]
    responses = np.array([[label == "single 7", label == "common"] for label in labels], dtype=float)
    responses[:, 0] += np.random.default_rng(0).normal(size=len(labels)) / 1000
    rows = name_units(responding_atlas(tmp_path / "atlas", responses, labels)).to_pylist()
    assert rows[1]["name"] == "common"
    assert rows[0]["name"] is None
    assert rows[0]["nearest"] == "common"


def test_a_sample_without_labelled_images_has_names_and_no_f1(labels: list[str], tmp_path: Path) -> None:
    """Labels for a few of many images, none of which is in the sample."""
    few = [label if image < 60 else None for image, label in enumerate(labels)]
    responses = np.stack([of(labels, DOGS)], axis=1) + np.random.default_rng(0).normal(size=(IMAGES, 1)) / 100
    (row,) = name_units(responding_atlas(tmp_path / "atlas", responses, few, sample=2)).to_pylist()
    assert row["r_b"] > 0.9
    assert row["f1"] is None
    assert row["average_precision"] is None


def test_what_is_certain_and_small_is_no_name(tmp_path: Path) -> None:
    """A hundredth of the response, over 20,000 images: certain, and nothing that patches show."""
    rng = np.random.default_rng(8)
    labels = [("n02085620", "n04285008")[number] for number in rng.integers(0, 2, 20_000)]
    responses = rng.normal(size=(len(labels), 1)) + 0.2 * of(labels, DOGS)[:, None]
    (row,) = name_units(responding_atlas(tmp_path / "atlas", responses, labels)).to_pylist()
    assert row["p_value"] < 1e-10
    assert 0.05 < row["r_b"] < 0.2
    assert row["name"] is None


def test_dead_units_have_no_names_whatever_their_values_below_zero_go_with(labels: list[str], tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=IMAGES) / 10
    alive = of(labels, DOGS) + noise
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()).eval()
    atlas = unitscope.scan(network, Responses(np.stack([alive, alive - 9], axis=1), labels), tmp_path / "atlas")
    (layer,) = atlas.layers
    assert atlas.units(layer.name)["dead"].to_pylist() == [False, True]
    dog, dead = name_units(atlas).to_pylist()
    assert (dog["name"], dog["kind"]) == ("dog", "class")
    figures = ("name", "kind", "node", "nearest", "r_a", "r_b", "p_value", "explained", "base_rate", "f1", "average_precision")
    assert {name: dead[name] for name in figures} == dict.fromkeys(figures)
    assert dead["images_b"] == dog["images_b"]
    (row,) = depth_table(atlas).to_pylist()
    assert (row["named"], row["dead"]) == (0.5, 0.5)
    assert row["r"] == pytest.approx(dog["r_b"])
    meaning = read_meanings(atlas, layer.name)[1]
    assert (meaning.name, meaning.sentence()) == (None, [])
    concept = PageBuilder(AtlasQueries(atlas)).concept_page("n02084071")
    assert concept is not None
    assert [unit.unit for unit in concept.units] == [0]


def test_a_name_is_doubted_that_shuffled_responses_would_give_to_one_of_many_units(labels: list[str], tmp_path: Path) -> None:
    """Beside a thousand units of noise and a hundred that are dogs, so that the rate lets much pass: an r of 0.25 over 220 images is nothing."""
    rng = np.random.default_rng(5)
    dogs = of(labels, DOGS)[:, None] * 1.0
    noise = rng.normal(size=(IMAGES, 1000))
    half_dogs = 0.55 * dogs + rng.normal(size=(IMAGES, 100))
    atlas = responding_atlas(
        tmp_path / "atlas", np.concatenate([noise, dogs + rng.normal(size=(IMAGES, 100)) / 10, half_dogs], 1), labels
    )
    rows, meanings = name_units(atlas).to_pylist(), read_meanings(atlas, LAYER)
    for row, meaning in zip(rows, meanings, strict=True):
        assert (meaning.belief == "perhaps") == (row["name"] is not None and row["p_value"] * 1200 > 0.05)
    beliefs = [
        Counter(meaning.belief for meaning in meanings[units] if meaning.name)
        for units in (slice(1000), slice(1000, 1100), slice(1100, 1200))
    ]
    assert set(beliefs[0]) <= {"perhaps"}
    assert beliefs[1] == {None: 100}
    assert beliefs[2]["perhaps"] > 20


@pytest.mark.parametrize("distribution", ["normal", "exponential", "spikes"])
def test_random_units_get_no_more_names_than_the_rate(distribution: str, labels: list[str], tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(4), (IMAGES, 1000)
    responses = {
        "normal": lambda: rng.normal(size=shape),
        "exponential": lambda: rng.exponential(size=shape),
        "spikes": lambda: (rng.random(shape) < 0.03) * rng.exponential(size=shape),
    }[distribution]()
    table = name_units(responding_atlas(tmp_path / "atlas", responses, labels))
    assert len(table) - table["name"].null_count <= 0.005 * len(table)
    p = table["p_value"].to_numpy()
    for level in (0.5, 0.1, 0.05, 0.01):
        assert np.nanmean(p <= level) <= level + 3 * math.sqrt(level / len(p))


def test_shuffled_labels_take_the_names_away(labels: list[str], tmp_path: Path) -> None:
    responses = np.stack([of(labels, DOGS[:n]) + np.random.default_rng(n).normal(size=IMAGES) / 2 for n in (1, 2, 3, 4)], axis=1)
    shuffled = list(np.random.default_rng(5).permutation(labels))
    assert name_units(responding_atlas(tmp_path / "atlas", responses, labels))["name"].null_count == 0
    assert name_units(responding_atlas(tmp_path / "shuffled", responses, shuffled))["name"].null_count == 4


def test_missing_and_extra_labels_lower_the_correlation(labels: list[str], tmp_path: Path) -> None:
    """The sanity checks of Oikarinen et al. 2025 (2506.05774)."""
    rng = np.random.default_rng(6)
    is_dog = of(labels, DOGS)
    lacking, adding = is_dog & (rng.random(IMAGES) < 0.5), is_dog | (rng.random(IMAGES) < 0.5)
    responses = np.stack([is_dog, lacking, adding], axis=1).astype(float)
    right, missing, extra = name_units(responding_atlas(tmp_path / "atlas", responses, labels)).to_pylist()
    for figure in ("r_b", "f1", "average_precision"):
        assert missing[figure] < right[figure]
        assert extra[figure] < right[figure]


def test_correlations_are_those_of_all_responses(labels: list[str], tmp_path: Path) -> None:
    responses = np.random.default_rng(7).normal(size=(IMAGES, 6)).astype(np.float32)
    responses[:, 1] = responses[:, 1] * 0.01 + 1000
    responses[:, 2] *= 1e-4
    responses[::5, 3] = np.nan
    responses[:, 4] = 2
    responses[3, 5] = np.inf
    atlas = responding_atlas(tmp_path / "atlas", responses, labels)
    names = sorted(set(labels))
    concepts = ClassTree.of_imagenet().concepts(names)
    tuning, half = LayerTuning.of(atlas, LAYER, names), halves(IMAGES)
    for number, of_half in enumerate((tuning.a, tuning.b)):
        found = of_half.correlations(concepts.members)
        for concept, members in enumerate(concepts.members):
            is_member = of(labels, tuple(np.array(names)[members])).astype(float)
            for unit in range(4):
                values = responses[:, unit].astype(np.float64)
                counts = (half == number) & ~np.isnan(values)
                if 0 < is_member[counts].mean() < 1:
                    expected = np.corrcoef(values[counts], is_member[counts])[0, 1]
                    assert found[concept, unit] == pytest.approx(expected, abs=1e-6)
        assert np.isnan(found[:, 4]).all()
        assert np.isnan(found[:, 5]).all() == (number == half[3])


def test_atlases_that_have_nothing_to_name_by(labels: list[str], tmp_path: Path) -> None:
    responses = np.zeros((IMAGES, 1))
    with pytest.raises(AtlasError, match="have no labels .* --labels"):
        name_units(responding_atlas(tmp_path / "unlabelled", responses, [None] * IMAGES))
    without = responding_atlas(tmp_path / "without", responses, labels, tuning=False)
    with pytest.raises(AtlasError, match="has no tuning"):
        name_units(without)
    for rate in (0, 1, float("nan")):
        with pytest.raises(UnitscopeError, match="rate"):
            name_units(without, rate=rate)


# ── statistics ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_p_values_beside_all_permutations(seed: int) -> None:
    values = np.random.default_rng(seed).exponential(size=14)
    inside = 5
    sums = np.array([values[list(members)].sum() for members in combinations(range(14), inside)])
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    for quantile in (0.9, 0.95, 0.99):
        chosen = np.quantile(sums, quantile)
        r = (chosen / inside - values.mean()) / values.std() * math.sqrt(inside / (14 - inside))
        p = membership_p_values(*(np.array([number], dtype=float) for number in (r, inside, 14, skewness)))
        assert p[0] == pytest.approx((sums >= chosen - 1e-12).mean(), abs=0.025)


def test_false_discoveries_beside_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = np.concatenate([rng.random(50), rng.random(20) ** 6])
        expected = scipy_stats.false_discovery_control(p) <= 0.05
        assert false_discoveries_controlled(p, 0.05).tolist() == expected.tolist()
    assert not false_discoveries_controlled(np.array([np.nan, 0.9]), 0.05).any()


def test_average_precision_and_f1_beside_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    values, is_member = rng.integers(0, 9, (30, 40)).astype(float), rng.random((30, 40)) < 0.3
    thresholds = best_thresholds(values, is_member)
    average, f1 = average_precision(values, is_member), f1_at(thresholds, values, is_member)
    for unit in range(30):
        assert average[unit] == pytest.approx(metrics.average_precision_score(is_member[unit], values[unit]))
        assert f1[unit] == pytest.approx(
            max(metrics.f1_score(is_member[unit], values[unit] >= threshold) for threshold in range(10))
        )
    assert np.isnan(average_precision(values, np.zeros_like(is_member))).all()
