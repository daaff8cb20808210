"""What a format of archives must do, and what it gives: `tar` and `parquet` implement it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Stream = Any
"""An open file to read, of whatever kind the file system gives."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """One image as it lies in an archive: its name there, its bytes or None where there are none, its label.

    `reason` says why it can't be read, if it can't. A `leftover` is no image at all, and its reason says why.
    """

    name: str
    content: bytes | None
    label: str | None = None
    reason: str = ""
    leftover: bool = False


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """The same without its bytes; `location` is where the format finds them."""

    name: str
    label: str | None
    location: tuple[int, int] = (0, 0)
    reason: str = ""
    leftover: bool = False


@runtime_checkable
class ArchiveFormat(Protocol):
    """How images lie in a file. All methods raise any error where the file is broken."""

    def read(self, file: Stream) -> Iterator[ArchiveMember]:
        """All members of an open file, in order."""
        ...

    def index(self, file: Stream) -> Iterator[IndexEntry]:
        """The same without their bytes."""
        ...

    def fetch(self, file: Stream, entry: IndexEntry) -> bytes | None:
        """The bytes of one member."""
        ...

    def first(self, file: Stream) -> ArchiveMember | None:
        """The first image with its label, without the bytes of what comes after it."""
        ...
