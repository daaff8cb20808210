"""What to draw of an atlas: which layers, units and boxes. How it is drawn is `unitscope.drawing`'s."""

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitscope.arguments import layer_patterns
from unitscope.atlas.attribution_images import ZERO, shown
from unitscope.atlas.ties import Tie, without_preference
from unitscope.drawing import EMPTY, Block, Panel, cut, draw_figure, draw_sheet, missing
from unitscope.errors import WHERE_IMAGES_ARE, AtlasError, ImagesError, ImagesWarning, first_line
from unitscope.images import Changed, Geometry, Skipped
from unitscope.images.pixels import in_channels
from unitscope.images.protocol import Pixels
from unitscope.images.value_ranges import Range
from unitscope.records import Box, Layer, Peak, match_layers

if TYPE_CHECKING:
    from unitscope.atlas.reading import Atlas

PATCHES = ("auto", "field", "effective", "image")
FIGURE_LAYERS = 6
FIGURE_UNITS = 9
MOST_PATCHES = 9
SMALL_FIELD = 8
"""A field whose sides are no more than this part of the input's is drawn as it is."""


@dataclass(frozen=True, slots=True)
class FigureChoice:
    """Which layers and units the figure shows; None leaves the choice to the atlas and the seed."""

    layers: Sequence[str] | None = None
    units: Sequence[int] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a peak is drawn: the box of its patch, the method whose projection stands beside it, if any, and the side in pixels."""

    patch: str = "auto"
    attribution: str | None = None
    size_px: int = 64


def patch(atlas: "Atlas", peak: Peak, kind: str, size_px: int) -> Image.Image:
    kind = box_drawn(atlas, atlas.layer(peak.layer), kind)
    try:
        image = atlas.picture(peak.image)
    except Skipped as reason:
        raise AtlasError(
            f"image {atlas.key(peak.image)!r} of the atlas {str(atlas.folder)!r} can't be drawn any more: it {reason}; {WHERE_IMAGES_ARE}"
        ) from reason
    return cut(image, *boxes_on_source(atlas, peak, kind, (image.height, image.width)), size_px)


def sheet(atlas: "Atlas", layer: str, units: Sequence[int] | None, drawn: Drawn) -> Image.Image:
    known = atlas.layer(layer)
    there = _attributed(atlas, drawn.attribution, known.name)
    every = range(known.units) if there is None else sorted(there)
    chosen = known.unit_numbers(units) or every
    _require(atlas, known, drawn, chosen, there)
    with drawing_counted() as lacking:
        return draw_sheet(panel(atlas, known, chosen, drawn, lacking), drawn.size_px)


def figure(atlas: "Atlas", choice: FigureChoice, drawn: Drawn) -> Image.Image:
    with drawing_counted() as lacking:
        return draw_figure(_panels(atlas, choice, drawn, lacking), *_words(atlas, choice, drawn), drawn.size_px)


def _panels(atlas: "Atlas", choice: FigureChoice, drawn: Drawn, lacking: "Lacking") -> list[Panel]:
    panels = []
    for layer in _asked(atlas, layer_patterns(choice.layers) or ()) or spread_layers(_with_projections(atlas, drawn)):
        there = _attributed(atlas, drawn.attribution, layer.name)
        units = layer.unit_numbers(choice.units) or firing_units(atlas, layer, choice.seed, there)
        _require(atlas, layer, drawn, units, there)
        panels.append(panel(atlas, layer, units, drawn, lacking))
    return panels


@dataclass(slots=True)
class Lacking:
    """How many patches were to be drawn, and the reasons of those that couldn't be, one a patch."""

    wanted: int = 0
    reasons: list[str] = field(default_factory=list)


@contextmanager
def drawing_counted() -> Iterator[Lacking]:
    """Counts the patches that are drawn in the block: a warning says how many lack their image.

    Raises `ImagesError` where all do.
    """
    lacking = Lacking()
    yield lacking
    if not lacking.reasons:
        return
    many = f"{len(lacking.reasons):,} of {lacking.wanted:,} patches could not be drawn: image {lacking.reasons[0]}"
    if len(lacking.reasons) == lacking.wanted:
        raise ImagesError(f"{many}; {WHERE_IMAGES_ARE}")
    warnings.warn(f"{many}; {WHERE_IMAGES_ARE}", ImagesWarning, stacklevel=5)


