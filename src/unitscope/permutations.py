"""What a correlation would be if responses were dealt out to the images at random: exact moments, no draws."""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_SKEWNESS = 1e-4
"""Below this the distribution is taken for the normal one: the shape of the other would be above 10⁸."""


def membership_p_values(correlation: Floats, inside: Floats, images: Floats, skewness: Floats) -> Floats:
    """The chance of a correlation with membership as high as this, or higher, when responses are permuted among the images.

    `inside` of `images` are members; `skewness` is that of the responses. As `permutation_p_values`, whose third moment is that of sampling
    without replacement here (Cochran 1977). No chance is below that of one choice of members. NaN where the correlation is.
    """
    outside = images - inside
    with np.errstate(invalid="ignore", divide="ignore"):
        p_values = permutation_p_values(correlation, images, skewness * (outside - inside) / np.sqrt(inside * outside))
    result: Floats = np.maximum(p_values, np.exp(-_log_choices(images, inside)))
    return result


def permutation_p_values(correlation: Floats, images: Floats, skewness: Floats) -> Floats:
    """The chance of a correlation as high as this, or higher, when the values of one of both are permuted among the images.

    `skewness` is the product of both skewnesses. Under permutation the correlation of N images has known moments: its mean is 0, its
    variance 1 / (N - 1), and its third standardised moment the product times √(N - 1) / (N - 2). The distribution with these three moments
    is Pearson's of type III (Mielke & Berry 2007, section 2.3). NaN where the correlation is.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _tail(correlation * np.sqrt(images - 1), skewness * np.sqrt(images - 1) / (images - 2))


def normal_tail(z: Floats) -> Floats:
    """The share of the standard normal distribution at and above `z`; NaN for NaN."""
    result: Floats = torch.special.ndtr(torch.from_numpy(-np.asarray(z))).numpy()
    return result


def _log_choices(images: Floats, inside: Floats) -> Floats:
    """The logarithm of the number of ways to choose that many images."""
    total, chosen, others = (
        torch.lgamma(torch.from_numpy(np.asarray(count) + 1.0)).numpy() for count in (images, inside, images - inside)
    )
    choices: Floats = total - chosen - others
    return choices


def _tail(z: Floats, skewness: Floats) -> Floats:
    """The share of Pearson's type III, standardised and of that skewness, at and above `z`."""
    amount = np.maximum(np.abs(skewness), MIN_SKEWNESS)
    shape = 4 / amount**2
    point = np.maximum(np.where(skewness > 0, z, -z) + 2 / amount, 0) * 2 / amount
    shape_tensor, point_tensor = torch.from_numpy(np.asarray(shape)), torch.from_numpy(np.asarray(point))
    above = torch.special.gammaincc(shape_tensor, point_tensor).numpy()
    below = torch.special.gammainc(shape_tensor, point_tensor).numpy()
    normal = torch.special.ndtr(torch.from_numpy(-np.asarray(z))).numpy()
    skewed = np.where(skewness > 0, above, below)
    p = np.where(np.abs(skewness) < MIN_SKEWNESS, normal, skewed)
    result: Floats = np.where(np.isnan(z) | np.isnan(skewness), np.nan, p)
    return result


def false_discoveries_controlled(p_values: Floats, rate: float) -> NDArray[np.bool_]:
    """Which hypotheses are rejected so that at most that share of the rejected are true (Benjamini & Hochberg 1995). NaN never is."""
    rejected = np.zeros(len(p_values), dtype=bool)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    passing = np.flatnonzero(p_values[order] <= rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    if len(passing):
        rejected[order[: passing[-1] + 1]] = True
    return rejected
