"""The command that brings peaks down to pixels."""

from typing import Annotated

from cyclopts import Parameter

from unitscope.cli.networks import network_by_trusted_code
from unitscope.cli.output import progress_bar
from unitscope.cli.parameters import AtlasFolder, Device, LayerPatterns, MovedImages, TrustCode, UnitNumbers


def attribute(
    atlas: AtlasFolder, /, *,
    method: Annotated[str, Parameter(help="activation, deconvnet, guided_backprop, gradient, integrated_gradients or occlusion.")] = "deconvnet",
    layers: LayerPatterns = None, units: UnitNumbers = None, images: MovedImages = None, device: Device = "auto",
    trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Find what in each patch excites the unit, and keep an image of it for every peak."""
    from unitscope import attribution
    from unitscope.atlas import ADDED_TABLES, Atlas

    opened = Atlas(atlas, images=images)
    network = network_by_trusted_code(opened, trust_code)
    try:
        with progress_bar(None, method, "peaks") as advance:
            peak_count = attribution.attribute(
                opened, method, network, layers=layers, units=units, device=device, on_peaks=advance
            )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from interrupt
    print(f"{peak_count:,} peaks in {atlas / ADDED_TABLES[method].file}; draw them with --attribution {method}")
