"""The pieces of pages that have many numbers, as SVG and HTML: written by functions, which take a fraction of a template's time."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import lru_cache
from math import isfinite

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from unitscope.atlas.meaning import VISUAL
from unitscope.atlas.samples import BAND_EXAMPLES, BANDS
from unitscope.web.addresses import Addresses, slug
from unitscope.web.numbers import (
    bar_path,
    coordinates,
    number,
    number_or_count,
    percent,
    px,
    rectangle,
    signed,
    signed_percent,
    sortable,
    ticks,
    told_apart,
)
from unitscope.web.page_records import (
    ConceptUnit,
    Example,
    Histogram,
    LabelShare,
    LabelUnit,
    LayerPage,
    ListedUnit,
    TableOfUnit,
    UnitEntry,
    UnitPage,
)
from unitscope.web.purpose_records import CircuitDrawing, ClassEffect, FeedingUnit
from unitscope.wordnet import in_words

COLUMN_PX, ROW_PX, BLOCK_PX = 260, 122, 100
"""How far apart the columns and rows of a circuit lie, and the side of its blocks."""
EAGER_BLOCKS = 12
"""So many blocks of a layer, those of the first screen, are loaded at once."""
MIN_LINE_PX, LINE_PX_PER_SHARE = 1.2, 40


@lru_cache(maxsize=1 << 12, typed=True)
def _escaped(text: str) -> Markup:
    """Names of layers, labels and addresses come again and again."""
    return escape(text)


def term(to: Addresses, entry: str, text: str | None = None) -> Markup:
    """A word with a link to its entry in the glossary."""
    return Markup(f'<a class="term" href="{escape(to.glossary)}#{escape(entry)}">{escape(text or entry)}</a>')


def breakable(name: str) -> Markup:
    """The name of a layer or a column, which a line may break behind its dots and underscores.

    >>> breakable("features.0<x_y")
    Markup('features.<wbr>0&lt;x_<wbr>y')
    """
    return Markup(re.sub(r"([._]+)(?=[^._])", r"\1<wbr>", str(escape(name))))


def bar(value: float, longest: float) -> Markup:
    """A signed bar in a row of bars that share a scale."""
    length = px(value / longest * 48) if longest else "0"
    return Markup(
        f'<svg class="effect-bar" viewBox="-50 0 100 10" preserveAspectRatio="none" aria-hidden="true"><path class="zero" d="M0 0V10"/>'
        f'<path class="{"raises" if value > 0 else "lowers"}" d="M0 1H{length}V9H0z"/></svg>'
    )


def description(example: Example) -> Markup:
    """What a patch shows, in words."""
    rank, image = f"Rank {example.rank}, value" if example.rank else "Value", example.source_image
    label = f", label {_escaped(in_words(image.label))}" if image.label else ""
    return Markup(f"{rank} {number(example.value)}{label}, image {_escaped(image.key)}")


def patch(to: Addresses, example: Example) -> Markup:
    """A crop of the source image, hatched where the box leaves the network's input.

    Pages of an exported site that have any are shown by scripts, one of which draws it from what its button says.
    """
    if to.is_site:  # examples.js draws it
        return Markup('<svg class="patch" data-cut role="img"></svg>')
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


def block_picture(to: Addresses, layer: str, unit: int, alt: str, is_eager: bool = False) -> Markup:
    """A block's picture: of an exported site a part of one that has many. A browser loads it when a person comes near, or, where `is_eager`, at
    once."""
    sprite, loading = to.sprite(layer, unit), "" if is_eager else ' loading="lazy"'
    if sprite is None:
        return Markup(
            f'<img src="{escape(to.block(layer, unit))}" width="192" height="192"{loading} decoding="async" alt="{escape(alt)}">'
        )
    return Markup(
        f'<span class="sprite" role="img" aria-label="{escape(alt)}"><img class="column-{sprite.column} row-{sprite.row}" '
        f'src="{_escaped(sprite.href)}"{loading} decoding="async" alt=""></span>'
    )


def _unit_name(name: str | None, belief: str | None = None) -> str:
    """The name below a block; `belief` is how it is said: `perhaps`, `weakly`, or None."""
    doubted = f' doubted" title="{belief}' if belief else ""
    return f'<span class="unit-name{doubted}">{_escaped(name)}</span>' if name else ""


def captioned_block(
    to: Addresses, layer: str, unit: int, value: str, name: str | None = None, belief: str | None = None
) -> Markup:
    """A block that leads to its unit, with the unit's layer, number, a value and, where it has one, its name."""
    picture = block_picture(to, layer, unit, f"Patches of {layer} unit {unit}")
    return Markup(
        f'<a class="block" href="{escape(to.unit(layer, unit))}">{picture}<span class="layer-name">{_escaped(layer)}</span>'
        f'<span class="unit-number">{unit}</span><span class="value">{escape(value)}</span>{_unit_name(name, belief)}</a>'
    )


