"""Readers: the threads or processes that load images ahead of the network.

Files may be read by any number of threads. A user's data set promises that to nobody: many seek and read in one open file, or keep a
buffer or a connection. So it is read in the caller's thread, unless the user asks for several workers. Then it is read by spawned
processes, each with a pickled copy, since forked ones would share the open file.
"""

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from unitscope.arguments import whole_number
from unitscope.errors import ImagesError, UnitscopeError, first_line
from unitscope.images import ImageSource, Item
from unitscope.session.loader import LoadedImage, Loader

log = logging.getLogger(__name__)

PROCESS_ENDED = (
    "a process that reads the data set has ended: it was killed, or the script that scans lacks its `if __name__ == '__main__':`; "
    "with workers=1 this process reads"
)


def reader_count(workers: int | str, source: ImageSource, cores: int | None = None) -> int:
    """How many threads or processes load images: as the user asks or, for `auto`, a thread for each of the `cores` (those of this process
    unless told otherwise) for files, and none for data sets.

    Without any the caller's thread loads them, as one worker does for a data set. Raises `UnitscopeError` for what is no such number, and
    where several workers are to read a data set that can't be pickled.
    """
    if workers == "auto":
        return (cores or available_cores()) if source.thread_safe else 0
    if isinstance(workers, str):
        raise UnitscopeError(f"workers is auto or a number, not {workers!r}")
    count = whole_number("workers", workers, minimum=0)
    if source.thread_safe:
        return count
    if count > 1:
        _check_picklable(source)
    return count if count > 1 else 0


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LoadingImages:
    """Images that are being loaded."""

    futures: "Sequence[Future[LoadedImage]]"

    def wait(self) -> list[LoadedImage]:
        """The images, once all of them are loaded. Raises `ImagesError` where a process that reads them has ended."""
        try:
            return [future.result() for future in self.futures]
        except BrokenProcessPool as error:
            raise ImagesError(PROCESS_ENDED) from error


@runtime_checkable
class Readers(Protocol):
    """What loads images."""

    def start(self, items: Sequence[Item]) -> LoadingImages:
        """Begin to load some images."""
        ...


@contextmanager
def readers(loader: Loader, count: int) -> Iterator[Readers]:
    """So many readers while the block lasts; without any, images are loaded in the thread that starts to."""
    if count == 0:
        yield CallingThread(loader)
        return
    reading = ReaderThreads(loader, count) if loader.source.thread_safe else ReaderProcesses(loader, count)
    try:
        yield reading
    finally:
        reading.stop()


class CallingThread:
    """Loads images at once, in the thread that asks."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def start(self, items: Sequence[Item]) -> LoadingImages:
        return LoadingImages([_finished(self._loader.load(item)) for item in items])


def _finished(image: LoadedImage) -> "Future[LoadedImage]":
    future: Future[LoadedImage] = Future()
    future.set_result(image)
    return future


class ReaderThreads:
    """Loads images in threads."""

    def __init__(self, loader: Loader, count: int) -> None:
        self._loader = loader
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def start(self, items: Sequence[Item]) -> LoadingImages:
        return LoadingImages([self._pool.submit(self._loader.load, item) for item in items])

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class ReaderProcesses:
    """Loads images by their numbers in spawned processes, each with a copy of the loader."""

    def __init__(self, loader: Loader, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_receive_loader, initargs=(pickle.dumps(loader),))

    def start(self, items: Sequence[Item]) -> LoadingImages:
        try:
            return LoadingImages([self._pool.submit(_load_in_process, item.image) for item in items])
        except BrokenProcessPool as error:
            raise ImagesError(PROCESS_ENDED) from error

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _check_picklable(source: ImageSource) -> None:
    try:
        pickle.dumps(source)
    except Exception as error:
        raise ImagesError(
            f"several workers read a data set with a pickled copy each, and this one can't be pickled: {type(error).__name__}: "
            f"{first_line(error)}; leave workers at 'auto'"
        ) from error


# ── in a process that reads ─────────────────────────────────────────────────────────────────────────────────────────

_received: list[Loader | UnitscopeError] = []
"""The process's copy of the loader, or why it has none."""


def _receive_loader(pickled_loader: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends this process
    torch.set_num_threads(1)
    try:
        _received.append(pickle.loads(pickled_loader))  # noqa: S301 - from the process that started this one
    except Exception as error:
        log.debug("the data set can't be unpickled", exc_info=True)
        _received.append(
            ImagesError(
                f"a process that reads can't have a copy of the data set: {type(error).__name__}: {first_line(error)}; leave workers at "
                "'auto', or define the data set in a module"
            )
        )


def _load_in_process(image: int) -> LoadedImage:
    loader = _received[0]
    if isinstance(loader, UnitscopeError):
        raise loader
    return loader.load(loader.item(image))
