"""From boxes on images to patches, blocks, sheets and figures. Pillow and numpy only; knows no atlas.

A *block* is one unit's patches in a square, a *panel* some blocks of one layer under its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from unitscope.records import Box

BACKGROUND, INK, GREY, EMPTY_SLOT = (255, 255, 255), (32, 34, 38), (120, 124, 130), (243, 244, 246)
ACCENT = (226, 112, 58)
LOWERS = (58, 118, 190)
"""The colour of what lowers a score, where the accent raises it."""
GAP_PX = 2
MIN_FONT_PX = 9


@dataclass(frozen=True, slots=True)
class Ground:
    """What is seen where no image is: the stripes that stand for padding, and the colour of empty slots and margins."""

    hatch: tuple[tuple[int, int, int], tuple[int, int, int]]
    empty: tuple[int, int, int]


SHEET_GROUND = Ground(((226, 228, 231), (211, 214, 218)), EMPTY_SLOT)
PAGE_GROUND = Ground(((160, 165, 172), (143, 149, 157)), (152, 157, 165))
"""The same in a grey that suits light and dark pages."""


@dataclass(frozen=True, slots=True)
class Block:
    """One unit's patches, strongest first, with its number, its value and its name above them; `slot_count` is how many there is room for.

    `attributions` are drawn at the left of the patches in the same order, where they aren't None. `notice` is written over the patches,
    in a grey frame, where there are none or where they mean nothing.
    """

    number: str
    value: str
    patches: Sequence[Image.Image]
    slot_count: int
    attributions: Sequence[Image.Image] | None = None
    notice: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One layer's blocks under its name and a line about it; `input_share` is how much of the input a patch shows, down and across."""

    title: str
    subtitle: str
    blocks: Sequence[Block]
    input_share: tuple[float, float] = (1, 1)


@dataclass(frozen=True, slots=True)
class CheckpointPatch:
    """A unit's strongest patch at one checkpoint of a training and its attribution, None where there is none.

    `has_jumped` says that the image is another than at the checkpoint before.
    """

    patch: Image.Image | None
    attribution: Image.Image | None
    has_jumped: bool


@dataclass(frozen=True, slots=True)
class Strip:
    """One unit of a layer through the checkpoints of a training."""

    layer: str
    unit: int
    checkpoints: Sequence[CheckpointPatch]


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What one unit does to a score: how much, as text and as a share of the longest bar (below zero where it lowers the score), what it is
    called, where in the picture that is, and its patches; `note` stands below the bar."""

    value: str
    length: float
    title: str
    subtitle: str
    place: Image.Image
    patches: Sequence[Image.Image]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Crop:
    """What a patch shows of an image: the pixels of `visible`; the rest of `box` is padding. Both are in pixels of the image.

    `visible` is the part of the box that lies on the image and became part of the network's input. Around the network's input lies
    padding, even where the image goes on.
    """

    box: Box
    visible: Box

    @classmethod
    def of(cls, box: Box, input_crop: Box, image_size: tuple[int, int]) -> "Crop":
        """For an image of that height and width, of which `input_crop` became the network's input.

        >>> Crop.of(Box(-2, 3, 9, 12), Box(0, 0, 8, 10), (20, 20)).visible
        Box(top=0, left=3, bottom=8, right=10)
        """
        return cls(box, box.intersection(input_crop).clipped(*image_size))

    def scaled(self, scale_y: float, scale_x: float) -> "Crop":
        """The same on an image whose sides are so many times as long."""
        return Crop(self.box.scaled(scale_y, scale_x), self.visible.scaled(scale_y, scale_x))


def cut_patch(image: Image.Image, crop: Crop, size_px: int, ground: Ground = SHEET_GROUND) -> Image.Image:
    """A square with the crop's box in its middle, whose longer side fills it, in RGB; padding is hatched.

    Boxes may begin and end inside pixels.
    """
    box, visible = crop.box, crop.visible
    scale = size_px / max(box.height, box.width)
    height, width = (max(1, round(side * scale)) for side in (box.height, box.width))
    left, right = (round((edge - box.left) * width / box.width) for edge in (visible.left, visible.right))
    top, bottom = (round((edge - box.top) * height / box.height) for edge in (visible.top, visible.bottom))
    if min(right - left, bottom - top, visible.width, visible.height) <= 0:
        return _on_square(draw_hatching(width, height, ground), size_px, ground)
    source = (visible.left, visible.top, visible.right, visible.bottom)
    colours = image if image.mode == "RGB" else image.convert("RGB")
    pixels = colours.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=source, reducing_gap=2.0)
    if pixels.size == (width, height):
        return _on_square(pixels, size_px, ground)
    patch = draw_hatching(width, height, ground)
    patch.paste(pixels, (left, top))
    return _on_square(patch, size_px, ground)


def draw_hatching(width: int, height: int, ground: Ground = SHEET_GROUND) -> Image.Image:
    """The pattern that stands for padding: it can't be taken for a photograph."""
    return _hatching(width, height, ground).copy()


