"""Layers of a network: list them (`tracing`), choose some (`choosing`), read them while it runs (`tapping`), fast (`copies`)."""

from unitscope.layers.choosing import choose
from unitscope.layers.copies import cached_images, copies, lowered, maps_of_noise, pass_images
from unitscope.layers.tapping import Tap, tapped
from unitscope.layers.tracing import Fold, Trace, TracedLayer, eagerly, trace

__all__ = [
    "Fold",
    "Tap",
    "Trace",
    "TracedLayer",
    "cached_images",
    "choose",
    "copies",
    "eagerly",
    "lowered",
    "maps_of_noise",
    "pass_images",
    "tapped",
    "trace",
]
