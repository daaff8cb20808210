"""Data sets of a user's own: who reads them, what they may give, and what one bad item costs."""

import re
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import bytes_of
from networks import see_through, small_network
from PIL import Image
from seeking import SIDE, Seeking, pictures, seeking
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder

import unitscope
from unitscope.errors import ImagesError, UnitscopeError
from unitscope.images import DatasetSource, Skipped

HOW = unitscope.Preprocessing((SIDE, SIDE), (SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)


class Items:
    """A data set of what it is given; exceptions are raised."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, image: int) -> Any:
        if isinstance(self.items[image], BaseException):
            raise self.items[image]
        return self.items[image]


def picture(number: int) -> Image.Image:
    return Image.fromarray(pictures(40)[number])


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", ["auto", 0, 1])
def test_a_data_set_is_read_in_the_thread_that_scans(tmp_path: Path, workers: int | str) -> None:
    dataset = seeking(tmp_path)
    atlas = unitscope.scan(small_network(), dataset, tmp_path / "atlas", preprocess=HOW, batch_size=8, workers=workers)
    assert dataset.readers == {threading.get_ident()}
    assert dataset.clashes == 0
    expected = unitscope.scan(
        small_network(), [Image.fromarray(p) for p in pictures(120)], tmp_path / "truth", preprocess=HOW, batch_size=8
    )
    assert atlas.table("peaks").equals(expected.table("peaks"))


def test_whoever_draws_checks_or_attributes_reads_a_data_set_in_his_own_thread(tmp_path: Path) -> None:
    """One that is bound to its thread, as a connection to SQLite is, can be used by nobody else."""
    dataset = seeking(tmp_path)
    atlas = unitscope.scan(small_network(), dataset, tmp_path / "atlas", preprocess=HOW, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atlas.sheet(atlas.layers[0].name)
        atlas.figure()
    assert unitscope.attribute(atlas, "gradient", small_network()) > 0
    assert unitscope.check(atlas, small_network()).differences == []
    assert dataset.readers == {threading.get_ident()}


def test_another_thread_may_scan_and_then_it_reads(tmp_path: Path) -> None:
    dataset = seeking(tmp_path, 40)
    thread = threading.Thread(
        target=unitscope.scan, args=(small_network(), dataset, tmp_path / "atlas"), kwargs={"preprocess": HOW}
    )
    thread.start()
    thread.join()
    assert dataset.readers == {thread.ident}


def test_whoever_else_reads_a_data_set_waits_for_its_turn(tmp_path: Path) -> None:
    """Two halves of one data set, in threads of a user's own."""
    dataset = seeking(tmp_path, 60)
    atlas = unitscope.scan(small_network(), dataset, tmp_path / "atlas", preprocess=HOW, batch_size=8)
    atlas.sheet(atlas.layers[0].name)
    unitscope.attribute(atlas, "gradient", small_network(), layers=["1"])
    halves = [DatasetSource(Subset(dataset, range(start, 60, 2))) for start in (0, 1)]
    pixels_by_number: dict[int, np.ndarray] = {}

    def read(half: int) -> None:
        for number in range(30):
            pixels_by_number[2 * number + half] = np.asarray(halves[half].read(number).pixels)

    threads = [threading.Thread(target=read, args=(half,)) for half in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset.clashes == 0
    for number, pixels in enumerate(pictures(60)):
        np.testing.assert_array_equal(pixels_by_number[number], pixels)
    assert unitscope.check(atlas, small_network()).differences == []


@pytest.mark.slow
def test_several_readers_are_processes_with_copies_and_the_atlas_is_the_same(tmp_path: Path) -> None:
    dataset = seeking(tmp_path)
    alone = unitscope.scan(small_network(), dataset, tmp_path / "alone", preprocess=HOW, batch_size=8)
    dataset.readers.clear()
    unitscope.scan(small_network(), dataset, tmp_path / "several", preprocess=HOW, batch_size=8, workers=2)
    assert dataset.readers <= {threading.get_ident()}  # the first few, which say what kind of images these are
    assert bytes_of(tmp_path / "several") == bytes_of(alone.folder)


def test_a_data_set_that_cannot_be_pickled_has_one_reader_or_a_clear_word() -> None:
    dataset = Items(picture(0), picture(1))
    dataset.handle = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ImagesError, match="this one can't be pickled: TypeError: .*lock.*; leave workers at 'auto'") as caught:
        unitscope.scan(small_network(), dataset, "nowhere", preprocess=HOW, workers=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnitscopeError, match="workers is auto or a number, not 'many'"):
        unitscope.scan(small_network(), dataset, "nowhere", preprocess=HOW, workers="many")


def test_a_data_set_may_give_one_buffer_again_and_again(tmp_path: Path) -> None:
    class OneBuffer:
        buffer = torch.empty(3, 4, 4)

        def __len__(self) -> int:
            return 20

        def __getitem__(self, image: int) -> torch.Tensor:
            return self.buffer.fill_(image)

    atlas = unitscope.scan(see_through(3), OneBuffer(), tmp_path / "atlas", k=20)
    assert sorted(atlas.peaks("0", 1)["value"].to_pylist()) == list(range(20))


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_a_buffer_is_copied_before_another_thread_has_its_turn() -> None:
    class OneBuffer:
        buffer = torch.empty(3, 16, 16)

        def __len__(self) -> int:
            return 24

        def __getitem__(self, image: int) -> torch.Tensor:
            return self.buffer.fill_(image)

    source = DatasetSource(OneBuffer())
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda image: int(np.asarray(source.read(image).pixels)[0, 0, 0]), list(range(24)) * 50))
    assert values == list(range(24)) * 50


