"""The explorer, served: routes to the pages, their JSON and their pictures."""

import logging
from asyncio import CancelledError, Lock, create_task, shield, sleep, wrap_future
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from unitscope.atlas import Atlas
from unitscope.atlas.schema import MANIFEST
from unitscope.atlas.tables import PATCHES
from unitscope.errors import AtlasError, ImagesError, UnitscopeError
from unitscope.images import Skipped
from unitscope.records import Layer
from unitscope.web.addresses import Addresses, json_path, slug
from unitscope.web.blocks import BlockDrawer, Unit
from unitscope.web.comparison import AtlasComparison
from unitscope.web.download_routes import DownloadRoutes
from unitscope.web.image_search import MAX_UPLOAD_MB, ExplainImage, RunNetwork
from unitscope.web.kept_blocks import KeptBlocks, folder_of_blocks
from unitscope.web.network_lists import NetworkLists
from unitscope.web.notes import NotesEndpoint, NotesFile
from unitscope.web.openapi import describe_api
from unitscope.web.page_records import ImageSearchPage, Page, units_shown_on
from unitscope.web.pages import PageBuilder
from unitscope.web.patch_kinds import PATCH_KINDS, patch_kind
from unitscope.web.pictures import (
    draw_activation_heat,
    draw_attributions,
    draw_bands,
    draw_heat,
    draw_image,
    draw_large_block,
    draw_predicted_image,
    draw_source_image,
    draw_troughs,
)
from unitscope.web.protection import KnownHosts, ProtectiveHeaders, SameOrigin
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendered_pages import RenderedPage, RenderedPages
from unitscope.web.rendering import FIRST_TEMPLATES, Navigation, compile_templates, encode_json, render_error, render_html
from unitscope.web.static_site import STATIC, search_index_script
from unitscope.web.uploads import UploadEndpoint

LOG = logging.getLogger(__name__)
ReadActivations = Callable[[str, int], NDArray[np.float32]]
"""From a layer's name and a unit to its activation maps over the network's input, of shape (peak, y, x); passed in, as the network is."""
LOOPBACK = ("localhost", "127.0.0.1")
IDLE_S = 1
"""How long nobody has asked for anything when tables are read, and pages made, ahead."""
MAX_SUGGESTED = 2000
"""How many names of classes search by image suggests: some 30 bytes each."""
NOTES_OFF = "this server is there for other machines, too, so that nobody's notes are kept beside the atlas"


@dataclass(frozen=True, slots=True)
class ExplorerOptions:
    """What is served besides the pages of one atlas: a second atlas to compare with, and search by image.

    `run_network` runs the network over an uploaded image, and `explain_image` says why it has its class, where effects were measured; `search_off_reason` says why images can't be searched with, where they could
    be if the user wished. `hosts` are the names and addresses by which requests may call this server; `*` is any. An upload may take
    `upload_s` seconds. `read_activations` gives activation maps of units that none were stored of. Pages of other sites, such as notebooks, may show these in a frame where `may_be_framed` says so.
    """

    compared_atlas: Atlas | None = None
    run_network: RunNetwork | None = None
    hosts: Sequence[str] = LOOPBACK
    search_off_reason: str | None = None
    upload_s: float = 60
    explain_image: ExplainImage | None = None
    read_activations: ReadActivations | None = None
    may_be_framed: bool = False

    @property
    def is_local(self) -> bool:
        """True where requests may call this server by names of this machine alone."""
        return set(self.hosts) <= {*LOOPBACK, "::1"}


