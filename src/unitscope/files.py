"""Where files are, and one way to write a file or a folder: beside its place, flushed to the disk, then moved there in one step."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unitscope.errors import AtlasError, UnitscopeError, first_line


@contextmanager
def atomic_write(place: Path, what: str, error: type[UnitscopeError] = AtlasError) -> Iterator[Path]:
    """A path that doesn't exist yet, to write a file to or to make a folder at; after the block that stands at `place`, whole.

    Where the block fails nothing is left of it, and what stood at `place` stays. What a process that was killed has left of the same
    place is removed first. Folders above are made. Raises `error`, which begins with `what`, where the system doesn't let us.
    """
    aside = place.with_name(f".{place.name}.{os.getpid()}.unfinished")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(place)
        yield aside
        fsync_path(aside)
        os.replace(aside, place)
        fsync_path(place.absolute().parent)
    except OSError as problem:
        raise error(f"{what} can't be written: {os_error_text(problem)}") from problem
    finally:
        _remove(aside)


def check_writable(place: Path, what: str, error: type[UnitscopeError] = AtlasError) -> None:
    """Raises `error` where nothing could be written to `place`, as far as can be told without writing: before hours of work."""
    if place.is_dir():
        raise error(f"{what} can't be written: it is a folder")
    existing = next(path for path in place.absolute().parents if path.exists())
    if not existing.is_dir():
        raise error(f"{what} can't be written: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise error(f"{what} can't be written: {str(existing)!r} can't be written to")


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The path from the root, without `.` and, where the system comes to the same place without them, without `..`.

    Behind a link to a folder it doesn't: `..` is the folder above the one that the link leads to.
    """
    whole = os.path.join(os.getcwd(), os.fspath(path))
    folded = os.path.normpath(whole)
    if ".." not in whole.split(os.sep):
        return folded
    folder, name = os.path.split(whole)
    real = os.path.realpath(folder)
    return folded if os.path.realpath(os.path.dirname(folded)) == real else os.path.join(real, name)


def os_error_text(error: OSError) -> str:
    """What the system says, without the name of a file, which the caller knows better."""
    return error.strerror or first_line(error)


def fsync_path(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear_leftovers(place: Path) -> None:
    """Remove what dead processes began to write for that place; a process that is alive may still be at it."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.unfinished"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not _alive(int(number)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _alive(process: int) -> bool:
    """True where a process of that number runs, other than this one, or where that can't be told."""
    if os.name == "nt":
        return True  # there a signal ends the process, whatever its number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return process != os.getpid()
