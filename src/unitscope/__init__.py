"""unitscope: a microscope for the units of trained networks.

Reading order: `records` (the words), `receptive_fields` (what a cell can depend on), `layers` (which layers there are, and how they are
read), `spatial_max` and `topk` (what is kept), `session` (a network and images opened to be run), `scanning` (the one pass that brings these
together), `atlas` (the folder that it writes), `drawing`, `web`; `attribution` and `experiments` (what runs the network again and adds tables).
`docs/architecture.md` follows one peak through them.

The public names load on first use, so that looking at an atlas loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.attribution import attribute
    from unitscope.checking import check
    from unitscope.errors import UnitscopeError
    from unitscope.experiments import Recorder
    from unitscope.networks import load_network
    from unitscope.records import Box, Layer, Peak, Preprocessing
    from unitscope.runners.ray import RayRunner
    from unitscope.scanning import scan

_HOMES = {
    "Atlas": "atlas",
    "Box": "records",
    "Layer": "records",
    "Peak": "records",
    "Preprocessing": "records",
    "RayRunner": "runners.ray",
    "Recorder": "experiments.recorder",
    "UnitscopeError": "errors",
    "attribute": "attribution",
    "check": "checking",
    "load_network": "networks",
    "scan": "scanning",
}
__all__ = [
    "Atlas",
    "Box",
    "Layer",
    "Peak",
    "Preprocessing",
    "RayRunner",
    "Recorder",
    "UnitscopeError",
    "attribute",
    "check",
    "load_network",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
