"""Colour or shape, covering, moving and probing: known answers on networks whose weights are set by hand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from networks import small_network
from photographs import write_photographs
from PIL import Image
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, ImagesError, NetworkError
from unitscope.experiments import colour_or_shape, invariance, occlude, probe
from unitscope.experiments.colour_shape import changes
from unitscope.experiments.transformations import Transformation, transformations
from unitscope.images import FolderSource, ListSource, SourceImage
from unitscope.records import Preprocessing

PLAIN = Preprocessing(None, (40, 40), (0.0,) * 3, (1.0,) * 3)
CENTRED = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)


def by_hand() -> nn.Sequential:
    """Unit 0 looks for red rather than green and blue, 1 for a bright place, 2 for an edge between columns, 3 for nothing."""
    convolution = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, :, 1, 1] = torch.tensor([1.0, -0.5, -0.5])
        convolution.weight[1, :, 1, 1] = torch.tensor([0.299, 0.587, 0.114])
        convolution.weight[2, :, :, 0], convolution.weight[2, :, :, 2] = -1.0, 1.0
        convolution.bias.zero_()
        convolution.bias[3] = -1000
    return nn.Sequential(convolution, nn.ReLU())


def colourful(folder: Path, count: int = 12) -> Path:
    """Sharp squares of strong colours."""
    rng = np.random.default_rng(1)
    for image in range(count):
        label_folder = folder / ("cat", "dog")[image % 2]
        label_folder.mkdir(parents=True, exist_ok=True)
        tiles = rng.integers(0, 2, (8, 8, 3), dtype=np.uint8) * 255
        Image.fromarray(tiles).resize((40, 40), Image.Resampling.NEAREST).save(label_folder / f"{image:02}.png")
    return folder


def rows_of(table: Any, layer: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["layer"] == layer]


# ── colour or shape ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_unit_that_dies_in_grey_looks_for_colour(tmp_path: Path) -> None:
    network = by_hand()
    atlas = unitscope.scan(network, colourful(tmp_path / "images"), tmp_path / "atlas", preprocess=PLAIN, workers=0)
    table = colour_or_shape(atlas, network)
    colour, bright, edge, dead = rows_of(table, "1")
    assert colour["grey"] == pytest.approx(0, abs=1e-5)
    assert bright["grey"] == pytest.approx(1, abs=1e-5)
    assert bright["mirrored"] == colour["mirrored"] == pytest.approx(1, abs=1e-5)
    assert edge["blurred"] < bright["blurred"] <= 1.001
    assert (dead["peaks"], dead["grey"], dead["mirrored"]) == (0, None, None)
    assert (colour["peaks"], colour["unit"]) == (9, 0)
    assert pq.read_table(atlas.folder / "tables" / "colour_or_shape.parquet").equals(table)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64], ids=str)
def test_scan_and_shares_are_the_same_whatever_the_default_type_is(kind: torch.dtype, tmp_path: Path) -> None:
    small = Preprocessing(None, (14, 14), (0.5,) * 3, (0.25,) * 3)
    network, images = small_network().eval(), colourful(tmp_path / "images")
    plain = unitscope.scan(network, images, tmp_path / "plain", preprocess=small, workers=0, k=3)
    shares = colour_or_shape(plain, network)
    torch.set_default_dtype(kind)
    try:
        other = unitscope.scan(network, images, tmp_path / "other", preprocess=small, workers=0, k=3)
        other_shares = colour_or_shape(other, network)
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.layers == plain.layers
    assert other.table("peaks").equals(plain.table("peaks"))
    assert other_shares.equals(shares)


def test_shares_are_those_of_the_changed_images(tmp_path: Path) -> None:
    network = small_network().eval()
    small = Preprocessing(None, (14, 14), (0.5,) * 3, (0.25,) * 3)
    atlas = unitscope.scan(network, colourful(tmp_path / "images"), tmp_path / "atlas", preprocess=small, workers=0)
    table = colour_or_shape(atlas, network)
    peaks = atlas.peaks("4").to_pylist()
    for row in rows_of(table, "4"):
        of_unit = [peak for peak in peaks if peak["unit"] == row["unit"]]
        shares = []
        for peak in of_unit:
            opened: Any = atlas.open_image(peak["image"])
            pixels = np.asarray(opened.crop((13, 13, 27, 27)), dtype=np.float32) / 255
            given = torch.from_numpy((pixels - 0.5) / 0.25).permute(2, 0, 1)[None].flip(3)
            shares.append(max(network[:4](given)[0, row["unit"]].max().item(), 0) / peak["value"])
        assert row["mirrored"] == pytest.approx(np.mean(shares), rel=1e-4)


def test_changes_change_what_they_say_and_nothing_else() -> None:
    inputs = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 4 - 2
    grey, blurred, scrambled, mirrored = changes(inputs, [5, 6], CENTRED)
    colours = grey * 0.25 + 0.5
    assert torch.allclose(colours[:, 0], colours[:, 1], atol=1e-6)
    assert torch.allclose(colours[:, 0], colours[:, 2], atol=1e-6)
    assert blurred.std() < inputs.std()
    assert torch.allclose(mirrored.flip(3), inputs)
    spectrum = torch.fft.fft2(inputs).abs()
    assert torch.allclose(torch.fft.fft2(scrambled).abs(), spectrum, rtol=1e-3, atol=1e-2 * float(spectrum.mean()))
    assert torch.allclose(scrambled.mean((2, 3)), inputs.mean((2, 3)), atol=1e-5)
    repeated = list(changes(inputs[1:], [6], CENTRED))[2]
    assert torch.allclose(repeated[0], scrambled[1], atol=1e-5)
    one_channel = inputs[:, :1]
    assert torch.equal(next(changes(one_channel, [5, 6], None)), one_channel)


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    network = by_hand()
    atlas = unitscope.scan(network, colourful(tmp_path / "images"), tmp_path / "atlas", preprocess=PLAIN, workers=0)
    gone = atlas.key(atlas.peaks("1").to_pylist()[0]["image"])
    (tmp_path / "images" / gone).unlink()
    with pytest.raises(ImagesError, match=f"the image '{gone}' is no longer there"):
        colour_or_shape(Atlas(atlas.folder), network)
    assert not (atlas.folder / "experiments").exists()


# ── covering ────────────────────────────────────────────────────────────────────────────────────────────────────────


class BrightCorner(nn.Module):
    """Two classes: the second one where the upper left corner is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.see.weight, 1 / 3)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        bright = self.relu(self.see(images))[:, 0, :8, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(bright) + 0.3, bright], 1) * 10


