"""What is read of large tables for units: the rows of a layer's units, the strongest effects, and what pages show of the sample."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitscope.atlas.row_groups import RowGroups
from unitscope.atlas.samples import BANDS, LayerSample, order_within
from unitscope.errors import AtlasError
from unitscope.web.numbered_rows import NumberedRows, StrongestEffects
from unitscope.web.sample_runs import BINS, SampleRun
from unitscope.web.unit_runs import UnitRuns

LAYERS = ("first", "a second", "third")


def as_many_for_each(values_by_number: list[tuple[float, ...]]) -> list[tuple[int, float]]:
    return [(number, value) for number, of_number in enumerate(values_by_number) for value in of_number]


rows_of_tables = st.lists(st.tuples(st.sampled_from((*LAYERS, None)), st.one_of(st.none(), st.integers(0, 5))), max_size=40)
effects = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.5, np.nan, np.inf])), max_size=40)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


# ── rows of some units ──────────────────────────────────────────────────────────────────────────────────────────────


@given(rows_of_tables, st.booleans(), st.integers(1, 9), st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 6))))
def test_row_groups_give_the_rows_that_a_filter_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str | None, int | None]],
    is_sorted: bool,
    row_group_size: int,
    bounds: tuple[int, int] | None,
) -> None:
    rows = sorted(rows, key=lambda row: (str(row[0]), row[1] or 0)) if is_sorted else rows
    layer, unit = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [])
    table = pa.table({"layer": pa.array(layer, pa.string()), "unit": pa.array(unit, pa.int32()), "place": np.arange(len(rows))})
    path = tmp_path_factory.mktemp("rows") / "table.parquet"
    pq.write_table(table, path, row_group_size=row_group_size)
    units = None if bounds is None else range(*bounds)
    for name in LAYERS:
        wanted = pc.field("layer") == name
        if units is not None:
            wanted &= (pc.field("unit") >= units.start) & (pc.field("unit") < units.stop)
        assert RowGroups.of(path).read(name, units, ["place", "unit"]).equals(table.filter(wanted).select(["place", "unit"]))


def test_without_statistics_all_row_groups_are_looked_through(tmp_path: Path) -> None:
    table = pa.table({"layer": ["a", "a", "b", "a"], "unit": [0, 1, 0, 2]})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=1, write_statistics=False)
    assert RowGroups.of(tmp_path / "table.parquet").read("a", range(1, 3), ["unit"])["unit"].to_pylist() == [1, 2]


def test_a_file_without_units_has_no_row_groups_of_units(tmp_path: Path) -> None:
    pq.write_table(pa.table({"layer": ["a"]}), tmp_path / "table.parquet")
    with pytest.raises(KeyError):
        RowGroups.of(tmp_path / "table.parquet")


# ── the strongest effects ───────────────────────────────────────────────────────────────────────────────────────────


@given(effects, st.integers(1, 3))
def test_strongest_effects_are_the_ends_of_the_order(rows: list[tuple[int, float]], count: int) -> None:
    number, effect = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [])
    table = pa.table(
        {"unit": pa.array(number, pa.int32()), "effect": pa.array(effect, pa.float32()), "place": np.arange(len(rows))}
    )
    strongest = StrongestEffects.of(NumberedRows.of(table, "unit"), count)
    for unit in range(4):
        finite = [(effect, place) for place, (number, effect) in enumerate(rows) if number == unit and np.isfinite(effect)]
        order = sorted(finite, key=lambda row: -row[0])
        raised = [place for effect, place in order if effect > 0][:count]
        lowered = [place for effect, place in reversed(order) if effect < 0][:count]
        assert strongest.raised.of_number(unit)["place"].tolist() == raised
        assert strongest.lowered.of_number(unit)["place"].tolist() == lowered


@given(st.one_of(effects, st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 3), max_size=5).map(as_many_for_each)))
def test_the_order_within_numbers_is_that_of_a_stable_sort(rows: list[tuple[int, float]]) -> None:
    numbers, values = (np.array([row[column] for row in rows]) for column in (0, 1))
    assert order_within(numbers, values).tolist() == np.lexsort((values, numbers)).tolist()


# ── the sample ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.one_of(st.just([]), values), min_size=1, max_size=4), st.floats(0, 2e6))
def test_histograms_count_as_numpy_does(values_by_unit: list[list[float]], highest: float) -> None:
    run = SampleRun.of(layer_sample(values_by_unit), range(len(values_by_unit)), [highest] * len(values_by_unit))
    for unit, of_unit in enumerate(values_by_unit):
        histogram = run.histogram(unit)
        if not of_unit:
            assert histogram is None
            continue
        low, high = min(of_unit), max(*of_unit, highest)
        assert histogram is not None
        assert (histogram.lowest, histogram.highest) == (low, high)
        expected, _ = np.histogram(np.array(of_unit), BINS, (low, high if high > low else low + 1))
        assert histogram.counts == expected.tolist()


@given(st.lists(st.one_of(st.just([]), values), min_size=1, max_size=4))
def test_bands_of_a_run_are_those_of_the_sample(values_by_unit: list[list[float]]) -> None:
    sample = layer_sample(values_by_unit)
    run = SampleRun.of(sample, range(len(values_by_unit)), [None] * len(values_by_unit))
    for unit in range(len(values_by_unit)):
        columns, sizes = run.bands(unit)
        rows = [sample.band_rows(unit, quantile) for quantile in BANDS.values()]
        assert sizes == [len(of_band) for of_band in rows]
        assert columns["image"].tolist() == [int(sample.columns["image"][row]) for of_band in rows for row in of_band]


def layer_sample(values_by_unit: list[list[float]]) -> LayerSample:
    value = [value for of_unit in values_by_unit for value in sorted(of_unit)]
    unit = [unit for unit, of_unit in enumerate(values_by_unit) for _ in of_unit]
    columns = {"unit": np.array(unit, np.int32), "value": np.array(value, np.float32), "image": np.arange(len(unit))}
    return LayerSample.of(columns, len(values_by_unit))


# ── runs of units ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_read_once_however_many_threads_ask() -> None:
    asked: list[tuple[str, range]] = []

    def read(layer: str, units: range) -> range:
        asked.append((layer, units))
        return units

    runs = UnitRuns(read, 10, 1000)
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda unit: runs.run("layer", unit), range(100)))
    assert all(unit in units for unit, units in enumerate(given))
    assert sorted(asked, key=lambda call: call[1].start) == [("layer", range(start, start + 10)) for start in range(0, 100, 10)]


def test_an_error_is_raised_each_time_and_a_later_run_may_succeed() -> None:
    answers: list[Callable[[], int]] = [broken, broken, lambda: 7]
    runs = UnitRuns(lambda layer, units: answers.pop(0)(), 10, 1000)
    for _ in range(2):
        with pytest.raises(AtlasError, match="broken"):
            runs.run("layer", 0)
    assert runs.run("layer", 0) == 7


def test_only_so_many_units_are_kept() -> None:
    asked: list[int] = []
    runs = UnitRuns(lambda layer, units: asked.append(units.start), 10, 20)
    for unit in (0, 10, 20, 0, 5):
        runs.run("layer", unit)
    assert asked == [0, 10, 20, 0]


def broken() -> int:
    raise AtlasError("the table is broken")
