"""Bundles of an exported site: scripts that hold what the pages of units, images and names show, many to a file.

A large atlas has them written by several processes; as a program this module is one of them. It ends when its input does.
"""

import base64
import gzip
import json
import os
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, zip_longest
from math import ceil
from pathlib import Path
from threading import Thread

import msgspec

from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, UnitscopeError, first_line
from unitscope.web.addresses import SiteAddresses, slug
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendering import render_part

UNITS_PER_BUNDLE = 64
"""A bundle takes some 200 kB."""
PARTS_PER_BUNDLE = 64
COMPRESSION_LEVEL = 5
"""Level 6 takes a third longer, and a twentieth less."""
MANY_UNITS = 2000
"""An atlas with as many units has its bundles written by one process for each core."""
HALF = ".half"
"""How the name of a file ends that is not yet whole."""


def write_file(path: Path, make: Callable[[], bytes]) -> None:
    """A file, whole or not at all; one that is there already, or that another process is about to write, stays as it is."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}{HALF}")
    try:
        half.touch(exist_ok=False)
    except FileExistsError:
        return
    try:
        half.write_bytes(make())
        os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Bundles:
    """The bundles of one atlas, below a folder."""

    pages: PageBuilder
    folder: Path
    to: SiteAddresses

    @cached_property
    def _other_parts(self) -> list[str]:
        return list(self.pages.other_parts())

    @property
    def _count(self) -> int:
        return max(1, ceil(len(self._other_parts) / PARTS_PER_BUNDLE))

    def index(self) -> bytes:
        """What `parts.js` needs to know of which part lies in which bundle, as a script."""
        layers = {slug(layer.name): [number, layer.units] for number, layer in enumerate(self.pages.queries.layers)}
        index = {"layers": layers, "bundles": self._count, "unitsPerBundle": UNITS_PER_BUNDLE}
        return f"window.unitscopeParts = {json.dumps(index)};\n".encode()

    def parts(self) -> Iterator[tuple[str, list[str]]]:
        """The name of each bundle, and the paths of its parts."""
        for number, layer in enumerate(self.pages.queries.layers):
            for start in range(0, layer.units, UNITS_PER_BUNDLE):
                units = range(start, min(start + UNITS_PER_BUNDLE, layer.units))
                yield f"units-{number}-{start // UNITS_PER_BUNDLE}", [f"units/{slug(layer.name)}/{unit}" for unit in units]
        by_bundle: dict[int, list[str]] = {}
        for part in self._other_parts:
            by_bundle.setdefault(_hash(part) % self._count, []).append(part)
        yield from ((f"part-{number}", parts) for number, parts in sorted(by_bundle.items()))

    def write(self, share: int = 0, shares: int = 1) -> None:
        """Write one share of them, then what others that write the rest have not begun.

        A share's bundles are neighbours, since much is read for neighbouring units at once.
        """
        bundles = list(self.parts())
        stops = list(accumulate(len(parts) for _, parts in bundles))
        first = bisect_right(stops, max(stops, default=0) * share // shares)
        for name, parts in bundles[first:] + bundles[:first]:
            write_file(self.folder / "parts" / f"{name}.js", lambda: self._bundle(name, parts))  # noqa: B023

    def _bundle(self, name: str, parts: list[str]) -> bytes:
        """Sections that are alike stand beside each other, where the compression, which sees 32 kB back, finds what they share."""
        shown = {part: render_part(page, self.to) for part in parts if (page := self.pages.part(part)) is not None}
        sections = [_sections(content) for _, content in shown.values()]
        content = {
            "parts": list(shown),
            "titles": [title for title, _ in shown.values()],
            "sections": list(zip_longest(*sections, fillvalue="")),
        }
        packed = base64.b64encode(gzip.compress(msgspec.json.encode(content), COMPRESSION_LEVEL, mtime=0)).decode()
        return f'window.unitscopeBundle("{name}", "{packed}");\n'.encode()


def _sections(content: str) -> list[str]:
    return content.replace("<section", "\0<section").replace("<figure", "\0<figure").split("\0")


def _hash(text: str) -> int:
    """The sum of Fowler, Noll and Vo (FNV-1a, 32 bits) over a text in UTF-8; `parts.js` has the same."""
    total = 0x811C9DC5
    for byte in text.encode():
        total = (total ^ byte) * 0x01000193 & 0xFFFFFFFF
    return total


# ── several processes ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def bundles_written(bundles: Bundles) -> Iterator[None]:
    """Writes them beside what is done in the block, in processes of their own where there are many; they are there after it.

    Raises `AtlasError` where one of the processes does.
    """
    if sum(bundles.to.unit_counts.values()) < MANY_UNITS:
        yield
        bundles.write()
        return
    shares = os.cpu_count() or 1
    atlas = str(bundles.pages.queries.atlas.folder.absolute())
    with ExitStack() as stack:
        processes = []
        for share in range(shares):
            command = [sys.executable, "-m", __name__, atlas, str(bundles.folder), str(share), str(shares)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
            )
            stack.callback(process.kill)  # does nothing to one that has ended
            processes.append(process)
        yield
        for process in processes:
            errors = process.stderr.read() if process.stderr is not None else ""  # until it ends; its input stays open so long
            if process.wait():
                lines = errors.strip().splitlines() or ["it was killed"]
                raise AtlasError(f"a part of the site can't be written: {lines[-1]}")


def main(atlas: str, folder: str, share: str, shares: str) -> int:
    """What one process does. An error is one line on stderr."""
    Thread(target=_end_with_input, daemon=True).start()
    try:
        pages = PageBuilder(AtlasQueries(Atlas(atlas)))
        unit_counts = {layer.name: layer.units for layer in pages.queries.layers}
        Bundles(pages, Path(folder), SiteAddresses(unit_counts=unit_counts)).write(int(share), int(shares))
    except (UnitscopeError, OSError) as error:
        print(first_line(error), file=sys.stderr)
        return 1
    return 0


def _end_with_input() -> None:
    """Whoever started this process has ended, or wants no more of it."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
