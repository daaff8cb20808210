"""From a page to HTML or JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unitscope.records import ClassScore, Layer
from unitscope.web.addresses import Addresses
from unitscope.web.downloads import downloads_of
from unitscope.web.drawings import (
    band_figures,
    bar,
    block_picture,
    breakable,
    captioned_block,
    circuit_drawing,
    cut_figures,
    description,
    effect_rows,
    feeding_blocks,
    histogram_drawing,
    label_rows,
    layer_blocks,
    list_caption,
    listed_units,
    measurements,
    peak_figures,
    similar_blocks,
    term,
    trough_figures,
)
from unitscope.web.numbers import (
    coordinates,
    curve_path,
    decimals,
    first_and_last,
    number,
    percent,
    probability,
    px,
    signed,
    signed_percent,
    sortable,
)
from unitscope.web.page_records import LISTED_AT_ONCE, AtlasSummary, Page, PatchSize, SortKey, UnitEntry
from unitscope.wordnet import in_words


@dataclass(frozen=True, slots=True)
class Navigation:
    """Which links the head of every page has besides network and glossary."""

    comparison: bool = False
    image_search: bool = False
    predictions: bool = False


FIRST_TEMPLATES = ("base.html", "macros.html", "downloads.html", "notes.html", "network.html", "layer.html", "unit.html")
"""What the pages need that a person comes to first."""


@cache
def compile_templates(names: Sequence[str] | None = None) -> None:
    """Before somebody waits for the first page of a kind; all of them, in a third of a second, where none are named."""
    for name in names or _environment().list_templates():
        _environment().get_template(name)


def render_html(page: Page, navigation: Navigation, to: Addresses | None = None) -> str:
    """The page as HTML; `to` are the addresses of a site, where it isn't served."""
    template = _environment().get_template(page.template)
    return template.render(page=page, to=to or Addresses.seen_from(page.path), navigation=navigation, layout="base.html")


def render_part(page: Page, to: Addresses) -> tuple[str, str]:
    """Title and content of a page that is a part of another one."""
    title, _, content = _environment().get_template(page.template).render(page=page, to=to, layout="part.html").partition("\n")
    return unescape(title), content.strip()


def encode_json(page: Page) -> bytes:
    """The page as JSON."""
    return msgspec.json.encode(page)


def render_error(path: str, status: int, message: str) -> str:
    """The page that says why there is no page at that path."""
    return (
        _environment()
        .get_template("error.html")
        .render(to=Addresses.seen_from(path), status=status, message=message, layout="base.html")
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unitscope.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters: dict[str, Any] = {
        "number": number,
        "percent": percent,
        "probability": probability,
        "signed": signed,
        "signed_percent": signed_percent,
        "decimals": decimals,
        "px": px,
        "coordinates": coordinates,
        "class_field": class_field,
        "sort_values": sort_values,
        "unit_values": unit_values,
        "unit_labels": unit_labels,
        "in_words": in_words,
        "breakable": breakable,
        "curve_path": curve_path,
        "first_and_last": first_and_last,
        "shown": shown_patch,
        "downloads": downloads_of,
    }
    environment.filters |= filters
    environment.globals |= {
        "term": term,
        "bar": bar,
        "description": description,
        "block_picture": block_picture,
        "captioned_block": captioned_block,
        "layer_blocks": layer_blocks,
        "histogram_drawing": histogram_drawing,
        "peak_figures": peak_figures,
        "trough_figures": trough_figures,
        "band_figures": band_figures,
        "cut_figures": cut_figures,
        "feeding_blocks": feeding_blocks,
        "similar_blocks": similar_blocks,
        "label_rows": label_rows,
        "list_caption": list_caption,
        "listed_units": listed_units,
        "listed_at_once": LISTED_AT_ONCE,
        "effect_rows": effect_rows,
        "measurements": measurements,
        "circuit_drawing": circuit_drawing,
    }
    return environment


def shown_patch(patch: PatchSize, layer: Layer, atlas: AtlasSummary, to: Addresses) -> PatchSize:
    """What a layer's patches show at these addresses."""
    if to.patch_kind == "field":
        return PatchSize("field", layer.receptive_field_height, layer.receptive_field_width)
    return PatchSize("image", atlas.input_height, atlas.input_width) if to.patch_kind == "image" else patch


def class_field(score: ClassScore) -> str:
    """What a person would write for a class: its name, or its number where it has none."""
    return str(score.position) if score.name == f"output {score.position}" else score.name


def sort_values(columns: Iterable[Iterable[float | None]]) -> Markup:
    """What the units of a grid may be sorted by, column by column, as JSON for unit-grid.js. Attributes of each unit would take most of the
    page, and of the time in which a browser reads it."""
    rows = [",".join([sortable(value) or "null" for value in column]) for column in columns]
    return Markup(f"[{','.join(f'[{row}]' for row in rows)}]")


def unit_values(units: Sequence[UnitEntry], sort_keys: Sequence[SortKey]) -> Markup:
    """The same of a layer's units, by sort key and unit."""
    return sort_values([unit.value_of(key.column) for unit in units] for key in sort_keys)


def unit_labels(units: Sequence[UnitEntry], labels: Sequence[str]) -> Markup:
    """The labels of a layer's units, by unit, each as its place among those of the page, as JSON."""
    places = {label: str(place) for place, label in enumerate(labels)}
    rows = [",".join([places[label] for label in unit.labels]) for unit in units]
    return Markup(f"[{','.join(f'[{row}]' for row in rows)}]")
