"""A network: the module with its model string, weights and preprocessing, and the format of its input."""

import hashlib
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from unitscope.errors import NetworkError
from unitscope.networks.classes import OutputClass
from unitscope.networks.copying import uncompiled
from unitscope.records import Preprocessing


@dataclass(frozen=True, slots=True)
class Network:
    """A module with the model string, weights and seed that it was made from. `preprocessing` and `classes`, those of its outputs, are
    None where they aren't known."""

    module: nn.Module
    model: str
    weights: str
    seed: int
    preprocessing: Preprocessing | None
    classes: tuple[OutputClass, ...] | None = None

    def hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all parameters and buffers, by name; other state counts by its `repr`.

        A compiled network has the hash of the network that was compiled.
        """
        digest = hashlib.sha256()
        state = {name.replace("_orig_mod.", ""): value for name, value in self.module.state_dict().items()}
        for name, value in sorted(state.items()):
            if not isinstance(value, torch.Tensor) or value.is_quantized:
                digest.update(f"{name} {value!r}\n".encode())
                continue
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def network_from_module(module: nn.Module) -> Network:
    """The network of a module that was made in Python. Its model string names the class and can't be built from.

    Raises `NetworkError` where a parameter or buffer has no values yet.
    """
    module = uncompiled(module)
    check_values(module)
    return Network(module, f"module:{type(module).__module__}.{type(module).__qualname__}", "given", 0, None)


def check_values(module: nn.Module) -> None:
    """Raises `NetworkError` for a parameter or buffer without values: a lazy one, or one on the meta device."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise NetworkError(f"{name!r} has no shape yet, since its module is lazy; run the network on an input first")
        if tensor.is_meta:
            raise NetworkError(
                f"{name!r} is on the meta device, without values; build the network on a real one, or load weights into it"
            )


@dataclass(frozen=True, slots=True)
class InputFormat:
    """The format of a network's input: device, type and memory format."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    def convert(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (image, channel, y, x) in that format."""
        return images.to(self.device, self.dtype).contiguous(memory_format=self.memory_format)


def as_float32(values: torch.Tensor) -> torch.Tensor:
    """The values in float32, or in float64 if they are: sums and norms in half precision lose digits or overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def first_float_tensor(module: nn.Module) -> torch.Tensor | None:
    """The first parameter, or else buffer, of a floating type, which has the network's device and type; None without any."""
    tensors = (tensor for tensor in chain(module.parameters(), module.buffers()) if tensor.is_floating_point())
    return next(tensors, None)
