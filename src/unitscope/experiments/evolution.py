"""evolve(): one network at several checkpoints of its training (Zeiler & Fergus 2014, section 4, figure 4).

An *evolution* is a folder with an atlas for each checkpoint, all of the same layers and images.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from unitscope.arguments import layer_patterns, shortened, unit_numbers
from unitscope.atlas import Atlas, write_table
from unitscope.atlas.figures import choose_overview_layers, choose_overview_units
from unitscope.atlas.patches import cut_attributions, resolve_patch_kind
from unitscope.atlas.tables import SETTLING
from unitscope.attribution import attribute
from unitscope.drawing import CheckpointPatch, Strip, draw_strips
from unitscope.errors import AtlasError
from unitscope.experiments.evolution_folder import (
    atlas_names,
    check_atlas_name,
    reusable_atlas,
    scan_or_reuse,
    write_order,
)
from unitscope.experiments.settling import (
    keys_read_in_some,
    keys_replaced,
    peaks_without_images,
    replaced_unnamed,
    settling_of_layer,
)
from unitscope.networks import Network, load_network
from unitscope.networks.weights import split_key
from unitscope.records import Layer, Peak

METHOD = "deconvnet"
UNITS_SHOWN = 4


class Evolution:
    """The atlases of one network at several checkpoints of its training, by name, from early to late; `open` finds them in a folder."""

    def __init__(self, folder: Path, atlases: Mapping[str, Atlas]) -> None:
        self.folder, self.atlases = folder, dict(atlases)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], images: Any = None) -> "Evolution":
        """The evolution in a folder; `images` are given where they have moved, or were a data set in memory.

        Raises `AtlasError` where the folder holds no atlases, or where they are not of the same layers and images.
        """
        atlases = {name: Atlas(Path(folder) / name, images=images) for name in atlas_names(Path(folder))}
        if not atlases:
            raise AtlasError(f"{str(folder)!r} holds no atlases; make them with: unitscope evolve CHECKPOINT … --out {folder}")
        first_name, first = next(iter(atlases.items()))
        for name, atlas in atlases.items():
            if [layer.name for layer in atlas.layers] != [layer.name for layer in first.layers]:
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} has other layers than {first_name!r}")
            if atlas.manifest["images"].get("hash") != first.manifest["images"].get("hash"):
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} is of other images than {first_name!r}")
        return cls(Path(folder), atlases)

    @property
    def last(self) -> Atlas:
        return list(self.atlases.values())[-1]

    def settling(self) -> pa.Table:
        """How far each layer stays as it was from one checkpoint to the next: the columns of the table `settling`.

        `overlap` is the share of a unit's peaks that lie in the same images in both, the mean over the units with peaks in either;
        `jumps` the share of units whose strongest image is another. Units that show no preference in one of them are left out. In the
        paper lower layers settle first.

        Images that couldn't be read at some checkpoints, or that were replaced, are left out of all, and a warning says so. Of those that
        were replaced only such can be named, and left out, as the atlases on both sides mention; that there were others is said too.
        """
        self._warn_of_images()
        rows = []
        for (earlier_name, earlier), (later_name, later) in pairwise(self.atlases.items()):
            for layer in earlier.layers:
                overlap, jumps = settling_of_layer(earlier, later, layer, self._unshared_images)
                names = {"before": earlier_name, "after": later_name}
                rows.append({"layer": layer.name, **names, "overlap": overlap, "jumps": jumps})
        return pa.Table.from_pylist(rows, schema=SETTLING.schema)

    def write_settling(self) -> pa.Table:
        """Write what `settling` gives as a table of the folder, and give it back."""
        return write_table(self.settling(), SETTLING, self.folder)

    def figure(self, layers: Sequence[str] | None = None, units: Sequence[int] | None = None, size_px: int = 64) -> Image.Image:
        """A row a unit and a column a checkpoint: its strongest patch there and, where it was made, the attribution of that below.

        A bar marks a jump: the strongest image is another than at the checkpoint before. Without `units`, four a layer of those that
        are active at the last checkpoint.
        """
        chosen_layers = [self.last.layer(name) for name in layer_patterns(layers) or ()] or choose_overview_layers(
            self.last.layers
        )
        numbers = unit_numbers(units)
        strips = [
            Strip(layer.name, unit, self._patches(layer, unit, size_px))
            for layer in chosen_layers
            for unit in (numbers if numbers is not None else self._units_shown(layer))
        ]
        return draw_strips(strips, list(self.atlases), size_px)

    def _units_shown(self, layer: Layer) -> list[int]:
        """Units that are active in the end: of those with attributions, where there are such."""
        attributed = {unit for name, unit in self._attributed_units.get(list(self.atlases)[-1], ()) if name == layer.name}
        return choose_overview_units(self.last, layer, 0, attributed or None)[:UNITS_SHOWN]

    @cached_property
    def _attributed_units(self) -> dict[str, set[tuple[str, int]]]:
        """Layer and number of the units that have attributions, by checkpoint."""
        return {name: atlas.attributed(METHOD) for name, atlas in self.atlases.items() if METHOD in atlas.methods}

    @cached_property
    def _keys_read_in_some(self) -> set[str]:
        return keys_read_in_some(self.atlases.values())

    @cached_property
    def _keys_replaced(self) -> set[str]:
        return keys_replaced(self.atlases.values())

    @cached_property
    def _unshared_images(self) -> set[int]:
        """Numbers of the images that aren't the same at all checkpoints."""
        keys = self._keys_read_in_some | self._keys_replaced
        rows = (row for atlas in self.atlases.values() for row in atlas.table("images").select(["image", "key"]).to_pylist())
        return {row["image"] for row in rows if row["key"] in keys}

    def _warn_of_images(self) -> None:
        unreadable, replaced = self._keys_read_in_some, self._keys_replaced
        for keys, event in ((unreadable, "could be read at some checkpoints only"), (replaced, "were replaced in between")):
            if keys:
                text = f"{len(keys):,} of {self.last.manifest['listed']:,} images {event}, such as {min(keys)!r}: overlaps and jumps leave them out"
                warnings.warn(text, stacklevel=3)
        pairs = pairwise(self.atlases.items())
        between = [
            f"{earlier!r} and {later!r}"
            for (earlier, earlier_atlas), (later, later_atlas) in pairs
            if replaced_unnamed(earlier_atlas, later_atlas)
        ]
        if between:
            text = f"images were replaced between {'; '.join(between)} that the atlases don't name: overlaps and jumps there count them"
            warnings.warn(text, stacklevel=3)

    def _patches(self, layer: Layer, unit: int, size_px: int) -> list[CheckpointPatch]:
        """A unit's strongest patch at each checkpoint."""
        patches: list[CheckpointPatch] = []
        previous_image = None
        for name, atlas in self.atlases.items():
            peak = next((Peak(**row) for row in atlas.peaks(layer.name, unit).slice(0, 1).to_pylist()), None)
            if peak is None:
                patches.append(CheckpointPatch(None, None, has_jumped=False))
                continue
            kind = resolve_patch_kind(atlas, atlas.layer(layer.name), "auto")
            attribution = None
            if (layer.name, unit) in self._attributed_units.get(name, ()):
                attribution = cut_attributions(atlas, [peak], kind, METHOD, size_px)[unit, peak.rank]
            image = self._strongest_shared_image(atlas, layer, unit)
            has_jumped = None not in (previous_image, image) and previous_image != image
            patches.append(CheckpointPatch(atlas.patch(peak, kind, size_px), attribution, has_jumped))
            previous_image = image
        return patches

    def _strongest_shared_image(self, atlas: Atlas, layer: Layer, unit: int) -> int | None:
        [shared] = peaks_without_images([atlas.peaks(layer.name, unit)], self._unshared_images, atlas.k)
        return next(iter(shared["image"].to_pylist()), None)


