"""Layers of a network: list them (`tracing`), choose some (`choosing`), read them while it runs (`tapping`), fast (`replicas`).

What a network does that a scan must know of is found out on noise first (`trials`)."""

from unitscope.layers.choosing import choose, left_out
from unitscope.layers.replicas import Replicas, cached_images, lowered, maps_of_noise, pass_images, replicas
from unitscope.layers.tapping import Tap, tapped
from unitscope.layers.tracing import Fold, Trace, TracedLayer, trace
from unitscope.layers.trials import Trial, rounded, tolerance_for

__all__ = [
    "Fold",
    "Replicas",
    "Tap",
    "Trace",
    "TracedLayer",
    "Trial",
    "cached_images",
    "choose",
    "left_out",
    "lowered",
    "maps_of_noise",
    "pass_images",
    "replicas",
    "rounded",
    "tapped",
    "tolerance_for",
    "trace",
]