def _require(atlas: "Atlas", layer: Layer, drawn: Drawn, units: Sequence[int], there: set[int] | None) -> None:
    """Raises `AtlasError` where none of the units has a projection that was asked for."""
    if there is not None and there.isdisjoint(units):
        raise AtlasError(
            f"{drawn.attribution!r} was not used on these units of layer {layer.name!r}; make it with: unitscope attribute "
            f"{atlas.folder} --method {drawn.attribution} --layers {layer.name!r}"
        )


def _with_projections(atlas: "Atlas", drawn: Drawn) -> list[Layer]:
    """All layers, or those that the method was used on."""
    return [layer for layer in atlas.layers if _attributed(atlas, drawn.attribution, layer.name) != set()]


def _attributed(atlas: "Atlas", method: str | None, layer: str) -> set[int] | None:
    """The units of a layer that a method has projections of; None without a method."""
    if method is None:
        return None
    return {unit for name, unit in atlas.attributed(method) if name == layer}


def _asked(atlas: "Atlas", patterns: Sequence[str]) -> list[Layer]:
    """The layers of these names, or that these globs match, in the order asked for."""
    found: dict[str, Layer] = {}
    for pattern, matches in match_layers(atlas.layers, patterns).items():
        found |= {layer.name: layer for layer in matches or [atlas.layer(pattern)]}
    return list(found.values())


def spread_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Up to six layers from the first to the last, evenly: those with maps and activations where there are any."""
    maps = [layer for layer in layers if layer.map_height * layer.map_width > 1] or list(layers)
    candidates = [layer for layer in maps if layer.activation != "none"] or maps
    places = np.linspace(0, len(candidates) - 1, min(FIGURE_LAYERS, len(candidates)))
    return [candidates[round(float(place))] for place in places]


def firing_units(atlas: "Atlas", layer: Layer, seed: int, among: set[int] | None = None) -> list[int]:
    """Nine units, drawn at random among those with all their peaks or, where those are too few, with any; of all, or of those given.

    Those that show no preference are left out.
    """
    counts = np.bincount(atlas.peaks(layer.name)["unit"].to_numpy(), minlength=layer.units)
    counts[without_preference(atlas.ties(layer.name))] = 0
    if among is not None:
        counts[[unit for unit in range(layer.units) if unit not in among]] = 0
    return some_units(counts, layer.name, seed)


def some_units(counts: NDArray[np.integer[Any]], layer: str, seed: int) -> list[int]:
    """The same, from the number of peaks that each unit has, 0 where it is left out."""
    full, some = np.flatnonzero(counts == counts.max()), np.flatnonzero(counts)
    candidates = (full if len(full) >= FIGURE_UNITS and len(some) else some).tolist()
    chance = random.Random(f"{seed} {layer}")
    return sorted(chance.sample(candidates, min(FIGURE_UNITS, len(candidates))))


def boxes_on_source(atlas: "Atlas", peak: Peak, kind: str, size: tuple[int, int]) -> tuple[Box, Box]:
    """The box to draw for a peak, unclipped, and the crop that the network saw, both in pixels of the source image.

    `size` is the source image's height and width.

    An effective field is moved so that as much of it as possible lies on the crop: padding is part of a field, but nothing that a
    layer listens to.
    """
    geometry = Geometry.of(atlas.preprocessing, *size)
    seen = geometry.to_source(Box(0, 0, *geometry.input))
    if kind == "field":
        return peak.source_box, seen
    return (seen if kind == "image" else geometry.to_source(_box_on_input(atlas, peak, kind))), seen


def _box_on_input(atlas: "Atlas", peak: Peak, kind: str) -> Box:
    """The box to draw for a peak, unclipped, in network-input pixels."""
    whole = atlas.input_size
    if kind == "field":
        return peak.box
    if kind == "image":
        return Box(0, 0, *whole)
    layer = atlas.layer(peak.layer)
    height, width = size_drawn(atlas, layer, kind)
    y = centre(peak.top, peak.bottom, (peak.y, layer.map_height), whole[0])
    x = centre(peak.left, peak.right, (peak.x, layer.map_width), whole[1])
    top, left = _inside(y - height / 2, height, whole[0]), _inside(x - width / 2, width, whole[1])
    return Box(top, left, top + height, left + width)


def _inside(start: float, length: float, available: float) -> float:
    """Where a range of that length starts when it is moved into the available one, or centred on it where it is longer."""
    return (available - length) / 2 if length >= available else min(max(start, 0), available - length)


def centre(start: float, stop: float, cell: tuple[int, int], length: int) -> float:
    """Where a cell, given as (place, places), stands on the input: the middle of its field or, where that is the input, its place."""
    place, places = cell
    return (place + 0.5) * length / places if (start, stop) == (0, length) else (start + stop) / 2


def panel(atlas: "Atlas", layer: Layer, units: Sequence[int], how: Drawn, lacking: Lacking | None = None) -> Panel:
    drawn = box_drawn(atlas, layer, how.patch)
    places = min(atlas.k, MOST_PATCHES)
    peaks: dict[int, list[Peak]] = {unit: [] for unit in units}
    for row in atlas.peaks(layer.name, units[0] if len(units) == 1 else None).to_pylist():
        if row["unit"] in peaks and row["rank"] <= places:
            peaks[row["unit"]].append(Peak(**row))
    every = [peak for of_unit in peaks.values() for peak in of_unit]
    patches = _patches(atlas, every, drawn, how.size_px, lacking or Lacking())
    found = projections(atlas, every, drawn, how) if how.attribution else {}
    known = atlas.ties(layer.name) if every else {}
    blocks = []
    for unit, of_unit in peaks.items():
        beside = [found[unit, peak.rank] for peak in of_unit] if how.attribution else None
        cuts = [patches[unit, peak.rank] for peak in of_unit]
        value = f"{of_unit[0].value:.3g}" if of_unit else "dead"
        blocks.append(Block(str(unit), value, cuts, places, beside, mark_of(of_unit, known.get(unit))))
    about = f"{layer.kind} · {layer.units:,} units · {_field_words(atlas, layer, drawn)}"
    shown = size_drawn(atlas, layer, drawn)
    share = shown[0] / atlas.input_size[0], shown[1] / atlas.input_size[1]
    return Panel(layer.name, about if blocks else f"{about} · {none_shown(bool(atlas.peaks(layer.name)))}", blocks, share)


def mark_of(peaks: Sequence[Any], tie: Tie | None) -> str:
    """The words over a block whose patches are none, or no preference; nothing over others."""
    if not peaks:
        return "dead"
    return f"{tie.images:,} images tie" if tie is not None and tie.wholly else ""


def none_shown(peaks: bool) -> str:
    """Why a layer has no units to show."""
    return "none of them shows a preference" if peaks else "none of them fires"


def projections(atlas: "Atlas", peaks: Sequence[Peak], kind: str, how: Drawn) -> dict[tuple[int, int], Image.Image]:
    """What the method found for every peak, by unit and rank, in the box of its patch; an empty place where it wasn't used."""
    blank = Image.new("RGB", (how.size_px, how.size_px), EMPTY)
    found = {(peak.unit, peak.rank): blank for peak in peaks}
    boxes = {(peak.unit, peak.rank): _box_on_input(atlas, peak, kind) for peak in peaks}
    units = sorted({peak.unit for peak in peaks})
    for row in atlas.attributions(how.attribution or "", peaks[0].layer, units).to_pylist() if peaks else ():
        place = row["unit"], row["rank"]
        if place in boxes:
            found[place] = cut(on_input(atlas, row), boxes[place], Box(0, 0, *atlas.input_size), how.size_px)
    return found


