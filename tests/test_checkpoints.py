"""A scan that is stopped, killed or hindered goes on where it was, and ends with the same bytes."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import pytest
from interruptions import IMAGES, Moody, Told, bytes_of
from networks import small_network
from PIL import Image
from torch import nn

import unitscope
from unitscope.errors import AtlasError, ScanUnfinished
from unitscope.scanning.checkpoint import Checkpoint
from unitscope.scanning.partial_results import PartialResult

SIXTY = IMAGES[:60]


SAVED_OFTEN = {"checkpoint_every_s": 0}
"""A checkpoint after every shard."""


def scan(out: Path, network: nn.Module | None = None, stop_after: int = 1_000, **options: object) -> Told:
    """Scan sixty images in 15 shards, with a checkpoint after each; returns what was told of them."""
    progress = Told(stop_after)
    unitscope.scan(network or small_network(), SIXTY, out, **({"batch_size": 2, "on_images": progress} | SAVED_OFTEN | options))
    return progress


@pytest.mark.parametrize("stop_after", [9, 30, 58])
def test_a_stopped_scan_goes_on_where_it_was(tmp_path: Path, stop_after: int) -> None:
    scan(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "atlas", stop_after=stop_after)
    assert not (tmp_path / "atlas").exists()
    progress = scan(tmp_path / "atlas")
    assert progress[0] % 4 == 0  # whole shards
    assert stop_after - 8 < progress[0] <= stop_after
    assert sum(progress) == 60
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas", "whole"]


def test_a_scan_that_is_stopped_within_a_minute_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "atlas", stop_after=30, checkpoint_every_s=60)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_the_folder_is_removed_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda folder, **_: (folder / "plan.json").unlink(missing_ok=True))
        scan(tmp_path / "atlas")
    shutil.rmtree(tmp_path / "atlas")
    assert sum(scan(tmp_path / "atlas")) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_skipped_images_and_labels_survive(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    for number in range(9):
        (photographs / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number * 20, 90, 200)).save(photographs / f"{number % 2}" / f"{number}.png")
    (photographs / "broken.jpg").write_bytes(b"no image")
    how = unitscope.Preprocessing(None, (14, 14), (0.5,) * 3, (0.5,) * 3)
    options = {"preprocess": how, "batch_size": 1} | SAVED_OFTEN
    unitscope.scan(small_network(), photographs, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(small_network(), photographs, tmp_path / "atlas", on_images=Told(3), **options)
    unitscope.scan(small_network(), photographs, tmp_path / "atlas", **options)
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")


def test_another_plan_is_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "atlas", stop_after=30)
    with pytest.raises(AtlasError, match=r"of another plan: k was 9 and is 4\. Start that one again"):
        scan(tmp_path / "atlas", k=4)
    other = small_network()
    other[0].weight.data[0] += 1
    with pytest.raises(AtlasError, match=r"of another plan: network\.hash was"):
        scan(tmp_path / "atlas", other)
    assert sum(scan(tmp_path / "atlas")) == 60


PICTURES = unitscope.Preprocessing(None, (14, 14), (0.5,) * 3, (0.5,) * 3)


def stopped_and_resumed(first: object, second: object, out: Path) -> None:
    """A scan over some images that is stopped half way, and one over others to the same place."""
    options = {"preprocess": PICTURES, "batch_size": 2} | SAVED_OFTEN
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(small_network(), first, out, on_images=Told(30), **options)
    unitscope.scan(small_network(), second, out, **options)


@pytest.mark.parametrize("changed", [range(60), range(30, 60), range(1), range(59, 60)])
def test_other_images_of_the_same_number_are_refused(tmp_path: Path, changed: range) -> None:
    other = SIXTY.clone()
    other[list(changed)] += 1
    with pytest.raises(AtlasError, match=r"of another plan: the images are others: image \d+") as caught:
        stopped_and_resumed(SIXTY, other, tmp_path / "atlas")
    assert "\n" not in str(caught.value)


class Labelled:
    """Sixty pictures with one label, by its number or as a word."""

    def __init__(self, label: object, classes: object = None) -> None:
        self.label, self.classes = label, classes

    def __len__(self) -> int:
        return 60

    def __getitem__(self, image: int) -> tuple[Image.Image, object]:
        return Image.new("RGB", (20, 20), (image * 4, 90, 200)), self.label


def relabelled(folder: Path, kind: str, label: str) -> object:
    """Sixty images of a kind with that label."""
    if kind == "classes":
        return Labelled(0, [label])
    if kind == "data set":
        return Labelled(label)
    folder.mkdir(exist_ok=True)
    images = [Labelled(label)[number][0] for number in range(60)]
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.cls").write_text(label)
    if kind == "list":
        (folder / "list.txt").write_text("".join(f"{number:02}.png {label}\n" for number in range(60)))
        return folder / "list.txt"
    for number in range(60):
        with tarfile.open(folder / f"{number:02}.tar", "w") as tar:
            tar.add(folder / f"{number:02}.png", "a.png")
            if kind == "tar, labels at its end":
                tar.add(folder / "00.png", "b.png")
            tar.add(folder / f"{number:02}.cls", "a.cls")
    return str(folder / "*.tar")


@pytest.mark.parametrize("kind", ["list", "data set", "classes", "tar", "tar, labels at its end"])
def test_other_labels_are_refused_as_other_images_are(tmp_path: Path, kind: str) -> None:
    options = {"preprocess": PICTURES, "batch_size": 2} | SAVED_OFTEN
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(
            small_network(), relabelled(tmp_path / "a", kind, "old"), tmp_path / "atlas", on_images=Told(30), **options
        )
    with pytest.raises(AtlasError, match="of another plan: labels are others: that of image 0 was 'old' and is 'new'"):
        unitscope.scan(small_network(), relabelled(tmp_path / "a", kind, "new"), tmp_path / "atlas", **options)
    atlas = unitscope.scan(small_network(), relabelled(tmp_path / "a", kind, "old"), tmp_path / "atlas", **options)
    assert atlas.table("labels").to_pylist() == [{"label": "old", "images": 60}]


def test_files_that_were_changed_after_they_were_scanned_are_noticed(tmp_path: Path) -> None:
    """No file of the fingerprint is among them."""
    (tmp_path / "images").mkdir()
    for number in range(60):
        Image.new("RGB", (20, 20), (number * 4, 90, 200)).save(tmp_path / "images" / f"{number:02}.png")
    options = {"preprocess": PICTURES, "batch_size": 2} | SAVED_OFTEN
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(small_network(), tmp_path / "images", tmp_path / "atlas", on_images=Told(30), **options)
    for number in range(1, 8):
        Image.new("RGB", (20, 20), (9, number, 9)).save(tmp_path / "images" / f"{number:02}.png")
    with pytest.raises(AtlasError, match=r"an unfinished scan was of other images: '0\d.png' holds other content than then"):
        unitscope.scan(small_network(), tmp_path / "images", tmp_path / "atlas", **options)


def test_a_folder_that_moved_is_the_same_images_but_another_place(tmp_path: Path) -> None:
    """The list of a moved folder has the same keys; what it says of its folder differs, and that is said."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.new("RGB", (20, 20), (number * 4, 90, 200)).save(tmp_path / name / f"{number:02}.png")
    with pytest.raises(AtlasError, match=r"of another plan: images\.folder was"):
        stopped_and_resumed(tmp_path / "one", tmp_path / "two", tmp_path / "atlas")


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "atlas", stop_after=30)
    path = tmp_path / ".atlas.scan" / "checkpoint"
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-5], "empty": b"", "changed": content[:500] + bytes([content[500] ^ 1]) + content[501:]}[damage]
    )
    with pytest.raises(AtlasError, match="is damaged .*; remove the folder .* to scan from the beginning"):
        scan(tmp_path / "atlas")
    shutil.rmtree(tmp_path / ".atlas.scan")
    assert sum(scan(tmp_path / "atlas")) == 60


