"""A session: a network and images opened together, and the ways to run the one over the other.

Whatever runs a network opens a session: a scan, `check`, attribution, the experiments, search by image. So all of them run the
same copies of the network, in the same arithmetic, as fast as a scan.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import ceil
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from unitscope.errors import WHERE_IMAGES_ARE, ImagesError
from unitscope.images import Item, ShardUnreadable
from unitscope.layers import Trace, TracedLayer, tapped
from unitscope.networks import InputFormat
from unitscope.networks.isolation import isolated_copy
from unitscope.networks.outputs import class_scores
from unitscope.networks.precision import exact_inference
from unitscope.session.loader import LoadedImage, Loader
from unitscope.session.noise import noise_images
from unitscope.session.readers import LoadingImages, readers
from unitscope.session.replica_threads import ReplicaThreads, replica_count, replica_threads
from unitscope.session.replicas import Replicas, images_per_pass, lowered, make_replicas
from unitscope.session.trials import RELATIVE_TOLERANCE, Trial

IMAGES_PER_SHARD = 64
OUTPUT_TOLERANCE = 1e-5
"""How far apart outputs of copies may be, as a share of the highest, where arithmetic in float32 is all that differs."""


@runtime_checkable
class HasItems(Protocol):
    """A batch of images to be loaded, with whatever its maker wants to know of it later."""

    @property
    def items(self) -> Sequence[Item]: ...


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images that are run together."""

    items: tuple[Item, ...]


Result = TypeVar("Result")
Batch = TypeVar("Batch", bound=HasItems)
RunBatch = Callable[[nn.Module, Batch, list[LoadedImage]], Result]
"""Called in a replica's thread with the replica, a batch and its images, in the order of its items."""
ReadMaps = Callable[[int, Tensor], Result]
"""Called in a layer's hook with its index among the layers and its maps, of shape (image, unit, y, x), which may be overwritten later."""


@dataclass
class Session:
    """A network and images opened to be run.

    `module` is the network as it was given; only copies of it run. `layers` are those that are read. `reader_count` threads, or
    processes, load images; where it is 0 the caller's thread does. With a `dtype` the replicas compute in it.

    Replicas are made when they are first needed. A pickled session makes its own in the process that receives it.
    """

    module: nn.Module
    trace: Trace
    layers: tuple[TracedLayer, ...]
    loader: Loader
    reader_count: int = 0
    dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return self.trace.input_format.device

    @property
    def input_format(self) -> InputFormat:
        """How replicas take their input."""
        traced = self.trace.input_format
        return traced if self.dtype is None else replace(traced, dtype=self.dtype)

    @property
    def unit_counts(self) -> list[int]:
        """How many units each layer has."""
        return [traced.layer.units for traced in self.layers]

    @cached_property
    def replicas(self) -> Replicas:
        """Fast copies of the network, one a thread, and what a trial on noise found.

        Raises `NetworkError` where values depend on the images that ran before.
        """
        replicas = make_replicas(self.module, self.trace, self.layers, replica_count(self.device))
        return replicas if self.dtype is None else lowered(replicas, self.dtype)

    @property
    def trial(self) -> Trial:
        """What was found out about the network before replicas ran on images."""
        return self.replicas.trial

    @cached_property
    def plain_copy(self) -> nn.Module:
        """One copy of the network as it was written, for a few images."""
        return isolated_copy(self.module, self.trace.needs_hooks).to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("replicas", "plain_copy", "_replicas_with_output")
        }

    def on_device(self, device: torch.device) -> "Session":
        """The same for workers on another device."""
        return replace(self, trace=replace(self.trace, input_format=replace(self.trace.input_format, device=device)))

    def in_dtype(self, dtype: torch.dtype) -> "Session":
        """The same in another arithmetic. Replicas that are made already are converted, not made again."""
        session = replace(self, dtype=dtype)
        if "replicas" in self.__dict__:
            session.__dict__["replicas"] = lowered(self.replicas, dtype)
        return session

    def images_per_pass(self, batch_size: int) -> int:
        """How many images of a batch go through the network at once (see `replicas`)."""
        return images_per_pass(self.module, self.trace, batch_size)

    def batches(self, images: Sequence[int], batch_size: int) -> Iterator[ImageBatch]:
        """The images of these numbers, to be loaded and run together."""
        length = self.images_per_pass(batch_size)
        for start in range(0, len(images), length):
            yield ImageBatch(tuple(self.loader.item(image) for image in images[start : start + length]))

    def all_batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """All images of the source, in order, to be loaded and run together."""
        items, length = self._items(), self.images_per_pass(batch_size)
        while batch := tuple(islice(items, length)):
            yield ImageBatch(batch)

    def readable_images(self) -> Iterator[LoadedImage]:
        """All images that can be read, in order, with their pixels, in the caller's thread."""
        yield from (image for image in map(self.loader.load, self._items()) if image.pixels is not None)

    def _items(self) -> Iterator[Item]:
        """All images of the source, in order. Raises `ImagesError` where an archive can't be read to its end."""
        source = self.loader.source
        try:
            for shard in source.shards(IMAGES_PER_SHARD):
                yield from source.items(shard)
        except ShardUnreadable as error:
            raise ImagesError(str(error)) from error

    def inputs(self, loaded: Sequence[LoadedImage]) -> Tensor:
        """The network's input, of shape (image, channel, y, x). Raises `ImagesError` for an image that couldn't be read."""
        unreadable = next((image for image in loaded if image.pixels is None), None)
        if unreadable is not None:
            raise ImagesError(f"the image {unreadable.key!r} {unreadable.skip_reason}; {WHERE_IMAGES_ARE}")
        return self.loader.normalise([image.pixels for image in loaded if image.pixels is not None], self.input_format)

    @cached_property
    def _replicas_with_output(self) -> list[nn.Module]:
        """Replicas whose output as a whole is the network's own too; the trial compares layers alone. Else copies as it was written."""
        inputs = noise_images(self.trace, 1)
        outputs = [_output(network, inputs) for network in (self.plain_copy, *self.replicas.networks)]
        if all(_same_output(outputs[0], output) for output in outputs[1:]):
            return self.replicas.networks
        return [isolated_copy(self.plain_copy, self.trace.needs_hooks) for _ in self.replicas.networks]

    @contextmanager
    def running(self, to_output: bool = False) -> Iterator[ReplicaThreads]:
        """The replicas at work, each in a thread of its own, for as long as the block lasts.

        With `to_output` they may be run to the end of the network; else as far as the last of the layers.
        """
        replicas = self._replicas_with_output if to_output else self.replicas.networks
        with replica_threads(replicas, self.device) as threads:
            yield threads

    def run_batches(self, batches: Iterable[Batch], run: "RunBatch[Batch, Result]", to_output: bool = False) -> Iterator[Result]:
        """What `run` makes of every batch, in order. Images are loaded ahead, so that replicas don't wait for them. See `running`."""
        pending: deque[Future[Result]] = deque()
        with readers(self.loader, self.reader_count) as image_readers, self.running(to_output) as threads:
            for batch in batches:
                pending.append(threads.submit(_run_loaded, run, batch, image_readers.start(batch.items)))
                if len(pending) >= self._batches_ahead(len(batch.items)):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _batches_ahead(self, batch_images: int) -> int:
        """Two a replica, and as many more as keep every reader busy."""
        return 2 * len(self.replicas.networks) + ceil(2 * self.reader_count / max(batch_images, 1))

    def read_plainly(self, images: Tensor, read: "ReadMaps[Result]") -> list[Result]:
        """What `read` gives of every layer, in one pass of the plain copy over images of shape (image, channel, y, x)."""
        with exact_inference(self.plain_copy, self.device):
            return read_layers(self.plain_copy, self.layers, images, read)


