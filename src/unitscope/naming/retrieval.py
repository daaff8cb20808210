"""How well a unit's value finds the images of a concept among those of the sample: average precision, and F1 at a threshold."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def average_precision(values: Floats, is_member: Bools) -> Floats:
    """The area under each unit's curve of precision and recall, of shape (unit); NaN where there is no member.

    Both have the shape (unit, image). Equal values are taken together, and NaN comes last, together too.
    """
    _, member, retrieved, members_at = _retrieved(values, is_member)
    with np.errstate(invalid="ignore"):
        average: Floats = np.where(member, members_at / retrieved, 0).sum(1) / member.sum(1)
    return average


def best_thresholds(values: Floats, is_member: Bools) -> Floats:
    """The value of each unit at and above which F1 is highest, of shape (unit); NaN where there is no member."""
    if values.shape[1] == 0:
        return np.full(len(values), np.nan)
    ranked, member, retrieved, members_at = _retrieved(values, is_member)
    with np.errstate(invalid="ignore"):
        f1 = 2 * members_at / (retrieved + member.sum(1, keepdims=True))
    best: Floats = np.take_along_axis(ranked, f1.argmax(1)[:, None], 1)[:, 0]
    return np.where(member.any(1), best, np.nan)


def f1_at(thresholds: Floats, values: Floats, is_member: Bools) -> Floats:
    """F1 of the images at and above each unit's threshold, of shape (unit); NaN where there is no member or no threshold."""
    predicted = values >= thresholds[:, None]
    true_positives = (predicted & is_member).sum(1)
    with np.errstate(invalid="ignore"):
        f1 = 2 * true_positives / (predicted.sum(1) + is_member.sum(1))
    return np.where(is_member.any(1) & ~np.isnan(thresholds), f1, np.nan)


def _retrieved(values: Floats, is_member: Bools) -> tuple[Floats, Bools, NDArray[np.int64], NDArray[np.int64]]:
    """By rank, the highest value first: values, membership and, at and above each value, how many images there are and how many members."""
    order = np.argsort(-values, axis=1, kind="stable")
    ranked, member = np.take_along_axis(values, order, 1), np.take_along_axis(is_member, order, 1)
    is_last = np.ones(ranked.shape, dtype=bool)
    is_last[:, :-1] = (ranked[:, :-1] != ranked[:, 1:]) & ~(np.isnan(ranked[:, :-1]) & np.isnan(ranked[:, 1:]))
    rank = np.broadcast_to(np.arange(ranked.shape[1]), ranked.shape)
    last = np.minimum.accumulate(np.where(is_last, rank, ranked.shape[1])[:, ::-1], axis=1)[:, ::-1]
    members_at = np.take_along_axis(member.cumsum(1), last, 1)
    return ranked, member, last + 1, members_at
