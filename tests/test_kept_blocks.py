"""Blocks that the server keeps on the disk beside an atlas that isn't packed."""

import os
import shutil
import time
from pathlib import Path

import pytest
from explored import explored_atlas
from starlette.testclient import TestClient

from unitscope.atlas import Atlas
from unitscope.web.app import create_explorer
from unitscope.web.kept_blocks import KeptBlocks, folder_of_blocks

LAYERS = ("first", "second")
JPEG = b"\xff\xd8\xff" + b"x" * 100 + b"\xff\xd9"
TAG, OTHER_TAG = "0" * 16, "1" * 16


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    explored_atlas(folder)
    return folder


@pytest.fixture
def folder(scanned: Path, tmp_path: Path) -> Path:
    """An atlas beside its photographs, both of which a test may change."""
    shutil.copytree(scanned / "photographs", tmp_path / "photographs")
    shutil.copytree(scanned / "atlas-0", tmp_path / "atlas")
    return tmp_path / "atlas"


def served_block(folder: Path) -> bytes:
    """The block of one unit, from a server that has just started."""
    atlas = Atlas(folder, images=folder.with_name("photographs"))
    response = TestClient(create_explorer(atlas), base_url="http://localhost").get("/blocks/relu/0.jpg")
    assert response.status_code == 200
    return response.content


def kept_files(folder: Path, wait_s: float = 10) -> list[Path]:
    """The files of kept blocks, which are written after the answer."""
    end = time.monotonic() + wait_s
    while not (files := sorted(folder_of_blocks(folder).rglob("*.jpg"))) and time.monotonic() < end:
        time.sleep(0.01)
    return files


def test_a_block_that_was_drawn_is_there_after_a_restart(folder: Path) -> None:
    drawn = served_block(folder)
    (file,) = kept_files(folder)
    assert file.read_bytes() == drawn
    file.write_bytes(marked := drawn[:-2] + b"a mark" + drawn[-2:])
    assert served_block(folder) == marked, "it comes from the disk"


@pytest.mark.parametrize("damaged", [b"", b"no JPEG", JPEG[:-1]])
def test_a_damaged_file_is_drawn_again(folder: Path, damaged: bytes) -> None:
    drawn = served_block(folder)
    (file,) = kept_files(folder)
    file.write_bytes(damaged)
    assert served_block(folder) == drawn


def test_another_scan_never_shows_blocks_of_the_one_before(folder: Path) -> None:
    drawn = served_block(folder)
    (file,) = kept_files(folder)
    file.write_bytes(drawn[:-2] + b"a mark" + drawn[-2:])
    os.utime(folder / "atlas.json", (1, 1))
    assert served_block(folder) == drawn
    while file.exists() or kept_files(folder) == []:
        time.sleep(0.01)
    assert [path.name for path in kept_files(folder)] == ["0.jpg"], "what was kept of the scan before is removed"


def test_a_block_that_lacks_an_image_is_not_kept(folder: Path) -> None:
    photographs = folder.with_name("photographs")
    shutil.move(photographs, folder.with_name("elsewhere"))
    photographs.mkdir()
    (photographs / "other.png").write_bytes(b"")
    served_block(folder)
    assert kept_files(folder, wait_s=0.3) == []


def test_where_nothing_can_be_written_blocks_are_drawn_all_the_same(folder: Path) -> None:
    folder_of_blocks(folder).write_text("a file stands where the folder would")
    assert served_block(folder) == served_block(folder)


def test_blocks_are_kept_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    blocks = KeptBlocks(tmp_path / "blocks", TAG, LAYERS, max_bytes=3 * len(JPEG))
    for unit in range(5):
        blocks.keep(("second", unit), JPEG)
    assert [unit for unit in range(5) if ("second", unit) in blocks] == [0, 1, 2]
    again = KeptBlocks(tmp_path / "blocks", TAG, LAYERS, max_bytes=4 * len(JPEG))
    for unit in range(5):
        again.keep(("first", unit), JPEG)
    assert [unit for unit in range(5) if ("first", unit) in again] == [0], "what was there before counts"


def test_two_servers_keep_the_same_blocks(tmp_path: Path) -> None:
    first, second = (KeptBlocks(tmp_path / "blocks", TAG, LAYERS) for _ in range(2))
    assert ("first", 7) not in second
    first.keep(("first", 7), JPEG)
    second.keep(("first", 7), JPEG)
    assert first.get(("first", 7)) == second.get(("first", 7)) == JPEG
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["7.jpg"]


def test_only_what_was_kept_of_other_scans_is_removed(tmp_path: Path) -> None:
    for name in (OTHER_TAG, "a folder of somebody's"):
        (tmp_path / "blocks" / name).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "blocks" / ("2" * 16)).symlink_to(tmp_path / "outside")
    KeptBlocks(tmp_path / "blocks", TAG, LAYERS).keep(("first", 0), JPEG)
    assert {path.name for path in (tmp_path / "blocks").iterdir()} == {TAG, "a folder of somebody's", "2" * 16}
    assert (tmp_path / "outside").is_dir()


def test_a_link_is_no_folder_of_blocks(tmp_path: Path) -> None:
    (tmp_path / "outside" / OTHER_TAG).mkdir(parents=True)
    (tmp_path / "blocks").symlink_to(tmp_path / "outside")
    blocks = KeptBlocks(tmp_path / "blocks", TAG, LAYERS)
    blocks.keep(("first", 0), JPEG)
    assert blocks.get(("first", 0)) is None
    assert [path.name for path in (tmp_path / "outside").iterdir()] == [OTHER_TAG]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_beside_an_atlas_that_cant_be_written_to_blocks_go_to_the_users_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    tmp_path.chmod(0o500)
    assert folder_of_blocks(tmp_path / "atlas").is_relative_to(Path.home() / ".cache" / "unitscope")
