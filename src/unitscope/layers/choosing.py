"""Which layers to scan: the default ones, or those that patterns name."""

import os
import warnings
from collections.abc import Sequence

from unitscope.errors import LayerNotFound, LayoutError, suggestion
from unitscope.layers.tracing import Trace, TracedLayer, UnreadableLayer
from unitscope.records import NamedLayer, match_layers


def choose_layers(trace: Trace, patterns: Sequence[str] | None = None, model: str = "the network") -> list[TracedLayer]:
    """The layers that match any of the glob patterns, in call order; without patterns the default ones.

    Layers that can't be scanned are left out with a warning. Raises `LayerNotFound` for a pattern that matches nothing, and
    `LayoutError` for one that matches only layers that can't be scanned, or where no default layer can.
    """
    unreadable = unreadable_layers(trace, patterns)
    for pattern in patterns or ():
        _check(pattern, trace, model)
    chosen = _matching(trace.layers, patterns) if patterns else [layer for layer in trace.layers if layer.is_default]
    if not chosen:
        _refuse(unreadable, trace, model)
        raise LayerNotFound(f"{model!r} has no activation, convolution or linear layer to scan by default; name some")
    if unreadable:
        warnings.warn(
            f"layer {_names(unreadable)} of {model!r} is left out, since it can't be scanned: {unreadable[0].reason}",
            stacklevel=2,
        )
    return chosen


def unknown_operators(layers: Sequence[TracedLayer]) -> list[str]:
    """The operators without a rule that any of the layers is made with."""
    return sorted({operator for layer in layers for operator in layer.unknown_operators})


def unreadable_layers(trace: Trace, patterns: Sequence[str] | None = None) -> list[UnreadableLayer]:
    """The layers that the patterns match, or the default ones, and that can't be scanned."""
    return _matching(trace.unreadable, patterns) if patterns else [layer for layer in trace.unreadable if layer.is_default]


def _matching(layers: Sequence[NamedLayer], patterns: Sequence[str]) -> list[NamedLayer]:
    """The layers that any of the patterns matches, in their own order."""
    names = {layer.name for matches in match_layers(layers, patterns).values() for layer in matches}
    return [layer for layer in layers if layer.name in names]


def _check(pattern: str, trace: Trace, model: str) -> None:
    """Raise for a pattern that matches no layer that can be scanned."""
    if _matching(trace.layers, [pattern]):
        return
    _refuse(_matching(trace.unreadable, [pattern]), trace, model)
    names = [layer.name for layer in trace.layers]
    raise LayerNotFound(
        f"{model!r} has no layer {pattern!r}.{suggestion(pattern, names)} List all {len(names)} with: unitscope layers {model}"
    )


def _refuse(unreadable: Sequence[UnreadableLayer], trace: Trace, model: str) -> None:
    """Raise `LayoutError`, with layers that can be scanned, where any layer is unreadable."""
    if unreadable:
        raise LayoutError(
            f"layer {_names(unreadable)} of {model!r} can't be scanned: {unreadable[0].reason}. {_layers_to_give(unreadable[0], trace)}"
        )


def _layers_to_give(unreadable: UnreadableLayer, trace: Trace) -> str:
    """What to give in place of a layer that can't be scanned: those nearest to it by name, the default ones first."""
    nearest = sorted(trace.layers, key=lambda layer: (-_shared_levels(layer.name, unreadable.name), not layer.is_default))[:3]
    if not nearest:
        return "None of its layers can be."
    names = [layer.name for layer in nearest]
    return f"Layers that can be: --layers {' '.join(map(repr, names))} (layers={names} in Python)"


def _shared_levels(name: str, other: str) -> int:
    """How many levels of modules two layers have in common."""
    return len(os.path.commonprefix([name.split("."), other.split(".")]))


def _names(layers: Sequence[UnreadableLayer]) -> str:
    """The first layer's name, and how many more there are."""
    return f"{layers[0].name!r} (and {len(layers) - 1} more)" if len(layers) > 1 else repr(layers[0].name)
