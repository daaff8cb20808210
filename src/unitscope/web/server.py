"""The server of the explorer's pages, which closes connections on which nothing happens."""

from asyncio import TimerHandle
from collections.abc import Callable
from socket import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_TIMEOUT_S = 20
"""uvicorn's own default for idle connections, 5 seconds, is short for slow networks."""


def create_server(
    application: ASGIApp, idle_timeout_s: int = IDLE_TIMEOUT_S, on_started: Callable[[], None] | None = None
) -> uvicorn.Server:
    """A server of these pages; a connection that hasn't sent the whole head of a request after `idle_timeout_s` seconds is closed.

    `on_started` is called when requests are answered.
    """
    config = uvicorn.Config(
        application, http=IdleTimeoutProtocol, ws="none", timeout_keep_alive=idle_timeout_s, log_level="warning", lifespan="on"
    )
    return AnnouncedServer(config, on_started)


class AnnouncedServer(uvicorn.Server):
    """uvicorn's server, which says when it has started."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()


class IdleTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP, with a timer that runs while no request is being answered: uvicorn's own runs only after the first request."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:  # the head of a request isn't whole yet; more of it doesn't start the timer again
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
