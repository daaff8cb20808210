"""The command that brings peaks down to pixels."""

from typing import Annotated

import typer

from unitscope.cli.networks import trusted
from unitscope.cli.output import progress, stop
from unitscope.cli.parameters import AtlasFolder, Device, Images, Layers, TrustCode, Units
from unitscope.cli.parsing import units_of


def attribute(
    atlas: AtlasFolder,
    method: Annotated[str, typer.Option(help="deconvnet, guided_backprop, gradient, integrated_gradients or occlusion.")] = "deconvnet",
    layers: Layers = None, units: Units = None, images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Find what in each patch excites the unit, and keep an image of it for every peak."""
    from unitscope.atlas import Atlas
    from unitscope.attribution import attribute as attribute_peaks

    numbers = units_of(units)
    opened = Atlas(atlas, images=images)
    try:
        with progress(None, method, "peaks") as advance:
            done = attribute_peaks(
                opened, method, trusted(opened, trust_code), layers=layers, units=numbers, device=device, on_peaks=advance
            )
    except KeyboardInterrupt:
        stop("stopped; the same command goes on from here", 130)
    print(f"{done:,} peaks in {atlas / 'attributions' / f'{method}.parquet'}; draw them with --attribution {method}")
