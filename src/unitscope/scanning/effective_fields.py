"""Effective receptive fields of the scanned layers: which part of its receptive field a layer really depends on.

The smallest box around a cell that holds 95 % of the squared gradient of its value with respect to the input, averaged over the
peaks of a few images of the sample (Luo, Li, Urtasun & Zemel 2016, *Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks*, arXiv 1701.04128). Deep layers of modern networks have receptive fields larger than the image; this says which part of it matters.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, log

import numpy as np
import torch
from torch import Tensor, nn

from unitscope.images.content import evenly_spaced
from unitscope.images.protocol import Pixels
from unitscope.layers import TracedLayer, tapped
from unitscope.networks.gradients import ContiguousNormGradients
from unitscope.networks.precision import exact_inference
from unitscope.records import Layer
from unitscope.scanning.partial_results import unit_ranges
from unitscope.scanning.sample import Sample
from unitscope.session.loader import Loader
from unitscope.session.session import Session

LOG = logging.getLogger(__name__)

IMAGES = 2
ENERGY_SHARE = 0.95
MEASURED_LAYERS = 6
"""About so many layers are measured: each costs a backward pass through all that lies below it, so measuring every one would cost the square
of the depth. Of four networks whose layers were all measured, sizes between those of 6 layers are off by 7 to 10 % in the median and by 17 to
49 % in one of ten (EfficientNet-Lite0 and, with random weights, ResNet-18, GoogLeNet and MobileNetV3); with 24 layers hardly less."""
MIN_SHARE = 1 / 8
"""Layers whose receptive field is no larger than this share of the input's sides aren't measured: they are drawn as they are."""


@dataclass(frozen=True, slots=True)
class CellOfUnit:
    """One cell of one unit, whose gradient is looked at; `image` is its image's index in the batch."""

    unit: int
    image: int
    y: int
    x: int


CellsByLayer = list[list[CellOfUnit]]
"""For every layer, the cells to look at: at most one an image."""


def with_effective_fields(session: Session, sample: Sample) -> list[Layer]:
    """The layers' records with effective receptive fields.

    In each of two images, one unit a layer is looked at: the one whose spatial maximum there has the highest z-score.
    """
    readable = _first_readable(sample, session.loader)
    groups = _comparable_layers(session)
    measured_indices = sorted(_evenly_chosen(groups))
    cells_by_image = _most_excited_cells(sample, [index for index, _ in readable], session.layers, measured_indices)
    with session.running() as threads:
        futures = [
            threads.submit(_energies_of_image, session, cells, pixels)
            for cells, (_, pixels) in zip(cells_by_image, readable, strict=True)
        ]
        energies_by_image = [future.result() for future in futures]
    layers = [traced.layer for traced in session.layers]
    for index in measured_indices:
        of_images = [
            (cells[index], energy)
            for cells, energies_by_layer in zip(cells_by_image, energies_by_image, strict=True)
            if (energy := energies_by_layer[index]) is not None
        ]
        layers[index] = _with_effective_field(session.layers[index], of_images)
    for group in groups:
        _interpolate(layers, group)
    return layers


def _comparable_layers(session: Session) -> list[list[int]]:
    """The indices of the layers whose effective receptive field matters, which is so of large fields of cells in rows and columns, by receptive
    field; those with one cell for the whole image, such as gates of squeeze and excitation, apart."""
    _, height, width = session.trace.input_shape
    groups: tuple[list[int], list[int]] = ([], [])
    for index, traced in enumerate(session.layers):
        layer = traced.layer
        is_large = layer.receptive_field_height > MIN_SHARE * height or layer.receptive_field_width > MIN_SHARE * width
        if traced.layout.is_spatial and is_large:
            groups[layer.map_height * layer.map_width == 1].append(index)
    sizes = [layer.layer.receptive_field_height * layer.layer.receptive_field_width for layer in session.layers]
    return [sorted(group, key=lambda index: (sizes[index], index)) for group in groups]


