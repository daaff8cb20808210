"""name_units(): what each unit's response goes with best, a label, a node of a tree of classes or a text; or none."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.tables import NAMES, VISUAL_TUNING
from unitscope.errors import AtlasError, ImagesWarning, UnitscopeError
from unitscope.images.keys import HALVES, image_half
from unitscope.naming.class_tree import ClassTree, Concepts
from unitscope.naming.correlations import ChosenConcepts, LayerTuning, choose_concepts
from unitscope.naming.retrieval import average_precision, best_thresholds, f1_at
from unitscope.permutations import false_discoveries_controlled, membership_p_values
from unitscope.records import Layer

MIN_CONCEPT_IMAGES = 5
"""How many images of a half must belong to a concept, and how many must not."""
MIN_POSITIVES = 10
"""How many images of the sample's half b must belong to a concept for an average precision."""
MIN_CORRELATION = 0.2
"""A name goes with a unit's response at least so well: below, one sees nothing of it in the patches, however sure it is."""
RATE = 0.05
"""The share of names that may be false, unless told otherwise."""

Columns = dict[str, Any]


def name_units(
    atlas: Atlas,
    by: "Naming | ClassTree | str | os.PathLike[str] | None" = None,
    *,
    visual: bool = True,
    rate: float = RATE,
    on_units: Callable[[int], None] | None = None,
) -> pa.Table:
    """What every unit's response goes with best, as the table `names` of the atlas.

    A concept is a label, or a node of a tree with some of the labels below it: WordNet's nouns above ImageNet's classes, or those that `by`
    gives, a `ClassTree` or a CSV file of children and parents. For each unit the one is chosen whose membership correlates most with the response in half a of the
    images (Pearson's r over all labelled images); half b alone tests it, against responses permuted among images. A unit is named where
    the false discoveries among the names stay below `rate` (Benjamini & Hochberg 1995) and r is 0.2 or more; otherwise the name is null, and the
    figures are those of the concept that came nearest. A concept needs five images in each half, and as many outside it. Dead units have neither
    name nor figures: no image excites them, whatever their values below zero go with.

    Beside the name stand both correlations, the share of images in the concept, how many of the peaks are in it, and from the sample F1
    at the threshold that is best in half a, as half b has it, and half b's average precision where ten of its images are in the concept.

    Where `by` is a `TextNaming`, texts take the place of concepts, and how much alike an image and a text are that of membership; the images
    are those of the sample, and what needs members is null.

    Where the atlas has the table `visual_tuning`, a unit whose response an angle or a colour explains at least as well as the concept (the
    share of the variance, beside r² in half b) is called by that, and not by the concept; not with `visual` false.

    Raises `AtlasError` where the atlas has no tuning, and `UnitscopeError` for a tree or a rate that is none.
    """
    check_rate(rate)
    check_table_writable(NAMES, atlas)
    naming = by if isinstance(by, Naming) else ClassNaming.of(atlas, by)
    visual = visual and any(summary.name == VISUAL_TUNING.name and summary.problem is None for summary in atlas.tables())
    pieces = []
    for layer in atlas.layers:
        seen = _visual_columns(atlas, layer) if visual else _no_visual_columns(layer)
        columns = _without_units(naming.layer_columns(layer) | seen, atlas.units(layer.name)["dead"].to_numpy())
        pieces.append(_numbered(layer, columns))
        if on_units is not None:
            on_units(layer.units)
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    is_named = false_discoveries_controlled(columns["p_value"], rate) & (np.nan_to_num(columns["r_b"]) >= MIN_CORRELATION)
    table = _table(columns, is_named, naming)
    parameters = {"rate": rate, "visual_tuning": visual, **naming.parameters}
    return write_table(table, NAMES, atlas, parameters=parameters)


def check_rate(rate: float) -> None:
    """Raises `UnitscopeError` for what is no share of false names."""
    if not 0 < rate < 1:
        raise UnitscopeError(f"the rate of false names lies between 0 and 1, not {rate}")


def _no_visual_columns(layer: Layer) -> Columns:
    return {"description": np.full(layer.units, None), "explained": np.full(layer.units, np.nan)}


