"""The explorer as files, for any static host or to be opened from a disk.

There are few files: the network's page and one for each layer; pictures of many blocks; and bundles, scripts that hold what all other
pages show, of which `page.html` shows the one that its address names.
"""

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from itertools import islice
from math import ceil
from pathlib import Path

import msgspec
from PIL import Image

from unitscope.atlas import Atlas
from unitscope.atlas.packed import decode_packed
from unitscope.atlas.schema import MANIFEST
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError
from unitscope.files import atomic_write, is_alive
from unitscope.images import Skipped
from unitscope.web.addresses import SPRITE_COLUMNS, UNITS_PER_SPRITE, SiteAddresses
from unitscope.web.blocks import UNITS_PER_BATCH, BlockDrawer
from unitscope.web.bundles import HALF, Bundles, bundles_written, write_file
from unitscope.web.comparison import AtlasComparison
from unitscope.web.page_records import Page, PartsPage
from unitscope.web.pages import PageBuilder
from unitscope.web.pictures import draw_attributions, draw_heat, draw_image, draw_predicted_image
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendering import Navigation, render_html

LOG = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
SPRITE_QUALITY = 71
"""Of the JPEG that many blocks share: a fifth less than packed blocks take, since a site goes over the net. Optimal Huffman tables would take
longer than all else in encoding, and a hundredth less."""
MADE_FROM = ".made-from"
"""The file in an unfinished site that says what it is made from: a run that was killed is gone on with by the next one."""

OnUnits = Callable[[int], None]
"""Gets how many units more are done."""
BuildPage = Callable[[], Page | None]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """How much was written; `undrawn_images` gives, for each image that could not be drawn, its key and the reason."""

    file_count: int
    size_bytes: int
    undrawn_images: dict[str, str]


def export(
    atlas: Atlas, site: str | os.PathLike[str], compared_atlas: Atlas | None = None, on_units: OnUnits | None = None
) -> ExportSummary:
    """Write every page of an atlas and its pictures below a new folder, whole or not at all.

    `on_units` gets how many units more are done. A run that was killed is gone on with. Raises `AtlasError` where the folder is not empty or
    can't be written, `ImagesError` where the images are gone and aren't packed, or none of them can be drawn.
    """
    atlases = [each for each in (atlas, compared_atlas) if each is not None]
    for each in atlases:
        if each.packed_patches is None or each.packed_pictures is None:
            _ = each.source
    path, what = Path(os.path.realpath(site)), f"the site {str(site)!r}"
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AtlasError(f"{str(site)!r} is there already and not empty; give another folder")
    made_from = _made_from(atlases)
    resumed = _unfinished(path, made_from)
    with atomic_write(path, what) as folder:
        if resumed is None:
            folder.mkdir()
            (folder / MADE_FROM).write_text(made_from)
        else:
            os.replace(resumed, folder)
        builders = [PageBuilder(AtlasQueries(each)) for each in atlases]
        counts = [{layer.name: layer.units for layer in pages.queries.layers} for pages in builders]
        undrawn_images: dict[str, str] = {}
        for pages, of_atlas, compared in zip(builders, counts, (builders[1:], []), strict=False):
            root = folder if pages is builders[0] else folder / "compared"
            to = SiteAddresses(unit_counts=of_atlas, compared=counts[1] if compared else {})
            undrawn_images |= _SiteWriter(pages, root, to, compared[0] if compared else None).write(on_units)
        (folder / MADE_FROM).unlink()
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return ExportSummary(len(sizes), sum(sizes), undrawn_images)


def search_index_script(pages: PageBuilder, with_files: bool = False) -> bytes:
    """What the search box looks through, as a script: a page that lies on a disk may load a script, but no JSON. `with_files` says where
    layers' pages lie in an exported site."""
    return b"window.unitscopeSearchIndex = " + msgspec.json.encode(pages.search_index(with_files)) + b";\n"


