"""What `atlas.json` must hold. It is checked once, when an atlas is opened: nobody knows who wrote it."""

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from unitscope.atlas.schema import FORMAT, MANIFEST, MAX_INPUT_VALUES, MAX_RANK
from unitscope.errors import AtlasError
from unitscope.images.pixels import FILTERS
from unitscope.records import MAX_SIDE_PX, Preprocessing

MAX_ERROR_CHARACTERS = 300
"""How much of what a library says of a broken manifest is passed on: it may quote the manifest."""

Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PX)]


class _Network(Struct):
    model: str
    hash: str
    weights: str
    seed: int


class _Trial(Struct):
    batch: str | None
    random: str | None
    shared: str | None
    rounding: dict[str, float]


class _Manifest(Struct):
    """What everything that opens an atlas relies on; what else stands there is for people."""

    network: _Network
    preprocessing: Preprocessing | None
    input: tuple[Side, Side, Side]
    images: dict[str, Any]
    listed: Count
    read: Count
    k: Annotated[int, Meta(ge=1, le=MAX_RANK)]
    trial: _Trial
    skipped: Count = 0
    per_image: Count = 1
    inner: bool = False
    sample: Count = 200
    precision: str = "fp32"
    layers: list[str] | None = None


class _ImageFolder(Struct):
    folder: str


class _ImageList(Struct):
    paths: list[str]
    folder: str


class _ImageArchives(Struct):
    files: list[str]


class _ImageSource(Struct):
    """What every source of images says of itself."""

    kind: str = ""
    name: str = ""
    contents: Annotated[str, Meta(pattern="^([0-9a-f]{16})?$")] = ""


IMAGE_SOURCES = {"folder": _ImageFolder, "list": _ImageList, "files": _ImageArchives}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the atlas in a folder. Raises `AtlasError` where there is none, or where it holds what it can't."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AtlasError(f"{str(folder)!r} holds no atlas: there is no {MANIFEST} in it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AtlasError(f"{str(path)!r} can't be read: {_shortened(error)}") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version != FORMAT:
        text = repr(version) if isinstance(version, (int, float, str, type(None))) else f"of type {type(version).__name__}"
        raise AtlasError(
            f"the atlas {str(folder)!r} has format {_shortened(text)}; this version reads format {FORMAT}; scan again"
        )
    try:
        _check(manifest)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise AtlasError(f"the atlas {str(folder)!r} is broken: {MANIFEST} holds what it can't: {_shortened(error)}") from error
    return dict(manifest)


def _check(manifest: Any) -> None:
    """Raises `ValidationError` where the manifest holds what it can't."""
    checked = msgspec.convert(manifest, _Manifest)
    if prod(checked.input) > MAX_INPUT_VALUES:
        raise msgspec.ValidationError(f"an input of more than {MAX_INPUT_VALUES:,} numbers - at `$.input`")
    if checked.preprocessing is not None and checked.input != (checked.preprocessing.channels, *checked.preprocessing.crop):
        raise msgspec.ValidationError("an input of another size than the crop - at `$.input`")
    if checked.preprocessing is not None and checked.preprocessing.interpolation not in FILTERS:
        raise msgspec.ValidationError(f"interpolation is one of {', '.join(FILTERS)} - at `$.preprocessing`")
    kind = msgspec.convert(checked.images, _ImageSource).kind
    if kind in IMAGE_SOURCES:
        msgspec.convert(checked.images, IMAGE_SOURCES[kind])


def _shortened(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[:MAX_ERROR_CHARACTERS]} …"
