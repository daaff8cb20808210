"""The statistics of a layer's units: rows of the `units` table, with what the sample says of each unit."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from unitscope.atlas.samples import SampleStatistics, z_scores
from unitscope.atlas.ties import Tie
from unitscope.web.page_records import UnitStatistics


def describe_units(
    rows: Sequence[Mapping[str, Any]], sample: SampleStatistics, ties_by_unit: Mapping[int, Tie]
) -> list[UnitStatistics]:
    """The statistics of a layer's units, by unit; `rows` are those of the `units` table, by unit."""
    highest = np.array([row["highest"] for row in rows], dtype=np.float64)
    columns = sample.mean.tolist(), sample.std.tolist(), z_scores(highest, sample).tolist()
    return [
        _describe_unit(row, sample_mean, sample_std, z_score, ties_by_unit.get(row["unit"]))
        for row, sample_mean, sample_std, z_score in zip(rows, *columns, strict=True)
    ]


def _describe_unit(
    row: Mapping[str, Any], sample_mean: float, sample_std: float, z_score: float, tie: Tie | None
) -> UnitStatistics:
    """A row of the `units` table with what the sample says."""
    return UnitStatistics(
        layer=row["layer"],
        unit=row["unit"],
        images=int(row["images"] or 0),
        activation_rate=_finite(row["activation_rate"]) or 0.0,
        mean=_finite(row["mean"]),
        std=_finite(row["std"]),
        lowest=_finite(row["lowest"]),
        highest=_finite(row["highest"]),
        nan_images=int(row["nan_images"] or 0),
        dead=bool(row["dead"]),
        tied=int(row["tied"] or 0),
        sample_mean=_finite(sample_mean),
        sample_std=_finite(sample_std),
        z_score=_finite(z_score),
        tie=tie,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
