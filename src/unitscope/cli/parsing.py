"""From the words of a command line to what functions take."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from unitscope.errors import UnitscopeError
from unitscope.files import os_error_text

MOST_UNITS = 1_000_000
LISTS = {"--layers", "--units", "--mean", "--std", "--crop", "--resize", "--value-range"}


def gathered(app: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """`--layers A B` as `--layers A --layers B`, and `--units 1 2` as `--units 1,2`, since an option takes one word.

    Words are an option's once the command has its own; before that an option takes one.
    """
    group = typer.main.get_command(app)
    command = getattr(group, "commands", {}).get(arguments[0] if arguments else "")
    if command is None:
        return list(arguments)
    valued = {name for p in command.params if p.param_type_name == "option" and not p.is_flag for name in p.opts}
    missing = sum(p.param_type_name == "argument" for p in command.params)
    many = any(p.nargs == -1 for p in command.params)  # an argument of many words takes those that are nobody's
    result, option, words = [arguments[0]], "", iter(arguments[1:])
    for word in words:
        if word.startswith("--"):
            option = word
            result += [word, *islice(words, 1)] if word in valued else [word]
        elif option in LISTS and not missing:
            result += [option, word] if option == "--layers" else [f"{result.pop()},{word}"]
        else:
            missing, option = max(0, missing - 1), "" if many else option
            result.append(word)
    return result


def workers_of(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def runner_of(name: str, address: str | None, cpus_per_worker: int, gpus_per_worker: float) -> Any:
    if name == "here":
        return None
    if name != "ray":
        raise typer.BadParameter(f"--runner is here or ray, not {name!r}")
    from unitscope.runners.ray import RayRunner

    return RayRunner(address, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)


def overrides_of(
    resize: str | None = None,
    crop: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    channels: int | None = None,
    value_range: str | None = None,
) -> Any:
    from unitscope.networks import PreprocessingOverrides

    sizes = numbers_of(resize, int, "--resize"), numbers_of(crop, int, "--crop")
    for option, size in zip(("--resize", "--crop"), sizes, strict=True):
        if size is not None and len(size) > 2:
            raise typer.BadParameter(f"{option} takes one number or two, not {len(size)}")
    resized = None if sizes[0] is None else sizes[0][0] if len(sizes[0]) == 1 else (sizes[0][0], sizes[0][1])
    cropped = None if sizes[1] is None else (sizes[1][0], sizes[1][-1])
    means, stds = numbers_of(mean, float, "--mean"), numbers_of(std, float, "--std")
    values = numbers_of(value_range, float, "--value-range")
    if values is not None and len(values) != 2:
        raise typer.BadParameter(f"--value-range takes two numbers, not {len(values)}")
    return PreprocessingOverrides(
        resized, cropped, tuple(means) if means else None, tuple(stds) if stds else None, channels,
        None if values is None else (values[0], values[1]),
    )  # fmt: skip


def lines_of(path: Path) -> list[str]:
    """The lines of a text file without the space around them and without empty ones at the end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = os_error_text(error) if isinstance(error, OSError) else "it isn't text in UTF-8"
        raise UnitscopeError(f"{str(path)!r} can't be read: {reason}") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def units_of(text: str | None) -> list[int] | None:
    """Numbers of units, and ranges of them: `0-8,17`."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"--units takes numbers and ranges, as in 0-8 17, not {part!r}")
        start, stop = int(first), int(last or first)
        if stop < start or stop - start > MOST_UNITS:
            raise typer.BadParameter(f"--units takes ranges from a lower to a higher number, as in 0-8, not {part!r}")
        found += range(start, stop + 1)
    return found


def numbers_of(text: str | None, kind: Callable[[str], Any], option: str) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers with commas between, not {text!r}") from None
