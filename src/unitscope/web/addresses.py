"""Where each page lies: one address, whether it is served or a file of an exported site.

Addresses are relative, so that a site opens under any path, and from a folder on the disk.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from math import ceil

MAX_SLUG_LENGTH = 100
"""Longer names end in a hash. File systems take names of up to 255 bytes, and a slug has an extension besides."""


@lru_cache(maxsize=1 << 14)  # a page names the same layers and labels dozens of times
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


RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)
"""Names that are devices, and no files, on Windows."""


def file_name(slug: str) -> str:
    """A slug as the name of a file on any disk: also where `Dog` and `dog` are one name, and where some names are devices.

    >>> file_name("features.4"), file_name("Dog"), file_name("con.1")
    ('features.4', 'Dog~89e6dc', 'con.1~e26b1a')
    """
    is_safe = slug == slug.lower() and not RESERVED_NAMES.match(slug) and not slug.endswith(".")
    return slug if is_safe else f"{slug}~{sha256(slug.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True)
class Sprite:
    """Where a block lies in a picture of many: its column and row, and how many there are, at `href`."""

    href: str
    column: int
    row: int
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Addresses:
    """All addresses, relative to one page; `root` leads from that page to the first page, such as `../`. Pictures are of patches of the kind
    `patch_kind`: `auto`, `field` or `image`."""

    root: str = ""
    patch_kind: str = "auto"

    @classmethod
    def seen_from(cls, path: str, patch_kind: str = "auto") -> "Addresses":
        return cls("../" * path.count("/"), patch_kind)

    @property
    def is_site(self) -> bool:
        """True for an exported site: few files, of which one shows all units, images and names."""
        return False

    def sprite(self, layer: str, unit: int) -> Sprite | None:
        """Where the block of a unit lies in an exported site; None where it is a picture of its own."""
        return None

    @property
    def network(self) -> str:
        return f"{self.root}index.html"

    @property
    def glossary(self) -> str:
        return f"{self.root}glossary.html"

    @property
    def notes(self) -> str:
        return f"{self.root}notes.html"

    @property
    def units(self) -> str:
        """The units of all layers, which a server alone lists."""
        return f"{self.root}units.html"

    @property
    def image_search(self) -> str:
        return f"{self.root}image-search.html"

    def why(self, image: int, is_known: bool, explained: int | None = None, against: int | None = None) -> str:
        """Where search by image says why an image has its class, or another one, and not a third; one that isn't known has no page."""
        question = [("image" if is_known else "predicted-image", image), ("class", explained), ("not", against)]
        return f"{self.image_search}?{'&'.join(f'{name}={number}' for name, number in question if number is not None)}"

    @property
    def comparison(self) -> str:
        return f"{self.root}compare/index.html"

    @property
    def compared_atlas(self) -> "Addresses":
        """The addresses of the second atlas, where there is one."""
        return Addresses(f"{self.root}compared/", self.patch_kind)

    def static(self, name: str) -> str:
        return f"{self.root}static/{name}"

    def layer(self, name: str) -> str:
        return f"{self.root}layers/{slug(name)}.html"

    def unit(self, layer: str, unit: int) -> str:
        return f"{self.root}units/{slug(layer)}/{unit}.html"

    def block(self, layer: str, unit: int) -> str:
        return self._of_kind(f"{self.root}blocks/{slug(layer)}/{unit}.jpg")

    def large_block(self, layer: str, unit: int) -> str:
        """The same with larger patches, for the unit's own page."""
        return self._of_kind(f"{self.root}large-blocks/{slug(layer)}/{unit}.jpg")

    def bands(self, layer: str, unit: int) -> str:
        """Images of the sample around a unit's quantiles, as one picture."""
        return self._of_kind(f"{self.root}bands/{slug(layer)}/{unit}.jpg")

    def troughs(self, layer: str, unit: int) -> str:
        """A unit's lowest cells, as a block."""
        return self._of_kind(f"{self.root}troughs/{slug(layer)}/{unit}.jpg")

    def attributions(self, method: str, layer: str, unit: int) -> str:
        return self._of_kind(f"{self.root}attributions/{method}/{slug(layer)}/{unit}.webp")

    def heat(self, method: str, layer: str, unit: int) -> str:
        """The strength of a unit's attributions, to be laid over its block."""
        return self._of_kind(f"{self.root}heat/{method}/{slug(layer)}/{unit}.webp")

    def _of_kind(self, path: str) -> str:
        return path if self.patch_kind == "auto" else f"{path}?patch={self.patch_kind}"

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


