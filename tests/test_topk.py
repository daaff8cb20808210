"""The streaming top k against sorting everything at once."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unitscope.topk import NO_IMAGE, TopK

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


def brute_force(values: Tensor, images: Tensor, cells: Tensor, k: int) -> list[list[tuple[float, int, int]]]:
    """Every unit's k first candidates: value down, then image up, then cell up; NaN is none."""
    result = []
    for unit in range(values.shape[1]):
        rows = zip(values[:, unit].tolist(), images.tolist(), cells[:, unit].tolist(), strict=True)
        ordered = sorted((-value, image, cell) for value, image, cell in rows if value == value)
        result.append([(-value, image, cell) for value, image, cell in ordered[:k]])
    return result


def kept(best: TopK) -> list[list[tuple[float, int, int]]]:
    rows = (
        zip(*(t[unit].tolist() for t in (best.values, best.images, best.cells)), strict=True) for unit in range(len(best.values))
    )
    return [[row for row in unit if row[1] != NO_IMAGE] for unit in rows]


@given(candidates(), st.data())
def test_any_split_order_and_grouping_gives_what_sorting_gives(
    drawn: tuple[Tensor, Tensor, Tensor, int], data: st.DataObject
) -> None:
    values, images, cells, k = drawn
    order = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    parts = []
    for start, stop in pairwise([0, *cuts, len(values)]):
        chosen = torch.tensor(order[start:stop], dtype=torch.int64)
        part = TopK.empty(values.shape[1], k)
        part.add(values[chosen], images[chosen].long(), cells[chosen])
        parts.append(part)
    while len(parts) > 1:
        one = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts[data.draw(st.integers(0, len(parts) - 1))].merge(one)
    assert kept(parts[0]) == brute_force(values, images, cells, k)


def test_free_places_hold_nothing() -> None:
    best = TopK.empty(units=1, k=3)
    best.add(torch.tensor([[2.0], [torch.nan]]), torch.tensor([4, 5]), torch.tensor([[7], [8]]))
    assert best.images.tolist() == [[4, NO_IMAGE, NO_IMAGE]]
    assert best.cells.tolist() == [[7, 0, 0]]
    assert best.values[0, 1:].isnan().all()


def test_a_tie_with_the_last_place_is_won_by_the_earlier_image() -> None:
    best = TopK.empty(units=1, k=1)
    best.add(torch.tensor([[1.0]]), torch.tensor([5]), torch.tensor([[0]]))
    best.add(torch.tensor([[1.0]]), torch.tensor([3]), torch.tensor([[0]]))
    best.add(torch.tensor([[1.0]]), torch.tensor([9]), torch.tensor([[0]]))
    assert best.images.tolist() == [[3]]


def test_minus_infinity_is_a_value() -> None:
    best = TopK.empty(units=1, k=2)
    best.add(torch.tensor([[-torch.inf]]), torch.tensor([1]), torch.tensor([[0]]))
    assert kept(best) == [[(-torch.inf, 1, 0)]]
