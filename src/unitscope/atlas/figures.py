"""Sheets and figures of an atlas: which layers and units they show, and in what words. How they are drawn is `unitscope.drawing`'s."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from unitscope.arguments import layer_patterns
from unitscope.atlas.meaning import read_meanings
from unitscope.atlas.patches import (
    PatchCount,
    PatchOptions,
    cut_attributions,
    cut_patches,
    patch_size,
    patches_counted,
    resolve_patch_kind,
)
from unitscope.atlas.reading import MAX_PATCHES, AtlasReader
from unitscope.atlas.ties import Tie, units_without_preference
from unitscope.drawing import Block, Panel, draw_figure, draw_sheet
from unitscope.errors import AtlasError
from unitscope.records import Layer, Peak, match_layers

FIGURE_LAYERS = 6
FIGURE_UNITS = 9


@dataclass(frozen=True, slots=True)
class FigureChoice:
    """Which layers and units the figure shows; None leaves the choice to the atlas and the seed."""

    layers: Sequence[str] | None = None
    units: Sequence[int] | None = None
    seed: int = 0


def sheet(atlas: AtlasReader, layer_name: str, units: Sequence[int] | None, options: PatchOptions) -> Image.Image:
    """A block of patches for every unit of a layer, or for those chosen."""
    layer = atlas.layer(layer_name)
    _check_troughs(atlas, [layer], options)
    attributed = _attributed_units(atlas, options)
    every_unit = range(layer.units) if attributed is None else sorted(attributed.get(layer.name, ()))
    chosen = layer.unit_numbers(units) or every_unit
    _check_attributed(atlas, layer, chosen, attributed, options)
    with patches_counted() as count:
        return draw_sheet(panel(atlas, layer, chosen, options, count), options.size_px)


def figure(atlas: AtlasReader, choice: FigureChoice, options: PatchOptions) -> Image.Image:
    """The network from shallow to deep: a panel for each chosen layer."""
    with patches_counted() as count:
        panels = _panels(atlas, choice, options, count)
        return draw_figure(panels, _title(atlas, options), _caption(atlas, choice, options), options.size_px)


def panel(
    atlas: AtlasReader, layer: Layer, units: Sequence[int], options: PatchOptions, count: PatchCount | None = None
) -> Panel:
    """The blocks of some units of a layer, under its name and a line about it. `count` counts the patches."""
    kind = resolve_patch_kind(atlas, layer, options.kind)
    height, width = patch_size(atlas, layer, kind)
    input_share = height / atlas.input_size[0], width / atlas.input_size[1]
    text = f"{layer.kind} · {layer.units:,} units · {_patch_text(atlas, layer, kind)}"
    if options.troughs:
        text += " · drawn: the lowest"
    if not units and len(_ranked(atlas, layer, options.troughs)):
        text += " · none of them shows a preference"
    elif not units:
        text += " · none of them has troughs" if options.troughs else " · none of them fires"
    return Panel(layer.name, text, _blocks(atlas, layer, units, options, count or PatchCount()), input_share)


def _blocks(atlas: AtlasReader, layer: Layer, units: Sequence[int], options: PatchOptions, count: PatchCount) -> list[Block]:
    kind, slot_count = resolve_patch_kind(atlas, layer, options.kind), min(atlas.k, MAX_PATCHES)
    peaks = _peaks_by_unit(atlas, layer, units, options)
    all_peaks = [peak for unit_peaks in peaks.values() for peak in unit_peaks]
    patches = cut_patches(atlas, all_peaks, options, count)
    method = options.attribution
    attributions = cut_attributions(atlas, all_peaks, kind, method, options.size_px) if method else {}
    ties = _ties(atlas, layer, options.troughs) if all_peaks else {}
    meanings = read_meanings(atlas, layer.name)
    nothing = "no troughs" if options.troughs else "dead"
    blocks = []
    for unit, unit_peaks in peaks.items():
        keys = [(unit, peak.rank) for peak in unit_peaks]
        value = f"{unit_peaks[0].value:.3g}" if unit_peaks else nothing
        beside = [attributions[key] for key in keys] if method else None
        notice = block_notice(unit_peaks, ties.get(unit), nothing)
        blocks.append(
            Block(str(unit), value, [patches[key] for key in keys], slot_count, beside, notice, meanings[unit].name or "")
        )
    return blocks


def _peaks_by_unit(atlas: AtlasReader, layer: Layer, units: Sequence[int], options: PatchOptions) -> dict[int, list[Peak]]:
    """The peaks, or troughs, of some units that are drawn, by rank."""
    peaks: dict[int, list[Peak]] = {unit: [] for unit in units}
    for row in _ranked(atlas, layer, options.troughs, units[0] if len(units) == 1 else None).to_pylist():
        if row["unit"] in peaks and row["rank"] <= MAX_PATCHES:
            peaks[row["unit"]].append(Peak(**row))
    return peaks


def _ranked(atlas: AtlasReader, layer: Layer, troughs: bool, unit: int | None = None) -> pa.Table:
    """What is drawn of a layer or of one of its units: peaks or troughs, by unit and rank."""
    return atlas.troughs(layer.name, unit) if troughs else atlas.peaks(layer.name, unit)


def _ties(atlas: AtlasReader, layer: Layer, troughs: bool) -> dict[int, Tie]:
    """The units of a layer the last of whose peaks, or troughs, tie."""
    return atlas.trough_ties(layer.name) if troughs else atlas.ties(layer.name)


def _check_troughs(atlas: AtlasReader, layers: Sequence[Layer], options: PatchOptions) -> None:
    """Raises `AtlasError` where troughs are asked for and none of the layers has them."""
    if not options.troughs or any(len(atlas.troughs(layer.name)) for layer in layers):
        return
    atlas.row_count("troughs")  # raises where there are none at all, and says why
    names = ", ".join(repr(layer.name) for layer in layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    having = [layer.name for layer in atlas.layers if not layer.rectified]
    raise AtlasError(f"there are no troughs of layer {names}, which a rectifier follows. There are of: {', '.join(having)}")


def block_notice(patches: Sequence[Any], tie: Tie | None, nothing: str = "dead") -> str:
    """What is written over a block that has no patches (`nothing`), or whose patches show no preference; empty for all others."""
    if not patches:
        return nothing
    return f"{tie.images:,} images tie" if tie is not None and tie.wholly else ""


# ── which layers and units ──────────────────────────────────────────────────────────────────────────────────────────


def choose_overview_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Up to six layers from the first to the last, evenly: those with maps and activations where there are any."""
    with_maps = [layer for layer in layers if layer.map_height * layer.map_width > 1] or list(layers)
    candidates = [layer for layer in with_maps if layer.activation != "none"] or with_maps
    indices = np.linspace(0, len(candidates) - 1, min(FIGURE_LAYERS, len(candidates)))
    return [candidates[round(float(index))] for index in indices]


