"""The statistics of a layer's units: rows of the `units` table, with what the sample says of each unit."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from unitscope.atlas.ties import Tie
from unitscope.web.page_records import UnitStatistics
from unitscope.web.samples import SampleStatistics


def describe_units(
    rows: Sequence[Mapping[str, Any]], sample: SampleStatistics, ties_by_unit: Mapping[int, Tie]
) -> list[UnitStatistics]:
    """The statistics of a layer's units, by unit; `rows` are those of the `units` table, by unit."""
    return [
        _describe_unit(row, median, ties_by_unit.get(row["unit"]))
        for row, median in zip(rows, sample.median.tolist(), strict=True)
    ]


def _describe_unit(row: Mapping[str, Any], median: float, tie: Tie | None) -> UnitStatistics:
    """A row of the `units` table with what the sample says."""
    std, highest = _finite(row["std"]), _finite(row["highest"])
    standing = (highest - median) / std if highest is not None and std else None
    return UnitStatistics(
        layer=row["layer"],
        unit=row["unit"],
        images=int(row["images"] or 0),
        activation_rate=_finite(row["activation_rate"]) or 0.0,
        mean=_finite(row["mean"]),
        std=std,
        lowest=_finite(row["lowest"]),
        highest=highest,
        nan_images=int(row["nan_images"] or 0),
        dead=bool(row["dead"]),
        tied=int(row["tied"] or 0),
        median=_finite(median),
        standing=_finite(standing),
        tie=tie,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
