"""Many images to a file: tar shards and Parquet files, here and behind URLs, whole, broken and slow."""

import bz2
import gzip
import io
import lzma
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from interruptions import bytes_of
from networks import small_network
from photographs import write_photographs
from PIL import Image

import unitscope
from unitscope.errors import ImagesError, ScanUnfinished, UnitscopeError
from unitscope.images import ArchiveSource, ShardUnreadable, Skipped, as_source
from unitscope.images.archives import archive_source
from unitscope.images.content import hash_of_bytes

HOW = unitscope.Preprocessing((14, 14), (14, 14), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Ten pictures of cats and dogs in their stable order."""
    return sorted(write_photographs(tmp_path / "pictures", count=10).rglob("*.png"))


def tar_of(paths: list[Path], mode: str = "w") -> bytes:
    """A tar file in WebDataset's form: label before picture, and a member that is neither."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as tar:
        for path in paths:
            for ending, content in (("cls", path.parent.name.encode()), ("png", path.read_bytes()), ("seg.bin", b"1234")):
                member = tarfile.TarInfo(f"some/{path.stem}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def parquet_of(paths: list[Path], paired: bool = True) -> bytes:
    """A Parquet file as Hugging Face writes them, or with plain bytes; in row groups of two."""
    images = [{"bytes": p.read_bytes(), "path": p.name} if paired else p.read_bytes() for p in paths]
    labels = [["cat", "dog"].index(p.parent.name) for p in paths]
    table = pa.table({"image": images, "label": labels})
    if paired:
        features = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
        table = table.replace_schema_metadata({b"huggingface": features})
    archive = io.BytesIO()
    pq.write_table(table, archive, row_group_size=2)
    return archive.getvalue()


def written(folder: Path, paths: list[Path], kind: str) -> list[str]:
    """Three files of a kind; the last one is short."""
    make = {"tar": tar_of, "tar.gz": partial(tar_of, mode="w:gz"), "parquet": parquet_of}[kind]
    folder.mkdir(exist_ok=True)
    names = []
    for number, start in enumerate((0, 4, 8)):
        name = folder / f"shard-{number}.{kind}"
        name.write_bytes(make(paths[start : start + 4]))
        names.append(str(name))
    return names


def without_waiting(*paths: str | Path) -> ArchiveSource:
    """The source of these archives, which tries again at once where a file can't be read."""
    return archive_source(list(map(str, paths)), retry_wait_s=0)


def all_items(source: ArchiveSource) -> list[Any]:
    return [item for shard in source.shards(images_per_shard=64) for item in source.items(shard)]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
def test_images_come_in_order_with_keys_and_labels_and_each_is_found_again(
    tmp_path: Path, pictures: list[Path], kind: str
) -> None:
    source = as_source(written(tmp_path / "shards", pictures, kind))
    items = all_items(source)
    assert [item.image for item in items] == [(n // 4 << 32) + n % 4 for n in range(10)]
    assert len({item.key for item in items}) == 10
    assert items[5].key == (
        "shard-1.parquet/1/" + pictures[5].name if kind == "parquet" else f"shard-1.{kind}/some/{pictures[5].name}"
    )
    assert [item.read().label for item in items] == [path.parent.name for path in pictures]
    for item, path in zip(items, pictures, strict=True):
        for image in (item.read(), source.read(item.image)):
            np.testing.assert_array_equal(np.asarray(image.pixels), np.asarray(Image.open(path)))
            assert image.label == path.parent.name
        assert source.key(item.image) == item.key
        assert source.find(item.key) == item.image
    assert source.find("shard-1.tar/nothing") is None
    for beyond in (4, 3 << 32):
        with pytest.raises(Skipped, match="is no longer there"):
            source.read(beyond)


def peaks(atlas: unitscope.Atlas) -> list[tuple[Any, ...]]:
    """What the peaks are about, whatever the keys and numbers of the images are called."""
    return [
        (row["layer"], row["unit"], row["value"], atlas.key(row["image"]).rpartition("/")[2], row["y"], row["x"])
        for row in atlas.table("peaks").to_pylist()
    ]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_scan_of_files_finds_the_peaks_of_the_folder(tmp_path: Path, pictures: list[Path], kind: str) -> None:
    folder = unitscope.scan(small_network(), tmp_path / "pictures", tmp_path / "folder", preprocess=HOW, batch_size=1)
    shards = str(tmp_path / "shards" / f"shard-{{0..2}}.{kind}")
    written(tmp_path / "shards", pictures, kind)
    atlas = unitscope.scan(small_network(), shards, tmp_path / "atlas", preprocess=HOW, batch_size=1)
    assert peaks(atlas) == peaks(folder)
    assert atlas.table("labels").equals(folder.table("labels"))
    for table in ("units",):
        for name in atlas.table(table).column_names:
            column, expected = atlas.table(table)[name].to_numpy(), folder.table(table)[name].to_numpy()
            if column.dtype.kind == "f":
                np.testing.assert_allclose(column, expected, rtol=1e-12)
            else:
                np.testing.assert_array_equal(column, expected)
    assert (atlas.manifest["listed"], atlas.manifest["read"]) == (10, 10)
    opened = unitscope.Atlas(tmp_path / "atlas")
    assert opened.figure().tobytes() == folder.figure().tobytes()
    assert unitscope.check(opened, small_network()).differences == []


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
def test_a_folder_of_files_of_many_images_says_what_to_give(tmp_path: Path, pictures: list[Path], kind: str) -> None:
    written(tmp_path / "shards", pictures, kind)
    (tmp_path / "shards" / "README.md").write_text("words")
    with pytest.raises(ImagesError, match=rf"holds files of many images, such as 'shard-0\.{kind}': give '(.*)'") as caught:
        as_source(tmp_path / "shards")
    assert len(as_source(str(caught.value).split("'")[-2]).files) == 3  # type: ignore[attr-defined]
    (pictures[0]).rename(tmp_path / "shards" / "a.png")
    assert len(as_source(tmp_path / "shards")) == 5


def test_a_long_file_is_read_in_runs(tmp_path: Path, pictures: list[Path]) -> None:
    """One file of ten images, in runs of two."""
    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    atlas = unitscope.scan(small_network(), tmp_path / "all.tar", tmp_path / "atlas", preprocess=HOW, batch_size=1)
    folder = unitscope.scan(small_network(), tmp_path / "pictures", tmp_path / "folder", preprocess=HOW, batch_size=1)
    assert peaks(atlas) == peaks(folder)
    np.testing.assert_allclose(atlas.table("units")["std"], folder.table("units")["std"], rtol=1e-12)


def test_globs_and_braces_stand_for_many_files(tmp_path: Path, pictures: list[Path]) -> None:
    names = written(tmp_path / "shards", pictures, "tar")
    for pattern in ("shard-*.tar", "shard-{0..2}.tar", "shard-{0,1,2}.tar", "shard-?.tar", "shard-[0-2].tar", "s*-[012].tar"):
        assert as_source(str(tmp_path / "shards" / pattern)).files == names  # type: ignore[attr-defined]
    with pytest.raises(ImagesError, match="there are no files"):
        as_source(str(tmp_path / "nothing-*.tar"))
    with pytest.raises(ImagesError, match="either tar shards or Parquet files, not both"):
        as_source([names[0], "other.parquet"])


def test_tar_files_may_be_compressed_or_not(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(pictures[:5]))
    (tmp_path / "b.tgz").write_bytes(tar_of(pictures[5:], mode="w:gz"))
    items = all_items(as_source([str(tmp_path / "a.tar"), str(tmp_path / "b.tgz")]))
    assert [item.read().label for item in items] == [path.parent.name for path in pictures]


def test_a_picture_of_no_bytes_is_no_picture(tmp_path: Path, pictures: list[Path]) -> None:
    pictures[1].write_bytes(b"")
    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    source = as_source(tmp_path / "all.tar")
    for read_one in (all_items(source)[1].read, lambda: source.read(1)):
        with pytest.raises(Skipped, match="is not an image that Pillow knows"):
            read_one()


def test_files_in_memory_are_files(tmp_path: Path, pictures: list[Path]) -> None:
    for number, name in enumerate(written(tmp_path / "shards", pictures, "tar")):
        fsspec.filesystem("memory").pipe(f"/bucket/shard-{number}.tar", Path(name).read_bytes())
    atlas = unitscope.scan(small_network(), "memory://bucket/shard-*.tar", tmp_path / "atlas", preprocess=HOW)
    local = unitscope.scan(small_network(), str(tmp_path / "shards" / "*.tar"), tmp_path / "local", preprocess=HOW)
    assert peaks(atlas) == peaks(local)
    assert unitscope.Atlas(tmp_path / "atlas").figure().size == local.figure().size


class Quiet(SimpleHTTPRequestHandler):
    """A plain server of files, without ranges."""

    def log_message(self, *_: Any) -> None:
        pass


class Breaking(BaseHTTPRequestHandler):
    """Hangs up in the middle of a file for so many times."""

    content = b""
    breaks = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        kind = type(self)
        kind.breaks -= 1
        self.wfile.write(self.content if kind.breaks < 0 else self.content[: len(self.content) // 2])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_files_behind_http_are_files(tmp_path: Path, pictures: list[Path], serve: Any) -> None:
    names = written(tmp_path / "shards", pictures, "tar")
    url = serve(partial(Quiet, directory=str(tmp_path / "shards")))
    atlas = unitscope.scan(small_network(), f"{url}/shard-{{0..2}}.tar", tmp_path / "atlas", preprocess=HOW)
    assert peaks(atlas) == peaks(unitscope.scan(small_network(), names, tmp_path / "local", preprocess=HOW))
    assert unitscope.Atlas(tmp_path / "atlas").figure().size[0] > 100
    with pytest.raises(ScanUnfinished, match=r"nothing could be scanned: .*nothing\.tar' can't be read: FileNotFoundError"):
        unitscope.scan(small_network(), without_waiting(f"{url}/nothing.tar"), tmp_path / "other", preprocess=HOW)


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_server_that_hangs_up_is_asked_again(tmp_path: Path, pictures: list[Path], serve: Any, breaks: int) -> None:
    handler = type("Handler", (Breaking,), {"content": tar_of(pictures), "breaks": breaks})
    atlas = unitscope.scan(small_network(), without_waiting(f"{serve(handler)}/all.tar"), tmp_path / "atlas", preprocess=HOW)
    assert atlas.manifest["read"] == 10


@pytest.mark.parametrize("damage", ["cut in a picture", "cut in a header", "wrong header"])
def test_a_broken_file_is_reported_by_name_and_the_rest_is_kept(tmp_path: Path, pictures: list[Path], damage: str) -> None:
    names = written(tmp_path / "shards", pictures, "tar")
    unitscope.scan(small_network(), names, tmp_path / "whole", preprocess=HOW)
    content = Path(names[1]).read_bytes()
    second = content.index(b"some/005.png")
    broken = {
        "cut in a picture": content[: second + 700],
        "cut in a header": content[: second + 100],
        "wrong header": content[: second + 148] + b"nonsense" + content[second + 156 :],
    }
    Path(names[1]).write_bytes(broken[damage])
    with pytest.raises(ScanUnfinished, match=r"1 of 3 files could not be scanned: '.*shard-1\.tar' can't be read: "):
        unitscope.scan(small_network(), without_waiting(*names), tmp_path / "atlas", preprocess=HOW)
    assert not (tmp_path / "atlas").exists()
    Path(names[1]).write_bytes(content)
    progress: list[int] = []
    unitscope.scan(small_network(), names, tmp_path / "atlas", preprocess=HOW, on_images=progress.append)
    assert progress == [6, 4]
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")


PACKINGS = pytest.mark.parametrize(
    ("ending", "pack"),
    [("tar", bytes), ("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tbz2", bz2.compress), ("txz", lzma.compress)],
)


@PACKINGS
@pytest.mark.parametrize("cut", [3 * 512, 5000, 10 * 1536])
def test_files_of_several_members_are_read_to_the_last(
    tmp_path: Path, pictures: list[Path], ending: str, pack: Callable[[bytes], bytes], cut: int
) -> None:
    """As bgzip, pigz and cat write them, cut between two members of the tar file and within one."""
    whole = tar_of(pictures)
    (tmp_path / f"all.{ending}").write_bytes(pack(whole[:cut]) + pack(whole[cut:]))
    assert [item.read().label for item in all_items(as_source(tmp_path / f"all.{ending}"))] == [p.parent.name for p in pictures]


@PACKINGS
def test_tar_files_one_after_the_other_are_read_to_the_last(
    tmp_path: Path, pictures: list[Path], ending: str, pack: Callable[[bytes], bytes]
) -> None:
    two_in_one = pack(tar_of(pictures[:4])) + pack(tar_of(pictures[4:]))
    (tmp_path / f"both.{ending}").write_bytes(two_in_one)
    source = as_source(tmp_path / f"both.{ending}")
    assert [item.read().content for item in all_items(source)] == [hash_of_bytes(path.read_bytes()) for path in pictures]
    assert source.read(9).content == hash_of_bytes(pictures[9].read_bytes())


@PACKINGS
def test_a_file_that_is_cut_off_is_named(
    tmp_path: Path, pictures: list[Path], ending: str, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(tar_of(pictures[:5])) + pack(tar_of(pictures[5:]))
    (tmp_path / f"cut.{ending}").write_bytes(content[: len(content) * 3 // 4 - 77])
    with pytest.raises(ShardUnreadable, match=rf"cut\.{ending}' can't be read"):
        all_items(without_waiting(tmp_path / f"cut.{ending}"))


def test_what_follows_the_end_of_a_tar_file_and_is_none_is_told(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "all.tar").write_bytes(tar_of(pictures) + b"signature" * 100)
    with pytest.raises(ShardUnreadable, match="all.tar' can't be read: OSError: the tar file is cut off or damaged"):
        all_items(without_waiting(tmp_path / "all.tar"))


def test_a_picture_that_cannot_be_decoded_is_skipped_with_its_key(tmp_path: Path, pictures: list[Path]) -> None:
    pictures[3].write_bytes(b"no picture")
    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    atlas = unitscope.scan(small_network(), tmp_path / "all.tar", tmp_path / "atlas", preprocess=HOW)
    assert atlas.table("skipped").to_pylist() == [
        {"key": f"all.tar/some/{pictures[3].name}", "reason": "is not an image that Pillow knows"}
    ]
    assert (atlas.manifest["listed"], atlas.manifest["read"]) == (10, 9)


def test_the_image_is_found_when_a_file_came_before_it(tmp_path: Path, pictures: list[Path]) -> None:
    names = written(tmp_path / "shards", pictures, "tar")
    last_two, all_three = as_source(names[1:]), as_source(names)
    assert all_three.find(last_two.key(1)) == (1 << 32) + 1
    assert not all_three.has(1, last_two.key(1))
    assert last_two.has(1, last_two.key(1))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["a"], "number": [1]}, r"none of its columns holds the bytes .*: 'text' \(string\), 'number' \(int64\)"),
        ({"image": ["a.jpg"]}, r"none of its columns holds the bytes of image files, .*: 'image' \(string\)"),
        ({"left": [b"a"], "right": [b"b"]}, "its columns 'left', 'right' all hold bytes; call the one with the images 'image'"),
    ],
)
def test_parquet_files_without_pictures_say_what_they_have(tmp_path: Path, columns: dict[str, list[Any]], words: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "words.parquet")
    with pytest.raises(ScanUnfinished, match=words):
        unitscope.scan(small_network(), tmp_path / "words.parquet", tmp_path / "atlas", preprocess=HOW)


def test_the_names_of_a_column_of_labels_are_found_whatever_it_is_called(tmp_path: Path, pictures: list[Path]) -> None:
    table = pq.read_table(io.BytesIO(parquet_of(pictures))).rename_columns(["image", "species"])
    features = (
        b'{"info": {"features": {"image": {"_type": "Image"}, "species": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    )
    pq.write_table(table.replace_schema_metadata({b"huggingface": features}), tmp_path / "a.parquet")
    source = as_source(tmp_path / "a.parquet")
    assert [item.read().label for item in all_items(source)] == [path.parent.name for path in pictures]


Member = tuple[str, bytes]


def tar_with(path: Path, members: list[Member], links: dict[str, tuple[bytes, str]] | None = None) -> Path:
    """A tar file of these members in this order, and of links: hard (`tarfile.LNKTYPE`) or symbolic ones, by name."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, (kind, target) in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return path


def labels_or_reasons(path: Path) -> dict[str, str | None]:
    """Every item of a file by its name: its label or, where it is skipped, the reason in brackets."""
    result_by_name: dict[str, str | None] = {}
    source = as_source(path)
    for item in all_items(source):
        name = item.key.partition("/")[2]
        assert name not in result_by_name
        try:
            result_by_name[name] = item.read().label
        except Skipped as reason:
            result_by_name[name] = f"({reason})"
    return result_by_name


BOTH_WAYS = pytest.mark.parametrize("ending", ["tar", "tgz"])
"""Read through an index, and as a stream."""


def picture(number: int = 0, image_format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 9, 80, 120)).save(content, image_format)
    return content.getvalue()


@BOTH_WAYS
def test_every_member_whose_last_ending_is_a_pictures_is_opened(tmp_path: Path, ending: str) -> None:
    forms = {"a.0.jpg": "JPEG", "a.1.jpg": "JPEG", "x.input.png": "PNG", "b.avif": "AVIF", "c.jp2": "JPEG2000", "d.jfif": "JPEG",
             "e.jpe": "JPEG", "f.tga": "TGA", "g.mpo": "MPO", "h.webp": "WEBP", "i.JPG": "JPEG", "j.ico": "ICO", "k.PnG": "PNG"}  # fmt: skip
    path = tar_with(
        tmp_path / f"all.{ending}", [(name, picture(n, image_format)) for n, (name, image_format) in enumerate(forms.items())]
    )
    assert labels_or_reasons(path) == dict.fromkeys(forms)
    atlas = unitscope.scan(small_network(), path, tmp_path / "atlas", preprocess=HOW)
    assert (atlas.manifest["listed"], atlas.manifest["read"], atlas.manifest["skipped"]) == (len(forms), len(forms), 0)


@BOTH_WAYS
def test_labels_stand_before_or_after_their_picture_or_are_the_first_folder(tmp_path: Path, ending: str) -> None:
    members = [
        ("a.jpg", picture(1)), ("a.cls", b"cat"), ("b.cls", b"dog"), ("b.jpg", picture(2)), ("c.0.jpg", picture(3)), ("c.0.cls", b"elk"),
        ("c.1.jpg", picture(4)), ("c.1.json", b'{"label": 3.0}'), ("c.cls", b"gnu"), ("c.2.jpg", picture(5)), ("./cow/d.jpg", picture(6)),
        ("cow/in/e.jpg", picture(7)), ("cow/f.jpg", picture(8)), ("cow/f.json", b'{"label": "ox"}'), ("g.jpg", picture(9)),
        ("h.jpg", picture(10)), ("h.cls", b"-1"), ("i.jpg", picture(11)), ("i.cls", b"\xef\xbb\xbfelk\r\n"), ("j.jpg", picture(12)),
        ("j.cls", "Ötzi".encode("utf-16")), ("k.jpg", picture(13)), ("k.jpg.cls", b"emu"), ("l.jpg.json", b'{"label": "eel"}'),
        ("l.jpg", picture(14)), ("l.png", picture(15)), ("l.png.cls", b"ray"), ("m.jpg", picture(16)), ("m.json", b'{"label": "-1"}'),
        ("n.jpg", picture(17)), ("n.json", b'{"label": null, "class": "owl"}'), ("o.jpg", picture(18)), ("o.json", b'{"label": ""}'),
    ]  # fmt: skip
    assert labels_or_reasons(tar_with(tmp_path / f"all.{ending}", members)) == {
        "a.jpg": "cat", "b.jpg": "dog", "c.0.jpg": "elk", "c.1.jpg": "3", "c.2.jpg": "gnu", "./cow/d.jpg": "cow", "cow/in/e.jpg": "cow",
        "cow/f.jpg": "ox", "g.jpg": None, "h.jpg": None, "i.jpg": "elk", "j.jpg": "Ötzi", "k.jpg": "emu", "l.jpg": "eel", "l.png": "ray",
        "m.jpg": None, "n.jpg": "owl", "o.jpg": None,
    }  # fmt: skip


def test_labels_far_from_their_picture_are_found_in_a_file_and_named_in_a_stream(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("b.jpg", picture(2)), ("a.cls", b"cat"), ("b.cls", b"dog")]
    assert labels_or_reasons(tar_with(tmp_path / "all.tar", members)) == {"a.jpg": "cat", "b.jpg": "dog"}
    streamed = labels_or_reasons(tar_with(tmp_path / "all.tgz", members))
    assert streamed == {name: streamed[name] for name in ("a.jpg", "b.jpg", "a.cls", "b.cls")}
    assert streamed["a.cls"] == "(is a sample without an image beside it: it has .cls)"


@BOTH_WAYS
def test_labels_and_endings_that_are_no_text_are_written_out(tmp_path: Path, ending: str) -> None:
    members = [("a.png", picture(1)), ("a.json", b'{"label": "\\ud800x"}'), ("b.cls", b"x"), ("b.caf\udce9", b"y")]
    path = tar_with(tmp_path / f"all.{ending}", members)
    atlas = unitscope.scan(small_network(), path, tmp_path / "atlas", preprocess=HOW)
    assert [row["label"] for row in atlas.table("labels").to_pylist()] == ["\\ud800x"]
    assert [row["reason"] for row in atlas.table("skipped").to_pylist()] == [
        "is a sample without an image beside it: it has .cls, .caf\\xe9"
    ]


@BOTH_WAYS
def test_members_of_one_name_are_several_images(tmp_path: Path, ending: str) -> None:
    members = [("a.png", picture(1)), ("a.cls", b"cat"), ("b.png", picture(2)), ("a.png", picture(3)), ("a.cls", b"dog")]
    path = tar_with(tmp_path / f"all.{ending}", members)
    assert labels_or_reasons(path) == {"a.png": "cat", "b.png": None, "a.png#2": "dog"}
    source = as_source(path)
    for number, colour in enumerate((9, 18, 27)):
        assert source.read(number).pixels.getpixel((0, 0))[0] == colour
        assert source.find(source.key(number)) == number


@BOTH_WAYS
def test_links_are_followed_where_a_file_can_go_back_and_named_where_not(tmp_path: Path, ending: str) -> None:
    links = {
        "hard.png": (tarfile.LNKTYPE, "in/a.png"), "in/soft.png": (tarfile.SYMTYPE, "a.png"), "over.png": (tarfile.SYMTYPE, "hard.png"),
        "nowhere.png": (tarfile.SYMTYPE, "/etc/passwd"), "round.png": (tarfile.SYMTYPE, "round.png"),
    }  # fmt: skip
    results = labels_or_reasons(tar_with(tmp_path / f"all.{ending}", [("in/a.png", picture(1))], links))
    assert results.keys() == {"in/a.png", *links}
    if ending == "tar":
        assert (results["hard.png"], results["in/soft.png"], results["over.png"]) == (None, "in", None)
        assert results["nowhere.png"] == "(is a link to '/etc/passwd', which isn't in the tar file)"
        assert "leads back to itself" in str(results["round.png"])
    else:
        assert results["hard.png"] == "(is a link to 'in/a.png', which can't be followed in a stream)"


@BOTH_WAYS
def test_what_is_no_picture_is_skipped_and_everything_adds_up(tmp_path: Path, ending: str) -> None:
    members = [
        ("README.txt", b"words"), ("a.png", picture(1)), ("a.seg.npy", b"123"), ("a.txt", b"a caption"), ("b.cls", b"dog"), ("b.txt", b"x"),
        ("inner.tar", b"tar"), ("c.png", b"no picture"), ("Makefile", b"all:"), ("._a.png", b"apple"),
    ]  # fmt: skip
    path = tar_with(tmp_path / f"all.{ending}", members)
    assert labels_or_reasons(path) == {
        "README.txt": "(is no image by its ending)", "a.png": None,
        "b.cls": "(is a sample without an image beside it: it has .cls, .txt)",
        "inner.tar": "(is a tar file inside the tar file: unpack the outer one and give those)",
        "c.png": "(is not an image that Pillow knows)", "Makefile": "(has no ending that says that it is an image)",
        "._a.png": "(is not an image that Pillow knows)",
    }  # fmt: skip
    atlas = unitscope.scan(small_network(), path, tmp_path / "atlas", preprocess=HOW)
    assert (atlas.manifest["listed"], atlas.manifest["read"], len(atlas.table("skipped"))) == (7, 1, 6)


def test_files_that_hold_no_image_say_so(tmp_path: Path) -> None:
    empty = tar_with(tmp_path / "empty.tar", [])
    tars = tar_with(tmp_path / "tars.tar", [("a.tar", b""), ("b.tar", b"")])
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    for path, words in (
        (empty, r"there are no images: '.*empty\.tar' hold"), (tmp_path / "none.parquet", "there are no images: '.*none.parquet' hold"),
        (tars, r"none of 2 items is an image .*'tars\.tar/a\.tar' is a tar file inside the tar file"),
    ):  # fmt: skip
        with pytest.raises(ImagesError, match=words):
            unitscope.scan(small_network(), path, tmp_path / "atlas", preprocess=HOW)


def test_an_index_and_a_stream_number_and_name_the_same_images(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    (tmp_path / "all.tgz").write_bytes(tar_of(pictures, mode="w:gz"))
    indexed, streamed = (all_items(as_source(tmp_path / name)) for name in ("all.tar", "all.tgz"))
    for first, second in zip(indexed, streamed, strict=True):
        assert (first.image, first.key.partition("/")[2]) == (second.image, second.key.partition("/")[2])
        assert first.read().content == second.read().content


def test_content_is_the_hash_of_the_files_bytes_wherever_they_lie(tmp_path: Path, pictures: list[Path]) -> None:
    import xxhash

    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    (tmp_path / "all.parquet").write_bytes(parquet_of(pictures))
    expected = {xxhash.xxh3_64(path.read_bytes()).intdigest() for path in pictures}
    for images in (tmp_path / "pictures", tmp_path / "all.tar", tmp_path / "all.parquet"):
        atlas = unitscope.scan(small_network(), images, tmp_path / f"atlas of {images.name}", preprocess=HOW)
        assert set(atlas.table("images")["content"].to_pylist()) == expected


def test_plain_bytes_in_parquet_are_images(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "plain.parquet").write_bytes(parquet_of(pictures, paired=False))
    items = all_items(as_source(tmp_path / "plain.parquet"))
    assert [item.key for item in items][:2] == ["plain.parquet/0", "plain.parquet/1"]
    assert [item.read().label for item in items][:2] == ["0", "0"]
    np.testing.assert_array_equal(np.asarray(items[3].read().pixels), np.asarray(Image.open(pictures[3])))


def test_a_limit_needs_numbered_images(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "all.tar").write_bytes(tar_of(pictures))
    with pytest.raises(UnitscopeError, match="limit is for images that are numbered"):
        unitscope.scan(small_network(), tmp_path / "all.tar", tmp_path / "atlas", preprocess=HOW, limit=3)


def test_hugging_face_data_sets_are_scanned_as_objects_and_by_name(tmp_path: Path, pictures: list[Path]) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets aren't installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [str(path) for path in pictures], "label": [path.parent.name for path in pictures]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    folder = unitscope.scan(small_network(), tmp_path / "pictures", tmp_path / "folder", preprocess=HOW)
    atlas = unitscope.scan(small_network(), dataset, tmp_path / "atlas", preprocess=HOW)
    assert atlas.table("peaks").equals(folder.table("peaks"))
    assert atlas.table("labels").equals(folder.table("labels"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ImagesError, match="name one of the splits train, test"):
        as_source(f"hf:{tmp_path / 'saved'}")
    unitscope.scan(small_network(), f"hf:{tmp_path / 'saved'}:train", tmp_path / "named", preprocess=HOW)
    reopened = unitscope.Atlas(tmp_path / "named")
    assert reopened.table("peaks").equals(folder.table("peaks"))
    assert reopened.figure().tobytes() == folder.figure().tobytes()
    with pytest.raises(ImagesError, match="can't be loaded"):
        as_source(f"hf:{tmp_path / 'nowhere'}")


def test_torchvision_data_sets_are_scanned(tmp_path: Path) -> None:
    from torchvision.datasets import FakeData

    atlas = unitscope.scan(small_network(), FakeData(12, (3, 20, 20), 4), tmp_path / "atlas", preprocess=HOW)
    assert atlas.manifest["read"] == 12
    assert sum(atlas.table("labels")["images"].to_pylist()) == 12
