"""A network as it is handed around: the module with what a scan must know of it, and the form in which it takes its input."""

import hashlib
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from unitscope.errors import NetworkError
from unitscope.networks.copying import uncompiled
from unitscope.records import Preprocessing


@dataclass(frozen=True, slots=True)
class Network:
    """A network with what a scan must know of it. `preprocessing` is None where nobody has said it."""

    module: nn.Module
    model: str
    weights: str
    seed: int
    preprocessing: Preprocessing | None

    def hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all parameters and buffers, by name; of other state over its text.

        A network that was compiled has the hash of the one that it was made from.
        """
        digest = hashlib.sha256()
        state = {name.replace("_orig_mod.", ""): value for name, value in self.module.state_dict().items()}
        for name, value in sorted(state.items()):
            if not isinstance(value, torch.Tensor) or value.is_quantized:
                digest.update(f"{name} {value!r}\n".encode())
                continue
            values = value.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def given_network(module: nn.Module) -> Network:
    """A network that somebody made in Python: it has no model string to build it from again.

    Raises `NetworkError` where some of its parameters or buffers have no values yet.
    """
    module = uncompiled(module)
    check_values(module)
    return Network(module, f"module:{type(module).__module__}.{type(module).__qualname__}", "given", 0, None)


def check_values(module: nn.Module) -> None:
    """Raises `NetworkError` for lazy parameters and buffers, and for those on the meta device: there is nothing to scan in them."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise NetworkError(f"{name!r} has no shape yet, since its module is lazy; run the network on an input first")
        if tensor.is_meta:
            raise NetworkError(
                f"{name!r} is on the meta device, without values; build the network on a real one, or load weights into it"
            )


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How a network takes its input: where, in which type, and laid out how in memory."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    def convert(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (image, channel, y, x) in that format."""
        return images.to(self.device, self.dtype).contiguous(memory_format=self.memory_format)


def as_float32(values: torch.Tensor) -> torch.Tensor:
    """The values in float32 at least: half precision has too few digits to add up in, and too little range for a norm."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def first_tensor(module: nn.Module) -> torch.Tensor | None:
    """A parameter, or else a buffer, of floating type: where the network is and in which type it computes."""
    tensors = (t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point())
    return next(tensors, None)