SPRITE_COLUMNS, UNITS_PER_SPRITE = 8, 32
"""How many blocks share a picture: some 320 kB, which a page that shows one of them has to load."""


@dataclass(frozen=True)
class SiteAddresses(Addresses):
    """The addresses of an exported site. Units, images, labels, names, classes and mistakes are parts of `page.html`, which is told in the
    address which of them it is to show: `page.html#units/features.4/17`.

    `unit_counts` has the number of units of each layer, in call order; `compared` those of the second atlas, if any.
    """

    unit_counts: Mapping[str, int] = field(default_factory=dict)
    compared: Mapping[str, int] = field(default_factory=dict)

    def from_page(self, path: str) -> "SiteAddresses":
        """The same, seen from the file at that path."""
        return replace(self, root="../" * path.count("/"))

    def file_of(self, path: str) -> str:
        """The file of the page that is served at that path."""
        folder, separator, name = path.rpartition("/")
        return f"{folder}{separator}{file_name(name.removesuffix('.html'))}.html"

    @property
    def is_site(self) -> bool:
        return True

    @property
    def sprite_columns(self) -> int:
        return SPRITE_COLUMNS

    @property
    def units_per_sprite(self) -> int:
        return UNITS_PER_SPRITE

    @property
    def compared_atlas(self) -> "SiteAddresses":
        return SiteAddresses(f"{self.root}compared/", unit_counts=self.compared)

    @cached_property
    def _layer_numbers(self) -> dict[str, int]:
        return {layer: number for number, layer in enumerate(self.unit_counts)}

    def sprite(self, layer: str, unit: int) -> Sprite:
        first = unit - unit % UNITS_PER_SPRITE
        rows = ceil(min(UNITS_PER_SPRITE, self.unit_counts[layer] - first) / SPRITE_COLUMNS)
        row, column = divmod(unit - first, SPRITE_COLUMNS)
        href = f"{self.root}blocks/{self._layer_numbers[layer]}-{unit // UNITS_PER_SPRITE}.jpg"
        return Sprite(href, column, row, SPRITE_COLUMNS, rows)

    def layer(self, name: str) -> str:
        return f"{self.root}layers/{file_name(slug(name))}.html"

    def layer_comparison(self, name: str) -> str:
        return f"{self.root}compare/{file_name(slug(name))}.html"

    def attributions(self, method: str, layer: str, unit: int) -> str:
        return f"{self.root}attributions/{method}/{self._layer_numbers[layer]}-{unit}.webp"

    def heat(self, method: str, layer: str, unit: int) -> str:
        return f"{self.root}heat/{method}/{self._layer_numbers[layer]}-{unit}.webp"

    def unit(self, layer: str, unit: int) -> str:
        return self._part(f"units/{slug(layer)}/{unit}")

    def image(self, image: int) -> str:
        return self._part(f"images/{image}")

    def label(self, name: str) -> str:
        return self._part(f"labels/{slug(name)}")

    def concept(self, node: str) -> str:
        return self._part(f"concepts/{slug(node)}")

    def class_page(self, position: int) -> str:
        return self._part(f"classes/{position}")

    def mistake(self, label_class: int, predicted: int) -> str:
        return self._part(f"mistakes/{label_class}-{predicted}")

    def _part(self, name: str) -> str:
        return f"{self.root}page.html#{name}"
