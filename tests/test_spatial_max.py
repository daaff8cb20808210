"""The spatial maxima and candidates of one batch of activation maps, against looking at every cell in turn."""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.spatial_max import Candidates, PeakPicker, Spacing, highest_cell, highest_cell_by_pooling

VALUES = st.sampled_from([math.nan, -math.inf, math.inf, -3.0, -0.5, 0.0, 0.5, 2.0])
MAPS = arrays(np.float32, array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4), elements=VALUES)


def expected_max(values: list[float]) -> tuple[float, int] | None:
    """The highest value that isn't NaN and the first cell that has it."""
    valid = [(-value, cell) for cell, value in enumerate(values) if not math.isnan(value)]
    return (-min(valid)[0], min(valid)[1]) if valid else None


def picked(maps: Tensor, spacing: Spacing, max_peaks: int, rectified: bool = False, kth_value: float = math.nan) -> Candidates:
    picker = PeakPicker(max_peaks, spacing, rectified, torch.full((maps.shape[1],), kth_value))
    return picker.pick(maps, highest_cell(maps))


@given(MAPS)
def test_every_peak_is_the_highest_cell_and_nan_never_wins(values: np.ndarray) -> None:
    maps = torch.from_numpy(values)
    spatial_max = highest_cell(maps)
    for image in range(maps.shape[0]):
        for unit in range(maps.shape[1]):
            cells = maps[image, unit].flatten().tolist()
            expected = expected_max(cells)
            assert bool(spatial_max.has_nan[image, unit]) == any(map(math.isnan, cells))
            if expected is None:
                assert spatial_max.values[image, unit].isnan()
            else:
                assert (spatial_max.values[image, unit], spatial_max.cells[image, unit]) == expected


@given(MAPS)
def test_pooling_equals_plain_operations(values: np.ndarray) -> None:
    """The fast function for a CPU against the one for any device."""
    for maps in (torch.from_numpy(values), torch.from_numpy(values).contiguous(memory_format=torch.channels_last)):
        pooled_values, pooled_cells = highest_cell_by_pooling(maps)
        plain = highest_cell(maps)
        assert torch.equal(pooled_values.isnan(), plain.has_nan)
        assert torch.equal(pooled_values[~plain.has_nan], plain.values[~plain.has_nan])
        assert torch.equal(pooled_cells[~plain.has_nan], plain.cells[~plain.has_nan])


def test_both_functions_keep_the_first_of_equal_cells_on_large_maps() -> None:
    maps = torch.randint(0, 3, (2, 37, 61, 45), generator=torch.Generator().manual_seed(0)).float()
    maps[:, 5] = -torch.inf
    first = (maps.flatten(2) == maps.flatten(2).amax(2, keepdim=True)).byte().argmax(2)
    assert torch.equal(highest_cell_by_pooling(maps)[1], first)
    assert torch.equal(highest_cell(maps).cells, first)


@given(MAPS, st.sampled_from([-1.0, 0.0, 2.0]))
def test_skipping_what_cannot_enter_changes_nothing_else(values: np.ndarray, kth_value: float) -> None:
    maps = torch.from_numpy(values)
    spacing = Spacing(torch.arange(float(maps.shape[2])), torch.arange(float(maps.shape[3])), 1.0, 1.0)
    whole = picked(maps, spacing, 3)
    skipping = picked(maps, spacing, 3, kth_value=kth_value)
    may_enter = whole.values >= kth_value
    assert torch.equal(skipping.values[may_enter], whole.values[may_enter])
    assert torch.equal(skipping.cells[may_enter], whole.cells[may_enter])


def test_peaks_of_one_image_are_half_a_receptive_field_apart() -> None:
    maps = torch.tensor([[[[9.0, 8, 7, 6], [1, 1, 1, 5], [1, 1, 1, 4], [1, 1, 1, 3]]]])
    centres = torch.tensor([0.0, 2, 4, 6])
    spacing = Spacing(centres, centres, half_height=4.0, half_width=4.0)
    candidates = picked(maps, spacing, 4)
    assert candidates.values[0, :, 0].tolist() == [9, 7, 4, 1]
    assert candidates.cells[0, :, 0].tolist() == [0, 2, 11, 8]


@settings(max_examples=50)
@given(MAPS, st.integers(1, 4), st.sampled_from([0.5, 1.0, 1.5, 2.0]), st.booleans())
def test_several_peaks_are_the_highest_that_are_far_enough_apart(
    values: np.ndarray, max_peaks: int, half: float, rectified: bool
) -> None:
    """Against going through all cells from the highest down, and keeping what is far from all that was kept."""
    maps = torch.from_numpy(values)
    height, width = maps.shape[2:]
    spacing = Spacing(torch.arange(float(height)), torch.arange(float(width)), half, half)
    candidates = picked(maps, spacing, max_peaks, rectified)
    for image in range(maps.shape[0]):
        for unit in range(maps.shape[1]):
            cells = maps[image, unit].flatten().tolist()
            ordered = sorted(
                (-value, cell) for cell, value in enumerate(cells) if not math.isnan(value) and not (rectified and value <= 0)
            )
            kept: list[tuple[float, int]] = []
            for negated, cell in ordered:
                far = all(
                    abs(cell // width - earlier // width) >= half or abs(cell % width - earlier % width) >= half
                    for _, earlier in kept
                )
                if far and len(kept) < max_peaks:
                    kept.append((-negated, cell))
            pairs = zip(candidates.values[image, :, unit].tolist(), candidates.cells[image, :, unit].tolist(), strict=True)
            assert [pair for pair in pairs if not math.isnan(pair[0])] == kept


def test_no_more_peaks_than_fit_apart() -> None:
    maps = torch.ones(1, 1, 3, 3)
    spacing = Spacing(torch.arange(3.0), torch.arange(3.0), half_height=5.0, half_width=5.0)
    candidates = picked(maps, spacing, 3)
    assert candidates.values[0, 0, 0] == 1
    assert candidates.values[0, 1:, 0].isnan().all()


def test_half_precision_maps_are_read_as_float32() -> None:
    maps = torch.tensor([[[[1.5, 2.5]]]], dtype=torch.bfloat16)
    for values in (highest_cell(maps).values, highest_cell_by_pooling(maps)[0]):
        assert values.dtype == torch.float32
        assert values[0, 0] == 2.5


class Waits(TorchDispatchMode):
    """Notes the operators after which a program has to wait until a device has computed something."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.operators.append(func.name())
        return func(*args, **(kwargs or {}))


def test_to_find_maxima_a_program_never_waits_for_a_device() -> None:
    """No GPU is here, so this watches for the operators that would make a program wait for one."""
    maps = torch.randn(8, 3, 14, 14)
    with Waits() as waits:
        highest_cell(maps)
        assert waits.operators == []
        bool(highest_cell(maps).has_nan.any())
    assert waits.operators == ["aten::_local_scalar_dense"]  # that one would
