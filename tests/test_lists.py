"""Lists of images, and what a user may mean by one word."""

import codecs
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from photographs import write_photographs
from PIL import Image

import unitscope
from unitscope.errors import ImagesError
from unitscope.images import FolderSource, ListSource, Skipped, as_source

SQUARE = unitscope.Preprocessing(None, (48, 64), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of cats and dogs, and a file whose name has spaces and a comma."""
    images = write_photographs(tmp_path / "images")
    Image.new("RGB", (9, 9)).save(images / "dog" / "a big, old dog.png")
    return images


def keys_and_labels(source: object) -> list[tuple[str, str | None]]:
    assert isinstance(source, ListSource)
    return [(source.key(image), source.read(image).label) for image in range(len(source))]


LINES = ["cat/000.png", "dog/001.png", "dog/a big, old dog.png"]


@pytest.mark.parametrize(
    ("encode", "end"),
    [
        (lambda text: text.encode(), "\n"), (lambda text: text.encode("utf-8-sig"), "\r\n"), (lambda text: text.encode("utf-16"), "\r\n"),
        (lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), "\n"), (lambda text: text.encode("utf-16-le"), "\n"),
    ],
)  # fmt: skip
def test_lists_may_be_written_in_any_unicode(folder: Path, encode: object, end: str) -> None:
    (folder / "list.txt").write_bytes(encode(end.join(LINES) + end))  # type: ignore[operator]
    assert [key for key, _ in keys_and_labels(as_source(folder / "list.txt"))] == LINES


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("{}", None), ('"{}"', None), ("'{}'", None), ("{} 7", "7"), ("{} -1", None), ("{}\ttabby cat", "tabby cat"), ("{},cat", "cat"),
        ('"{}",cat', "cat"), ('"{}" cat', "cat"), ("  {}  ", None), ('{} "cat"', "cat"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", LINES[1:])
def test_a_line_is_a_path_with_or_without_a_label(folder: Path, path: str, line: str, label: str | None) -> None:
    (folder / "list.txt").write_text(f"{LINES[0]}\n{line.format(path)}\n")
    assert keys_and_labels(as_source(str(folder / "list.txt")))[1] == (path, label)


def test_paths_start_from_the_working_folder_or_from_the_lists_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "list.txt").write_text("\n".join(LINES))
    expected = keys_and_labels(as_source(folder / "list.txt"))
    (folder.parent / "elsewhere.txt").write_text("\n".join(LINES))
    monkeypatch.chdir(folder)
    assert keys_and_labels(as_source(folder.parent / "elsewhere.txt")) == expected


def test_labels_of_a_list_come_into_the_atlas(folder: Path, tmp_path: Path) -> None:
    from networks import see_through

    (folder / "list.txt").write_text("cat/000.png tabby\ndog/001.png terrier\ndog/003.png terrier\n")
    atlas = unitscope.scan(see_through(3), folder / "list.txt", tmp_path / "atlas", preprocess=SQUARE)
    assert atlas.table("labels").to_pylist() == [{"label": "tabby", "images": 1}, {"label": "terrier", "images": 2}]


def test_labels_in_another_code_than_unicode_come_into_the_atlas_written_out(folder: Path, tmp_path: Path) -> None:
    from networks import see_through

    (folder / "list.txt").write_bytes(b"cat/000.png caf\xe9\n")
    atlas = unitscope.scan(see_through(3), folder / "list.txt", tmp_path / "atlas", preprocess=SQUARE)
    assert [row["label"] for row in atlas.table("labels").to_pylist()] == ["caf\\xe9"]


def test_keys_of_a_list_are_paths_from_what_all_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    absolute, relative = [folder / line for line in LINES], [f"images/../images/{line}" for line in LINES]
    for paths in (absolute, relative, [absolute[0], *relative[1:]]):
        assert [key for key, _ in keys_and_labels(as_source(paths))] == LINES
    assert keys_and_labels(as_source([absolute[0]])) == [("000.png", None)]


@pytest.mark.parametrize("new_images", ["{new}", "{new}/..", "list"])
def test_a_list_whose_folder_moved_is_drawn_from_the_new_one(folder: Path, tmp_path: Path, new_images: str) -> None:
    from networks import see_through

    paths = sorted(folder.rglob("0*.png"))
    sheet = unitscope.scan(see_through(3), paths, tmp_path / "atlas", preprocess=SQUARE).sheet("0").tobytes()
    new = tmp_path / "far" / "away"
    new.parent.mkdir()
    os.rename(folder, new)
    with pytest.raises(ImagesError, match=r"18 of 18 patches could not be drawn: image '.*' can't be .*--images"):
        unitscope.Atlas(tmp_path / "atlas").sheet("0")
    images = [new / path.relative_to(folder) for path in paths] if new_images == "list" else new_images.format(new=new)
    assert unitscope.Atlas(tmp_path / "atlas", images=images).sheet("0").tobytes() == sheet


def test_globs_and_single_pictures_just_work(folder: Path) -> None:
    assert as_source(str(folder / "*" / "00?.png")).count() == 6
    assert as_source(str(folder / "**" / "*.png")).count() == 7
    assert as_source(str(folder / "cat" / "000.png")).count() == 1
    with pytest.raises(ImagesError, match=r"there are no files '.*\*\.jpg'"):
        as_source(str(folder / "*.jpg"))
    (folder / "odd [1]").mkdir()
    (folder / "odd [1]" / "a.png").write_bytes(b"")
    assert isinstance(as_source(str(folder / "odd [1]")), FolderSource)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.zip", "is a zip archive: unpack it"), ("a.csv", "is a table: give a .txt file"), ("a.md", "can't find images in: give a folder"),
        ("a.tar.zst", "is packed with Zstandard, .*: unpack it"), ("binary.txt", r"the list '.*binary\.txt' is no text; it needs one path a line"),
        ("nothing", "there is no folder '.*nothing' with images, and no file of that name"), ("empty.txt", "is empty; it needs one path a line"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_called_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    if name != "nothing":
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 99 if name == "binary.txt" else b"")
    with pytest.raises(ImagesError, match=words) as caught:
        as_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("https://a.b/c.png", "'https://a.b/c.png' is a URL of no tar or Parquet file"), (["s3://a/b.jpg"] * 2, "'s3://a/b.jpg' is a URL of no"),
        ("hf:", "'hf:' lack the name of a data set: hf:NAME or hf:NAME:SPLIT"), ("hf::train", "lack the name of a data set"),
    ],
)  # fmt: skip
def test_what_is_no_source_without_a_file_is_called_what_it_is(images: object, words: str) -> None:
    with pytest.raises(ImagesError, match=words):
        as_source(images)


def skipped(images: object, out: Path) -> dict[str, str]:
    """The reasons of a scan over some images of which one at least is read, by key."""
    from networks import see_through

    atlas = unitscope.scan(see_through(3), images, out, preprocess=SQUARE)
    return {row["key"]: row["reason"] for row in atlas.table("skipped").to_pylist()}


@pytest.mark.parametrize(
    ("path", "reason"),
    [("x" * 300 + ".png", "can't be opened: File name too long"), ("cat/gone.png", "can't be opened: No such file or directory")],
)
def test_one_bad_line_costs_one_image(folder: Path, tmp_path: Path, path: str, reason: str) -> None:
    (folder / "list.txt").write_text(f"{path} a\ncat/000.png b\n")
    assert list(skipped(folder / "list.txt", tmp_path / "atlas").values()) == [reason]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that anybody may look into, in which what has no rights can't be read, even where the tests run as root."""
    folder, user = Path(tempfile.mkdtemp(dir="/tmp")), os.geteuid()
    folder.chmod(0o777)
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    (folder / "locked").chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="rights are other ones there")
def test_what_may_not_be_read_costs_itself_or_is_named(nobody: Path) -> None:
    (nobody / "locked").mkdir()
    for path in ("a.png", "locked/b.png"):
        Image.new("RGB", (9, 9)).save(nobody / path)
    (nobody / "list.txt").write_text("locked/b.png x\na.png y\n")
    (nobody / "locked").chmod(0)
    source = as_source(nobody / "list.txt")
    assert source.read(1).label == "y"
    with pytest.raises(Skipped, match="can't be opened: Permission denied"):
        source.read(0)
    with pytest.raises(ImagesError, match=r"the folder '.*locked' can't be read: Permission denied"):
        as_source(nobody / "locked")
    for images in (nobody / "locked" / "b.png", nobody / "locked" / "in"):
        with pytest.raises(ImagesError, match="there is no folder"):
            as_source(images)


def test_folders_that_a_glob_matches_are_named(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "top.png")
    over = "is a folder that the glob matches: give the folder itself, or a glob of its files"
    assert skipped(str(folder / "*"), tmp_path / "atlas") == {str(folder / "cat"): over, str(folder / "dog"): over}
    with pytest.raises(ImagesError, match=r"matches folders alone, such as '.*cat': give a folder, or a glob of files in it"):
        as_source(str(folder / "[cd]*"))
    assert not as_source(str(folder / "**")).passed_over


def test_two_dots_behind_a_link_lead_where_the_system_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    for folder, colour in ((tmp_path / "real", 10), (tmp_path, 20)):
        Image.new("RGB", (9, 9), (colour, 0, 0)).save(folder / "x.png")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    monkeypatch.chdir(tmp_path)
    source = as_source(["link/../x.png", "real/../x.png", "./real//deep/../../x.png"])
    assert [source.read(image).pixels.getpixel((0, 0))[0] for image in range(3)] == [10, 20, 20]
    assert [source.key(image) for image in range(3)] == ["real/x.png", "x.png", "x.png"]