def on_input(atlas: "Atlas", row: Mapping[str, Any]) -> Image.Image:
    """A row of `attributions`, drawn on the network's whole input: grey where it says nothing."""
    canvas = Image.new("RGB", atlas.input_size[::-1], (ZERO,) * 3)
    try:
        canvas.paste(shown(row["image"], row["bottom"] - row["top"]), (row["left"], row["top"]))
    except Exception as error:  # whatever a broken image, or one of another size, leads to
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} holds an attribution of layer {row['layer']!r} unit {row['unit']} that can't be drawn: "
            f"{first_line(error)}"
        ) from error
    return canvas


def _patches(
    atlas: "Atlas", peaks: Sequence[Peak], kind: str, size_px: int, lacking: Lacking
) -> dict[tuple[int, int], Image.Image]:
    """Every peak's patch by unit and rank. Each image is decoded once, several at a time where they are files."""
    by_image = groupby(sorted(peaks, key=lambda peak: peak.image), key=lambda peak: peak.image)
    work = [(image, list(of_image)) for image, of_image in by_image]
    lacking.wanted += len(peaks)

    def cut_all(image: int, of_image: Sequence[Peak]) -> list[tuple[tuple[int, int], Image.Image]]:
        try:
            picture = atlas.picture(image)
        except Skipped as reason:
            lacking.reasons += [f"{atlas.key(image)!r} {reason}"] * len(of_image)
            return [((peak.unit, peak.rank), missing(size_px, isinstance(reason, Changed))) for peak in of_image]
        size = picture.height, picture.width
        return [((p.unit, p.rank), cut(picture, *boxes_on_source(atlas, p, kind, size), size_px)) for p in of_image]

    if not atlas.source.thread_safe:  # a data set is read in the thread that draws
        return dict(pair for image, of_image in work for pair in cut_all(image, of_image))
    with ThreadPoolExecutor(thread_name_prefix="draw") as pool:
        return dict(pair for pairs in pool.map(cut_all, *zip(*work, strict=True)) for pair in pairs) if work else {}


