"""The folder of an evolution: an atlas for each checkpoint of a training, by name, and the order in which they are to be shown."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unitscope.arguments import layer_patterns, shortened
from unitscope.atlas import Atlas, new_atlas_folder
from unitscope.atlas.schema import MANIFEST
from unitscope.atlas.tables import SETTLING
from unitscope.errors import AtlasError, first_line
from unitscope.files import atomic_write
from unitscope.images import as_source, same_images
from unitscope.networks import Network
from unitscope.scanning import scan
from unitscope.session.opening import preprocessing_of

ORDER_FILE = "evolution.json"
SEPARATORS = ("/", "\\", "\0")


def check_atlas_name(name: Any) -> None:
    """Raises `AtlasError` for what can't be the name of an atlas in an evolution: that of a folder in it that isn't hidden."""
    if not isinstance(name, str):
        raise AtlasError(f"the name of an atlas is text, not {shortened(name)}")
    if not name or name[0] == "." or name in (ORDER_FILE, SETTLING.file) or any(sign in name for sign in SEPARATORS):
        raise AtlasError(
            f"an atlas can't have the name {shortened(name)}: a name is that of a folder, so it has no slashes and begins with no dot, "
            f"and it isn't {ORDER_FILE} or {SETTLING.file}"
        )


def atlas_names(folder: Path) -> list[str]:
    """The names of the atlases in a folder: in the order that is written there, or else by name, where numbers count as numbers."""
    by_name = sorted((path.parent.name for path in folder.glob("[!.]*/" + MANIFEST)), key=_by_numbers)
    ordered = [name for name in _read_order(folder) if name in by_name]
    return [*ordered, *(name for name in by_name if name not in ordered)]


def write_order(folder: Path, names: Sequence[str]) -> None:
    """Keep the order in which the atlases are to be shown."""
    with atomic_write(folder / ORDER_FILE, f"the order of the evolution {str(folder)!r}") as aside:
        aside.write_text(json.dumps(list(names)))


def _read_order(folder: Path) -> list[Any]:
    try:
        names = json.loads((folder / ORDER_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise AtlasError(
            f"{str(folder / ORDER_FILE)!r} can't be read: {first_line(error)}; remove it to have the order of names"
        ) from error
    return list(names) if isinstance(names, list) else []


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A sort key by which `epoch-2` comes before `epoch-10`."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def scan_or_reuse(network: Network, images: Any, folder: Path, **options: Any) -> Atlas:
    """The atlas in that folder: made now, or the one that is there if it is of the same weights, images and layers."""
    return reusable_atlas(network, images, folder, **options) or scan(network, images, folder, **options)


def reusable_atlas(network: Network, images: Any, folder: Path, **options: Any) -> Atlas | None:
    """The atlas that is there. Raises `AtlasError` where it is of something else, or where something else is in the way."""
    if not (folder / MANIFEST).exists():
        new_atlas_folder(folder)
        return None
    atlas, source = Atlas(folder, images=images), as_source(images)
    manifest = atlas.manifest
    preprocessing = preprocessing_of(options["preprocess"], network)
    agrees = {
        "weights": manifest["network"]["hash"] == network.hash(),
        "images": same_images(manifest["images"], source),
        "layers": manifest["layers"] == (layer_patterns(options["layers"]) or None),
        "preprocessing": atlas.preprocessing == preprocessing or atlas.preprocessing is None,
    }
    differing = [name for name, same in agrees.items() if not same]
    if differing:
        raise AtlasError(f"{str(folder)!r} holds an atlas of other {', '.join(differing)}; give another out, or remove it first")
    return atlas
