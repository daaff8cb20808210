"""The command that shows what unitscope does, with nothing but the package index, or with photographs that are downloaded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unitscope.cli.drawing import FIGURE_PATCH_PX
from unitscope.cli.explorer import serve as serve_atlas
from unitscope.cli.networks import load_with_preprocessing
from unitscope.cli.output import print_drawn, progress_bar, save_picture
from unitscope.cli.parameters import Device, Model, NetworkOptions, Weights
from unitscope.cli.scanning import run_scan
from unitscope.errors import UnitscopeError

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.images import FolderSource
    from unitscope.networks import Network

IMAGENETTE = "imagenette"
OUT_FOLDERS = {None: "unitscope-demo", IMAGENETTE: "unitscope-imagenette"}
"""Where the atlas is written to, by --images."""


def demo(
    *, model: Model = "demo:efficientnet-lite0", weights: Weights = "default",
    images: Annotated[str | None, Parameter(help="Your own folder of images, or imagenette: 3,925 photographs of ten classes, downloaded once (a third of a gigabyte).", metavar="FOLDER | imagenette")] = None,
    out: Annotated[Path | None, Parameter(help="The folder to write to; unitscope-demo, or unitscope-imagenette, if not given.")] = None,
    limit: Annotated[int | None, Parameter(help="Scan the first images only.")] = None,
    device: Device = "auto",
    serve: Annotated[bool, Parameter(help="Open the explorer at the end.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Scan EfficientNet-Lite0, or another network, over photographs that come with Python packages, or over others; say what its units are; draw the figure."""
    from unitscope.atlas import Atlas

    to = out or Path(OUT_FOLDERS.get(images, OUT_FOLDERS[None]))
    folder = to / "atlas"
    network, preprocess = load_with_preprocessing(model, NetworkOptions(weights=weights))
    source = _source(images, to)
    if (folder / "atlas.json").exists():
        _check_same(Atlas(folder), source, limit, network)
        print(f"using the atlas that is in {folder} already")
    else:
        run_scan(network, source, folder, preprocess=preprocess, limit=limit, device=device)
    _say_what_units_are(Atlas(folder), network, device, by_labels=images is not None)
    save_picture(Atlas(folder).figure(size_px=FIGURE_PATCH_PX), to / "figure.png")
    print_drawn(to / "figure.png")
    if serve:
        serve_atlas(folder, device=device)
    else:
        print(f"to look at every unit: {_command()} serve {folder}")


def _source(images: str | None, out: Path) -> "FolderSource":
    from unitscope.demonstration import imagenette_images, write_demo_images
    from unitscope.images import FolderSource

    if images is None:
        return FolderSource(write_demo_images(out / "images"))
    return FolderSource(imagenette_images() if images == IMAGENETTE else images)


def _say_what_units_are(atlas: "Atlas", network: "Network", device: str, by_labels: bool) -> None:
    """Add what units are tuned to and, with `by_labels`, their names: what is there already stays.

    The labels of the demo's own photographs name nothing: tiles of one photograph are alike in both halves of the images.
    """
    from unitscope.atlas.tables import NAMES, VISUAL_TUNING
    from unitscope.naming import name_units, stimulus_count, tune_visually

    present = {table.name for table in atlas.tables() if table.problem is None}
    if VISUAL_TUNING.name not in present and atlas.preprocessing is not None and atlas.preprocessing.channels == 3:
        with progress_bar(stimulus_count(atlas), "showing gratings") as advance:
            tune_visually(atlas, network, device, on_images=advance)
    if by_labels and NAMES.name not in present and atlas.row_count("labels") and atlas.row_count("tuning"):
        with progress_bar(sum(layer.units for layer in atlas.layers), "naming", "units") as advance:
            name_units(atlas, on_units=advance)


def _check_same(atlas: "Atlas", source: "FolderSource", limit: int | None, network: "Network") -> None:
    """Raises `UnitscopeError` where the atlas is one of another network, of other images, or of more or fewer of them."""
    manifest = atlas.manifest
    listed_count = min(len(source), limit or len(source)) + len(source.passed_over)
    if manifest["images"].get("folder") != source.description["folder"] or manifest["listed"] != listed_count:
        raise UnitscopeError(f"the atlas in {str(atlas.folder)!r} is one of other images; give another --out")
    if (manifest["network"]["model"], manifest["network"]["weights"]) != (network.model, network.weights):
        raise UnitscopeError(f"the atlas in {str(atlas.folder)!r} is one of another network; give another --out")


def _command() -> str:
    """How this program was called."""
    program = Path(sys.argv[0])
    return "python -m unitscope" if program.name == "__main__.py" else str(program)
