"""The explorer as files, for any static host or to be opened from a disk."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import msgspec

from unitscope.atlas import Atlas
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError
from unitscope.files import atomic_write
from unitscope.images import Skipped
from unitscope.web.addresses import Addresses, json_path
from unitscope.web.blocks import UNITS_PER_BATCH, BlockDrawer, Unit
from unitscope.web.comparison import AtlasComparison
from unitscope.web.openapi import describe_api
from unitscope.web.page_records import GlossaryPage, Page
from unitscope.web.pages import PageBuilder
from unitscope.web.pictures import draw_attributions, draw_image, draw_predicted_image
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendering import Navigation, encode_json, render_html

LOG = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"

OnUnits = Callable[[int], None]
"""Gets how many units more are done."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """How much was written; `undrawn_images` gives, for each image that could not be drawn, its key and the reason."""

    file_count: int
    size_bytes: int
    undrawn_images: dict[str, str]


def export(
    atlas: Atlas, site: str | os.PathLike[str], compared_atlas: Atlas | None = None, on_units: OnUnits | None = None
) -> ExportSummary:
    """Write every page of an atlas, its JSON and its pictures below a new folder, whole or not at all.

    `on_units` gets how many units more are done. Raises `AtlasError` where the folder is not empty or can't be written, `ImagesError`
    where the images are gone, or none of them can be drawn.
    """
    for exported in (atlas, compared_atlas):
        if exported is not None and (exported.packed_patches is None or exported.packed_pictures is None):
            _ = exported.source
    path = Path(os.path.realpath(site))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AtlasError(f"{str(site)!r} is there already and not empty; give another folder")
    with atomic_write(path, f"the site {str(site)!r}") as folder:
        folder.mkdir()
        pages = PageBuilder(AtlasQueries(atlas))
        compared_pages = PageBuilder(AtlasQueries(compared_atlas)) if compared_atlas is not None else None
        undrawn_images = _write_atlas(pages, folder, compared_pages, on_units)
        if compared_pages is not None:
            undrawn_images |= _write_atlas(compared_pages, folder / "compared", None, on_units)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return ExportSummary(len(sizes), sum(sizes), undrawn_images)


def search_index_script(pages: PageBuilder) -> bytes:
    """What the search box looks through, as a script: a page that lies on a disk may load a script, but no JSON."""
    return b"window.unitscopeSearchIndex = " + msgspec.json.encode(pages.search_index()) + b";\n"


def _write_atlas(
    pages: PageBuilder, folder: Path, compared_pages: PageBuilder | None, on_units: OnUnits | None
) -> dict[str, str]:
    """Everything of one atlas; gives the images that could not be drawn, with the reasons."""
    for path in STATIC.rglob("*"):
        if path.is_file():
            _write(folder / "static" / path.relative_to(STATIC), path.read_bytes())
    _write(folder / "search-index.js", search_index_script(pages))
    comparison = AtlasComparison(pages, compared_pages) if compared_pages is not None else None
    _write(folder / "api/openapi.json", msgspec.json.encode(describe_api(has_comparison=comparison is not None)))
    navigation = Navigation(comparison=comparison is not None, predictions=pages.queries.purpose.has_predictions)
    with ThreadPoolExecutor(1) as pool:
        pictures = pool.submit(_write_pictures, pages.queries, folder, on_units)
        for build_page in chain(pages.every_page(), comparison.every_page() if comparison is not None else ()):
            if (page := build_page()) is not None:
                _write_page(page, folder, navigation)
        return pictures.result()


def _write_page(page: Page, folder: Path, navigation: Navigation) -> None:
    _write(folder / page.path, render_html(page, navigation).encode())
    if not isinstance(page, GlossaryPage):
        _write(folder / json_path(page.path), encode_json(page))


def _write_pictures(queries: AtlasQueries, folder: Path, on_units: OnUnits | None) -> dict[str, str]:
    """All pictures of one atlas; gives the images that could not be drawn, with the reasons."""
    undrawn_images = _write_images(queries, folder)
    _write_attributions(queries, folder)
    _write_blocks(queries, folder, on_units)
    return undrawn_images


def _write_images(queries: AtlasQueries, folder: Path) -> dict[str, str]:
    undrawn_images = {}
    for image in queries.images.values():
        try:
            _write(folder / Addresses().image_file(image.image), draw_image(queries.atlas, image.image))
        except Skipped as reason:
            undrawn_images[image.key] = str(reason)  # the page says so too
    if undrawn_images and len(undrawn_images) == len(queries.images):
        key, reason_text = next(iter(undrawn_images.items()))
        raise ImagesError(f"none of {len(undrawn_images):,} images can be drawn: {key!r} {reason_text}; {WHERE_IMAGES_ARE}")
    for number, key in queries.purpose.predicted_images.items():
        try:
            _write(folder / Addresses().predicted_image_file(number), draw_predicted_image(queries.atlas, number, key))
        except Skipped as reason:
            undrawn_images[key] = str(reason)
    return undrawn_images


def _write_attributions(queries: AtlasQueries, folder: Path) -> None:
    for method, units in queries.attributed_units.items():
        for layer, unit in sorted(units):
            try:
                picture = draw_attributions(queries.atlas, method, layer, unit)
            except AtlasError:  # the unit's page goes without them
                LOG.debug("the attributions of layer %r unit %d by %s can't be drawn", layer, unit, method, exc_info=True)
            else:
                _write(folder / Addresses().attributions(method, layer, unit), picture)


def _write_blocks(queries: AtlasQueries, folder: Path, on_units: OnUnits | None) -> None:
    blocks = BlockDrawer(queries)
    all_units = ((layer.name, unit) for layer in queries.layers for unit in range(layer.units))
    for units in _batches(all_units, UNITS_PER_BATCH):
        for (layer, unit), block in blocks.draw_all(units).items():
            _write(folder / Addresses().block(layer, unit), block.result())
        if on_units is not None:
            on_units(len(units))


def _batches(units: Iterator[Unit], length: int) -> Iterator[Sequence[Unit]]:
    while batch := list(islice(units, length)):
        yield batch


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
