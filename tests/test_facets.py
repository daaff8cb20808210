"""Facets: groups among what excites a unit are found where they are, and one cloud stays whole."""

import numpy as np
import pytest

from unitscope.scoring.facets import MAX_FACETS, SMALLEST_FACET, find_facets, principal_axes

POINTS, DIRECTIONS = 50, 16


def all_points(points: np.ndarray) -> np.ndarray:
    return np.ones(points.shape[:2], dtype=bool)


def groups(seed: int, units: int, count: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of several round clouds, whose middles are that many deviations from the origin, and the cloud of each."""
    rng = np.random.default_rng(seed)
    cloud = rng.integers(0, count, (units, POINTS))
    middles = rng.normal(size=(units, count, DIRECTIONS))
    middles *= apart / np.linalg.norm(middles, axis=2, keepdims=True)
    return rng.normal(size=(units, POINTS, DIRECTIONS)) + np.take_along_axis(middles, cloud[:, :, None], 1), cloud


def same_groups(first: np.ndarray, second: np.ndarray) -> float:
    """The adjusted Rand index."""
    metrics = pytest.importorskip("sklearn.metrics")
    return float(metrics.adjusted_rand_score(first, second))


SPREADS = {
    "round": np.ones(DIRECTIONS),
    "long": np.r_[3.0, np.ones(DIRECTIONS - 1)],
    "falling": 1 / np.arange(1, DIRECTIONS + 1),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("points", [POINTS, 20, 10])
def test_one_cloud_stays_whole(spread: str, points: int) -> None:
    cloud = np.random.default_rng(0).normal(size=(400, points, DIRECTIONS)) * SPREADS[spread]
    assert np.mean(find_facets(cloud, all_points(cloud)).max(1) > 0) <= 0.05


@pytest.mark.parametrize("distribution", ["uniform", "student", "ring of one direction"])
def test_clouds_of_other_shapes_stay_whole(distribution: str) -> None:
    rng, shape = np.random.default_rng(1), (400, POINTS, DIRECTIONS)
    cloud = {
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "student": lambda: rng.standard_t(5, shape),
        "ring of one direction": lambda: rng.normal(size=shape) * np.r_[2.0, 1.5, np.ones(DIRECTIONS - 2)],
    }[distribution]()
    assert np.mean(find_facets(cloud, all_points(cloud)).max(1) > 0) <= 0.05


@pytest.mark.parametrize(("count", "share"), [(2, 0.99), (3, 0.9)])
def test_clouds_far_apart_are_found(count: int, share: float) -> None:
    points, cloud = groups(2, 200, count, apart=8)
    found = find_facets(points, all_points(points))
    assert np.mean(found.max(1) == count - 1) >= share
    assert np.mean([same_groups(*pair) for pair in zip(cloud, found, strict=True)]) >= 0.9


def test_numbers_come_in_the_order_of_the_points_and_sizes_are_no_smaller_than_said() -> None:
    points, _ = groups(3, 200, MAX_FACETS, apart=9)
    found = find_facets(points, all_points(points))
    for of_unit in found:
        assert list(dict.fromkeys(of_unit)) == list(range(of_unit.max() + 1))
        assert of_unit.max() < MAX_FACETS
        assert of_unit.max() == 0 or np.bincount(of_unit).min() >= SMALLEST_FACET


def test_places_without_a_point_belong_to_none() -> None:
    points, cloud = groups(4, 60, 2, apart=9)
    is_point = np.random.default_rng(0).random(points.shape[:2]) < 0.7
    is_point[0] = False
    is_point[1, 3:] = False
    points[~is_point] = 1e3  # not looked at
    found = find_facets(points, is_point)
    assert (found[~is_point] == -1).all()
    assert (found[is_point] >= 0).all()
    assert found[1].max() == 0
    several = [same_groups(cloud[unit][is_point[unit]], found[unit][is_point[unit]]) for unit in range(2, 60)]
    assert np.mean(several) >= 0.9


def test_a_point_that_stands_apart_is_no_facet() -> None:
    points = np.random.default_rng(5).normal(size=(100, POINTS, DIRECTIONS))
    points[:, 7, 0] += 40
    assert (find_facets(points, all_points(points)).max(1) == 0).mean() >= 0.95


def test_principal_axes_beside_a_decomposition() -> None:
    points = np.random.default_rng(6).normal(size=(300, 20)) * np.linspace(5, 1, 20)
    directions = principal_axes(points)
    _, _, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for found, axis in zip(directions.T, axes, strict=False):
        assert abs(found @ axis) == pytest.approx(1, abs=1e-3)
