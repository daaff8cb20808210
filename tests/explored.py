"""An atlas of named and labelled pictures to explore, and a walk through all pages of a site."""

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from posixpath import join, normpath
from urllib.parse import unquote, urldefrag

import torch
from networks import Reused
from photographs import write_photographs
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.records import Preprocessing

LABELS = ("cat", "dog", "<b>&quot;fish")
ATTRIBUTED = (("relu", 0), ("relu#2", 1))
AS_IT_IS = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)


def explored_network(seed: int = 0) -> nn.Module:
    """A network that calls one module three times; unit 3 of the first call is dead. Seeds other than 0 change its weights."""
    network = Reused().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.norm.bias[3] = -100
        if seed:
            network.second.weight += torch.randn(network.second.weight.shape, generator=generator) / 3
    return network


def explored_atlas(folder: Path, seed: int = 0, count: int = 24) -> Atlas:
    """The atlas of that network over pictures with labels and one with a hostile name."""
    photographs = folder / "photographs"
    if not photographs.exists():
        write_photographs(photographs, count, labels=LABELS)
        first = min((photographs / "cat").iterdir())
        first.rename(photographs / "cat" / "<img src=x onerror=alert(1)> #1?.png")
    network = explored_network(seed)
    atlas = unitscope.scan(network, photographs, folder / f"atlas-{seed}", preprocess=AS_IT_IS)
    for layer, unit in ATTRIBUTED:
        unitscope.attribute(atlas, "deconvnet", network, layers=[layer], units=[unit])
    return atlas


def unit_values(html: str) -> list[list[float | None]]:
    """What the units of a layer's page can be sorted by, by sort key and unit."""
    [values] = re.findall(r'<script type="application/json" id="unit-values">([^<]*)</script>', html)
    columns: list[list[float | None]] = json.loads(values)
    return columns


class _TagParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.links += [attributes[name] or "" for name in ("href", "src", "data-href") if name in attributes]


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _TagParser()
    parser.feed(html)
    return parser.tags


def walk(read: Callable[[str], bytes], start: str = "index.html") -> Iterator[tuple[str, bytes]]:
    """Every page and picture that links lead to, from the first page on. `read` gets a path from the site's root."""
    paths, unread = {start}, [start]
    while unread:
        path = unread.pop()
        content = read(path)
        yield path, content
        if not path.endswith(".html"):
            continue
        parser = _TagParser()
        parser.feed(content.decode())
        for link in parser.links:
            address = unquote(urldefrag(link).url)
            if not address or address.startswith(("http:", "https:")):
                continue
            target = normpath(join(path.rpartition("/")[0], address))
            if target not in paths:
                paths.add(target)
                unread.append(target)


def parts_of(site: Path) -> dict[str, tuple[str, str]]:
    """Title and content of every part of an exported site's `page.html`, by its address, read from the bundles without the package."""
    parts: dict[str, tuple[str, str]] = {}
    for bundle in (site / "parts").glob("*-*.js"):
        found = re.fullmatch(r'window\.unitscopeBundle\("([\w-]+)", "([A-Za-z0-9+/=]+)"\);\n', bundle.read_text())
        assert found is not None
        assert found[1] == bundle.stem
        content = json.loads(gzip.decompress(base64.b64decode(found[2])))
        for index, part in enumerate(content["parts"]):
            parts[part] = content["titles"][index], "".join(column[index] for column in content["sections"])
    return parts
