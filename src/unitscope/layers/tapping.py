"""Reading layers while the network runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers.data_flow import first_tensor_argument
from unitscope.layers.tracing import TracedLayer

ReadMaps = Callable[[int, Tensor], None]
"""Called with a layer's index among the tapped ones and its maps, of shape (image, unit, y, x). Maps may be overwritten later."""


class PassDone(BaseException):
    """Ends a forward pass once every tapped layer was read. Not an `Exception`, so that no network catches it."""


@dataclass(slots=True)
class Tap:
    """The hooks on one network: `run` sends images through it as far as the last tapped layer, `run_to_end` through all of it."""

    network: nn.Module
    layers: Sequence[TracedLayer]
    read_maps: ReadMaps
    _call_counts: Counter[str] = field(default_factory=Counter)
    _unread: set[int] = field(default_factory=set)
    _image_count: int = 0
    _stops_early: bool = True

    def run(self, images: Tensor) -> None:
        """One pass over images of shape (image, channel, y, x). Raises `NetworkError` where a layer isn't reached."""
        self._begin(images, stops_early=True)
        try:
            self.network(images)
        except PassDone:
            return
        self._check_all_read()

    def run_to_end(self, images: Tensor) -> Any:
        """The same, and what the network as a whole returns."""
        self._begin(images, stops_early=False)
        output = self.network(images)
        self._check_all_read()
        return output

    def _begin(self, images: Tensor, stops_early: bool) -> None:
        self._call_counts.clear()
        self._image_count, self._stops_early = len(images), stops_early
        self._unread = set(range(len(self.layers)))

    def _check_all_read(self) -> None:
        if self._unread:
            names = ", ".join(repr(self.layers[i].name) for i in sorted(self._unread))
            raise NetworkError(f"the forward pass never came to {names}: its path depends on the images, so it can't be scanned")

    def _hooks(self, path: str) -> tuple[Any, Any]:
        """A hook for the start of the calls of the module at that path, and one for their end."""
        indices = {(layer.nth_call, layer.reads_input): i for i, layer in enumerate(self.layers) if layer.module_path == path}

        def read_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._call_counts[path] += 1
            index = indices.get((self._call_counts[path], True))
            if index is not None and (tensor := first_tensor_argument(args, kwargs)) is not None:
                self._read(index, tensor)

        def read_output(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            index = indices.get((self._call_counts[path], False))
            if index is not None:
                self._read(index, output)

        return read_input, read_output

    def _read(self, index: int, tensor: Tensor) -> None:
        layer = self.layers[index].layer
        expected = (self._image_count, layer.units, layer.map_height, layer.map_width)
        try:
            maps = self.layers[index].layout.maps(tensor)
        except (RuntimeError, IndexError):  # fewer dimensions, or fewer tokens
            maps = tensor
        if tuple(maps.shape) != expected:
            raise NetworkError(
                f"layer {layer.name!r} gave maps of shape {tuple(maps.shape)} where {expected} was expected: its calls or its maps "
                "depend on the images, so it can't be scanned"
            )
        self.read_maps(index, maps)
        self._unread.discard(index)
        if self._stops_early and not self._unread:
            raise PassDone


@contextmanager
def tapped(network: nn.Module, layers: Sequence[TracedLayer], read_maps: ReadMaps) -> Iterator[Tap]:
    """Hook the layers' modules for as long as the block lasts."""
    tap = Tap(network, layers, read_maps)
    handles = []
    for path in {layer.module_path for layer in layers}:
        read_input, read_output = tap._hooks(path)
        handles.append(network.get_submodule(path).register_forward_pre_hook(read_input, with_kwargs=True))
        handles.append(network.get_submodule(path).register_forward_hook(read_output))
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()


ChangeOutput = Callable[[int, Tensor], Tensor | None]
"""Called with a layer's index among the watched ones and the output of its module; what it returns, if anything, takes the output's place."""


@contextmanager
def outputs_watched(network: nn.Module, layers: Sequence[TracedLayer], change: ChangeOutput) -> Iterator[None]:
    """While the block lasts, `change` is given what the layers' modules pass on: of an activation what comes out, not the value that is ranked."""
    indices = {(layer.module_path, layer.nth_call): index for index, layer in enumerate(layers)}
    call_counts: Counter[str] = Counter()

    def start(*_: Any) -> None:
        call_counts.clear()

    def hook(path: str) -> Callable[..., Tensor | None]:
        def watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            call_counts[path] += 1
            index = indices.get((path, call_counts[path]))
            return change(index, output) if index is not None and isinstance(output, Tensor) else None

        return watch

    handles = [network.register_forward_pre_hook(start, prepend=True)]
    handles += [network.get_submodule(path).register_forward_hook(hook(path)) for path in {layer.module_path for layer in layers}]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
