"""Lists of image files: text with one path a line, and a label after it where there is one."""

import os
from collections.abc import Sequence
from pathlib import Path

from unitscope.errors import ImagesError
from unitscope.images.labels import decoded, written_label
from unitscope.images.names import is_picture_name

LOOKED_AT = 100
"""How many paths are looked for to tell which folder they start from."""

Entry = tuple[str, str | None]
"""A path as it is written, and its label."""


def read_list(file: str | os.PathLike[str]) -> tuple[list[str], list[str | None], Path]:
    """The paths in a list, their labels, and the folder that relative ones start from.

    Text is UTF-8 or UTF-16. A path may stand in quotes; a label follows after a space, a tab or a comma. Relative paths start from the
    working folder or, where more of them are found there, from the list's own. Raises `ImagesError`.
    """
    try:
        text = decoded(Path(file).read_bytes())
    except OSError as error:
        raise ImagesError(f"the list {os.fspath(file)!r} can't be read: {error.strerror or error}") from error
    if "\0" in text:
        raise ImagesError(f"the list {os.fspath(file)!r} is no text; it needs one path a line")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    entries = [_entry(line) for line in lines]
    if not entries:
        raise ImagesError(f"the list {os.fspath(file)!r} is empty; it needs one path a line")
    paths, labels = [path for path, _ in entries], [label for _, label in entries]
    return paths, labels, _folder(paths, Path(file).absolute().parent)


def _entry(line: str) -> Entry:
    """Path and label of a line; a path may have spaces and commas, so its ending says where it ends."""
    if line[0] in "\"'" and (end := line.find(line[0], 1)) > 0:
        return line[1:end], _label(line[end + 1 :])
    if is_picture_name(line):
        return line, None
    splits = [line.split("\t", 1), line.rsplit(None, 1), line.rsplit(",", 1), line.split(",", 1), line.split(None, 1)]
    return next(((s[0].strip(), _label(s[1])) for s in splits if len(s) == 2 and is_picture_name(s[0].strip())), (line, None))


def _label(text: str) -> str | None:
    return written_label(text.strip().lstrip(",").strip().strip("\"'"))


def _folder(paths: Sequence[str], own: Path) -> Path:
    few = [path for path in paths if not os.path.isabs(path)][:LOOKED_AT]
    found = [sum(os.path.exists(folder / path) for path in few) for folder in (Path.cwd(), own)]  # Path.exists may raise
    return own if found[1] > found[0] else Path.cwd()
