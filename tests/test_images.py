"""Sources, decoding, geometry: what is read, what is skipped, and where a box lies."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import see_through
from PIL import Image
from torchvision import transforms

import unitscope
from unitscope.errors import ImagesError
from unitscope.images import (
    DatasetSource,
    FolderSource,
    Geometry,
    Skipped,
    as_source,
    decode_image,
    prepare,
    same_images,
)
from unitscope.records import Box, Preprocessing

GREY, RGB = ((0.5,), (0.5,)), ((0.5,) * 3, (0.5,) * 3)


def photograph(height: int = 40, width: int = 60) -> Image.Image:
    """A picture with no two corners alike: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


FILES: dict[str, Callable[[Path], None]] = {
    "rgb.jpg": lambda p: photograph().save(p, quality=95),
    "grey.jpg": lambda p: photograph().convert("L").save(p),
    "cmyk.jpg": lambda p: photograph().convert("CMYK").save(p, quality=95),
    "rgb.png": lambda p: photograph().save(p),
    "alpha.png": lambda p: photograph().convert("RGBA").save(p),
    "grey_alpha.png": lambda p: photograph().convert("LA").save(p),
    "bits.png": lambda p: photograph().convert("1").save(p),
    "palette.png": lambda p: photograph().quantize(200).save(p),
    "palette_with_transparency.png": lambda p: photograph().quantize(200).save(p, transparency=bytes([0, 255, 128])),
    "sixteen.png": lambda p: Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(p),
    "sixteen.tiff": lambda p: Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(p),
    "rgb.tiff": lambda p: photograph().save(p),
    "lossless.webp": lambda p: photograph().save(p, lossless=True),
    "alpha.webp": lambda p: photograph().convert("RGBA").save(p, lossless=True),
    "rgb.bmp": lambda p: photograph().save(p),
    "palette.gif": lambda p: photograph().quantize(64).save(p),
    "animated.gif": lambda p: photograph().quantize(64).save(p, save_all=True, append_images=[Image.new("P", (60, 40))]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_and_mode_becomes_the_same_picture(tmp_path: Path, name: str, channels: int) -> None:
    FILES[name](tmp_path / name)
    mean, std = GREY if channels == 1 else RGB
    pixels = prepare(decode_image(tmp_path / name), Preprocessing(None, (40, 60), mean, std, channels))
    assert pixels.shape == (40, 60, channels)
    assert pixels.dtype == np.uint8
    if name.startswith(("grey", "bits", "sixteen")):
        grey = pixels.astype(int)
        assert (np.ptp(grey, axis=2) == 0).all()
    if name.startswith("bits"):
        assert set(np.unique(pixels)) == {0, 255}
    elif name.startswith("sixteen"):
        expected = np.arange(2400).reshape(40, 60) * 27 / 257
        assert np.abs(pixels[..., 0] - expected).max() <= 1
    else:
        expected = np.asarray(photograph().convert("L" if channels == 1 or "grey" in name else "RGB")).reshape(40, 60, -1)
        assert np.abs(pixels - expected.astype(int)).mean() < 8


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_a_channel_where_it_is_asked_for(channels: int) -> None:
    image = photograph().convert("RGBA")
    image.putalpha(77)
    pixels = prepare(image, Preprocessing(None, (40, 60), (0.5,) * channels, (0.5,) * channels, channels))
    assert pixels.shape == (40, 60, channels)
    assert (pixels[..., -1] == 77).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_shown_upright_by_its_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = photograph()
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how Pillow must turn the upright picture so that EXIF turns it back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turned[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    shown = decode_image(tmp_path / "turned.png")
    assert shown.size == (60, 40)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(upright))


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG file of that size by its header, with hardly any pixels in it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    photograph(400, 600).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:3000])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated.jpg": (truncated, "can't be decoded: .*truncated"),
    "empty.png": (lambda p: p.write_bytes(b""), "is not an image"),
    "text.jpg": (lambda p: p.write_text("not an image"), "is not an image"),
    "huge.png": (lambda p: p.write_bytes(png_that_claims(30_000, 20_000)), "has 30000 x 20000 pixels, more than 500 million"),
    "flat.png": (lambda p: p.write_bytes(png_that_claims(0, 20)), "."),
    "folder.png": (lambda p: p.mkdir(), "."),
    "program.eps": (lambda p: photograph().save(p), "is PostScript"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path: Path, name: str) -> None:
    write, reason = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(Skipped, match=reason):
        decode_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_whose_range_is_not_known_are_skipped(mode: str) -> None:
    image = Image.new(mode, (4, 4), 100_000)
    with pytest.raises(Skipped, match="range isn't known"):
        prepare(image, Preprocessing(None, (4, 4), *RGB))


