"""Exported sites: few files, that say what the served pages say, on any disk, also after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from posixpath import join, normpath
from urllib.parse import unquote

import pytest
import torch
from explored import ATTRIBUTED, explored_atlas, parts_of, tags_of
from photographs import write_photographs
from starlette.testclient import TestClient
from test_web import changed
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas, pack
from unitscope.errors import AtlasError, ImagesError
from unitscope.records import Preprocessing
from unitscope.web import bundles, create_explorer, export
from unitscope.web.addresses import RESERVED_NAMES, SiteAddresses, file_name, slug
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries

SMALL = Preprocessing(None, (14, 14), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explored")


@pytest.fixture(scope="module")
def atlas(folder: Path) -> Atlas:
    return explored_atlas(folder)


def files_of(site: Path) -> set[str]:
    return {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}


def links(html: str) -> list[str]:
    return [
        address
        for _, attributes in tags_of(html)
        for name in ("href", "src", "data-href")
        if (address := attributes.get(name)) and not address.startswith(("http", "#"))
    ]


def test_every_link_leads_to_a_file_or_a_part(atlas: Atlas, folder: Path, tmp_path: Path) -> None:
    """And every file is reached."""
    second = explored_atlas(folder, seed=1)
    units: list[int] = []
    summary = export(atlas, tmp_path / "site", second, on_units=units.append)
    site = tmp_path / "site"
    files = files_of(site)
    assert len(files) == summary.file_count
    assert sum(units) == sum(layer.units for each in (atlas, second) for layer in each.layers)
    parts = {f"{root}{part}": content for root in ("", "compared/") for part, (_, content) in parts_of(site / root).items()}
    pages = {path: (site / path).read_text() for path in files if path.endswith(".html")}
    pages |= {f"{'compared/' if part.startswith('compared/') else ''}page.html#{part}": html for part, html in parts.items()}
    reached: set[str] = set()
    for path, html in pages.items():
        for address in links(html):
            target, _, part = address.partition("#")
            file = normpath(join(path.partition("#")[0].rpartition("/")[0], unquote(target)))
            assert file in files, (path, address)
            reached.add(file)
            if file.endswith("page.html"):
                assert f"{'compared/' if file.startswith('compared/') else ''}{unquote(part)}" in parts, (path, address)
    unlinked = {path for path in files - reached if not re.search(r"(^|/)(parts/|static/|search-index\.js|icon)", path)}
    assert unlinked == set()
    assert len([path for path in files if path.startswith("attributions/")]) == len(ATTRIBUTED)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def text_of(html: str) -> list[str]:
    """What a person reads."""
    html = re.sub(r"<(style|script|title)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", " ", html).split()


def main_of(html: str) -> str:
    found = re.search(r"<main[^>]*>(.*)</main>", html, re.DOTALL)
    assert found is not None
    return found[1]


def test_exported_pages_say_what_the_served_ones_say(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "site")
    parts = parts_of(tmp_path / "site")
    with TestClient(create_explorer(atlas), base_url="http://localhost") as served:
        for part, (title, content) in parts.items():
            html = served.get(f"/{part}.html").text
            assert text_of(content) == text_of(main_of(html)), part
            assert f"<title>{title.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')[:3]}" in html
        for path in ("index.html", "layers/relu.html", "layers/relu@2.html", "glossary.html"):
            assert text_of(main_of((tmp_path / "site" / path).read_text())) == text_of(main_of(served.get(f"/{path}").text))
    units = {f"units/{slug(layer.name)}/{unit}" for layer in atlas.layers for unit in range(layer.units)}
    assert units <= set(parts)
    assert {f"images/{image}" for image in atlas.table("images")["image"].to_pylist()} <= set(parts)


def test_a_packed_atlas_is_exported_without_its_images(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "packed")
    packed = Atlas(tmp_path / "packed")
    pack(packed)
    export(packed, tmp_path / "site")
    away = tmp_path / "away" / "packed"
    shutil.copytree(tmp_path / "packed", away)
    manifest, stat = away / "atlas.json", (away / "atlas.json").stat()
    images = Path(atlas.manifest["images"]["folder"])
    manifest.write_text(manifest.read_text().replace(str(images), f"/nowhere/{images.name}"))
    os.utime(manifest, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    export(Atlas(away), tmp_path / "away" / "site")
    files = files_of(tmp_path / "site")
    assert files == files_of(tmp_path / "away" / "site")
    for file in files:
        assert (tmp_path / "site" / file).read_bytes() == (tmp_path / "away" / "site" / file).read_bytes(), file


class Named(nn.Module):
    """Layers whose names differ in capitals alone, or are devices on some systems."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("Dog", "dog", "con", "NUL", "aux"):
            self.add_module(name, nn.Conv2d(3, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        for module in self.children():
            images = module(images)
        return images


def test_names_of_files_are_names_on_any_disk(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", 6, (20, 16), ("Cat", "cat", "LPT1"))
    atlas = unitscope.scan(Named().eval(), photographs, tmp_path / "atlas", preprocess=SMALL)
    export(atlas, tmp_path / "site", Atlas(atlas.folder))
    files = files_of(tmp_path / "site")
    assert len({file.lower() for file in files}) == len(files)
    assert not [part for file in files for part in file.split("/") if RESERVED_NAMES.match(part) or part.endswith(".")]
    parts = parts_of(tmp_path / "site")
    assert {"labels/Cat", "labels/cat", "labels/LPT1", "units/Dog/0", "units/dog/0", "units/con/2"} <= set(parts)
    assert "../layers/" not in parts["units/Dog/0"][1]
    assert f'href="layers/{file_name("Dog")}.html"' in parts["units/Dog/0"][1]
    index = json.loads((tmp_path / "site/search-index.js").read_text().partition(" = ")[2].rstrip(";\n"))
    assert {row[3] for row in index["layers"]} == {file_name(slug(layer.name)) for layer in atlas.layers}


@pytest.mark.parametrize(
    "model", ["/home/somebody/nets.py:small", "transformers:/home/somebody/vit", "C:\\home\\somebody\\nets.py:small"]
)
def test_a_site_names_no_folder_of_the_machine(atlas: Atlas, tmp_path: Path, model: str) -> None:
    shutil.copytree(atlas.folder, tmp_path / "atlas")
    manifest = json.loads((tmp_path / "atlas/atlas.json").read_text())
    manifest["network"] |= {"model": model, "weights": "/home/somebody/weights.pt"}
    (tmp_path / "atlas/atlas.json").write_text(json.dumps(manifest))
    export(Atlas(tmp_path / "atlas"), tmp_path / "site")
    shown = [(tmp_path / "site" / file).read_text() for file in files_of(tmp_path / "site") if file.endswith((".html", ".js"))]
    assert not [text for text in shown if "somebody" in text or str(tmp_path.parent) in text]
    assert not [part for part, (_, content) in parts_of(tmp_path / "site").items() if "somebody" in content]
    assert re.split(r"[/\\]", model)[-1] in (tmp_path / "site/index.html").read_text()


def test_a_site_is_never_written_over_another(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").touch()
    with pytest.raises(AtlasError, match="not empty"):
        export(atlas, tmp_path / "site")
    with pytest.raises(AtlasError, match="can't be written"):
        export(atlas, tmp_path / "site" / "mine.txt" / "site")


@pytest.mark.parametrize("in_processes", [False, True])
def test_an_export_that_fails_leaves_nothing(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: bool
) -> None:
    if in_processes:
        monkeypatch.setattr(bundles, "MANY_UNITS", 1)
    broken = changed(atlas, tmp_path / "atlas", "sample", image=lambda image: 10**12)
    with pytest.raises(AtlasError, match="names image"):
        export(broken, tmp_path / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_several_processes_write_the_same(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(atlas, tmp_path / "one")
    monkeypatch.setattr(bundles, "MANY_UNITS", 1)
    export(atlas, tmp_path / "two")
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_process_that_is_done_writes_what_others_have_not_begun(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "site")
    pages = PageBuilder(AtlasQueries(atlas))
    to = SiteAddresses(unit_counts={layer.name: layer.units for layer in pages.queries.layers})
    (tmp_path / "parts").mkdir()
    begun = tmp_path / "parts" / "units-1-0.js.half"
    begun.write_bytes(b"half of it")
    bundles.Bundles(pages, tmp_path, to).write(1, 2)
    written = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    whole = {path.name: path.read_bytes() for path in (tmp_path / "site" / "parts").iterdir() if path.name != "index.js"}
    assert len(whole) > 2
    del whole["units-1-0.js"]
    assert written == whole | {begun.name: b"half of it"}


def test_pictures_that_are_gone_are_left_out_of_a_site(tmp_path: Path) -> None:
    atlas = explored_atlas(tmp_path)
    (tmp_path / "photographs" / atlas.key(0)).unlink()
    export(Atlas(atlas.folder), tmp_path / "site")
    assert not (tmp_path / "site" / "images" / "0.jpg").exists()
    assert "images/0" in parts_of(tmp_path / "site")
    assert (tmp_path / "site" / "images" / "1.jpg").exists()
    shutil.rmtree(tmp_path / "photographs")
    with pytest.raises(ImagesError, match="there is no folder"):
        export(Atlas(atlas.folder), tmp_path / "second")


KILLED = """
import sys
sys.path.insert(0, "tests")
from unitscope.atlas import Atlas
from unitscope.web import bundles, export
bundles.MANY_UNITS = int(sys.argv[3])
def wait(units):
    print("midway", flush=True)
    sys.stdin.read()
export(Atlas(sys.argv[1]), sys.argv[2], on_units=wait)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("many_units", [1, 10**6])
def test_a_killed_export_is_gone_on_with(atlas: Atlas, tmp_path: Path, many_units: int) -> None:
    command = [sys.executable, "-c", KILLED, str(atlas.folder), str(tmp_path / "site"), str(many_units)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    [left] = tmp_path.glob(".site.*.unfinished")
    (left / "images" / "0.jpg.half").write_bytes(b"half a picture")
    times = {file: (left / file).stat().st_mtime_ns for file in files_of(left) if file.startswith("images/")}
    export(atlas, tmp_path / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    kept = {file: (tmp_path / "site" / file).stat().st_mtime_ns for file in times if not file.endswith(".half")}
    assert kept == {file: time for file, time in times.items() if not file.endswith(".half")}, (
        "what was there is not written again"
    )
    export(atlas, tmp_path / "whole")
    files = files_of(tmp_path / "whole")
    assert files == files_of(tmp_path / "site")
    assert all((tmp_path / "site" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes() for file in files)


def test_what_another_atlas_left_is_not_gone_on_with(atlas: Atlas, folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".site.{process.pid}.unfinished"
    (left / "images").mkdir(parents=True)
    (left / ".made-from").write_text("another atlas")
    (left / "images" / "0.jpg").write_bytes(b"of another atlas")
    export(atlas, tmp_path / "site")
    assert (tmp_path / "site" / "images" / "0.jpg").read_bytes() != b"of another atlas"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
