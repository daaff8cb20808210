"""Copies of a network that run faster on a processor and give the same maps, one for each thread.

Weights lie in memory as convolutions like them (channels last), and batch norms are folded into the convolutions before them where
no layer is read between. The network itself is never changed.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unitscope.layers.tapping import tapped
from unitscope.layers.tracing import Fold, Trace, TracedLayer
from unitscope.precision import exactly

RELATIVE, ABSOLUTE = 1e-4, 1e-5
LARGEST_MAP_BYTES = 26_000_000


def copies(network: nn.Module, traced: Trace, chosen: Sequence[TracedLayer], count: int) -> list[nn.Module]:
    """`count` copies whose chosen layers give the network's own maps; only the network itself where it can't be copied so.

    That the maps are the same is not taken on trust: a copy and the network run on the same noise first, and agree to 1e-4, or
    1e-5 of a layer's highest value, or the copy is not used. Folded copies are tried before plain ones.
    """
    read = {layer.module for layer in chosen}
    folds = [f for f in traced.folds if f.convolution not in read and _can_fold(network, f)]
    for attempt in [folds, []] if folds else [[]]:
        try:
            first = _copy(network, traced.form.memory_format)
            for fold in attempt:
                _fold(first, fold)
            if _alike(network, first, traced, chosen):
                return [first, *(_copy(first, traced.form.memory_format) for _ in range(count - 1))]
        except Exception:
            continue
    return [network]


def lowered(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that computes in another type."""
    return copy.deepcopy(network).to(dtype)


def maps_of_noise(network: nn.Module, traced: Trace, chosen: Sequence[TracedLayer]) -> dict[int, Tensor]:
    """The chosen layers' maps of two images of noise, the same ones every time, in the traced form."""
    maps: dict[int, Tensor] = {}

    def keep(number: int, found: Tensor) -> None:
        maps[number] = found.clone()

    images = traced.form.of(torch.randn(2, *traced.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad(), exactly(network, images.device), tapped(network, chosen, keep) as tap:
        tap.run(images)
    return maps


def pass_images(network: nn.Module, traced: Trace, batch_size: int) -> int:
    """How many images of a batch go through the network at once. On a processor few, so that a map that was written is still in
    the cache when the next layer reads it; more, where reading the weights would cost more than that.

    A power of two, or `batch_size` itself where that is lower and on other devices; the same for the same network everywhere.
    """
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return max(cached_images(traced, batch_size), _power_of_two(weights // sum(_map_bytes(traced)), batch_size))


def cached_images(traced: Trace, batch_size: int) -> int:
    """The same for a pass that comes back as well: maps stay in the cache, whatever the weights cost."""
    if traced.form.device.type != "cpu":
        return batch_size
    return _power_of_two(LARGEST_MAP_BYTES // max(_map_bytes(traced)), batch_size)


def _map_bytes(traced: Trace) -> list[int]:
    return [layer.layer.units * layer.layer.map_height * layer.layer.map_width * 4 for layer in traced.layers] or [1]


def _power_of_two(images: int, most: int) -> int:
    return min(most, 1 << (max(images, 1).bit_length() - 1))


def _copy(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy in eval mode, with modules and buffers of its own; it shares the parameters that are laid out so already."""

    def laid_out(tensor: Tensor) -> nn.Parameter:
        values = tensor.detach()
        return nn.Parameter(values.contiguous(memory_format=layout) if values.dim() == 4 else values, requires_grad=False)

    return copy.deepcopy(network, {id(p): laid_out(p) for p in network.parameters()}).eval()


def _can_fold(network: nn.Module, fold: Fold) -> bool:
    """True where both keep their numbers as plain convolutions and batch norms do, and no other module shares them."""
    convolution, norm = network.get_submodule(fold.convolution), network.get_submodule(fold.norm)
    weight = convolution._parameters.get("weight")
    owners = [m for m in network.modules() if any(p is weight for p in m._parameters.values())]
    return weight is not None and len(owners) == 1 and getattr(norm, "running_mean", None) is not None


def _fold(network: nn.Module, fold: Fold) -> None:
    """Put a batch norm's scale and shift into the convolution before it; what stands in the norm's place does nothing."""
    convolution: Any = network.get_submodule(fold.convolution)
    norm: Any = network.get_submodule(fold.norm)
    layout = (
        torch.channels_last if convolution.weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    convolution.weight = nn.Parameter(weight.detach().contiguous(memory_format=layout), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    parent, _, name = fold.norm.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())


def _alike(network: nn.Module, made: nn.Module, traced: Trace, chosen: Sequence[TracedLayer]) -> bool:
    """True where every chosen layer's maps agree."""
    plain, fast = (maps_of_noise(module, traced, chosen) for module in (network, made))
    return all(_agree(plain[number], fast[number]) for number in range(len(chosen)))


def _agree(plain: Tensor, fast: Tensor) -> bool:
    scale = plain.nan_to_num(0, 0, 0).abs().max()
    return torch.allclose(plain, fast, rtol=RELATIVE, atol=ABSOLUTE * float(scale), equal_nan=True)