@pytest.mark.parametrize("damaged", ["{", "[1]", "null"])
def test_a_damaged_plan_is_refused_too(tmp_path: Path, damaged: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "atlas", stop_after=30)
    (tmp_path / ".atlas.scan" / "plan.json").write_text(damaged)
    with pytest.raises(AtlasError, match=r"plan\.json' is damaged; remove the folder"):
        scan(tmp_path / "atlas")


def test_of_two_scans_into_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "atlas", {}).locked() as first:
        with pytest.raises(AtlasError, match="another scan is writing to .* right now"):
            scan(tmp_path / "atlas")
        assert first.folder.exists()
    assert not first.folder.exists()
    assert sum(scan(tmp_path / "atlas")) == 60


def test_a_scan_killed_when_its_atlas_was_there_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "remove", lambda _: None)
        scan(tmp_path / "atlas")
    assert (tmp_path / ".atlas.scan").exists()
    with pytest.raises(AtlasError, match="already holds an atlas"):
        scan(tmp_path / "atlas")
    assert not (tmp_path / ".atlas.scan").exists()


def test_saving_takes_less_than_a_hundredth_of_the_time(tmp_path: Path) -> None:
    """On a clock on which a save takes 20 s and a scan offers its result every second."""
    seconds = [0.0]

    class Slow(Checkpoint):
        saved_at: ClassVar[list[float]] = []

        def save(self, result: PartialResult) -> None:
            self.saved_at.append(seconds[0])
            seconds[0] += 20

    with Slow(tmp_path / "atlas", {}, save_every_s=60, clock=lambda: seconds[0]).locked() as checkpoint:
        while seconds[0] < 9_000:
            checkpoint.offer(PartialResult.empty(1, 1, 5))
            seconds[0] += 1
    assert Slow.saved_at == [60, 2080, 4100, 6120, 8140]


