"""evolve(): one network at several moments of its training (Zeiler & Fergus 2014, section 4, figure 4).

An *evolution* is a folder with an atlas for each moment, all of the same layers and images.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from unitscope.arguments import layer_patterns, shortened, unit_numbers
from unitscope.atlas import Atlas, new_atlas_folder, write_table
from unitscope.atlas.figures import Drawn, box_drawn, firing_units, projections, spread_layers
from unitscope.atlas.schema import MANIFEST
from unitscope.atlas.tables import SETTLING
from unitscope.atlas.ties import without_preference
from unitscope.attribution import attribute
from unitscope.drawing import Moment, Strip, draw_strips
from unitscope.errors import AtlasError, first_line
from unitscope.files import atomic_write
from unitscope.images import as_source, same_images
from unitscope.images.content import image_hash, sum_of_hashes
from unitscope.networks import Network, load_network
from unitscope.networks.weights import split_key
from unitscope.records import Layer, Peak
from unitscope.scanning import scan
from unitscope.session.opening import preprocessing_of

METHOD = "deconvnet"
ORDER, TABLE = "evolution.json", SETTLING.file
SEPARATORS = ("/", "\\", "\0")
UNITS_SHOWN = 4


class Evolution:
    """The atlases of one network at several moments, by name, in the order in which they were made or given.

    Raises `AtlasError` where the folder holds none, or where they are not of the same layers and images.
    """

    def __init__(self, folder: str | os.PathLike[str], images: Any = None) -> None:
        self.folder = Path(folder)
        self.atlases = {name: Atlas(self.folder / name, images=images) for name in epochs_in(self.folder)}
        if not self.atlases:
            raise AtlasError(f"{str(folder)!r} holds no atlases; make them with: unitscope evolve CHECKPOINT … --out {folder}")
        first, *others = self.atlases.items()
        for name, atlas in others:
            if [layer.name for layer in atlas.layers] != [layer.name for layer in first[1].layers]:
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} has other layers than {first[0]!r}")
            if atlas.manifest["images"].get("hash") != first[1].manifest["images"].get("hash"):
                raise AtlasError(f"the atlas {name!r} in {str(folder)!r} is of other images than {first[0]!r}")

    @property
    def last(self) -> Atlas:
        return list(self.atlases.values())[-1]

    def settling(self) -> pa.Table:
        """How far each layer stays as it was from one moment to the next, written as `evolution.parquet`.

        `overlap` is the share of a unit's peaks that lie in the same images in both, the mean over the units with peaks in either;
        `jumps` the share of units whose strongest image is another. Units that show no preference in one of them are left out. In the
        paper lower layers settle first.

        Images that couldn't be read in some moments, or that were replaced, are left out of all, which a warning tells. Of those that
        were replaced only such can be named, and left out, as the atlases on both sides mention; that there were others is told too.
        """
        rows = []
        self._warn_of_images()
        for (before, one), (after, two) in pairwise(self.atlases.items()):
            for layer in one.layers:
                mute = [unit for atlas in (one, two) for unit in without_preference(atlas.ties(layer.name))]
                told = [atlas.peaks(layer.name).filter(~pc.field("unit").isin(mute)) for atlas in (one, two)]
                earlier, later = _without(self._unshared, told, one.k)
                overlap, jumps = _change(earlier, later, layer.units)
                rows.append({"layer": layer.name, "before": before, "after": after, "overlap": overlap, "jumps": jumps})
        return write_table(pa.Table.from_pylist(rows, schema=SETTLING.schema), SETTLING, self.folder)

    def figure(self, layers: Sequence[str] | None = None, units: Sequence[int] | None = None, size_px: int = 64) -> Image.Image:
        """A row a unit and a column a moment: its strongest patch there and, where it was made, the projection of that below.

        A bar marks a jump: the strongest image is another than in the moment before. Without `units`, four a layer of those that
        fire in the last moment.
        """
        chosen = [self.last.layer(name) for name in layer_patterns(layers) or ()] or spread_layers(self.last.layers)
        numbers = unit_numbers(units)
        strips = [
            Strip(layer.name, unit, self._moments(layer, unit, size_px))
            for layer in chosen
            for unit in (numbers if numbers is not None else self._shown(layer))
        ]
        return draw_strips(strips, list(self.atlases), size_px)

    def _shown(self, layer: Layer) -> list[int]:
        """Units that fire in the end: of those with projections, where there are such."""
        projected = {unit for name, unit in self._projected.get(list(self.atlases)[-1], ()) if name == layer.name}
        return firing_units(self.last, layer, 0, projected or None)[:UNITS_SHOWN]

    @cached_property
    def _projected(self) -> dict[str, set[tuple[str, int]]]:
        """Layer and number of the units that have projections, by moment."""
        return {name: atlas.attributed(METHOD) for name, atlas in self.atlases.items() if METHOD in atlas.methods}

    @cached_property
    def _unread(self) -> set[str]:
        """Keys of the images that could be read in some moments but not in all."""
        skipped = [set(atlas.table("skipped")["key"].to_pylist()) for atlas in self.atlases.values()]
        return set().union(*skipped) - set.intersection(*skipped)

    @cached_property
    def _replaced(self) -> set[str]:
        """Keys of the images that were others in some moments, by the hash of their content."""
        contents: dict[str, set[int]] = {}
        for atlas in self.atlases.values():
            for row in atlas.table("images").to_pylist():
                if row["content"] is not None:
                    contents.setdefault(row["key"], set()).add(row["content"])
        return {key for key, found in contents.items() if len(found) > 1}

    @property
    def _between(self) -> list[str]:
        """The moments between which images were replaced that can't be named."""
        pairs = pairwise(self.atlases.items())
        return [f"{before!r} and {after!r}" for (before, one), (after, two) in pairs if _replaced_unnamed(one, two)]

    @cached_property
    def _unshared(self) -> set[int]:
        """Numbers of the images that aren't the same in all moments."""
        keys = self._unread | self._replaced
        rows = (row for atlas in self.atlases.values() for row in atlas.table("images").select(["image", "key"]).to_pylist())
        return {row["image"] for row in rows if row["key"] in keys}

    def _warn_of_images(self) -> None:
        for keys, what in ((self._unread, "could be read in some moments only"), (self._replaced, "were replaced in between")):
            if keys:
                text = f"{len(keys):,} of {self.last.manifest['listed']:,} images {what}, such as {min(keys)!r}: overlaps and jumps leave them out"
                warnings.warn(text, stacklevel=3)
        if self._between:
            text = f"images were replaced between {'; '.join(self._between)} that the atlases don't name: overlaps and jumps there count them"
            warnings.warn(text, stacklevel=3)

    def _moments(self, layer: Layer, unit: int, size_px: int) -> list[Moment]:
        moments: list[Moment] = []
        image = None
        for name, atlas in self.atlases.items():
            peak = next((Peak(**row) for row in atlas.peaks(layer.name, unit).slice(0, 1).to_pylist()), None)
            if peak is None:
                moments.append(Moment(None, None, jumps=False))
                continue
            kind = box_drawn(atlas, atlas.layer(layer.name), "auto")
            projection = None
            if (layer.name, unit) in self._projected.get(name, ()):
                projection = projections(atlas, [peak], kind, Drawn("auto", METHOD, size_px))[unit, peak.rank]
            [shared] = _without(self._unshared, [atlas.peaks(layer.name, unit)], atlas.k)
            strongest = next(iter(shared["image"].to_pylist()), None)
            jumps = None not in (image, strongest) and image != strongest
            moments.append(Moment(atlas.patch(peak, kind, size_px), projection, jumps))
            image = strongest
        return moments


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
    """Scan one network with the weights of several checkpoints, an atlas each in `out`, and project some units of each layer.

    `model` is a model string, `checkpoints` are state dicts, from early to late; an atlas has the name of its file, and of the key of `PATH:KEY`. What is there
    already of the same weights, images and layers is left alone. `on_checkpoint` is told the name of each before it begins.

    Raises as `scan` does, and `AtlasError` where two checkpoints have one name, or where another atlas is in the way.
    """
    names = _names(checkpoints)
    options = {"layers": layer_patterns(layers), "preprocess": preprocess, "device": device}
    for name, checkpoint in zip(names, checkpoints, strict=True):  # all of them, before hours of work
        _standing(load_network(model, str(checkpoint), 0), images, Path(out) / name, **options)
    for name, checkpoint in zip(names, checkpoints, strict=True):
        if on_checkpoint is not None:
            on_checkpoint(name)
        scanned(load_network(model, str(checkpoint), 0), images, Path(out) / name, **options)
    write_order(Path(out), names)
    evolution = Evolution(out, images=images)
    last = evolution.last
    followed = {layer.name: firing_units(last, layer, 0)[:UNITS_SHOWN] for layer in spread_layers(last.layers)}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        project(evolution.atlases[name], load_network(model, str(checkpoint), 0), followed, device)
    return evolution


