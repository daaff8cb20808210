"""Writing an atlas: whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.atlas.schema import FORMAT, MANIFEST, TABLES
from unitscope.errors import AtlasError
from unitscope.files import atomic_write

MEASURED = ("value", "mean", "std", "lowest", "highest")
"""Columns whose values hardly ever come again, so that to look for those that do costs time and space."""


def new_atlas_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that an atlas may be written to: new, or empty. Nothing is made yet.

    Raises `AtlasError` where something is there already, so that nothing is ever overwritten.
    """
    place = Path(os.path.realpath(out))  # a link would be replaced by the folder
    if (place / MANIFEST).exists():
        raise AtlasError(f"{str(out)!r} already holds an atlas; give another --out, or remove it first")
    if place.exists() and not place.is_dir():
        raise AtlasError(f"{str(out)!r} is a file, and an atlas is a folder; give another --out")
    if place.exists() and any(place.iterdir()):
        raise AtlasError(f"{str(out)!r} is not empty and holds no atlas; give another --out")
    if os.path.ismount(place):
        raise AtlasError(f"{str(out)!r} is a mount point, which can't be replaced in one step; give a folder inside it")
    if place.exists() and place.samefile(Path.cwd()):
        raise AtlasError(f"{str(out)!r} is the folder that you are in; give a folder to make, such as --out atlas")
    parent = place.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise AtlasError(f"{str(out)!r} can't be made: {str(existing)!r} can't be written to")
    return place


def write_atlas(out: str | os.PathLike[str], tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> None:
    """Write all tables and the manifest, whole or not at all.

    Raises `AtlasError` where that can't be done, and leaves nothing behind.
    """
    with atomic_write(new_atlas_folder(out), f"the atlas {str(out)!r}") as folder:
        folder.mkdir()
        for name, schema in TABLES.items():
            _write_table(tables[name].cast(schema), folder / f"{name}.parquet")
        text = json.dumps({"format": FORMAT, **manifest}, indent=2, sort_keys=True, default=str)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _write_table(table: pa.Table, path: Path) -> None:
    repeating = [name for name in table.column_names if name not in MEASURED]
    with path.open("wb") as file:  # a path would have to be valid text
        pq.write_table(table, file, use_dictionary=repeating)
