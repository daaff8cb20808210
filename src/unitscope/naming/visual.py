"""tune_visually(): the angle, the spatial frequency, the phase and the colour that each unit is tuned to, and how much of its response that explains."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unitscope.atlas import Atlas, check_table_writable, write_table
from unitscope.atlas.meaning import MIN_EXPLAINED
from unitscope.atlas.tables import VISUAL_TUNING
from unitscope.errors import AtlasError
from unitscope.layers import TracedLayer
from unitscope.naming.patch_features import FEATURES, explained_share, patch_features
from unitscope.naming.stimuli import Tiles, colour_fields, gratings
from unitscope.naming.tuning_curves import ColourTuning, GratingTuning, colour_tuning, grating_tuning
from unitscope.naming.words import describe
from unitscope.networks import Network
from unitscope.records import Layer
from unitscope.session.replica_threads import results_in_order
from unitscope.session.session import Session, read_layers
from unitscope.session.stored import open_atlas_session

Floats = NDArray[np.float64]

MAX_GRATING_SHARE = 1 / 4
"""Gratings are looked for in layers whose receptive fields' sides are no more than this share of the input's."""
PICTURES_AT_ONCE = 16


def tune_visually(
    atlas: Atlas,
    network: "nn.Module | Network | None" = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """What every unit is tuned to among gratings and colours, as the table `visual_tuning` of the atlas.

    The network runs on gratings of 24 angles, 14 periods and three phases, several in a picture, and on fields of one colour; what
    the cells give that see one grating each, and the cell in the middle of each colour, is the tuning (Hubel & Wiesel 1962; De Valois et al.
    1982). Gratings are for layers whose receptive fields are small; their columns are null for others. How much of the response to
    photographs a tuning explains is measured on patches of the sample: a linear model of how well a patch matches the unit's grating, of its
    brightness, colour and contrast is fitted on half a of the images, and explains so much of the variance in half b.

    Raises `AtlasError` for an atlas of other inputs than pictures of three colours, and as `check` does where the network can't be built.
    """
    check_table_writable(VISUAL_TUNING, atlas)
    if atlas.preprocessing is None or atlas.preprocessing.channels != 3:
        raise AtlasError(
            f"the inputs of {str(atlas.folder)!r} aren't pictures of three colours, so gratings and colours can't be shown; leave it out with "
            "--no-visual"
        )
    with open_atlas_session(atlas, network, device) as session:
        tunings = _tunings(session, on_images)
    tuned = [waves for waves, _ in tunings]
    columns: dict[str, list[Any]] = {name: [] for name in VISUAL_TUNING.schema.names}
    for layer, features, (waves, colours) in zip(atlas.layers, patch_features(atlas, tuned), tunings, strict=True):
        for name, values in _layer_columns(layer, waves, colours, *explained_share(features)).items():
            columns[name].append(values)
    arrays = {name: pa.array(np.concatenate(values), from_pandas=True) for name, values in columns.items()}
    return write_table(pa.table(arrays), VISUAL_TUNING, atlas, versions={"torch": torch.__version__})


# ── responses to stimuli ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ProbedCells:
    """The cells of a layer that are read: the one in the middle and, where fields are small, for each tile the one in its middle.

    `rows` and `columns` begin with the middle cell; `offsets` say how far below and to the right of its tile's centre each tile's cell has
    its field's middle, of shape (tile, axis); None where fields aren't small.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    offsets: Floats | None

    @classmethod
    def of(cls, traced: TracedLayer, tiles: Tiles) -> "ProbedCells":
        layer = traced.layer
        middle = np.array([layer.map_height // 2]), np.array([layer.map_width // 2])
        small = MAX_GRATING_SHARE * min(tiles.height, tiles.width)
        if max(layer.receptive_field_height, layer.receptive_field_width) > small or layer.map_height * layer.map_width == 1:
            return cls(*middle, None)
        rows, columns = (axis.ravel() for axis in np.mgrid[: layer.map_height, : layer.map_width])
        boxes = np.stack([np.asarray(side) for side in traced.receptive_fields.boxes(np.zeros_like(rows), rows, columns)], axis=1)
        corners = tiles.corners()
        inside = np.logical_and(boxes[None, :, :2] >= corners[:, None], boxes[None, :, 2:] <= corners[:, None] + tiles.side)
        inside = np.logical_and(inside[:, :, 0], inside[:, :, 1])
        if not np.any(inside, axis=1).all():
            return cls(*middle, None)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        offsets = centres[None] - (corners[:, None] + tiles.side / 2)
        nearest = np.where(inside, (offsets**2).sum(2), np.inf).argmin(1)
        return cls(
            np.concatenate([middle[0], rows[nearest]]),
            np.concatenate([middle[1], columns[nearest]]),
            offsets[np.arange(len(corners)), nearest],
        )


def stimulus_count(atlas: Atlas) -> int:
    """How many pictures are shown."""
    return sum(1 for _ in _pictures(Tiles.of(*atlas.input_size)))


def _pictures(tiles: Tiles) -> Iterator[Floats]:
    yield from tiles.pictures(list(gratings()))
    yield from (colour.draw(tiles.height, tiles.width) for colour in colour_fields())


def _tunings(session: Session, on_images: Callable[[int], None] | None) -> list[tuple[GratingTuning | None, ColourTuning]]:
    _, height, width = session.loader.shape
    tiles, grating_count = Tiles.of(height, width), sum(1 for _ in gratings())
    cells = [ProbedCells.of(traced, tiles) for traced in session.layers]
    pictures, length = _pictures(tiles), session.images_per_pass(PICTURES_AT_ONCE)
    batches = iter(lambda: list(islice(pictures, length)), [])
    pieces: list[list[Tensor]] = []
    with session.running() as threads:

        def submit(pictures: Sequence[Floats]) -> "Future[list[Tensor]]":
            return threads.submit(_responses, session, cells, pictures)

        for values in results_in_order(submit, batches, 2 * len(session.replicas.networks)):
            pieces.append(values)
            if on_images is not None:
                on_images(len(values[0]))
    tile_count = len(tiles.corners())
    tiled = -(-grating_count // tile_count)
    tunings = []
    for of_cells, of_layer in zip(cells, zip(*pieces, strict=True), strict=True):
        responses = torch.cat(of_layer).double().numpy()  # of shape (picture, cell, unit)
        colours = responses[tiled:, 0]
        waves = None
        if of_cells.offsets is not None:
            by_grating = responses[:tiled, 1:].reshape(tiled * tile_count, -1)[:grating_count]
            offsets = np.tile(of_cells.offsets, (tiled, 1))[:grating_count]
            waves = grating_tuning(by_grating, colours[-3], offsets)  # the greys come last, the middle one in their middle
        tunings.append((waves, colour_tuning(colours)))
    return tunings


def _responses(replica: nn.Module, session: Session, cells: Sequence[ProbedCells], pictures: Sequence[Floats]) -> list[Tensor]:
    """What each layer's cells give, of shape (picture, cell, unit)."""
    preprocessing = session.loader.preprocessing
    assert preprocessing is not None  # noqa: S101 - checked before
    pixels = torch.from_numpy(np.stack(pictures))
    normalised = (pixels - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    inputs = session.input_format.convert(normalised.permute(0, 3, 1, 2))

    def read(layer: int, maps: Tensor) -> Tensor:
        return maps[:, :, cells[layer].rows, cells[layer].columns].movedim(1, 2).float().cpu().clone()

    return read_layers(replica, session.layers, inputs, read)


def _agree(weights: Floats, hue: float, hue_gain: float, brightness_gain: float) -> bool:
    """True where photographs and stimuli say the same of the feature with the largest weight: more of it raises the response, and of colours it is
    the hue, within 60 degrees, that does so in both."""
    feature = FEATURES[int(np.argmax(np.abs(weights)))]
    weight = dict(zip(FEATURES, weights.tolist(), strict=True))
    if feature in ("red", "yellow"):
        along = weight["red"] * np.cos(np.deg2rad(hue)) + weight["yellow"] * np.sin(np.deg2rad(hue))
        return bool(hue_gain > 0 and along >= 0.5 * np.hypot(weight["red"], weight["yellow"]))
    return bool(weight[feature] * (brightness_gain if feature == "brightness" else 1) > 0)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _layer_columns(
    layer: Layer, waves: GratingTuning | None, colours: ColourTuning, explained: Floats, weights: Floats
) -> dict[str, Any]:
    none = np.full(layer.units, np.nan)
    waves = waves or GratingTuning(*(none,) * 6)
    cycles = min(layer.receptive_field_height, layer.receptive_field_width) / waves.period_px
    words = [
        describe(
            FEATURES[int(np.argmax(np.abs(weights[u])))],
            waves.angle[u],
            waves.phase[u],
            cycles[u],
            colours.hue[u],
            colours.brightness[u],
        )
        if explained[u] >= MIN_EXPLAINED and _agree(weights[u], colours.hue[u], colours.gain[u], colours.brightness[u])
        else None
        for u in range(layer.units)
    ]
    return {
        "layer": np.full(layer.units, layer.name, dtype=object),
        "unit": np.arange(layer.units),
        "description": np.array(words, dtype=object),
        "explained": explained,
        "grating_gain": waves.gain,
        "angle": waves.angle,
        "angle_selectivity": waves.selectivity,
        "period_px": waves.period_px,
        "cycles_per_receptive_field": cycles,
        "phase": waves.phase,
        "phase_modulation": waves.modulation,
        "hue": colours.hue,
        "hue_gain": colours.gain,
        "hue_opponent": colours.opponent,
        "brightness_gain": colours.brightness,
    }
