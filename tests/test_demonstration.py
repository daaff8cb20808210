"""The demo's images, and the demo over an archive in the form of Imagenette's."""

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Imagenette

from unitscope.atlas import Atlas
from unitscope.cli import main
from unitscope.demonstration import imagenette_images, tile_boxes, write_demo_images
from unitscope.errors import ImagesError


@pytest.mark.parametrize("size", [(512, 512), (427, 640), (172, 448), (1411, 1411), (128, 128), (127, 500)])
def test_tiles_do_not_overlap_and_lie_on_the_picture(size: tuple[int, int]) -> None:
    covered = np.zeros(size, int)
    for box in tile_boxes(*size):
        assert 0 <= box.top < box.bottom <= size[0]
        assert 0 <= box.left < box.right <= size[1]
        assert box.height == box.width >= 64
        covered[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] += 1
    assert covered.max() <= 1
    assert covered.mean() > 0.6 or min(size) < 128


@pytest.mark.slow
def test_some_hundreds_of_tiles_are_written_once(tmp_path: Path) -> None:
    assert write_demo_images(tmp_path) == tmp_path
    tiles = sorted(tmp_path.rglob("*.png"))
    assert 300 <= len(tiles) <= 600
    assert len({path.parent.name for path in tiles}) >= 15
    tiles[0].write_bytes(b"mine")
    assert write_demo_images(tmp_path) == tmp_path
    assert tiles[0].read_bytes() == b"mine"


# ── Imagenette ──────────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = {"n01440764": ("tench", 0), "n03028079": ("church", 85), "n03888257": ("parachute", 170)}
"""Three of its ten, and the value of the channel that tells their pictures apart."""
PER_CLASS = 24


def write_archive(folder: Path, bad_item: bool = False) -> bytes:
    """Pictures of each class below `train` and `val`, as the archive's bytes; a bad item is text."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", PER_CLASS)):
        for wnid, (_, value) in CLASSES.items():
            of_class = folder / "imagenette2-320" / split / wnid
            of_class.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (40, 48, 3), dtype=np.uint8)
                pixels[..., number % 2] += value
                Image.fromarray(pixels).resize((320, 320)).save(of_class / f"{split}_{number}.JPEG", "JPEG")
            if bad_item and split == "val":
                (of_class / f"{split}_bad.JPEG").write_text("no picture")
    with tarfile.open(folder / "archive.tgz", "w:gz") as archive:
        archive.add(folder / "imagenette2-320", "imagenette2-320")
    return (folder / "archive.tgz").read_bytes()


@dataclass
class ArchiveServer:
    """Serves one file; what it sends may break off, or be of another form. `requests` are the paths that were asked for."""

    content: bytes = b""
    sent_share: float = 1.0
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    """It stands where torchvision downloads from, and the cache is a new one."""
    archive = ArchiveServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            archive.requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive.content)))
            self.end_headers()
            self.wfile.write(archive.content[: int(archive.sent_share * len(archive.content))])

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    hub_folder = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    archive.content = write_archive(tmp_path / "made")
    serve_archive(archive, f"http://127.0.0.1:{http.server_port}/imagenette2-320.tgz", monkeypatch)
    yield archive
    torch.hub.set_dir(hub_folder)
    http.shutdown()
    http.server_close()
    thread.join()


def serve_archive(archive: ArchiveServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = hashlib.md5(archive.content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(Imagenette._ARCHIVES, "320px", (url, md5))


def test_imagenette_is_downloaded_once(server: ArchiveServer, tmp_path: Path) -> None:
    folder = imagenette_images()
    assert folder.is_relative_to(tmp_path / "hub")
    assert sorted(path.name for path in folder.iterdir()) == sorted(CLASSES)
    assert len(list(folder.rglob("*.JPEG"))) == len(CLASSES) * PER_CLASS
    assert not list((tmp_path / "hub").rglob("*.tgz"))
    asked = len(server.requests)
    assert imagenette_images() == folder
    assert len(server.requests) == asked
    assert len(Imagenette(folder.parents[1], "val", "320px")) == len(CLASSES) * PER_CLASS


@pytest.mark.parametrize("sent_share", [0.0, 0.5])
def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(
    server: ArchiveServer, tmp_path: Path, sent_share: float
) -> None:
    server.sent_share = sent_share
    with pytest.raises(ImagesError, match="incomplete or another file; give the same command again"):
        imagenette_images()
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    server.sent_share = 1
    assert imagenette_images().is_dir()


def test_an_archive_that_is_none_is_refused(server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is right: torchvision's own says so of whatever it is."""
    url, _ = Imagenette._ARCHIVES["320px"]
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as other:
        other.add(tmp_path / "empty", "imagenette2-320")
    for content in (b"no archive", server.content[: len(server.content) // 2], (tmp_path / "other.tgz").read_bytes()):
        server.content = content
        serve_archive(server, url, monkeypatch)
        with pytest.raises(ImagesError, match="incomplete or another file"):
            imagenette_images()
        assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_without_a_network_the_error_says_what_to_do(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_archive(server, "http://127.0.0.1:9/imagenette2-320.tgz", monkeypatch)
    command = [
        "demo",
        "--images",
        "imagenette",
        "--model",
        "torchvision:alexnet",
        "--weights",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("ImagesError: Imagenette can't be downloaded from 'http://127.0.0.1:9/")
    assert line.endswith("leave out --images imagenette: the demo's own photographs come with Python packages")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_over_imagenette_names_units_after_its_classes(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "made")
    server.content = write_archive(tmp_path / "made", bad_item=True)
    serve_archive(server, Imagenette._ARCHIVES["320px"][0], monkeypatch)
    command = [
        "demo",
        "--images",
        "imagenette",
        "--model",
        "torchvision:squeezenet1_1",
        "--weights",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    atlas = Atlas(tmp_path / "out" / "atlas")
    assert atlas.manifest["read"] == len(CLASSES) * PER_CLASS
    assert sorted(key.rpartition("/")[2] for key in atlas.table("skipped")["key"].to_pylist()) == ["val_bad.JPEG"] * len(CLASSES)
    assert set(atlas.table("labels")["label"].to_pylist()) == set(CLASSES)
    assert {"tench", "church", "parachute"} <= set(atlas.table("names")["nearest"].to_pylist())
    assert "visual_tuning" in {table.name for table in atlas.tables()}
    capsys.readouterr()
    assert main(command) == 0
    assert "using the atlas" in capsys.readouterr().out
    command[4] = "torchvision:alexnet"
    assert main(command) == 1
    assert "another network" in capsys.readouterr().err
