"""What protects the served pages: headers on every answer, and refusal of requests that other sites have a browser send."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\[\]:/@?#\\\s]+)(:(?P<port>[0-9]{1,5}))?")
"""The `Host` header: a name, an IPv4 address, or an IPv6 address in brackets, and a port (RFC 9110, section 7.2)."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ProtectiveHeaders:
    """Adds the headers that keep a page to itself to every answer."""

    def __init__(self, app: ASGIApp, may_be_framed: bool = False) -> None:
        self._app = app
        policy = HEADERS["Content-Security-Policy"]
        framed = policy.replace("; frame-ancestors 'none'", "") if may_be_framed else policy
        self._headers = HEADERS | {"Content-Security-Policy": framed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class KnownHosts:
    """Refuses requests whose `Host` is none of this server's names: a page of another site whose name was made to lead to this
    address (DNS rebinding) sends such ones."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_known = scope["type"] != "http" or "*" in self._hosts or _host_of(Headers(scope=scope)) in self._hosts
        refusal = Response("This server has another name.", 400, media_type="text/plain")
        await (self._app if is_known else refusal)(scope, receive, send)


class SameOrigin:
    """Refuses what another site has a browser send here.

    Requests that only read may come from anywhere, since a browser keeps their answers from other sites. Programs that are no browser
    send neither `Sec-Fetch-Site` nor `Origin`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_refused = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and is_foreign(scope)
        refusal = Response("Another site may not send anything here.", 403, media_type="text/plain")
        await (refusal if is_refused else self._app)(scope, receive, send)


def is_foreign(scope: Scope) -> bool:
    """True where a browser says that a request comes from another origin than the one it goes to."""
    headers = Headers(scope=scope)
    origin, own_origin = headers.get("origin"), _parse_origin(f"{scope['scheme']}://{headers.get('host', '')}")
    is_own = origin is None or (own_origin is not None and _parse_origin(origin) == own_origin)
    return not is_own or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _host_of(headers: Headers) -> str | None:
    """The name or address in `Host`, without the port and, of IPv6, without brackets; None where there is none."""
    match = HOST.fullmatch(headers.get("host", "").lower())
    return match["host"].strip("[]") if match else None


def _parse_origin(text: str) -> str | None:
    """Scheme, host and port, which is the scheme's own where none is given; None for what is no origin of a server."""
    scheme, _, authority = text.lower().partition("://")
    match = HOST.fullmatch(authority)
    if match is None or scheme not in DEFAULT_PORTS:
        return None
    return f"{scheme}://{match['host']}:{int(match['port'] or DEFAULT_PORTS[scheme])}"
