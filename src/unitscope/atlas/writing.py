"""Writing an atlas: whole or not at all."""

import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.atlas.schema import FORMAT, MANIFEST, TABLES
from unitscope.errors import AtlasError


def place_for(out: str | os.PathLike[str]) -> Path:
    """The folder that an atlas may be written to: new, or empty. Nothing is made yet.

    Raises `AtlasError` where something is there already, so that nothing is ever overwritten.
    """
    place = Path(os.path.realpath(out))  # a link would be replaced by the folder
    if (place / MANIFEST).exists():
        raise AtlasError(f"{str(out)!r} already holds an atlas; give another --out, or remove it first")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
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
    """Write all tables and the manifest beside `out`, flush them to the disk, and move them there in one step.

    Raises `AtlasError` where that can't be done, and leaves nothing behind.
    """
    place = place_for(out)
    aside = place.parent / f".{place.name}.{os.getpid()}.unfinished"
    try:
        _clear_leftovers(place)
        aside.mkdir(parents=True)
        for name, schema in TABLES.items():
            _flushed(aside / f"{name}.parquet", lambda path, n=name, s=schema: _write_table(tables[n].cast(s), path))
        text = json.dumps({"format": FORMAT, **manifest}, indent=2, sort_keys=True, default=str)
        _flushed(aside / MANIFEST, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        flush(aside)
        os.replace(aside, place)
        flush(place.absolute().parent)
    except OSError as error:
        raise AtlasError(f"the atlas {str(out)!r} can't be written: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(place: Path) -> None:
    """Remove what scans to the same place left that were killed; of one that still runs, the process is alive."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.unfinished"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def _write_table(table: pa.Table, path: Path) -> None:
    with path.open("wb") as file:  # a path would have to be valid text
        pq.write_table(table, file)


def _flushed(path: Path, write: Any) -> None:
    write(path)
    flush(path)


def flush(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
