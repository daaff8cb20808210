"""Blocks that were drawn, kept on the disk beside an atlas that isn't packed: after a restart nobody waits for its images to be decoded again."""

import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, get_ident

LOG = logging.getLogger(__name__)
MAX_KEPT_BYTES = 512 << 20
"""Some 60,000 blocks. When they are full no more are kept; two servers of one atlas may keep twice as much."""
TAG = re.compile("[0-9a-f]{16}")
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


class KeptBlocks:
    """The blocks of one state of an atlas, which `tag` names, a file each: `FOLDER/TAG/LAYER NUMBER/UNIT.jpg`.

    Nothing that goes wrong with the disk is an error: what can't be read isn't there, and after the first block that can't be written no
    more are. Several servers may read and write the same blocks. May be asked from several threads.
    """

    def __init__(self, folder: Path, tag: str, layers: Sequence[str], max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._folder, self._tag, self._max_bytes = folder, tag, max_bytes
        self._layer_numbers = {layer: str(number) for number, layer in enumerate(layers)}
        self._units: dict[str, set[int]] = {}
        self._size_bytes: int | None = None
        self._is_writable, self._lock = True, Lock()

    def __contains__(self, unit: tuple[str, int]) -> bool:
        """True for a block that is kept, as far as that was known when its layer was first asked for."""
        layer, number = unit
        with self._lock:
            if layer not in self._units:
                self._units[layer] = self._units_of(layer)
            return number in self._units[layer]

    def get(self, unit: tuple[str, int]) -> bytes | None:
        """A block as JPEG; None where it isn't kept, or its file is damaged."""
        if unit not in self:
            return None
        try:
            content = self._path(unit).read_bytes()
        except OSError:
            content = b""
        if content.startswith(JPEG_START) and content.endswith(JPEG_END):
            return content
        with self._lock:
            self._units[unit[0]].discard(unit[1])
        return None

    def keep(self, unit: tuple[str, int], content: bytes) -> None:
        """Keep a block, if there is room for it."""
        if unit in self or not self._reserve(len(content)):
            return
        path = self._path(unit)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            os.replace(unfinished, path)  # not flushed to the disk first: a file that a power cut damages is drawn again
        except OSError:
            LOG.debug("no more blocks are kept in %s", self._folder, exc_info=True)
            self._is_writable = False
            with suppress(OSError):
                unfinished.unlink()
            return
        with self._lock:
            self._units[unit[0]].add(unit[1])

    def _reserve(self, byte_count: int) -> bool:
        with self._lock:
            if self._is_writable and self._size_bytes is None:
                self._is_writable = self._begin()
            if not self._is_writable or (self._size_bytes or 0) + byte_count > self._max_bytes:
                return False
            self._size_bytes = (self._size_bytes or 0) + byte_count
            return True

    def _begin(self) -> bool:
        """Make the folder, remove what was kept of other states of the atlas, and count what there is. False where blocks can't be kept."""
        try:
            if self._folder.is_symlink():  # whoever made it may have meant another folder to be emptied
                return False
            (self._folder / self._tag).mkdir(parents=True, exist_ok=True)
            for other in self._folder.iterdir():
                if TAG.fullmatch(other.name) and other.name != self._tag and not other.is_symlink():
                    shutil.rmtree(other, ignore_errors=True)
            self._size_bytes = sum(path.stat().st_size for path in (self._folder / self._tag).rglob("*") if path.is_file())
        except OSError:
            LOG.debug("blocks can't be kept in %s", self._folder, exc_info=True)
            return False
        return True

    def _units_of(self, layer: str) -> set[int]:
        if self._folder.is_symlink():
            return set()
        try:
            names = os.listdir(self._folder / self._tag / self._layer_numbers[layer])
        except OSError:
            return set()
        return {int(name[:-4]) for name in names if re.fullmatch(r"\d{1,9}\.jpg", name)}

    def _path(self, unit: tuple[str, int]) -> Path:
        return self._folder / self._tag / self._layer_numbers[unit[0]] / f"{unit[1]}.jpg"


def folder_of_blocks(atlas: Path) -> Path:
    """Where the blocks of the atlas in that folder are kept: beside it or, where nothing can be written there, in the user's cache folder."""
    path = atlas.absolute()
    beside = path.with_name(f".{path.name}.blocks")
    if os.access(beside if beside.exists() else path.parent, os.W_OK | os.X_OK):
        return beside
    return Path.home() / ".cache" / "unitscope" / path.as_posix().strip("/").replace("/", "_")[-200:]
