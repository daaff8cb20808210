"""Where each page lies: one address, whether it is served or a file of an exported site.

Addresses are relative, so that a site opens under any path, and from a folder on the disk.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

MAX_SLUG_LENGTH = 100
"""Longer names end in a hash. File systems take names of up to 255 bytes, and a slug has an extension besides."""


def slug(name: str) -> str:
    """A name as one part of a path: safe as a file's name and in a URL. Different names have different slugs. `#` becomes `@`.

    >>> slug("layer1.0.relu#2"), slug("../<b>")
    ('layer1.0.relu@2', '~2e.~2f~3cb~3e')
    """
    unsafe = rb"[^A-Za-z0-9._\-#]|^\.|^-"
    escaped = re.sub(unsafe, lambda match: b"~%02x" % match[0][0], name.encode("utf-8", "surrogatepass"))
    text = escaped.decode().replace("#", "@") or "~"
    return text if len(text) <= MAX_SLUG_LENGTH else f"{text[:MAX_SLUG_LENGTH]}~{sha256(text.encode()).hexdigest()[:16]}"


def json_path(path: str) -> str:
    """Where the JSON of the page at that path lies.

    >>> json_path("layers/features.4.html")
    'api/layers/features.4.json'
    """
    return f"api/{path.removesuffix('.html')}.json"


@dataclass(frozen=True, slots=True)
class Addresses:
    """All addresses, relative to one page; `root` leads from that page to the first page, such as `../`."""

    root: str = ""

    @classmethod
    def seen_from(cls, path: str) -> "Addresses":
        return cls("../" * path.count("/"))

    @property
    def network(self) -> str:
        return f"{self.root}index.html"

    @property
    def glossary(self) -> str:
        return f"{self.root}glossary.html"

    @property
    def image_search(self) -> str:
        return f"{self.root}image-search.html"

    @property
    def comparison(self) -> str:
        return f"{self.root}compare/index.html"

    @property
    def compared_atlas(self) -> "Addresses":
        """The addresses of the second atlas, where there is one."""
        return Addresses(f"{self.root}compared/")

    def static(self, name: str) -> str:
        return f"{self.root}static/{name}"

    def layer(self, name: str) -> str:
        return f"{self.root}layers/{slug(name)}.html"

    def unit(self, layer: str, unit: int) -> str:
        return f"{self.root}units/{slug(layer)}/{unit}.html"

    def block(self, layer: str, unit: int) -> str:
        return f"{self.root}blocks/{slug(layer)}/{unit}.jpg"

    def attributions(self, method: str, layer: str, unit: int) -> str:
        return f"{self.root}attributions/{method}/{slug(layer)}/{unit}.webp"

    def image(self, image: int) -> str:
        """The page of an image."""
        return f"{self.root}images/{image}.html"

    def image_file(self, image: int) -> str:
        """The image itself."""
        return f"{self.root}images/{image}.jpg"

    def predicted_image_file(self, image: int) -> str:
        """The picture of an image that the atlas mentions for what the network predicts, and for nothing else."""
        return f"{self.root}predicted-images/{image}.jpg"

    def label(self, name: str) -> str:
        return f"{self.root}labels/{slug(name)}.html"

    def concept(self, node: str) -> str:
        return f"{self.root}concepts/{slug(node)}.html"

    @property
    def predictions(self) -> str:
        return f"{self.root}predictions.html"

    def class_page(self, position: int) -> str:
        return f"{self.root}classes/{position}.html"

    def mistake(self, label_class: int, predicted: int) -> str:
        return f"{self.root}mistakes/{label_class}-{predicted}.html"

    def layer_comparison(self, name: str) -> str:
        return f"{self.root}compare/{slug(name)}.html"

    def json(self, path: str) -> str:
        """The JSON of the page at that path."""
        return f"{self.root}{json_path(path)}"
