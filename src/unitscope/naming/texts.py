"""Names from texts: how alike the images of the sample and each text are, by a model that joins both."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.embedding import TextEmbedder, open_text_embedder
from unitscope.embedding.patches import image_batches
from unitscope.errors import NetworkError, UnitscopeError
from unitscope.images.keys import HALVES, image_half
from unitscope.permutations import permutation_p_values
from unitscope.records import Layer

Floats = NDArray[np.float64]

MIN_HALF_IMAGES = 20
"""How many images of the sample each half must have."""


@dataclass(frozen=True, slots=True)
class TextNaming:
    """The images of the sample, the half of each, and how alike it and each text are, of shape (image, text)."""

    atlas: Atlas
    texts: Sequence[str]
    images: NDArray[np.int64]
    halves: NDArray[np.int64]
    similarities: Floats
    parameters: dict[str, Any]
    kind: str = "text"

    @classmethod
    def of(cls, atlas: Atlas, texts: Sequence[str] | None, embedder: "TextEmbedder | str") -> "TextNaming":
        """Raises `UnitscopeError` where a text says nothing, the embedder is missing or is the scanned network, or images are too few."""
        opened = open_text_embedder(embedder)
        if opened.weights_hash == atlas.manifest["network"]["hash"]:
            raise UnitscopeError(f"the embedder {opened.name!r} is the network that was scanned; give another --embedder")
        chosen = vocabulary() if texts is None else list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if not chosen:
            raise UnitscopeError("there are no texts to name units by; give a file with one a line")
        numbers = np.unique(atlas.table("sample", columns=["image"])["image"].to_numpy())
        halves = np.array([image_half(atlas.key(image)) for image in numbers.tolist()], dtype=np.int64)
        if min(np.bincount(halves, minlength=2)) < MIN_HALF_IMAGES:
            raise UnitscopeError(
                f"the sample of {str(atlas.folder)!r} has {len(numbers)} images, too few to name by; each half must have {MIN_HALF_IMAGES}: scan with "
                "--sample 200 or more"
            )
        pictures = [opened.embed_images(batch) for batch in image_batches(atlas, numbers.tolist(), opened.size)]
        similarities = (_normed(torch.cat(pictures), opened) @ _normed(opened.embed_texts(chosen), opened).T).double().numpy()
        parameters = {"embedder": opened.name, "texts": len(chosen), "exact": False}
        return cls(atlas, chosen, numbers, halves, similarities, parameters)

    @property
    def nodes(self) -> Sequence[str]:
        return self.texts

    @property
    def names(self) -> Sequence[str]:
        return self.texts

    def layer_columns(self, layer: Layer) -> dict[str, Any]:
        """The text of each unit that correlates most in half a, with its figures."""
        table = self.atlas.table("sample", layer.name, columns=("unit", "image", "value"))
        responses = np.full((layer.units, len(self.images)), np.nan)
        column = np.searchsorted(self.images, table["image"].to_numpy())
        responses[table["unit"].to_numpy(), column] = table["value"].to_numpy()
        half_a, half_b = (self.halves == number for number in range(len(HALVES)))
        r = correlations(responses[:, half_a], self.similarities[half_a])
        has_any = np.isfinite(r).any(1)
        chosen = np.where(has_any, np.nan_to_num(r, nan=-np.inf).argmax(1), -1)
        r_b = np.full(layer.units, np.nan)
        p_value = r_b.copy()
        for text in np.unique(chosen[has_any]):
            units = np.flatnonzero(chosen == text)
            values, similarity = responses[np.ix_(units, half_b)], self.similarities[half_b, text]
            r_b[units] = correlations(values, similarity[:, None])[:, 0]
            is_value = np.isfinite(values)
            own = np.where(is_value, similarity, np.nan)
            p_value[units] = permutation_p_values(
                r_b[units], is_value.sum(1).astype(np.float64), _skewness(values) * _skewness(own)
            )
        return {
            "concept": chosen,
            "r_a": np.where(has_any, r[np.arange(layer.units), chosen], np.nan),
            "r_b": r_b,
            "images_b": np.isfinite(responses[:, half_b]).sum(1),
            "p_value": p_value,
        }


def correlations(responses: Floats, similarities: Floats) -> Floats:
    """Pearson's r of each unit's finite responses with each column of similarities, of shape (unit, column); NaN where either doesn't vary."""
    is_value = np.isfinite(responses).astype(np.float64)
    count = np.maximum(is_value.sum(1, keepdims=True), 1)
    similarities = similarities - similarities.mean(0)
    centred = np.where(is_value > 0, responses, 0)
    centred = (centred - centred.sum(1, keepdims=True) / count) * is_value
    means = is_value @ similarities / count
    variances = np.maximum(is_value @ similarities**2 / count - means**2, 0)
    deviations = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Floats = centred @ similarities / count / (deviations * np.sqrt(variances))
    r[~np.isfinite(r)] = np.nan
    return r


def _skewness(values: Floats) -> Floats:
    """Of each row, without what isn't finite; 0 where all are equal."""
    is_value = np.isfinite(values)
    count = np.maximum(is_value.sum(1, keepdims=True), 1)
    filled = np.where(is_value, values, 0)
    centred = np.where(is_value, filled - filled.sum(1, keepdims=True) / count, 0)
    second, third = ((centred**power).sum(1) / count[:, 0] for power in (2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(second > 0, third / second**1.5, 0)


def _normed(vectors: torch.Tensor, embedder: TextEmbedder) -> torch.Tensor:
    if not torch.isfinite(vectors).all():
        raise NetworkError(f"the embedder {embedder.name!r} gives NaN or infinite numbers")
    return torch.nn.functional.normalize(vectors)


def vocabulary() -> list[str]:
    """What units are named by where no texts are given: nouns of what can be seen, colours, textures, shapes."""
    return (files("unitscope.wordnet") / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
