"""Which layers to scan: the default ones, or those that patterns name."""

import warnings
from collections.abc import Sequence

from unitscope.errors import LayerNotFound, LayoutError, suggestion
from unitscope.layers.tracing import Refusal, Trace, TracedLayer
from unitscope.records import matches


def choose(trace: Trace, patterns: Sequence[str] | None = None, model: str = "the network") -> list[TracedLayer]:
    """The layers that match any of the glob patterns, in call order; without patterns the default ones.

    Raises `LayerNotFound` for a pattern that matches nothing and `LayoutError` where a layer asked for can't be scanned.
    """
    if not patterns:
        _refuse([r for r in trace.refused if r.default], model)
        chosen = [layer for layer in trace.layers if layer.default]
        if not chosen:
            raise LayerNotFound(f"{model!r} has no activation, convolution or linear layer to scan by default; name some")
        return chosen
    for pattern in patterns:
        _check(pattern, trace, model)
    left_out = [r.name for r in trace.refused if any(matches(r.name, p) for p in patterns)]
    if left_out:
        said = f"{', '.join(map(repr, left_out[:3]))}{f' and {len(left_out) - 3} more' if len(left_out) > 3 else ''}"
        warnings.warn(f"left out, since they can't be scanned: {said}", stacklevel=2)
    return [layer for layer in trace.layers if any(matches(layer.name, p) for p in patterns)]


def _check(pattern: str, trace: Trace, model: str) -> None:
    if any(matches(layer.name, pattern) for layer in trace.layers):
        return
    _refuse([r for r in trace.refused if matches(r.name, pattern)], model)
    names = [layer.name for layer in trace.layers]
    raise LayerNotFound(
        f"{model!r} has no layer {pattern!r}.{suggestion(pattern, names)} List all {len(names)} with: unitscope layers {model}"
    )


def _refuse(refused: Sequence[Refusal], model: str) -> None:
    if refused:
        first, others = refused[0], f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise LayoutError(
            f"layer {first.name!r}{others} of {model!r} can't be scanned: {first.reason}. "
            "Choose others with --layers (layers= in Python)."
        )