def _made_from(atlases: Iterable[Atlas]) -> str:
    """What tells the site of these atlases, as they are, from that of others."""
    parts = [version("unitscope")]
    for atlas in atlases:
        files = sorted([atlas.folder / MANIFEST, *atlas.folder.rglob("*.parquet")])
        parts += [f"{file.relative_to(atlas.folder)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return sha256("\n".join(parts).encode()).hexdigest()


def _unfinished(path: Path, made_from: str) -> Path | None:
    """What a killed run has left that made the same site, moved to where nobody takes it away; None where there is none."""
    for leftover in path.parent.glob(f".{path.name}.*.unfinished"):
        process = leftover.name.split(".")[-2]
        try:
            is_same = process.isdigit() and (leftover / MADE_FROM).read_text() == made_from and not is_alive(int(process))
        except OSError:
            continue
        if is_same:
            resumed = path.with_name(f".{path.name}.{os.getpid()}.resumed")
            os.replace(leftover, resumed)
            for half in resumed.rglob(f"*{HALF}"):
                half.unlink()
            return resumed
    return None


@dataclass
class _SiteWriter:
    """Writes everything of one atlas below a folder. Files that are there already are left as they are."""

    pages: PageBuilder
    folder: Path
    to: SiteAddresses
    compared_pages: PageBuilder | None = None
    undrawn_images: dict[str, str] = field(default_factory=dict)

    @property
    def queries(self) -> AtlasQueries:
        return self.pages.queries

    @cached_property
    def _comparison(self) -> AtlasComparison | None:
        return AtlasComparison(self.pages, self.compared_pages) if self.compared_pages is not None else None

    def write(self, on_units: OnUnits | None) -> dict[str, str]:
        """Everything; gives the images that could not be drawn, with the reasons."""
        for path in STATIC.rglob("*"):
            if path.is_file():
                self._write(f"static/{path.relative_to(STATIC).as_posix()}", path.read_bytes)
        self._write("search-index.js", partial(search_index_script, self.pages, with_files=True))
        bundles = Bundles(self.pages, self.folder, self.to)
        self._write("parts/index.js", bundles.index)
        with bundles_written(bundles):
            self._write_pictures()
            self._write_pages()
            self._write_blocks(on_units)
        return self.undrawn_images

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write_pages(self) -> None:
        comparison = self._comparison
        navigation = Navigation(comparison=comparison is not None, predictions=self.queries.purpose.has_predictions)
        pages: list[BuildPage] = [*self.pages.whole_pages(), lambda: PartsPage("page.html", self.pages.atlas_summary)]
        for build_page in [*pages, *(comparison.every_page() if comparison is not None else ())]:
            page = build_page()
            if page is not None:
                path = self.to.file_of(page.path)
                self._write(path, lambda: render_html(page, navigation, self.to.from_page(path)).encode())  # noqa: B023

    # ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _write_pictures(self) -> None:
        queries, atlas = self.queries, self.queries.atlas
        for image in queries.images.values():
            self._write_picture(self.to.image_file(image.image), image.key, partial(draw_image, atlas, image.image))
        if self.undrawn_images and len(self.undrawn_images) == len(queries.images):
            key, reason = next(iter(self.undrawn_images.items()))
            raise ImagesError(f"none of {len(queries.images):,} images can be drawn: {key!r} {reason}; {WHERE_IMAGES_ARE}")
        for number, key in queries.purpose.predicted_images.items():
            self._write_picture(self.to.predicted_image_file(number), key, partial(draw_predicted_image, atlas, number, key))
        for method, units in queries.attributed_units.items():
            for layer, unit in sorted(units):
                try:
                    self._write(self.to.attributions(method, layer, unit), partial(draw_attributions, atlas, method, layer, unit))
                    self._write(self.to.heat(method, layer, unit), partial(draw_heat, atlas, method, layer, unit))
                except AtlasError:  # the unit's page goes without them
                    LOG.debug("the attributions of layer %r unit %d by %s can't be drawn", layer, unit, method, exc_info=True)

    def _write_picture(self, path: str, key: str, draw: Callable[[], bytes]) -> None:
        try:
            self._write(path, draw)
        except Skipped as reason:
            self.undrawn_images[key] = str(reason)  # the page says so too

    def _write_blocks(self, on_units: OnUnits | None) -> None:
        """The blocks of all units, many in a picture."""
        drawer = BlockDrawer(self.queries)
        sprites = (
            (layer.name, range(start, min(start + UNITS_PER_SPRITE, layer.units)))
            for layer in self.queries.layers
            for start in range(0, layer.units, UNITS_PER_SPRITE)
        )
        while batch := list(islice(sprites, UNITS_PER_BATCH // UNITS_PER_SPRITE)):
            missing = [(layer, units) for layer, units in batch if not self._has(self.to.sprite(layer, units[0]).href)]
            blocks = drawer.draw_all([(layer, unit) for layer, units in missing for unit in units])
            for layer, units in missing:
                of_sprite = [blocks[layer, unit] for unit in units]
                self._write(self.to.sprite(layer, units[0]).href, partial(_draw_sprite, of_sprite))
            if on_units is not None:
                on_units(sum(len(units) for _, units in batch))

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _has(self, path: str) -> bool:
        return (self.folder / path).exists()

    def _write(self, path: str, make: Callable[[], bytes]) -> None:
        write_file(self.folder / path, make)


def _draw_sprite(blocks: "list[Future[bytes]]") -> bytes:
    pictures = [decode_packed(block.result(), "a block") for block in blocks]  # nobody knows who packed it
    side = pictures[0].width
    sprite = Image.new("RGB", (SPRITE_COLUMNS * side, ceil(len(blocks) / SPRITE_COLUMNS) * side), None)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, SPRITE_COLUMNS)
        sprite.paste(picture if picture.size == (side, side) else picture.resize((side, side)), (column * side, row * side))
    content = BytesIO()
    sprite.save(content, "JPEG", quality=SPRITE_QUALITY)
    return content.getvalue()
