"""One network at several epochs of its training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from networks import see_through
from photographs import write_photographs
from PIL import Image
from planted import AS_IT_IS as PLANTED
from planted import planted_images, planted_network
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, NetworkError
from unitscope.experiments import Evolution, evolve
from unitscope.experiments.settling import overlap_and_jumps
from unitscope.records import Preprocessing

AS_IT_IS = Preprocessing(None, (24, 24), (0.5,) * 3, (0.25,) * 3)
NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(5 * 11 * 11, 2),
    )
"""


def network_of(folder: Path) -> tuple[str, nn.Module]:
    (folder / "net.py").write_text(NETWORK)
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    return f"{folder / 'net.py'}:net", space["net"]()


def checkpoints(folder: Path, network: nn.Module, count: int = 3) -> list[Path]:
    """The network with its last convolution changed more and more."""
    paths = []
    for number in (1, 2, 10)[:count]:
        with torch.no_grad():
            convolution: Any = network.get_submodule("3")
            convolution.weight += torch.randn(convolution.weight.shape, generator=torch.Generator().manual_seed(number)) / 4
        paths.append(folder / f"epoch-{number}.pt")
        torch.save(network.state_dict(), paths[-1])
    return paths


def test_checkpoints_become_a_family_of_atlases(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 14, (24, 24))
    paths = checkpoints(tmp_path, network)
    evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    assert list(evolution.atlases) == ["epoch-1", "epoch-2", "epoch-10"]
    rows = evolution.settling().to_pylist()
    assert {row["before"] for row in rows} == {"epoch-1", "epoch-2"}
    assert all(row["overlap"] == 1 and row["jumps"] == 0 for row in rows if row["layer"] == "2")  # its weights stay
    assert any(row["overlap"] < 1 for row in rows if row["layer"] == "4")
    assert pq.read_table(tmp_path / "out" / "evolution.parquet").to_pylist() == rows
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/**/*.parquet")}
    repeated = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/**/*.parquet")} == written
    figure = np.asarray(repeated.figure(size_px=40))
    assert figure.shape[1] > 3 * 40
    assert (figure == (226, 112, 58)).all(2).any()  # a jump
    followed = [atlas.attributed("deconvnet") for atlas in evolution.atlases.values()]
    assert followed[0]
    assert followed[0] == followed[1] == followed[2]


def test_checkpoints_come_in_the_order_given(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    names = ("start", "middle", "end")
    paths = [path.rename(tmp_path / f"{name}.pt") for path, name in zip(checkpoints(tmp_path, network), names, strict=True)]
    evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    assert tuple(evolution.atlases) == tuple(Evolution.open(tmp_path / "out").atlases) == names
    with pytest.raises(AtlasError, match="start' holds an atlas of other layers; give another out"):
        evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)


def test_one_layer_alone_is_the_same_as_in_a_list(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    paths = checkpoints(tmp_path, network, 1)
    for layers in ("2", "2", ["2"], ("2",)):
        evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=layers)
        assert [layer.name for layer in evolution.last.layers] == ["2"]
    assert evolution.figure(layers="2", size_px=24).tobytes() == evolution.figure(layers=["2"], size_px=24).tobytes()


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("files", ["c1.pt", Path("c1.pt"), 3, None], ids=repr)
def test_checkpoints_that_are_no_list_are_named(tmp_path: Path, files: Any) -> None:
    with pytest.raises(AtlasError, match="^checkpoints must be a list of files, from early to late, not .*"):
        evolve("net.py:net", files, tmp_path, tmp_path / "out")