def _numbered(layer: Layer, columns: Columns) -> Columns:
    return {"layer": np.full(layer.units, layer.name, dtype=object), "unit": np.arange(layer.units), **columns}


def _without_units(columns: Columns, is_without: np.ndarray) -> Columns:
    """The columns where those units have no concept, no description and no figures; counts stay."""
    nothing: Columns = {"concept": -1, "description": None}
    nothing |= {name: np.nan for name, values in columns.items() if values.dtype.kind == "f"}
    return {name: np.where(is_without, nothing[name], values) if name in nothing else values for name, values in columns.items()}


def _visual_columns(atlas: Atlas, layer: Layer) -> Columns:
    """What each unit is tuned to in words, and how much of the response that explains."""
    units = atlas.units(layer.name, joined=(VISUAL_TUNING.name,))
    return {name: units[f"{VISUAL_TUNING.name}.{name}"].to_numpy() for name in ("description", "explained")}


@runtime_checkable
class Naming(Protocol):
    """A way to name units: the ids and the words of the concepts, and for each layer the columns of what each unit goes with best; `concept`
    there is the concept's row, -1 for none."""

    @property
    def kind(self) -> str: ...

    @property
    def nodes(self) -> Sequence[str]: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def parameters(self) -> dict[str, Any]: ...

    def layer_columns(self, layer: Layer) -> Columns: ...


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The images that the atlas mentions: number, half and label of each; the label as a column of the tuning, -1 for none."""

    numbers: np.ndarray
    halves: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, atlas: Atlas, labels: list[str]) -> "LabelledImages":
        images, columns = atlas.table("images"), {label: column for column, label in enumerate(labels)}
        return cls(
            images["image"].to_numpy(),
            np.array([image_half(key) for key in images["key"].to_pylist()]),
            np.array([columns.get(label, -1) for label in images["label"].to_pylist()]),
        )

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of the images with these numbers; the table is sorted by them."""
        return np.searchsorted(self.numbers, numbers)


@dataclass(frozen=True, slots=True)
class ClassNaming:
    """Names from the labels of the images, and the tree above them."""

    atlas: Atlas
    labels: list[str]
    concepts: Concepts
    images: LabelledImages
    parameters: dict[str, Any]
    kind: str = "class"

    @classmethod
    def of(cls, atlas: Atlas, tree: "ClassTree | str | os.PathLike[str] | None") -> "ClassNaming":
        """Raises `AtlasError` where the images have no labels, or responses weren't summed by label."""
        labels = atlas.table("labels")["label"].to_pylist()
        if not labels:
            raise AtlasError(
                f"the images of {str(atlas.folder)!r} have no labels to name units by; scan again with --labels FILE, or name by texts with "
                "--embedder open_clip:NAME/PRETRAINED"
            )
        if not atlas.row_count("tuning"):
            raise AtlasError(
                f"the atlas {str(atlas.folder)!r} has no tuning, since that was switched off or took too much memory; scan again without "
                "--no-tuning, or with fewer --layers"
            )
        opened = ClassTree.of_imagenet() if tree is None else tree if isinstance(tree, ClassTree) else ClassTree.read(Path(tree))
        concepts = opened.concepts(labels)
        if tree is not None and concepts.outside:
            warnings.warn(_outside_text(concepts, len(labels)), ImagesWarning, stacklevel=3)
        parameters = {
            "tree": "imagenet" if tree is None else "given",
            "concepts": len(concepts.nodes),
            "labels_outside_tree": len(concepts.outside),
            "exact": atlas.manifest["precision"] == "fp32",
        }
        return cls(atlas, labels, concepts, LabelledImages.of(atlas, labels), parameters)

    @property
    def nodes(self) -> Sequence[str]:
        return self.concepts.nodes

    @property
    def names(self) -> Sequence[str]:
        return self.concepts.names

    def layer_columns(self, layer: Layer) -> Columns:
        """The concept of each unit, with its figures."""
        tuning = LayerTuning.of(self.atlas, layer.name, self.labels)
        chosen = choose_concepts(tuning, self.concepts, MIN_CONCEPT_IMAGES)
        members = self.concepts.members[chosen.concept]
        members[chosen.concept < 0] = False
        total_inside = sum((half.images * members).sum(1) for half in (tuning.a, tuning.b))
        total = tuning.a.total_images + tuning.b.total_images
        peaks_inside, peaks = _peaks_inside(self.atlas, layer, members, self.images)
        return {
            "concept": chosen.concept,
            "r_a": chosen.r_a,
            "r_b": chosen.r_b,
            "images_b": chosen.images_b.astype(np.int64),
            "p_value": _p_values(chosen),
            "base_rate": np.where(chosen.concept >= 0, total_inside / np.maximum(total, 1), np.nan),
            "peaks_inside": peaks_inside,
            "peaks": peaks,
            **_sample_columns(self.atlas, layer, members, self.images),
        }


