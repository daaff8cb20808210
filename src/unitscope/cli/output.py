"""What commands show: progress, tables, pictures that were written, and one line where something can't be done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unitscope.errors import UnitscopeError
from unitscope.files import atomic_write, check_writable


def stop(text: str, status: int) -> NoReturn:
    print(" ".join(text.split()), file=sys.stderr)
    raise SystemExit(status)


def print_table(table: Any) -> None:
    shown = Table(*table.column_names, box=None)
    for row in table.to_pylist():
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


@contextmanager
def progress(total: int | None, what: str = "scanning", each: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar with images per second and time left; nothing where nobody looks."""
    words, columns = TextColumn("{task.description}"), (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        words, *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[0].speed
            doing = "measuring effective fields" if progress.finished and what == "scanning" else what
            progress.update(task, rate=f"{speed:.1f} {each}/s" if speed else "", description=doing)

        yield advance


def save_picture(image: Any, path: Path) -> None:
    kind = picture_format(path)
    with atomic_write(path, f"the picture {str(path)!r}", UnitscopeError) as aside:
        try:
            image.save(aside, kind, **({"resolution": 200, "quality": 95} if kind == "PDF" else {}))
        except (ValueError, KeyError) as error:  # larger than the format can hold, or colours that it doesn't have
            raise UnitscopeError(
                f"the picture {str(path)!r} can't be written as {kind}: {error}; .png holds everything"
            ) from error
    print(f"drawn to {path}")


def picture_format(path: Path) -> str:
    """The format that a path's ending means. Raises `UnitscopeError` where there is none, or where nothing can be written there."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        raise UnitscopeError(
            f"the picture {str(path)!r} can't be written: {path.suffix!r} is no picture format; end it with .png or .pdf"
        )
    check_writable(path, f"the picture {str(path)!r}", UnitscopeError)
    return kind


def note_refused(trace: Any) -> None:
    from unitscope.session.opening import operators_without_rule

    if trace.unreadable:
        print(
            f"{len(trace.unreadable)} more can't be scanned: {trace.unreadable[0].name!r}: {trace.unreadable[0].reason}",
            file=sys.stderr,
        )
    if trace.unknown_operators:
        print(operators_without_rule(trace), file=sys.stderr)
