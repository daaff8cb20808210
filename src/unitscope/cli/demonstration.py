"""The command that shows what unitscope does, with nothing but the package index."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unitscope.cli.explorer import serve_atlas
from unitscope.cli.networks import network_of
from unitscope.cli.output import save_picture
from unitscope.cli.parameters import Device
from unitscope.cli.parsing import overrides_of
from unitscope.cli.scanning import run_scan
from unitscope.errors import UnitscopeError


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("unitscope-demo"),
    images: Annotated[Path | None, typer.Option(help="Your own folder of images.")] = None,
    limit: Annotated[int | None, typer.Option(help="Scan the first images only.")] = None,
    device: Device = "auto",
    serve: Annotated[bool, typer.Option("--serve", help="Open the explorer at the end.")] = False,
) -> None:
    """Scan EfficientNet-Lite0 with its ImageNet weights over photographs that come with Python packages, and draw the figure."""
    from unitscope.atlas import Atlas
    from unitscope.demonstration import demo_images
    from unitscope.images import FolderSource

    place, source = out / "atlas", FolderSource(images or demo_images(out / "images"))
    if (place / "atlas.json").exists():
        said = Atlas(place).manifest
        if said["images"].get("folder") != source.description["folder"] or said["listed"] != min(
            len(source), limit or len(source)
        ) + len(source.passed_over):
            raise UnitscopeError(f"the atlas in {str(place)!r} is one of other images; give another --out")
        print(f"using the atlas that is in {place} already")
    else:
        network, preprocessing = network_of("demo:efficientnet-lite0", "default", 0, overrides_of())
        run_scan(network, source, place, preprocess=preprocessing, limit=limit, device=device)
    save_picture(Atlas(place).figure(size_px=96), out / "figure.png")
    if serve:
        serve_atlas(Atlas(place), None, "127.0.0.1", 8000, device, trust_code=False)
    else:
        print(f"to look at every unit: {Path(sys.argv[0])} serve {place}")
