"""What lies below a folder: files, in order, and what is passed over."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unitscope.images.protocol import valid_text

IS_LINK_BACK = "is a link back to a folder that it lies in"
IS_ATLAS = "is a folder that holds an atlas"


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The paths of all files from the folder, sorted, and the folders that were passed over, with reasons."""

    paths: Sequence[str]
    passed_over: Mapping[str, str]


def list_folder(folder: str | os.PathLike[str]) -> FolderListing:
    """All files below a folder. Hidden ones, whose names begin with a dot, are left out.

    Folders that hold an atlas, and links back to a folder on the way, are passed over. A folder that can't be read counts as a file,
    so that it is skipped with its reason.
    """
    paths, passed_over = [], {}
    for path, reason in _walk(os.fspath(folder)):
        if reason:
            passed_over[valid_text(path)] = reason
        else:
            paths.append(path)
    return FolderListing(sorted(paths), dict(sorted(passed_over.items())))


def _walk(top: str) -> Iterator[tuple[str, str]]:
    """The path of every file from `top`, and of every folder that is passed over, with the reason, which is empty for files.

    Folders wait in a list, since they may lie deeper than Python calls itself.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, parent_ids = waiting.pop()
        path, folder = prefix.rstrip("/"), os.path.join(top, prefix)
        try:
            status = os.stat(folder)
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError:
            yield path, ""
            continue
        folder_id = (status.st_dev, status.st_ino)
        if folder_id in parent_ids:
            yield path, IS_LINK_BACK
        elif prefix and any(entry.name == "atlas.json" and _is_manifest(entry.path) for entry in entries):
            yield path, IS_ATLAS
        else:
            waiting += [(f"{prefix}{entry.name}/", parent_ids | {folder_id}) for entry in entries if _is_folder(entry)]
            yield from ((prefix + entry.name, "") for entry in entries if not _is_folder(entry))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_manifest(path: str) -> bool:
    """True for the manifest of an atlas, of whatever format."""
    try:
        manifest = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and type(manifest.get("format")) is int