@lru_cache(maxsize=64)
def _hatching(width: int, height: int, ground: Ground) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    is_second_stripe = ((x + y) // 4 % 2)[..., None]
    return Image.fromarray(np.where(is_second_stripe, *(np.array(c, dtype=np.uint8) for c in ground.hatch)).astype(np.uint8))


def draw_missing_patch(size_px: int, has_changed: bool = False, ground: Ground = SHEET_GROUND) -> Image.Image:
    """What stands for a patch whose image can't be read any more, or has changed since it was scanned."""
    tile = draw_hatching(size_px, size_px, ground)
    text = "changed" if has_changed else "?"
    font = _font(_fitting_font_px(text, size_px // 3, size_px - 4))
    ImageDraw.Draw(tile).text((size_px // 2, size_px // 2), text, INK, font, anchor="mm")
    return tile


def draw_sheet(panel: Panel, size_px: int) -> Image.Image:
    """All blocks of a layer in rows, about four wide for three high, under the layer's name."""
    width, height = _block_size(panel.blocks, size_px)
    column_count = max(3, ceil(sqrt(len(panel.blocks) * 4 / 3 * height / width)))
    return _framed(_draw_panel(panel, column_count, size_px, title_px=22), 24)


def draw_figure(panels: Sequence[Panel], title: str, caption: Sequence[str], size_px: int) -> Image.Image:
    """Panels from shallow to deep, row by row, with a title above and a caption below."""
    column_count = 3 if len(panels) > 4 else min(len(panels), 2)
    drawn = [_draw_panel(panel, 3, size_px, title_px=max(12, size_px * 5 // 16)) for panel in panels]
    rows = [drawn[start : start + column_count] for start in range(0, len(drawn), column_count)]
    gap = size_px * 5 // 8
    body = _in_column([_in_row(row, gap) for row in rows], gap)
    body = _widened(body, 8 * size_px)  # or the text has no room
    heading = _draw_text(title, max(16, size_px * 7 // 16), INK, body.width)
    font_px = min(_fitting_font_px(line, max(11, size_px // 4), body.width) for line in caption)
    lines = [_draw_text(line, font_px, GREY, body.width) for line in caption]
    return _framed(_in_column([heading, body, _in_column(lines, 4)], gap // 2), gap)


def draw_strips(strips: Sequence[Strip], checkpoint_names: Sequence[str], size_px: int) -> Image.Image:
    """A row a unit and a column a checkpoint, layer by layer, with the checkpoints' names above (Zeiler & Fergus 2014, figure 4)."""
    gap, label_px, margin = max(6, size_px // 8), _label_px(size_px), size_px // 2
    panels = []
    for layer, layer_strips in groupby(strips, key=lambda strip: strip.layer):
        names = _in_row([_draw_text(name, label_px, GREY, size_px) for name in checkpoint_names], GAP_PX)
        header = _indented(names, margin)
        rows = [_draw_strip(strip, margin, size_px) for strip in layer_strips]
        panels.append(_in_column([_draw_text(layer, label_px * 5 // 4, INK, header.width), header, *rows], gap))
    body = _in_column([_in_row(panels[start : start + 2], 4 * gap) for start in range(0, len(panels), 2)], 2 * gap)
    body = _widened(body, 8 * size_px)  # or the text has no room
    text = (
        "Each row is one unit, each column a moment of training: the image patch that excites the unit most and, below, what in it does. "
        "A bar marks a jump to another image."
    )
    return _framed(_in_column([body, _draw_text(text, label_px, GREY, body.width)], 2 * gap), 24)


def draw_effects(picture: Image.Image, lines: Sequence[str], title: str, rows: Sequence[EffectRow], size_px: int) -> Image.Image:
    """A picture with lines of text below it, and beside it a row for each unit that raises or lowers a score."""
    text_px, bar_px = max(11, size_px // 8), 2 * size_px
    width = picture.width
    left = _in_column(
        [picture, *(_draw_text(line, text_px, INK if not number else GREY, width) for number, line in enumerate(lines))], 6
    )
    drawn = [_draw_effect_row(row, size_px, bar_px, text_px) for row in rows]
    right = _in_column([_draw_text(title, text_px + 2, INK, max((row.width for row in drawn), default=width)), *drawn], 10)
    return _framed(_in_row([left, right], 28), 20)


def _draw_effect_row(row: EffectRow, size_px: int, bar_px: int, text_px: int) -> Image.Image:
    """Bar and words at the left, where it is in the picture, and the patches one beside the other."""
    side = Image.new("RGB", (bar_px, size_px), BACKGROUND)
    pen, middle, length = ImageDraw.Draw(side), bar_px // 2, round(row.length * (bar_px // 2 - 2))
    top = text_px * 3
    pen.text((0, 0), _shortened(row.title, text_px, bar_px), INK, _font(text_px))
    pen.text((0, text_px * 4 // 3), _shortened(row.subtitle, text_px - 2, bar_px), GREY, _font(text_px - 2))
    pen.rectangle(
        (min(middle, middle + length), top, max(middle, middle + length), top + text_px), fill=ACCENT if length > 0 else LOWERS
    )
    pen.line((middle, top - 2, middle, top + text_px + 2), GREY)
    pen.text((0, top + text_px * 2), _shortened(row.note, text_px - 2, bar_px), GREY, _font(text_px - 2))
    pen.text((middle - 6 if length > 0 else middle + 6, top), row.value, INK, _font(text_px), anchor="ra" if length > 0 else "la")
    strip = _in_row([patch.resize((size_px, size_px)) for patch in row.patches], GAP_PX)
    return _in_row([side, row.place.resize((size_px, size_px)), strip], 12)


def draw_place(picture: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """A picture that is grey but where values, of shape (y, x), are far from zero: there orange where they are above it, and blue below."""
    highest = float(np.abs(values).max()) or 1.0
    small = Image.fromarray((values / highest).astype(np.float32))
    spread = np.clip(np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC)), -1, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.55 + 90
    colour = np.where(spread > 0, np.array(ACCENT, dtype=np.float32), np.array(LOWERS, dtype=np.float32))
    strength = np.abs(spread) * 0.75
    return Image.fromarray((grey * (1 - strength) + colour * strength).clip(0, 255).astype(np.uint8))


def _draw_strip(strip: Strip, margin: int, size_px: int) -> Image.Image:
    step, has_attributions = size_px + GAP_PX, any(patch.attribution is not None for patch in strip.checkpoints)
    image = Image.new("RGB", (margin + len(strip.checkpoints) * step, (2 if has_attributions else 1) * step), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((0, 0), str(strip.unit), INK, _font(_label_px(size_px)))
    for column, checkpoint in enumerate(strip.checkpoints):
        left = margin + column * step
        pictures = (checkpoint.patch, checkpoint.attribution) if has_attributions else (checkpoint.patch,)
        for row, picture in enumerate(pictures):
            if picture is None:
                pen.rectangle((left, row * step, left + size_px - 1, row * step + size_px - 1), fill=EMPTY_SLOT)
            else:
                image.paste(picture, (left, row * step))
        if checkpoint.has_jumped:
            pen.rectangle((left - GAP_PX - 1, 0, left, image.height - GAP_PX - 1), fill=ACCENT)
    return image


def _draw_panel(panel: Panel, column_count: int, size_px: int, title_px: int) -> Image.Image:
    has_names = any(block.name for block in panel.blocks)
    blocks = [_draw_block(block, size_px, has_names) for block in panel.blocks]
    gap = max(6, size_px // 5)
    rows = [_in_row(blocks[start : start + column_count], gap) for start in range(0, len(blocks), column_count)]
    width = max([5 * size_px, *(row.width for row in rows)])
    subtitle_px = max(11, title_px * 7 // 10)
    key = _draw_input_share(panel.input_share, (title_px + subtitle_px) * 5 // 4)
    lines = [(panel.title, title_px, INK), (panel.subtitle, subtitle_px, GREY)]
    heading = _in_column([_draw_text(*line, width - key.width - gap) for line in lines], 2)
    return _in_column([_in_row([heading, key], gap), _in_column(rows, gap)], max(6, size_px // 8))


def _draw_input_share(share: tuple[float, float], side_px: int) -> Image.Image:
    """The network's input as a square and, to scale in its middle, what a patch shows of it."""
    image = Image.new("RGB", (side_px, side_px), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, side_px - 1, side_px - 1), outline=SHEET_GROUND.hatch[1])
    height, width = (max(2, round(min(part, 1) * side_px)) for part in share)
    top, left = (side_px - height) // 2, (side_px - width) // 2
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=ACCENT)
    return image


def _draw_block(block: Block, size_px: int, has_names: bool) -> Image.Image:
    """With room for a name where a block of the panel has one, so that all are alike."""
    label_px = _label_px(size_px)
    width, height = _block_size([block], size_px)
    names_px = label_px + 2 if has_names else 0
    image = Image.new("RGB", (width, height + names_px), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((0, 0), block.number, INK, _font(label_px))
    pen.text((image.width, 0), block.value, GREY, _font(label_px), anchor="ra")
    if block.name:
        name = _shortened(block.name, _fitting_font_px(block.name, label_px, image.width), image.width)
        pen.text((0, names_px), name, INK, _font(_fitting_font_px(name, label_px, image.width)))
    grids = [block.patches] if block.attributions is None else [block.attributions, block.patches]
    for index, pictures in enumerate(grids):
        grid = draw_grid(pictures, block.slot_count, size_px)
        draw_notice(grid, block.notice)
        image.paste(grid, (index * (grid.width + _between_px(size_px)), label_px + names_px + 4))
    return image


def draw_grid(
    pictures: Sequence[Image.Image], slot_count: int, size_px: int, *, gap_px: int = GAP_PX, ground: Ground = SHEET_GROUND
) -> Image.Image:
    """Pictures row by row in a square that has room for `slot_count`."""
    side, step = ceil(sqrt(slot_count)), size_px + gap_px
    size = side * step - gap_px, ceil(slot_count / side) * step - gap_px
    grid = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(grid)
    for slot in range(slot_count):
        left, top = slot % side * step, slot // side * step
        if slot < len(pictures):
            grid.paste(pictures[slot], (left, top))
        else:
            pen.rectangle((left, top, left + size_px - 1, top + size_px - 1), fill=ground.empty)
    return grid


def draw_notice(grid: Image.Image, text: str) -> None:
    """Draw a grey frame around a block of patches, and the text on a grey bar across its middle; nothing where the text is empty."""
    if not text:
        return
    pen, label_px = ImageDraw.Draw(grid), _fitting_font_px(text, max(10, grid.height // 9), grid.width - 8)
    frame_px, bar_px, middle = max(2, grid.width // 48), label_px * 8 // 5, grid.height // 2
    pen.rectangle((0, 0, grid.width - 1, grid.height - 1), outline=GREY, width=frame_px)
    pen.rectangle((0, middle - bar_px // 2, grid.width - 1, middle + bar_px // 2), fill=GREY)
    pen.text((grid.width / 2, middle), text, BACKGROUND, _font(label_px), anchor="mm")


def _block_size(blocks: Sequence[Block], size_px: int) -> tuple[int, int]:
    """Width and height of each of the blocks, which are all alike."""
    slot_count = blocks[0].slot_count if blocks else 1
    side = ceil(sqrt(slot_count))
    width = side * (size_px + GAP_PX) - GAP_PX
    if blocks and blocks[0].attributions is not None:
        width = 2 * width + _between_px(size_px)
    return width, ceil(slot_count / side) * (size_px + GAP_PX) - GAP_PX + _label_px(size_px) + 4


def _between_px(size_px: int) -> int:
    """Between the attributions and the patches."""
    return max(4, size_px // 10)


def _label_px(size_px: int) -> int:
    return max(10, size_px // 4)


@cache
def _font(size_px: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size_px)


def _draw_text(text: str, font_px: int, colour: tuple[int, int, int], width: int) -> Image.Image:
    """The text on one line, made smaller where it would be wider than `width`."""
    font_px = _fitting_font_px(text, font_px, width)
    image = Image.new("RGB", (max(width, 1), font_px * 5 // 4 + 1), BACKGROUND)
    ImageDraw.Draw(image).text((0, 0), text, colour, _font(font_px))
    return image


def _shortened(text: str, font_px: int, width: int) -> str:
    """The text, or as much of its beginning as is no wider than `width`."""
    if _font(font_px).getlength(text) <= width:
        return text
    while text and _font(font_px).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _fitting_font_px(text: str, font_px: int, width: int) -> int:
    """The largest size up to that one at which the text is no wider than `width`; no less than can be read."""
    while font_px > MIN_FONT_PX and _font(font_px).getlength(text) > width:
        font_px -= 1
    return font_px


def _in_row(images: Sequence[Image.Image], gap: int) -> Image.Image:
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (max(width, 1), max((image.height for image in images), default=1)), BACKGROUND)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _in_column(images: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    column = Image.new("RGB", (max((image.width for image in images), default=1), max(height, 1)), BACKGROUND)
    top = 0
    for image in images:
        column.paste(image, (0, top))
        top += image.height + gap
    return column


def _indented(image: Image.Image, margin: int) -> Image.Image:
    return ImageOps.expand(image, (margin, 0, 0, 0), BACKGROUND)


def _widened(image: Image.Image, width: int) -> Image.Image:
    return ImageOps.expand(image, (0, 0, max(0, width - image.width), 0), BACKGROUND)


def _framed(image: Image.Image, margin: int) -> Image.Image:
    return ImageOps.expand(image, margin, BACKGROUND)


def _on_square(patch: Image.Image, size_px: int, ground: Ground) -> Image.Image:
    """The patch in the middle of a square; a side that is shorter gets a margin at both ends."""
    if patch.size == (size_px, size_px):
        return patch
    left, top = (size_px - patch.width) // 2, (size_px - patch.height) // 2
    margins = left, top, size_px - patch.width - left, size_px - patch.height - top
    return ImageOps.expand(patch, margins, ground.empty)