class _Number(Convertor[int]):
    """A number of a unit or an image in a path. Longer numbers belong to no page."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


def create_explorer(atlas: Atlas, options: ExplorerOptions | None = None) -> Starlette:
    """The pages of an atlas as an ASGI application, which reads what every page needs when it starts up, and other tables while nobody asks.

    Raises `AtlasError` where the atlas is broken.
    """
    options = options or ExplorerOptions()
    can_explain = options.run_network is not None and options.explain_image is not None and atlas.has_images
    pages = _open_pages(atlas, options.read_activations is not None, can_explain)
    compared_pages = _open_pages(options.compared_atlas) if options.compared_atlas is not None else None
    sites = [AtlasRoutes(pages, options, compared_pages)]
    routes = sites[0].every_route()
    if compared_pages is not None:
        sites.append(AtlasRoutes(compared_pages, ExplorerOptions(hosts=options.hosts)))
        routes.append(Mount("/compared", routes=sites[1].every_route()))
    middleware = [
        Middleware(ProtectiveHeaders, may_be_framed=options.may_be_framed),
        Middleware(KnownHosts, hosts=options.hosts),
        Middleware(SameOrigin),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=3),
    ]
    error_handlers: Any = {HTTPException: _answer_error, UnitscopeError: _answer_error}
    lifespan = partial(_reading_ahead, sites)
    return Starlette(routes=routes, middleware=middleware, exception_handlers=error_handlers, lifespan=lifespan)


def _open_pages(atlas: Atlas, has_activations: bool = False, can_explain: bool = False) -> PageBuilder:
    queries = AtlasQueries(atlas)
    queries.check()
    return PageBuilder(queries, has_activations, can_explain)


@asynccontextmanager
async def _reading_ahead(sites: "Sequence[AtlasRoutes]", app: Starlette) -> AsyncIterator[None]:
    """While the application runs: what every page needs before it answers, the rest beside that."""
    for site in sites:
        await run_in_threadpool(site.read_first)
    tasks = [create_task(site.read_ahead()) for site in sites]
    yield
    for task in tasks:
        task.cancel()


class AtlasRoutes:
    """The routes to one atlas. Requests are answered from the atlas's tables, never from files that a path names."""

    def __init__(self, pages: PageBuilder, options: ExplorerOptions, compared_pages: PageBuilder | None = None) -> None:
        self._pages, self._options = pages, options
        self._comparison = AtlasComparison(pages, compared_pages) if compared_pages is not None else None
        has_search = options.run_network is not None or options.search_off_reason is not None
        self._navigation = Navigation(self._comparison is not None, has_search, pages.queries.purpose.has_predictions)
        self._rendered, self._last_asked = RenderedPages(), monotonic()
        self._lists, self._listing = NetworkLists(pages), Lock()
        atlas = pages.queries.atlas
        self._block_tag = _block_tag(atlas)
        kept_blocks = KeptBlocks(folder_of_blocks(atlas.folder), self._block_tag, [layer.name for layer in atlas.layers])
        self._blocks = {kind: BlockDrawer(pages.queries, kind, kept_blocks if kind == "auto" else None) for kind in PATCH_KINDS}

    def read_first(self) -> None:
        """Read what every page needs, where that takes no more than half a second."""
        compile_templates(FIRST_TEMPLATES)
        if self._pages.queries.layers_to_read_ahead:
            self._pages.queries.read_for_layers()

    async def read_ahead(self) -> None:
        """Read the other tables and make the pages of layers, step by step, while nobody asks for anything."""
        self._last_asked = monotonic()  # who has started a server is about to ask
        queries = self._pages.queries
        await run_in_threadpool(queries.read_for_layers)
        for step in (compile_templates, queries.read_for_units):
            await self._idle()
            await run_in_threadpool(step)
        build_page = self._pages.layer_page
        try:
            for layer in queries.layers_to_read_ahead:
                await self._idle()
                await self._rendered_page(build_page, "auto", layer_slug=slug(layer.name))
        except AtlasError:
            LOG.debug("the pages of layers can't be made ahead", exc_info=True)

    async def _idle(self) -> None:
        """Wait until nobody has asked for anything for a while."""
        while (busy_s := self._last_asked + IDLE_S - monotonic()) > 0:
            await sleep(busy_s)

    def every_route(self) -> list[BaseRoute]:
        pages = self._pages
        notes = NotesEndpoint(NotesFile(pages, None if self._options.is_local else NOTES_OFF), self._options.upload_s)
        routes: list[BaseRoute] = [
            Route("/", partial(self._answer_html, pages.network_page)),
            *self._page_routes("index.html", pages.network_page),
            *self._page_routes("layers/{layer_slug}.html", pages.layer_page),
            *self._page_routes("units/{layer_slug}/{unit:number}.html", pages.unit_page),
            *self._page_routes("images/{image:number}.html", pages.image_page),
            *self._page_routes("labels/{label_slug}.html", pages.label_page),
            *self._page_routes("concepts/{concept_slug}.html", pages.concept_page),
            *self._page_routes("predictions.html", pages.predictions_page),
            *self._page_routes("classes/{position:number}.html", pages.class_page),
            *self._page_routes("mistakes/{label_class:number}-{predicted:number}.html", pages.mistake_page),
            Route("/units.html", self._answer_network_units),
            Route("/api/units.json", partial(self._answer_network_units, as_json=True)),
            Route("/glossary.html", partial(self._answer_html, pages.glossary_page)),
            Route("/notes.html", partial(self._answer_html, pages.notes_page)),
            Route("/notes.json", notes.answer, methods=["GET", "PUT"]),
            Route("/blocks/{layer_slug}/{unit:number}.jpg", self._answer_block),
            Route("/large-blocks/{layer_slug}/{unit:number}.jpg", partial(self._answer_patches, draw_large_block)),
            Route("/troughs/{layer_slug}/{unit:number}.jpg", partial(self._answer_patches, draw_troughs)),
            Route("/bands/{layer_slug}/{unit:number}.jpg", partial(self._answer_patches, draw_bands)),
            Route(
                "/attributions/{method}/{layer_slug}/{unit:number}.webp", partial(self._answer_attributions, draw_attributions)
            ),
            Route("/heat/{method}/{layer_slug}/{unit:number}.webp", self._answer_heat),
            Route("/images/{image:number}.jpg", partial(self._answer_image, draw_image)),
            Route("/source-images/{image:number}.jpg", partial(self._answer_image, draw_source_image)),
            Route("/predicted-images/{image:number}.jpg", self._answer_predicted_image),
            Route("/search-index.js", self._answer_search_index),
            Route("/api/openapi.json", self._answer_openapi),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        if self._comparison is not None:
            routes += self._page_routes("compare/index.html", self._comparison.network_page)
            routes += self._page_routes("compare/{layer_slug}.html", self._comparison.layer_page)
        return routes + DownloadRoutes(pages, self._lists, self._listing).every_route() + self._search_routes()

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _page_routes(self, path: str, build_page: Callable[..., Page | None]) -> list[BaseRoute]:
        """A page as HTML and as JSON. `build_page` gets the parts of the path that are in braces."""
        return [
            Route(f"/{path}", partial(self._answer_html, build_page)),
            Route(f"/{json_path(path)}", partial(self._answer_json, build_page)),
        ]

    async def _answer_html(self, build_page: Callable[..., Page | None], request: Request, **asked: Any) -> Response:
        self._last_asked, kind = monotonic(), patch_kind(request)
        page = await self._rendered_page(build_page, kind, **request.path_params, **asked)
        self._last_asked = monotonic()
        if page is None:
            raise HTTPException(404)
        if page.units:
            await run_in_threadpool(self._blocks[kind].prepare, page.units)
        return page.response(request)

    async def _rendered_page(self, build_page: Callable[..., Page | None], kind: str, **path_params: Any) -> RenderedPage | None:
        key = build_page, kind, *path_params.values()
        return await self._rendered.page(key, partial(self._render, build_page, kind, **path_params))

    def _render(self, build_page: Callable[..., Page | None], kind: str, **path_params: Any) -> RenderedPage | None:
        page = build_page(**path_params)
        if page is None:
            return None
        is_packed = self._pages.queries.atlas.packed_patches is not None and kind == "auto"
        html = render_html(page, self._navigation, Addresses.seen_from(page.path, kind))
        return RenderedPage.of(html, () if is_packed else units_shown_on(page))

    async def _answer_network_units(self, request: Request, as_json: bool = False) -> Response:
        """The units of all layers that the query asks for, one list at a time: each takes the time of many pages."""
        async with self._listing:
            try:
                asked = await run_in_threadpool(self._lists.asked_for, request.query_params)
            except ValueError as error:
                raise HTTPException(422, f"These units can't be listed: {error}.") from error
            if not as_json and not all(request.query_params.values()):  # as a form has it that says little
                patch = {"patch": request.query_params["patch"]} if "patch" in request.query_params else {}
                return RedirectResponse(f"units.html?{urlencode(asked.asked | patch)}")
            if as_json:
                return await self._answer_json(partial(self._lists.page, asked), request)
            return await self._answer_html(self._lists.page, request, asked=asked)

    async def _answer_json(self, build_page: Callable[..., Page | None], request: Request) -> Response:
        page = await run_in_threadpool(build_page, **request.path_params)
        if page is None:
            raise HTTPException(404)
        return Response(await run_in_threadpool(encode_json, page), media_type="application/json")

    async def _answer_search_index(self, request: Request) -> Response:
        return Response(await run_in_threadpool(search_index_script, self._pages), media_type="text/javascript")

    async def _answer_openapi(self, request: Request) -> Response:
        description = describe_api(has_comparison=self._comparison is not None)
        return Response(msgspec.json.encode(description), media_type="application/json")

    # ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer_block(self, request: Request) -> Response:
        self._last_asked = monotonic()
        layer, unit = self._unit_of(request)
        headers = {"ETag": f'"{self._block_tag}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        drawer = self._blocks[patch_kind(request, with_cookie=False)]
        return Response(await self._draw_block(drawer, (layer.name, unit)), media_type="image/jpeg", headers=headers)

    async def _draw_block(self, drawer: BlockDrawer, unit: Unit) -> bytes:
        block = await run_in_threadpool(drawer.block, unit)
        try:
            return await shield(wrap_future(block))
        except CancelledError:
            if not block.cancelled():
                raise  # it is this request that ends
        return await self._draw_block(drawer, unit)  # another page was opened, and the batch of this block was given up

    async def _answer_patches(self, draw: Callable[..., bytes | None], request: Request) -> Response:
        layer, unit = self._unit_of(request)
        content = await run_in_threadpool(draw, self._pages.queries, layer.name, unit, patch_kind(request, with_cookie=False))
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    async def _answer_attributions(self, draw: Callable[..., bytes], request: Request) -> Response:
        (layer, unit), method = self._unit_of(request), request.path_params["method"]
        if (layer.name, unit) not in self._pages.queries.attributed_units.get(method, ()):
            raise HTTPException(404)
        kind = patch_kind(request, with_cookie=False)
        content = await run_in_threadpool(draw, self._pages.queries.atlas, method, layer.name, unit, kind)
        return Response(content, media_type="image/webp", headers={"Cache-Control": "max-age=60"})

    async def _answer_heat(self, request: Request) -> Response:
        (layer, unit), method, read = self._unit_of(request), request.path_params["method"], self._options.read_activations
        is_stored = (layer.name, unit) in self._pages.queries.attributed_units.get(method, ())
        if is_stored or method != "activation" or read is None:
            return await self._answer_attributions(draw_heat, request)
        try:
            maps = await run_in_threadpool(read, layer.name, unit)
        except ImagesError as reason:
            raise HTTPException(404, f"The activation can't be had: {reason}.") from reason
        kind = patch_kind(request, with_cookie=False)
        content = await run_in_threadpool(draw_activation_heat, self._pages.queries.atlas, layer.name, unit, maps, kind)
        return Response(content, media_type="image/webp", headers={"Cache-Control": "max-age=60"})

    async def _answer_image(self, draw: Callable[..., bytes], request: Request) -> Response:
        image = request.path_params["image"]
        if image not in self._pages.queries.images:
            raise HTTPException(404)
        return await self._answer_picture(draw, image)

    async def _answer_predicted_image(self, request: Request) -> Response:
        image = request.path_params["image"]
        keys = await run_in_threadpool(lambda: self._pages.queries.purpose.predicted_images)
        if image not in keys:
            raise HTTPException(404)
        return await self._answer_picture(draw_predicted_image, image, keys[image])

    async def _answer_picture(self, draw: Callable[..., bytes], *image: Any) -> Response:
        try:
            content = await run_in_threadpool(draw, self._pages.queries.atlas, *image)
        except (Skipped, ImagesError) as reason:
            raise HTTPException(404, f"This image {reason}.") from reason
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    def _unit_of(self, request: Request) -> tuple[Layer, int]:
        layer, unit = self._pages.queries.layer_by_slug(request.path_params["layer_slug"]), request.path_params["unit"]
        if layer is None or unit >= layer.units:
            raise HTTPException(404)
        return layer, unit

    # ── search by image ──────────────────────────────────────────────────────────────────────────────────────────

    def _search_routes(self) -> list[BaseRoute]:
        options, answer_page = self._options, partial(self._answer_html, self._image_search_page)
        if options.search_off_reason is not None:
            return [Route("/image-search.html", answer_page), Route("/image-search", self._refuse_upload, methods=["POST"])]
        if options.run_network is None:
            return []
        endpoint = UploadEndpoint(self._pages, options.run_network, options.upload_s, options.explain_image)
        return [Route("/image-search.html", answer_page), Route("/image-search", endpoint.answer, methods=["POST"])]

    def _image_search_page(self) -> ImageSearchPage:
        names = [] if self._options.explain_image is None else self._pages.queries.purpose.suggested_names(MAX_SUGGESTED)
        off_reason = self._options.search_off_reason
        return ImageSearchPage("image-search.html", self._pages.atlas_summary, MAX_UPLOAD_MB, off_reason, names)

    async def _refuse_upload(self, request: Request) -> Response:
        raise HTTPException(403, f"Search by image is off: {self._options.search_off_reason}.")


def _block_tag(atlas: Atlas) -> str:
    """What tells the blocks of one atlas from those of another, of the same one scanned or packed again, or of another version's."""
    manifest, patches = atlas.folder / MANIFEST, atlas.folder / PATCHES.file
    times = [file.stat().st_mtime_ns for file in (manifest, patches) if file.exists()]
    return sha256(manifest.read_bytes() + f"{times} {version('unitscope')}".encode()).hexdigest()[:16]


async def _answer_error(request: Request, error: Exception) -> Response:
    """A page, or a line of text where no page was asked for, that says what is wrong."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = error.detail if isinstance(error, HTTPException) else f"{error}."
    message = "There is nothing at this address." if message == "Not Found" else message
    headers = getattr(error, "headers", None)  # Allow, for one
    if status >= 500:
        LOG.debug("%s can't be answered", request.url.path, exc_info=error)
    if not request.url.path.endswith((".html", "/")):
        return Response(message, status, headers, media_type="text/plain")
    return HTMLResponse(render_error(request.url.path.lstrip("/"), status, message), status, headers)
