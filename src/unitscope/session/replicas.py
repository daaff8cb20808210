"""Replicas: copies of a network that run faster on a processor and give the same maps, one for each thread.

Weights lie in memory as convolutions like them (channels last), and batch norms are folded into the convolutions before them where
no layer is read between. The network itself is never changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unitscope.layers.tracing import Fold, Trace, TracedLayer
from unitscope.networks.class_variables import class_variables_kept
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.precision import random_states_kept
from unitscope.session.trials import (
    KEPT,
    Trial,
    Tried,
    apart_in_turn,
    deviations,
    in_turn,
    noise_batch,
    noise_for,
    noise_maps,
    tried,
    with_replicas,
)

RELATIVE = 1e-4
LARGEST_MAP_BYTES = 26_000_000


@dataclass(frozen=True, slots=True)
class Replicas:
    """Copies of a network, one a worker thread, and what was found out about it on the way."""

    networks: list[nn.Module]
    trial: Trial


def replicas(network: nn.Module, traced: Trace, chosen: Sequence[TracedLayer], count: int) -> Replicas:
    """`count` copies on the device of the trace whose chosen layers give the network's own maps, or one where several change each other's.

    That the maps are the same is not taken on trust: fast copies and a plain one run on the same noise first, and agree to 1e-4, or to
    1e-5 of a layer's highest value (more where rounding alone moves its values further), or the fast ones are not used. Folded copies are
    tried before unfolded ones.

    Raises `NetworkError` where values depend on the images that ran before.
    """
    with random_states_kept(traced.input_format.device), class_variables_kept(network):
        second = count == 1  # image of noise alone: where several run in turn, it does so there
        found = tried(network, traced, chosen, second)
        plain = isolated_copy(network, traced.hooks).to(traced.input_format.device)
        for made in _fast(plain, traced, chosen, count):
            if count > 1 and found.trial.random is None and found.trial.batch is None:
                # Both questions at once: are they right, and do they leave each other alone?
                apart = apart_in_turn(in_turn(made, traced, chosen), found.maps)
                if all(d <= found.trial.tolerance(layer.name) for layer, d in zip(chosen, apart, strict=True)):
                    return Replicas(made, found.trial.with_rounding(chosen, apart))
                if not second:  # is it the batch that had a say in the second image?
                    second, found = True, tried(network, traced, chosen, second=True)
            try:
                maps = noise_maps(made[0], chosen, noise_batch(traced), KEPT)
            except Exception:  # whatever a network does with weights that lie in another way
                continue
            if all(map(_agree, chosen, maps, found.maps, repeat(found.trial))):
                trial = found.trial.with_rounding(chosen, deviations(maps, found.maps))
                return _alone_where_shared(made, traced, chosen, Tried(trial, maps))
        made = [plain, *(isolated_copy(plain, traced.hooks) for _ in range(count - 1))]
        return _alone_where_shared(made, traced, chosen, found)


def _alone_where_shared(made: list[nn.Module], traced: Trace, chosen: Sequence[TracedLayer], found: Tried) -> Replicas:
    trial = with_replicas(found.trial, made, traced, chosen, found.maps)
    return Replicas(made if trial.shared is None and trial.random is None else made[:1], trial)


def _fast(plain: nn.Module, traced: Trace, chosen: Sequence[TracedLayer], count: int) -> Iterator[list[nn.Module]]:
    """Copies that should run fast and give the same maps, the fastest first."""
    read = {layer.module for layer in chosen}
    folds = [f for f in traced.folds if f.convolution not in read and _can_fold(plain, f)]
    for attempt in [folds, []] if folds else [[]]:
        first = _laid_out(plain, traced)
        for fold in attempt:
            _fold(first, fold)
        yield [first, *(_laid_out(first, traced) for _ in range(count - 1))]


def lowered(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that computes in another type."""
    return isolated_copy(network, hooks=True).to(dtype)


def maps_of_noise(network: nn.Module, traced: Trace, chosen: Sequence[TracedLayer]) -> list[Tensor]:
    """The chosen layers' maps of an image of noise, in the traced form."""
    return noise_maps(network, chosen, noise_for(traced, 2))


def pass_images(network: nn.Module, traced: Trace, batch_size: int) -> int:
    """How many images of a batch go through the network at once. On a processor few, so that a map that was written is still in
    the cache when the next layer reads it; more, where reading the weights would cost more than that.

    A power of two, or `batch_size` itself where that is lower and on other devices; the same for the same network everywhere.
    """
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return max(cached_images(traced, batch_size), _power_of_two(weights // sum(_map_bytes(traced)), batch_size))


def cached_images(traced: Trace, batch_size: int) -> int:
    """The same for a pass that comes back as well: maps stay in the cache, whatever the weights cost."""
    if traced.input_format.device.type != "cpu":
        return batch_size
    return _power_of_two(LARGEST_MAP_BYTES // max(_map_bytes(traced)), batch_size)


def _map_bytes(traced: Trace) -> list[int]:
    return [layer.layer.units * layer.layer.map_height * layer.layer.map_width * 4 for layer in traced.layers] or [1]


def _power_of_two(images: int, most: int) -> int:
    return min(most, 1 << (max(images, 1).bit_length() - 1))


def _laid_out(network: nn.Module, traced: Trace) -> nn.Module:
    """A copy that shares the parameters that lie in memory as the trace's input does; the others are laid out like it."""
    made = isolated_copy(network, traced.hooks)
    for parameter in made.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=traced.input_format.memory_format)
    return made


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


def _agree(layer: TracedLayer, fast: Tensor, plain: Tensor, trial: Trial) -> bool:
    """True where the maps of every image are the same but for rounding."""
    near = trial.tolerance(layer.name)
    scales = (float(maps.nan_to_num(0, 0, 0).abs().max()) for maps in plain)
    each = zip(plain, fast, scales, strict=True)
    return all(torch.allclose(p, f, rtol=RELATIVE, atol=near * scale, equal_nan=True) for p, f, scale in each)
