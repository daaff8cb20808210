"""What of a network's output effects are on: class scores, or what a function of the user's makes of it; and which class an image has."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, NetworkError, first_line
from unitscope.images.labels import words
from unitscope.networks import load_function
from unitscope.networks.classes import as_classes
from unitscope.networks.outputs import class_scores, describe_output

CLOSE_NAMES = 5
"""How many names are offered for one that no class has."""


@dataclass(frozen=True, slots=True)
class Output:
    """The scores in what a network returns: its class scores or, with a `function`, what that gives, of shape (image,) or (image, score)."""

    function: Callable[[Any], Any] | None = None
    name: str = ""

    @classmethod
    def of(cls, output: "Callable[[Any], Any] | str | None") -> "Output":
        """From a function, `PATH.py:FUNCTION`, `PACKAGE.MODULE:FUNCTION`, or None for class scores."""
        if output is None:
            return cls()
        if isinstance(output, str):
            return cls(load_function(output), output)
        return cls(output, getattr(output, "__qualname__", type(output).__name__))

    def scores(self, returned: Any) -> Float[Tensor, "image score"]:
        """Raises `NetworkError` where there are none."""
        if self.function is None:
            scores = class_scores(returned)
            if scores is None:
                raise NetworkError(
                    f"the network gives no class scores of shape (image, class), but {describe_output(returned)}; say what of it counts with "
                    "--output PATH.py:FUNCTION, a function from what the network returns to a number an image"
                )
            return scores.float()
        try:
            scores = self.function(returned)
        except Exception as error:
            raise NetworkError(f"the output {self.name!r} fails: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(scores, Tensor) or scores.dim() not in (1, 2) or not scores.is_floating_point():
            raise NetworkError(
                f"the output {self.name!r} must give a tensor of shape (image,) or (image, score), not {describe_output(scores)}"
            )
        return scores.float() if scores.dim() == 2 else scores.float()[:, None]


def probabilities(scores: Tensor) -> Tensor:
    """The softmax over scores; a single score has none, and counts as certain."""
    return scores.softmax(1) if scores.shape[1] > 1 else torch.ones_like(scores)


def close_names(name: str, known: Sequence[str]) -> list[str]:
    """The names that somebody may have meant: those that have the text in them, the shortest first, then those spelled most like it.

    >>> close_names("Shark", ["tiger shark", "bark", "great white shark", "stork"])
    ['tiger shark', 'great white shark', 'bark', 'stork']
    """
    asked, folded = name.casefold(), {other.casefold(): other for other in reversed(known)}
    containing = sorted((other for other in folded if len(asked) > 1 and asked in other), key=lambda other: (len(other), other))
    close = [*containing[:CLOSE_NAMES], *get_close_matches(asked, folded, n=CLOSE_NAMES, cutoff=0.5)]
    return [folded[other] for other in list(dict.fromkeys(close))[:CLOSE_NAMES]]


@dataclass(frozen=True)
class Classes:
    """What the outputs are called, by position; no names where nobody knows them."""

    names: tuple[str, ...] = ()
    nodes: tuple[str | None, ...] = field(default=())

    @classmethod
    def of(cls, atlas: Atlas, classes: Any = None) -> "Classes":
        """Those that are given, as a list or a file, or those of the atlas."""
        given = as_classes(classes)
        if given is not None:
            return cls(tuple(output.name for output in given), tuple(output.node for output in given))
        rows = sorted(atlas.table("classes").to_pylist(), key=lambda row: row["class"])
        return cls(tuple(row["name"] for row in rows), tuple(row["node"] for row in rows))

    def name(self, position: int) -> str:
        """What an output is called, by its number where nobody knows."""
        return self.names[position] if 0 <= position < len(self.names) else f"output {position}"

    def check_count(self, outputs: int) -> None:
        """Raises `AtlasError` where there are names, and not as many as outputs."""
        if self.names and len(self.names) != outputs:
            raise AtlasError(
                f"{len(self.names):,} classes are known by name, but the network has {outputs:,} outputs; give one name for each, in their "
                "order, with --classes FILE"
            )

    def find(self, name: str, outputs: int) -> int:
        """The position of a class by its name, its WordNet id or its number. Raises `AtlasError` where there is none, or are several."""
        position = self.position_of(name, outputs)
        if position is None:
            close = ", ".join(map(repr, close_names(name, self.names)))
            same = [str(number) for number, known in enumerate(self.names) if known.casefold() == name.casefold()]
            if same:
                raise AtlasError(f"{len(same)} classes are called {name!r}: {', '.join(same)}; give a number")
            raise AtlasError(
                f"the network has no class {name!r} among its {outputs:,} outputs{f'. Close: {close}' if close else ''}"
            )
        return position

    def position_of(self, label: str, outputs: int) -> int | None:
        """The class that a label means: by WordNet id, by a name that no other class has, or by number; None where it means none."""
        position = self._positions.get(label.casefold().replace("_", " "))
        if position is None and label.isdecimal() and int(label) < outputs:
            return int(label)
        return position

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        names = [words(name).casefold().replace("_", " ") for name in self.names]
        counts = Counter(names)
        positions = {name: number for number, name in enumerate(names) if counts[name] == 1}
        positions |= {f"{name} ({number})": number for number, name in enumerate(names) if counts[name] > 1}
        return positions | {node: number for number, node in enumerate(self.nodes) if node is not None}

    def check_labels(self, labels: Sequence[str], outputs: int) -> None:
        """Raises `AtlasError` where some labels mean no class."""
        unknown = sorted({label for label in labels if self.position_of(label, outputs) is None})
        if unknown:
            known = (
                f"the outputs are {', '.join(map(repr, self.names[:3]))} and others"
                if self.names
                else "its outputs have no names"
            )
            raise AtlasError(
                f"{len(unknown):,} of {len(set(labels)):,} labels are none of the network's {outputs:,} classes, such as "
                f"{', '.join(map(repr, unknown[:3]))}; {known}; name them in their order with --classes FILE, or take the network's own "
                "predictions with --by prediction"
            )
