"""What a person notes of units, kept in a file beside the atlas: `ATLAS.notes.json`. A scan that replaces the atlas leaves it alone."""

import os
from asyncio import timeout
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from filelock import FileLock, Timeout
from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from unitscope.errors import AtlasError
from unitscope.files import atomic_write, check_writable, os_error_text
from unitscope.web.pages import PageBuilder
from unitscope.web.uploads import receive

MAX_NOTES_MB = 4
MAX_TAGS, MAX_TAG_LENGTH, MAX_TEXT_LENGTH = 50, 100, 20_000
"""Of one unit; notes.js has the same numbers."""
MAX_WAIT_S = 10
"""How long a write waits for those of other threads and other servers, which take milliseconds."""

Tag = Annotated[str, Meta(min_length=1, max_length=MAX_TAG_LENGTH)]


@dataclass(frozen=True, slots=True)
class UnitNote:
    """What a person notes of a unit. Without a star, tags and text it says that there was something until `changed_ms`, in milliseconds since
    1970."""

    layer: Annotated[str, Meta(max_length=1000)]
    unit: Annotated[int, Meta(ge=0, le=1 << 31)]
    favourite: bool
    tags: Annotated[list[Tag], Meta(max_length=MAX_TAGS)]
    text: Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
    changed_ms: Annotated[int, Meta(ge=0, le=1 << 52)]


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of an atlas, as files hold them: by the hash of its network and that of its list of images."""

    format: Literal["unitscope notes"]
    version: Literal[1]
    network: str
    images: str
    units: list[UnitNote]


@dataclass(frozen=True, slots=True)
class StoredNotes:
    """The notes that lie beside the atlas, in `file`, of the units that it has. `problem` says why none are read or kept there."""

    file: str
    problem: str | None
    notes: Notes


class NotesFile:
    """The file of notes of one atlas. `off_reason` says why notes aren't kept in it; None where they are.

    A file that is damaged, or is of another network or other images, is never written over.
    """

    def __init__(self, pages: PageBuilder, off_reason: str | None) -> None:
        folder = Path(os.path.realpath(pages.queries.atlas.folder))
        self.path = folder.parent / f"{folder.name}.notes.json"
        self._lock_path = folder.parent / f".{folder.name}.notes.lock"
        self._pages, self._off_reason = pages, off_reason

    def read(self) -> tuple[StoredNotes, str | None]:
        """What lies there, and its tag, which is None where nothing may be written."""
        try:
            self._check_kept()
            content = self._content()
            notes = self._decode(content)
            check_writable(self.path, f"{self.path.name!r}")
        except AtlasError as error:
            return StoredNotes(self.path.name, str(error), self._empty), None
        known = [note for note in notes.units if self._is_known(note)]
        return StoredNotes(self.path.name, None, replace(notes, units=known)), _tag(content)

    def write(self, notes: Notes, tag: str) -> str:
        """Put these notes in the place of those that have that tag; gives the new tag. Notes of units that this atlas lacks stay in the file.

        Raises `AtlasError` where notes can't be kept, and `StaleNotes` where other ones lie there.
        """
        self._check_kept()
        with self._held():
            content = self._content()
            unknown = [note for note in self._decode(content).units if not self._is_known(note)]
            if tag != _tag(content):
                raise StaleNotes(f"{self.path.name!r} has changed meanwhile; get it again")
            new_content = msgspec.json.format(msgspec.json.encode(replace(notes, units=[*notes.units, *unknown])), indent=1)
            if len(new_content) > MAX_NOTES_MB << 20:
                raise AtlasError(f"{self.path.name!r} would be larger than {MAX_NOTES_MB} MB")
            with atomic_write(self.path, f"{self.path.name!r}") as temporary:
                temporary.write_bytes(new_content)
        return _tag(new_content)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """While the file is compared and replaced, no other thread writes it, and no other server of the same atlas."""
        lock = FileLock(self._lock_path)  # it stays: whoever removed it would take it from under somebody who waits for it
        try:
            lock.acquire(timeout=MAX_WAIT_S)
        except Timeout as error:
            raise AtlasError(f"{self.path.name!r} has been held by another program for {MAX_WAIT_S} seconds") from error
        except OSError as error:
            raise AtlasError(f"{self.path.name!r} can't be written: {os_error_text(error)}") from error
        try:
            yield
        finally:
            lock.release()

    def check(self, notes: Notes) -> None:
        """Raises `ValueError` for notes of another atlas, of units that this one lacks, and for two of one unit."""
        if (notes.network, notes.images) != (self._empty.network, self._empty.images):
            raise ValueError("these are notes of another network, or of other images")
        units = set()
        for note in notes.units:
            if not self._is_known(note):
                raise ValueError(f"this atlas has no unit {note.unit} of a layer {note.layer!r}")
            if (note.layer, note.unit) in units:
                raise ValueError(f"there are two notes of unit {note.unit} of layer {note.layer!r}")
            units.add((note.layer, note.unit))

    @property
    def _empty(self) -> Notes:
        summary = self._pages.atlas_summary
        return Notes("unitscope notes", 1, summary.network_hash, summary.image_list_hash, [])

    def _check_kept(self) -> None:
        if self._off_reason is not None:
            raise AtlasError(self._off_reason)

    def _is_known(self, note: UnitNote) -> bool:
        return note.unit < self._pages.queries.unit_counts.get(note.layer, 0)

    def _content(self) -> bytes:
        """What the file holds; nothing where there is none."""
        try:
            with self.path.open("rb") as file:
                content = file.read((MAX_NOTES_MB << 20) + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise AtlasError(f"{self.path.name!r} can't be read: {os_error_text(error)}") from error
        if len(content) > MAX_NOTES_MB << 20:
            raise AtlasError(f"{self.path.name!r} is larger than {MAX_NOTES_MB} MB; move it away")
        return content

    def _decode(self, content: bytes) -> Notes:
        if not content:
            return self._empty
        try:
            notes = msgspec.json.decode(content, type=Notes)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AtlasError(f"{self.path.name!r} is damaged: {error}; mend it, or move it away") from error
        if (notes.network, notes.images) != (self._empty.network, self._empty.images):
            raise AtlasError(
                f"{self.path.name!r} has notes of another network, or of other images; move it away, and import it where they are wanted"
            )
        return notes


class StaleNotes(Exception):
    """Others have written notes since these were read."""


class NotesEndpoint:
    """Answers with the notes beside the atlas, and takes new ones. They may take `upload_s` seconds to come."""

    def __init__(self, file: NotesFile, upload_s: float) -> None:
        self._file, self._upload_s = file, upload_s

    async def answer(self, request: Request) -> Response:
        """To GET the notes, with a tag where they can be written; to PUT 204, or 403, 408, 409, 412, 413, 415, 422 or 428 and why they weren't
        taken."""
        return await (self._put(request) if request.method == "PUT" else self._get())

    async def _get(self) -> Response:
        stored, tag = await run_in_threadpool(self._file.read)
        headers = {"Cache-Control": "no-store"} | ({} if tag is None else {"ETag": tag})
        return Response(msgspec.json.encode(stored), headers=headers, media_type="application/json")

    async def _put(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "Notes come as application/json.")
        tag = request.headers.get("if-match")
        if tag is None:
            raise HTTPException(428, "If-Match has to say which notes these take the place of.")
        notes = await self._receive(request)
        try:
            new_tag = await run_in_threadpool(self._file.write, notes, tag)
        except StaleNotes as reason:
            raise HTTPException(412, f"{reason}.") from reason
        except AtlasError as error:
            raise HTTPException(409, f"{error}.") from error
        return Response(status_code=204, headers={"ETag": new_tag})

    async def _receive(self, request: Request) -> Notes:
        try:
            async with timeout(self._upload_s):
                content = await receive(request, MAX_NOTES_MB, "notes are")
        except TimeoutError as error:
            raise HTTPException(408, f"The notes didn't come within {self._upload_s:g} seconds.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The notes ended before they were whole.") from error  # nobody is there to read it
        try:
            notes = msgspec.json.decode(content, type=Notes)
            self._file.check(notes)
        except (msgspec.DecodeError, ValueError) as error:
            raise HTTPException(422, f"These are no notes that can be kept: {error}.") from error
        return notes


def _tag(content: bytes) -> str:
    return f'"{sha256(content).hexdigest()[:32]}"'