def layer_blocks(to: Addresses, page: LayerPage) -> Markup:
    """The blocks of a layer's units, as items of a list; `unit-grid.js` chooses and orders them by what each says of itself."""
    return Markup("".join([_layer_block(to, unit, place < EAGER_BLOCKS) for place, unit in enumerate(page.units)]))


def _layer_block(to: Addresses, entry: UnitEntry, is_eager: bool) -> str:
    unit, highest = entry.statistics, number(entry.statistics.highest)
    tie = unit.tie if unit.tie and unit.tie.wholly else None
    flags = {
        "always-active": unit.activation_rate == 1,
        "dead": unit.dead,
        "no-preference": tie is not None,
        "tied": unit.tie is not None,
        "facets": entry.several_facets,
    }
    attributes = "".join([f' data-{name}="1"' for name, is_so in flags.items() if is_so])
    attributes += f' data-name="{_escaped(entry.name)}"' if entry.name else ""
    attributes += f' data-belief="{entry.belief}"' if entry.belief else ""
    alt = f"Patches of unit {unit.unit}, highest value {highest}, activation rate {percent(unit.activation_rate)}"
    alt += f"; no preference: {tie.images:,} images tie" if tie else ""
    name = _unit_name(entry.name, entry.belief)
    return (
        f'<li data-unit="{unit.unit}"{attributes}><a class="block{" marked" if unit.dead or tie else ""}" '
        f'href="{escape(to.unit(unit.layer, unit.unit))}">{block_picture(to, unit.layer, unit.unit, alt, is_eager)}'
        f'<span class="unit-number">{unit.unit}</span><span class="value">{"dead" if unit.dead else highest}</span>{name}</a></li>\n'
    )


def list_caption(unit: ConceptUnit | LabelUnit | ListedUnit) -> str:
    """What stands below a unit in the list of a name or a label, or of the network."""
    if isinstance(unit, ListedUnit):
        return unit.caption
    if isinstance(unit, LabelUnit):
        return f"{unit.label_peaks} of {unit.peaks}"
    if unit.evidence is None:
        return "output class"
    return f"explains {percent(unit.evidence)}" if unit.kind == VISUAL else f"r {number(unit.evidence)}"


def listed_units(units: Sequence[ConceptUnit] | Sequence[LabelUnit] | Sequence[ListedUnit]) -> Markup:
    """All units of a list as JSON for unit-lists.js: the layers, as slug and name, and of each unit the place of its layer there, its number,
    its caption and the values of `columns`, in six digits."""
    columns = [field.name for field in fields(units[0]) if field.name not in ("layer", "unit", "caption")] if units else []
    layers = {layer: place for place, layer in enumerate(dict.fromkeys(unit.layer for unit in units))}
    rows = [
        [layers[unit.layer], unit.unit, list_caption(unit), *(_in_six_digits(getattr(unit, name)) for name in columns)]
        for unit in units
    ]
    content = {"columns": columns, "layers": [[slug(layer), layer] for layer in layers], "units": rows}
    return htmlsafe_json_dumps(content, separators=(",", ":"))


