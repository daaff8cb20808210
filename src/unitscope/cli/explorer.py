"""The commands that show an atlas as pages: served on an address of this machine, or written as files."""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from unitscope.cli.networks import network_by_trusted_code
from unitscope.cli.output import progress_bar
from unitscope.cli.parameters import AtlasFolder, Device, MovedImages, SecondAtlas, TrustCode
from unitscope.errors import WHERE_IMAGES_ARE, UnitscopeError

if TYPE_CHECKING:
    from unitscope.atlas import Atlas
    from unitscope.effects.explaining import Explainer


def serve(
    atlas: AtlasFolder, /, *, compare: SecondAtlas = None,
    host: Annotated[str, Parameter(help="The address to listen on; others than this machine's own let others look.")] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="The port to listen on; 0 takes any that is free.", validator=Number(gte=0, lte=65535))
    ] = 8000,
    images: MovedImages = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Open an atlas in the browser: every layer, unit and image has a page."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps, in each thread, what tables were read with
    from unitscope.atlas import Atlas
    from unitscope.web import ExplorerOptions, create_explorer
    from unitscope.web.app import LOOPBACK
    from unitscope.web.server import create_server

    opened, compared = Atlas(atlas, images=images), Atlas(compare) if compare else None
    is_local = host in (*LOOPBACK, "::1")
    why_no_search = _why_no_search(opened, trust_code)
    with ExitStack() as resources:
        search = LazySearch(opened, device, trust_code, resources) if why_no_search is None else None
        options = ExplorerOptions(compared, search, (*LOOPBACK, host) if is_local else ("*",), why_no_search)
        if search is not None and search.can_explain:
            options = replace(options, explain_image=search.explain)
        if search is not None and opened.has_images:
            options = replace(options, read_activations=search.activations)
        application = create_explorer(opened, options)
        listener = _listening_socket(host, port)
        announce = partial(_print_address, listener, host, atlas, is_local)
        create_server(application, on_started=announce).run(sockets=[listener])


def export(
    atlas: AtlasFolder, site: Annotated[Path, Parameter(help="The folder to write.")], /, *,
    compare: SecondAtlas = None, images: MovedImages = None,
) -> None:  # fmt: skip
    """Write the same pages as files, for any static host or to be opened from a disk."""
    from unitscope import web
    from unitscope.atlas import Atlas

    opened, compared = Atlas(atlas, images=images), Atlas(compare) if compare else None
    unit_count = sum(layer.units for shown in (opened, compared) if shown for layer in shown.layers)
    with progress_bar(unit_count, "exporting", "units") as advance:
        exported = web.export(opened, site, compared, on_units=advance)
    if exported.undrawn_images:
        key, reason = next(iter(exported.undrawn_images.items()))
        print(
            f"{len(exported.undrawn_images):,} images, and the patches in them, could not be drawn: {key!r} {reason}; {WHERE_IMAGES_ARE}",
            file=sys.stderr,
        )
    print(f"{exported.file_count:,} files, {exported.size_bytes / 1e6:,.0f} MB in {site}; open {site / 'index.html'}")


class LazySearch:
    """Search by image, and activation maps; the network is loaded for the first of them, and belongs to `resources` from then on."""

    def __init__(self, atlas: "Atlas", device: str, trust_code: bool, resources: ExitStack) -> None:
        self._atlas, self._device, self._trust_code, self._resources = atlas, device, trust_code, resources
        self._loading = Lock()
        self._respond: Callable[[Any], Any] | None = None
        self._explainer: Explainer | None = None
        self._read_activations: Callable[[str, int], Any] | None = None

    def __call__(self, image: Any) -> Any:
        """What each layer of the atlas says to an image; may be called from several threads."""
        with self._loading:
            if self._respond is None:
                from unitscope.responses import open_responses

                network = network_by_trusted_code(self._atlas, self._trust_code)
                self._respond = self._resources.enter_context(open_responses(self._atlas, network, self._device))
        return self._respond(image)

    @property
    def can_explain(self) -> bool:
        """True where effects were measured, so that mean maps are there to take units away with."""
        readable = {table.name for table in self._atlas.tables() if table.problem is None}
        return {"mean_maps", "effect_layers"} <= readable

    def activations(self, layer: str, unit: int) -> Any:
        """A unit's activation maps in the images of its peaks; may be called from several threads."""
        with self._loading:
            if self._read_activations is None:
                from unitscope.responses import open_activations

                network = network_by_trusted_code(self._atlas, self._trust_code)
                self._read_activations = self._resources.enter_context(open_activations(self._atlas, network, self._device))
        return self._read_activations(layer, unit)

    def explain(self, image: Any, question: Any) -> Any:
        """Why the network gives an image its class; may be called from several threads."""
        with self._loading:
            if self._explainer is None:
                from unitscope.effects.explaining import open_explainer

                network = network_by_trusted_code(self._atlas, self._trust_code)
                self._explainer = self._resources.enter_context(open_explainer(self._atlas, network, device=self._device))
        return self._explainer.explain(image, question.explained, question.against, question.taken_away)


def _why_no_search(atlas: "Atlas", trust_code: bool) -> str | None:
    """Why an image of one's own can't be searched with: no known way to the input, or a network that isn't built unasked."""
    if atlas.preprocessing is None:
        return f"the atlas {str(atlas.folder)!r} was made from tensors, so there is no known way from an image to its input"
    in_memory = atlas.manifest["network"]["model"].startswith("module:")
    return None if trust_code and not in_memory else atlas.why_no_network


def _listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; an address that can't be had is known before tables are read."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], address[1]), family=family)
    except OSError as error:
        raise UnitscopeError(f"can't listen on {host} port {port}: {error}; give another --host or --port") from error


def _print_address(listener: socket.socket, host: str, atlas: Path, is_local: bool) -> None:
    host_in_url = f"[{host}]" if ":" in host else host
    print(f"http://{host_in_url}:{listener.getsockname()[1]}/ shows {atlas}; Ctrl+C ends it", flush=True)
    if not is_local:
        print("whoever reaches this machine can see the atlas and its images", file=sys.stderr)