def _evenly_chosen(groups: Sequence[list[int]]) -> Iterator[int]:
    """Of each group some, evenly from the first to the last: its share of those that are measured, but two at least."""
    total = sum(map(len, groups))
    for group in groups:
        count = max(2, round(MEASURED_LAYERS * len(group) / max(1, total)))
        yield from (group[i] for i in evenly_spaced(len(group), count))


def _interpolate(layers: list[Layer], group: Sequence[int]) -> None:
    """Give those of a group that weren't measured a size between those of measured ones: on a logarithmic scale, by receptive field and, where
    that is the same, by order; and no larger than the receptive field. Beyond the last that could be measured nothing is known."""
    known = [index for index in group if layers[index].effective_field_measured]
    between = group[group.index(known[0]) : group.index(known[-1])] if known else []
    heights, widths = (_sizes_between(layers, known, between, side) for side in ("height", "width"))
    for index, height, width in zip(between, heights, widths, strict=True):
        if not layers[index].effective_field_measured:
            layers[index] = replace(layers[index], effective_field_height=height, effective_field_width=width)


def _sizes_between(layers: Sequence[Layer], known: Sequence[int], indices: Sequence[int], side: str) -> list[int]:
    """Heights, or widths, of the effective receptive fields at these indices, from those at the `known` ones."""
    fields = {index: getattr(layers[index], f"receptive_field_{side}") for index in (*known, *indices)}
    places = {index: field + index / len(layers) for index, field in fields.items()}
    in_order = sorted(known, key=lambda index: places[index])
    logarithms = [log(getattr(layers[index], f"effective_field_{side}")) for index in in_order]
    sizes = np.exp(np.interp([places[i] for i in indices], [places[i] for i in in_order], logarithms)) if known else []
    return [min(round(float(size)), fields[index]) for index, size in zip(indices, sizes, strict=True)]


def _with_effective_field(traced: TracedLayer, measured: Sequence[tuple[list[CellOfUnit], Tensor]]) -> Layer:
    if not measured:
        return traced.layer
    cells = [cell for cells_of_image, _ in measured for cell in cells_of_image]
    size = effective_size(traced, cells, torch.cat([energy for _, energy in measured]))
    if size is None:
        return traced.layer
    return replace(traced.layer, effective_field_height=size[0], effective_field_width=size[1], effective_field_measured=True)


def _first_readable(sample: Sample, loader: Loader) -> list[tuple[int, Pixels]]:
    """The first images of the sample that can still be read: their indices in it, and their pixels."""
    readable: list[tuple[int, Pixels]] = []
    for index in sample.images.argsort().tolist():
        pixels = loader.load(loader.item(int(sample.images[index]))).pixels
        if pixels is not None:
            readable.append((index, pixels))
        if len(readable) == IMAGES:
            break
    return readable


def _most_excited_cells(
    sample: Sample, images: Sequence[int], layers: Sequence[TracedLayer], measured_indices: Sequence[int]
) -> list[CellsByLayer]:
    """For each of some images of the sample, every measured layer's unit with the highest z-score, and its cell; none where no unit is
    active."""
    cells: list[CellsByLayer] = [[[] for _ in layers] for _ in images]
    unit_ranges_of_layers = [unit_range for _, unit_range in unit_ranges(layers)]
    for index in measured_indices:
        traced, unit_range = layers[index], unit_ranges_of_layers[index]
        values = sample.values[:, unit_range]
        deviations = values - values.nanmean(0)
        z_scores = deviations / deviations.square().nanmean(0).sqrt().clamp(min=1e-12)
        for cells_of_image, image in zip(cells, images, strict=True):
            is_active = values[image] > 0 if traced.layer.rectified else ~values[image].isnan()
            unit = int(z_scores[image].nan_to_num(0, 0, 0).masked_fill(~is_active, -torch.inf).argmax())
            y, x = divmod(int(sample.cells[image, unit_range][unit]), traced.layer.map_width)
            cells_of_image[index] = [CellOfUnit(unit, 0, y, x)] if is_active.any() else []
    return cells


