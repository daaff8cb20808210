"""What a page shows, to keep: tables as CSV and Parquet, a unit's block and a layer's sheet as PNG."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unitscope.atlas import Atlas
from unitscope.atlas.figures import panel
from unitscope.atlas.patches import PatchOptions
from unitscope.drawing import draw_grid, draw_notice, draw_sheet
from unitscope.records import Box, Layer
from unitscope.web.addresses import slug
from unitscope.web.page_records import (
    ClassPage,
    ConceptPage,
    ConceptUnit,
    Example,
    ImagePage,
    LabelPage,
    LabelUnit,
    LayerPage,
    MistakePage,
    NetworkPage,
    Page,
    PartsPage,
    PredictionsPage,
    UnitPage,
    UnitsPage,
    UnitStatistics,
)
from unitscope.web.purpose_records import ClassUnit, MistakenUnit, PredictedImage
from unitscope.web.queries import AtlasQueries
from unitscope.web.sort_keys import added_columns
from unitscope.web.unit_lists import units_asked_for

BLOCK_PX = 224
"""The side of a patch of a block that is kept."""
SHEET_PX, MAX_SHEET_UNITS = 56, 400
"""A sheet of so many units has some 15 million pixels, and takes 45 MB while it is drawn."""
FORMULA = re.compile(r"\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]|[\t\r\n]")
"""How texts begin that spreadsheets take for formulas."""
COLUMN_TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    int | None: pa.int64(),
    bool: pa.bool_(),
    str: pa.string(),
    str | None: pa.string(),
}
SIDES = ("top", "left", "bottom", "right")
RECORDS_OF_UNITS: dict[type, type] = {LabelPage: LabelUnit, ConceptPage: ConceptUnit, MistakePage: MistakenUnit}
MISTAKE_COLUMNS = pa.schema(
    {
        "label_class": pa.int64(),
        "label_name": pa.string(),
        "predicted": pa.int64(),
        "predicted_name": pa.string(),
        "images": pa.int64(),
        "probability": pa.float64(),
    }
)
BOXES = ("receptive_field", "patch_box", "visible_box")


@dataclass(frozen=True, slots=True)
class Download:
    """A file that a page offers, and its address, which is empty where a script makes the file, of the rows that `made_of` says."""

    label: str
    href: str = ""
    made_of: str = ""


def downloads_of(page: Page, root: str, is_site: bool) -> list[Download]:
    """What a page offers; of an exported site what a script can make of the page. `root` leads from the page to the first one."""
    if is_site:
        return [Download(f"{rows} as CSV", made_of=made_of) for made_of, rows in MADE_BY_SCRIPT.get(type(page), {}).items()]
    rows = ROWS.get(type(page))
    if rows is None:
        return []
    path = f"{root}{page.path.removesuffix('.html')}"
    query = f"?{page.query}" if isinstance(page, UnitsPage) and page.query else ""
    tables = [Download(f"{rows} as {kind}", f"{path}.{kind.lower()}{query}") for kind in ("CSV", "Parquet")]
    if isinstance(page, UnitPage):
        block = f"{root}{page.path.removesuffix('.html').replace('units/', 'blocks/', 1)}.png"
        pictures = [Download("Its patches as PNG", block)] if page.peaks else []
        others = [name for name, content in (("troughs", page.troughs), ("sample", page.histogram)) if content]
        more = [
            Download(f"Its {name} as {kind}", f"{path}-{name}.{kind.lower()}") for name in others for kind in ("CSV", "Parquet")
        ]
        return [*([] if page.atlas.images_error else pictures), *tables, *more]
    if isinstance(page, MistakePage):
        return [*tables, *(Download(f"Its images as {kind}", f"{path}-images.{kind.lower()}") for kind in ("CSV", "Parquet"))]
    if isinstance(page, LayerPage) and not page.atlas.images_error:
        count = len(page.units)
        which = f"the first {MAX_SHEET_UNITS} of {count:,} units" if count > MAX_SHEET_UNITS else f"its {count:,} units"
        return [Download(f"Sheet of {which} as PNG", f"{path}.png"), *tables]
    return tables


ROWS: dict[type, str] = {
    NetworkPage: "Layers", LayerPage: "All its units, by number,", UnitPage: "Its peaks", ImagePage: "Its peaks", LabelPage: "Units", ConceptPage: "All its units",
    ClassPage: "Units", MistakePage: "Units", PredictionsPage: "Mistakes", UnitsPage: "All units of this list",
}  # fmt: skip
"""What the rows of a page's table are."""
MADE_BY_SCRIPT: dict[type, dict[str, str]] = {
    LayerPage: {"units": ROWS[LayerPage]},
    PartsPage: {"peaks": ROWS[UnitPage], "troughs": "Its troughs", "listed": "Units"},
}
"""Of pages of an exported site, what downloads.js makes tables of, and what their rows are."""

# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def table_of(page: Page) -> pa.Table:
    """What a page shows as a table. Raises `ValueError` for a page that has none."""
    match page:
        case NetworkPage():
            table = _table_of_records(Layer, [row.layer for row in page.layers])
            for name in ("dead_units", "no_preference_units"):
                table = table.append_column(name, pa.array([getattr(row, name) for row in page.layers], pa.int64()))
            return table
        case LayerPage():
            return _table_of_units(page)
        case UnitPage():
            return _table_of_examples(page.peaks)
        case ImagePage():
            return _table_of_examples([peak for layer in page.layers for peak in layer.peaks])
        case LabelPage() | ConceptPage() | MistakePage():
            return _table_of_records(RECORDS_OF_UNITS[type(page)], page.units)
        case ClassPage():
            return _table_of_records(ClassUnit, [unit for layer in page.layers for unit in (*layer.raising, *layer.lowering)])
        case PredictionsPage():
            rows = [{name: getattr(mistake, name) for name in MISTAKE_COLUMNS.names} for mistake in page.mistakes]
            return pa.Table.from_pylist(rows, schema=MISTAKE_COLUMNS)
    raise ValueError(f"{page.path!r} has no table")


def troughs_table(page: UnitPage) -> pa.Table:
    """A unit's troughs, with the columns of its peaks."""
    return _table_of_examples(page.troughs)


def sample_table(queries: AtlasQueries, layer: str, unit: int) -> pa.Table:
    """A unit's values in the sample, from the lowest to the highest, with their cells; boxes are in pixels of the network's input."""
    sample = queries.unit_sample(layer, unit)
    columns = {name: sample[name] for name in ("value", "image", "y", "x", *SIDES)}
    images = [queries.images.get(image) for image in columns["image"].tolist()]
    if None in images:
        raise queries.atlas.broken("its sample names an image which its images table lacks")
    texts = {name: pa.array([getattr(image, name) for image in images], pa.string()) for name in ("key", "label")}
    return pa.table({"value": columns.pop("value"), "image": columns.pop("image"), **texts, **columns})


def mistaken_images_table(page: MistakePage) -> pa.Table:
    """The images of a mistake that its page shows, those of which the network is most certain first."""
    confusion, table = page.confusion, _table_of_records(PredictedImage, page.confusion.shown)
    count = len(table)
    columns: dict[str, pa.Array] = {
        "rank": pa.array(range(1, count + 1), pa.int64()),
        "label_class": pa.array([confusion.label_class] * count, pa.int64()),
        "label_name": pa.array([confusion.label_name] * count, pa.string()),
        "predicted": pa.array([confusion.predicted] * count, pa.int64()),
        "predicted_name": pa.array([confusion.predicted_name] * count, pa.string()),
    }
    return pa.table(columns | dict(zip(table.column_names, table.columns, strict=True)))


def as_csv(table: pa.Table) -> bytes:
    """The table as CSV (RFC 4180) in UTF-8. Numbers are exact; texts that a spreadsheet would take for formulas begin with an apostrophe."""
    content = StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([_csv_text(name) for name in table.column_names])
    writer.writerows(zip(*([_csv_cell(value) for value in column.to_pylist()] for column in table.columns), strict=True))
    return content.getvalue().encode("utf-8", "replace")


def as_parquet(table: pa.Table) -> bytes:
    content = BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def _csv_cell(value: Any) -> Any:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _csv_text(value)
        case list():
            return _csv_text("; ".join(value))
    return value


