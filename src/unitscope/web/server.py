"""The server that the explorer's pages come from, with an end to connections on which nothing happens."""

from asyncio import TimerHandle
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT_S = 20


def server(application: ASGIApp, wait_s: int = WAIT_S) -> uvicorn.Server:
    """A server of these pages; a connection that hasn't sent the whole head of a request after `wait_s` seconds is closed."""
    how = uvicorn.Config(application, http=Patient, ws="none", timeout_keep_alive=wait_s, log_level="warning", lifespan="off")
    return uvicorn.Server(how)


class Patient(H11Protocol):
    """HTTP as uvicorn speaks it, with a clock that runs while no request is being answered: uvicorn's own runs only after one."""

    _clock: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._clock is None:  # what came is no whole head yet; more of it doesn't put the clock back
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._clock = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
