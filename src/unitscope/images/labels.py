"""Labels as text: from whatever data sets, rows and files call one."""

import os
from bisect import bisect_right
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from math import isfinite
from typing import Any

import numpy as np

LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")
NO_LABEL = -1
"""What data sets give for an image that has no label."""


def label_text(said: Any, classes: Any = None) -> str | None:
    """A label as text: words as they are, whole numbers by the class of that number; None for targets of other kinds.

    An array of one value is that value.

    >>> label_text(1.0, ["cat", "dog"]), label_text(0.25), label_text(-1, ["cat", "dog"])
    ('dog', '0.25', None)
    """
    with suppress(Exception):  # a target may be anything
        if hasattr(said, "item"):
            said = said.item()  # of an array, which has one value or is no label
        if isinstance(said, Enum):
            said = said.value
        if isinstance(said, str):
            return written_label(said)
        if isinstance(said, float) and not isfinite(said):
            return None
        if isinstance(said, float) and said.is_integer():
            said = int(said)
        if isinstance(said, int) and (classes or not isinstance(said, bool)):
            return _class_name(said, classes)
        return str(said) if isinstance(said, (bool, float)) else None
    return None


def written_label(text: str) -> str | None:
    """A label that stands somewhere as text; None where that says that there is none."""
    said = text.strip()
    return None if said in ("", str(NO_LABEL)) else said


def first_label(said: Mapping[str, Any], columns: Iterable[str] = LABEL_COLUMNS) -> tuple[str, Any]:
    """The first of the columns that says something, and what; the empty name where none does."""
    return next(((name, said[name]) for name in columns if said.get(name) is not None), ("", None))


def decoded(content: bytes) -> str:
    """Text in UTF-8 or UTF-16, with a mark at its start or without; bytes that are neither are kept as the system keeps those of names."""
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:4]:  # no path or label begins so: ASCII in UTF-16 without a mark
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", "replace")
    return os.fsdecode(content.removeprefix(BOM_UTF8))


def _class_name(number: int, classes: Any) -> str | None:
    if number == NO_LABEL or (classes and number < 0):
        return None
    if isinstance(classes, Mapping):
        return words(classes.get(number, number))
    if not isinstance(classes, Sequence) or isinstance(classes, str) or number >= len(classes):
        return str(number)
    name = words(classes[number])
    return f"{name} ({number})" if _ambiguous(classes, name) else name


def words(name: Any) -> str:
    """A class's name; of several words for one thing, as torchvision's ImageNet has them, all.

    >>> words(("tench", "Tinca tinca"))
    'tench, Tinca tinca'
    """
    return ", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name)


_counts: dict[int, tuple[Any, Counter[str]]] = {}
"""How often each name is in the classes that were asked for last, which are kept so that nothing else has their number."""


def _ambiguous(classes: Sequence[Any], name: str) -> bool:
    """True where several classes have that name: of ImageNet's, two are called *crane*."""
    known = _counts.get(id(classes))
    if known is None or known[0] is not classes:
        known = (classes, Counter(map(words, classes)))
        _counts.clear()
        _counts[id(classes)] = known
    return known[1][name] > 1


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
        for _ in range(100):  # whoever holds itself
            yield dataset
            if _gives_as(dataset, "ConcatDataset"):
                child = bisect_right(dataset.cumulative_sizes, image)
                image -= dataset.cumulative_sizes[child - 1] if child else 0
                dataset = dataset.datasets[child]
            elif _gives_as(dataset, "Subset"):
                image, dataset = int(dataset.indices[image]), dataset.dataset
            else:
                return


def _gives_as(dataset: Any, name: str) -> bool:
    """True where the data set gives its items as torch's class of that name does, and makes nothing else of them."""
    gives = getattr(type(dataset), "__getitem__", None)
    known = "torch.utils.data.dataset", f"{name}.__getitem__"  # torch isn't imported here: whoever draws an atlas needs none
    return (getattr(gives, "__module__", ""), getattr(gives, "__qualname__", "")) == known