def choose_overview_units(
    atlas: AtlasReader, layer: Layer, seed: int, candidates: Collection[int] | None = None, troughs: bool = False
) -> list[int]:
    """Nine units of a layer, or of the candidates, drawn at random.

    They are drawn among the units with all their peaks, or troughs, or, where those are too few, with any. Units that show no preference are left
    out.
    """
    peak_counts = np.bincount(_ranked(atlas, layer, troughs)["unit"].to_numpy(), minlength=layer.units)
    peak_counts[units_without_preference(_ties(atlas, layer, troughs))] = 0
    if candidates is not None:
        peak_counts[[unit for unit in range(layer.units) if unit not in candidates]] = 0
    return draw_units(peak_counts, layer.name, seed)


def draw_units(peak_counts: NDArray[np.integer[Any]], layer_name: str, seed: int) -> list[int]:
    """Nine units of a layer, drawn at random by how many peaks each has, 0 for those to leave out; see `choose_overview_units`."""
    full, any_peaks = np.flatnonzero(peak_counts == peak_counts.max()), np.flatnonzero(peak_counts)
    candidates = (full if len(full) >= FIGURE_UNITS and len(any_peaks) else any_peaks).tolist()
    chance = random.Random(f"{seed} {layer_name}")
    return sorted(chance.sample(candidates, min(FIGURE_UNITS, len(candidates))))


