"""The rectifiers in autograd's graph of a forward pass, and what replaces the gradient at them in a backward pass.

The graph is read, not the modules, so a rectifier counts whether it is a module, a function, in place or called several times.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from unitscope.errors import NetworkError

Gradients = tuple[Tensor | None, ...]
RectifierRule = Callable[[Gradients, Gradients], Gradients]
"""A hook of a node in the graph: from `grad_inputs` and `grad_outputs`, in torch's words, to what replaces `grad_inputs`."""

RECTIFIER_NODES = {
    "Relu", "LeakyRelu", "Elu", "Celu", "PreluKernel", "RreluWithNoise", "Silu", "Gelu", "Mish", "Hardswish", "Softplus"
}  # fmt: skip
"""Names of nodes, without `Backward0`, that are rectifiers."""
CLAMP_LIMITS = {"Hardtanh": "_saved_min_val", "Clamp": "_saved_min", "ClampMin": "_saved_min", "Threshold": "_saved_threshold"}
"""Nodes that are rectifiers where their lower limit, the attribute of that name, is zero."""
COMPILED_NODES = ("CompiledFunction", "DifferentiableGraph")
"""Parts of the names of nodes that hide a compiled part of the graph."""


def deconvnet(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients:
    """The positive part of the gradient that comes from above, whatever the forward pass did (Zeiler & Fergus 2014, section 2.1)."""
    grad_output = grad_outputs[0]
    if grad_output is None or grad_inputs[0] is None:
        return grad_inputs
    return grad_output.clamp(min=0), *grad_inputs[1:]


def guided_backprop(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients:
    """The positive part of the gradient, zero where the gradient from above isn't positive (Springenberg et al. 2014, section 3.4)."""
    grad_output, grad_input = grad_outputs[0], grad_inputs[0]
    if grad_output is None or grad_input is None:
        return grad_inputs
    return grad_input.clamp(min=0) * (grad_output > 0), *grad_inputs[1:]


def rectifiers(root: Any) -> Iterator[Any]:
    """The nodes of all rectifiers at and below a node: the ReLU family, clamps at zero, and smooth activations such as GELU.

    Raises `NetworkError` where a compiled part hides what is in it.
    """
    visited, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        if any(name in node.name() for name in COMPILED_NODES):
            raise NetworkError(
                "part of the network is compiled, which hides its rectifiers; give the network as it was before torch.jit or torch.compile"
            )
        if _is_rectifier(node):
            yield node
        for child, _ in node.next_functions:
            if child is not None and child not in visited:
                visited.add(child)
                waiting.append(child)


def _is_rectifier(node: Any) -> bool:
    operator = re.sub(r"Backward\d*$", "", node.name())
    limit = getattr(node, CLAMP_LIMITS[operator], None) if operator in CLAMP_LIMITS else None
    return operator in RECTIFIER_NODES or (isinstance(limit, (int, float)) and limit == 0)