def _names(checkpoints: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Each atlas's name, that of its file. Raises `AtlasError` where two have one name, or where there are none."""
    if isinstance(checkpoints, (str, os.PathLike)) or not isinstance(checkpoints, Iterable):
        raise AtlasError(f"checkpoints must be a list of files, from early to late, not {shortened(checkpoints)}")
    chosen = [split_key(str(checkpoint)) for checkpoint in checkpoints]
    names = [f"{path.stem}-{key}" if key else path.stem for path, key in chosen]
    for name in names:
        check_name(name)
    if not names:
        raise AtlasError("an evolution needs at least one checkpoint")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AtlasError(
            f"two checkpoints have the name {twice!r}; an atlas is named for its file, so give the files names of their own"
        )
    return names


def check_name(name: Any) -> None:
    """Raises `AtlasError` for what can't be the name of an atlas in an evolution: a folder in it that isn't hidden."""
    if not isinstance(name, str):
        raise AtlasError(f"the name of an atlas is text, not {shortened(name)}")
    if not name or name[0] == "." or name in (ORDER, TABLE) or any(sign in name for sign in SEPARATORS):
        raise AtlasError(
            f"an atlas can't have the name {shortened(name)}: a name is that of a folder, so it has no slashes and begins with no dot, "
            f"and it isn't {ORDER} or {TABLE}"
        )


def scanned(network: Network, images: Any, place: Path, **options: Any) -> Atlas:
    """The atlas at that place: made now, or the one that is there if it is of the same weights, images and layers."""
    return _standing(network, images, place, **options) or scan(network, images, place, **options)


def _standing(network: Network, images: Any, place: Path, **options: Any) -> Atlas | None:
    """The atlas that is there. Raises `AtlasError` where it is of something else, or where something else is in the way."""
    if not (place / MANIFEST).exists():
        new_atlas_folder(place)
        return None
    atlas, source = Atlas(place, images=images), as_source(images)
    said = atlas.manifest
    preprocessing = preprocessing_of(options["preprocess"], network)
    same = {
        "weights": said["network"]["hash"] == network.hash(),
        "images": same_images(said["images"], source),
        "layers": said["layers"] == (layer_patterns(options["layers"]) or None),
        "preprocessing": atlas.preprocessing == preprocessing or atlas.preprocessing is None,
    }
    other = [name for name, agrees in same.items() if not agrees]
    if other:
        raise AtlasError(f"{str(place)!r} holds an atlas of other {', '.join(other)}; give another out, or remove it first")
    return atlas


def project(atlas: Atlas, network: Network, units: dict[str, list[int]], device: str) -> None:
    """Deconvnet projections of some units; those that are dead at that moment have none."""
    for layer, numbers in units.items():
        firing = set(atlas.peaks(layer)["unit"].to_pylist())
        chosen = [unit for unit in numbers if unit in firing]
        if chosen:
            attribute(atlas, METHOD, network, layers=[layer], units=chosen, device=device)


def epochs_in(folder: Path) -> list[str]:
    """The names of the atlases in a folder: in the order that is written there, or else by name, where numbers count as numbers."""
    there = sorted((path.parent.name for path in folder.glob("[!.]*/" + MANIFEST)), key=_by_numbers)
    order = [name for name in _order(folder) if name in there]
    return [*order, *(name for name in there if name not in order)]


def _order(folder: Path) -> list[Any]:
    try:
        said = json.loads((folder / ORDER).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise AtlasError(
            f"{str(folder / ORDER)!r} can't be read: {first_line(error)}; remove it to have the order of names"
        ) from error
    return list(said) if isinstance(said, list) else []


def write_order(folder: Path, names: Sequence[str]) -> None:
    """Keep the order in which the atlases are to be shown."""
    with atomic_write(folder / ORDER, f"the order of the evolution {str(folder)!r}") as aside:
        aside.write_text(json.dumps(list(names)))


def _without(images: set[int], tables: Sequence[pa.Table], k: int) -> list[pa.Table]:
    """The same layer's peaks at several moments, in other images than those, with ranks among themselves.

    Of a unit with all its k peaks nobody knows which would have come next, so for each that is left out one less is known; then no
    more are taken of it at any moment.
    """
    if not images:
        return list(tables)
    kept = [table.filter(pc.invert(pc.is_in(table["image"], pa.array(sorted(images), pa.int64())))) for table in tables]
    known: dict[int, int] = {}
    for all_peaks, peaks in zip(tables, kept, strict=True):
        counts, left = Counter(all_peaks["unit"].to_pylist()), Counter(peaks["unit"].to_pylist())
        known |= {unit: min(known.get(unit, k), left[unit]) for unit, count in counts.items() if count == k}
    return [_first_peaks(peaks, known) for peaks in kept]


def _first_peaks(peaks: pa.Table, known: Mapping[int, int]) -> pa.Table:
    """As many peaks of each unit as are known, and all of the others, with ranks from 1."""
    met: Counter[int] = Counter()
    ranks = []
    for unit in peaks["unit"].to_pylist():
        met[unit] += 1
        ranks.append(met[unit] if met[unit] <= known.get(unit, met[unit]) else 0)
    ranked = peaks.set_column(peaks.schema.get_field_index("rank"), "rank", pa.array(ranks, peaks.schema.field("rank").type))
    return ranked.filter(pc.field("rank") > 0)


def _replaced_unnamed(one: Atlas, two: Atlas) -> bool:
    """True where other images hold something else in the second atlas than those that both mention, by the totals over all images.

    Where an image was read for one of them alone the totals tell nothing.
    """
    totals = [atlas.manifest["images"].get("contents") for atlas in (one, two)]
    skipped = [sorted(atlas.table("skipped")["key"].to_pylist()) for atlas in (one, two)]
    if not all(totals) or skipped[0] != skipped[1]:
        return False
    before, after = ({row["key"]: row["content"] for row in atlas.table("images").to_pylist()} for atlas in (one, two))
    named = (image_hash(key, after[key]) - image_hash(key, before[key]) for key in before.keys() & after.keys())
    return str(totals[1]) != f"{sum_of_hashes((int(totals[0], 16), *named)):016x}"


def _change(one: pa.Table, two: pa.Table, units: int) -> tuple[float, float]:
    """Mean overlap of the units' images, and the share of units whose strongest image is another."""
    sets = [{(u, i) for u, i in zip(t["unit"].to_pylist(), t["image"].to_pylist(), strict=True)} for t in (one, two)]
    shared, first, second = (np.bincount([unit for unit, _ in pairs], minlength=units) for pairs in (sets[0] & sets[1], *sets))
    most = np.maximum(first, second)
    strongest = [
        {u: i for u, i, r in zip(*(t[c].to_pylist() for c in ("unit", "image", "rank")), strict=True) if r == 1}
        for t in (one, two)
    ]
    both = strongest[0].keys() & strongest[1].keys()
    overlap = float((shared[most > 0] / most[most > 0]).mean()) if most.any() else float("nan")
    jumps = sum(strongest[0][unit] != strongest[1][unit] for unit in both) / len(both) if both else float("nan")
    return overlap, jumps


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key by which `epoch-2` comes before `epoch-10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