def test_a_shard_that_fails_leaves_the_others_alone_and_is_tried_again(tmp_path: Path) -> None:
    scan(tmp_path / "whole", Moody())
    with pytest.raises(
        ScanUnfinished, match=r"8 images in 2 shards could not be scanned, among them '8' to '11': RuntimeError: I don't like"
    ):
        scan(tmp_path / "atlas", Moody((10, 30)))
    assert not (tmp_path / "atlas").exists()
    progress = scan(tmp_path / "atlas", Moody())
    assert progress == [52, 4, 4]
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")


def test_where_every_shard_fails_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ScanUnfinished, match="nothing could be scanned: RuntimeError: I don't like that one"):
        scan(tmp_path / "atlas", Moody(tuple(range(60))))
    assert list(tmp_path.iterdir()) == []


FORKS = """
import os, random, shutil, signal, sys, time
from pathlib import Path

sys.path.insert(0, "tests")
import torch
import torch._dynamo  # what torch loads late would be loaded again in every child
from interruptions import bytes_of
from networks import small_network
from test_checkpoints import SIXTY
import unitscope
torch.set_num_threads(1)  # threads don't survive a fork
place, kills, whole, started = Path(sys.argv[1]), 0, 0, 0
chance = random.Random(0)


def child(out):
    pid = os.fork()
    if pid == 0:
        unitscope.scan(small_network(), SIXTY, out, batch_size=2, workers=1, checkpoint_every_s=0)
        os._exit(0)
    return pid


def finished(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


begun = time.monotonic()
assert finished(child(place / "undisturbed"), 60)
length = time.monotonic() - begun
expected = bytes_of(place / "undisturbed")
resumed = False
while kills < 100:
    if finished(child(place / "atlas"), chance.random() * length * 1.1) or (place / "atlas").exists():
        assert bytes_of(place / "atlas") == expected
        whole += resumed
        resumed = False
        shutil.rmtree(place / "atlas")
    else:
        kills += 1
        resumed = resumed or (place / ".atlas.scan" / "checkpoint").exists()
assert finished(child(place / "atlas"), 60) and bytes_of(place / "atlas") == expected
left = [path.name for path in place.iterdir() if path.name.endswith(".scan")]
print(f"{kills} kills, {whole} scans ended after some, left over: {left}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_hundred_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    kills, ended = ran.stdout.split()[0], int(ran.stdout.split()[2])
    assert kills == "100"
    assert ended > 5  # or the kills never came in the middle
    assert ran.stdout.endswith("left over: []\n")