def test_a_person_who_stops_a_scan_is_no_bad_item(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(
            small_network(), Items(picture(0), KeyboardInterrupt(), picture(2)), tmp_path / "atlas", preprocess=HOW, batch_size=1
        )


def test_a_data_set_that_changes_its_images_is_told(tmp_path: Path) -> None:
    class Flipping(Items):
        flipped = False

        def __getitem__(self, image: int) -> Image.Image:
            self.flipped = not self.flipped
            return picture(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else picture(image)

    with pytest.warns(UserWarning, match="gives another image each time"):
        atlas = unitscope.scan(small_network(), Flipping(*range(6)), tmp_path / "atlas", preprocess=HOW)
    assert atlas.manifest["read"] == 6


# ── one bad item ────────────────────────────────────────────────────────────────────────────────────────────────────


def damaged(folder: Path) -> Image.Image:
    """A picture that is opened, as data sets do, and can't be decoded."""
    path = folder / "damaged.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return Image.open(path)


BAD: dict[str, tuple[Any, str]] = {
    "none": (None, "gave None"),
    "path": ("cat.jpg", "gave 'cat.jpg'"),
    "key error": (KeyError("gone"), "KeyError: 'gone'"),
    "own error": (type("Odd", (Exception,), {})("what\nnow"), "Odd: what$"),
    "stop": (StopIteration(), "StopIteration"),
    "exit": (SystemExit("reader gave up"), "SystemExit: reader gave up"),
    "panic": (type("Panic", (BaseException,), {})("in Rust"), "Panic: in Rust"),
    "tensor": (torch.zeros(3, SIDE, SIDE), "is a tensor, where the others .* are pictures"),
    "channels last": (np.zeros((SIDE, SIDE, 3), np.float32), "channels last"),
    "uint8": (np.zeros((SIDE, SIDE, 3), np.uint8), r"fromarray"),
    "int64": (np.zeros((SIDE, SIDE), np.int64), r"fromarray"),
    "row without an image": ({"text": "a"}, "'text', none of which holds an image"),
    "row with two": ({"left": picture(0), "right": picture(1)}, "several images in its columns 'left', 'right'"),
    "row with null": ({"image": None}, "gave None"),
    "empty picture": (Image.new("RGB", (0, 5)), "has no pixels"),
    "float picture": (Image.new("F", (9, 9), 0.5), "range isn't known"),
    "word": ("x", "gave 'x'"),
}


@pytest.mark.parametrize(
    ("name", "position"),
    [*((name, 3) for name in (*BAD, "damaged")), ("none", 0), ("tensor", 0), ("key error", 11), ("damaged", 11)],
)
def test_one_bad_item_costs_one_item(tmp_path: Path, name: str, position: int) -> None:
    bad, reason = (damaged(tmp_path), "can't be decoded: .*truncated") if name == "damaged" else BAD[name]
    items = [picture(number) for number in range(12)]
    items[position] = bad
    atlas = unitscope.scan(small_network(), Items(*items), tmp_path / "atlas", preprocess=HOW, batch_size=4)
    assert (atlas.manifest["listed"], atlas.manifest["read"]) == (12, 11)
    (skipped,) = atlas.table("skipped").to_pylist()
    assert skipped["key"] == str(position)
    assert re.search(reason, skipped["reason"]), skipped["reason"]
    if name == "damaged":
        bad.close()


def test_tensors_of_every_float_type_are_taken() -> None:
    types = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    source = DatasetSource(Items(*(torch.full((3, 8, 8), 0.5, dtype=dtype) for dtype in types)))
    for image in range(len(types)):
        np.testing.assert_array_equal(np.asarray(source.read(image).pixels), np.full((3, 8, 8), 0.5, np.float32))


def test_a_tensor_of_another_shape_costs_one_item(tmp_path: Path) -> None:
    for position in (0, 5, 9):
        images = [torch.randn(3, 8, 8) for _ in range(10)]
        images[position] = torch.randn(3, 8, 9)
        atlas = unitscope.scan(see_through(3), Items(*images), tmp_path / f"atlas {position}")
        assert atlas.manifest["read"] == 9
        assert atlas.table("skipped").to_pylist() == [
            {"key": str(position), "reason": "is a tensor of shape (3, 8, 9), where (3, 8, 8) is expected"}
        ]


def test_where_every_item_fails_the_first_reasons_are_quoted(tmp_path: Path) -> None:
    with pytest.raises(
        ImagesError, match=r"none of 4 items is an image that can be read; '0' .*ValueError: a; '2' .*ValueError: b"
    ):
        unitscope.scan(
            small_network(),
            Items(ValueError("a"), ValueError("a"), ValueError("b"), ValueError("b")),
            tmp_path / "atlas",
            preprocess=HOW,
        )
    assert list(tmp_path.iterdir()) == []


# ── labels, rows ────────────────────────────────────────────────────────────────────────────────────────────────────


class Kind(str, Enum):  # noqa: UP042 - older than StrEnum, and its str() is another
    CAT = "cat"


class Number(IntEnum):
    DOG = 1


class Named(Items):
    def __init__(self, classes: Any, *labels: int) -> None:
        super().__init__(*((picture(0), label) for label in labels))
        self.classes = classes


def labels(dataset: Any) -> list[str | None]:
    source = DatasetSource(dataset)
    return [source.read(image).label for image in range(len(source))]


def test_class_names_survive_subsets_splits_and_chains() -> None:
    first, second = Named(["cat", "dog"], 0, 1, 1), Named(["oak", "elm"], 1, 0)
    assert labels(Subset(first, [2, 0])) == ["dog", "cat"]
    assert labels(Subset(Subset(first, [2, 0]), [1])) == ["cat"]
    parts = random_split(first, [2, 1], torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert sorted(str(label) for part in parts for label in labels(part)) == ["cat", "dog", "dog"]
    assert labels(ConcatDataset([first, second])) == ["cat", "dog", "dog", "elm", "oak"]
    assert labels(ConcatDataset([Subset(second, [0]), first])) == ["elm", "cat", "dog", "dog"]


def test_numbers_that_a_wrapper_made_are_not_named_by_the_classes_within() -> None:
    class Even(Dataset[Any]):
        def __init__(self, dataset: Any, indices: Any = None) -> None:
            self.dataset = self.datasets = dataset
            self.indices = self.cumulative_sizes = indices

        def __len__(self) -> int:
            return 3

        def __getitem__(self, image: int) -> Any:
            image_of, label = self.dataset[image]
            return image_of, label % 2

    class EvenSubset(Subset[Any]):
        def __getitem__(self, image: int) -> Any:
            image_of, label = super().__getitem__(image)
            return image_of, label % 2

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[image] for image in indices]

    named = Named(["cat", "dog", "elk"], 2, 1, 0)
    assert labels(Even(named)) == labels(Even(named, [0, 1, 2])) == labels(EvenSubset(named, [0, 1, 2])) == ["0", "1", "0"]
    assert labels(Subset(Even(named), [1, 2])) == ["1", "0"]
    assert labels(type("Renamed", (Subset,), {})(named, [0])) == ["elk"]


def test_numbers_that_a_target_transform_made_are_themselves(tmp_path: Path) -> None:
    for name in ("cat", "dog", "elk"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "a.png")
    assert labels(ImageFolder(str(tmp_path))) == ["cat", "dog", "elk"]
    is_elk = ImageFolder(str(tmp_path), target_transform=lambda number: int(number == 2))
    assert labels(is_elk) == ["0", "0", "1"]
    assert labels(Subset(is_elk, [2, 0])) == ["1", "0"]


@pytest.mark.parametrize(
    ("target", "classes", "label"),
    [
        (1.0, ("cat", "dog"), "dog"), (np.float32(3.0), None, "3"), (0.25, None, "0.25"), (-1, ("cat", "dog"), None), (-1, None, None),
        (torch.tensor(-1), ("cat",), None), (0, [("tench", "Tinca tinca")], "tench, Tinca tinca"), (1, {1: "dog"}, "dog"),
        (0, ["crane", "crane"], "crane (0)"), (1, ["crane", "crane"], "crane (1)"), (float("inf"), None, None), (True, None, "True"),
        (True, ("no", "yes"), "yes"), (object(), None, None), (np.array([1]), None, "1"), (torch.tensor([1]), ("cat", "dog"), "dog"),
        (np.array([[1]]), None, "1"), (np.array([1, 2]), None, None), (Kind.CAT, None, "cat"), (Number.DOG, ("cat", "dog"), "dog"),
        ("", None, None), ("-1", ("cat",), None), (" elk\n", None, "elk"), (np.str_("elk"), None, "elk"), (b"elk", None, None),
    ],
)  # fmt: skip
def test_targets_become_words(target: Any, classes: Any, label: str | None) -> None:
    dataset = Items((picture(0), target))
    dataset.classes = classes  # type: ignore[attr-defined]
    assert labels(dataset) == [label]


@pytest.mark.parametrize(("invalid", "text"), [("caf\udce9", "caf\\xe9"), ("\ud800x", "\\ud800x")])
def test_labels_keys_and_reasons_that_are_no_text_are_written_out(tmp_path: Path, invalid: str, text: str) -> None:
    class Odd(DatasetSource):
        def key(self, image: int) -> str:
            return f"{invalid} {image}"

    dataset = Items((picture(0), invalid), (picture(1), invalid), ValueError(invalid))
    atlas = unitscope.scan(small_network(), Odd(dataset), tmp_path / "atlas", preprocess=HOW)
    assert [row["label"] for row in atlas.table("labels").to_pylist()] == [text]
    assert {row["key"] for row in atlas.table("images").to_pylist()} == {f"{text} 0", f"{text} 1"}
    assert atlas.table("skipped").to_pylist() == [{"key": f"{text} 2", "reason": f"the data set raised ValueError: {text}"}]
    assert atlas.figure().size[0] > 100


def test_rows_take_the_column_called_image_and_the_names_of_a_column_of_classes() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets aren't installed")
    features = datasets.Features(
        {"mask": datasets.Image(), "image": datasets.Image(), "species": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"mask": [picture(2), picture(3)], "image": [picture(0), picture(1)], "species": [1, -1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    source = DatasetSource(dataset)
    np.testing.assert_array_equal(np.asarray(source.read(1).pixels), pictures(40)[1])
    assert labels(dataset) == ["dog", None]
    assert labels(Subset(dataset, [0])) == ["dog"]
    raw = dataset.cast_column("image", datasets.Image(decode=False)).remove_columns("mask")
    np.testing.assert_array_equal(np.asarray(DatasetSource(raw).read(1).pixels), pictures(40)[1])


def test_a_column_that_says_nothing_leaves_the_label_to_the_next() -> None:
    rows = Items({"image": picture(0), "label": None, "class": "elk"}, {"image": picture(1), "label": -1, "class": "elk"})
    assert labels(rows) == ["elk", None]


def test_files_in_rows_are_opened(tmp_path: Path) -> None:
    picture(4).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    rows = Items(
        {"image": {"bytes": content, "path": None}}, {"image": {"bytes": None, "path": str(tmp_path / "a.png")}}, (content, 3)
    )
    images = [DatasetSource(rows).read(number) for number in range(3)]
    assert len({image.content for image in images}) == 1
    for image in images:
        np.testing.assert_array_equal(np.asarray(image.pixels), pictures(40)[4])
    assert images[2].label == "3"


def test_pixels_are_told_apart_by_their_hash() -> None:
    pixels = np.asarray(picture(0))
    pixel_changed = pixels.copy()
    pixel_changed[5, 5, 1] ^= 1
    palettes = [picture(0).quantize(8), picture(0).quantize(8)]
    palettes[1].putpalette([255 - value for value in palettes[0].getpalette()])
    for transparent in (0, 1, bytes([0, 255, 255]), bytes([255, 0, 255])):
        palettes.append(palettes[0].copy())
        palettes[-1].info["transparency"] = transparent
    items = [
        Image.fromarray(pixels), Image.fromarray(pixel_changed), Image.fromarray(pixels.reshape(SIDE * 2, SIDE // 2, 3)), *palettes,
        torch.zeros(3, 4, 4), torch.zeros(3, 2, 8), torch.zeros(3, 2, 8) + 1e-9,
    ]  # fmt: skip
    source = DatasetSource(Items(*items, Image.fromarray(pixels)))
    hashes = [source.content(number) for number in range(len(source))]
    assert len(set(hashes[:-1])) == len(items)
    assert hashes[-1] == hashes[0]


def test_a_data_set_that_seeks_is_what_the_tests_think(tmp_path: Path) -> None:
    """Without a lock, threads do get each other's pictures; else the tests above prove nothing."""
    dataset: Seeking = seeking(tmp_path, 60)

    def read() -> None:
        for number in range(60):
            with suppress(ValueError):  # a read from the file's end is short
                _ = dataset[number]

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset.clashes > 0
    dataset._file.close()
    with pytest.raises(Skipped, match="the data set raised ValueError"):
        DatasetSource(dataset).read(0)
