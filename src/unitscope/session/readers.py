"""Who reads the images of a scan: threads, the caller's own thread, or processes.

Files may be read by any number of threads. A user's data set was promised to nobody but its caller: many seek and read in one open
file, or keep a buffer or a connection. So it is read in the thread that called `scan`, unless the user asks for several readers; then
by processes that are spawned, each with a pickled copy, since forked ones would share the open file.
"""

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

import torch

from unitscope.arguments import whole_number
from unitscope.errors import ImagesError, UnitscopeError, first_line
from unitscope.images import ImageSource, Item
from unitscope.session.loader import LoadedImage, Loader

THREADS = 2

Begin = Callable[[Sequence[Item]], Callable[[], list[LoadedImage]]]
"""Begins to load some images, and gives a function that waits for them."""


def reader_count(workers: int | str, source: ImageSource) -> int:
    """How many readers are beside the caller's thread: as asked for or, for `auto`, two threads for files and none for data sets.

    One reader of a data set is the caller's thread too. Raises `UnitscopeError` for what is no such number, and where several are to
    read a data set that can't be pickled.
    """
    if workers == "auto":
        return THREADS if source.thread_safe else 0
    if isinstance(workers, str):
        raise UnitscopeError(f"workers is auto or a number, not {workers!r}")
    count = whole_number("workers", workers, minimum=0)
    if source.thread_safe:
        return count
    if count > 1:
        _pickled(source)
    return count if count > 1 else 0


@contextmanager
def readers(loader: Loader, count: int) -> Iterator[Begin]:
    """As many readers as that, for as long as the block lasts; without any, images are loaded in the thread that begins with them."""
    if count == 0:
        yield lambda items: partial(list, [loader.load(item) for item in items])
        return
    pool = _threads(count) if loader.source.thread_safe else _processes(loader, count)
    try:
        yield partial(_begun, pool, loader)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begun(pool: Executor, loader: Loader, items: Sequence[Item]) -> Callable[[], list[LoadedImage]]:
    if isinstance(pool, ThreadPoolExecutor):
        return partial(_results, [pool.submit(loader.load, item) for item in items])
    try:
        return partial(_results, [pool.submit(_load, item.image) for item in items])
    except BrokenProcessPool as error:
        raise ImagesError(ENDED) from error


def _results(futures: "Sequence[Future[LoadedImage]]") -> list[LoadedImage]:
    try:
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise ImagesError(ENDED) from error


def _threads(count: int) -> Executor:
    return ThreadPoolExecutor(count, thread_name_prefix="decode")


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────

ENDED = (
    "a process that reads the data set has ended: it was killed, or the script that scans lacks its `if __name__ == '__main__':`; "
    "with workers=1 this process reads"
)
_held: list[Loader | UnitscopeError] = []
"""In a process that reads: what it was given to read with."""


def _pickled(source: ImageSource) -> bytes:
    try:
        return pickle.dumps(source)
    except Exception as error:
        raise ImagesError(
            f"several workers read a data set with a pickled copy each, and this one can't be pickled: {type(error).__name__}: "
            f"{first_line(error)}; leave workers at 'auto'"
        ) from error


def _processes(loader: Loader, count: int) -> Executor:
    spawning = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawning, initializer=_receive, initargs=(pickle.dumps(loader),))


def _receive(loader: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the caller's, who ends this process
    torch.set_num_threads(1)
    try:
        _held.append(pickle.loads(loader))  # noqa: S301 - from the process that started this one
    except Exception as error:
        _held.append(
            ImagesError(
                f"a process that reads can't have a copy of the data set: {type(error).__name__}: {first_line(error)}; leave workers at "
                "'auto', or define the data set in a module"
            )
        )


def _load(image: int) -> LoadedImage:
    loader = _held[0]
    if isinstance(loader, UnitscopeError):
        raise loader
    return loader.load(loader.item(image))
