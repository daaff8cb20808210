"""Which of a unit's candidates are its peaks: the k highest, near-duplicates of an image before them left out."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from unitscope.images.perceptual_hash import MAX_DISTANCE, differing_bits
from unitscope.records import ImageRecord
from unitscope.topk import NO_IMAGE, TopK, images_with_value


def distinct_peaks(candidates: TopK, records: Mapping[int, ImageRecord], k: int) -> tuple[TopK, NDArray[np.bool_]]:
    """The k first candidates of every unit without near-duplicates, and which candidates those are, of shape (unit, candidate).

    `tied` is how many images share the k-th value, near-duplicates among the candidates left out.
    """
    is_near_duplicate = near_duplicates(candidates.images.numpy(), records)
    is_free = (candidates.images == NO_IMAGE).numpy()
    order = np.argsort(is_near_duplicate | is_free, axis=1, kind="stable")[:, :k]
    chosen = torch.from_numpy(order)
    values, hashes, images, cells = (
        getattr(candidates, name).gather(1, chosen) for name in ("values", "hashes", "images", "cells")
    )
    peaks = TopK(values, hashes, images, cells, candidates.tied)
    is_left_out = torch.from_numpy(np.take_along_axis(is_near_duplicate, order, 1))
    for column, free_value in ((peaks.values, torch.nan), (peaks.hashes, NO_IMAGE), (peaks.images, NO_IMAGE), (peaks.cells, 0)):
        column.masked_fill_(is_left_out, free_value)
    kth_values = peaks.values[:, -1]
    left_out = candidates.values.masked_fill(~torch.from_numpy(is_near_duplicate), torch.nan)
    folded = images_with_value(kth_values, left_out, candidates.images)
    peaks.tied = torch.where(kth_values.isnan(), 0, candidates.images_with_value(kth_values) - folded)
    return peaks, is_near_duplicate


def near_duplicates(images: NDArray[np.int64], records: Mapping[int, ImageRecord]) -> NDArray[np.bool_]:
    """Which candidates show a near-duplicate of an image that stands before them and is none itself. `images` has the shape (unit, rank).

    One image may stand several times, with several cells.
    """
    numbers, positions = np.unique(images, return_inverse=True)
    known = [records[number].perceptual_hash if number in records else None for number in numbers.tolist()]
    hashes = np.array([hash_ or 0 for hash_ in known], dtype=np.uint64)[positions.reshape(images.shape)]
    has_hash = np.array([hash_ is not None for hash_ in known], dtype=bool)[positions.reshape(images.shape)]
    is_near_duplicate = np.zeros(images.shape, dtype=bool)
    for rank in range(1, images.shape[1]):
        near = differing_bits(hashes[:, :rank], hashes[:, rank : rank + 1]) <= MAX_DISTANCE
        near &= has_hash[:, :rank] & has_hash[:, rank : rank + 1] & (images[:, :rank] != images[:, rank : rank + 1])
        is_near_duplicate[:, rank] = (near & ~is_near_duplicate[:, :rank]).any(1)
    return is_near_duplicate
