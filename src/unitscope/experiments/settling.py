"""How far layers stay as they were from one checkpoint of a training to the next: by the images of their units' peaks."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unitscope.atlas import Atlas
from unitscope.atlas.ties import units_without_preference
from unitscope.images.content import image_hash, sum_of_hashes
from unitscope.records import Layer


def settling_of_layer(earlier: Atlas, later: Atlas, layer: Layer, left_out_images: Collection[int]) -> tuple[float, float]:
    """Mean overlap of the units' peak images, and the share of units whose strongest image is another.

    Units that show no preference in one of the two are left out, and so are some images. NaN where no unit is left.
    """
    ignored = [unit for atlas in (earlier, later) for unit in units_without_preference(atlas.ties(layer.name))]
    peaks = [atlas.peaks(layer.name).filter(~pc.field("unit").isin(ignored)) for atlas in (earlier, later)]
    earlier_peaks, later_peaks = peaks_without_images(peaks, left_out_images, earlier.k)
    return overlap_and_jumps(earlier_peaks, later_peaks, layer.units)


def overlap_and_jumps(earlier: pa.Table, later: pa.Table, unit_count: int) -> tuple[float, float]:
    """Of the peaks of one layer: mean overlap of the units' images, and the share of units whose strongest image is another."""
    earlier_pairs, later_pairs = (_units_and_images(table) for table in (earlier, later))
    shared, in_earlier, in_later = (
        np.bincount([unit for unit, _ in pairs], minlength=unit_count)
        for pairs in (earlier_pairs & later_pairs, earlier_pairs, later_pairs)
    )
    more = np.maximum(in_earlier, in_later)
    overlap = float((shared[more > 0] / more[more > 0]).mean()) if more.any() else float("nan")
    strongest_earlier, strongest_later = _strongest_images(earlier), _strongest_images(later)
    units = strongest_earlier.keys() & strongest_later.keys()
    jumps = sum(strongest_earlier[unit] != strongest_later[unit] for unit in units) / len(units) if units else float("nan")
    return overlap, jumps


def _units_and_images(peaks: pa.Table) -> set[tuple[int, int]]:
    return set(zip(peaks["unit"].to_pylist(), peaks["image"].to_pylist(), strict=True))


def _strongest_images(peaks: pa.Table) -> dict[int, int]:
    """The image of each unit's highest peak."""
    highest = peaks.filter(pc.field("rank") == 1)
    return dict(zip(highest["unit"].to_pylist(), highest["image"].to_pylist(), strict=True))


def peaks_without_images(tables: Sequence[pa.Table], images: Collection[int], k: int) -> list[pa.Table]:
    """The same layer's peaks at several checkpoints, in other images than those, with ranks among themselves.

    Of a unit with all its k peaks nobody knows which would have come next, so for each that is left out one less is known; then no
    more are taken of it at any checkpoint.
    """
    if not images:
        return list(tables)
    left_out = pa.array(sorted(images), pa.int64())
    remaining = [table.filter(pc.invert(pc.is_in(table["image"], left_out))) for table in tables]
    known_peaks: dict[int, int] = {}
    for table, of_others in zip(tables, remaining, strict=True):
        counts, remaining_counts = Counter(table["unit"].to_pylist()), Counter(of_others["unit"].to_pylist())
        known_peaks |= {
            unit: min(known_peaks.get(unit, k), remaining_counts[unit]) for unit, count in counts.items() if count == k
        }
    return [_first_peaks(table, known_peaks) for table in remaining]


def _first_peaks(peaks: pa.Table, known_peaks: Mapping[int, int]) -> pa.Table:
    """As many peaks of each unit as are known, and all of units that aren't listed, with ranks from 1."""
    peak_counts: Counter[int] = Counter()
    ranks = []
    for unit in peaks["unit"].to_pylist():
        peak_counts[unit] += 1
        ranks.append(peak_counts[unit] if peak_counts[unit] <= known_peaks.get(unit, peak_counts[unit]) else 0)
    ranked = peaks.set_column(peaks.schema.get_field_index("rank"), "rank", pa.array(ranks, peaks.schema.field("rank").type))
    return ranked.filter(pc.field("rank") > 0)


# ── images that aren't the same at all checkpoints ──────────────────────────────────────────────────────────────────


def keys_read_in_some(atlases: Collection[Atlas]) -> set[str]:
    """Keys of the images that could be read at some checkpoints but not at all."""
    skipped = [set(atlas.table("skipped")["key"].to_pylist()) for atlas in atlases]
    return set().union(*skipped) - set.intersection(*skipped)


def keys_replaced(atlases: Collection[Atlas]) -> set[str]:
    """Keys of the images that were others at some checkpoints, by the hash of their content."""
    contents: dict[str, set[int]] = {}
    for atlas in atlases:
        for row in atlas.table("images").to_pylist():
            if row["content"] is not None:
                contents.setdefault(row["key"], set()).add(row["content"])
    return {key for key, hashes in contents.items() if len(hashes) > 1}


def replaced_unnamed(earlier: Atlas, later: Atlas) -> bool:
    """True where other images hold something else in the later atlas than those that both mention, by the totals over all images.

    Where an image was read for one of them alone the totals tell nothing.
    """
    totals = [atlas.manifest["images"].get("contents") for atlas in (earlier, later)]
    skipped = [sorted(atlas.table("skipped")["key"].to_pylist()) for atlas in (earlier, later)]
    if not all(totals) or skipped[0] != skipped[1]:
        return False
    earlier_contents, later_contents = (
        {row["key"]: row["content"] for row in atlas.table("images").to_pylist()} for atlas in (earlier, later)
    )
    shared_keys = earlier_contents.keys() & later_contents.keys()
    named = (image_hash(key, later_contents[key]) - image_hash(key, earlier_contents[key]) for key in shared_keys)
    return str(totals[1]) != f"{sum_of_hashes((int(totals[0], 16), *named)):016x}"
