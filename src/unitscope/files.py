"""One way to write a file or a folder: beside its path, flushed to the disk, then renamed in one step. And what paths mean."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unitscope.errors import AtlasError, UnitscopeError, first_line


@contextmanager
def atomic_write(path: Path, what: str, error: type[UnitscopeError] = AtlasError) -> Iterator[Path]:
    """A temporary path, to write a file to or to make a folder at; after the block it is renamed to `path`, whole and on the disk.

    Where the block fails nothing is left of it, and what stood at `path` stays. What a killed process has left of the same path is
    removed first. Parent folders are made. Raises `error`, with a text that begins with `what`, where the system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        _fsync_tree(temporary)
        os.replace(temporary, path)
        _fsync(path.absolute().parent)
    except OSError as cause:
        raise error(f"{what} can't be written: {os_error_text(cause)}") from cause
    finally:
        _remove(temporary)


def check_writable(path: Path, what: str, error: type[UnitscopeError] = AtlasError) -> None:
    """Raises `error` where no file could be written to `path`, as far as can be told without writing: before hours of work."""
    if path.is_dir():
        raise error(f"{what} can't be written: it is a folder")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise error(f"{what} can't be written: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise error(f"{what} can't be written: {str(existing)!r} can't be written to")


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The absolute path, without `.`, and without `..` as the operating system resolves it.

    Behind a link to a folder, `..` is the folder above the one that the link leads to, not the one above the link.
    """
    joined = os.path.join(os.getcwd(), os.fspath(path))
    normalised = os.path.normpath(joined)
    if ".." not in joined.split(os.sep):
        return normalised
    folder, name = os.path.split(joined)
    real_folder = os.path.realpath(folder)
    if os.path.realpath(os.path.dirname(normalised)) == real_folder:
        return normalised
    return os.path.join(real_folder, name)


def os_error_text(error: OSError) -> str:
    """The system's message without the name of the file, which the caller knows better."""
    return error.strerror or first_line(error)


def _fsync_tree(path: Path) -> None:
    """Have the operating system put a file, or a folder with all that is in it, on the disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    if not path.is_dir():
        _fsync(path)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove what dead processes began to write for that path; a process that is alive may still be writing."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not is_alive(int(process)):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def is_alive(process: int) -> bool:
    """True where another process of that number runs, or where that can't be told."""
    if os.name == "nt":
        return True  # there a signal ends the process, whatever its number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return process != os.getpid()
