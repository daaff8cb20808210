"""Gradients that torch gets wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NORMS = (torch.batch_norm, torch.instance_norm, functional.batch_norm, functional.instance_norm)


class ContiguousNormGradients(TorchFunctionMode):
    """Forward passes in this mode have right gradients behind batch and instance norms.

    On a processor torch (2.14) takes the gradient of a batch of one image for one that lies as the norm's input does, whatever its strides:
    behind tokens or in the memory format channels last it then belongs to other cells. A gradient that is made contiguous does not.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **kwargs or {})
        if function in NORMS and result.requires_grad and result.shape[0] == 1:
            result.register_hook(Tensor.contiguous)
        return result