def test_an_image_that_was_replaced_by_one_of_its_size_is_named(tmp_path: Path) -> None:
    """Every verb that runs the stored images again refuses to compute with another image under an old name."""
    folder, network = write_photographs(tmp_path / "images", count=6), small_network()
    images = Preprocessing(14, (14, 14), (0.5,) * 3, (0.5,) * 3)
    atlas = unitscope.scan(network, folder, tmp_path / "atlas", preprocess=images)
    replaced = sorted(folder.rglob("*.png"))[2]
    with Image.open(replaced) as before:
        size = before.size
    Image.new("RGB", size, (200, 10, 10)).save(replaced)
    for verb in (lambda: colour_or_shape(atlas, network), lambda: occlude(atlas, "6", network=network)):
        with pytest.raises(ImagesError, match=f"{replaced.name}.*has changed"):
            verb()
    with pytest.raises(unitscope.UnitscopeError, match=f"{replaced.name}.*has changed"):
        unitscope.attribute(atlas, "gradient", network, layers=["6"])
    reasons = {difference.key: difference.reason for difference in unitscope.check(atlas, network).differences}
    assert list(reasons) == [replaced.relative_to(folder).as_posix()]


def test_covering_what_matters_changes_the_class(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for index, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        pixels = np.full((40, 40, 3), 40, dtype=np.uint8)
        pixels[:8, :8] = 255 if index else 0
        Image.fromarray(pixels).save(folder / name / "0.png")
    network = BrightCorner()
    atlas = unitscope.scan(network, folder, tmp_path / "atlas", preprocess=PLAIN, workers=0, layers=["relu"])
    for wrong in (["x", "no", "yes"], ["no"], []):
        with pytest.raises(
            AtlasError, match=f"^{len(wrong)} classes were given, but the network has 2 outputs; give one label for each"
        ):
            occlude(atlas, "relu", network=network, classes=wrong)
    assert not (atlas.folder / "experiments").exists()
    twice = occlude(atlas, "relu", network=network, classes=["yes", "yes"]).to_pylist()
    assert [row["labelled"] for row in twice] == [False, False]
    assert [row["labelled"] for row in occlude(atlas, "relu", network=network).to_pylist()] == [False, False]
    table = occlude(atlas, "relu", network=network, classes=["no", "yes"]).to_pylist()
    bright = next(row for row in table if row["class"] == 1)
    assert bright["labelled"]
    probability = np.array(bright["probability"]).reshape(bright["rows"], bright["columns"])
    most = np.array(bright["most_probable"]).reshape(bright["rows"], bright["columns"])
    assert bright["uncovered"] > 0.99
    assert probability[0, 0] < bright["uncovered"] - 0.01
    assert (probability[6:, 6:] == pytest.approx(bright["uncovered"])) is True
    assert most[-1, -1] == 1
    dark = next(row for row in table if row["class"] == 0)
    assert set(dark["most_probable"]) == {0}


def test_what_gives_no_classes_is_refused(tmp_path: Path) -> None:
    network = by_hand()
    atlas = unitscope.scan(network, colourful(tmp_path / "images"), tmp_path / "atlas", preprocess=PLAIN, workers=0)
    with pytest.raises(AtlasError, match=r"no class scores of shape \(image, class\), but \(1, 4, 38, 38\)"):
        occlude(atlas, "1", [0], network=network)
    with pytest.raises(AtlasError, match="have no peaks"):
        occlude(atlas, "1", [3], network=network)


def test_a_unit_that_the_layer_lacks_is_named_before_the_work(tmp_path: Path) -> None:
    network = BrightCorner()
    atlas = unitscope.scan(network, colourful(tmp_path / "images", 2), tmp_path / "atlas", preprocess=PLAIN, layers=["relu"])
    last = atlas.layer("relu").units - 1
    for units in ([last + 1], [0, 99], [-1]):
        with pytest.raises(AtlasError, match=f"layer 'relu' has units 0 to {last}, not {units[-1]}"):
            occlude(atlas, "relu", units, network)


# ── half precision ──────────────────────────────────────────────────────────────────────────────────────────────────


def pooled_network(dtype: torch.dtype, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    with torch.no_grad():
        network.get_parameter("0.weight").mul_(scale)
    return network.to(dtype)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (torch.float16, torch.float64))]
)
def test_networks_of_any_precision_go_through_every_experiment(tmp_path: Path, dtype: torch.dtype) -> None:
    """Each close to what the same weights give in float32."""
    images, transformed = colourful(tmp_path / "images", 8), []
    for kind in (torch.float32, dtype):
        network, out = pooled_network(kind), tmp_path / str(kind)
        atlas = unitscope.scan(network, images, out / "atlas", preprocess=CENTRED)
        shares, covered = colour_or_shape(atlas, network).to_pylist(), occlude(atlas, "3", network=network).to_pylist()
        moved = invariance(network, images, out, preprocess=CENTRED).to_pylist()
        probed = probe(network, images, out, preprocess=CENTRED).to_pylist()
        assert all(0 <= row["accuracy"] <= 1 for row in probed)
        transformed.append(
            [
                np.array(
                    [
                        [row[name] for name in ("grey", "blurred", "scrambled", "mirrored")]
                        for row in shares
                        if row["grey"] is not None
                    ]
                ),
                np.concatenate([row["probability"] for row in covered]),
                np.array([row["distance"] / row["norm"] for row in moved if row["norm"] > 0.1]),
            ]
        )
    for plain, half in zip(*transformed, strict=True):
        assert plain.shape == half.shape
        assert np.abs(plain - half).max() < 0.1


