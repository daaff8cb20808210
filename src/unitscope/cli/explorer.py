"""The commands that show an atlas as pages: served on an address of this machine, or written as files."""

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import typer

from unitscope.cli.networks import trusted
from unitscope.cli.output import progress
from unitscope.cli.parameters import AtlasFolder, Beside, Device, Images, TrustCode
from unitscope.errors import WHERE_IMAGES_ARE, UnitscopeError


def serve(
    atlas: AtlasFolder, beside: Beside = None,
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine's own let others look.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any that is free.")] = 8000,
    images: Images = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Open an atlas in the browser: every layer, unit and image has a page."""
    from unitscope.atlas import Atlas

    first, second = Atlas(atlas, images=images), Atlas(beside) if beside else None
    serve_atlas(first, second, host, port, device, trust_code)


def export(
    atlas: AtlasFolder, site: Annotated[Path, typer.Argument(metavar="SITE", help="The folder to write.")],
    beside: Beside = None, images: Images = None,
) -> None:  # fmt: skip
    """Write the same pages as files, for any static host or to be opened from a disk."""
    from unitscope.atlas import Atlas
    from unitscope.web import export as export_site

    first, second = Atlas(atlas, images=images), Atlas(beside) if beside else None
    units = sum(layer.units for one in (first, second) if one for layer in one.layers)
    with progress(units, "exporting", "units") as advance:
        written = export_site(first, site, second, on_units=advance)
    for key, reason in islice(written.lacking.items(), 1):
        print(
            f"{len(written.lacking):,} images, and the patches in them, could not be drawn: {key!r} {reason}; {WHERE_IMAGES_ARE}",
            file=sys.stderr,
        )
    print(f"{written.files:,} files, {written.bytes / 1e6:,.0f} MB in {site}; open {site / 'index.html'}")


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
