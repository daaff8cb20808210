"""Replicas: copies of a network that run faster on a processor and give the same maps, one for each thread.

Weights lie in memory as convolutions like them (channels last), and batch norms are folded into the convolutions before them where
no layer is read between. The network itself is never changed.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unitscope.layers import Fold, Trace, TracedLayer
from unitscope.networks.class_variables import restore_class_variables
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.precision import fork_random_states
from unitscope.session.noise import KEPT_POSITIONS, layer_deviations, noise_batch, noise_images, read_maps
from unitscope.session.trials import (
    RELATIVE_TOLERANCE,
    Trial,
    TrialResult,
    interleaved_maps,
    interleaving_deviations,
    run_trial,
    trial_of_replicas,
)

log = logging.getLogger(__name__)

MAX_MAP_BYTES = 26_000_000
"""The largest map of a pass: larger ones leave the cache before the next layer has read them (measured on EPYC and Xeon, two cores)."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Copies of a network, one a thread, and what was found out about it while they were made."""

    networks: list[nn.Module]
    trial: Trial


def make_replicas(network: nn.Module, trace: Trace, layers: Sequence[TracedLayer], count: int) -> Replicas:
    """`count` copies on the device of the trace whose `layers` give the network's own maps, or one where several change each other's.

    That the maps are the same is not taken on trust: fast copies and a plain one run on the same noise first, and agree to 1e-4, or to
    1e-5 of a layer's highest value (more where rounding alone moves its values further), or the fast ones are not used. Folded copies are
    tried before unfolded ones.

    Raises `NetworkError` where values depend on the images that ran before.
    """
    device = trace.input_format.device
    with fork_random_states(device), restore_class_variables(network):
        second_image = count == 1  # image of noise alone: where several replicas run in turn, it does so there
        on_plain = run_trial(network, trace, layers, second_image)
        plain = isolated_copy(network, trace.needs_hooks).to(device)
        for copies in _fast_copies(plain, trace, layers, count):
            if count > 1 and on_plain.trial.random is None and on_plain.trial.batch is None:
                # Both questions at once: are they right, and do they leave each other alone?
                differences = interleaving_deviations(interleaved_maps(copies, trace, layers), on_plain.maps)
                if all(d <= on_plain.trial.tolerance(layer.name) for layer, d in zip(layers, differences, strict=True)):
                    return Replicas(copies, on_plain.trial.with_rounding(layers, differences))
                if not second_image:  # is it the batch that had a say in the second image?
                    second_image, on_plain = True, run_trial(network, trace, layers, test_second_image=True)
            try:
                maps = read_maps(copies[0], layers, noise_batch(trace), KEPT_POSITIONS)
            except Exception:  # whatever a network does with weights that lie in another way
                log.debug("a fast copy of the network doesn't run", exc_info=True)
                continue
            if all(map(_maps_agree, layers, maps, on_plain.maps, repeat(on_plain.trial))):
                trial = on_plain.trial.with_rounding(layers, layer_deviations(maps, on_plain.maps))
                return _one_where_shared(copies, trace, layers, TrialResult(trial, maps))
        plain_copies = [plain, *(isolated_copy(plain, trace.needs_hooks) for _ in range(count - 1))]
        return _one_where_shared(plain_copies, trace, layers, on_plain)


def _one_where_shared(copies: list[nn.Module], trace: Trace, layers: Sequence[TracedLayer], result: TrialResult) -> Replicas:
    """All copies, or the first alone where they share state or random numbers."""
    trial = trial_of_replicas(result.trial, copies, trace, layers, result.maps)
    return Replicas(copies if trial.shared is None and trial.random is None else copies[:1], trial)


