"""Facets: whether what excites a unit falls into several groups, by a test that prefers one.

Two groups are found by 2-means in the directions in which a unit's candidates vary most. They count where the variance within them is
smaller than 2-means finds in points that are spread evenly in a box with the same variances along its sides (the reference of the gap
statistic, Tibshirani et al. 2001, and the test of SigClust, Liu et al. 2008): any cloud can be cut in two, and one that is long in a
direction looks better cut than a round one. Groups are cut again in the same way.

Pictures drawn at random fall into groups too: cats and cars. So a unit's cut has to be clearer than those of nearly all sets of patches drawn
at random from the same layer (`clearness`), whose share above that is known.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_FACETS = 4
SMALLEST_FACET = 5
"""How many candidates a facet has at least: one that stands apart is no facet."""
MAX_AXES = 16
"""Along how many axes candidates are compared: those along which the layer's patches vary most."""
DRAWS = 16
"""Of points in that box."""
MIN_Z = 2.33
"""How far below the mean of those draws, in their standard deviations, what is left of the variance must lie: about one in 100 of one group."""
ITERATIONS = 5
UNITS_AT_ONCE = 512

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def principal_axes(embeddings: Floats) -> Floats:
    """The axes along which embeddings, of shape (patch, number), vary most, of shape (number, axis)."""
    tensor = torch.from_numpy(np.asarray(embeddings, dtype=np.float32))
    centred = tensor - tensor.mean(0)
    _, vectors = torch.linalg.eigh((centred.T @ centred).double())
    axes: Floats = vectors.flip(1)[:, :MAX_AXES].float().numpy()
    return axes


def clearness(points: Floats, is_point: Bools) -> Floats:
    """How clear the first cut of each unit's points is: how far below the mean of the draws what is left of the variance lies, in their
    standard deviations; -inf where a part would be too small. Shapes are as in `find_facets`."""
    pieces = [np.empty(0)]
    for batch_points, batch_is_point in _batches(points, is_point):
        pieces.append(_cut(batch_points, batch_is_point)[0].numpy())
    return np.concatenate(pieces)


def find_facets(points: Floats, is_point: Bools, min_z: float = MIN_Z) -> NDArray[np.int64]:
    """The facet of each point, of shape (unit, point), from 0; -1 where there is no point. The first point of a unit has facet 0.

    `points` has the shape (unit, point, axis), highest candidates first. Cuts count from a clearness of `min_z` on.
    """
    pieces = [_facets(batch_points, batch_is_point, min_z) for batch_points, batch_is_point in _batches(points, is_point)]
    return np.concatenate(pieces) if pieces else np.where(is_point, 0, -1)


def _batches(points: Floats, is_point: Bools) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(points), UNITS_AT_ONCE):
        units = slice(start, start + UNITS_AT_ONCE)
        yield torch.from_numpy(np.asarray(points[units], dtype=np.float32)), torch.from_numpy(is_point[units])


def _facets(points: Tensor, is_point: Tensor, min_z: float) -> NDArray[np.int64]:
    facets = torch.where(is_point, 0, -1)
    counts = torch.ones(len(points), dtype=torch.int64)
    unit = torch.arange(len(points))
    facet = torch.zeros_like(unit)
    while len(unit):
        members = facets[unit] == facet[:, None]
        z, second = _cut(points[unit], members)
        is_cut = (z > min_z) & (counts[unit] < MAX_FACETS)
        cut_units, new = unit[is_cut], counts[unit[is_cut]]
        if len(cut_units) != len(cut_units.unique()):  # two facets of one unit: the second waits
            first_of_unit = torch.cat([torch.tensor([True]), cut_units[1:] != cut_units[:-1]])
            waiting = is_cut.nonzero()[:, 0][~first_of_unit]
            is_cut[waiting] = False
            cut_units, new = unit[is_cut], counts[unit[is_cut]]
        else:
            waiting = torch.empty(0, dtype=torch.int64)
        facets[cut_units] = torch.where(second[is_cut], new[:, None], facets[cut_units])
        counts[cut_units] += 1
        unit = torch.cat([cut_units, cut_units, unit[waiting]])
        facet = torch.cat([facet[is_cut], new, facet[waiting]])
        unit, order = unit.sort(stable=True)
        facet = facet[order]
    return _numbered_by_first(facets.numpy())


def _numbered_by_first(facets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same with numbers in the order in which facets come."""
    first = np.stack(
        [np.where((facets == facet).any(1), (facets == facet).argmax(1), facets.shape[1]) for facet in range(MAX_FACETS)], 1
    )
    new = np.argsort(np.argsort(first, axis=1, kind="stable"), axis=1)
    return np.where(facets >= 0, np.take_along_axis(new, np.maximum(facets, 0), 1), -1)


def _cut(points: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """For each group of points how clear its best cut in two is, and which members then are in the second part."""
    weights = members.float()[:, :, None]
    count = weights.sum(1, keepdim=True).clamp(min=1)
    centred = (points - (points * weights).sum(1, keepdim=True) / count) * weights
    variances, axes = torch.linalg.eigh(centred.mT @ centred / count)
    rotated = (centred @ axes).flip(2)
    unexplained, second = _two_means(rotated, members)
    deviations = variances.flip(1).clamp(min=0).sqrt()
    noise = torch.rand(DRAWS, *points.shape[1:], generator=torch.Generator().manual_seed(0)) - 0.5
    by_chance = torch.stack([_two_means(_of_variances(draw * weights, count, deviations), members)[0] for draw in noise])
    z = (by_chance.mean(0) - unexplained) / by_chance.std(0).clamp(min=1e-9)
    sizes = torch.stack([second.sum(1), members.sum(1) - second.sum(1)])
    return z.masked_fill(sizes.amin(0) < SMALLEST_FACET, -torch.inf), second


def _of_variances(noise: Tensor, count: Tensor, deviations: Tensor) -> Tensor:
    """Noise of exactly those deviations in each direction, and a mean of 0."""
    centred = torch.where(noise != 0, noise - noise.sum(1, keepdim=True) / count, 0)
    own = (centred.square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-9)
    return centred / own * deviations[:, None]


def _two_means(points: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the variance that is left within two groups, and which members are in the second one. Points are centred, along their
    axes of variance; others than members are 0."""
    total = points.square().sum((1, 2)).clamp(min=1e-12)
    count = members.sum(1)
    second = (points[:, :, 0] > 0) & members
    for _ in range(ITERATIONS):
        size = second.sum(1)
        sums = torch.bmm(second[:, None].float(), points)[:, 0]
        # The members' mean is 0, so both means are multiples of the sum over the second group.
        means = sums / size.clamp(min=1)[:, None], -sums / (count - size).clamp(min=1)[:, None]
        direction = means[0] - means[1]
        middle = ((means[0] + means[1]) / 2 * direction).sum(1)
        second = (torch.bmm(points, direction[:, :, None])[:, :, 0] > middle[:, None]) & members
    size = second.sum(1)
    sums = torch.bmm(second[:, None].float(), points)[:, 0].square().sum(1)
    between = sums / size.clamp(min=1) + sums / (count - size).clamp(min=1)
    return torch.where((size > 0) & (size < count), 1 - between / total, 1.0), second
