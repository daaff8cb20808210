"""The commands that draw an atlas."""

from pathlib import Path
from typing import Annotated

import typer

from unitscope.cli.output import picture_format, save_picture
from unitscope.cli.parameters import AtlasFolder, Attribution, Images, Layers, Patch, Units
from unitscope.cli.parsing import units_of


def sheet(
    atlas: AtlasFolder, layer: Annotated[str, typer.Argument(help="Name of a layer.")],
    out: Annotated[Path | None, typer.Option(help="The PNG file to write; ATLAS-LAYER.png if not given.")] = None,
    units: Units = None, patch: Patch = "auto", attribution: Attribution = None, images: Images = None,
) -> None:  # fmt: skip
    """Draw all units of a layer, nine patches each."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}.png")
    numbers = units_of(units)
    picture_format(path)  # or the work would be for nothing
    opened = Atlas(atlas, images=images)
    save_picture(opened.sheet(layer, units=numbers, patch=patch, attribution=attribution), path)


def figure(
    atlas: AtlasFolder, out: Annotated[Path | None, typer.Option(help="The PNG or PDF file to write; ATLAS.png if not given.")] = None,
    layers: Layers = None, units: Units = None, patch: Patch = "auto", attribution: Attribution = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of units.")] = 0, images: Images = None,
) -> None:  # fmt: skip
    """Draw the network from shallow to deep: up to six layers, nine units each, nine patches a unit."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}.png")
    picture_format(path)  # or the work would be for nothing
    image = Atlas(atlas, images=images).figure(
        layers=layers, units=units_of(units), patch=patch, seed=seed, size_px=96, attribution=attribution
    )
    save_picture(image, path)