def _csv_text(text: str) -> str:
    return f"'{text}" if FORMULA.match(text) else text


def _table_of_records(kind: Any, records: Sequence[Any]) -> pa.Table:
    """A column for each field of a dataclass that holds a number or a text."""
    columns = [(field.name, COLUMN_TYPES[field.type]) for field in fields(kind) if field.type in COLUMN_TYPES]
    return pa.table({name: pa.array([getattr(record, name) for record in records], type_) for name, type_ in columns})


def _table_of_units(page: LayerPage) -> pa.Table:
    table = _table_of_records(UnitStatistics, [unit.statistics for unit in page.units])
    added: dict[str, pa.Array] = {
        "name": pa.array([unit.name for unit in page.units], pa.string()),
        "belief": pa.array([unit.belief for unit in page.units], pa.string()),
        "labels": pa.array([unit.labels for unit in page.units], pa.list_(pa.string())),
        "no_preference": pa.array([unit.statistics.tie is not None and unit.statistics.tie.wholly for unit in page.units], pa.bool_()),
    }  # fmt: skip
    for name in added_columns(page.sort_keys):
        added[name] = pa.array([unit.added[name] for unit in page.units], pa.float64())
    for name, column in added.items():
        table = table.append_column(name, column)
    return table


def _table_of_examples(examples: Sequence[Example]) -> pa.Table:
    """Boxes are in pixels of the source image."""
    table = _table_of_records(Example, examples)
    images = [example.source_image for example in examples]
    for name in ("image", "width", "height"):
        table = table.append_column(name, pa.array([getattr(image, name) for image in images], pa.int64()))
    for name in ("key", "label"):
        table = table.append_column(name, pa.array([getattr(image, name) for image in images], pa.string()))
    for box in BOXES:
        for side in SIDES:
            table = table.append_column(f"{box}_{side}", _box_sides([getattr(example, box) for example in examples], side))
    return table


def _box_sides(boxes: Iterable[Box], side: str) -> pa.Array:
    return pa.array([float(getattr(box, side)) for box in boxes], pa.float64())


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_block_png(atlas: Atlas, layer: Layer, unit: int, patch_kind: str) -> bytes:
    """A unit's patches in a square, 224 pixels each, from the images where they are at hand, else the packed ones.

    Raises `ImagesError` where there are neither.
    """
    options = PatchOptions(patch_kind, size_px=BLOCK_PX, from_images=atlas.has_images)
    [block] = panel(atlas, layer, [unit], options).blocks
    grid = draw_grid(block.patches, block.slot_count, BLOCK_PX)
    draw_notice(grid, block.notice)
    return _as_png(grid)


def draw_sheet_png(atlas: Atlas, layer: Layer, units: Sequence[int], patch_kind: str) -> bytes:
    """The blocks of some units of a layer, in the order given. Raises `ImagesError` where there are no patches and no images."""
    return _as_png(draw_sheet(panel(atlas, layer, units, PatchOptions(patch_kind, size_px=SHEET_PX)), SHEET_PX))


def units_of_sheet(layer: Layer, asked: str | None) -> list[int]:
    """The units that a sheet is to show: those asked for, `3,1,7`, or the first ones. Raises `ValueError` for what is no list of units."""
    if asked is None:
        return list(range(min(layer.units, MAX_SHEET_UNITS)))
    units = units_asked_for(layer, asked)
    if len(units) > MAX_SHEET_UNITS:
        raise ValueError(f"a sheet shows up to {MAX_SHEET_UNITS} units")
    return units


def _as_png(picture: Any) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


TABLE_KINDS: dict[str, tuple[str, Callable[[pa.Table], bytes]]] = {
    "csv": ("text/csv", as_csv),
    "parquet": ("application/vnd.apache.parquet", as_parquet),
}
"""By the ending of a file's name: its media type, and what writes it."""


def name_of_file(atlas_name: str, path: str) -> str:
    """What a browser calls the file at that path, without an ending.

    >>> name_of_file("my atlas", "units/features.4/17")
    'my~20atlas-units-features.4-17'
    """
    return f"{slug(atlas_name)}-{path.replace('/', '-')}"
