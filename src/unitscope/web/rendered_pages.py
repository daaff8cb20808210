"""The pages that were last asked for, as they go over the net: rendered once, compressed, within a bounded number of bytes."""

import gzip
import os
from asyncio import Future, Task, create_task, get_running_loop, shield
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cachetools import LRUCache
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

CACHE_BYTES = 32 << 20
"""Some 4,000 pages of units, of 6 to 8 kB each. The page of a layer of 1,280 units takes 70 kB."""
COMPRESSION_LEVEL = 6
UNIT_BYTES = 150
"""What it takes in memory to name one unit."""


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """A page in gzip's format, and the units whose blocks it shows."""

    content: bytes
    units: Sequence[tuple[str, int]] = ()

    @classmethod
    def of(cls, html: str, units: Sequence[tuple[str, int]] = ()) -> "RenderedPage":
        return cls(gzip.compress(html.encode(), COMPRESSION_LEVEL, mtime=0), units)

    def response(self, request: Request) -> Response:
        """What answers a request for it."""
        vary = {"Vary": "Accept-Encoding, Cookie"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return HTMLResponse(self.content, headers={"Content-Encoding": "gzip", **vary})
        return HTMLResponse(gzip.decompress(self.content), headers=vary)


def _size(page: RenderedPage) -> int:
    return len(page.content) + UNIT_BYTES * len(page.units)


class RenderedPages:
    """Renders pages in as many threads as there are cores, each page once however many ask for it, and keeps those that were last asked for.

    More threads would only take turns, and the server itself would have to wait for its turn.
    """

    def __init__(self) -> None:
        self._pages: LRUCache[Hashable, RenderedPage] = LRUCache(CACHE_BYTES, getsizeof=_size)
        self._unfinished: dict[Hashable, Task[RenderedPage | None]] = {}
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "render pages")

    async def page(self, key: Hashable, render: Callable[[], RenderedPage | None]) -> RenderedPage | None:
        """The page of that key, which `render` makes where it isn't kept. What is None isn't kept, and errors aren't."""
        page = self._pages.get(key)
        if page is not None:
            return page
        if key not in self._unfinished:
            self._unfinished[key] = create_task(self._render(key, render))
            self._unfinished[key].add_done_callback(_forget_error)
        return await shield(self._unfinished[key])

    async def _render(self, key: Hashable, render: Callable[[], RenderedPage | None]) -> RenderedPage | None:
        try:
            page = await get_running_loop().run_in_executor(self._threads, render)
        finally:
            del self._unfinished[key]
        if page is not None and _size(page) <= CACHE_BYTES:
            self._pages[key] = page
        return page


def _forget_error(task: "Future[RenderedPage | None]") -> None:
    """Whoever waits gets it; where nobody does any more, asyncio needn't complain."""
    if not task.cancelled():
        task.exception()