def test_pillows_own_limit_is_as_it_was(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    photograph().save(tmp_path / "a.png")
    decode_image(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (375, 500), (97, 97), (30, 200), (256, 256)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 64), (40, 56)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_inputs_are_those_of_torchvisions_evaluation_transforms(
    size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    image = photograph(*size)
    mode = transforms.InterpolationMode(interpolation)
    expected = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(crop)])(image)
    preprocessing = Preprocessing(resize, (crop, crop), *RGB, interpolation=interpolation)
    np.testing.assert_array_equal(prepare(image, preprocessing), np.asarray(expected))


@given(st.integers(20, 400), st.integers(20, 400), st.integers(16, 300), st.integers(16, 300))
def test_a_box_is_mapped_back_to_where_its_pixels_came_from(height: int, width: int, resize: int, crop: int) -> None:
    """The corners of the whole resized image are those of the source, wherever the crop lies."""
    geometry = Geometry.of(Preprocessing(resize, (crop, crop), *RGB), height, width)
    whole = Box(
        -geometry.offset[0],
        -geometry.offset[1],
        geometry.resized[0] - geometry.offset[0],
        geometry.resized[1] - geometry.offset[1],
    )
    mapped = geometry.to_source(whole)
    assert (mapped.top, mapped.left, mapped.bottom, mapped.right) == pytest.approx((0, 0, height, width))
    assert min(geometry.resized) == resize


def test_a_bright_spot_lies_in_the_box_that_its_pixel_maps_to() -> None:
    preprocessing = Preprocessing(64, (48, 48), *RGB)
    for y, x in ((100, 150), (200, 333), (60, 250)):
        pixels = np.zeros((300, 450, 3), np.uint8)
        pixels[y : y + 4, x : x + 4] = 255
        prepared = prepare(Image.fromarray(pixels), preprocessing)[..., 0]
        row, column = np.unravel_index(prepared.argmax(), prepared.shape)
        box = Geometry.of(preprocessing, 300, 450).to_source(Box(int(row), int(column), int(row) + 1, int(column) + 1))
        assert box.top - 4 <= y <= box.bottom
        assert box.left - 4 <= x <= box.right


def test_a_folder_is_read_in_one_order_with_labels_from_its_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/deep/1.png", "top.png", ".hidden/3.png", "b/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph().save(tmp_path / name, format="PNG")
    source = FolderSource(tmp_path)
    assert [source.key(i) for i in range(len(source))] == ["a/deep/1.png", "b/10.png", "b/2.png", "top.png"]
    assert [source.read(i).label for i in range(len(source))] == ["a", "b", "b", None]


def test_a_link_that_leads_back_ends_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    photograph().save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert len(FolderSource(tmp_path)) == 1


def test_folders_that_are_missing_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"no folder '.*nowhere'"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ImagesError, match="holds no files"):
        as_source(tmp_path)
    with pytest.raises(ImagesError, match="holds no files"):
        unitscope.scan(see_through(3), FolderSource(tmp_path), tmp_path / "atlas")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImagesError, match="empty"):
        as_source([])
    with pytest.raises(ImagesError, match="not a int"):
        as_source(3)


