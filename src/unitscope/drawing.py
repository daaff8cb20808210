"""From boxes on images to patches, blocks, sheets and the figure. Pillow and numpy only; knows no atlas.

A *block* is one unit's patches in a square, a *panel* some blocks of one layer under its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from math import ceil, sqrt

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unitscope.records import Box

PAPER, INK, FAINT, EMPTY = (255, 255, 255), (32, 34, 38), (120, 124, 130), (243, 244, 246)
HATCH = (226, 228, 231), (211, 214, 218)
CLEAR_HATCH = (128, 134, 142, 44), (128, 134, 142, 96)
ACCENT = (226, 112, 58)
GAP_PX = 2


@dataclass(frozen=True, slots=True)
class Block:
    """One unit's patches, strongest first, with the words above them; `places` is how many there is room for.

    `beside` is drawn at the left of the patches in the same places, where it isn't None. `mark` are words over the patches, in a grey
    frame, that say why they are none or mean nothing.
    """

    number: str
    value: str
    patches: Sequence[Image.Image]
    places: int
    beside: Sequence[Image.Image] | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One layer's blocks under its name and a line about it; `share` is how much of the input a patch shows, down and across."""

    title: str
    subtitle: str
    blocks: Sequence[Block]
    share: tuple[float, float] = (1, 1)


@dataclass(frozen=True, slots=True)
class Moment:
    """A unit's strongest patch at one moment of training and its projection, None where there is none; `jumps` says that the image is
    another than in the moment before."""

    patch: Image.Image | None
    projection: Image.Image | None
    jumps: bool


@dataclass(frozen=True, slots=True)
class Strip:
    """One unit of a layer through the moments."""

    layer: str
    unit: int
    moments: Sequence[Moment]


def cut(image: Image.Image, box: Box, seen: Box, size_px: int, see_through: bool = False) -> Image.Image:
    """The box's pixels at the size asked for (its longer side), in RGB; a hatched pattern where the box leaves `seen`.

    With `see_through` the ground, where there is any, is in RGBA and suits a page of any colour.

    `seen` is the part of the image that the network got: around it lies padding, whatever the image goes on with. Boxes may
    begin and end inside pixels; their shape is kept and centred on a square.
    """
    scale = size_px / max(box.height, box.width)
    height, width = (max(1, round(side * scale)) for side in (box.height, box.width))
    inside = box.within(seen).clipped(image.height, image.width)
    left, right = ((edge - box.left) * width / box.width for edge in (inside.left, inside.right))
    top, bottom = ((edge - box.top) * height / box.height for edge in (inside.top, inside.bottom))
    area = round(left), round(top), round(right), round(bottom)
    size = area[2] - area[0], area[3] - area[1]
    if min(*size, inside.width, inside.height) <= 0:
        return _on_square(hatched(width, height, see_through), size_px, see_through)
    source = (inside.left, inside.top, inside.right, inside.bottom)
    colours = image if image.mode == "RGB" else image.convert("RGB")
    shown = colours.resize(size, Image.Resampling.BICUBIC, box=source, reducing_gap=2.0)
    if size == (width, height):
        return _on_square(shown, size_px, see_through)
    patch = hatched(width, height, see_through)
    patch.paste(shown, area[:2])
    return _on_square(patch, size_px, see_through)


def hatched(width: int, height: int, see_through: bool = False) -> Image.Image:
    """The pattern that stands for padding: it can't be taken for a photograph."""
    return _hatched(width, height, see_through).copy()


