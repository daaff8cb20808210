"""Where each page lies: one address, whether it is served or a file of an exported site.

Addresses are relative, so that a site opens under any path, and from a folder on the disk.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote

LONGEST = 100


def slug(name: str) -> str:
    """A name as one part of a path: safe as a file's name and in a URL, and no two names alike. `#` becomes `@`.

    >>> slug("layer1.0.relu#2"), slug("../<b>")
    ('layer1.0.relu@2', '~2e.~2f~3cb~3e')
    """
    safe = re.sub(rb"[^A-Za-z0-9._\-#]|^\.|^-", lambda found: b"~%02x" % found[0][0], name.encode("utf-8", "surrogatepass"))
    text = safe.decode().replace("#", "@") or "~"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}~{sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of everything, as seen from one page; `root` is the way up to the first page, such as `../`."""

    root: str = ""

    @classmethod
    def seen_from(cls, path: str) -> "Addresses":
        return cls("../" * path.count("/"))

    @property
    def network(self) -> str:
        return f"{self.root}index.html"

    @property
    def words(self) -> str:
        return f"{self.root}words.html"

    @property
    def fires(self) -> str:
        return f"{self.root}fires.html"

    @property
    def compared(self) -> str:
        return f"{self.root}compare/index.html"

    @property
    def beside(self) -> "Addresses":
        """The other atlas's, where there is one."""
        return Addresses(f"{self.root}beside/")

    def static(self, name: str) -> str:
        return f"{self.root}static/{name}"

    def layer(self, name: str) -> str:
        return f"{self.root}layers/{slug(name)}.html"

    def unit(self, layer: str, unit: int) -> str:
        return f"{self.root}units/{slug(layer)}/{unit}.html"

    def block(self, layer: str, unit: int) -> str:
        return f"{self.root}blocks/{slug(layer)}/{unit}.webp"

    def projections(self, method: str, layer: str, unit: int) -> str:
        return f"{self.root}projections/{method}/{slug(layer)}/{unit}.webp"

    def image(self, image: int) -> str:
        return f"{self.root}images/{image}.html"

    def picture(self, image: int) -> str:
        return f"{self.root}images/{image}.jpg"

    def label(self, name: str) -> str:
        return f"{self.root}labels/{slug(name)}.html"

    def compared_layer(self, name: str) -> str:
        return f"{self.root}compare/{slug(name)}.html"

    def json(self, path: str) -> str:
        """The JSON twin of a page."""
        return f"{self.root}{json_path(path)}"


def json_path(path: str) -> str:
    """Where the JSON of the page at that path lies.

    >>> json_path("layers/features.4.html")
    'api/layers/features.4.json'
    """
    return f"api/{path.removesuffix('.html')}.json"


def quoted(path: str) -> str:
    """A path as part of a URL."""
    return quote(path, safe="/@")