def test_features_too_large_for_half_precision_have_finite_distances(tmp_path: Path) -> None:
    network = pooled_network(torch.float16, scale=3_000)
    rows = invariance(network, colourful(tmp_path / "images", 2), tmp_path / "out", preprocess=CENTRED, layers=["1"]).to_pylist()
    assert max(row["norm"] for row in rows) > torch.finfo(torch.float16).max
    assert all(np.isfinite([row["distance"], row["norm"]]).all() for row in rows)


# ── moving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_pools_over_places_doesnt_move_and_what_doesnt_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    table = invariance(network, colourful(tmp_path / "images"), tmp_path / "out", preprocess=CENTRED).to_pylist()
    assert len({row["image"] for row in table}) == 5
    assert {row["layer"] for row in table} == {"1", "4"}
    assert all(
        row["distance"] == pytest.approx(0, abs=1e-4)
        for row in table
        if row["amount"] == {"scale": 1}.get(row["transformation"], 0)
    )
    far = [row["distance"] / row["norm"] for row in table if row["transformation"] == "translation" and row["amount"] > 0.2]
    shallow, deep = (
        [
            d
            for d, row in zip(far, [r for r in table if r["transformation"] == "translation" and r["amount"] > 0.2], strict=True)
            if row["layer"] == name
        ]
        for name in ("1", "4")
    )
    assert np.mean(deep) < np.mean(shallow)
    assert all(0 <= row["probability"] <= 1 for row in table)
    assert len(table) == 5 * 2 * len(list(transformations()))