def as_picture(opened: Image.Image | Pixels, value_range: Range | None = None) -> Image.Image:
    """What a person looks at; tensors are spread from their lowest to their highest value, the first three channels as colours."""
    if isinstance(opened, Image.Image):
        return in_channels(opened, 3, value_range)
    shown = opened[:3] if len(opened) >= 3 else opened[:1].repeat(3, axis=0)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    spread = (np.nan_to_num(shown) - low) / (high - low or 1.0)
    return Image.fromarray((spread.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def box_drawn(atlas: "Atlas", layer: Layer, kind: str) -> str:
    """Which box is drawn: unless told otherwise the field or, where it is no small part of the input, the effective field.

    The further a field reaches, the less of it matters and the more of it is padding; small ones are drawn as they are, since they are
    exact. From an eighth of the input's sides on, sizes go on growing where the one takes over from the other (`docs/questions.md`).
    """
    if kind not in PATCHES:
        raise AtlasError(f"patch is one of {', '.join(PATCHES)}, not {kind!r}")
    if kind == "effective" and layer.effective_field_height is None:
        raise AtlasError(f"the effective field of layer {layer.name!r} could not be measured; draw its field or the image")
    if kind != "auto":
        return kind
    height, width = size_drawn(atlas, layer, "field")
    large = height * width * SMALL_FIELD**2 > atlas.input_size[0] * atlas.input_size[1]
    less = 0 < (layer.effective_field_height or 0) * (layer.effective_field_width or 0) < height * width
    return "effective" if large and less else "field"


def size_drawn(atlas: "Atlas", layer: Layer, kind: str) -> tuple[int, int]:
    """Height and width of what a patch shows, in network-input pixels."""
    if kind == "image":
        return atlas.input_size
    if kind == "effective":
        return (
            layer.effective_field_height or layer.receptive_field_height,
            layer.effective_field_width or layer.receptive_field_width,
        )
    return layer.receptive_field_height, layer.receptive_field_width


def covers(layer: Layer, input_size: tuple[int, int]) -> bool:
    """True where an inner cell sees the whole input."""
    return layer.receptive_field_height >= input_size[0] and layer.receptive_field_width >= input_size[1]


def _field_words(atlas: "Atlas", layer: Layer, drawn: str) -> str:
    """What a patch shows, in words: the field and, where that isn't what is drawn, what is."""
    field = f"field {_size(layer.receptive_field_height, layer.receptive_field_width)}"
    if covers(layer, atlas.input_size):
        field += " (whole input)"
    if drawn == "effective":
        return f"{field}, drawn: effective field {_size(layer.effective_field_height or 0, layer.effective_field_width or 0)}"
    return f"{field}, drawn: whole image crop" if drawn == "image" else field


def _size(height: int, width: int) -> str:
    return f"{height} px" if height == width else f"{height} x {width} px"


def _words(atlas: "Atlas", choice: FigureChoice, drawn: Drawn) -> tuple[str, list[str]]:
    network, read = Path(atlas.manifest["network"]["model"]).name, atlas.manifest["read"]
    how = "as asked" if choice.units is not None else "drawn at random among those that fire"
    most = min(atlas.k, MOST_PATCHES)
    patches = "patches" if atlas.manifest.get("per_image", 1) > 1 else "images"
    images = f"{most} {patches}" if most > 1 else "image"
    return (
        f"What the units of {network} look for",
        [
            f"Each block is one unit ({how}): the {images} among {read:,} in which its activation is highest,",
            "cut to what the unit sees, or what matters of it, at one size; the square at a layer's name shows how much of the input that is.",
            "Left: unit number, right: its highest activation. Hatched: padding beyond the image."
            + (f" Grey: what {drawn.attribution} finds in them." if drawn.attribution else ""),
        ],
    )