def test_two_sets_of_weights_in_one_file_are_two_checkpoints(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    averaged = {name: tensor / 2 if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": network.state_dict(), "ema": averaged}, tmp_path / "last.pt")
    paths = [f"{tmp_path / 'last.pt'}:{key}" for key in ("model", "ema")]
    evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    assert list(evolution.atlases) == ["last-model", "last-ema"]
    assert evolution.last.manifest["network"]["weights"] == paths[1]


def test_overlap_and_jumps_by_hand() -> None:
    def peaks(*rows: tuple[int, int, int]) -> pa.Table:
        return pa.table({name: [row[index] for row in rows] for index, name in enumerate(("unit", "rank", "image"))})

    before = peaks((0, 1, 5), (0, 2, 6), (1, 1, 5))
    after = peaks((0, 1, 6), (0, 2, 7), (2, 1, 1))
    overlap, jumps = overlap_and_jumps(before, after, 4)
    assert overlap == pytest.approx((0.5 + 0 + 0) / 3)
    assert jumps == 1
    assert overlap_and_jumps(before, before, 4) == (1, 0)


def test_what_doesnt_belong_together_is_refused(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    with pytest.raises(AtlasError, match="holds no atlases; make them with: unitscope evolve"):
        Evolution.open(tmp_path)
    paths = checkpoints(tmp_path, network, 2)
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / paths[0].name
    twin.write_bytes(paths[0].read_bytes())
    with pytest.raises(AtlasError, match="two checkpoints have the name 'epoch-1'"):
        evolve(model, [paths[0], twin], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    evolve(model, paths[:1], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    twin.write_bytes(paths[1].read_bytes())
    with pytest.raises(AtlasError, match="holds an atlas of other weights"):
        evolve(model, [twin], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    unitscope.scan(network, photographs, tmp_path / "out" / "more", preprocess=AS_IT_IS, layers=["2"])
    with pytest.raises(AtlasError, match="has other layers than"):
        Evolution.open(tmp_path / "out")


def test_all_checkpoints_are_tried_before_any_is_scanned(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    first, second = checkpoints(tmp_path, network, 2)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    for name, message in (("missing.pt", "there is no weights file"), ("broken.pt", "'.*broken.pt'"), ("other.pt", "don't fit")):
        with pytest.raises(NetworkError, match=message):
            evolve(model, [first, tmp_path / name], photographs, tmp_path / "out", preprocess=AS_IT_IS)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out" / second.stem).mkdir(parents=True)
    (tmp_path / "out" / second.stem / "mine.txt").touch()
    with pytest.raises(AtlasError, match="epoch-2' is not empty"):
        evolve(model, [first, second], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    assert not (tmp_path / "out" / first.stem).exists()
    with pytest.raises(AtlasError, match="needs at least one checkpoint"):
        evolve(model, [], photographs, tmp_path / "out", preprocess=AS_IT_IS)


# ── images that aren't the same in all epochs ───────────────────────────────────────────────────────────────────────


def scanned_epochs(folder: Path, unreadable: list[list[int]], network: nn.Module, k: int = 9) -> Evolution:
    """The same weights over the same folder, in which other files are damaged at each epoch."""
    photographs = write_photographs(folder / "photographs", 14, (24, 24))
    paths = sorted(photographs.rglob("*.png"))
    whole = {path: path.read_bytes() for path in paths}
    for epoch, numbers in enumerate(unreadable):
        for number, path in enumerate(paths):
            path.write_bytes(b"" if number in numbers else whole[path])
        unitscope.scan(network, photographs, folder / "out" / f"epoch-{epoch}", k=k, preprocess=AS_IT_IS, layers=["2", "4"])
    for path in paths:
        path.write_bytes(whole[path])
    return Evolution.open(folder / "out")


@pytest.mark.parametrize("unreadable", [[[], [3]], [[3], []], [[], [0, 1, 2, 5, 8, 13]], [[4, 7], [7, 11], [1]]])
def test_unchanged_weights_dont_change_where_some_images_cant_be_read(tmp_path: Path, unreadable: list[list[int]]) -> None:
    _, network = network_of(tmp_path)
    evolution = scanned_epochs(tmp_path, unreadable, network)
    lost = set().union(*map(set, unreadable)) - set.intersection(*map(set, unreadable))
    with pytest.warns(
        UserWarning, match=f"^{len(lost)} of 14 images could be read at some checkpoints only, such as '.*': overlaps"
    ):
        rows = evolution.settling().to_pylist()
    assert {(row["overlap"], row["jumps"]) for row in rows} == {(1, 0)}
    figure = np.asarray(evolution.figure(size_px=40))
    assert not (figure == (226, 112, 58)).all(2).any()  # a jump


def test_an_image_that_no_epoch_could_read_is_nothing_to_warn_of(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    rows = scanned_epochs(tmp_path, [[3], [3]], network).settling().to_pylist()
    assert {(row["overlap"], row["jumps"]) for row in rows} == {(1, 0)}


def test_overlap_is_that_of_scans_over_the_shared_images_alone(tmp_path: Path) -> None:
    """Against scans of the images that both could read, in which every unit's whole order is known."""
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 14, (24, 24))
    paths = sorted(photographs.rglob("*.png"))
    lost, whole = (2, 6, 9), {path: path.read_bytes() for path in paths}
    shared = [str(path) for number, path in enumerate(paths) if number not in lost]
    orders = []
    for epoch in range(2):
        unitscope.scan(network, shared, tmp_path / f"whole-{epoch}", k=14, preprocess=AS_IT_IS, layers=["4"])
        orders.append(Atlas(tmp_path / f"whole-{epoch}"))
        unitscope.scan(network, photographs, tmp_path / "out" / f"epoch-{epoch}", k=4, preprocess=AS_IT_IS, layers=["4"])
        for number in lost:
            paths[number].write_bytes(b"")
        with torch.no_grad():
            convolution: Any = network.get_submodule("3")
            convolution.weight += torch.randn(convolution.weight.shape, generator=torch.Generator().manual_seed(7)) / 4
    evolution = Evolution.open(tmp_path / "out")
    overlaps, jumps = [], []
    for unit in range(5):
        images = evolution.atlases["epoch-0"].peaks("4", unit)["image"].to_pylist()
        known = 4 - len(set(images) & set(lost)) if len(images) == 4 else 4
        tops = [[row["image"] for row in atlas.peaks("4", unit).slice(0, known).to_pylist()] for atlas in orders]
        if any(tops):
            overlaps.append(len(set(tops[0]) & set(tops[1])) / max(map(len, tops)))
        if all(tops):
            jumps.append(tops[0][0] != tops[1][0])
    with pytest.warns(UserWarning, match="^3 of 14 images could be read at some checkpoints only"):
        (row,) = evolution.settling().to_pylist()
    assert row["overlap"] == pytest.approx(np.mean(overlaps))
    assert row["jumps"] == pytest.approx(np.mean(jumps))
    for path in paths:
        path.write_bytes(whole[path])


def test_images_that_were_replaced_are_left_out(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 14, (24, 24))
    replaced = sorted(photographs.rglob("*.png"))[5]
    for epoch in range(2):
        unitscope.scan(network, photographs, tmp_path / "out" / f"epoch-{epoch}", preprocess=AS_IT_IS, layers=["2"])
        Image.effect_noise((24, 24), 200).convert("RGB").save(replaced)
    with_content(tmp_path / "out" / "epoch-0", {})
    with_content(tmp_path / "out" / "epoch-1", {str(replaced.relative_to(photographs)): 7})
    with pytest.warns(UserWarning, match="^1 of 14 images were replaced in between, such as 'cat/010.png'"):
        rows = Evolution.open(tmp_path / "out").settling().to_pylist()
    assert {(row["overlap"], row["jumps"]) for row in rows} == {(1, 0)}


class Kept:
    """Tensors that may be replaced."""

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, image: int) -> torch.Tensor:
        return self.images[image]


def recorded(folder: Path, replace: Any) -> Evolution:
    """The same weights over the same images twice; in between `replace` is called with them and the first atlas."""
    network, images = see_through(3, nn.ReLU()), Kept(120)
    first = unitscope.scan(network, images, folder / "first", k=4, sample=10)
    replace(images.images, first)
    unitscope.scan(network, images, folder / "second", k=4, sample=10)
    return Evolution.open(folder, images=images)


def mentioned(atlas: Atlas) -> set[int]:
    return set(atlas.table("images")["image"].to_pylist())


def test_replaced_images_that_no_later_atlas_mentions_are_told(tmp_path: Path) -> None:
    def replace(images: torch.Tensor, atlas: Atlas) -> None:
        images[sorted(mentioned(atlas) - set(atlas.sample("1")["image"].to_pylist()))] = 0

    evolution = recorded(tmp_path, replace)
    with pytest.warns(
        UserWarning, match="^images were replaced between 'first' and 'second' that the atlases don't name: "
    ) as warned:
        rows = evolution.settling().to_pylist()
    assert len(warned) == 1
    assert rows[0]["overlap"] < 1


def test_an_image_that_no_atlas_mentions_is_told_when_it_was_replaced(tmp_path: Path) -> None:
    def replace(images: torch.Tensor, atlas: Atlas) -> None:
        images[min(set(range(120)) - mentioned(atlas))] = 0

    with pytest.warns(UserWarning, match="^images were replaced between 'first' and 'second' that the atlases don't name: "):
        rows = recorded(tmp_path, replace).settling().to_pylist()
    assert {row["overlap"] for row in rows} == {1}  # the atlases mention none of what was replaced


def test_images_that_all_atlases_mention_are_named_alone_when_they_were_replaced(tmp_path: Path) -> None:
    def replace(images: torch.Tensor, atlas: Atlas) -> None:
        images[atlas.sample("1")["image"].to_pylist()[:3]] *= 0.5

    with pytest.warns(UserWarning, match="^3 of 120 images were replaced in between, such as ") as warned:
        rows = recorded(tmp_path, replace).settling().to_pylist()
    assert len(warned) == 1
    assert {(row["overlap"], row["jumps"]) for row in rows} == {(1, 0)}


def test_images_that_stay_are_nothing_to_warn_of(tmp_path: Path) -> None:
    rows = recorded(tmp_path, lambda images, atlas: None).settling().to_pylist()
    assert {(row["overlap"], row["jumps"]) for row in rows} == {(1, 0)}


def with_content(folder: Path, changed: dict[str, int]) -> None:
    """Put a hash into the column of an atlas's images: 1, but for some keys; the atlas has no total, as those from before there was one."""
    manifest = json.loads((folder / "atlas.json").read_text())
    del manifest["images"]["contents"]
    (folder / "atlas.json").write_text(json.dumps(manifest))
    table = pq.read_table(folder / "images.parquet")
    contents = pa.array([changed.get(key, 1) for key in table["key"].to_pylist()], pa.uint64())
    pq.write_table(table.set_column(table.schema.get_field_index("content"), "content", contents), folder / "images.parquet")


@pytest.mark.slow
def test_the_command_line_evolves(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 8, (24, 24))
    paths = [str(path) for path in checkpoints(tmp_path, network)]
    out = tmp_path / "out"
    arguments = [*paths, "--model", model, "--images", str(photographs), "--out", str(out)]
    sizes = ["--crop", "24", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    done = subprocess.run(
        [sys.executable, "-m", "unitscope", "evolve", *arguments, *sizes], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "overlap" in done.stdout
    with Image.open(out / "figure.png") as figure:
        assert figure.width > 300
    assert isinstance(Atlas(out / "epoch-10"), Atlas)


def test_units_that_show_no_preference_do_not_count_in_settling(tmp_path: Path) -> None:
    """Unit 0 ties at the first checkpoint and is dead at the second, which says nothing of how far the layer has settled."""
    images, network = planted_images(tmp_path / "images"), planted_network()
    unitscope.scan(network, images, tmp_path / "run" / "epoch-1", preprocess=PLANTED)
    with torch.no_grad():
        network[0].weight[0] = -1
    unitscope.scan(network, images, tmp_path / "run" / "epoch-2", preprocess=PLANTED)
    evolution = Evolution.open(tmp_path / "run")
    assert {row["layer"]: row["overlap"] for row in evolution.settling().to_pylist()} == {"1": 1.0, "3": 1.0}
    assert evolution.figure(layers=["1"]).size
