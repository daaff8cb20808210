"""What patches on pages show, as the address says or, from page to page, a cookie."""

from starlette.requests import Request

PATCH_KINDS, PATCH_COOKIE = ("auto", "field", "image"), "unitscope-patch"
"""What patches can show, and the cookie, which `head.js` sets."""


def patch_kind(request: Request, with_cookie: bool = True) -> str:
    """What patches are to show; `auto` where neither the address nor the cookie, which counts `with_cookie`, says a kind of them."""
    kind = request.query_params.get("patch", request.cookies.get(PATCH_COOKIE) if with_cookie else None)
    return kind if kind in PATCH_KINDS else "auto"
