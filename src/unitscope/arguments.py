"""Checks of the arguments of public functions: model strings, whole numbers, layer patterns, unit numbers."""

import logging
from collections.abc import Iterable
from operator import index
from typing import Any

from unitscope.errors import AtlasError, LayerNotFound, UnitscopeError

log = logging.getLogger(__name__)

MODEL_FORMS = (
    "torchvision:NAME, timm:NAME, transformers:NAME_OR_FOLDER, open_clip:NAME/PRETRAINED, demo:efficientnet-lite0, "
    "PACKAGE.MODULE:FACTORY or PATH.py:FACTORY"
)
"""What a model string may be, for people."""
MAX_QUOTED_LENGTH = 60
"""The longest quotation of a value, so that an error message stays one line."""


def whole_number(name: str, value: Any, minimum: int | None = 1, maximum: int | None = None) -> int:
    """The argument's value as an `int`, from any type of whole number.

    Raises `UnitscopeError` for other types, and for a value out of bounds.

    >>> whole_number("k", 9), whole_number("workers", 0, minimum=0)
    (9, 0)
    """
    number = _integer(value)
    if number is None:
        raise UnitscopeError(
            f"{name} must be a whole number{'' if minimum is None else f', at least {minimum}'}, not {shortened(value)}"
        )
    if minimum is not None and number < minimum:
        raise UnitscopeError(f"{name} must be at least {minimum}, not {shortened(number)}")
    if maximum is not None and number > maximum:
        raise UnitscopeError(f"{name} must be at most {maximum:,}, not {shortened(number)}")
    return number


def layer_patterns(layers: Any) -> list[str] | None:
    """Layer names or globs as a list, from a list or a single one; None for None. Raises `LayerNotFound` for what is no text.

    >>> layer_patterns("relu*"), layer_patterns(("conv1", "fc"))
    (['relu*'], ['conv1', 'fc'])
    """
    if layers is None or isinstance(layers, str):
        return None if layers is None else [layers]
    patterns = list(layers) if isinstance(layers, Iterable) else [layers]
    invalid = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if invalid:
        raise LayerNotFound(f"layers must be names of layers, or globs such as 'layer1.*', not {shortened(invalid[0])}")
    return patterns


def unit_numbers(units: Any) -> list[int] | None:
    """Unit numbers as a list, from a list, a range or an array; None for all units.

    Raises `AtlasError` for what is no list of whole numbers. `Layer.unit_numbers` also checks that the layer has these units.

    >>> unit_numbers(range(3)), unit_numbers((0, 4))
    ([0, 1, 2], [0, 4])
    """
    if units is None:
        return None
    if not isinstance(units, Iterable) or isinstance(units, (str, bytes)) or getattr(units, "ndim", 1) != 1:
        raise AtlasError(f"units must be a list of numbers, such as [0, 1], not {shortened(units)}")
    numbers = []
    for unit in units:
        number = _integer(unit)
        if number is None:
            raise AtlasError(f"units must be whole numbers, such as [0, 1], not {shortened(unit)}")
        numbers.append(number)
    if not numbers:
        raise AtlasError("units is an empty list; name some, or leave it away for all")
    return numbers


def shortened(value: Any) -> str:
    """The value's `repr` in one short line, to be quoted in an error message.

    >>> shortened("3"), shortened("x" * 100)
    ("'3'", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx …")
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:
        log.debug("the repr of a %s failed", type(value).__name__, exc_info=True)
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_QUOTED_LENGTH else f"{text[:MAX_QUOTED_LENGTH]} …"


def _integer(value: Any) -> int | None:
    """The value as an `int`, None for what is no whole number; a `bool` is none."""
    try:
        return None if isinstance(value, bool) else index(value)
    except TypeError:
        return None
