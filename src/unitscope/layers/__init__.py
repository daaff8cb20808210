"""Layers of a network: list them (`tracing`), choose some (`choosing`), read them while it runs (`tapping`)."""

from unitscope.layers.choosing import choose_layers, unreadable_layers
from unitscope.layers.tapping import Tap, tapped
from unitscope.layers.tracing import Fold, Trace, TracedLayer, trace

__all__ = ["Fold", "Tap", "Trace", "TracedLayer", "choose_layers", "tapped", "trace", "unreadable_layers"]
