"""Files and folders that are written whole or not at all, whoever writes them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from networks import small_network
from PIL import Image

import unitscope
from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import PROBE
from unitscope.attribution import attribute
from unitscope.cli.output import save_picture
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.files import atomic_write, check_writable
from unitscope.web import export

LONG = pa.table({c.name: pa.array(range(10_000)).cast(c.type) for c in PROBE.columns})
IMAGES = torch.randn(6, 3, 14, 14, generator=torch.Generator().manual_seed(0))


def dead_process() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def write_text(path: Path) -> None:
    path.write_text("new")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("new")


@pytest.mark.parametrize("make", [write_text, make_folder])
def test_what_is_written_is_there_whole_and_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    with atomic_write(tmp_path / "deep" / "place", "it") as aside:
        make(aside)
        assert not (tmp_path / "deep" / "place").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["place"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("make", [write_text, make_folder])
def test_what_stops_midway_leaves_what_was_there(tmp_path: Path, make: Callable[[Path], None], stop: type[BaseException]) -> None:
    (tmp_path / "place").write_text("old")

    def write() -> None:
        with atomic_write(tmp_path / "place", "it") as aside:
            make(aside)
            raise stop

    with pytest.raises(stop):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("place", "old")]


@pytest.mark.skipif(sys.platform != "linux", reason="the names of open files are asked of /proc")
def test_all_of_a_folder_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with atomic_write(tmp_path / "place", "it") as aside:
        (aside / "deep").mkdir(parents=True)
        for name in ("a", "deep/b"):
            (aside / name).write_text("new")
    temporary = str(aside)
    assert set(calls[:-2]) == {temporary, f"{temporary}/a", f"{temporary}/deep", f"{temporary}/deep/b"}
    assert calls[-2:] == ["renamed", str(tmp_path)]


def test_what_the_system_refuses_is_one_line_with_the_name_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "place", Path("/proc/place")):
        with pytest.raises(UnitscopeError) as caught, atomic_write(path, f"the table {str(path)!r}", UnitscopeError) as aside:
            aside.write_text("new")
        assert str(caught.value).startswith(f"the table {str(path)!r} can't be written: ")
        assert "unfinished" not in str(caught.value)


def test_a_place_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "deep" / "place.png", "it")
    check_writable(tmp_path / "file", "it")
    with pytest.raises(AtlasError, match="it can't be written: it is a folder"):
        check_writable(tmp_path, "it")
    with pytest.raises(UnitscopeError, match="it can't be written: '.*file' is a file"):
        check_writable(tmp_path / "file" / "deep" / "place.png", "it")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ── what was left by processes that were killed ─────────────────────────────────────────────────────────────────────


def scanned(folder: Path) -> tuple[Atlas, torch.nn.Module]:
    network = small_network()
    return unitscope.scan(network, IMAGES, folder / "atlas", layers=["1"]), network


def scan_again(folder: Path, atlas: Atlas, network: torch.nn.Module) -> None:
    unitscope.scan(network, IMAGES, folder / "made", layers=["1"])


def export_site(folder: Path, atlas: Atlas, network: torch.nn.Module) -> None:
    export(atlas, folder / "made")


def write_experiment(folder: Path, atlas: Atlas, network: torch.nn.Module) -> None:
    write_table(LONG.slice(0, 1), PROBE, folder)


def draw_figure(folder: Path, atlas: Atlas, network: torch.nn.Module) -> None:
    save_picture(Image.new("RGB", (4, 4)), folder / "made.png")


def attribute_peaks(folder: Path, atlas: Atlas, network: torch.nn.Module) -> None:
    attribute(atlas, "gradient", network)


@pytest.mark.parametrize(
    ("write", "made"),
    [
        (scan_again, "made"),
        (export_site, "made"),
        (write_experiment, "probe.parquet"),
        (draw_figure, "made.png"),
        (attribute_peaks, "atlas/tables/gradient.parquet"),
    ],
)
def test_the_next_run_removes_what_a_dead_one_left_and_nothing_else(tmp_path: Path, write: Any, made: str) -> None:
    atlas, network = scanned(tmp_path)
    place = tmp_path / made
    place.parent.mkdir(exist_ok=True)
    folder, file = (place.with_name(f".{place.name}.{dead_process()}.unfinished") for _ in range(2))
    folder.mkdir()
    (folder / "page.html").write_text("half a page")
    if file != folder:
        file.write_text("half a table")
    kept = [
        place.with_name(name) for name in (f".{place.name}.1.unfinished", f".{place.name}.x.unfinished", f".other{folder.name}")
    ]
    for path in kept:
        path.write_text("somebody else's")
    write(tmp_path, atlas, network)
    assert place.exists()
    assert not folder.exists()
    assert not file.exists()
    assert all(path.read_text() == "somebody else's" for path in kept)


KILLED = """
import sys, torch
sys.path.insert(0, "tests")
from test_written_files import IMAGES, LONG
from unitscope.atlas import Atlas
from unitscope.web import export
def wait(units):
    print("midway", flush=True)
    sys.stdin.read()
export(Atlas(sys.argv[1], images=IMAGES), sys.argv[2], on_units=wait)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_exports_that_are_killed_leave_one_folder_at_most(tmp_path: Path) -> None:
    scanned(tmp_path)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "atlas"), str(tmp_path / "site")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)
        assert len(list(tmp_path.glob(".site.*.unfinished"))) == 1
    export(Atlas(tmp_path / "atlas", images=IMAGES), tmp_path / "site")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas", "site"]


# ── a disk that is full ─────────────────────────────────────────────────────────────────────────────────────────────

FULL_DISK = """
import resource, signal, sys, torch
sys.path.insert(0, "tests")
from test_written_files import IMAGES, LONG
from unitscope.cli.output import save_picture
from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import PROBE
from unitscope.errors import UnitscopeError
from unitscope.experiments.plots import draw_probe
from unitscope.web import export
import pyarrow as pa
from PIL import Image
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, atlas = sys.argv[1], Atlas(sys.argv[2], images=IMAGES)
row = {"layer": "1", "accuracy": 0.5, "deviation": 0.1, "chance": 0.1}
from pathlib import Path
writers = [
    lambda: export(atlas, folder + "/site"), lambda: write_table(LONG, PROBE, Path(folder)),
    lambda: save_picture(Image.effect_noise((300, 300), 50), Path(folder, "picture.png")),
    lambda: draw_probe(pa.Table.from_pylist([row]), Path(folder, "plot.png")),
]
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for write in writers:
    try:
        write()
    except UnitscopeError as error:
        print(str(error).replace("\\n", "NEW LINE"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the limit that stands for a full disk exists on POSIX only")
def test_a_full_disk_is_one_short_line_and_leaves_nothing(tmp_path: Path) -> None:
    atlas, _ = scanned(tmp_path / "made")
    (tmp_path / "full").mkdir()
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "full"), str(atlas.folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    lines = ran.stdout.splitlines()
    assert len(lines) == 4, ran.stdout
    for line, name in zip(lines, ("site", "probe.parquet", "picture.png", "plot.png"), strict=True):
        assert f"{str(tmp_path / 'full' / name)!r} can't be written: File too large" in line
        assert len(line) < len(str(tmp_path)) + 80
    assert list((tmp_path / "full").iterdir()) == []