def test_moves_move() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[0, 0, 10, 20] = 1
    assert float(Transformation("translation", 0.25).apply(image)[0, 0, 20, 20]) == 1
    assert float(Transformation("rotation", 360.0).apply(image)[0, 0, 10, 20]) == pytest.approx(1, abs=1e-4)
    assert Transformation("scale", 1.0).apply(image).equal(image)


# ── probing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_layer_that_tells_labels_apart_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for image in range(40):
        label = ("green", "red")[image % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., 1 - image % 2] += 100
        Image.fromarray(pixels).save(folder / label / f"{image}.png")
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    first, last = network[0], network[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        first.weight[:, :, 0, 0] = torch.tensor([[1.0, -1, 0], [-1, 1, 0]])
        first.bias.zero_()
        last.weight.zero_()
        last.bias.fill_(1)
    colours, nothing = probe(network, folder, tmp_path / "out", preprocess=PLAIN).to_pylist()
    assert (colours["layer"], colours["accuracy"], colours["chance"]) == ("1", 1, 0.5)
    assert (colours["features"], colours["images"], colours["folds"]) == (2, 40, 5)
    assert nothing["accuracy"] <= 0.6


def test_probing_needs_labels(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 6, labels=("one",))
    with pytest.raises(
        ImagesError, match="at least two labels with two images each; labels found: 1, 1 with two images; a label is"
    ):
        probe(by_hand(), tmp_path / "images", tmp_path / "out", preprocess=CENTRED)


class Counted:
    """Tensors that are counted when they are read."""

    def __init__(self, give: Callable[[Tensor, int], Any]) -> None:
        self.give, self.read = give, set[int]()

    def __len__(self) -> int:
        return 50

    def __getitem__(self, image: int) -> Any:
        self.read.add(image)
        return self.give(torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(image)), image)


@pytest.mark.parametrize("give", [lambda pixels, image: pixels, lambda pixels, image: (pixels,)], ids=["alone", "in a tuple"])
def test_a_data_set_without_labels_is_told_before_it_is_read(tmp_path: Path, give: Callable[[Tensor, int], Any]) -> None:
    images = Counted(give)
    with pytest.raises(ImagesError, match="none of the images has a label; a label is "):
        probe(by_hand(), images, tmp_path / "out")
    assert len(images.read) <= 3  # a scan looks at as many to know whether they are tensors


class CountedFolder(FolderSource):
    """Says how many of its images were read."""

    reads = 0

    def read(self, image: int) -> SourceImage:
        self.reads += 1
        return super().read(image)


class CountedList(ListSource):
    """The same of a list."""

    reads = 0

    def read(self, image: int) -> SourceImage:
        self.reads += 1
        return super().read(image)


