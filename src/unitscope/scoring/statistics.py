"""How well patches predict, how much alike they are, and where they are found: from embeddings, whatever made these.

Embeddings are of unit norm, so a mean of cosines is a product with a mean of embeddings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

BOOTSTRAP_DRAWS = 400
INTERVAL = (2.5, 97.5)
"""The percentiles of the bootstrap that the interval lies between."""
PAIRS_AT_ONCE = 1 << 24
"""Pairs of images, of all units together, that are in memory together; of draws of the bootstrap and images as many."""


@dataclass(frozen=True, slots=True)
class Predictability:
    """For each unit the share of pairs of unseen images that its patches tell right, and the interval; NaN where there are no pairs."""

    share: Floats
    low: Floats
    high: Floats


def predictability(upper: Floats, lower: Floats, rng: np.random.Generator) -> Predictability:
    """The two-alternative task of Borowski et al. 2021, judged by embeddings as by Zimmermann et al. 2024, over all pairs.

    `upper` has, for some images that excite a unit much, the mean cosine with its highest patches less that with its lowest, of shape (unit,
    image); `lower` the same for images that excite it little. NaN is no image. Of each pair the patches tell right which excites the unit
    more where the value of the upper image is above that of the lower; a tie counts half. The interval is that of a bootstrap over the
    images.
    """
    upper, lower = _without_gaps(upper), _without_gaps(lower)
    pairs_of_unit = max(upper.shape[1], lower.shape[1]) * max(BOOTSTRAP_DRAWS, upper.shape[1], lower.shape[1])
    length = max(1, PAIRS_AT_ONCE // max(pairs_of_unit, 1))
    pieces = [
        _predictability(upper[start : start + length], lower[start : start + length], rng)
        for start in range(0, len(upper), length)
    ]
    empty = np.empty(0)
    share, low, high = (np.concatenate([empty, *parts]) for parts in zip(*pieces, strict=True)) if pieces else (empty,) * 3
    return Predictability(share, low, high)


def _without_gaps(values: Floats) -> Floats:
    """The values of each unit, those that aren't NaN first, with as many columns as the unit with the most of them has."""
    is_value = ~np.isnan(values)
    order = np.argsort(~is_value, axis=1, kind="stable")[:, : is_value.sum(1).max(initial=0)]
    return np.take_along_axis(values, order, 1)


def _predictability(upper: Floats, lower: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    is_upper, is_lower = ~np.isnan(upper), ~np.isnan(lower)
    pairs = is_upper[:, :, None] & is_lower[:, None, :]
    right = np.where(pairs, (upper[:, :, None] > lower[:, None, :]) + 0.5 * (upper[:, :, None] == lower[:, None, :]), 0)
    upper_weights, lower_weights = _weights(is_upper, rng), _weights(is_lower, rng)
    draws = np.einsum("udj,udj->ud", upper_weights @ right, lower_weights)
    has_pairs = pairs.any((1, 2))
    with np.errstate(invalid="ignore"):
        share = right.sum((1, 2)) / pairs.sum((1, 2))
    low, high = np.where(has_pairs, np.percentile(draws, INTERVAL, axis=1), np.nan)
    return share, low, high


def _weights(is_image: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """How often each draw of the bootstrap takes each image, as a share, of shape (unit, draw, image)."""
    counts = np.empty((len(is_image), BOOTSTRAP_DRAWS, is_image.shape[1]))
    for present in np.unique(is_image, axis=0):
        shares = present / max(present.sum(), 1)
        drawn = rng.multinomial(present.sum(), shares, BOOTSTRAP_DRAWS) if present.any() else np.zeros(counts.shape[1:])
        counts[(is_image == present).all(1)] = drawn / max(present.sum(), 1)
    return counts


def monosemanticity(weights: Floats, sums: Floats) -> Floats:
    """The mean cosine of all pairs of images, each weighed by the product of the two responses (Pach et al. 2025, 2504.02821), for each unit.

    `weights` are responses from 0 to 1, of shape (unit, image); `sums` those of the images' embeddings, each times its weight, of shape
    (unit, number). With embeddings of unit norm the sum over pairs is closed: (|Σ aᵢ eᵢ|² - Σ aᵢ²) / ((Σ aᵢ)² - Σ aᵢ²). NaN where no
    two images have a weight.
    """
    squares = (weights**2).sum(1)
    pairs = weights.sum(1) ** 2 - squares
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 1e-12 * squares, ((sums**2).sum(1) - squares) / pairs, np.nan)


def scaled(responses: Floats) -> Floats:
    """Each unit's responses, of shape (unit, image), from 0 for the lowest to 1 for the highest; all 0 where they are equal."""
    low, high = responses.min(1, keepdims=True), responses.max(1, keepdims=True)
    spread = high - low
    return np.where(spread > 0, (responses - low) / np.where(spread > 0, spread, 1), 0)


def unit_norm(vectors: Floats) -> Floats:
    """The vectors, of shape (…, number), with a norm of 1; those of norm 0 stay."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    normed: Floats = vectors / np.where(norms > 0, norms, 1)
    return normed