def _panels(atlas: AtlasReader, choice: FigureChoice, options: PatchOptions, count: PatchCount) -> list[Panel]:
    attributed = _attributed_units(atlas, options)
    layers = [layer for layer in atlas.layers if attributed is None or layer.name in attributed]
    chosen = _chosen_layers(atlas, layer_patterns(choice.layers) or ())
    _check_troughs(atlas, chosen or layers, options)
    if options.troughs:
        layers = [layer for layer in layers if len(atlas.troughs(layer.name))]
    panels = []
    for layer in chosen or choose_overview_layers(layers):
        if choice.units is not None:
            units = layer.unit_numbers(choice.units) or []
        else:
            candidates = None if attributed is None else attributed.get(layer.name, set())
            units = choose_overview_units(atlas, layer, choice.seed, candidates, options.troughs)
        _check_attributed(atlas, layer, units, attributed, options)
        panels.append(panel(atlas, layer, units, options, count))
    return panels


def _chosen_layers(atlas: AtlasReader, patterns: Sequence[str]) -> list[Layer]:
    """The layers of these names, or that these globs match, in the order of the patterns."""
    chosen: dict[str, Layer] = {}
    for pattern, matching in match_layers(atlas.layers, patterns).items():
        chosen |= {layer.name: layer for layer in matching or [atlas.layer(pattern)]}
    return list(chosen.values())


def _attributed_units(atlas: AtlasReader, options: PatchOptions) -> dict[str, set[int]] | None:
    """By layer, the units that the method of attribution was used on; None without a method."""
    if options.attribution is None:
        return None
    attributed: dict[str, set[int]] = {}
    for layer_name, unit in atlas.attributed(options.attribution):
        attributed.setdefault(layer_name, set()).add(unit)
    return attributed


def _check_attributed(
    atlas: AtlasReader, layer: Layer, units: Sequence[int], attributed: dict[str, set[int]] | None, options: PatchOptions
) -> None:
    """Raises `AtlasError` where the method of attribution was used on none of the units."""
    if attributed is not None and attributed.get(layer.name, set()).isdisjoint(units):
        raise AtlasError(
            f"{options.attribution!r} was not used on these units of layer {layer.name!r}; make it with: unitscope attribute "
            f"{atlas.folder} --method {options.attribution} --layers {layer.name!r}"
        )


# ── in words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _patch_text(atlas: AtlasReader, layer: Layer, kind: str) -> str:
    """What a patch shows: the receptive field and, where that isn't what is drawn, what is."""
    height, width = layer.receptive_field_height, layer.receptive_field_width
    text = f"field {_size_text(height, width)}"
    if height >= atlas.input_size[0] and width >= atlas.input_size[1]:
        text += " (whole input)"
    if kind == "effective":
        return f"{text}, drawn: effective field {_size_text(*patch_size(atlas, layer, kind))}"
    return f"{text}, drawn: whole image crop" if kind == "image" else text


def _size_text(height: int, width: int) -> str:
    return f"{height} px" if height == width else f"{height} x {width} px"


def _title(atlas: AtlasReader, options: PatchOptions) -> str:
    network = Path(atlas.manifest["network"]["model"]).name
    return f"Where the units of {network} are lowest" if options.troughs else f"What the units of {network} look for"


def _caption(atlas: AtlasReader, choice: FigureChoice, options: PatchOptions) -> list[str]:
    chance_text = "drawn at random" if options.troughs else "drawn at random among those that fire"
    choice_text = "as asked" if choice.units is not None else chance_text
    patch_count = min(atlas.k, MAX_PATCHES)
    noun = "patches" if atlas.manifest.get("per_image", 1) > 1 else "images"
    images_text = f"{patch_count} {noun}" if patch_count > 1 else "image"
    end = "lowest" if options.troughs else "highest"
    attribution_text = f" Grey: what {options.attribution} finds in them." if options.attribution else ""
    return [
        f"Each block is one unit ({choice_text}): the {images_text} among {atlas.manifest['read']:,} in which its activation is {end},",
        "cut to what the unit sees, or what matters of it, at one size; the square at a layer's name shows how much of the input that is.",
        f"Left: unit number, right: its {end} activation. Hatched: padding beyond the image.{attribution_text}",
    ]
