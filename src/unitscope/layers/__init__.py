"""Layers of a network: list them (`tracing`), choose some (`choosing`), read them while it runs (`tapping`)."""

from unitscope.layers.choosing import choose
from unitscope.layers.tapping import Tap, tapped
from unitscope.layers.tracing import Trace, TracedLayer, trace

__all__ = ["Tap", "Trace", "TracedLayer", "choose", "tapped", "trace"]
