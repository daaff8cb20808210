"""From a page to HTML or JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from math import ceil, floor, isfinite, log10
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from unitscope.records import Box, Layer
from unitscope.web.addresses import Addresses
from unitscope.web.downloads import downloads_of
from unitscope.web.page_records import AtlasSummary, Example, Histogram, Page, PatchSize, SortKey, UnitEntry
from unitscope.wordnet import in_words


@dataclass(frozen=True, slots=True)
class Navigation:
    """Which links the head of every page has besides network and glossary."""

    comparison: bool = False
    image_search: bool = False
    predictions: bool = False


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
        "px": px,
        "coordinates": coordinates,
        "rectangle": rectangle,
        "sort_attributes": sort_attributes,
        "bar_path": bar_path,
        "in_words": in_words,
        "curve_path": curve_path,
        "first_and_last": first_and_last,
        "shown": shown_patch,
        "ticks": ticks,
        "downloads": downloads_of,
    }
    environment.filters |= filters
    environment.globals |= {
        "description": description,
        "patch": patch,
        "patch_of": patch_of,
        "block_picture": block_picture,
        "captioned_block": captioned_block,
    }
    return environment


# ── pieces of which a page has dozens: a template's macro takes several times as long ───────────────────────────────


def description(example: Example) -> Markup:
    """What a patch shows, in words."""
    rank, image = f"Rank {example.rank}, value" if example.rank else "Value", example.source_image
    label = f", label {in_words(image.label)}" if image.label else ""
    return escape(f"{rank} {number(example.value)}{label}, image {image.key}")


def patch(to: Addresses, example: Example) -> Markup:
    """A crop of the source image, hatched where the box leaves the network's input."""
    shown, image = example.crop(to.patch_kind), example.source_image
    box, crop = shown.box, shown.visible
    hatched = f'<rect {rectangle(box)} fill="url(#hatch)"/>' if box != crop else ""
    return Markup(
        f'<svg class="patch" viewBox="{coordinates(box)}" role="img" aria-label="{description(example)}">\n{hatched}'
        f'<svg {rectangle(crop)} viewBox="{coordinates(crop)}"><image href="{escape(to.image_file(image.image))}" width="{image.width}" '
        f'height="{image.height}" preserveAspectRatio="none"/></svg>\n</svg>\n'
    )


def patch_of(
    href: str, place: int, columns: int, example: Example, corner: tuple[int, int], size: tuple[int, int], attribute: str = "href"
) -> Markup:
    """One of the patches of a picture that has several of them, row by row, from a corner (left, top) on; `size` is the picture's (width,
    height), in patches. With the attribute `data-href` examples.js loads it when a person comes near."""
    (left, top), (width, height) = corner, size
    row, column = divmod(place, columns)
    return Markup(
        f'<svg class="patch" viewBox="{left + column} {top + row} 1 1" role="img" aria-label="{description(example)}"><image '
        f'{attribute}="{escape(href)}" width="{width}" height="{height}" preserveAspectRatio="none"/></svg>'
    )


def block_picture(to: Addresses, layer: str, unit: int, alt: str) -> Markup:
    """A block's picture: of an exported site a part of one that has many."""
    sprite = to.sprite(layer, unit)
    if sprite is None:
        return Markup(
            f'<img src="{escape(to.block(layer, unit))}" width="192" height="192" loading="lazy" decoding="async" alt="{escape(alt)}">'
        )
    return Markup(
        f'<span class="sprite" role="img" aria-label="{escape(alt)}"><img class="column-{sprite.column} row-{sprite.row}" '
        f'src="{escape(sprite.href)}" loading="lazy" decoding="async" alt=""></span>'
    )


