"""Globs as paths: of this machine's files, or behind a URL where its file system can list them."""

import glob
import os

from fsspec.core import url_to_fs

from unitscope.errors import ImagesError

WEB = ("http://", "https://")


def is_url(path: str) -> bool:
    return "://" in path


def is_glob(path: str) -> bool:
    """True where a path stands for many. A file of exactly that name is itself, and on the web `?` begins a query."""
    if path.startswith(WEB):
        return "*" in path
    return glob.has_magic(path) and not os.path.exists(path)


def matching_paths(pattern: str) -> list[str]:
    """What a glob matches, files and folders, sorted. Raises `ImagesError` where that can't be listed, or where nothing matches."""
    try:
        paths = _matching_urls(pattern) if is_url(pattern) else glob.glob(pattern, recursive=True)
    except Exception as error:
        raise ImagesError(f"the files {pattern!r} can't be listed: {type(error).__name__}: {error}") from error
    if not paths:
        raise ImagesError(f"there are no files {pattern!r}")
    return sorted(paths)


def _matching_urls(pattern: str) -> list[str]:
    file_system, path = url_to_fs(pattern)
    return [file_system.unstrip_protocol(match) for match in file_system.glob(path)]
