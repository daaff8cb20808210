"""What callers give at the public border, checked by hand: whole numbers, patterns of layers, numbers of units."""

from collections.abc import Iterable
from operator import index
from typing import Any

from unitscope.errors import AtlasError, LayerNotFound, UnitscopeError

MOST_SHOWN = 60


def whole_number(name: str, value: Any, least: int | None = 1, most: int | None = None) -> int:
    """The value as an `int`, whatever type of whole number it is. Raises `UnitscopeError` for others, and beyond the bounds.

    >>> whole_number("k", 9), whole_number("workers", 0, least=0)
    (9, 0)
    """
    number = _integer(value)
    if number is None:
        raise UnitscopeError(
            f"{name} must be a whole number{'' if least is None else f', at least {least}'}, not {shortened(value)}"
        )
    if least is not None and number < least:
        raise UnitscopeError(f"{name} must be at least {least}, not {shortened(number)}")
    if most is not None and number > most:
        raise UnitscopeError(f"{name} must be at most {most:,}, not {shortened(number)}")
    return number


def layer_patterns(layers: Any) -> list[str] | None:
    """Names or globs of layers as a list, of which one may be given alone; None for none. Raises `LayerNotFound` for what is no text.

    >>> layer_patterns("relu*"), layer_patterns(("conv1", "fc"))
    (['relu*'], ['conv1', 'fc'])
    """
    if layers is None or isinstance(layers, str):
        return None if layers is None else [layers]
    patterns = list(layers) if isinstance(layers, Iterable) else [layers]
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if wrong:
        raise LayerNotFound(f"layers must be names of layers, or globs such as 'layer1.*', not {shortened(wrong[0])}")
    return patterns


def unit_numbers(units: Any) -> list[int] | None:
    """Numbers of units as a list: from a list, a range or an array; None for all. Raises `AtlasError` for what is none.

    >>> unit_numbers(range(3)), unit_numbers((0, 4))
    ([0, 1, 2], [0, 4])
    """
    if units is None:
        return None
    if not isinstance(units, Iterable) or isinstance(units, (str, bytes)) or getattr(units, "ndim", 1) != 1:
        raise AtlasError(f"units must be a list of numbers, such as [0, 1], not {shortened(units)}")
    given = list(units)
    numbers = [number for unit in given if (number := _integer(unit)) is not None]
    if len(numbers) < len(given):
        wrong = next(unit for unit in given if _integer(unit) is None)
        raise AtlasError(f"units must be whole numbers, such as [0, 1], not {shortened(wrong)}")
    if not given:
        raise AtlasError("units is an empty list; name some, or leave it away for all")
    return numbers


def shortened(value: Any) -> str:
    """A value as an error quotes it: in one short line.

    >>> shortened("3"), shortened("x" * 100)
    ("'3'", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx …")
    """
    try:
        said = " ".join(repr(value).split())
    except Exception:
        said = f"a {type(value).__name__}"
    return said if len(said) <= MOST_SHOWN else f"{said[:MOST_SHOWN]} …"


def _integer(value: Any) -> int | None:
    """None for what is no whole number; `True` is none."""
    try:
        return None if isinstance(value, bool) else index(value)
    except TypeError:
        return None
