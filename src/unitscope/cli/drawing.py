"""The commands that draw an atlas."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unitscope.cli.output import check_picture_path, print_drawn, save_picture
from unitscope.cli.parameters import AtlasFolder, AttributionMethod, LayerName, LayerPatterns, MovedImages, PatchKind, UnitNumbers

FIGURE_PATCH_PX = 96


def sheet(
    atlas: AtlasFolder, layer: LayerName, /, *,
    out: Annotated[Path | None, Parameter(help="The PNG file to write; ATLAS-LAYER.png if not given.")] = None,
    units: UnitNumbers = None, patch: PatchKind = "auto", attribution: AttributionMethod = None, images: MovedImages = None,
) -> None:  # fmt: skip
    """Draw all units of a layer, nine patches each."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}.png")
    check_picture_path(path)  # or the work would be for nothing
    picture = Atlas(atlas, images=images).sheet(layer, units=units, patch=patch, attribution=attribution)
    save_picture(picture, path)
    print_drawn(path)


def figure(
    atlas: AtlasFolder, /, *, out: Annotated[Path | None, Parameter(help="The PNG or PDF file to write; ATLAS.png if not given.")] = None,
    layers: LayerPatterns = None, units: UnitNumbers = None, patch: PatchKind = "auto", attribution: AttributionMethod = None,
    seed: Annotated[int, Parameter(help="Seed of the choice of units.")] = 0, images: MovedImages = None,
) -> None:  # fmt: skip
    """Draw the network from shallow to deep: up to six layers, nine units each, nine patches a unit."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}.png")
    check_picture_path(path)  # or the work would be for nothing
    picture = Atlas(atlas, images=images).figure(
        layers=layers, units=units, patch=patch, seed=seed, size_px=FIGURE_PATCH_PX, attribution=attribution
    )
    save_picture(picture, path)
    print_drawn(path)