def captioned_block(to: Addresses, layer: str, unit: int, value: str) -> Markup:
    """A block that leads to its unit, with the unit's name and a value."""
    picture = block_picture(to, layer, unit, f"Patches of {layer} unit {unit}")
    return Markup(
        f'<a class="block" href="{escape(to.unit(layer, unit))}">{picture}<span class="layer-name">{escape(layer)}</span>'
        f'<span class="unit-number">{unit}</span><span class="value">{escape(value)}</span></a>'
    )


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def number(value: float | None) -> str:
    """A value in three digits.

    >>> number(12.3456), number(None)
    ('12.3', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if isfinite(value) else str(value)


def percent(share: float | None) -> str:
    """A share in per cent, in two digits at most.

    >>> percent(0.25), percent(0.0004), percent(0)
    ('25 %', '0.04 %', '0 %')
    """
    if share is None:
        return "–"
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.2g} %"


def curve_path(values: list[float | None]) -> str:
    """The SVG path of a curve from 0 to 1 in a box of 100 × 50; values that aren't there leave a gap.

    >>> curve_path([0, None, 1])
    'M0 50M100 0'
    """
    points, is_open = [], False
    for index, value in enumerate(values):
        if value is not None:
            points.append(
                f"{'L' if is_open else 'M'}{px(100 * index / max(len(values) - 1, 1))} {px(50 * (1 - min(max(value, 0), 1)))}"
            )
        is_open = value is not None
    return "".join(points)


def first_and_last(values: list[float | None]) -> str:
    """The first and the last number of a curve, in words.

    >>> first_and_last([0.25, None, 1.0]), first_and_last([None])
    ('0.25 → 1', '–')
    """
    known = [value for value in values if value is not None]
    return f"{number(known[0])} → {number(known[-1])}" if known else "–"


def shown_patch(patch: PatchSize, layer: Layer, atlas: AtlasSummary, to: Addresses) -> PatchSize:
    """What a layer's patches show at these addresses."""
    if to.patch_kind == "field":
        return PatchSize("field", layer.receptive_field_height, layer.receptive_field_width)
    return PatchSize("image", atlas.input_height, atlas.input_width) if to.patch_kind == "image" else patch


def ticks(histogram: Histogram, most: int = 5) -> list[float]:
    """Round numbers along a histogram's axis, so many at most.

    >>> ticks(Histogram(-0.7, 3.3, [1, 2])), ticks(Histogram(2, 2, [5]))
    ([0.0, 1.0, 2.0, 3.0], [2])
    """
    width = histogram.highest - histogram.lowest
    if not width > 0:
        return [histogram.lowest]
    exact = width / most
    power = 10.0 ** floor(log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact)
    first, last = ceil(histogram.lowest / step), floor(histogram.highest / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def px(length: float) -> str:
    """A length for a drawing: two digits after the point at most."""
    return f"{length:.2f}".rstrip("0").rstrip(".")


def coordinates(box: Box) -> str:
    """A box as SVG has it in a `viewBox`: left, top, width and height.

    >>> coordinates(Box(1, 2.5, 3, 4))
    '2.5 1 1.5 2'
    """
    return f"{px(box.left)} {px(box.top)} {px(box.width)} {px(box.height)}"


def rectangle(box: Box) -> Markup:
    """A box as the attributes of a `rect`."""
    return Markup(f'x="{px(box.left)}" y="{px(box.top)}" width="{px(box.width)}" height="{px(box.height)}"')


def sortable(value: float | None) -> str:
    """A value to sort by, in six digits; nothing where there is none."""
    return "" if value is None else f"{value:.6g}"


def sort_attributes(entry: UnitEntry, sort_keys: Sequence[SortKey]) -> Markup:
    """What a unit may be sorted by, as attributes `data-sort-0` and so on. A page has tens of thousands of them."""
    unit, added = entry.statistics, entry.added
    values = [added[key.column] if key.column in added else getattr(unit, key.column) for key in sort_keys]
    return Markup("".join([f' data-sort-{index}="{sortable(value)}"' for index, value in enumerate(values)]))


def bar_path(histogram: Histogram) -> str:
    """The SVG path of a histogram's bars in a box of 100 × 40."""
    highest_count, width = max(histogram.counts), 100 / len(histogram.counts)
    heights = [38 * count / highest_count for count in histogram.counts]
    return "".join(
        f"M{px(index * width + 0.2)} 40v-{px(height)}h{px(width - 0.4)}v{px(height)}z"
        for index, height in enumerate(heights)
        if height
    )
