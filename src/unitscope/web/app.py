"""The explorer, served: routes to the pages, their JSON and their pictures."""

import logging
import re
from asyncio import CancelledError, Lock, shield, timeout, wrap_future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Thread
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unitscope.atlas import Atlas
from unitscope.atlas.schema import MANIFEST
from unitscope.errors import ImagesError, UnitscopeError
from unitscope.images import Skipped
from unitscope.web import rendering
from unitscope.web.addresses import json_path
from unitscope.web.blocks import Pictures, Unit
from unitscope.web.comparison import Comparison
from unitscope.web.image_search import MOST_MB, Fires, fired, opened
from unitscope.web.openapi import openapi
from unitscope.web.page_records import FiresPage, units_on
from unitscope.web.pages import Pages
from unitscope.web.queries import Catalogue
from unitscope.web.static_site import STATIC, search_script

LOG = logging.getLogger("unitscope.web")
LOOPBACK = ("localhost", "127.0.0.1")
PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\[\]:/@?#\\\s]+)(:(?P<port>[0-9]{1,5}))?")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What is served besides the pages of one atlas: another atlas beside it, and a function that tells what an image excites.

    `hosts` are the names and addresses by which requests may call this server; `*` is any. `off` says why images can't be searched with, where
    they could be if the user wished; then a page says so. An upload may take `upload_s` seconds.
    """

    beside: Atlas | None = None
    fires: Fires | None = None
    hosts: Sequence[str] = LOOPBACK
    off: str | None = None
    upload_s: float = 60


class _Number(Convertor[int]):
    """A number of a unit or an image in a path. What is longer than any is no page's."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


def explorer(atlas: Atlas, offer: Offer | None = None) -> Starlette:
    """The pages of an atlas as an ASGI application. Raises `AtlasError` where the atlas is broken."""
    offer = offer or Offer()
    pages = Pages(Catalogue(atlas))
    beside = Pages(Catalogue(offer.beside)) if offer.beside is not None else None
    routes = _Routes(pages, beside, offer).all_of_them()
    if beside is not None:
        routes.append(Mount("/beside", routes=_Routes(beside, None, Offer()).all_of_them()))
    middleware = [
        Middleware(_WithHeaders),
        Middleware(_KnownHost, hosts=offer.hosts),
        Middleware(_SameOrigin),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=3),
    ]
    errors: Any = {HTTPException: _problem, UnitscopeError: _problem}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=errors)


