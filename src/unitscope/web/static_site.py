"""The explorer as files, for any static host or to be opened from a disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from unitscope.atlas import Atlas
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError
from unitscope.files import atomic_write
from unitscope.images import Skipped
from unitscope.web import rendering
from unitscope.web.addresses import Addresses, json_path
from unitscope.web.blocks import UNITS_AT_ONCE, Pictures
from unitscope.web.comparison import Comparison
from unitscope.web.openapi import openapi
from unitscope.web.page_records import WordsPage
from unitscope.web.pages import Pages
from unitscope.web.queries import Catalogue

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Exported:
    """How much was written; `lacking` says for each of the images that could not be drawn why."""

    files: int
    bytes: int
    lacking: dict[str, str]


def export(
    atlas: Atlas,
    site: str | os.PathLike[str],
    beside: Atlas | None = None,
    on_units: Callable[[int], None] | None = None,
) -> Exported:
    """Write every page of an atlas, its JSON and its pictures below a new folder, whole or not at all.

    `on_units` is told how many units are done. Raises `AtlasError` where the folder is not empty or can't be written, `ImagesError`
    where the images are gone, or none of them can be drawn.
    """
    _ = atlas.source, beside.source if beside is not None else None
    place = Path(os.path.realpath(site))
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise AtlasError(f"{str(site)!r} is there already and not empty; give another folder")
    lacking: dict[str, str] = {}
    with atomic_write(place, f"the site {str(site)!r}") as folder:
        folder.mkdir()
        first = Pages(Catalogue(atlas))
        second = Pages(Catalogue(beside)) if beside is not None else None
        lacking |= _write_atlas(first, folder, second, on_units)
        if second is not None:
            lacking |= _write_atlas(second, folder / "beside", None, on_units)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Exported(len(sizes), sum(sizes), lacking)


def search_script(pages: Pages) -> bytes:
    """What the search box looks through, as a script: a page that lies on a disk may load one, but no JSON."""
    return b"window.unitscopeSearch = " + msgspec.json.encode(pages.search()) + b";\n"


def _write_atlas(pages: Pages, folder: Path, beside: Pages | None, on_units: Callable[[int], None] | None) -> dict[str, str]:
    """Everything of one atlas; the images that could not be drawn, with the reasons."""
    for path in STATIC.rglob("*"):
        if path.is_file():
            _write(folder / "static" / path.relative_to(STATIC), path.read_bytes())
    (folder / "search.js").write_bytes(search_script(pages))
    site = {"fires": False, "compared": beside is not None}
    _write(folder / "api/openapi.json", msgspec.json.encode(openapi(beside is not None)))
    with ThreadPoolExecutor(1) as aside:
        pictures = aside.submit(_write_pictures, pages.catalogue, folder, on_units)
        for page in pages.all_of_them():
            _write_page(page(), folder, site)
        if beside is not None:
            comparison = Comparison(pages, beside)
            _write_page(comparison.network(), folder, site)
            for name in comparison.layer_names():
                _write_page(comparison.layer(name), folder, site)
        return pictures.result()


def _write_page(page: Any, folder: Path, site: dict[str, bool]) -> None:
    _write(folder / page.path, rendering.html(page, **site).encode())
    if not isinstance(page, WordsPage):
        _write(folder / json_path(page.path), rendering.json(page))


def _write_pictures(catalogue: Catalogue, folder: Path, on_units: Callable[[int], None] | None) -> dict[str, str]:
    pictures, to = Pictures(catalogue), Addresses()
    lacking = {}
    for image in catalogue.images:
        try:
            _write(folder / to.picture(image), pictures.picture(image))
        except Skipped as reason:
            lacking[catalogue.atlas.key(image)] = str(reason)  # the page says so too
    if lacking and len(lacking) == len(catalogue.images):
        key = next(iter(lacking))
        raise ImagesError(f"none of {len(lacking):,} images can be drawn: {key!r} {lacking[key]}; {WHERE_IMAGES_ARE}")
    for method, units in catalogue.attributed.items():
        for layer, unit in sorted(units):
            with suppress(AtlasError):  # one whose attributions are broken goes without
                _write(folder / to.projections(method, layer, unit), pictures.projections(method, (layer, unit)))
    every = ((layer.name, unit) for layer in catalogue.layers for unit in range(layer.units))
    for run in _runs(every, UNITS_AT_ONCE):
        for (layer, unit), block in pictures.draw(run).items():
            _write(folder / to.block(layer, unit), block.result())
        if on_units is not None:
            on_units(len(run))
    return lacking


def _runs(units: Iterator[tuple[str, int]], length: int) -> Iterator[Sequence[tuple[str, int]]]:
    while run := list(islice(units, length)):
        yield run


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