def _fast_copies(plain: nn.Module, trace: Trace, layers: Sequence[TracedLayer], count: int) -> Iterator[list[nn.Module]]:
    """Copies that should run fast and give the same maps, the fastest first."""
    read_modules = {layer.module_path for layer in layers}
    owners = Counter(id(parameter) for module in plain.modules() for parameter in module._parameters.values())
    folds = [fold for fold in trace.folds if fold.convolution not in read_modules and _can_fold(plain, fold, owners)]
    for attempted_folds in [folds, []] if folds else [[]]:
        first = _copy_in_format(plain, trace)
        for fold in attempted_folds:
            _fold_norm(first, fold)
        yield [first, *(_copy_in_format(first, trace) for _ in range(count - 1))]


def lowered(replicas: Replicas, dtype: torch.dtype) -> Replicas:
    """Copies that compute in another type."""
    return Replicas([isolated_copy(network, with_hooks=True).to(dtype) for network in replicas.networks], replicas.trial)


def maps_of_noise(network: nn.Module, trace: Trace, layers: Sequence[TracedLayer]) -> list[Tensor]:
    """The layers' maps of an image of noise, in the traced form."""
    return read_maps(network, layers, noise_images(trace, 2))


def images_per_pass(network: nn.Module, trace: Trace, batch_size: int) -> int:
    """How many images of a batch go through the network at once. On a processor few, so that a map that was written is still in
    the cache when the next layer reads it; more, where reading the weights would cost more than that.

    A power of two, or `batch_size` itself where that is lower and on other devices; the same for the same network everywhere.
    """
    weight_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    return max(images_in_cache(trace, batch_size), _power_of_two(weight_bytes // sum(_map_bytes(trace)), batch_size))


def images_in_cache(trace: Trace, batch_size: int) -> int:
    """The same for a pass that comes back as well: maps stay in the cache, whatever the weights cost."""
    if trace.input_format.device.type != "cpu":
        return batch_size
    return _power_of_two(MAX_MAP_BYTES // max(_map_bytes(trace)), batch_size)


def _map_bytes(trace: Trace) -> list[int]:
    return [layer.layer.units * layer.layer.map_height * layer.layer.map_width * 4 for layer in trace.layers] or [1]


def _power_of_two(images: int, limit: int) -> int:
    """The largest one that is no more than either."""
    return min(limit, 1 << (max(images, 1).bit_length() - 1))


def _copy_in_format(network: nn.Module, trace: Trace) -> nn.Module:
    """A copy whose convolutions' weights have the memory format of the traced input; other parameters are shared."""
    copied = isolated_copy(network, trace.needs_hooks)
    for parameter in copied.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=trace.input_format.memory_format)
    return copied


def _can_fold(network: nn.Module, fold: Fold, owners: Mapping[int, int]) -> bool:
    """True where both keep their numbers as plain convolutions and batch norms do, and no other module shares them. `owners` says how many
    modules have a parameter, by its `id`."""
    convolution, norm = network.get_submodule(fold.convolution), network.get_submodule(fold.norm)
    weight = convolution._parameters.get("weight")
    return weight is not None and owners[id(weight)] == 1 and getattr(norm, "running_mean", None) is not None


def _fold_norm(network: nn.Module, fold: Fold) -> None:
    """Put a batch norm's scale and shift into the convolution before it; what stands in the norm's place does nothing."""
    convolution: Any = network.get_submodule(fold.convolution)
    norm: Any = network.get_submodule(fold.norm)
    is_channels_last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    convolution.weight = nn.Parameter(weight.detach().contiguous(memory_format=memory_format), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    parent, _, name = fold.norm.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())


def _maps_agree(layer: TracedLayer, fast: Tensor, plain: Tensor, trial: Trial) -> bool:
    """True where the maps of every image are the same but for rounding."""
    tolerance = trial.tolerance(layer.name)
    highest_values = (float(maps.nan_to_num(0, 0, 0).abs().max()) for maps in plain)
    each_image = zip(plain, fast, highest_values, strict=True)
    return all(
        torch.allclose(p, f, rtol=RELATIVE_TOLERANCE, atol=tolerance * highest, equal_nan=True) for p, f, highest in each_image
    )
