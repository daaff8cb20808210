"""The protocol of image sources: folders, lists, data sets, archives and a user's own source all keep to it."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from networks import see_through
from PIL import Image

import unitscope
from unitscope.errors import ImagesError, UnitscopeError
from unitscope.images import (
    DatasetSource,
    FolderSource,
    ImageSource,
    Item,
    ListSource,
    NumberedSource,
    Skipped,
    SourceImage,
    as_source,
    reopen,
    same_images,
)

SIZE_PX = (20, 24)
COUNT = 5
DAMAGED = 3
"""The number of the image that can't be read, in those sources that may have one."""
LABELS = ["cat", "cat", "dog", "dog", "dog"]


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*SIZE_PX, 3), dtype=np.uint8))


def encoded(number: int) -> bytes:
    """The bytes of a PNG file, or of no image at all."""
    if number == DAMAGED:
        return b"no image"
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


def write_folder(folder: Path) -> list[Path]:
    """Five files, two of cats and three of dogs."""
    paths = [folder / label / f"{number}.png" for number, label in enumerate(LABELS)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return paths


def every_item(source: ImageSource) -> list[Item]:
    return [item for shard in source.shards(images_per_shard=2) for item in source.items(shard)]


class ImageSourceContract:
    """What every source must do. A subclass makes one of the five images above; `shard_sizes` says how it cuts them into shards of two."""

    shard_sizes = (2, 2, 1)
    labels: tuple[str | None, ...] = tuple(LABELS)
    damaged: int | None = DAMAGED

    def source(self, folder: Path) -> ImageSource:
        raise NotImplementedError

    def reason(self, source: ImageSource, image: int) -> str:
        with pytest.raises(Skipped) as caught:
            source.read(image)
        return str(caught.value)

    def test_it_is_a_source_and_is_taken_as_it_is(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        assert isinstance(source, ImageSource)
        assert as_source(source) is source

    def test_shards_give_every_image_once_in_order_with_its_number_and_key(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        shards = list(source.shards(images_per_shard=2))
        items = [list(source.items(shard)) for shard in shards]
        assert [shard.number for shard in shards] == list(range(len(self.shard_sizes)))
        assert tuple(map(len, items)) == self.shard_sizes
        for shard, of_shard in zip(shards, items, strict=True):
            assert all(shard.start <= item.image < shard.stop for item in of_shard)
        flat = [item for of_shard in items for item in of_shard]
        assert [item.image for item in flat] == sorted({item.image for item in flat})
        assert len({item.key for item in flat}) == COUNT
        assert [source.key(item.image) for item in flat] == [item.key for item in flat]

    def test_an_image_is_the_same_by_its_item_and_by_its_number_and_a_second_time(self, tmp_path: Path) -> None:
        first, second = self.source(tmp_path), self.source(tmp_path)
        for item, label in zip(every_item(first), self.labels, strict=True):
            if item.image == self.damaged:
                assert self.reason(first, item.image) == self.reason(second, item.image)
                continue
            images = [item.read(), first.read(item.image), second.read(item.image)]
            assert [image.label for image in images] == [label] * 3
            assert len({image.content for image in images}) == 1
            for image in images:
                np.testing.assert_array_equal(np.asarray(image.pixels), np.asarray(images[0].pixels))
            assert first.content(item.image) in (None, images[0].content)
            assert first.label(item.image) == label

    def test_labels_that_cost_nothing_are_those_of_the_images(self, tmp_path: Path) -> None:
        assert self.source(tmp_path).labels() in (None, list(self.labels))

    def test_it_counts_or_says_that_nobody_has(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        if source.count() is None:
            for limited in (source.count, source.hash, source.fingerprint, source.fingerprint_labels):
                with pytest.raises(UnitscopeError, match="limit is for images that are numbered"):
                    limited(3)
            with pytest.raises(UnitscopeError, match="limit is for images that are numbered"):
                source.shards(2, 3)
        else:
            assert [source.count(), source.count(3), source.count(99)] == [COUNT, 3, COUNT]
            assert [item.image for shard in source.shards(2, 3) for item in source.items(shard)] == [0, 1, 2]

    def test_an_image_is_found_by_its_key(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        keys = {item.image: item.key for item in every_item(source)}
        for image, key in keys.items():
            assert source.find(key) == image
            assert source.has(image, key)
            assert not source.has(image, "elsewhere/nothing.png")
        assert not source.has(1 << 40, keys[0])
        assert source.find("elsewhere/nothing.png") is None

    def test_two_of_the_same_images_have_one_hash_and_one_fingerprint(self, tmp_path: Path) -> None:
        first, second = self.source(tmp_path), self.source(tmp_path)
        assert first.hash() == second.hash()
        assert first.fingerprint() == second.fingerprint()
        assert same_images({"hash": first.hash(), "fingerprint": first.fingerprint()}, second)
        assert not same_images({"hash": "0" * 64}, second)
        if first.count() is not None:
            assert first.hash(COUNT) == first.hash() != first.hash(3)

    def test_a_fingerprint_is_of_what_some_images_hold_and_labels_are_those_of_the_same(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        fingerprint, labels = source.fingerprint(), source.fingerprint_labels()
        assert fingerprint.keys() == labels.keys()
        by_number = dict(zip([item.image for item in every_item(source)], self.labels, strict=True))
        for image, content in fingerprint.items():
            if int(image) == self.damaged:
                assert labels[image] in (None, by_number[int(image)])
            else:
                assert content == f"{source.read(int(image)).content:016x}"
                assert labels[image] == (by_number[int(image)] or "")

    def test_what_an_atlas_keeps_is_plain_and_names_the_kind(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        description = dict(source.description)
        assert json.loads(json.dumps(description)) == description
        assert isinstance(description["kind"], str)
        assert dict(source.passed_over) == {}

    def test_a_copy_in_another_process_gives_the_same(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        source.find("fills whatever is kept")
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert [item.key for item in every_item(copy)] == [item.key for item in every_item(source)]
        assert copy.hash() == source.hash()

    def test_it_says_what_was_not_scanned(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        shards = list(source.shards(images_per_shard=2))
        assert "could not be scanned" in source.unscanned_text(shards[-1:])
        assert source.empty_text().startswith("there are no images")
        assert source.noun in ("files", "items")

    def test_a_scan_reads_it_all(self, tmp_path: Path) -> None:
        source, height, width = self.source(tmp_path), *SIZE_PX
        atlas = unitscope.scan(
            see_through(3),
            source,
            tmp_path / "atlas",
            preprocess=unitscope.Preprocessing(None, (height, width), (0.5,) * 3, (0.5,) * 3),
        )
        assert (atlas.manifest["listed"], atlas.manifest["read"]) == (COUNT, COUNT if self.damaged is None else COUNT - 1)
        readable = [label for number, label in enumerate(self.labels) if self.damaged is None or number != DAMAGED]
        assert {row["label"]: row["images"] for row in atlas.table("labels").to_pylist()} == {
            label: readable.count(label) for label in readable if label is not None
        }
        drawn = unitscope.Atlas(
            tmp_path / "atlas", images=self.source(tmp_path)
        ).figure()  # a patch that lacks its image is a warning
        assert drawn.tobytes() == atlas.figure().tobytes()


class TestFolder(ImageSourceContract):
    def source(self, folder: Path) -> ImageSource:
        write_folder(folder / "images")
        return as_source(folder / "images")

    def test_it_is_opened_again_from_its_description(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        assert isinstance(source, FolderSource)
        assert reopen(source.description).hash() == source.hash()


class TestList(ImageSourceContract):
    def source(self, folder: Path) -> ImageSource:
        return ListSource([str(path) for path in write_folder(folder / "images")], labels=LABELS)

    def test_it_is_opened_again_from_its_description(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        assert reopen(source.description).hash() == source.hash()


class Pictures:
    """A map-style data set in torchvision's manner."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, image: int) -> tuple[Image.Image, int]:
        if image == DAMAGED:
            raise OSError("disk on fire")
        return picture(image), self.classes.index(LABELS[image])


class TestDatasetOfPictures(ImageSourceContract):
    def source(self, folder: Path) -> ImageSource:
        return DatasetSource(Pictures())


class TestDatasetOfTensors(ImageSourceContract):
    labels = (None,) * COUNT
    damaged = None

    def source(self, folder: Path) -> ImageSource:
        height, width = SIZE_PX
        return DatasetSource(torch.arange(COUNT * 3 * height * width, dtype=torch.float32).reshape(COUNT, 3, height, width))


class TestTar(ImageSourceContract):
    """Two files, of three images and of two; the number of an image begins with that of its file."""

    shard_sizes = (3, 2)
    damaged = 1 << 32

    def source(self, folder: Path) -> ImageSource:
        for file, numbers in (("a.tar", (0, 1, 2)), ("b.tar", (3, 4))):
            with tarfile.open(folder / file, "w") as tar:
                for number in numbers:
                    member = tarfile.TarInfo(f"{LABELS[number]}/{number}.png")
                    member.size = len(encoded(number))
                    tar.addfile(member, io.BytesIO(encoded(number)))
        return as_source(str(folder / "[ab].tar"))

    def test_it_is_opened_again_from_its_description(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        assert reopen(source.description).hash() == source.hash()


class TestParquet(ImageSourceContract):
    shard_sizes = (3, 2)
    damaged = 1 << 32

    def source(self, folder: Path) -> ImageSource:
        for file, numbers in (("a.parquet", (0, 1, 2)), ("b.parquet", (3, 4))):
            rows = {"image": [encoded(number) for number in numbers], "label": [LABELS[number] for number in numbers]}
            pq.write_table(pa.table(rows), folder / file)
        return as_source(str(folder / "[ab].parquet"))


class OwnSource(NumberedSource):
    """A source of somebody's own, with no more than it must have."""

    def __len__(self) -> int:
        return COUNT

    def read(self, image: int) -> SourceImage:
        if image == DAMAGED:
            raise Skipped("is under water")
        return SourceImage(picture(image), LABELS[image], content=image)


class TestOwnSource(ImageSourceContract):
    def source(self, folder: Path) -> ImageSource:
        return OwnSource()

    def test_an_atlas_can_not_open_it_again_and_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match=r"a data set of type .*OwnSource; give it again"):
            reopen(self.source(tmp_path).description)


def test_a_class_that_keeps_to_the_protocol_is_a_source_without_subclassing_anything() -> None:
    members = {name: getattr(OwnSource, name) for name in dir(OwnSource) if not name.startswith("_")}
    source = type("Plain", (), members | {"__len__": OwnSource.__len__})()
    assert not isinstance(source, NumberedSource)
    assert isinstance(source, ImageSource)
    assert as_source(source) is source


WORDNET_NAMES = ("n02084071_4.png", "n02084071_17.PNG", "n02121620_cat.png", "holiday.png", "n12_1.png")


@pytest.fixture
def named_by_wordnet(tmp_path: Path) -> Path:
    """A flat folder of pictures, a list of them, and an archive."""
    (tmp_path / "flat").mkdir()
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for number, name in enumerate(WORDNET_NAMES):
            picture(number).save(tmp_path / "flat" / name, "PNG")
            archive.add(tmp_path / "flat" / name, name)
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path / 'flat' / name}\n" for name in WORDNET_NAMES))
    return tmp_path


@pytest.mark.parametrize("kind", ["flat", "list.txt", "shard.tar"])
def test_a_name_that_begins_with_a_wordnet_id_has_that_as_its_label(kind: str, named_by_wordnet: Path) -> None:
    atlas = unitscope.scan(
        see_through(3),
        str(named_by_wordnet / kind),
        named_by_wordnet / "atlas",
        preprocess=unitscope.Preprocessing(20, (20, 20), (0.5,) * 3, (0.5,) * 3),
    )
    labels = {row["key"].rpartition("/")[2]: row["label"] for row in atlas.table("images").to_pylist()}
    assert labels == dict(zip(WORDNET_NAMES, ["n02084071", "n02084071", "n02121620", None, None], strict=True))
