"""The mean response of every unit to the images of each label, by halves of the images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from responses import LAYER, Responses, halves, reading_network, responding_atlas

import unitscope
from unitscope.errors import UnitscopeError
from unitscope.scanning.running_statistics import Moments

IMAGES, UNITS = 203, 7


@pytest.fixture(scope="module")
def labels() -> list[str | None]:
    rng = np.random.default_rng(1)
    return [None if number == 3 else f"label {number}" for number in rng.integers(0, 5, IMAGES)]


@pytest.fixture(scope="module")
def responses() -> np.ndarray:
    """Of very different sizes, negative ones, and one unit with NaN and infinities here and there."""
    values = np.random.default_rng(0).normal(size=(IMAGES, UNITS)) * 10.0 ** np.arange(-3, UNITS - 3) / 10
    values[::17, 5], values[::29, 5] = np.nan, np.inf
    return values.astype(np.float32)


def counted(responses: np.ndarray, labels: list[str | None], unit: int, label: str, half: int) -> np.ndarray:
    """The finite responses of a unit to a label's images in a half."""
    chosen = np.array([own == label for own in labels]) & (halves(len(labels)) == half)
    values = responses[chosen, unit].astype(np.float64)
    return values[np.isfinite(values)]


def test_means_by_label_and_half(responses: np.ndarray, labels: list[str | None], tmp_path: Path) -> None:
    atlas = responding_atlas(tmp_path / "atlas", responses, labels, batch_size=16)
    rows = atlas.table("tuning", LAYER).to_pylist()
    assert [(row["unit"], row["label"]) for row in rows] == [
        (unit, label) for unit in range(UNITS) for label in sorted({label for label in labels if label is not None})
    ]
    for row in rows:
        for half, name in enumerate("ab"):
            expected = counted(responses, labels, row["unit"], row["label"], half)
            assert row[f"images_{name}"] == len(expected)
            assert row[f"mean_{name}"] == pytest.approx(expected.mean(), rel=1e-5, abs=1e-6)


def test_halves_have_the_moments_of_labelled_images(responses: np.ndarray, labels: list[str | None], tmp_path: Path) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    atlas = responding_atlas(tmp_path / "atlas", responses, labels, batch_size=16)
    for row in atlas.table("halves", LAYER).to_pylist():
        chosen = np.array([label is not None for label in labels]) & (halves(IMAGES) == "ab".index(row["half"]))
        values = responses[chosen, row["unit"]].astype(np.float64)
        values = values[~np.isnan(values)]
        assert row["images"] == len(values)
        if np.isfinite(values).all():
            assert row["mean"] == pytest.approx(values.mean(), rel=1e-9)
            assert row["std"] == pytest.approx(values.std(), rel=1e-9)
            assert row["skewness"] == pytest.approx(scipy_stats.skew(values), abs=1e-9)


def test_the_same_bytes_whatever_the_shards(responses: np.ndarray, labels: list[str | None], tmp_path: Path) -> None:
    written = {
        (tmp_path / f"{batch}" / "tuning.parquet").read_bytes()
        for batch in (1, 5, 32, 300)
        if responding_atlas(tmp_path / f"{batch}", responses, labels, batch_size=batch)
    }
    assert len(written) == 1


