"""Reading layers while the network runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.tracing import TracedLayer

Read = Callable[[int, Tensor], None]
"""Called with a layer's place among the tapped ones and its maps, of shape (image, unit, y, x). Maps may be overwritten later."""


class PassDone(BaseException):
    """Ends a forward pass once every tapped layer was read. Not an `Exception`, so that no network catches it."""


@dataclass(slots=True)
class Tap:
    """The hooks on one network: `run` sends images through it as far as the last tapped layer, `run_to_end` through all of it."""

    network: nn.Module
    layers: Sequence[TracedLayer]
    read: Read
    _counts: dict[str, int] = field(default_factory=dict)
    _missing: set[int] = field(default_factory=set)
    _images: int = 0
    _stops: bool = True

    def run(self, images: Tensor) -> None:
        """One pass over images of shape (image, channel, y, x). Raises `NetworkError` where a layer isn't reached."""
        self._begin(images, stops=True)
        try:
            self.network(images)
        except PassDone:
            return
        self._check_all_read()

    def run_to_end(self, images: Tensor) -> Any:
        """The same, and what the network as a whole returns."""
        self._begin(images, stops=False)
        output = self.network(images)
        self._check_all_read()
        return output

    def _begin(self, images: Tensor, stops: bool) -> None:
        self._counts.clear()
        self._images, self._stops = len(images), stops
        self._missing = set(range(len(self.layers)))

    def _check_all_read(self) -> None:
        if self._missing:
            names = ", ".join(repr(self.layers[i].name) for i in sorted(self._missing))
            raise NetworkError(f"the forward pass never came to {names}: its path depends on the images, so it can't be scanned")

    def _hooks(self, module: str) -> tuple[Any, Any]:
        """A hook for the start of the module's calls, and one for their end."""
        wanted = {(t.count, t.reads_input): i for i, t in enumerate(self.layers) if t.module == module}

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            count = self._counts[module] = self._counts.get(module, 0) + 1
            if (count, True) in wanted:
                self._take(wanted[count, True], next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)))

        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (self._counts[module], False) in wanted:
                self._take(wanted[self._counts[module], False], output)

        return before, after

    def _take(self, number: int, output: Tensor) -> None:
        layer = self.layers[number].layer
        expected = (self._images, layer.units, layer.map_height, layer.map_width)
        try:
            maps = self.layers[number].layout.maps(output)
        except (RuntimeError, IndexError):  # fewer dimensions, or fewer tokens
            maps = output
        if tuple(maps.shape) != expected:
            raise NetworkError(
                f"layer {layer.name!r} gave maps of shape {tuple(maps.shape)} where {expected} was expected: its calls or its maps "
                "depend on the images, so it can't be scanned"
            )
        self.read(number, maps)
        self._missing.discard(number)
        if self._stops and not self._missing:
            raise PassDone


@contextmanager
def tapped(network: nn.Module, layers: Sequence[TracedLayer], read: Read) -> Iterator[Tap]:
    """Hook the layers' modules for as long as the block lasts."""
    tap = Tap(network, layers, read)
    handles = []
    for module in {layer.module for layer in layers}:
        before, after = tap._hooks(module)
        handles.append(network.get_submodule(module).register_forward_pre_hook(before, with_kwargs=True))
        handles.append(network.get_submodule(module).register_forward_hook(after))
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
