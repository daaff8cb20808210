"""Packed atlases: patches and pictures that lie in the atlas itself, so that it can go where its images don't."""

import json
import os
import shutil
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from explored import explored_atlas, walk
from networks import small_network
from photographs import write_photographs
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas, pack
from unitscope.atlas.provenance import METADATA_KEY
from unitscope.cli import main
from unitscope.drawing import SHEET_GROUND
from unitscope.errors import AtlasError, ImagesError, ImagesWarning, UnitscopeError
from unitscope.records import Peak, Preprocessing
from unitscope.web import ExplorerOptions, create_explorer, export
from unitscope.web.addresses import slug

AS_IT_IS = Preprocessing(None, (14, 14), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """An atlas of several layers, with dead, tied and nameless units, attributions and labels; its images lie beside it."""
    return explored_atlas(tmp_path_factory.mktemp("explored"))


@pytest.fixture
def atlas(explored: Atlas, tmp_path: Path) -> Atlas:
    """A copy of it; the images are those of the original."""
    shutil.copytree(explored.folder, tmp_path / "atlas")
    return Atlas(tmp_path / "atlas")


@pytest.fixture
def small(tmp_path: Path) -> Atlas:
    photographs = write_photographs(tmp_path / "photographs", 12, (20, 16))
    return unitscope.scan(small_network(), photographs, tmp_path / "small", preprocess=AS_IT_IS, sample=12)


def without_images(atlas: Atlas, folder: Path) -> Atlas:
    """The same atlas on a machine that has none of its images."""
    shutil.copytree(atlas.folder, folder)
    manifest, images = folder / "atlas.json", Path(atlas.manifest["images"]["folder"])
    text, times = manifest.read_text(), (manifest.stat().st_atime_ns, manifest.stat().st_mtime_ns)
    assert str(images) in text
    manifest.write_text(text.replace(str(images), f"/nowhere/{images.name}"))
    os.utime(manifest, ns=times)
    copied = Atlas(folder)
    with pytest.raises(ImagesError):
        _ = copied.source
    return copied


def client(atlas: Atlas, **options: Any) -> TestClient:
    return TestClient(create_explorer(atlas, ExplorerOptions(**options)), base_url="http://localhost")


def address(path: str) -> str:
    return "/" + path.replace("#", "%23").replace("?", "%3F")


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and bool((np.asarray(one) == np.asarray(other)).all())


# ── what is packed ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size_px", [16, 64])
def test_packed_patches_are_those_of_the_images(atlas: Atlas, size_px: int) -> None:
    """Every patch lies where its rank says, and differs from the one that is cut from its image by no more than JPEG does."""
    pack(atlas, size_px=size_px)
    table = {(row["layer"], row["unit"]): row["peaks"] for row in atlas.table("patches").to_pylist()}
    for layer in atlas.layers:
        peaks: dict[int, list[Peak]] = {unit: [] for unit in range(layer.units)}
        for row in atlas.peaks(layer.name).to_pylist():
            peaks[row["unit"]].append(Peak(**row))
        for unit, of_unit in peaks.items():
            content = table[layer.name, unit]
            if not of_unit:
                assert content is None
                continue
            block = np.asarray(Image.open(BytesIO(content)), dtype=np.float64)
            assert block.shape == (3 * size_px, 3 * size_px, 3)
            for peak in of_unit:
                y, x = divmod(peak.rank - 1, 3)
                drawn = block[y * size_px : (y + 1) * size_px, x * size_px : (x + 1) * size_px]
                patch = np.asarray(atlas.patch(peak, "auto", size_px, from_images=True), dtype=np.float64)
                beyond = np.stack([(patch == colour).all(2) for colour in (*SHEET_GROUND.hatch, SHEET_GROUND.empty)]).any(0)
                assert np.abs(drawn - patch)[~beyond].mean() < 12


def test_bands_are_images_of_the_sample(small: Atlas) -> None:
    pack(small, bands=True, size_px=32)
    packed = small.packed_patches
    assert packed is not None
    rows, compared = small.sample("4").to_pylist(), 0
    for unit in range(5):
        of_unit = sorted((row for row in rows if row["unit"] == unit), key=lambda row: (row["value"], row["image"]))
        bands = packed.patches("4", unit, "bands")
        places = dict(enumerate(of_unit[:3], start=9))  # the lowest
        places |= dict(enumerate(reversed(of_unit[-3:])))  # 99 % of twelve
        for place, row in places.items():
            box = [row[side] + offset for side, offset in (("left", 1), ("top", 3), ("right", 1), ("bottom", 3))]  # of the centre
            if min(row["left"], row["top"]) >= 0 and max(row["right"], row["bottom"]) <= 14:
                cell = small.picture(row["image"]).resize((32, 32), Image.Resampling.BICUBIC, box=box)
                assert np.abs(np.asarray(bands[place], dtype=float) - np.asarray(cell, dtype=float)).mean() < 15
                compared += 1
    assert compared > 5


def test_pictures_are_the_images_made_small(atlas: Atlas) -> None:
    pack(atlas, pictures_px=32)
    rows = {row["image"]: row for row in atlas.table("pictures").to_pylist()}
    assert set(rows) == set(atlas.table("images")["image"].to_pylist())
    for image, row in rows.items():
        picture = Image.open(BytesIO(row["picture"]))
        assert max(picture.size) == 32
        expected = atlas.picture(image).resize(picture.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(picture, dtype=float) - np.asarray(expected, dtype=float)).mean() < 16


def test_without_pictures_no_image_leaves_the_house(atlas: Atlas) -> None:
    pack(atlas)
    assert (atlas.folder / "tables/pictures.parquet").exists()
    packed = pack(atlas, pictures_px=None)
    assert packed.pictures == 0
    assert not (atlas.folder / "tables/pictures.parquet").exists(), "those of the earlier run are gone"
    assert Atlas(atlas.folder).packed_pictures is None


# ── what is drawn ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_its_images_a_packed_atlas_is_drawn_the_same(atlas: Atlas, tmp_path: Path) -> None:
    """Every page, block and picture to the byte, every sheet and figure to the pixel. What is downloaded of a unit is larger where its images
    are at hand."""
    pack(atlas, bands=True)
    alone = without_images(atlas, tmp_path / "elsewhere" / "atlas")
    with client(atlas) as at_home, client(alone) as away:
        pages = dict(walk(lambda path: at_home.get(address(path)).content))
        for path, content in pages.items():
            answer = away.get(address(path))
            is_download = path.endswith(".png") and "blocks/" in path
            assert (answer.status_code, is_download or answer.content) == (200, is_download or content), path
    assert {path.rpartition(".")[2] for path in pages} >= {"html", "jpg", "webp"}
    for layer in atlas.layers:
        for patch in ("auto", "image"):
            assert same_pixels(atlas.sheet(layer.name, patch=patch), alone.sheet(layer.name, patch=patch))
    assert same_pixels(atlas.figure(), alone.figure())
    assert same_pixels(atlas.figure(patch="field"), alone.figure(patch="field"))
    peak = atlas.peaks(atlas.layers[0].name).to_pylist()[0]
    assert same_pixels(atlas.patch(peak), alone.patch(peak))


def test_images_are_taken_where_that_is_asked_for(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = atlas.sheet("relu")
    pack(atlas, size_px=16)
    assert not same_pixels(atlas.sheet("relu"), before)
    assert same_pixels(atlas.sheet("relu", from_images=True), before)
    out = tmp_path / "sheet.png"
    assert main(["sheet", str(atlas.folder), "relu", "--out", str(out)]) == 0
    assert "with the packed patches, of 16 x 16 px; --from-images takes the images themselves" in capsys.readouterr().err
    assert main(["sheet", str(atlas.folder), "relu", "--out", str(out), "--from-images"]) == 0
    assert same_pixels(Image.open(out), before)
    assert not capsys.readouterr().err


def test_patches_alone_say_what_they_lack(atlas: Atlas, tmp_path: Path) -> None:
    pack(atlas, pictures_px=None)
    alone = without_images(atlas, tmp_path / "alone")
    assert same_pixels(alone.sheet("relu"), atlas.sheet("relu"))
    with pytest.raises(ImagesError):
        alone.sheet("relu", patch="image")
    with client(alone) as site:
        assert site.get("/blocks/relu/0.jpg").status_code == 200
        assert "can't be shown" in site.get("/").text


def test_scanning_again_makes_packed_patches_stale(small: Atlas, tmp_path: Path) -> None:
    pack(small)
    other = unitscope.scan(small_network(), tmp_path / "photographs", tmp_path / "other", preprocess=AS_IT_IS, k=3)
    shutil.copytree(small.folder / "tables", other.folder / "tables", dirs_exist_ok=True)
    with pytest.warns(ImagesWarning, match="'patches'.* is stale.* unitscope pack .*; until then the images are needed"):
        assert Atlas(other.folder).packed_patches is None
    with pytest.warns(ImagesWarning, match="stale"):
        Atlas(other.folder).sheet("1")


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_images_that_are_gone_are_said(small: Atlas, tmp_path: Path) -> None:
    files = sorted((tmp_path / "photographs").rglob("*.png"))
    files[0].unlink()
    Image.new("RGB", (16, 20)).save(files[1])
    with pytest.warns(ImagesWarning, match=r"of \d+ patches could not be drawn: image .* is no longer there"):
        packed = pack(small)
    assert packed.pictures == 10
    assert small.sheet("1").size[0]
    for file in files[1:]:
        file.unlink()
    before = (small.folder / "tables/patches.parquet").read_bytes()
    with pytest.raises(ImagesError, match="could not be drawn"):
        pack(small)
    assert (small.folder / "tables/patches.parquet").read_bytes() == before
    shutil.rmtree(tmp_path / "photographs")
    with pytest.raises(ImagesError, match="with --images"):
        pack(Atlas(small.folder))


def test_a_stopped_run_leaves_nothing(small: Atlas) -> None:
    before = sorted(path.name for path in small.folder.rglob("*"))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(small, on_images=stop)
    assert sorted(path.name for path in small.folder.rglob("*")) in (before, sorted([*before, "tables"]))


@pytest.mark.parametrize(
    ("options", "words"), [({"size_px": 0}, "size_px"), ({"size_px": 5000}, "size_px"), ({"pictures_px": 3}, "pictures_px")]
)
def test_sizes_have_bounds(small: Atlas, options: dict[str, int], words: str) -> None:
    with pytest.raises(UnitscopeError, match=f"{words} is a number of pixels from"):
        pack(small, **options)


def lying_jpeg() -> bytes:
    """A JPEG of a few bytes that says that it is 60,000 pixels wide and high."""
    content = BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [b"", b"<svg onload=alert(1)>", b"\xff\xd8\xff\xe0 and no more", lying_jpeg()],
    ids=["empty", "svg", "cut off", "huge"],
)
def test_hostile_patches_are_refused_or_left_to_the_browser(small: Atlas, content: bytes) -> None:
    """The server decodes none; whatever isn't JPEG isn't given as such. A sheet says what is wrong, and takes no memory for it."""
    pack(small)
    change_table(small, "patches", "peaks", content)
    change_table(small, "pictures", "picture", content)
    hostile = Atlas(small.folder)
    with client(hostile) as site:
        answer = site.get("/blocks/1/0.jpg")
        assert answer.headers["content-type"] == "image/jpeg"
        assert b"<svg" not in answer.content
        assert site.get("/images/0.jpg").status_code in (200, 404)
        assert b"<svg" not in site.get("/images/0.jpg").content
    if content.startswith(b"\xff\xd8\xff"):
        with pytest.raises(AtlasError, match="can't be drawn"):
            hostile.sheet("1")
        with pytest.raises(AtlasError, match="can't be drawn"):
            hostile.sheet("1", patch="image")


@pytest.mark.parametrize("size_px", [32, 96])
def test_blocks_have_one_size_also_of_dead_and_tied_units(atlas: Atlas, tmp_path: Path, size_px: int) -> None:
    pack(atlas, size_px=size_px)
    with client(atlas) as site:
        for layer in atlas.layers:
            for unit in range(layer.units):
                block = Image.open(BytesIO(site.get(f"/blocks/{slug(layer.name)}/{unit}.jpg").content))
                assert block.size == (3 * size_px, 3 * size_px)


def test_hostile_patches_are_not_exported(small: Atlas, tmp_path: Path) -> None:
    pack(small)
    change_table(small, "patches", "peaks", lying_jpeg())
    with pytest.raises(AtlasError, match="a block can't be drawn"):
        export(Atlas(small.folder), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def change_table(atlas: Atlas, name: str, column: str, content: bytes) -> None:
    path = atlas.folder / f"tables/{name}.parquet"
    table = pq.read_table(path)
    index = table.column_names.index(column)
    cells = pa.array([content] * len(table), pa.binary())
    pq.write_table(table.set_column(index, table.schema.field(index), cells), path)


@pytest.mark.parametrize("parameters", [{}, {"size_px": "64"}, {"size_px": 10**9}])
def test_hostile_metadata_is_refused(small: Atlas, parameters: dict[str, Any]) -> None:
    pack(small)
    path = small.folder / "tables/patches.parquet"
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    described = json.loads(metadata[METADATA_KEY])
    described["parameters"] = parameters
    metadata[METADATA_KEY] = json.dumps(described).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(AtlasError, match="is broken: it says that size_px is"):
        Atlas(small.folder).sheet("1")


def test_fewer_rows_than_units_are_refused(small: Atlas) -> None:
    pack(small)
    path = small.folder / "tables/patches.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(AtlasError, match="rows for"):
        Atlas(small.folder).sheet("1")


# ── other atlases ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [1, 2, 5])
def test_units_with_few_peaks(tmp_path: Path, k: int) -> None:
    photographs = write_photographs(tmp_path / "photographs", 4, (20, 16))
    atlas = unitscope.scan(small_network(), photographs, tmp_path / "atlas", preprocess=AS_IT_IS, k=k)
    before = [atlas.sheet(layer.name) for layer in atlas.layers]
    pack(atlas)
    for layer, unpacked in zip(atlas.layers, before, strict=True):
        assert atlas.sheet(layer.name).size == unpacked.size
        with client(atlas) as site:
            block = Image.open(BytesIO(site.get(f"/blocks/{slug(layer.name)}/0.jpg").content))
        assert block.size == (64 * int(np.ceil(np.sqrt(k))),) * 2


class OneThread(torch.utils.data.Dataset[tuple[Image.Image, int]]):
    """A data set that says which threads read it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, image: int) -> tuple[Image.Image, int]:
        self.threads.add(threading.get_ident())
        rng = np.random.default_rng(image)
        return Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)), image % 2


def test_data_sets_are_read_in_the_thread_that_packs(tmp_path: Path) -> None:
    images = OneThread()
    atlas = unitscope.scan(small_network(), images, tmp_path / "atlas", preprocess=AS_IT_IS)
    images.threads.clear()
    pack(atlas)
    assert images.threads == {threading.get_ident()}
    assert Atlas(atlas.folder).sheet("1").size[0] > 0, "without the data set"


def test_tensors_can_be_packed(tmp_path: Path) -> None:
    tensors = torch.utils.data.TensorDataset(torch.randn(6, 3, 14, 14, generator=torch.Generator().manual_seed(0)))
    atlas = unitscope.scan(small_network(), tensors, tmp_path / "atlas")
    pack(atlas)
    assert Atlas(atlas.folder).sheet("1").size[0] > 0


class Deep(nn.Module):
    """More than one row group of units in a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 150, 3), nn.Conv2d(150, 70, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(images))).mean((2, 3))


def test_the_command_packs_and_scan_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = write_photographs(tmp_path / "photographs", 12, (20, 16))
    atlas = unitscope.scan(Deep().eval(), photographs, tmp_path / "atlas", preprocess=AS_IT_IS)
    assert main(["pack", str(atlas.folder), "--size", "32", "--bands", "--no-pictures"]) == 0
    units = sum(layer.units for layer in atlas.layers)
    assert f"patches of {units} units and 0 pictures packed" in capsys.readouterr().out
    packed = Atlas(atlas.folder).packed_patches
    assert packed is not None
    table = {(row["layer"], row["unit"]): row for row in atlas.table("patches").to_pylist()}
    for layer in atlas.layers:
        for unit in range(layer.units):
            assert packed.block(layer.name, unit) == table[layer.name, unit]["peaks"]
            assert packed.block(layer.name, unit, "bands") == table[layer.name, unit]["bands"]
    out = tmp_path / "packed"
    options = ["--weights", "none", "--resize", "64", "--crop", "64", "--layers", "features.1", "--out", str(out), "--pack"]
    assert main(["scan", "torchvision:squeezenet1_1", str(photographs), *options]) == 0
    assert Atlas(out).packed_patches is not None
    assert Atlas(out).packed_pictures is not None
