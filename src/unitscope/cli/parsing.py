"""From the words after an option to what functions take: numbers and ranges, with spaces or commas between."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cyclopts import CoercionError, Token

from unitscope.errors import UnitscopeError
from unitscope.files import os_error_text

MAX_UNITS = 1_000_000
"""The longest range of units; a longer one is a slip of the finger, and its list would fill the memory."""

Number = TypeVar("Number", int, float)


def unit_numbers(annotation: Any, tokens: Sequence[Token]) -> list[int]:
    """Numbers of units, and ranges of them: `0-8 17`."""
    return [number for token in tokens for text in token.value.split(",") for number in _unit_range(text.strip(), token)]


def sizes_px(annotation: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    """One length, or height and width: `224`, `224 320`, `224x320`."""
    sizes = _numbers(int, tokens)
    if len(sizes) > 2:
        raise CoercionError(msg=f"it takes one number or two, not {len(sizes)}", token=tokens[0])
    return sizes


def channel_values(annotation: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """A number for each channel: `0.5 0.5 0.5`."""
    return _numbers(float, tokens)


def two_numbers(annotation: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """The two ends of a range: `0 4095`."""
    ends = _numbers(float, tokens)
    if len(ends) != 2:
        raise CoercionError(msg=f"it takes two numbers, not {len(ends)}", token=tokens[0])
    return ends


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the space around them and without empty ones at the end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = os_error_text(error) if isinstance(error, OSError) else "it isn't text in UTF-8"
        raise UnitscopeError(f"{str(path)!r} can't be read: {reason}") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def _unit_range(text: str, token: Token) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise CoercionError(msg=f"it takes numbers and ranges, as in 0-8 17, not {text!r}", token=token)
    start, stop = int(first), int(last or first) + 1
    if not start < stop <= start + MAX_UNITS:
        raise CoercionError(msg=f"it takes ranges from a lower to a higher number, as in 0-8, not {text!r}", token=token)
    return range(start, stop)


def _numbers(kind: Callable[[str], Number], tokens: Sequence[Token]) -> tuple[Number, ...]:
    numbers: list[Number] = []
    for token in tokens:
        try:
            numbers += [kind(text) for text in re.split("[,x]", token.value)]
        except ValueError:
            raise CoercionError(msg=f"it takes numbers, not {token.value!r}", token=token) from None
    return tuple(numbers)