def _energies_of_image(replica: nn.Module, session: Session, cells: CellsByLayer, pixels: Pixels) -> list[Tensor | None]:
    return energies(replica, session.layers, cells, session.loader.normalise([pixels], session.input_format))


def energies(network: nn.Module, layers: Sequence[TracedLayer], cells: CellsByLayer, images: Tensor) -> list[Tensor | None]:
    """For every layer the squared gradients of its cells' values, of shape (cell, y, x), in float64 and each with sum 1.

    One forward pass serves all layers. None where a layer has no cells, or no gradient comes through.
    """
    values: dict[int, Tensor] = {}

    def keep(layer: int, maps: Tensor) -> None:
        indices = [(cell.image, cell.unit, cell.y, cell.x) for cell in cells[layer]]
        if indices:
            values[layer] = maps[tuple(torch.tensor(indices, device=maps.device).T)].sum()

    leaf = images.detach().requires_grad_()
    with torch.enable_grad(), exact_inference(network, images.device):
        try:
            with ContiguousNormGradients(), tapped(network, layers, keep) as tap:
                tap.run(leaf.clone())  # a copy, so that networks may change their input in place
        except RuntimeError:  # what autograd can't follow comes after the layers that were read by then
            LOG.debug("effective receptive fields of the last layers can't be measured", exc_info=True)
        return [_energy(values.get(layer), leaf, of_layer) for layer, of_layer in enumerate(cells)]


def _energy(value: Tensor | None, leaf: Tensor, cells: Sequence[CellOfUnit]) -> Tensor | None:
    if value is None or not value.requires_grad:
        return None
    try:
        gradient = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
    except RuntimeError:  # autograd has no way back, as through some in-place operations
        LOG.debug("an effective receptive field can't be measured", exc_info=True)
        return None
    energy = gradient[[cell.image for cell in cells]].detach().cpu().double().nan_to_num(0, 0, 0).square().sum(1)
    return energy / energy.sum((1, 2), keepdim=True).clamp(min=1e-300)


def effective_size(traced: TracedLayer, cells: Sequence[CellOfUnit], energy: Tensor | None) -> tuple[int, int] | None:
    """Height and width of the box in network-input pixels, no larger than the input; None where there is no energy.

    The box grows around the cell's own centre, which may lie between pixels, and keeps the shape of the receptive field: a few
    gradients say how far a layer looks, not that it looks farther up than sideways.
    """
    if energy is None or not energy.sum() > 0:
        return None
    shape = traced.layer.receptive_field_height, traced.layer.receptive_field_width
    centres = [
        (float(traced.receptive_fields.centres_y[cell.y]), float(traced.receptive_fields.centres_x[cell.x])) for cell in cells
    ]
    needed_scales = torch.stack([_needed_scales(energy.shape[1:], centre, shape) for centre in centres])
    height, width = box_holding(energy.flatten(), needed_scales.flatten(), shape)
    return min(height, energy.shape[1]), min(width, energy.shape[2])


def box_holding(energy: Tensor, needed_scales: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the smallest box of that shape that holds 95 % of the energy, in whole pixels.

    `needed_scales` says for each bit of energy how large the box must be to hold it, as a multiple of `shape`.
    """
    order = needed_scales.argsort()
    held_energy = energy[order].cumsum(0)
    scale = float(needed_scales[order][int((held_energy < ENERGY_SHARE * held_energy[-1]).sum())])
    height, width = (max(1, ceil(scale * side - 1e-6)) for side in shape)
    return height, width


def _needed_scales(size: torch.Size, centre: tuple[float, float], shape: tuple[int, int]) -> Tensor:
    """How large a box around `centre` must be to hold each pixel of an image whole, as a multiple of `shape`."""
    rows, columns = (
        (2 * (torch.arange(length, dtype=torch.float64) + 0.5 - middle).abs() + 1) / side
        for length, middle, side in zip(size, centre, shape, strict=True)
    )
    return torch.maximum(rows[:, None], columns)