def _in_six_digits(value: float | str | None) -> float | str | None:
    if not isinstance(value, float):
        return value
    return float(sortable(value)) if isfinite(value) else None  # JSON has no others


def similar_blocks(to: Addresses, page: UnitPage) -> Markup:
    """The unit's similar units, as items of a list."""
    of_peaks = f" of {len(page.peaks)} images"
    return _block_items(to, [(unit.layer, unit.unit, f"{unit.shared_images}{of_peaks}") for unit in page.similar_units])


def feeding_blocks(to: Addresses, units: Sequence[FeedingUnit]) -> Markup:
    """The units that feed one, or that it feeds, as items of a list."""
    signs = [signed_percent(unit.share if unit.contribution > 0 else -unit.share) for unit in units]
    return _block_items(to, [(unit.layer, unit.unit, sign) for unit, sign in zip(units, signs, strict=True)])


def _block_items(to: Addresses, units: Iterable[tuple[str, int, str]]) -> Markup:
    return Markup("".join([f"<li>{captioned_block(to, *unit)}</li>" for unit in units]))


def label_rows(to: Addresses, labels: Sequence[LabelShare]) -> Markup:
    """The labels of a unit's peaks, as rows of a table."""
    return Markup(
        "".join(
            f'<tr><th scope="row"><a href="{_escaped(to.label(label.label))}">{_escaped(in_words(label.label))}</a></th><td>{label.peaks}</td>'
            f"<td>{percent(label.share)}</td><td>{percent(label.base_rate)}</td></tr>"
            for label in labels
        )
    )


def effect_rows(to: Addresses, effects: Sequence[ClassEffect], longest: float) -> Markup:
    """The classes that a unit raises, or lowers, as rows of a table."""
    rows = []
    for row in effects:
        error = "" if row.standard_error is None else f" ± {number(row.standard_error)}"
        rows.append(
            f'<tr><th scope="row"><a href="{_escaped(to.class_page(row.position))}">{_escaped(row.name)}</a></th><td>{bar(row.effect, longest)}</td>'
            f"<td>{signed(row.effect)}{error}</td><td>{percent(row.share)}</td></tr>"
        )
    return Markup("".join(rows))


def measurements(tables: Sequence[TableOfUnit]) -> Markup:
    """What added tables say of a unit, each to be opened."""
    details = []
    for table in tables:
        rows = "".join(
            [
                f"{_column_heading(column.description, column.name)}{number_or_count(column.value)}</td></tr>"
                for column in table.columns
            ]
        )
        details.append(
            f'<details class="measurements"><summary>{_escaped(table.description)}</summary>\n<table><tbody>{rows}</tbody></table>\n</details>\n'
        )
    return Markup("".join(details))


@lru_cache(maxsize=1 << 10)
def _column_heading(description: str, name: str) -> str:
    heading = escape(description[:1].upper() + description[1:])
    return f'<tr><th scope="row">{heading}</th><td><code>{breakable(name)}</code></td><td>'


def peak_figures(to: Addresses, page: UnitPage) -> Markup:
    """The unit's peaks; the first of them is chosen."""
    figures = [_figure(to, peak, _peak_picture(to, page, peak), place == 0) for place, peak in enumerate(page.peaks)]
    return Markup("".join(figures))


def trough_figures(to: Addresses, page: UnitPage) -> Markup:
    """The unit's troughs."""
    return Markup("".join([_figure(to, trough, _trough_picture(to, page, trough)) for trough in page.troughs]))


def band_figures(to: Addresses, page: UnitPage, band: int) -> Markup:
    """The examples of one of the unit's bands, given by its place among them."""
    examples = page.bands[band].examples
    return Markup(
        "".join([_figure(to, example, _band_picture(to, page, example, band, i)) for i, example in enumerate(examples)])
    )