def _outside_text(concepts: Concepts, labels: int) -> str:
    return f"{len(concepts.outside)} of {labels} labels aren't in the tree, such as {concepts.outside[0]!r}; each is a concept of its own"


def _p_values(chosen: ChosenConcepts) -> np.ndarray:
    return membership_p_values(chosen.r_b, chosen.inside_b, chosen.images_b, chosen.skewness_b)


def _peaks_inside(atlas: Atlas, layer: Layer, members: np.ndarray, images: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    """How many of each unit's peaks are in images of its concept, and how many peaks there are in labelled images."""
    peaks = atlas.peaks(layer.name)
    unit, label = peaks["unit"].to_numpy(), images.labels[images.rows(peaks["image"].to_numpy())]
    inside = (label >= 0) & members[unit, label]
    return np.bincount(unit[inside], minlength=layer.units), np.bincount(unit[label >= 0], minlength=layer.units)


def _sample_columns(atlas: Atlas, layer: Layer, members: np.ndarray, images: LabelledImages) -> Columns:
    """F1 and average precision on the labelled images of the sample that are in half b; half a chose the concept, and the threshold."""
    sample = atlas.table("sample", layer.name, columns=("unit", "image", "value"))
    numbers = np.unique(sample["image"].to_numpy())
    rows = images.rows(numbers)
    values = np.full((layer.units, len(numbers)), np.nan)
    values[sample["unit"].to_numpy(), np.searchsorted(numbers, sample["image"].to_numpy())] = sample["value"].to_numpy()
    is_labelled = images.labels[rows] >= 0
    values, rows = values[:, is_labelled], rows[is_labelled]
    is_member, is_in_a = members[:, images.labels[rows]], images.halves[rows] == HALVES.index("a")
    thresholds = best_thresholds(values[:, is_in_a], is_member[:, is_in_a])
    values_b, is_member_b = values[:, ~is_in_a], is_member[:, ~is_in_a]
    positives = is_member_b.sum(1)
    return {
        "f1": f1_at(thresholds, values_b, is_member_b),
        "average_precision": np.where(positives >= MIN_POSITIVES, average_precision(values_b, is_member_b), np.nan),
        "sample_base_rate": positives / max(values_b.shape[1], 1),
    }


def _table(columns: Columns, is_named: np.ndarray, naming: Naming) -> pa.Table:
    """Where what is seen explains at least as much as the concept it is the name, or, where it has no words, there is none."""
    concept, description = columns.pop("concept"), columns.pop("description")
    explained = np.nan_to_num(columns["explained"].astype(np.float64))
    nodes, names = (np.array([*texts, None], dtype=object)[concept] for texts in (naming.nodes, naming.names))
    is_visual = (explained > 0) & (explained >= np.where(is_named, np.nan_to_num(columns["r_b"]) ** 2, 0))
    is_concept = is_named & ~is_visual
    words: list[str | None] = []
    kinds: list[str | None] = []
    for text, seen, is_named_so, is_seen in zip(names, description, is_concept, is_visual, strict=True):
        words.append(text if is_named_so else seen if is_seen else None)
        kinds.append(naming.kind if is_named_so else "visual" if is_seen and seen is not None else None)
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()} | {
        "name": pa.array(words, pa.string()),
        "kind": pa.array(kinds, pa.string()),
        "node": pa.array(nodes, pa.string(), mask=~is_concept),
        "nearest": pa.array(names, pa.string(), mask=concept < 0),
    }
    return pa.table({name: arrays.get(name, pa.nulls(len(concept))) for name in NAMES.schema.names})
