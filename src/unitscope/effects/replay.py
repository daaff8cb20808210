"""Runs of a network on many copies of a batch that differ from a layer on: what comes before is computed once.

While the network runs on a batch, what every module gives is kept, up to the layer. To run it again on copies, the largest modules that were
done by then give copies of what they gave. What torch functions between modules do is done again; it costs little.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from unitscope.layers import TracedLayer

ModuleCall = tuple[str, int]
"""The path of a module, and which of its calls."""


@dataclass
class Recording:
    """What the largest modules gave that were done before the layer began, for a batch of so many images."""

    images: int
    unused: frozenset[ModuleCall] = frozenset()
    """Calls whose output nobody looks at when they are replayed: only modules that are replayed too."""
    outputs: dict[ModuleCall, Any] = field(default_factory=dict)


@contextmanager
def recording(
    network: nn.Module, layer: TracedLayer, images: int, unused: frozenset[ModuleCall] = frozenset()
) -> Iterator[Recording]:
    """A recording, that a pass over so many images fills while the block lasts. `unused` is what an earlier one has shown."""
    kept = Recording(images, unused)
    counts: Counter[str] = Counter()
    started: list[tuple[ModuleCall, int]] = []
    order: dict[ModuleCall, int] = {}
    is_done = False

    def begin(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            nonlocal is_done
            counts[path] += 1
            is_done = is_done or (path, counts[path]) == (layer.module_path, layer.nth_call)
            started.append(((path, counts[path]), len(order)))
            order[path, counts[path]] = len(order)

        return hook

    def end(module: nn.Module, args: Any, output: Any) -> None:
        call, _ = started.pop()
        if not is_done:
            for inner in [inner for inner in kept.outputs if order[inner] > order[call]]:
                del kept.outputs[inner]
            kept.outputs[call] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)

    modules = [(path, module) for path, module in network.named_modules() if path]
    handles = [module.register_forward_pre_hook(begin(path), prepend=True) for path, module in modules]
    handles += [module.register_forward_hook(end) for _, module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaying(network: nn.Module, kept: Recording, copies: int) -> Iterator[dict[ModuleCall, Any]]:
    """While the block lasts, passes over `copies` copies of the recorded batch, one after the other, begin where the recording ended. What
    was given in place of what modules computed is in the dictionary afterwards."""
    given: dict[ModuleCall, Any] = {}
    modules = [(path, network.get_submodule(path)) for path in {path for path, _ in kept.outputs}]
    counts: Counter[str] = Counter()

    def start(*_: Any) -> None:
        counts.clear()

    def replay(path: str, original: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            counts[path] += 1
            call = (path, counts[path])
            if call not in kept.outputs:
                return original(*args, **kwargs)
            given[call] = kept.outputs[call] if call in kept.unused else _copied(kept.outputs[call], kept.images, copies)
            return given[call]

        return forward

    handle = network.register_forward_pre_hook(start, prepend=True)
    for path, module in modules:
        module.forward = replay(path, module.forward)
    try:
        yield given
    finally:
        handle.remove()
        for _, module in modules:
            del module.forward


def find_unused(network: nn.Module, kept: Recording, images: Tensor) -> tuple[frozenset[ModuleCall], Any]:
    """Which calls give what nobody looks at when they are replayed, and what the network returns for two copies of the recorded images."""
    with replaying(network, kept, 2) as given, UsedTensors() as used:
        output = network(torch.cat([images] * 2))
    unused = {call for call, copies in given.items() if not used.addresses & _addresses(copies)}
    return frozenset(unused), output


class UsedTensors(TorchFunctionMode):
    """While this mode is on, the tensors that torch functions are given are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.addresses |= _addresses((args, kwargs))
        return function(*args, **kwargs or {})


def _addresses(tensors: Any) -> set[int]:
    return {leaf.data_ptr() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor) and leaf.numel()}


def _copied(output: Any, images: int, copies: int) -> Any:
    """A fresh one each time, since networks may change it in place."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.dim() or leaf.shape[0] % images:
            return leaf.clone()
        return torch.cat([leaf] * copies)

    return tree_map(copy, output)
