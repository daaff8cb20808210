"""The command that shows what unitscope does, with nothing but the package index."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unitscope.cli.drawing import FIGURE_PATCH_PX
from unitscope.cli.explorer import serve as serve_atlas
from unitscope.cli.networks import load_with_preprocessing
from unitscope.cli.output import print_drawn, save_picture
from unitscope.cli.parameters import Device, NetworkOptions
from unitscope.cli.scanning import run_scan
from unitscope.errors import UnitscopeError

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.images import FolderSource


def demo(
    *, out: Annotated[Path, Parameter(help="The folder to write to.")] = Path("unitscope-demo"),
    images: Annotated[Path | None, Parameter(help="Your own folder of images.")] = None,
    limit: Annotated[int | None, Parameter(help="Scan the first images only.")] = None,
    device: Device = "auto",
    serve: Annotated[bool, Parameter(help="Open the explorer at the end.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Scan EfficientNet-Lite0 with its ImageNet weights over photographs that come with Python packages, and draw the figure."""
    from unitscope.atlas import Atlas
    from unitscope.demonstration import write_demo_images
    from unitscope.images import FolderSource

    folder, source = out / "atlas", FolderSource(images or write_demo_images(out / "images"))
    if (folder / "atlas.json").exists():
        _check_same_images(Atlas(folder), source, limit)
        print(f"using the atlas that is in {folder} already")
    else:
        network, preprocess = load_with_preprocessing("demo:efficientnet-lite0", NetworkOptions())
        run_scan(network, source, folder, preprocess=preprocess, limit=limit, device=device)
    save_picture(Atlas(folder).figure(size_px=FIGURE_PATCH_PX), out / "figure.png")
    print_drawn(out / "figure.png")
    if serve:
        serve_atlas(folder, device=device)
    else:
        print(f"to look at every unit: {_command()} serve {folder}")


def _check_same_images(atlas: "Atlas", source: "FolderSource", limit: int | None) -> None:
    """Raises `UnitscopeError` where the atlas is one of other images, or of more or fewer of them."""
    manifest = atlas.manifest
    listed_count = min(len(source), limit or len(source)) + len(source.passed_over)
    if manifest["images"].get("folder") != source.description["folder"] or manifest["listed"] != listed_count:
        raise UnitscopeError(f"the atlas in {str(atlas.folder)!r} is one of other images; give another --out")


def _command() -> str:
    """How this program was called."""
    program = Path(sys.argv[0])
    return "python -m unitscope" if program.name == "__main__.py" else str(program)
