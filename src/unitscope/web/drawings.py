"""The pieces of unit pages that have many numbers, as SVG and HTML: written by functions, which take a fraction of a template's time."""

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup, escape

from unitscope.web.addresses import Addresses
from unitscope.web.numbers import bar_path, coordinates, number, px, rectangle, ticks
from unitscope.web.page_records import Example, Histogram
from unitscope.web.purpose_records import CircuitDrawing
from unitscope.wordnet import in_words

COLUMN_PX, ROW_PX, BLOCK_PX = 260, 122, 100
"""How far apart the columns and rows of a circuit lie, and the side of its blocks."""
MIN_LINE_PX, LINE_PX_PER_SHARE = 1.2, 40


def term(to: Addresses, entry: str, text: str | None = None) -> Markup:
    """A word with a link to its entry in the glossary."""
    return Markup(f'<a class="term" href="{escape(to.glossary)}#{escape(entry)}">{escape(text or entry)}</a>')


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
    label = f", label {in_words(image.label)}" if image.label else ""
    return escape(f"{rank} {number(example.value)}{label}, image {image.key}")


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


def example_figure(to: Addresses, example: Example, picture: Markup, is_chosen: bool = False) -> Markup:
    """A patch with its rank, value and label, and what `examples.js` needs to show where in its image it is."""
    image, box, field = example.source_image, coordinates(example.patch_box), coordinates(example.receptive_field)
    of_field = f' data-receptive-field="{field}"' if field != box else ""
    rank = f'<span class="rank" title="Rank">{example.rank}</span> ' if example.rank else ""
    label = f' <a href="{escape(to.label(image.label))}">{escape(in_words(image.label))}</a>' if image.label else ""
    return Markup(
        f'<figure class="example"{" data-chosen" if is_chosen else ""}>\n<button type="button" class="show" data-image="{image.image}" '
        f'data-size="{image.width} {image.height}" data-key="{escape(image.key)}" data-cell="{example.y} {example.x}" data-patch="{box}" '
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
    labels = "".join(f'<text x="{x(tick)}" y="118">{number(tick)}</text>' for tick in at)
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
        sprite, name = to.sprite(node.layer, node.unit), escape(f"{node.layer} {node.unit}")
        side = f'width="{BLOCK_PX}" height="{BLOCK_PX}"'
        if sprite is None:
            picture = f'<image data-href="{escape(to.block(node.layer, node.unit))}" x="{x}" y="{y}" {side}/>'
        else:
            picture = (
                f'<svg x="{x}" y="{y}" {side} viewBox="{sprite.column} {sprite.row} 1 1"><image data-href="{escape(sprite.href)}" '
                f'width="{sprite.columns}" height="{sprite.rows}" preserveAspectRatio="none"/></svg>'
            )
        own = ' class="own"' if node.column == 0 else ""
        is_last = node.column == last  # there is no room behind it
        caption = f'<text{" class=end" if is_last else ""} x="{x + BLOCK_PX * is_last}" y="{y + 112}">{name}</text>'
        blocks.append(
            f'<a href="{escape(to.unit(node.layer, node.unit))}" aria-label="{escape(node.layer)} unit {node.unit}">{picture}'
            f'<rect{own} x="{x}" y="{y}" {side}/>{caption}</a>\n'
        )
    label = f"The circuit around this unit: {len(nodes)} units, {len(drawing.edges)} connections"
    return Markup(
        f'<svg class="circuit" viewBox="0 0 {width} {rows * ROW_PX}" width="{width}" role="img" aria-label="{label}">\n'
        f"{''.join(lines)}{''.join(blocks)}</svg>\n"
    )
