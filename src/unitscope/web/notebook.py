"""The explorer inside a notebook."""

import socket
import threading
import time
from dataclasses import dataclass
from html import escape
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import uvicorn

from unitscope.atlas import Atlas
from unitscope.errors import UnitscopeError
from unitscope.web.app import LOOPBACK, ExplorerOptions, create_explorer
from unitscope.web.server import create_server

START_S = 30


@dataclass(frozen=True)
class Exploration:
    """An explorer that is served from this process, at `address`; a notebook shows it in place. It ends with the process, or with `stop`."""

    address: str
    height: int
    _server: uvicorn.Server
    _thread: threading.Thread

    def __repr__(self) -> str:
        return f"the explorer at {self.address}"

    def stop(self) -> None:
        """Serve no more."""
        self._server.should_exit = True
        self._thread.join()

    def _repr_html_(self) -> str:
        address = escape(self.address, quote=True)
        return f'<iframe src="{address}" width="100%" height="{self.height}" style="border:1px solid #8884"></iframe><p><a href="{address}" target="_blank">{address}</a></p>'

    def _ipython_display_(self) -> None:
        """Colab's kernel runs on another machine than the browser, and brings the port there itself."""
        if _is_colab():
            from google.colab import output

            output.serve_kernel_port_as_iframe(int(self.address.rstrip("/").rpartition(":")[2]), height=str(self.height))
            return
        shown: Any = import_module("IPython.display")
        shown.display(shown.HTML(self._repr_html_()))


def explore(atlas: Atlas, height: int = 900, compared_atlas: Atlas | None = None) -> Exploration:
    """Serve the pages of an atlas from a thread of this process, on an address of this machine alone.

    Any page may show them in a frame. Raises `AtlasError` where the atlas is broken.
    """
    hosts = ("*",) if _is_colab() else LOOPBACK  # there, requests come by a name that isn't known before
    server = create_server(create_explorer(atlas, ExplorerOptions(compared_atlas, hosts=hosts, may_be_framed=True)))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(server, listener), daemon=True, name="explorer")
    thread.start()
    end = time.monotonic() + START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise UnitscopeError("the explorer could not be started; unitscope serve says why")
        time.sleep(0.01)
    return Exploration(f"http://127.0.0.1:{listener.getsockname()[1]}/", height, server, thread)


def _is_colab() -> bool:
    return find_spec("google") is not None and find_spec("google.colab") is not None


def _serve(server: Any, listener: socket.socket) -> None:
    with listener:
        server.run(sockets=[listener])
