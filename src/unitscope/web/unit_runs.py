"""What is read from large tables for a run of neighbouring units at once, and kept for the runs that were last asked for."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

from cachetools import LRUCache

Run = TypeVar("Run")


class UnitRuns(Generic[Run]):
    """Runs of `length` units of a layer, read by `read`, which gets the layer's name and the units; as many runs are kept as hold `kept_units`.

    A row group of a large table holds many units, and most of the time goes into decoding it. May be asked from several threads: each
    run is read by one of them, the others wait.
    """

    def __init__(self, read: Callable[[str, range], Run], length: int, kept_units: int) -> None:
        self._read, self._length, self._lock = read, max(1, length), Lock()
        self._runs: LRUCache[tuple[str, int], Future[Run]] = LRUCache(max(1, kept_units // self._length))

    def run(self, layer: str, unit: int) -> Run:
        """The run that has a unit. Raises what `read` does, each time."""
        key = layer, unit // self._length
        with self._lock:
            run, is_read_here = self._runs.get(key), False
            if run is None:
                run, is_read_here = Future(), True
                self._runs[key] = run
        if is_read_here:
            self._fill(run, key)
        return run.result()

    def _fill(self, run: "Future[Run]", key: tuple[str, int]) -> None:
        layer, number = key
        try:
            run.set_result(self._read(layer, range(number * self._length, (number + 1) * self._length)))
        except BaseException as error:
            with self._lock:
                self._runs.pop(key, None)
            run.set_exception(error)
