"""The atlas as users know it: what `reading` reads, and pictures of it."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from io import BytesIO
from typing import Any

from PIL import Image

from unitscope.atlas.figures import FigureChoice, figure, sheet
from unitscope.atlas.patches import PatchOptions, draw_patch
from unitscope.atlas.reading import AtlasReader
from unitscope.atlas.unit_view import Unit
from unitscope.records import Peak


class Atlas(AtlasReader):
    """An atlas on disk: tables to read, patches to look at.

    Opening reads the manifest alone; tables are read when asked for, images only to draw. `images` gives the source again where
    it isn't found any more or was a data set in memory.

    Raises `AtlasError` where the folder holds no atlas, or one of another format.
    """

    def _repr_png_(self) -> bytes:
        """The figure, for notebooks."""
        png = BytesIO()
        self.figure().save(png, "PNG")
        return png.getvalue()

    def unit(self, layer: str, number: int) -> Unit:
        """One unit, with its name, peaks, statistics and patches; a notebook shows it. Raises `LayerNotFound`, and `AtlasError` for a unit that
        the layer doesn't have."""
        layer_of_unit = self.layer(layer)
        layer_of_unit.check_units([number])
        return Unit(self, layer_of_unit, number)

    def explore(self, height: int = 900) -> Any:
        """The explorer, served from this process; a notebook shows it in place, so many pixels high. `stop()` ends it."""
        return import_module("unitscope.web.notebook").explore(self, height)  # pages stand on the atlas, never back

    def patch(
        self, peak: Peak | Mapping[str, Any], patch: str = "field", size_px: int = 224, from_images: bool = False
    ) -> Image.Image:
        """The pixels of a peak's receptive field, cut from the source image; beyond its border a neutral pattern.

        `peak` is a `Peak` or a row of `peaks(…).to_pylist()`; `patch` is `field`, `effective`, `image`, or `auto` for what a sheet shows. Where
        the atlas has packed pictures it is cut from those, which are small, unless `from_images` is true.
        """
        options = PatchOptions(patch, size_px=size_px, from_images=from_images)
        return draw_patch(self, peak if isinstance(peak, Peak) else Peak(**peak), options)

    def sheet(
        self,
        layer: str,
        units: Sequence[int] | None = None,
        patch: str = "auto",
        attribution: str | None = None,
        size_px: int = 56,
        from_images: bool = False,
        troughs: bool = False,
    ) -> Image.Image:
        """A block of patches for every unit of a layer, or for those given; with `attribution`, what that method found beside.

        Where `pack` has put patches into the atlas these are drawn, and no image is needed, unless `from_images` is true. With `troughs` the
        lowest cells are drawn in place of the highest; raises `AtlasError` where the layer has none.
        """
        return sheet(self, layer, units, PatchOptions(patch, attribution, size_px, from_images, troughs))

    def figure(
        self,
        layers: Sequence[str] | None = None,
        units: Sequence[int] | None = None,
        patch: str = "auto",
        seed: int = 0,
        size_px: int = 64,
        attribution: str | None = None,
        from_images: bool = False,
        troughs: bool = False,
    ) -> Image.Image:
        """The network from shallow to deep: up to six layers, nine units each, nine patches a unit.

        With `attribution`, what that method found beside the patches (Zeiler & Fergus 2014, figure 2), for the units that it was used on.
        `from_images` and `troughs` are those of `sheet`; with `troughs` layers are chosen among those that have some.
        """
        return figure(self, FigureChoice(layers, units, seed), PatchOptions(patch, attribution, size_px, from_images, troughs))