def _run_loaded(replica: nn.Module, run: "RunBatch[Batch, Result]", batch: Batch, loading: LoadingImages) -> Result:
    return run(replica, batch, loading.wait())


def read_layers(network: nn.Module, layers: Sequence[TracedLayer], images: Tensor, read: "ReadMaps[Result]") -> list[Result]:
    """What `read` gives of every layer, in one pass over images of shape (image, channel, y, x), without gradients.

    `read` is called inside the hooks, while the network runs: what it keeps of the maps should be small.
    """
    results: dict[int, Result] = {}

    def keep(index: int, maps: Tensor) -> None:
        results[index] = read(index, maps)

    with torch.no_grad(), tapped(network, layers, keep) as tap:
        tap.run(images)
    return [results[index] for index in range(len(layers))]


def read_layers_and_output(
    network: nn.Module, layers: Sequence[TracedLayer], images: Tensor, read: "ReadMaps[Result]"
) -> tuple[list[Result], Any]:
    """The same, and what the network as a whole returns."""
    results: dict[int, Result] = {}

    def keep(index: int, maps: Tensor) -> None:
        results[index] = read(index, maps)

    with torch.no_grad(), tapped(network, layers, keep) as tap:
        output = tap.run_to_end(images)
    return [results[index] for index in range(len(layers))], output


def _output(network: nn.Module, images: Tensor) -> Any:
    with torch.no_grad(), exact_inference(network, images.device):
        return network(images)


def _same_output(expected: Any, output: Any) -> bool:
    """True where the class scores of two outputs agree as far as float32 promises; nothing else of an output is used."""
    expected_scores, scores = class_scores(expected), class_scores(output)
    if expected_scores is None or scores is None:
        return True
    scale = float(expected_scores.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(scores, expected_scores, rtol=RELATIVE_TOLERANCE, atol=OUTPUT_TOLERANCE * scale, equal_nan=True)
