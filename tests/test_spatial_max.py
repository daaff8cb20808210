"""What is read of one batch of maps, against looking at every cell in turn."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from unitscope.spatial_max import Candidates, PeakPicker, Spacing, highest_cell, highest_cell_by_pooling

FEW_VALUES = st.sampled_from([math.nan, -math.inf, math.inf, -3.0, -0.5, 0.0, 0.5, 2.0])
MAPS = arrays(np.float32, array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4), elements=FEW_VALUES)


def expected_highest(values: list[float]) -> tuple[float, int] | None:
    """The highest value that isn't NaN and the first cell where it stands."""
    valid = [(-value, cell) for cell, value in enumerate(values) if not math.isnan(value)]
    return (-min(valid)[0], min(valid)[1]) if valid else None


def candidates(maps: Tensor, spacing: Spacing, picks: int, rectified: bool = False, floor: float = math.nan) -> Candidates:
    return PeakPicker(picks, spacing, rectified, torch.full((maps.shape[1],), floor)).of(maps, highest_cell(maps))


@given(MAPS)
def test_every_peak_is_the_highest_cell_and_nan_never_wins(values: np.ndarray) -> None:
    maps = torch.from_numpy(values)
    found = highest_cell(maps)
    for image in range(maps.shape[0]):
        for unit in range(maps.shape[1]):
            cells = maps[image, unit].flatten().tolist()
            expected = expected_highest(cells)
            assert bool(found.spoilt[image, unit]) == any(map(math.isnan, cells))
            if expected is None:
                assert found.highest[image, unit].isnan()
            else:
                assert (found.highest[image, unit], found.cells[image, unit]) == expected


@given(MAPS)
def test_the_pass_over_channels_equals_plain_operations(values: np.ndarray) -> None:
    """The fast way on a CPU, and the one that a GPU takes."""
    for maps in (torch.from_numpy(values), torch.from_numpy(values).contiguous(memory_format=torch.channels_last)):
        highest, cells = highest_cell_by_pooling(maps)
        plain = highest_cell(maps)
        assert torch.equal(highest.isnan(), plain.spoilt)
        assert torch.equal(highest[~plain.spoilt], plain.highest[~plain.spoilt])
        assert torch.equal(cells[~plain.spoilt], plain.cells[~plain.spoilt])


def test_both_ways_keep_the_first_of_equal_cells_on_large_maps() -> None:
    maps = torch.randint(0, 3, (2, 37, 61, 45), generator=torch.Generator().manual_seed(0)).float()
    maps[:, 5] = -torch.inf
    first = (maps.flatten(2) == maps.flatten(2).amax(2, keepdim=True)).byte().argmax(2)
    assert torch.equal(highest_cell_by_pooling(maps)[1], first)
    assert torch.equal(highest_cell(maps).cells, first)


@given(MAPS, st.sampled_from([-1.0, 0.0, 2.0]))
def test_leaving_out_what_cannot_come_in_changes_nothing_else(values: np.ndarray, floor: float) -> None:
    maps = torch.from_numpy(values)
    spacing = Spacing(torch.arange(float(maps.shape[2])), torch.arange(float(maps.shape[3])), 1.0, 1.0)
    whole = candidates(maps, spacing, 3)
    screened = candidates(maps, spacing, 3, floor=floor)
    enters = whole.values >= floor
    assert torch.equal(screened.values[enters], whole.values[enters])
    assert torch.equal(screened.cells[enters], whole.cells[enters])


def test_peaks_of_one_image_are_half_a_field_apart() -> None:
    maps = torch.tensor([[[[9.0, 8, 7, 6], [1, 1, 1, 5], [1, 1, 1, 4], [1, 1, 1, 3]]]])
    centres = torch.tensor([0.0, 2, 4, 6])
    spacing = Spacing(centres, centres, half_height=4.0, half_width=4.0)
    found = candidates(maps, spacing, 4)
    assert found.values[0, :, 0].tolist() == [9, 7, 4, 1]
    assert found.cells[0, :, 0].tolist() == [0, 2, 11, 8]


@settings(max_examples=50)
@given(MAPS, st.integers(1, 4), st.sampled_from([0.5, 1.0, 1.5, 2.0]), st.booleans())
def test_several_peaks_are_the_highest_that_are_far_enough_apart(
    values: np.ndarray, picks: int, half: float, rectified: bool
) -> None:
    """Against going through all cells from the highest down, and keeping what is far from all that was kept."""
    maps = torch.from_numpy(values)
    height, width = maps.shape[2:]
    spacing = Spacing(torch.arange(float(height)), torch.arange(float(width)), half, half)
    found = candidates(maps, spacing, picks, rectified)
    for image in range(maps.shape[0]):
        for unit in range(maps.shape[1]):
            cells = maps[image, unit].flatten().tolist()
            ordered = sorted(
                (-value, cell) for cell, value in enumerate(cells) if not math.isnan(value) and not (rectified and value <= 0)
            )
            kept: list[tuple[float, int]] = []
            for minus, cell in ordered:
                far = all(
                    abs(cell // width - other // width) >= half or abs(cell % width - other % width) >= half for _, other in kept
                )
                if far and len(kept) < picks:
                    kept.append((-minus, cell))
            rows = zip(found.values[image, :, unit].tolist(), found.cells[image, :, unit].tolist(), strict=True)
            assert [row for row in rows if not math.isnan(row[0])] == kept


def test_no_more_peaks_than_fit_apart() -> None:
    maps = torch.ones(1, 1, 3, 3)
    spacing = Spacing(torch.arange(3.0), torch.arange(3.0), half_height=5.0, half_width=5.0)
    found = candidates(maps, spacing, 3)
    assert found.values[0, 0, 0] == 1
    assert found.values[0, 1:, 0].isnan().all()


def test_half_precision_maps_are_read_as_float32() -> None:
    maps = torch.tensor([[[[1.5, 2.5]]]], dtype=torch.bfloat16)
    for highest in (highest_cell(maps).highest, highest_cell_by_pooling(maps)[0]):
        assert highest.dtype == torch.float32
        assert highest[0, 0] == 2.5
