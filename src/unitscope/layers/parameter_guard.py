"""The parameters of a network stay as they are while it runs."""

from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitscope.errors import NetworkError
from unitscope.receptive_fields import (
    decompose,
    is_composite,
    is_foreach,
    named_arguments,
    storage_id,
    tensors_in,
    written_arguments,
)


class ParameterGuard(TorchDispatchMode):
    """Refuses what would write into the parameters, which a copy shares with the network that was given.

    It decomposes operators that are made of others, or go through lists, so that modes below it see their parts; of what these do it
    sees nothing.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, in over a second, to keep it away from this mode

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {storage_id(parameter): name for name, parameter in network.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func) or is_foreach(func):
            with self:
                return decompose(func, args, kwargs)
        arguments = named_arguments(func, args, kwargs)
        for tensor in tensors_in(arguments[name] for name in written_arguments(func, arguments)):
            parameter = self._names.get(storage_id(tensor))
            if parameter is not None:
                raise NetworkError(
                    f"the network writes into its parameter {parameter!r} while it runs in eval mode, as layers do that set themselves "
                    "by the first images they meet; run it on real images once before it is scanned"
                )
        return func(*args, **kwargs)