def test_the_same_bytes_after_a_kill(responses: np.ndarray, labels: list[str | None], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill_late(images: int) -> None:
        seen.append(images)
        if sum(seen) > IMAGES / 2:
            raise Killed

    seen: list[int] = []
    options = {"batch_size": 8, "checkpoint_every_s": 0}
    with pytest.raises(Killed):
        responding_atlas(tmp_path / "killed", responses, labels, on_images=kill_late, **options)
    responding_atlas(tmp_path / "killed", responses, labels, **options)
    responding_atlas(tmp_path / "whole", responses, labels, **options)
    for name in ("tuning", "halves", "units"):
        assert (tmp_path / "killed" / f"{name}.parquet").read_bytes() == (tmp_path / "whole" / f"{name}.parquet").read_bytes()


def test_responses_far_above_those_of_noise_count_as_without_a_value(tmp_path: Path) -> None:
    responses = np.ones((40, 2), dtype=np.float32)
    responses[7, 1] = 1e9
    atlas = responding_atlas(tmp_path / "atlas", responses, ["a"] * 40)
    images = [row["images_a"] + row["images_b"] for row in atlas.table("tuning", LAYER).to_pylist()]
    assert images == [40, 39]


def test_units_without_a_value_in_every_image(tmp_path: Path) -> None:
    """The others have theirs; and what is kept of such units is small, so that it takes nobody's place (`MAX_TUNING_BYTES`)."""
    responses = np.ones((120, 4), dtype=np.float32)
    responses[:, 1] = np.nan
    responses[::3, 2] = np.inf
    labels = [f"label {image % 6}" for image in range(120)]
    atlases = [responding_atlas(tmp_path / f"{batch}", responses, labels, batch_size=batch) for batch in (7, 120)]
    assert len({(atlas.folder / "tuning.parquet").read_bytes() for atlas in atlases}) == 1
    rows = atlases[0].table("tuning", LAYER).to_pylist()
    images = [sum(row["images_a"] + row["images_b"] for row in rows if row["unit"] == unit) for unit in range(4)]
    assert images == [120, 0, 80, 120]
    assert {row["mean_a"] for row in rows if row["unit"] == 1} == {None}


def test_more_labels_than_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitscope.scanning.tuning.MAX_TUNING_BYTES", 8 * 2 * 2 * 20)
    responses = np.ones((120, 2), dtype=np.float32)
    few = responding_atlas(tmp_path / "few", responses, [f"label {image % 10}" for image in range(120)])
    assert few.row_count("tuning") == 20
    with pytest.warns(UserWarning, match="labels"):
        many = responding_atlas(tmp_path / "many", responses, [f"label {image % 30}" for image in range(120)])
    assert many.row_count("tuning") == 0
    assert many.row_count("peaks") > 0


def test_without_labels_there_is_no_tuning(responses: np.ndarray, tmp_path: Path) -> None:
    atlas = responding_atlas(tmp_path / "atlas", responses, [None] * IMAGES)
    assert atlas.row_count("tuning") == atlas.row_count("halves") == 0


def test_no_tuning_where_it_is_switched_off(responses: np.ndarray, labels: list[str | None], tmp_path: Path) -> None:
    atlas = responding_atlas(tmp_path / "atlas", responses, labels, tuning=False)
    assert atlas.row_count("tuning") == 0
    assert atlas.manifest["tuning"] is False


def test_labels_of_a_file(responses: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "key,label\n" + "".join(f"{image},{'odd' if image % 2 else 'even'}\n" for image in range(100))
    )
    images = Responses(responses, ["other"] * IMAGES)
    atlas = unitscope.scan(reading_network(), images, tmp_path / "atlas", labels=tmp_path / "labels.csv")
    assert atlas.table("labels").to_pylist() == [{"label": "even", "images": 50}, {"label": "odd", "images": 50}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.png,cat\nb.png\n", "line 2 .* has 1 columns"),
        ("a.png,cat\na.png,dog\n", "two for 'a.png', 'cat' and 'dog'"),
        ("", "are empty"),
        ("a.png,cat\n", "none of the images has a label"),
        ('a.png,"' + "b" * 140_000, "no table of two columns"),
    ],
)
def test_labels_that_make_no_sense(text: str, problem: str, responses: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UnitscopeError, match=problem):
        unitscope.scan(
            reading_network(), Responses(responses, ["x"] * IMAGES), tmp_path / "atlas", labels=tmp_path / "labels.csv"
        )
    assert not (tmp_path / "atlas").exists()


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 1000))
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    values = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed))
    values[::3, 1] = torch.nan
    parts = [Moments.of(part) for part in values.split(sizes)]
    total = parts[0]
    for part in parts[1:]:
        total = total.followed_by(part)
    whole = Moments.of(values)
    for name in Moments.__slots__:
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-6, atol=1e-6)
