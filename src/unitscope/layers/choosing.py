"""Which layers to scan: the default ones, or those that patterns name."""

import warnings
from collections.abc import Sequence

from unitscope.errors import LayerNotFound, LayoutError, suggestion
from unitscope.layers.tracing import Trace, TracedLayer, UnreadableLayer
from unitscope.records import name_matches


def choose_layers(trace: Trace, patterns: Sequence[str] | None = None, model: str = "the network") -> list[TracedLayer]:
    """The layers that match any of the glob patterns, in call order; without patterns the default ones.

    Layers that can't be scanned are left out with a warning. Raises `LayerNotFound` for a pattern that matches nothing, and
    `LayoutError` for one that matches only layers that can't be scanned, or where no default layer can.
    """
    refused = unreadable_layers(trace, patterns)
    for pattern in patterns or ():
        _check(pattern, trace, model)
    chosen = [layer for layer in trace.layers if (_matches(layer.name, patterns) if patterns else layer.default)]
    if not chosen:
        _refuse(refused, model)
        raise LayerNotFound(f"{model!r} has no activation, convolution or linear layer to scan by default; name some")
    if refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        warnings.warn(
            f"layer {refused[0].name!r}{others} of {model!r} is left out, since it can't be scanned: {refused[0].reason}",
            stacklevel=2,
        )
    return chosen


def unreadable_layers(trace: Trace, patterns: Sequence[str] | None = None) -> list[UnreadableLayer]:
    """The layers that the patterns match, or the default ones, and that can't be scanned."""
    return [r for r in trace.unreadable if (_matches(r.name, patterns) if patterns else r.default)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name_matches(name, pattern) for pattern in patterns)


def _check(pattern: str, trace: Trace, model: str) -> None:
    if any(name_matches(layer.name, pattern) for layer in trace.layers):
        return
    _refuse([r for r in trace.unreadable if name_matches(r.name, pattern)], model)
    names = [layer.name for layer in trace.layers]
    raise LayerNotFound(
        f"{model!r} has no layer {pattern!r}.{suggestion(pattern, names)} List all {len(names)} with: unitscope layers {model}"
    )


def _refuse(refused: Sequence[UnreadableLayer], model: str) -> None:
    if refused:
        first, others = refused[0], f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise LayoutError(
            f"layer {first.name!r}{others} of {model!r} can't be scanned: {first.reason}. "
            "Choose others with --layers (layers= in Python)."
        )