@pytest.mark.parametrize("labels", [("one",), None, tuple("abcdefgh")], ids=["one", "none", "one image each"])
def test_files_without_labels_are_told_before_they_are_read(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    folder = write_photographs(tmp_path / "images", 8, (40, 40), labels=labels or ("one",))
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    images = CountedList(paths) if labels is None else CountedFolder(folder)
    with pytest.raises(ImagesError, match="at least two labels with two images each; "):
        probe(by_hand(), images, tmp_path / "out", preprocess=CENTRED)
    assert images.reads <= 3  # as many tell whether they are tensors
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_which_some_have_labels_is_probed(tmp_path: Path) -> None:
    images = Counted(lambda pixels, image: (pixels, image % 2 if image >= 25 else None))
    rows = probe(by_hand(), images, tmp_path / "out").to_pylist()
    assert {row["images"] for row in rows} == {25}


@pytest.mark.parametrize("verb", [probe, invariance])
@pytest.mark.parametrize("out", ["file", "file/deeper", "folder"])
def test_a_table_that_cant_be_written_is_told_before_an_image_is_read(tmp_path: Path, verb: Any, out: str) -> None:
    (tmp_path / "file").touch()
    for name in ("probe", "invariance"):
        (tmp_path / "folder" / f"{name}.parquet").mkdir(parents=True)
    images = Counted(lambda pixels, image: (pixels, image % 2))
    with pytest.raises(AtlasError, match="^the table '.*' can't be written: .* is a f"):
        verb(by_hand(), images, tmp_path / out)
    assert images.read == set()


@pytest.mark.parametrize("name", ["colour_or_shape", "class_probability"])
def test_a_table_that_cant_be_added_to_an_atlas_is_told_before_an_image_is_read(tmp_path: Path, name: str) -> None:
    images, network = Counted(lambda pixels, image: pixels), nn.Sequential(nn.Conv2d(3, 2, 40), nn.Flatten())
    atlas = unitscope.scan(network, images, tmp_path / "atlas")
    images.read.clear()
    (atlas.folder / "tables").touch()
    with pytest.raises(AtlasError, match=f"^the table '.*{name}.parquet' can't be written: "):
        colour_or_shape(atlas, network) if name == "colour_or_shape" else occlude(atlas, "0", [0], network)
    assert images.read == set()


class Spoilt(nn.Module):
    """NaN, or infinite values, where an image is black."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, maps: Tensor) -> Tensor:
        return torch.where(maps.amax((1, 2, 3), keepdim=True) > 0, maps, self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_no_numbers_name_their_layer(tmp_path: Path, value: float) -> None:
    folder = write_photographs(tmp_path / "images", 8, (40, 40))
    Image.new("RGB", (40, 40)).save(folder / "dog" / "black.png")
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), Spoilt(value), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        NetworkError, match="layer '3': it gives values that are no finite numbers, first for the image 'dog/black.png'; choose"
    ):
        probe(network, folder, tmp_path / "out", preprocess=PLAIN, layers=["1", "3"])
    assert not (tmp_path / "out").exists()


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_commands_write_tables_and_plots(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))\n"
    )
    images, model = str(colourful(tmp_path / "images")), f"{tmp_path / 'net.py'}:net"
    options = ("--weights", "none", *["--crop", "40", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"])

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "unitscope", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "accuracy" in run("probe", model, images, *options)
    assert "drawn to" in run("invariance", model, images, *options)
    run("scan", model, images, *options, "--out", "atlas")
    assert "scrambled" in run("colour-or-shape", "atlas", "--trust-code")
    run("occlude", "atlas", "1", "0", "--out", "occluded.png", "--trust-code")
    failed = subprocess.run(
        [sys.executable, "-m", "unitscope", "occlude", "atlas", "1*", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    for name in ("probe/probe.png", "invariance/invariance.png", "occluded.png"):
        with Image.open(tmp_path / name) as plot:
            assert min(plot.size) > 300
    assert (tmp_path / "atlas" / "tables" / "class_probability.parquet").exists()
