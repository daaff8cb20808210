"""What commands show: progress, tables, pictures that were written, and one line where something can't be done."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unitscope.errors import UnitscopeError
from unitscope.files import atomic_write, check_writable

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

PIPE_COLUMNS = 160
"""How wide a table may be where its reader is a program, which then finds each row on one line."""


def print_error(text: str) -> None:
    """Print a text on stderr, as one line."""
    print(" ".join(text.split()), file=sys.stderr)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """While the block lasts, everything that the package logs is shown on stderr, with the tracebacks of errors and of their causes."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("unitscope")
    quiet_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(quiet_level)
        logger.removeHandler(handler)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, no wider than the terminal or, where there is none, than 160 columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


def print_table(table: "pa.Table", as_json: bool = False) -> None:
    """Print an Arrow table, with three decimals; as JSON a list with an object for each row, with all decimals and null for NaN."""
    rows: list[Mapping[str, Any]] = table.to_pylist()
    if as_json:
        print_json([{name: None if value != value else value for name, value in row.items()} for row in rows])
    else:
        print_rows(table.column_names, [[_cell_text(value) for value in row.values()] for row in rows])


def print_drawn(path: Path, as_json: bool = False) -> None:
    """Say where a picture was drawn to; on stderr where a program reads what is printed."""
    print(f"drawn to {path}", file=sys.stderr if as_json else sys.stdout)


@contextmanager
def progress_bar(total: int | None, task: str = "scanning", counted: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar with images per second and time left, and the function that moves it on; nothing is shown where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task_id = bar.add_task(task, total=total, rate="")

        def advance(count: int) -> None:
            bar.advance(task_id, count)
            speed = bar.tasks[0].speed
            description = "measuring effective fields" if bar.finished and task == "scanning" else task
            bar.update(task_id, rate=f"{speed:.1f} {counted}/s" if speed else "", description=description)

        yield advance


def save_picture(image: "Image.Image", path: Path) -> None:
    """Write a picture in the format that the path's ending means. Raises `UnitscopeError` where that can't be done."""
    file_format = check_picture_path(path)
    with atomic_write(path, f"the picture {str(path)!r}", UnitscopeError) as unfinished_path:
        try:
            image.save(unfinished_path, file_format, **({"resolution": 200, "quality": 95} if file_format == "PDF" else {}))
        except (ValueError, KeyError) as error:  # larger than the format can hold, or colours that it doesn't have
            raise UnitscopeError(
                f"the picture {str(path)!r} can't be written as {file_format}: {error}; .png holds everything"
            ) from error


def check_picture_path(path: Path) -> str:
    """The format that a path's ending means. Raises `UnitscopeError` where it means none, or where nothing can be written there."""
    from PIL import Image

    Image.init()
    file_format = Image.registered_extensions().get(path.suffix.lower(), "")
    if file_format not in Image.SAVE:
        raise UnitscopeError(
            f"the picture {str(path)!r} can't be written: {path.suffix!r} is no picture format; end it with .png or .pdf"
        )
    check_writable(path, f"the picture {str(path)!r}", UnitscopeError)
    return file_format


def _cell_text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
