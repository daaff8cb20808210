"""What units do in images that are taken for another class, and which of them may be shortcuts."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unitscope.atlas.tables import MISTAKES, SHORTCUTS
from unitscope.images.keys import key_hash
from unitscope.layers import TracedLayer
from unitscope.permutations import false_discoveries_controlled, membership_p_values, normal_tail

MIN_IMAGES = 5
"""A class has candidates only where so many images are rightly taken for it, and so many wrongly."""
MAX_CONFUSIONS = 200
"""Of so many confusions, the most frequent ones, units are kept."""
MIN_CONFUSED = 2
UNITS_PER_LAYER = 5
MIN_RESPONSE_R = 0.2
"""From which correlation with the class on a unit counts as one that responds to it, as for names."""
RATE = 0.05
"""The share of candidates that may be false, by permuted labels."""
BY_MISTAKES, OFF_OBJECT = "mistakes", "off object"
HASH_RANGE = 2.0**63

Floats = NDArray[np.floating]
Counts = Mapping[tuple[int, int], int]
"""How many images of each label are taken for each class."""


@dataclass(frozen=True, slots=True)
class ObjectEffects:
    """What lies on and off an image's object: the highest that each unit passes on; how far it raises the score in cells where it passes on more
    than on average; and how much of that lies off the object, and off it if it stood elsewhere, twice, of shape (3, unit)."""

    highest: Floats
    raising: Floats
    off_object: Floats


@dataclass(frozen=True, slots=True)
class ImageEffects:
    """What the second pass finds in an image: the effects of the units of all layers, one after the other.

    They are effects on the score of `class_`, which is that of the label, -1 as `label_class` without one, or the predicted one; where the image
    is taken for another class, `on_predicted` are those on that class's score. `objects` is None where its object isn't known.
    """

    image: int
    key: str
    class_: int
    label_class: int
    predicted: int
    effects: Floats
    on_predicted: Floats | None = None
    objects: ObjectEffects | None = None


@dataclass
class MistakeSums:
    """Sums of effects over images by what they are taken for. `counts` are those of the first pass, by which images are dealt out in the control."""

    counts: Counts
    sums: dict[str, Floats] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, found: ImageEffects) -> None:
        """Take in an image."""
        if found.objects is not None:
            self._add_objects(found.class_, found.effects, found.objects)
        if found.label_class < 0:
            return
        label, predicted = found.label_class, found.predicted
        on_predicted = found.effects if found.on_predicted is None else found.on_predicted
        if predicted == label and predicted in self._compared:
            self._add(f"right {predicted}", on_predicted)
        if (label, predicted) in self._confusions:
            self._add(f"label {label} {predicted}", found.effects)
            self._add(f"predicted {label} {predicted}", on_predicted)
        if predicted in self._candidates:
            exact = on_predicted.astype(np.float64)
            if predicted != label:
                self._add(f"wrong {predicted}", exact)
            self._add(f"square {predicted}", exact**2)
            self._add(f"cube {predicted}", exact**3)
            self._deal_out(found.key, predicted, exact)

    def _add_objects(self, class_: int, effects: Floats, found: ObjectEffects) -> None:
        own, other, third = found.off_object.astype(np.float64)
        highest = found.highest.astype(np.float64)
        of_image = {
            "effects": effects, "highest": highest, "highest square": highest**2, "raising": found.raising, "off": own,
            "off difference": own - other, "off difference square": (own - other) ** 2,
            "off control": other - third, "off control square": (other - third) ** 2,
        }  # fmt: skip
        for name, values in of_image.items():
            self._add(f"{name} {class_}", values)

    def _deal_out(self, key: str, predicted: int, effects: Floats) -> None:
        """The control: as many images as are wrong count as such, drawn at random from all that are taken for the class."""
        seen, chosen = (self.images.get(f"{name} {predicted}", 0) for name in ("dealt", "control"))
        wrong, total = self._wrong_and_all(predicted)
        self.images[f"dealt {predicted}"] = seen + 1
        if key_hash(f"control {key}") / HASH_RANGE * (total - seen) < wrong - chosen:
            self._add(f"control {predicted}", effects)

    def _add(self, name: str, values: Floats) -> None:
        if name not in self.sums:
            self.sums[name], self.images[name] = np.zeros(len(values)), 0
        self.sums[name] += values
        self.images[name] += 1

    def _wrong_and_all(self, predicted: int) -> tuple[int, int]:
        of_class = [(label, count) for (label, taken_for), count in self.counts.items() if taken_for == predicted and label >= 0]
        return sum(count for label, count in of_class if label != predicted), sum(count for _, count in of_class)

    @cached_property
    def _candidates(self) -> set[int]:
        """The classes with enough images that are rightly taken for them, and enough wrongly."""
        found = set()
        for predicted in {taken_for for _, taken_for in self.counts}:
            wrong, total = self._wrong_and_all(predicted)
            if min(wrong, total - wrong) >= MIN_IMAGES:
                found.add(predicted)
        return found

    @cached_property
    def _confusions(self) -> set[tuple[int, int]]:
        wrong = [(-count, cell) for cell, count in self.counts.items() if 0 <= cell[0] != cell[1] and count >= MIN_CONFUSED]
        return {cell for _, cell in sorted(wrong)[:MAX_CONFUSIONS]}

    @cached_property
    def _compared(self) -> set[int]:
        """The classes whose right images others are compared with."""
        return self._candidates | {position for cell in self._confusions for position in cell}

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────

    def mistakes(self, layers: Sequence[TracedLayer], class_layers: Collection[str]) -> pa.Table:
        """The table `mistakes`: in each confusion, the units of each layer that speak most for the wrong class and least for the right one,
        compared with images that are taken for what they are. Units that are the classes say nothing of it."""
        rows: list[dict[str, Any]] = []
        for label, predicted in sorted(self._confusions):
            on_label, on_predicted = (self._mean(f"{name} {label} {predicted}") for name in ("label", "predicted"))
            label_right, predicted_right = self._mean(f"right {label}"), self._mean(f"right {predicted}")
            if on_label is None or on_predicted is None or label_right is None or predicted_right is None:
                continue
            difference = on_predicted - predicted_right - (on_label - label_right)
            for layer, units in _slices(layers):
                of_layer = difference[units]
                if layer in class_layers:
                    continue
                for unit in np.argsort(-of_layer, kind="stable")[:UNITS_PER_LAYER].tolist():
                    index = units.start + unit
                    rows.append(
                        {
                            "label_class": label, "predicted": predicted, "layer": layer, "unit": unit, "difference": of_layer[unit],
                            "on_predicted": on_predicted[index], "on_predicted_right": predicted_right[index],
                            "on_label": on_label[index], "on_label_right": label_right[index],
                            "images": self.images[f"label {label} {predicted}"],
                        }
                    )  # fmt: skip
        return pa.Table.from_pylist(rows, schema=MISTAKES.schema)

    def shortcuts(self, layers: Sequence[TracedLayer], class_layers: Collection[str]) -> pa.Table:
        """The table `shortcuts`: candidates of every class, with what the same procedure gives where labels, or objects, are dealt out at random."""
        found = (*self._candidate_rows(BY_MISTAKES, layers), *self._candidate_rows(OFF_OBJECT, layers))
        rows = [row for row in found if row["layer"] not in class_layers]
        return pa.Table.from_pylist(rows, schema=SHORTCUTS.schema)

    def _candidate_rows(self, evidence: str, layers: Sequence[TracedLayer]) -> Iterator[dict[str, Any]]:
        by_class = self._mistake_evidence() if evidence == BY_MISTAKES else self._object_evidence()
        if not by_class:
            return
        classes = sorted(by_class)
        is_candidate = _chosen(
            np.stack([by_class[c]["p_value"] for c in classes]), np.stack([by_class[c]["effect"] for c in classes])
        )
        is_control = _chosen(
            np.stack([by_class[c]["control_p_value"] for c in classes]), np.stack([by_class[c]["effect"] for c in classes])
        )
        for row, class_ in enumerate(classes):
            found = by_class[class_]
            by_chance = int(is_control[row].sum())
            for layer, units in _slices(layers):
                for unit in np.flatnonzero(is_candidate[row, units]).tolist():
                    index = units.start + unit
                    yield {
                        "class": class_, "layer": layer, "unit": unit, "evidence": evidence, "images": found["images"], "by_chance": by_chance,
                        **{name: float(found[name][index]) for name in ("effect", "effect_right", "off_share", "r", "p_value") if name in found},
                    }  # fmt: skip

    def _mistake_evidence(self) -> dict[int, dict[str, Any]]:
        """For each class, how effects on its score go with being wrong, over all images that are taken for it."""
        evidence = {}
        for class_ in sorted(self._candidates):
            right, wrong, control = (self.sums.get(f"{name} {class_}") for name in ("right", "wrong", "control"))
            if right is None or wrong is None or control is None:
                continue
            wrong_images, all_images = self.images[f"wrong {class_}"], self.images[f"square {class_}"]
            total = right + wrong
            mean = total / all_images
            variance = np.maximum(self.sums[f"square {class_}"] / all_images - mean**2, 0)
            third = self.sums[f"cube {class_}"] / all_images - 3 * mean * self.sums[f"square {class_}"] / all_images + 2 * mean**3
            with np.errstate(invalid="ignore", divide="ignore"):
                skewness = third / variance**1.5
                share = wrong_images / all_images
                scale = np.sqrt(share / (1 - share)) / np.sqrt(variance)
                r, by_chance = ((of_some / wrong_images - mean) * scale for of_some in (wrong, control))
            counts = np.full(len(r), float(wrong_images)), np.full(len(r), float(all_images))
            evidence[class_] = {
                "effect": wrong / wrong_images, "effect_right": right / (all_images - wrong_images), "r": r, "images": all_images,
                "p_value": membership_p_values(r, *counts, skewness), "control_p_value": membership_p_values(by_chance, *counts, skewness),
            }  # fmt: skip
        return evidence

    def _object_evidence(self) -> dict[int, dict[str, Any]]:
        """For each class, how much more of what raises it lies off the objects of its images than if these stood anywhere; of units that respond
        to the class more than to others, since what is the same in all images is no shortcut to one class."""
        evidence = {}
        classes = [int(name.rpartition(" ")[2]) for name in self.sums if name.startswith("raising ")]
        for class_ in classes:
            images = self.images[f"raising {class_}"]
            r = self._response_correlation(class_, classes)
            if images < 2 * MIN_IMAGES or r is None:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                share = self.sums[f"off {class_}"] / self.sums[f"raising {class_}"]
            effect = np.where(r >= MIN_RESPONSE_R, self.sums[f"effects {class_}"] / images, 0.0)
            evidence[class_] = {
                "effect": effect, "off_share": share, "r": r, "images": images,
                "p_value": self._tail_of_mean("off difference", class_), "control_p_value": self._tail_of_mean("off control", class_),
            }  # fmt: skip
        return evidence

    def _response_correlation(self, class_: int, classes: Sequence[int]) -> Floats | None:
        """Pearson's r of the highest that units pass on and membership in the class; None where all images are of one class."""
        inside, total = (sum(self.images[f"highest {c}"] for c in some) for some in ([class_], classes))
        if inside == total:
            return None
        mean = sum((self.sums[f"highest {c}"] for c in classes), np.zeros(1)) / total
        variance = sum((self.sums[f"highest square {c}"] for c in classes), np.zeros(1)) / total - mean**2
        share = inside / total
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (self.sums[f"highest {class_}"] / inside - mean) * np.sqrt(share / (1 - share)) / np.sqrt(np.maximum(variance, 0))
        found: Floats = np.nan_to_num(r)
        return found

    def _tail_of_mean(self, name: str, class_: int) -> Floats:
        """The chance of a mean as high as this where the values have mean zero, by the normal distribution."""
        images = self.images[f"{name} {class_}"]
        mean = self.sums[f"{name} {class_}"] / images
        variance = np.maximum(self.sums[f"{name} square {class_}"] / images - mean**2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(variance > 0, mean / np.sqrt(variance / (images - 1)), np.nan)
        return normal_tail(z)

    def _mean(self, name: str) -> Floats | None:
        total = self.sums.get(name)
        return None if total is None else total / self.images[name]

    # ── saved and restored ───────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        names = sorted(self.sums)
        arrays = {"mistakes": np.stack([self.sums[name] for name in names])} if names else {}
        return arrays | {"plain": {"names": names, "images": self.images}}

    def restore(self, state: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
        self.sums = {name: state["mistakes"][row] for row, name in enumerate(plain["names"])}
        self.images = dict(plain["images"])


def _slices(layers: Sequence[TracedLayer]) -> Iterator[tuple[str, slice]]:
    """Each layer's name, and where its units are among those of all layers."""
    start = 0
    for traced in layers:
        yield traced.name, slice(start, start := start + traced.layer.units)


def _chosen(p_values: Floats, effects: Floats) -> NDArray[np.bool_]:
    """The units that raise their class and whose evidence holds, at a rate over all classes."""
    tested = np.where(effects > 0, p_values, np.nan)
    return false_discoveries_controlled(tested.ravel(), RATE).reshape(tested.shape)
