"""What the outputs of a network that classifies images are called: by position, since two classes may have the same name."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitscope.errors import NetworkError
from unitscope.files import os_error_text
from unitscope.images import valid_text
from unitscope.images.labels import decoded, words
from unitscope.wordnet import imagenet_classes, imagenet_nouns


@dataclass(frozen=True, slots=True)
class OutputClass:
    """The class of one output. `node` is its WordNet id, None where nobody knows it."""

    name: str
    node: str | None = None


def as_classes(classes: Any) -> tuple[OutputClass, ...] | None:
    """Classes from a list of names, or from the path of a text file with one a line; None for None. Raises `NetworkError`."""
    if classes is None:
        return None
    if isinstance(classes, (str, os.PathLike)):
        return _read_classes(Path(classes))
    if not isinstance(classes, Iterable):
        raise NetworkError(f"classes are the path of a file, or a list of names, not a {type(classes).__name__}")
    names = [valid_text(words(name)) for name in classes]
    if not names:
        raise NetworkError("the list of classes is empty; give one name for each of the network's outputs, in their order")
    return _with_nodes(names)


def imagenet_outputs(names: Sequence[str] | None = None) -> tuple[OutputClass, ...]:
    """ImageNet's classes, called so or by the first of WordNet's words."""
    nouns = imagenet_classes()
    return tuple(OutputClass(name, noun.node) for name, noun in zip(names or [noun.word for noun in nouns], nouns, strict=True))


def _read_classes(file: Path) -> tuple[OutputClass, ...]:
    try:
        lines = decoded(file.read_bytes()).splitlines()
    except OSError as error:
        raise NetworkError(f"the classes {str(file)!r} can't be read: {os_error_text(error)}") from error
    names = [valid_text(line.strip()) for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise NetworkError(f"the classes {str(file)!r} need one name a line, in the order of the network's outputs")
    return _with_nodes(names)


def _with_nodes(names: Sequence[str]) -> tuple[OutputClass, ...]:
    """A name may be a WordNet id: then the class is called by its word."""
    nouns = imagenet_nouns()
    return tuple(OutputClass(nouns[name].word, name) if name in nouns else OutputClass(name) for name in names)