def cut_figures(to: Addresses, examples: Sequence[Example]) -> Markup:
    """Examples that no picture of several has."""
    return Markup("".join([_figure(to, example, patch(to, example)) for example in examples]))


def _peak_picture(to: Addresses, page: UnitPage, peak: Example) -> Markup:
    """A patch of the unit's block; what a notice is written over in an exported one, and patches that a block has no room for, are cut from
    their images."""
    side, layer, unit = page.patch_columns, page.layer.name, page.statistics.unit
    sprite, tie, rank = to.sprite(layer, unit), page.statistics.tie, peak.rank or 0
    if rank > side * side or (sprite is not None and tie is not None and tie.wholly):
        return patch(to, peak)
    if sprite is None:
        return patch_of(to.large_block(layer, unit), rank - 1, side, peak, (0, 0), (side, side))
    corner, size = (sprite.column * side, sprite.row * side), (sprite.columns * side, sprite.rows * side)
    return patch_of(sprite.href, rank - 1, side, peak, corner, size)


def _trough_picture(to: Addresses, page: UnitPage, trough: Example) -> Markup:
    """A patch of the block of the unit's troughs."""
    side, rank = page.patch_columns, trough.rank or 0
    if to.is_site or rank > side * side:
        return patch(to, trough)
    href = to.troughs(page.layer.name, page.statistics.unit)
    return patch_of(href, rank - 1, side, trough, (0, 0), (side, side), "data-href")


def _band_picture(to: Addresses, page: UnitPage, example: Example, band: int, place: int) -> Markup:
    """A patch of the picture of the unit's bands: of which of them, and where in it."""
    if to.is_site:
        return patch(to, example)
    href = to.bands(page.layer.name, page.statistics.unit)
    return patch_of(href, BAND_EXAMPLES * band + place, BAND_EXAMPLES, example, (0, 0), (BAND_EXAMPLES, len(BANDS)), "data-href")


def _figure(to: Addresses, example: Example, picture: Markup, is_chosen: bool = False) -> str:
    """A patch with its rank, value and label, and what `examples.js` needs to show where in its image it is."""
    image, box, field = example.source_image, coordinates(example.patch_box), coordinates(example.receptive_field)
    of_field = f' data-receptive-field="{field}"' if field != box else ""
    rank = f'<span class="rank" title="Rank">{example.rank}</span> ' if example.rank else ""
    label = f' <a href="{_escaped(to.label(image.label))}">{_escaped(in_words(image.label))}</a>' if image.label else ""
    return (
        f'<figure class="example"{" data-chosen" if is_chosen else ""}>\n<button type="button" class="show" data-image="{image.image}" '
        f'data-size="{image.width} {image.height}" data-key="{_escaped(image.key)}" data-cell="{example.y} {example.x}" data-patch="{box}" '
        f'data-input="{coordinates(example.input_box)}"{of_field}>{picture}</button>\n<figcaption>{rank}'
        f'<span class="value" title="Value, before the activation">{number(example.value)}</span>{label}</figcaption>\n</figure>\n'
    )