def evolve(
    model: str,
    checkpoints: Sequence[str | os.PathLike[str]],
    images: Any,
    out: str | os.PathLike[str] = "evolution",
    *,
    layers: Sequence[str] | None = None,
    preprocess: Any = None,
    device: str = "auto",
    on_checkpoint: Callable[[str], None] | None = None,
) -> Evolution:
    """Scan one network with the weights of several checkpoints, an atlas each in `out`, and attribute some units of each layer.

    `model` is a model string, `checkpoints` are state dicts, from early to late; an atlas has the name of its file, and of the key of
    `PATH:KEY`. What is there already of the same weights, images and layers is left alone. `on_checkpoint` is told the name of each before it
    begins. How far layers settle is written as the table `settling`.

    Raises as `scan` does, and `AtlasError` where two checkpoints have one name, or where another atlas is in the way.
    """
    paths = dict(zip(_atlas_names_of(checkpoints), map(str, checkpoints), strict=True))
    options = {"layers": layer_patterns(layers), "preprocess": preprocess, "device": device}
    for name, path in paths.items():  # all of them, before hours of work
        reusable_atlas(load_network(model, path, 0), images, Path(out) / name, **options)
    for name, path in paths.items():
        if on_checkpoint is not None:
            on_checkpoint(name)
        scan_or_reuse(load_network(model, path, 0), images, Path(out) / name, **options)
    write_order(Path(out), list(paths))
    evolution = Evolution.open(out, images=images)
    last = evolution.last
    followed = {layer.name: choose_overview_units(last, layer, 0)[:UNITS_SHOWN] for layer in choose_overview_layers(last.layers)}
    for name, path in paths.items():
        attribute_units(evolution.atlases[name], load_network(model, path, 0), followed, device)
    evolution.write_settling()
    return evolution


def _atlas_names_of(checkpoints: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Each atlas's name, that of its file. Raises `AtlasError` where two have one name, or where there are none."""
    if isinstance(checkpoints, (str, os.PathLike)) or not isinstance(checkpoints, Iterable):
        raise AtlasError(f"checkpoints must be a list of files, from early to late, not {shortened(checkpoints)}")
    paths_and_keys = [split_key(str(checkpoint)) for checkpoint in checkpoints]
    names = [f"{path.stem}-{key}" if key else path.stem for path, key in paths_and_keys]
    for name in names:
        check_atlas_name(name)
    if not names:
        raise AtlasError("an evolution needs at least one checkpoint")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise AtlasError(
            f"two checkpoints have the name {repeated!r}; an atlas is named for its file, so give the files names of their own"
        )
    return names


def attribute_units(atlas: Atlas, network: Network, units_by_layer: Mapping[str, Sequence[int]], device: str) -> None:
    """Deconvnet attributions of some units; those that are dead at that checkpoint have none."""
    for layer, units in units_by_layer.items():
        with_peaks = set(atlas.peaks(layer)["unit"].to_pylist())
        chosen = [unit for unit in units if unit in with_peaks]
        if chosen:
            attribute(atlas, METHOD, network, layers=[layer], units=chosen, device=device)
