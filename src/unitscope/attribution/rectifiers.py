"""Rectifiers in the graph that autograd keeps of a forward pass, and what becomes of a signal on its way down through them.

The graph is read, not the modules, so a rectifier counts whether it is a module, a function, in place or called many times.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from unitscope.errors import NetworkError

Signals = tuple[Tensor | None, ...]
Rule = Callable[[Signals, Signals], Signals]
"""From what a node of the graph would send down and what came down to it, to what it sends down instead."""

RECTIFYING = {
    "Relu", "LeakyRelu", "Elu", "Celu", "PreluKernel", "RreluWithNoise", "Silu", "Gelu", "Mish", "Hardswish", "Softplus"
}  # fmt: skip
CLAMPING = {"Hardtanh": "_saved_min_val", "Clamp": "_saved_min", "ClampMin": "_saved_min", "Threshold": "_saved_threshold"}
OPAQUE = ("CompiledFunction", "DifferentiableGraph")


def deconvnet(down: Signals, came: Signals) -> Signals:
    """The signal rectified, whatever the forward pass did there (Zeiler & Fergus 2014, section 2.1)."""
    signal = came[0]
    return down if signal is None or down[0] is None else (signal.clamp(min=0), *down[1:])


def guided_backprop(down: Signals, came: Signals) -> Signals:
    """The gradient where the signal is positive and the rectifier rises; zero elsewhere (Springenberg et al. 2014, section 3.4)."""
    signal, gradient = came[0], down[0]
    if signal is None or gradient is None:
        return down
    return gradient.clamp(min=0) * (signal > 0), *down[1:]


def rectifiers(root: Any) -> Iterator[Any]:
    """All rectifiers at and below a node: those of the ReLU family, clamps at zero, and the smooth ones that take their place.

    Raises `NetworkError` where part of the graph is compiled, which hides what is in it.
    """
    met, ahead = {root}, [root]
    while ahead:
        node = ahead.pop()
        if any(name in node.name() for name in OPAQUE):
            raise NetworkError(
                "part of the network is compiled, which hides its rectifiers; give the network as it was before torch.jit or torch.compile"
            )
        if _rectifies(node):
            yield node
        for below, _ in node.next_functions:
            if below is not None and below not in met:
                met.add(below)
                ahead.append(below)


def _rectifies(node: Any) -> bool:
    operator = re.sub(r"Backward\d*$", "", node.name())
    low = getattr(node, CLAMPING[operator], None) if operator in CLAMPING else None
    return operator in RECTIFYING or (isinstance(low, (int, float)) and low == 0)
