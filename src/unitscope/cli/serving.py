"""An atlas served on an address of this machine, and whose code is trusted for it."""

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock
from typing import Any

from unitscope.errors import UnitscopeError


def trusted(atlas: Any, trust_code: bool) -> Any:
    """The network of an atlas whose code the user trusts; None leaves it to the verb, which runs no such code."""
    if not trust_code or atlas.manifest["network"]["model"].startswith("module:"):
        return None
    from unitscope.session.stored import trusted_network

    return trusted_network(atlas)


def serve_atlas(atlas: Any, beside: Any, host: str, port: int, device: str, trust_code: bool) -> None:
    from unitscope.web import Offer, explorer
    from unitscope.web.app import LOOPBACK
    from unitscope.web.server import server

    own = host in (*LOOPBACK, "::1")
    off = _why_no_search(atlas, trust_code)
    with ExitStack() as stack:
        fires = _listener(atlas, device, trust_code, stack) if off is None else None
        application = explorer(atlas, Offer(beside, fires, (*LOOPBACK, host) if own else ("*",), off))
        bound = _bound(host, port)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{bound.getsockname()[1]}/ shows {atlas.folder}; Ctrl+C ends it", flush=True)
        if not own:
            print("whoever reaches this machine can see the atlas and its images", file=sys.stderr)
        server(application).run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(
            (address[0], address[1]), family=family
        )  # who opens the address printed next may have to wait
    except OSError as error:
        raise UnitscopeError(f"can't listen on {host} port {port}: {error}; give another --host or --port") from error


def _why_no_search(atlas: Any, trust_code: bool) -> str | None:
    """Why an image of one's own can't be searched with: no known way to the input, or a network that isn't built unasked."""
    if atlas.preprocessing is None:
        return f"the atlas {str(atlas.folder)!r} was made from tensors, so there is no known way from an image to its input"
    in_memory = atlas.manifest["network"]["model"].startswith("module:")
    reason: str | None = atlas.why_no_network
    return None if trust_code and not in_memory else reason


def _listener(atlas: Any, device: str, trust_code: bool, stack: ExitStack) -> Callable[[Any], Any]:
    """Runs the network over an image; the network is loaded for the first one."""
    held: list[Callable[[Any], Any]] = []
    loading = Lock()

    def listen(image: Any) -> Any:
        with loading:
            if not held:
                from unitscope.responses import open_responses

                held.append(stack.enter_context(open_responses(atlas, trusted(atlas, trust_code), device)))
        return held[0](image)

    return listen
