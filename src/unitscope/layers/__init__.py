"""Layers of a network: list them (`tracing`), choose some (`choosing`), read them while it runs (`tapping`).

A trace is one pass whose `data_flow` is logged. The `call_log` says which calls are layers, `activation_calls` which of them are activations
(`activations` probes their functions), `image_axis` which dimension holds images, `layouts` which hold units and cells.
"""

from unitscope.layers.call_log import Fold
from unitscope.layers.choosing import choose_layers, unknown_operators, unreadable_layers
from unitscope.layers.tapping import Tap, outputs_watched, tapped
from unitscope.layers.tracing import Trace, TracedLayer, trace

__all__ = [
    "Fold",
    "Tap",
    "Trace",
    "TracedLayer",
    "choose_layers",
    "outputs_watched",
    "tapped",
    "trace",
    "unknown_operators",
    "unreadable_layers",
]
