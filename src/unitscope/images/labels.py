"""Labels as text: from whatever data sets, rows and files give for one."""

import os
import re
from bisect import bisect_right
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")
"""What data sets call their column of labels, the usual name first."""
NO_LABEL = -1
"""What data sets give for an image that has no label."""
WORDNET_NAME = re.compile(r"(n\d{8})_")
"""How names of ImageNet's files begin: with the WordNet id of the class."""
MAX_WRAPPERS = 100
"""How many data sets inside each other are looked through: more than anybody nests, fewer than one that holds itself."""


class ClassNames:
    """The names of a data set's classes by number; `classes` is a sequence, or a mapping from numbers.

    >>> names = ClassNames(["crane", "dog", "crane", ("tench", "Tinca tinca")])
    >>> [names.name(number) for number in (1, 0, 3, 7, -1)]
    ['dog', 'crane (0)', 'tench, Tinca tinca', '7', None]
    """

    def __init__(self, classes: Any) -> None:
        self.classes = classes

    def name(self, number: int) -> str | None:
        """The name of a class, with its number where several classes have that name: of ImageNet's, two are called *crane*.

        A class without a name is its number; None where the number says that there is no label.
        """
        if number < 0:
            return None
        if isinstance(self.classes, Mapping):
            return words(self.classes.get(number, number))
        if not isinstance(self.classes, Sequence) or isinstance(self.classes, str) or number >= len(self.classes):
            return str(number)
        name = words(self.classes[number])
        return f"{name} ({number})" if self._counts[name] > 1 else name

    @cached_property
    def _counts(self) -> Counter[str]:
        """How many classes have each name."""
        return Counter(map(words, self.classes))


def label_text(value: Any, classes: ClassNames | None = None) -> str | None:
    """A label as text: words as they are, whole numbers by the class of that number; None for targets of other kinds.

    An array of one value is that value.

    >>> label_text(1.0, ClassNames(["cat", "dog"])), label_text(0.25), label_text(-1)
    ('dog', '0.25', None)
    """
    with suppress(Exception):  # a target may be anything
        if hasattr(value, "item"):
            value = value.item()  # of an array, which has one value or is no label
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str):
            return written_label(value)
        if isinstance(value, bool) and classes is None:
            return str(value)
        if isinstance(value, (int, float)):
            return _label_of_number(value, classes)
    return None


def _label_of_number(value: float, classes: ClassNames | None) -> str | None:
    if isinstance(value, float):
        if not isfinite(value):
            return None
        if not value.is_integer():
            return str(value)
        value = int(value)
    if classes is not None:
        return classes.name(value)
    return None if value == NO_LABEL else str(value)


def words(name: Any) -> str:
    """A class's name; of several words for one thing, as torchvision's ImageNet has them, all.

    >>> words(("tench", "Tinca tinca"))
    'tench, Tinca tinca'
    """
    return ", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name)


def written_label(text: str) -> str | None:
    """A label that was written as text; None where that means that there is none."""
    label = text.strip()
    return None if label in ("", str(NO_LABEL)) else label


def wordnet_label(name: str) -> str | None:
    """The WordNet id that a file's name begins with, as ImageNet's do; None where it doesn't.

    >>> wordnet_label("train/n02084071_10026.JPEG"), wordnet_label("n02084071.jpg"), wordnet_label("n1_a.jpg")
    ('n02084071', None, None)
    """
    match = WORDNET_NAME.match(name.replace("\\", "/").rpartition("/")[2])
    return match[1] if match else None


def first_label(row: Mapping[str, Any], columns: Iterable[str] = LABEL_COLUMNS) -> tuple[str, Any]:
    """The first of the columns that isn't empty, and its value; the empty name where all are."""
    return next(((name, row[name]) for name in columns if row.get(name) is not None), ("", None))


def decoded(content: bytes) -> str:
    """Text in UTF-8 or UTF-16, with a byte order mark or without; other bytes are kept as Python keeps those of file names."""
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:4]:  # no path or label begins so: ASCII in UTF-16 without a mark
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", "replace")
    return os.fsdecode(content.removeprefix(BOM_UTF8))


def classes_of(dataset: Any, image: int) -> Any:
    """The names of the classes of a data set or, where it is a part or a chain of others, of the one that the image is from.

    None where a `target_transform` makes other numbers of those that the classes have.
    """
    for origin in origins(dataset, image):
        if getattr(origin, "target_transform", None) is not None:
            return None
        classes = getattr(origin, "classes", None)
        if isinstance(classes, np.ndarray):
            classes = classes.tolist()
        if isinstance(classes, (list, tuple, Mapping)) and classes:
            return classes
    return None


def origins(dataset: Any, image: int) -> Iterator[Any]:
    """The data set, and those that it has the image from: what `Subset`, `random_split` and `ConcatDataset` of torch lead to.

    What another wrapper makes of an item, its labels included, nobody knows.
    """
    with suppress(Exception):
        for _ in range(MAX_WRAPPERS):
            yield dataset
            if _gives_items_as(dataset, "ConcatDataset"):
                child = bisect_right(dataset.cumulative_sizes, image)
                image -= dataset.cumulative_sizes[child - 1] if child else 0
                dataset = dataset.datasets[child]
            elif _gives_items_as(dataset, "Subset"):
                image, dataset = int(dataset.indices[image]), dataset.dataset
            else:
                return


def _gives_items_as(dataset: Any, class_name: str) -> bool:
    """True where the data set gives its items as torch's class of that name does, and makes nothing else of them."""
    method = getattr(type(dataset), "__getitem__", None)
    torchs = (
        "torch.utils.data.dataset",
        f"{class_name}.__getitem__",
    )  # torch isn't imported here: whoever draws an atlas needs none
    return (getattr(method, "__module__", ""), getattr(method, "__qualname__", "")) == torchs
