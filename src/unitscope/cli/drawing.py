"""The commands that draw an atlas."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unitscope.cli.output import check_picture_path, print_drawn, progress_bar, save_picture
from unitscope.cli.parameters import (
    AtlasFolder,
    AttributionMethod,
    LayerName,
    LayerPatterns,
    MovedImages,
    UnitNumbers,
)

if TYPE_CHECKING:
    from unitscope.atlas import Atlas

FIGURE_PATCH_PX = 96


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PatchFlags:
    """What patches show, and where they are taken from."""

    patch: Annotated[str, Parameter(help="auto, field, effective or image: what of the image is drawn.")] = "auto"
    attribution: AttributionMethod = None
    troughs: Annotated[bool, Parameter(help="Draw the lowest in place of the highest.", show_default=False)] = False
    images: MovedImages = None
    from_images: Annotated[
        bool, Parameter(help="Draw from the images themselves, also where the atlas has packed patches.", show_default=False)
    ] = False

    def print_drawn(self, path: Path, atlas: "Atlas") -> None:
        """Say where a picture was drawn to, and where it would show more."""
        print_drawn(path)
        packed = None if self.from_images else atlas.packed_patches
        if packed is not None and (packed.has_troughs or not self.troughs):
            px = packed.size_px
            print(f"with the packed patches, of {px} x {px} px; --from-images takes the images themselves", file=sys.stderr)


def sheet(
    atlas: AtlasFolder, layer: LayerName, /, *,
    out: Annotated[Path | None, Parameter(help="The PNG file to write; ATLAS-LAYER.png if not given.")] = None,
    units: UnitNumbers = None, flags: PatchFlags = PatchFlags(),
) -> None:  # fmt: skip
    """Draw all units of a layer, nine patches each."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}-{layer.replace('/', '_')}.png")
    check_picture_path(path)  # or the work would be for nothing
    opened = Atlas(atlas, images=flags.images)
    picture = opened.sheet(
        layer, units=units, patch=flags.patch, attribution=flags.attribution, from_images=flags.from_images, troughs=flags.troughs
    )
    save_picture(picture, path)
    flags.print_drawn(path, opened)


def figure(
    atlas: AtlasFolder, /, *, out: Annotated[Path | None, Parameter(help="The PNG or PDF file to write; ATLAS.png if not given.")] = None,
    layers: LayerPatterns = None, units: UnitNumbers = None,
    seed: Annotated[int, Parameter(help="Seed of the choice of units.")] = 0, flags: PatchFlags = PatchFlags(),
) -> None:  # fmt: skip
    """Draw the network from shallow to deep: up to six layers, nine units each, nine patches a unit."""
    from unitscope.atlas import Atlas

    path = out or Path(f"{atlas.absolute().name}.png")
    check_picture_path(path)  # or the work would be for nothing
    opened = Atlas(atlas, images=flags.images)
    picture = opened.figure(
        layers=layers, units=units, patch=flags.patch, seed=seed, size_px=FIGURE_PATCH_PX, attribution=flags.attribution,
        from_images=flags.from_images, troughs=flags.troughs,
    )  # fmt: skip
    save_picture(picture, path)
    flags.print_drawn(path, opened)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PackFlags:
    """What is packed."""

    size: Annotated[int, Parameter(help="The side of a patch, in pixels.", metavar="PX")] = 64
    bands: Annotated[bool, Parameter(help="Also the images of the sample that each unit is compared with.")] = False
    troughs: Annotated[bool, Parameter(help="Also the patches of the troughs, where the atlas has them.")] = False
    pictures: Annotated[
        int, Parameter(help="The longer side of the small version that is kept of each image, in pixels.", metavar="PX")
    ] = 320
    no_pictures: Annotated[bool, Parameter(help="Keep no version of the images, but patches alone.")] = False


def pack(atlas: AtlasFolder, /, *, flags: PackFlags = PackFlags(), images: MovedImages = None) -> None:
    """Put patches and small pictures into the atlas, so that it can go where its images don't."""
    from unitscope.atlas import Atlas

    pack_opened(Atlas(atlas, images=images), flags)


def pack_opened(atlas: "Atlas", flags: PackFlags) -> None:
    """Pack with a progress bar, and print what was written."""
    from unitscope import atlas as package

    with progress_bar(None, "packing") as advance:
        pictures_px = None if flags.no_pictures else flags.pictures
        packed = package.pack(
            atlas, bands=flags.bands, troughs=flags.troughs, pictures_px=pictures_px, size_px=flags.size, on_images=advance
        )
    print(f"patches of {packed.units:,} units and {packed.pictures:,} pictures packed, {packed.size_bytes / 1e6:,.1f} MB")