class _Routes:
    """The routes to one atlas. What they are asked for is looked up in the atlas's tables, never among files."""

    def __init__(self, pages: Pages, beside: Pages | None, offer: Offer) -> None:
        self._pages, self._fires, self._off, self._upload_s = pages, offer.fires, offer.off, offer.upload_s
        self._comparison = Comparison(pages, beside) if beside is not None else None
        self._pictures = Pictures(pages.catalogue)
        self._one_upload = Lock()
        self._site = {"fires": offer.fires is not None or offer.off is not None, "compared": beside is not None}
        Thread(target=pages.catalogue.read_ahead, daemon=True, name="read ahead").start()
        manifest = pages.catalogue.atlas.folder / MANIFEST
        self._tag = sha256(manifest.read_bytes() + str(manifest.stat().st_mtime_ns).encode()).hexdigest()[:16]

    def all_of_them(self) -> list[BaseRoute]:
        pages = self._pages
        routes: list[BaseRoute] = [
            Route("/", self._page(lambda: pages.network())),
            *self._both("index.html", lambda: pages.network()),
            *self._both("layers/{layer}.html", lambda layer: pages.layer(layer)),
            *self._both("units/{layer}/{unit:number}.html", lambda layer, unit: pages.unit(layer, unit)),
            *self._both("images/{image:number}.html", lambda image: pages.image(image)),
            *self._both("labels/{label}.html", lambda label: pages.label(label)),
            Route("/words.html", self._page(lambda: pages.words())),
            Route("/blocks/{layer}/{unit:number}.webp", self._block),
            Route("/projections/{method}/{layer}/{unit:number}.webp", self._projections),
            Route("/images/{image:number}.jpg", self._picture),
            Route("/search.js", self._search),
            Route("/api/openapi.json", self._openapi),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        if self._site["fires"]:
            routes.append(Route("/fires.html", self._page(lambda: FiresPage("fires.html", pages.about, MOST_MB, self._off))))
            routes.append(Route("/fires", self._upload, methods=["POST"]))
        comparison = self._comparison
        if comparison is not None:
            routes += self._both("compare/index.html", lambda: comparison.network())
            routes += self._both("compare/{layer}.html", lambda layer: comparison.layer(layer))
        return routes

    def _both(self, path: str, make: Callable[..., Any]) -> list[BaseRoute]:
        """A page and its JSON twin."""
        return [Route(f"/{path}", self._page(make)), Route(f"/{json_path(path)}", self._json(make))]

    def _page(self, make: Callable[..., Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            page = await run_in_threadpool(_made, make, request)
            await run_in_threadpool(self._pictures.prepare, units_on(page))
            return HTMLResponse(await run_in_threadpool(rendering.html, page, **self._site))

        return answer

    def _json(self, make: Callable[..., Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            page = await run_in_threadpool(_made, make, request)
            return Response(await run_in_threadpool(rendering.json, page), media_type="application/json")

        return answer

    async def _block(self, request: Request) -> Response:
        layer = self._pages.catalogue.layer(request.path_params["layer"])
        unit = request.path_params["unit"]
        if layer is None or unit >= layer.units:
            raise HTTPException(404)
        headers = {"ETag": f'"{self._tag}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(await self._drawn((layer.name, unit)), media_type="image/webp", headers=headers)

    async def _projections(self, request: Request) -> Response:
        layer, method = self._pages.catalogue.layer(request.path_params["layer"]), request.path_params["method"]
        unit = (layer.name if layer else "", request.path_params["unit"])
        if unit not in self._pages.catalogue.attributed.get(method, ()):
            raise HTTPException(404)
        content = await run_in_threadpool(self._pictures.projections, method, unit)
        return Response(content, media_type="image/webp", headers={"Cache-Control": "max-age=60"})

    async def _drawn(self, unit: Unit) -> bytes:
        drawn = await run_in_threadpool(self._pictures.block, unit)
        try:
            return await shield(wrap_future(drawn))
        except CancelledError:
            if not drawn.cancelled():
                raise  # it is this request that ends
        return await self._drawn(unit)  # another page was opened, and what this one needed was given up

    async def _picture(self, request: Request) -> Response:
        image = request.path_params["image"]
        if image not in self._pages.catalogue.images:
            raise HTTPException(404)
        try:
            content = await run_in_threadpool(self._pictures.picture, image)
        except (Skipped, ImagesError) as reason:
            raise HTTPException(404, f"This image {reason}.") from reason
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    async def _search(self, request: Request) -> Response:
        return Response(await run_in_threadpool(search_script, self._pages), media_type="text/javascript")

    async def _openapi(self, request: Request) -> Response:
        described = openapi(self._comparison is not None)
        return Response(msgspec.json.encode(described), media_type="application/json")

    async def _upload(self, request: Request) -> Response:
        """What an image of one's own excites, as a piece of a page. The image is neither kept nor written."""
        if self._off is not None:
            raise HTTPException(403, f"Search by image is off: {self._off}.")
        try:
            async with timeout(self._upload_s):
                content = await _received(request)
        except TimeoutError as error:
            raise HTTPException(408, f"The image didn't come within {self._upload_s:g} seconds.") from error
        except ClientDisconnect:
            LOG.warning("an upload from %s ended before the whole image was there", request.client and request.client.host)
            return Response(status_code=400)  # nobody is there to read it
        async with self._one_upload:  # what an image takes when it is decoded may be many times its file
            page = await run_in_threadpool(self._fired, content)
        return HTMLResponse(await run_in_threadpool(rendering.html, page, **self._site))

    def _fired(self, content: bytes) -> Any:
        fires = self._fires
        if fires is None:
            raise HTTPException(404)
        try:
            image = opened(content)
            return fired(self._pages, image, fires(image))
        except Skipped as reason:
            raise HTTPException(422, f"The image {reason}.") from reason


async def _received(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_MB << 20:
            raise HTTPException(413, f"The image is larger than {MOST_MB} MB.")
    return bytes(content)


def _made(make: Callable[..., Any], request: Request) -> Any:
    page = make(**request.path_params)
    if page is None:
        raise HTTPException(404)
    return page


async def _problem(request: Request, error: Exception) -> Response:
    """A page, or a line of text where no page was asked for, that says what is wrong."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = error.detail if isinstance(error, HTTPException) else f"{error}."
    said = "There is nothing at this address." if said == "Not Found" else said
    headers = getattr(error, "headers", None)  # Allow, for one
    if not request.url.path.endswith((".html", "/")):
        return Response(said, status, headers, media_type="text/plain")
    return HTMLResponse(rendering.problem(request.url.path.lstrip("/"), status, said), status, headers)


class _WithHeaders:
    """Puts the headers that keep a page to itself on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class _KnownHost:
    """Refuses requests that call this server by another name than its own, as those of a page do whose name was bent to this address."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or "*" in self._hosts or _host_in(Headers(scope=scope)) in self._hosts
        refusal = Response("This server has another name.", 400, media_type="text/plain")
        await (self.app if known else refusal)(scope, receive, send)


class _SameOrigin:
    """Refuses what another site has a browser send here; requests that only read may come from anywhere, since their answers may not
    be read there. Programs that are no browser say neither `Sec-Fetch-Site` nor `Origin`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        foreign = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and _is_foreign(scope)
        refusal = Response("Another site may not send anything here.", 403, media_type="text/plain")
        await (refusal if foreign else self.app)(scope, receive, send)


def _is_foreign(scope: Scope) -> bool:
    """True where a browser says that a request comes from another origin than the one it goes to."""
    headers = Headers(scope=scope)
    origin, own = headers.get("origin"), _origin(f"{scope['scheme']}://{headers.get('host', '')}")
    here = origin is None or (own is not None and _origin(origin) == own)
    return not here or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _host_in(headers: Headers) -> str | None:
    """The name or address in `Host`, without the port and, of IPv6, without brackets; None where there is none."""
    found = HOST.fullmatch(headers.get("host", "").lower())
    return found["host"].strip("[]") if found else None


def _origin(address: str) -> str | None:
    """Scheme, host and port, which a scheme has one of where none is said; None for what is no origin of a server."""
    scheme, _, said = address.lower().partition("://")
    found = HOST.fullmatch(said)
    return f"{scheme}://{found['host']}:{int(found['port'] or PORTS[scheme])}" if found and scheme in PORTS else None
