"""Lists of images, and what a user may mean by one word."""

import codecs
import os
from pathlib import Path

import pytest
from photographs import write_photographs
from PIL import Image

import unitscope
from unitscope.errors import ImagesError
from unitscope.images import FolderSource, ListSource, as_source, count_of

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


@pytest.mark.parametrize("given", ["{new}", "{new}/..", "list"])
def test_a_list_whose_folder_moved_is_drawn_from_the_new_one(folder: Path, tmp_path: Path, given: str) -> None:
    from networks import see_through

    paths = sorted(folder.rglob("0*.png"))
    before = unitscope.scan(see_through(3), paths, tmp_path / "atlas", preprocess=SQUARE).sheet("0").tobytes()
    new = tmp_path / "far" / "away"
    new.parent.mkdir()
    os.rename(folder, new)
    with pytest.raises(ImagesError, match=r"18 of 18 patches could not be drawn: image '.*' can't be .*--images"):
        unitscope.Atlas(tmp_path / "atlas").sheet("0")
    images = [new / path.relative_to(folder) for path in paths] if given == "list" else given.format(new=new)
    assert unitscope.Atlas(tmp_path / "atlas", images=images).sheet("0").tobytes() == before


def test_globs_and_single_pictures_just_work(folder: Path) -> None:
    assert count_of(as_source(str(folder / "*" / "00?.png"))) == 6
    assert count_of(as_source(str(folder / "**" / "*.png"))) == 7
    assert count_of(as_source(str(folder / "cat" / "000.png"))) == 1
    with pytest.raises(ImagesError, match=r"there are no files '.*\*\.jpg'"):
        as_source(str(folder / "*.jpg"))
    (folder / "odd [1]").mkdir()
    (folder / "odd [1]" / "a.png").write_bytes(b"")
    assert isinstance(as_source(str(folder / "odd [1]")), FolderSource)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.zip", "is a zip archive: unpack it"), ("a.csv", "is a table: give a .txt file"), ("a.md", "can't find images in: give a folder"),
        ("nothing", "there is no folder '.*nothing' with images, and no file of that name"), ("empty.txt", "is empty; it needs one path a line"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_called_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    if name != "nothing":
        (tmp_path / name).write_text("")
    with pytest.raises(ImagesError, match=words) as caught:
        as_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)
