"""How a layer's units go with concepts: Pearson's correlation of responses with membership, from mean responses by label.

A concept's membership is 1 in images whose label belongs to it and 0 in others, so the sum of responses over its members is all that
a correlation needs beside the moments of the responses. It is exact: every image counts, not a sample of them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.images.keys import HALVES
from unitscope.naming.class_tree import Concepts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HalfTuning:
    """The labelled images of one half: sums of responses and numbers of images, of shape (unit, label), and each unit's moments.

    Units whose values aren't all finite may have fewer images, or, where that leaves the moments without meaning, NaN as deviation.
    """

    sums: Floats
    images: Floats
    std: Floats
    skewness: Floats

    def correlations(self, members: NDArray[np.bool_]) -> Floats:
        """Of each concept with each unit, of shape (concept, unit); NaN where a unit or a membership doesn't vary."""
        weights = members.astype(np.float64)
        sums = weights @ self.sums.T
        inside = self._inside(weights)
        return self._correlations(sums, inside)

    def correlations_with_own(self, members: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Of each unit with a concept of its own, and how many of its images are members; `members` has the shape (unit, label)."""
        inside = (self.images * members).sum(1)
        return self._correlations((self.sums * members).sum(1), inside), inside

    def members_of(self, members: NDArray[np.bool_]) -> Floats:
        """How many images of each concept gave each unit a value, of shape (concept, unit)."""
        return self._inside(members.astype(np.float64))

    @property
    def total_images(self) -> Floats:
        """How many labelled images gave each unit a value."""
        total: Floats = self.images.sum(1)
        return total

    def _inside(self, weights: Floats) -> Floats:
        first = self.images[:1]
        if (self.images == first).all():  # as it is where all values are finite
            return np.broadcast_to(weights @ first.T, (len(weights), len(self.images)))
        inside: Floats = weights @ self.images.T
        return inside

    def _correlations(self, sums: Floats, inside: Floats) -> Floats:
        total = self.total_images
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, share = self.sums.sum(1) / total, inside / total
            correlations: Floats = (sums / total - share * mean) / (self.std * np.sqrt(share * (1 - share)))
        correlations[~np.isfinite(correlations)] = np.nan
        return correlations


@dataclass(frozen=True, slots=True)
class LayerTuning:
    """A layer's tuning in both halves; labels are in the order of the table."""

    a: HalfTuning
    b: HalfTuning

    @classmethod
    def of(cls, atlas: Atlas, layer: str, labels: list[str]) -> "LayerTuning":
        """Raises `AtlasError` where the tables of the atlas contradict each other."""
        units = atlas.layer(layer).units
        tuning, moments = atlas.table("tuning", layer), atlas.table("halves", layer)
        if len(tuning) != units * len(labels) or len(moments) != units * len(HALVES):
            raise atlas.broken(
                f"its tuning of layer {layer!r} has {len(tuning):,} rows for {units:,} units and {len(labels):,} labels"
            )
        return cls(*(_half(tuning, moments, half, units) for half in HALVES))


def _half(tuning: pa.Table, moments: pa.Table, half: str, units: int) -> HalfTuning:
    images = tuning[f"images_{half}"].to_numpy().reshape(units, -1).astype(np.float64)
    means = tuning[f"mean_{half}"].fill_null(0).to_numpy().reshape(units, -1)
    row = HALVES.index(half)
    std, skewness, counted = (moments[name].to_numpy().reshape(units, -1)[:, row] for name in ("std", "skewness", "images"))
    agrees = counted == images.sum(1)  # else some are infinite, or too large for the sums by label
    return HalfTuning(means * images, images, np.where(agrees, std, np.nan), np.where(np.isfinite(skewness), skewness, 0))


@dataclass(frozen=True, slots=True)
class ChosenConcepts:
    """The concept of each unit that correlates most in half a, and what half b says of it.

    `concept` is its row in `Concepts`, -1 where there is none with enough images. Correlations are NaN there.
    """

    concept: Ints
    r_a: Floats
    r_b: Floats
    inside_b: Floats
    images_b: Floats
    skewness_b: Floats


def choose_concepts(tuning: LayerTuning, concepts: Concepts, minimum: int) -> ChosenConcepts:
    """For each unit the concept that correlates most in half a, of those with `minimum` images inside and outside in each half."""
    r = tuning.a.correlations(concepts.members)
    for half in (tuning.a, tuning.b):
        inside = half.members_of(concepts.members)
        r[(inside < minimum) | (half.total_images - inside < minimum)] = np.nan
    has_any: NDArray[np.bool_] = np.atleast_1d(~np.isnan(r).all(0)) if len(r) else np.zeros(len(tuning.a.sums), dtype=bool)
    concept = np.full(len(has_any), -1, dtype=np.int64)
    concept[has_any] = np.nanargmax(r[:, has_any], axis=0)
    r_a = np.where(has_any, r[concept, np.arange(len(concept))] if len(r) else np.nan, np.nan)
    own = concepts.members[concept] if len(concepts.members) else np.zeros((len(concept), tuning.b.images.shape[1]), dtype=bool)
    r_b, inside_b = tuning.b.correlations_with_own(own)
    return ChosenConcepts(concept, r_a, np.where(has_any, r_b, np.nan), inside_b, tuning.b.total_images, tuning.b.skewness)
