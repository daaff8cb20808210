"""From a page to HTML or JSON."""

from functools import cache
from math import isfinite
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from unitscope.web.addresses import Addresses
from unitscope.web.page_records import Histogram


def html(page: Any, **site: Any) -> str:
    """The page as HTML. `site` is what the site has besides: `compared` and `fires`."""
    return _templates().get_template(page.template).render(page=page, to=Addresses.seen_from(page.path), **site)


def json(page: Any) -> bytes:
    """The page as JSON."""
    return msgspec.json.encode(page)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("unitscope.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"number": number, "percent": percent, "px": px, "bars": bars}
    return found


def number(value: float | None) -> str:
    """A value in three digits.

    >>> number(12.3456), number(None)
    ('12.3', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if isfinite(value) else str(value)


def percent(share: float | None) -> str:
    """A share in per cent, with no more digits than tell something.

    >>> percent(0.25), percent(0.0004), percent(0)
    ('25 %', '0.04 %', '0 %')
    """
    if share is None:
        return "–"
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.2g} %"


def px(length: float) -> str:
    """A length for a drawing: two digits after the point at most."""
    return f"{length:.2f}".rstrip("0").rstrip(".")


def bars(histogram: Histogram) -> str:
    """The path of a histogram's bars in a box of 100 × 40."""
    most, width = max(histogram.counts), 100 / len(histogram.counts)
    heights = [38 * count / most for count in histogram.counts]
    return "".join(
        f"M{px(place * width + 0.2)} 40v-{px(height)}h{px(width - 0.4)}v{px(height)}z"
        for place, height in enumerate(heights)
        if height
    )


def problem(path: str, status: int, said: str) -> str:
    """The page that says why there is no other at that path."""
    return _templates().get_template("problem.html").render(to=Addresses.seen_from(path), status=status, said=said)