class Classes:
    """A map-style data set in torchvision's manner."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, image: int) -> tuple[Image.Image, int]:
        return photograph(10 + image, 20), image % 2


def written(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        photograph(10 + i, 20).save(path)
    return paths


@pytest.mark.parametrize(
    ("target", "label"),
    [(1, "dog"), (torch.tensor(0), "cat"), (np.int64(1), "dog"), ("bird", "bird"), (7, "7"), (None, None), ({"boxes": []}, None),
     (torch.zeros(3), None), (float("nan"), None), (b"cat", None)],
)  # fmt: skip
def test_labels_are_classes_and_other_targets_are_none(target: object, label: str | None) -> None:
    class Targets(Classes):
        def __getitem__(self, image: int) -> tuple[Image.Image, object]:
            return photograph(), target

    assert DatasetSource(Targets()).read(0).label == label


def test_a_dataset_of_something_else_is_refused() -> None:
    with pytest.raises(Skipped, match="PIL images"):
        DatasetSource([np.zeros((2, 2), np.float32)]).read(0)
    with pytest.raises(Skipped, match="int64"):
        DatasetSource(torch.zeros(1, 3, 2, 2, dtype=torch.int64)).read(0)


def test_an_image_that_a_dataset_cannot_give_is_skipped() -> None:
    class Failing(Classes):
        def __getitem__(self, image: int) -> tuple[Image.Image, int]:
            raise OSError("disk on fire")

    with pytest.raises(Skipped, match="OSError: disk on fire"):
        DatasetSource(Failing()).read(0)


@pytest.mark.skipif(os.name == "nt", reason="names with other bytes exist on POSIX only")
def test_names_that_are_no_text_are_keys_too(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff\xfe.png")
    source = FolderSource(tmp_path)
    assert source.read(0).pixels.size == (60, 40)
    assert source.key(0) == "\\xff\\xfe.png"
    assert source.hash()


def test_a_link_to_itself_costs_one_file(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    source = FolderSource(tmp_path)
    assert [source.key(image) for image in range(len(source))] == ["a.png", "nowhere.png", "self"]
    for image in (1, 2):
        with pytest.raises(Skipped):
            source.read(image)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder with folders in it, deeper than Python calls itself and longer than a path may be."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)  # Python's own way would be to call itself


@pytest.mark.skipif(os.name == "nt", reason="folders that deep exist on POSIX only")
def test_folders_may_lie_as_deep_as_a_system_lets_them(deep: Path) -> None:
    photograph().save(deep / "a.png")
    source = FolderSource(deep)
    assert source.key(0) == "a.png"
    assert len(source) == 2
    with pytest.raises(Skipped, match="too long|no regular file"):  # by where on the way the limit comes
        source.read(1)


@pytest.mark.parametrize(
    ("manifest", "images"),
    [('{"format": 2, "k": 9}', 0), ('{"format": 1}', 0), ("{}", 2), ('{"format": "RGBA8888"}', 2), ("[1]", 2), ("no JSON", 2), ("[" * 99999, 2)],
)  # fmt: skip
def test_only_a_real_atlas_is_passed_over_and_that_is_said(tmp_path: Path, manifest: str, images: int) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    photograph().save(tmp_path / "a.png")
    photograph().save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "in" / "sub" / "atlas.json").write_text(manifest)
    source = FolderSource(tmp_path)
    assert len(source) == 1 + images
    assert source.passed_over == ({} if images else {"in/sub": "is a folder that holds an atlas"})


def test_what_is_passed_over_stands_in_the_atlas_and_everything_adds_up(tmp_path: Path) -> None:
    (tmp_path / "images" / "old").mkdir(parents=True)
    photograph().save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "old" / "atlas.json").write_text('{"format": 2}')
    (tmp_path / "images" / "back").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "notes.md").write_text("words")
    how = Preprocessing(None, (40, 60), *RGB)
    atlas = unitscope.scan(see_through(3), tmp_path / "images", tmp_path / "atlas", preprocess=how)
    assert {row["key"]: row["reason"] for row in atlas.table("skipped").to_pylist()} == {
        "notes.md": "is not an image that Pillow knows",
        "back": "is a link back to a folder that it lies in",
        "old": "is a folder that holds an atlas",
    }
    assert (atlas.manifest["listed"], atlas.manifest["read"], atlas.manifest["skipped"]) == (4, 1, 3)


def test_links_that_lead_round_are_followed_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "in" / name).mkdir(parents=True)
        photograph().save(tmp_path / "in" / name / "1.png")
    for name in "abc":
        for target in "abc":
            (tmp_path / "in" / name / f"to_{target}").symlink_to(tmp_path / "in" / target)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert len(FolderSource(tmp_path / "link")) < 20


@pytest.mark.skipif(os.name == "nt", reason="pipes with names are POSIX's")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Skipped, match="is no regular file"):
        decode_image(tmp_path / "pipe.png")


def test_an_image_that_would_be_huge_when_resized_is_skipped() -> None:
    with pytest.raises(Skipped, match="would be 256 x 10240000 pixels"):
        prepare(Image.new("RGB", (1, 40_000)), Preprocessing(256, (224, 224), *RGB))


def test_a_folder_that_holds_an_atlas_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "atlas.json").write_text('{"format": 2}')
    photograph().save(tmp_path / "a.png")
    source = FolderSource(tmp_path)
    assert len(source) == 1
    assert source.passed_over == {"atlas": "is a folder that holds an atlas"}


def test_other_images_of_the_same_names_are_other_images(tmp_path: Path) -> None:
    paths = written(tmp_path / "images")
    source = FolderSource(tmp_path / "images")
    description = {"hash": source.hash(), "fingerprint": source.fingerprint()}
    assert same_images(description, FolderSource(tmp_path / "images"))
    content = paths[2].read_bytes()
    Image.new("RGB", (20, 12)).save(paths[2])
    assert not same_images(description, FolderSource(tmp_path / "images"))
    paths[2].write_bytes(content)
    assert same_images(description, FolderSource(tmp_path / "images"))
    paths[2].rename(tmp_path / "images" / "other.png")
    assert not same_images(description, FolderSource(tmp_path / "images"))


def strip(height: int, width: int, mode: str) -> Image.Image:
    """Noise of that size, opaque where there is alpha."""
    noise = np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    return image


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(3, 900), (900, 3), (5, 1777)])
def test_only_the_crop_of_a_strip_is_resized_and_its_pixels_are_the_same(
    size: tuple[int, int], interpolation: str, mode: str
) -> None:
    image, channels = strip(*size, mode), len(mode)
    preprocessing = Preprocessing(256, (224, 224), (0.5,) * channels, (0.5,) * channels, channels, interpolation)
    (height, width), (top, left) = (g := Geometry.of(preprocessing, *size)).resized, g.offset
    assert height * width > 16_000_000
    whole = image.resize((width, height), getattr(Image.Resampling, interpolation.upper()))
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).reshape(224, 224, channels).astype(int)
    difference = np.abs(prepare(image, preprocessing) - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01
    assert interpolation != "nearest" or not difference.any()


def test_a_strip_that_is_shorter_than_its_crop_is_padded_as_ever() -> None:
    image = strip(3, 1800, "RGB")
    preprocessing = Preprocessing(128, (200, 200), *RGB)
    (height, width), (_, left) = (g := Geometry.of(preprocessing, 3, 1800)).resized, g.offset
    preprocessing_of_a_long_one = Preprocessing(256, (300, 224), *RGB)
    prepared = prepare(image, preprocessing_of_a_long_one)
    assert prepared.shape == (300, 224, 3)
    assert not prepared[:22].any()
    assert not prepared[-22:].any()
    assert prepared[22:-22].any(axis=(1, 2)).all()
    whole = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, -36, left + 200, 164))
    np.testing.assert_array_equal(prepare(image, preprocessing), np.asarray(whole))  # small enough to be resized whole


MEMORY = """
import resource, sys
from PIL import Image
from unitscope.images import prepare
from unitscope.records import Preprocessing
image = Image.new("RGB", (int(sys.argv[1]), int(sys.argv[2])))
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
prepare(image, Preprocessing(256, (224, 224), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic"))
print(used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kilobytes there")
@pytest.mark.parametrize("size", [(1, 6000), (6000, 1), (60, 240_000)])
def test_a_strip_takes_no_more_memory_than_its_crop_needs(size: tuple[int, int]) -> None:
    ran = subprocess.run([sys.executable, "-c", MEMORY, *map(str, size)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 150_000


def test_a_side_of_more_than_a_million_pixels_is_skipped(tmp_path: Path) -> None:
    for size in ((1, 1_000_001), (49_000_000, 1)):
        (tmp_path / "long.png").write_bytes(png_that_claims(*size))
        with pytest.raises(Skipped, match="a side longer than 1 million"):
            decode_image(tmp_path / "long.png")
