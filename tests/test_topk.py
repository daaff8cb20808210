"""The streaming top k, and how many images share its k-th value, against sorting everything at once."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unitscope.topk import NO_IMAGE, HighestValues, TopK

VALUES = st.sampled_from([float("nan"), float("-inf"), float("inf"), -2.0, -0.0, 0.0, 1.0, 1.0, 3.0])
Candidate = tuple[list[float], list[int]]


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Values and cells of shape (candidate, unit), images of shape (candidate,), and k; an image may come several times."""
    count, units = draw(st.integers(0, 12)), draw(st.integers(1, 3))
    values = draw(st.lists(st.lists(VALUES, min_size=units, max_size=units), min_size=count, max_size=count))
    images = draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    cells = draw(st.lists(st.lists(st.integers(0, 4), min_size=units, max_size=units), min_size=count, max_size=count))
    shape = (count, units)
    return (
        torch.tensor(values).reshape(shape),
        torch.tensor(images),
        torch.tensor(cells).reshape(shape).long(),
        draw(st.integers(1, 4)),
    )


HASHES = torch.tensor([7, 3, 9, 3, 0, 8, 1, 7, 4])
"""The hashes of images 0 to 8; some are equal."""


def brute_force(values: Tensor, images: Tensor, cells: Tensor, k: int) -> list[list[tuple[float, int, int]]]:
    """Every unit's k first candidates: value down, then hash up, then image up, then cell up; NaN is none."""
    result = []
    for unit in range(values.shape[1]):
        rows = zip(values[:, unit].tolist(), images.tolist(), cells[:, unit].tolist(), strict=True)
        ordered = sorted((-value, int(HASHES[image]), image, cell) for value, image, cell in rows if value == value)
        result.append([(-value, image, cell) for value, _, image, cell in ordered[:k]])
    return result


def images_with_kth_value(values: Tensor, images: Tensor, k: int) -> list[int]:
    """How many images hold the unit's k-th value; 0 where it has fewer than k."""
    result = []
    for unit in range(values.shape[1]):
        rows = [(value, image) for value, image in zip(values[:, unit].tolist(), images.tolist(), strict=True) if value == value]
        ordered = sorted((value for value, _ in rows), reverse=True)
        result.append(len({image for value, image in rows if value == ordered[k - 1]}) if len(ordered) >= k else 0)
    return result


def peaks(best: TopK) -> list[list[tuple[float, int, int]]]:
    """Every unit's value, image and cell by rank, without free ranks."""
    columns = (best.values.tolist(), best.images.tolist(), best.cells.tolist())
    return [[row for row in zip(*unit, strict=True) if row[1] != NO_IMAGE] for unit in zip(*columns, strict=True)]


@given(candidates(), st.data())
def test_any_split_order_and_grouping_gives_what_sorting_gives(
    drawn: tuple[Tensor, Tensor, Tensor, int], data: st.DataObject
) -> None:
    values, images, cells, k = drawn
    part_of_image = data.draw(st.lists(st.integers(0, 4), min_size=9, max_size=9))
    parts = []
    for number in range(5):  # an image is in one part, with all its candidates
        part = TopK.empty(values.shape[1], k)
        images_of_part = sorted({image for image in images.tolist() if part_of_image[image] == number})
        for image in data.draw(st.permutations(images_of_part)):
            rows = (images == image).nonzero()[:, 0]
            part.add(values[rows], HASHES[images[rows]], images[rows].long(), cells[rows])
        parts.append(part)
    while len(parts) > 1:
        merged = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts[data.draw(st.integers(0, len(parts) - 1))].merge(merged)
    assert peaks(parts[0]) == brute_force(values, images, cells, k)
    assert parts[0].tied.tolist() == images_with_kth_value(values, images, k)


@given(candidates())
def test_all_candidates_at_once_give_the_same(drawn: tuple[Tensor, Tensor, Tensor, int]) -> None:
    values, images, cells, k = drawn
    best = TopK.empty(values.shape[1], k)
    best.add(values, HASHES[images.long()], images.long(), cells)
    assert peaks(best) == brute_force(values, images, cells, k)
    assert best.tied.tolist() == images_with_kth_value(values, images, k)


def test_free_ranks_hold_nothing() -> None:
    best = TopK.empty(unit_count=1, k=3)
    best.add(torch.tensor([[2.0], [torch.nan]]), torch.tensor([0, 0]), torch.tensor([4, 5]), torch.tensor([[7], [8]]))
    assert best.images.tolist() == [[4, NO_IMAGE, NO_IMAGE]]
    assert best.cells.tolist() == [[7, 0, 0]]
    assert best.values[0, 1:].isnan().all()
    assert best.tied.tolist() == [0]


def test_a_tie_for_the_last_rank_is_won_by_the_lower_hash_and_among_equals_by_the_earlier_image() -> None:
    best = TopK.empty(unit_count=1, k=1)
    for image, hashed in ((5, 40), (3, 20), (9, 20), (1, 30)):
        best.add(torch.tensor([[1.0]]), torch.tensor([hashed]), torch.tensor([image]), torch.tensor([[0]]))
    assert best.images.tolist() == [[3]]
    assert best.tied.tolist() == [4]


def test_minus_infinity_is_a_value() -> None:
    best = TopK.empty(unit_count=1, k=2)
    best.add(torch.tensor([[-torch.inf]]), torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]))
    assert peaks(best) == [[(-torch.inf, 1, 0)]]


@given(candidates(), st.integers(0, 12))
def test_highest_values_are_those_of_a_top_k(drawn: tuple[Tensor, Tensor, Tensor, int], split: int) -> None:
    values, images, cells, k = drawn
    highest, whole = HighestValues.empty(values.shape[1], k, "cpu"), TopK.empty(values.shape[1], k)
    whole.add(values, HASHES[images.long()], images.long(), cells)
    for rows in (slice(split), slice(split, None)):
        part = TopK.empty(values.shape[1], k)
        part.add(values[rows], HASHES[images[rows].long()], images[rows].long(), cells[rows])
        highest.merge(part.values)
    assert torch.equal(highest.values.nan_to_num(-7.5), whole.values.nan_to_num(-7.5))
