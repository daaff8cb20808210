"""Lists of image files: text with one path a line, and a label after it where there is one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unitscope.errors import ImagesError
from unitscope.images.labels import decoded, written_label
from unitscope.images.names import is_picture_name

PROBED_PATHS = 100
"""How many paths are looked for to tell which folder they start from: some may be missing, and each costs a system call or two."""


@dataclass(frozen=True, slots=True)
class ListedImages:
    """What a list says: paths as they are written, their labels, and the folder that relative paths start from."""

    paths: list[str]
    labels: list[str | None]
    folder: Path


def read_list(file: str | os.PathLike[str]) -> ListedImages:
    """The images in a list. Text is UTF-8 or UTF-16. A path may stand in quotes; a label follows after a space, a tab or a comma.

    Relative paths start from the working folder or, where more of them exist there, from the list's own. Raises `ImagesError`.
    """
    try:
        text = decoded(Path(file).read_bytes())
    except OSError as error:
        raise ImagesError(f"the list {os.fspath(file)!r} can't be read: {error.strerror or error}") from error
    if "\0" in text:
        raise ImagesError(f"the list {os.fspath(file)!r} is no text; it needs one path a line")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        raise ImagesError(f"the list {os.fspath(file)!r} is empty; it needs one path a line")
    entries = list(map(_path_and_label, lines))
    paths = [path for path, _ in entries]
    return ListedImages(paths, [label for _, label in entries], _start_folder(paths, Path(file).absolute().parent))


def _path_and_label(line: str) -> tuple[str, str | None]:
    """The two parts of a line; a path may have spaces and commas, so its ending tells where it ends."""
    if line[0] in "\"'" and (end := line.find(line[0], 1)) > 0:
        return line[1:end], _label(line[end + 1 :])
    if is_picture_name(line):
        return line, None
    splits = [line.split("\t", 1), line.rsplit(None, 1), line.rsplit(",", 1), line.split(",", 1), line.split(None, 1)]
    for path, label in ((parts[0].strip(), parts[1]) for parts in splits if len(parts) == 2):
        if is_picture_name(path):
            return path, _label(label)
    return line, None


def _label(text: str) -> str | None:
    return written_label(text.strip().lstrip(",").strip().strip("\"'"))


def _start_folder(paths: Sequence[str], folder_of_list: Path) -> Path:
    relative = [path for path in paths if not os.path.isabs(path)][:PROBED_PATHS]
    existing_here, existing_beside_list = (
        sum(os.path.exists(folder / path) for path in relative) for folder in (Path.cwd(), folder_of_list)
    )  # Path.exists may raise
    return folder_of_list if existing_beside_list > existing_here else Path.cwd()