def histogram_drawing(histogram: Histogram, peaks: Sequence[Example], ceiling: float | None) -> Markup:
    """Counts by value, with axis and zero line, the peaks above; `examples.js` says what the bar under the pointer is."""
    low, high = histogram.lowest, histogram.highest
    width = (high - low) or 1

    def x(value: float) -> str:
        return px(34 + 320 * (value - low) / width)

    lines = [f'<path class="zero" d="M{x(0)} 6V100"/>'] if low < 0 < high else []
    if ceiling is not None and low < ceiling < high:
        title = f"The activation passes on no more than {number(ceiling)}"
        lines.append(f'<path class="ceiling" d="M{x(ceiling)} 6V100"><title>{title}</title></path>')
    if high > low:
        marks = "".join(f"M{x(peak.value)} 8V22" for peak in peaks if low <= peak.value <= high)
        lines.append(f'<path class="mark" d="{marks}"/>')
    at = ticks(histogram)
    labels = "".join(f'<text x="{x(tick)}" y="118">{text}</text>' for tick, text in zip(at, told_apart(at), strict=True))
    what = f"Histogram of the unit's highest values in {sum(histogram.counts)} images drawn at random, from {number(low)} to {number(high)}; the peaks are marked"
    return Markup(
        f'<svg viewBox="0 0 360 128" role="img" data-counts="{" ".join(map(str, histogram.counts))}" data-range="{low:.6g} {high:.6g}" '
        f'aria-label="{what}">\n<text class="end" x="30" y="18">{max(histogram.counts)}</text><text class="end" x="30" y="104">0</text>'
        f'<text class="end" x="30" y="61">images</text>\n<svg x="34" y="10" width="320" height="90" viewBox="0 0 100 40" '
        f'preserveAspectRatio="none"><path class="bars" d="{bar_path(histogram)}"/></svg>\n{"".join(lines)}'
        f'<path class="axis" d="M34 100H354{"".join(f"M{x(tick)} 100v4" for tick in at)}"/>\n{labels}\n</svg>\n'
    )


def circuit_drawing(to: Addresses, drawing: CircuitDrawing) -> Markup:
    """The units around one, from left to right, each with its block; lines are as wide as what a unit feeds another one."""
    nodes = drawing.nodes
    counts = Counter(node.column for node in nodes)
    rows, first, last = max(node.row for node in nodes) + 1, min(counts), max(counts)
    places = [
        ((node.column - first) * COLUMN_PX, (rows - counts[node.column]) * ROW_PX // 2 + node.row * ROW_PX) for node in nodes
    ]
    width = (last - first) * COLUMN_PX + BLOCK_PX
    lines = []
    for edge in drawing.edges:
        (x1, y1), (x2, y2) = places[edge.start], places[edge.stop]
        x1, y1, y2 = x1 + BLOCK_PX, y1 + BLOCK_PX // 2, y2 + BLOCK_PX // 2
        lines.append(
            f'<path class="{"raises" if edge.contribution > 0 else "lowers"}" '
            f'stroke-width="{px(max(edge.share * LINE_PX_PER_SHARE, MIN_LINE_PX))}" '
            f'd="M{x1} {y1}C{x1 + 80} {y1} {x2 - 80} {y2} {x2} {y2}"/>\n'
        )
    blocks = []
    for node, (x, y) in zip(nodes, places, strict=True):
        sprite, layer = to.sprite(node.layer, node.unit), _escaped(node.layer)
        side = f'width="{BLOCK_PX}" height="{BLOCK_PX}"'
        if sprite is None:
            picture = f'<image data-href="{escape(to.block(node.layer, node.unit))}" x="{x}" y="{y}" {side}/>'
        else:
            picture = (
                f'<svg x="{x}" y="{y}" {side} viewBox="{sprite.column} {sprite.row} 1 1"><image data-href="{_escaped(sprite.href)}" '
                f'width="{sprite.columns}" height="{sprite.rows}" preserveAspectRatio="none"/></svg>'
            )
        own = ' class="own"' if node.column == 0 else ""
        is_last = node.column == last  # there is no room behind it
        caption = f'<text{" class=end" if is_last else ""} x="{x + BLOCK_PX * is_last}" y="{y + 112}">{layer} {node.unit}</text>'
        blocks.append(
            f'<a href="{escape(to.unit(node.layer, node.unit))}" aria-label="{layer} unit {node.unit}">{picture}'
            f'<rect{own} x="{x}" y="{y}" {side}/>{caption}</a>\n'
        )
    label = f"The circuit around this unit: {len(nodes)} units, {len(drawing.edges)} connections"
    return Markup(
        f'<svg class="circuit" viewBox="0 0 {width} {rows * ROW_PX}" width="{width}" role="img" aria-label="{label}">\n'
        f"{''.join(lines)}{''.join(blocks)}</svg>\n"
    )