@lru_cache(maxsize=64)
def _hatched(width: int, height: int, see_through: bool) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    stripes = ((x + y) // 4 % 2)[..., None]
    colours = CLEAR_HATCH if see_through else HATCH
    return Image.fromarray(np.where(stripes, *(np.array(c, dtype=np.uint8) for c in colours)).astype(np.uint8))


def missing(size_px: int, changed: bool = False) -> Image.Image:
    """What stands for a patch whose image can't be read any more, or has `changed` since it was scanned."""
    tile = hatched(size_px, size_px)
    word = "changed" if changed else "?"
    font = _font(_fitting(word, size_px // 3, size_px - 4))
    ImageDraw.Draw(tile).text((size_px // 2, size_px // 2), word, INK, font, anchor="mm")
    return tile


def draw_sheet(panel: Panel, size_px: int) -> Image.Image:
    """All blocks of a layer in rows, about four wide for three high, under the layer's name."""
    width, height = _block_size(panel.blocks, size_px)
    columns = max(3, ceil(sqrt(len(panel.blocks) * 4 / 3 * height / width)))
    return _with_margin(_draw_panel(panel, columns, size_px, title_px=22), 24)


def draw_figure(panels: Sequence[Panel], title: str, caption: Sequence[str], size_px: int) -> Image.Image:
    """Panels from shallow to deep, row by row, with a title above and a caption below."""
    across = 3 if len(panels) > 4 else min(len(panels), 2)
    drawn = [_draw_panel(panel, 3, size_px, title_px=max(12, size_px * 5 // 16)) for panel in panels]
    rows = [drawn[start : start + across] for start in range(0, len(drawn), across)]
    gap = size_px * 5 // 8
    body = _stacked([_beside(row, gap) for row in rows], gap)
    body = _widened(body, 8 * size_px)  # or the words have no room
    heading = _text_image(title, max(16, size_px * 7 // 16), INK, body.width)
    size = min(_fitting(line, max(11, size_px // 4), body.width) for line in caption)
    lines = [_text_image(line, size, FAINT, body.width) for line in caption]
    return _with_margin(_stacked([heading, body, _stacked(lines, 4)], gap // 2), gap)


def draw_strips(strips: Sequence[Strip], moments: Sequence[str], size_px: int) -> Image.Image:
    """A row a unit and a column a moment, layer by layer, with the moments' names above (Zeiler & Fergus 2014, figure 4)."""
    gap, label_px = max(6, size_px // 8), _label_px(size_px)
    panels = []
    for layer, of_layer in groupby(strips, key=lambda strip: strip.layer):
        drawn = [_draw_strip(strip, size_px // 2, size_px) for strip in of_layer]
        heads = _indented(_beside([_text_image(name, label_px, FAINT, size_px) for name in moments], GAP_PX), size_px // 2)
        panels.append(_stacked([_text_image(layer, label_px * 5 // 4, INK, heads.width), heads, *drawn], gap))
    body = _stacked([_beside(panels[start : start + 2], 4 * gap) for start in range(0, len(panels), 2)], 2 * gap)
    body = _widened(body, 8 * size_px)  # or the words have no room
    words = (
        "Each row is one unit, each column a moment of training: the image patch that excites the unit most and, below, what in it does. "
        "A bar marks a jump to another image."
    )
    return _with_margin(_stacked([body, _text_image(words, label_px, FAINT, body.width)], 2 * gap), 24)


def _draw_strip(strip: Strip, margin: int, size_px: int) -> Image.Image:
    step, projected = size_px + GAP_PX, any(moment.projection is not None for moment in strip.moments)
    image = Image.new("RGB", (margin + len(strip.moments) * step, (2 if projected else 1) * step), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((0, 0), str(strip.unit), INK, _font(_label_px(size_px)))
    for place, moment in enumerate(strip.moments):
        left = margin + place * step
        for row, picture in enumerate((moment.patch, moment.projection) if projected else (moment.patch,)):
            if picture is None:
                pen.rectangle((left, row * step, left + size_px - 1, row * step + size_px - 1), fill=EMPTY)
            else:
                image.paste(picture, (left, row * step))
        if moment.jumps:
            pen.rectangle((left - GAP_PX - 1, 0, left, image.height - GAP_PX - 1), fill=ACCENT)
    return image


def _indented(image: Image.Image, margin: int) -> Image.Image:
    wide = Image.new("RGB", (margin + image.width, image.height), PAPER)
    wide.paste(image, (margin, 0))
    return wide


def _draw_panel(panel: Panel, columns: int, size_px: int, title_px: int) -> Image.Image:
    blocks = [_draw_block(block, size_px) for block in panel.blocks]
    gap = max(6, size_px // 5)
    rows = [_beside(blocks[start : start + columns], gap) for start in range(0, len(blocks), columns)]
    width = max(5 * size_px, *(row.width for row in rows)) if rows else 5 * size_px
    subtitle_px = max(11, title_px * 7 // 10)
    key = _draw_share(panel.share, (title_px + subtitle_px) * 5 // 4)
    words = [(panel.title, title_px, INK), (panel.subtitle, subtitle_px, FAINT)]
    heading = _stacked([_text_image(text, size, colour, width - key.width - gap) for text, size, colour in words], 2)
    return _stacked([_beside([heading, key], gap), _stacked(rows, gap)], max(6, size_px // 8))


def _draw_share(share: tuple[float, float], side: int) -> Image.Image:
    """The network's input as a square and, to scale in its middle, what a patch shows of it."""
    image = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, side - 1, side - 1), outline=HATCH[1])
    height, width = (max(2, round(min(part, 1) * side)) for part in share)
    top, left = (side - height) // 2, (side - width) // 2
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=ACCENT)
    return image


def _draw_block(block: Block, size_px: int) -> Image.Image:
    width, height = _block_size([block], size_px)
    label_px = _label_px(size_px)
    image = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((0, 0), block.number, INK, _font(label_px))
    pen.text((width, 0), block.value, FAINT, _font(label_px), anchor="ra")
    grids = [block.patches] if block.beside is None else [block.beside, block.patches]
    for number, patches in enumerate(grids):
        grid = _draw_grid(patches, block.places, size_px)
        if block.mark:
            mark(grid, block.mark)
        image.paste(grid, (number * (grid.width + _between_px(size_px)), label_px + 4))
    return image


def _draw_grid(patches: Sequence[Image.Image], places: int, size_px: int) -> Image.Image:
    """Patches row by row in a square; empty places where there are fewer than there is room for."""
    side = ceil(sqrt(places))
    step = size_px + GAP_PX
    grid = Image.new("RGB", (side * step - GAP_PX, ceil(places / side) * step - GAP_PX), PAPER)
    pen = ImageDraw.Draw(grid)
    for place in range(places):
        left, top = place % side * step, place // side * step
        if place < len(patches):
            grid.paste(patches[place], (left, top))
        else:
            pen.rectangle((left, top, left + size_px - 1, top + size_px - 1), fill=EMPTY)
    return grid


def mark(grid: Image.Image, words: str) -> None:
    """Draw a grey frame around a block of patches, and the words on a grey bar across its middle."""
    pen, label_px = ImageDraw.Draw(grid), _fitting(words, max(10, grid.height // 9), grid.width - 8)
    width, height, middle = max(2, grid.width // 48), label_px * 8 // 5, grid.height // 2
    pen.rectangle((0, 0, grid.width - 1, grid.height - 1), outline=FAINT, width=width)
    pen.rectangle((0, middle - height // 2, grid.width - 1, middle + height // 2), fill=FAINT)
    pen.text((grid.width / 2, middle), words, PAPER, _font(label_px), anchor="mm")


def _block_size(blocks: Sequence[Block], size_px: int) -> tuple[int, int]:
    side = ceil(sqrt(blocks[0].places)) if blocks else 1
    rows = ceil(blocks[0].places / side) if blocks else 1
    width = side * (size_px + GAP_PX) - GAP_PX
    if blocks and blocks[0].beside is not None:
        width = 2 * width + _between_px(size_px)
    return width, rows * (size_px + GAP_PX) - GAP_PX + _label_px(size_px) + 4


def _between_px(size_px: int) -> int:
    """Between what stands beside the patches and the patches."""
    return max(4, size_px // 10)


def _label_px(size_px: int) -> int:
    return max(10, size_px // 4)


@cache
def _font(size_px: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size_px)


def _text_image(text: str, size_px: int, colour: tuple[int, int, int], width: int) -> Image.Image:
    """The text on one line, made smaller where it would be wider than `width`."""
    size_px = _fitting(text, size_px, width)
    image = Image.new("RGB", (max(width, 1), size_px * 5 // 4 + 1), PAPER)
    ImageDraw.Draw(image).text((0, 0), text, colour, _font(size_px))
    return image


def _fitting(text: str, size_px: int, width: int) -> int:
    """The largest size up to that one at which the text is no wider than `width`; no less than nine pixels."""
    while size_px > 9 and _font(size_px).getlength(text) > width:
        size_px -= 1
    return size_px


def _beside(images: Sequence[Image.Image], gap: int) -> Image.Image:
    width = sum(i.width for i in images) + gap * (len(images) - 1)
    joined = Image.new("RGB", (max(width, 1), max((i.height for i in images), default=1)), PAPER)
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + gap
    return joined


def _stacked(images: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(i.height for i in images) + gap * (len(images) - 1)
    joined = Image.new("RGB", (max((i.width for i in images), default=1), max(height, 1)), PAPER)
    top = 0
    for image in images:
        joined.paste(image, (0, top))
        top += image.height + gap
    return joined


def _widened(image: Image.Image, width: int) -> Image.Image:
    wide = Image.new("RGB", (max(image.width, width), image.height), PAPER)
    wide.paste(image)
    return wide


def _with_margin(image: Image.Image, margin: int) -> Image.Image:
    framed = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), PAPER)
    framed.paste(image, (margin, margin))
    return framed


def _on_square(patch: Image.Image, size_px: int, see_through: bool) -> Image.Image:
    if patch.size == (size_px, size_px):
        return patch
    square = Image.new("RGBA", (size_px, size_px)) if see_through else Image.new("RGB", (size_px, size_px), EMPTY)
    square.paste(patch, ((size_px - patch.width) // 2, (size_px - patch.height) // 2))
    return square
