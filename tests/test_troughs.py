"""Troughs: the lowest cells of every unit that nothing rectifies. Beside brute force, and beside the peaks of the negated network."""

import math
import random
import shutil
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import Told, bytes_of
from networks import NormsBeforeTokens, see_through, small_network
from photographs import write_photographs
from PIL import Image
from test_near_duplicates import Pictures, brighter, encoded, photograph
from test_scan import IMAGES, assert_same_peaks, hash_of_key, maps_of_children
from test_worker import worker_for
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas, pack
from unitscope.atlas.figures import choose_overview_units, panel
from unitscope.atlas.patches import PatchOptions
from unitscope.cli import main
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.records import Peak, Preprocessing, Shard
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.plan import ScanPlan
from unitscope.scanning.worker import Worker
from unitscope.web.pictures import draw_troughs
from unitscope.web.queries import AtlasQueries

AS_IT_IS = Preprocessing(None, (14, 14), (0.5,) * 3, (0.25,) * 3)


def troughs_by_brute_force(maps: Tensor, k: int) -> list[tuple[float, int, int]]:
    """One unit's k first troughs from its maps of shape (image, y, x), as (value, image, cell), cell by cell; keys are the images' numbers."""
    lowest = []
    for image, values in enumerate(maps.flatten(1).tolist()):
        cells = [(value, image, cell) for cell, value in enumerate(values) if not math.isnan(value)]
        lowest += [min(cells)] if cells else []
    return sorted(lowest, key=lambda row: (row[0], hash_of_key(str(row[1])), *row[1:]))[:k]


def stored_troughs(atlas: Atlas, layer: str, unit: int) -> list[tuple[float, int, int]]:
    width = atlas.layer(layer).map_width
    rows = atlas.troughs(layer, unit).to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["value"], row["image"], row["y"] * width + row["x"]) for row in rows]


# ── the scan ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@settings(max_examples=40)
@given(IMAGES, st.integers(1, 4), st.integers(1, 5))
def test_troughs_are_those_of_brute_force(values: np.ndarray, k: int, batch_size: int) -> None:
    """On values full of ties, NaN and infinities."""
    images = torch.from_numpy(values)
    with TemporaryDirectory() as folder:
        atlas = unitscope.scan(see_through(2), images, Path(folder, "atlas"), k=k, batch_size=batch_size, workers=0)
        for unit in range(2):
            assert stored_troughs(atlas, "0", unit) == troughs_by_brute_force(images[:, unit], k)


@pytest.mark.parametrize("count", [1, 5, 70])
def test_layers_that_nothing_rectifies_have_troughs(tmp_path: Path, count: int) -> None:
    """A convolution before a GELU, one alone, and a linear layer; none of one that a rectifier follows."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 6)
    ).eval()  # fmt: skip
    images = torch.randn(count, 3, 14, 14)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["1", "3", "4", "7"])
    assert [layer.rectified for layer in atlas.layers] == [False, True, False, False]
    maps = maps_of_children(network, images, {"0": "1", "2": "3", "4": "4", "7": "7"})
    for layer in atlas.layers:
        for unit in range(layer.units):
            expected = [] if layer.rectified else troughs_by_brute_force(maps[layer.name][:, unit], 9)
            assert_same_peaks(stored_troughs(atlas, layer.name, unit), expected)
    assert atlas.manifest["troughs"] is True
    named = {image for name in ("candidates", "troughs", "sample") for image in atlas.table(name)["image"].to_pylist()}
    assert set(atlas.table("images")["image"].to_pylist()) == named


def test_tokens_have_troughs(tmp_path: Path) -> None:
    network, images = NormsBeforeTokens(nn.BatchNorm2d(8)).eval(), torch.randn(30, 3, 8, 8)
    atlas = unitscope.scan(network, images, tmp_path / "atlas")
    with torch.no_grad():
        maps = network(images).transpose(1, 2).unflatten(2, (8, 8))
    for unit in range(5):
        assert_same_peaks(stored_troughs(atlas, "tokens", unit), troughs_by_brute_force(maps[:, unit], 9))


def test_a_trough_may_lie_above_zero(tmp_path: Path) -> None:
    images = torch.arange(1.0, 13).reshape(12, 1, 1, 1)
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas")
    assert stored_troughs(atlas, "0", 0) == [(float(i + 1), i, 0) for i in range(9)]


def negated(network: nn.Sequential) -> nn.Sequential:
    """The network whose last layer gives the same values with the sign turned round, bit for bit."""
    network = deepcopy(network)
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.neg_()
    return network


def assert_troughs_are_negated_peaks(atlas: Atlas, other: Atlas) -> None:
    """Of the last layer, with cells, boxes and ties."""
    layer = atlas.layers[-1].name
    rows = [row | {"value": -row["value"]} for row in other.peaks(layer).to_pylist()]
    assert rows
    assert atlas.troughs(layer).to_pylist() == rows
    assert atlas.trough_ties(layer) == other.ties(layer)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 3}, {"per_image": 2}, {"per_image": 3, "batch_size": 5}, {"inner": True}, {"candidates": 9}, {"k": 60, "candidates": 99}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.filterwarnings("ignore:layer")
def test_troughs_are_the_peaks_of_the_negated_network(tmp_path: Path, options: dict[str, Any], spoilt: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    images = torch.randn(40, 3, 12, 12).round(decimals=1)
    images[20:26] = images[0]  # ties
    if spoilt:
        images[3, :, 5, 5], images[4], images[5, 0, 0, 0] = torch.nan, torch.nan, torch.inf
    atlas, other = (
        unitscope.scan(of, images, tmp_path / name, **options) for of, name in ((network, "atlas"), (negated(network), "other"))
    )
    assert_troughs_are_negated_peaks(atlas, other)


@pytest.mark.parametrize("copies", [1, 8, 60])
def test_near_duplicates_never_take_two_places(copies: int, tmp_path: Path) -> None:
    brightest = brighter(photograph(0))
    pixels = [*(photograph(seed) // 2 for seed in range(1, 40)), *(encoded(brightest) for _ in range(copies)), brightest]
    darkest = Pictures([255 - of_image for of_image in pixels])
    preprocessing = Preprocessing(64, (64, 64), (0.0,) * 3, (1.0,) * 3)
    atlas, other = (
        unitscope.scan(network, darkest, tmp_path / name, preprocess=preprocessing)
        for network, name in ((see_through(3), "atlas"), (negated(see_through(3)), "other"))
    )
    assert_troughs_are_negated_peaks(atlas, other)
    for unit in range(3):
        assert (atlas.troughs("0", unit)["image"].to_numpy() >= 39).sum() == 1
    images = set(atlas.table("images")["image"].to_pylist())
    named = {image for name in ("candidates", "troughs", "sample") for image in atlas.table(name)["image"].to_pylist()}
    assert images == named, "what was left out names no image"


def test_the_same_whatever_the_batches(tmp_path: Path) -> None:
    images = torch.randn(90, 3, 6, 6).round(decimals=1)
    tables = []
    for batch_size in (32, 1, 7, 90):
        atlas = unitscope.scan(see_through(3), images, tmp_path / f"{batch_size}", batch_size=batch_size, workers=0)
        tables.append(atlas.table("troughs"))
    assert all(table.equals(tables[0]) for table in tables)


def result_of_shards(results: list[PartialResult]) -> tuple[list[Any], ...]:
    first, *others = results
    for other in others:
        first.merge(other)
    troughs = first.troughs
    return troughs.values.nan_to_num(7).tolist(), troughs.images.tolist(), troughs.cells.tolist(), troughs.tied.tolist()


def test_partial_results_merge_in_any_order(tmp_path: Path) -> None:
    """Those of one worker, which leaves out what earlier shards beat, and those of a worker a shard."""
    images, generator = torch.randn(48, 3, 14, 14).round(decimals=1), random.Random(0)
    shards = [Shard(number, 6 * number, 6 * number + 6) for number in range(8)]
    merged = []
    for attempt in range(6):
        plan = ScanPlan(48, 4, candidates=5, batch_size=6, troughs=True)
        workers = [Worker(worker_for(small_network().eval(), images).session, plan) for _ in range(2)]
        order = generator.sample(shards, 8)
        results = [result for worker, part in zip(workers, (order[:3], order[3:]), strict=True) for result in worker(part)]
        assert all(isinstance(result, PartialResult) for result in results)
        merged.append(result_of_shards(generator.sample(results, 8)))
        assert merged[attempt] == merged[0]


def test_a_stopped_scan_is_resumed_and_one_of_another_choice_is_not(tmp_path: Path) -> None:
    images, options = torch.randn(60, 3, 14, 14).round(decimals=1), {"batch_size": 2, "checkpoint_every_s": 0}
    unitscope.scan(small_network(), images, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        unitscope.scan(small_network(), images, tmp_path / "atlas", on_images=Told(30), **options)
    with pytest.raises(AtlasError, match="of another plan: troughs was true and is false"):
        unitscope.scan(small_network(), images, tmp_path / "atlas", troughs=False, **options)
    told = Told()
    unitscope.scan(small_network(), images, tmp_path / "atlas", on_images=told, **options)
    assert told[0] > 20
    assert bytes_of(tmp_path / "atlas") == bytes_of(tmp_path / "whole")


def test_nothing_but_the_troughs_depends_on_them(tmp_path: Path) -> None:
    images = torch.randn(60, 3, 14, 14)
    atlas, without = (
        unitscope.scan(small_network(), images, tmp_path / f"{troughs}", troughs=troughs) for troughs in (True, False)
    )
    files, others = bytes_of(atlas.folder), bytes_of(without.folder)
    assert files.keys() - others.keys() == {"troughs.parquet"}
    differing = {name for name in others if files[name] != others[name]}
    assert differing <= {"atlas.json", "images.parquet"}
    assert without.manifest["troughs"] is False


def test_a_scan_in_bf16_has_none_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnitscopeError, match="a scan in bf16 screens for the highest values alone, so it has no troughs"):
        unitscope.scan(see_through(1), torch.randn(5, 1, 8, 8), tmp_path / "atlas", precision="bf16", troughs=True)
    assert not (tmp_path / "atlas").exists()
    for troughs, has_troughs in ((None, True), (False, False)):
        with pytest.warns(UserWarning, match="so this runs in fp32"):
            atlas = unitscope.scan(
                see_through(1), torch.randn(5, 1, 8, 8), tmp_path / f"{troughs}", precision="bf16", troughs=troughs
            )
        assert atlas.has_troughs is has_troughs


# ── an atlas with and without ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Two rectified layers and a linear one, over photographs."""
    folder = tmp_path_factory.mktemp("troughs")
    photographs = write_photographs(folder / "photographs", 24, (20, 16))
    return unitscope.scan(small_network(), photographs, folder / "atlas", preprocess=AS_IT_IS, sample=12)


@pytest.fixture
def atlas(scanned: Atlas, tmp_path: Path) -> Atlas:
    shutil.copytree(scanned.folder, tmp_path / "atlas")
    return Atlas(tmp_path / "atlas")


def assert_has_none(atlas: Atlas) -> None:
    """It opens, and does what atlases do."""
    assert not (atlas.folder / "troughs.parquet").exists()
    assert not atlas.has_troughs
    assert [table.name for table in atlas.tables() if table.problem is not None] == []
    assert "troughs" not in [table.name for table in atlas.tables()]
    for layer in atlas.layers:
        assert len(atlas.troughs(layer.name)) == len(atlas.troughs(layer.name, 0)) == 0
        assert atlas.trough_ties(layer.name) == {}
        assert AtlasQueries(atlas).troughs(layer.name, 0) == []
        assert draw_troughs(AtlasQueries(atlas), layer.name, 0) is None
    assert atlas.troughs(atlas.layers[0].name).schema.equals(atlas.peaks(atlas.layers[0].name).schema)
    assert atlas.sheet(atlas.layers[0].name).size[0] > 0
    for draw in (lambda: atlas.sheet(atlas.layers[0].name, troughs=True), lambda: atlas.figure(troughs=True)):
        with pytest.raises(
            AtlasError, match="has no table 'troughs': a rectifier follows all its layers, or it was scanned without"
        ):
            draw()
    with pytest.raises(AtlasError, match="has no table 'troughs'"):
        atlas.table("troughs")


def test_an_atlas_of_before_opens(atlas: Atlas) -> None:
    (atlas.folder / "troughs.parquet").unlink()
    assert_has_none(Atlas(atlas.folder))
    assert unitscope.check(Atlas(atlas.folder), small_network()).troughs == 0


def test_an_atlas_of_rectified_layers_has_none(scanned: Atlas, tmp_path: Path) -> None:
    photographs = scanned.folder.parent / "photographs"
    atlas = unitscope.scan(small_network(), photographs, tmp_path / "atlas", layers=["1", "4"], preprocess=AS_IT_IS)
    assert atlas.manifest["troughs"] is True
    assert_has_none(atlas)


def test_a_unit_without_values_has_none(tmp_path: Path) -> None:
    images = torch.randn(12, 2, 4, 4)
    images[:, 1] = torch.nan
    atlas = unitscope.scan(see_through(2), images, tmp_path / "atlas")
    assert [len(atlas.troughs("0", unit)) for unit in range(2)] == [9, 0]
    blocks = panel(atlas, atlas.layer("0"), [0, 1], PatchOptions(troughs=True)).blocks
    assert [(block.notice, block.value) for block in blocks][1] == ("no troughs", "no troughs")


@pytest.mark.parametrize("unit", [4, -1])
def test_units_that_a_layer_lacks_are_refused(atlas: Atlas, unit: int) -> None:
    with pytest.raises(AtlasError, match="has units 0 to 3"):
        atlas.troughs("6", unit)


def test_ties_among_troughs_are_counted(tmp_path: Path) -> None:
    """A floor that many images reach, and a unit without ties."""
    values = torch.zeros(30, 3, 2, 2)
    values[:, 0] = torch.arange(30)[:, None, None] + 1.0
    values[:3, 1], values[3:, 1] = -2.0, 5.0
    atlas = unitscope.scan(see_through(3), values, tmp_path / "atlas", batch_size=4)
    assert {unit: (tie.first, tie.shown, tie.images) for unit, tie in atlas.trough_ties("0").items()} == {
        1: (4, 6, 27), 2: (1, 9, 30),
    }  # fmt: skip
    assert AtlasQueries(atlas).trough_ties("0") == atlas.trough_ties("0")
    blocks = panel(atlas, atlas.layer("0"), range(3), PatchOptions(troughs=True)).blocks
    assert [block.notice for block in blocks] == ["", "", "30 images tie"]
    assert choose_overview_units(atlas, atlas.layer("0"), 0, troughs=True) == [0, 1]


def test_stored_troughs_come_back_and_wrong_ones_are_reported(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    result = unitscope.check(atlas, small_network())
    assert result.differences == []
    assert (result.peaks, result.troughs) == (len(atlas.table("peaks")), len(atlas.table("troughs")))
    path = atlas.folder / "troughs.parquet"
    table = pq.read_table(path)
    values = pa.array([value - (row == 7) for row, value in enumerate(table["value"].to_pylist())], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("value"), "value", values), path)
    (difference,) = unitscope.check(Atlas(atlas.folder), small_network()).differences
    row = table.slice(7, 1).to_pylist()[0]
    assert (difference.is_trough, difference.layer, difference.unit, difference.rank) == (True, "6", row["unit"], row["rank"])
    assert difference.found == pytest.approx(row["value"], rel=1e-4)


# ── drawn, packed, asked for ────────────────────────────────────────────────────────────────────────────────────────


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and bool((np.asarray(one) == np.asarray(other)).all())


def test_troughs_are_drawn_as_peaks_are(tmp_path: Path) -> None:
    """Patch by patch those of the negated network's peaks."""
    photographs = write_photographs(tmp_path / "photographs", 24, (20, 16))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    atlas, other = (
        unitscope.scan(of, photographs, tmp_path / name, preprocess=AS_IT_IS)
        for of, name in ((network, "atlas"), (negated(network), "other"))
    )
    blocks = panel(atlas, atlas.layer("2"), range(5), PatchOptions(troughs=True)).blocks
    for block, expected in zip(blocks, panel(other, other.layer("2"), range(5), PatchOptions()).blocks, strict=True):
        assert float(block.value) == -float(expected.value)
        assert all(same_pixels(*pair) for pair in zip(block.patches, expected.patches, strict=True))
    drawn = panel(atlas, atlas.layer("2"), range(5), PatchOptions(troughs=True))
    assert drawn.subtitle.endswith(" · drawn: the lowest")
    assert not same_pixels(atlas.sheet("2", troughs=True), atlas.sheet("2"))
    assert atlas.figure(troughs=True).size[0] > 0


def test_what_has_no_troughs_is_said(atlas: Atlas) -> None:
    with pytest.raises(AtlasError, match=r"there are no troughs of layer '1', which a rectifier follows\. There are of: 6"):
        atlas.sheet("1", troughs=True)
    with pytest.raises(AtlasError, match="'gradient' is of peaks, not of troughs"):
        atlas.sheet("6", attribution="gradient", troughs=True)
    assert atlas.figure(troughs=True).size[0] > 0
    assert atlas.figure(layers=["6", "4"], troughs=True).size[0] > 0


def test_packed_troughs_are_those_of_the_images(atlas: Atlas) -> None:
    before = atlas.sheet("6", troughs=True)
    pack(atlas, size_px=32, troughs=True)
    packed = atlas.packed_patches
    assert packed is not None
    assert packed.has_troughs
    assert packed.block("1", 0, "troughs") is None
    for unit in range(4):
        content = packed.block("6", unit, "troughs")
        assert content is not None
        assert content == draw_troughs(AtlasQueries(atlas), "6", unit)
        assert Image.open(BytesIO(content)).size == (96, 96)
        for row, drawn in zip(atlas.troughs("6", unit).to_pylist(), packed.patches("6", unit, "troughs"), strict=True):
            patch = np.asarray(atlas.patch(Peak(**row), "auto", 32, from_images=True), dtype=float)
            assert np.abs(np.asarray(drawn, dtype=float) - patch).mean() < 12
    assert same_pixels(atlas.sheet("6", troughs=True, from_images=True), before)
    assert np.abs(np.asarray(atlas.sheet("6", troughs=True), dtype=float) - np.asarray(before, dtype=float)).mean() < 16


def test_an_atlas_packed_before_or_without_draws_troughs_from_its_images(atlas: Atlas) -> None:
    before, block = atlas.sheet("6", troughs=True), draw_troughs(AtlasQueries(atlas), "6", 0)
    pack(atlas, pictures_px=None)
    assert atlas.packed_patches is not None
    assert not atlas.packed_patches.has_troughs
    assert same_pixels(atlas.sheet("6", troughs=True), before)
    path = atlas.folder / "tables/patches.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["troughs"]), path)  # as it was before there were any
    old = Atlas(atlas.folder)
    assert [table.name for table in old.tables() if table.problem is not None] == []
    assert same_pixels(old.sheet("6", troughs=True), before)
    assert old.sheet("6").size == before.size
    assert old.table("patches").column_names == ["layer", "unit", "peaks", "bands"]
    assert draw_troughs(AtlasQueries(old), "6", 0) == block


def test_pages_get_troughs_with_their_boxes(atlas: Atlas) -> None:
    queries = AtlasQueries(atlas)
    for unit in range(4):
        rows = atlas.troughs("6", unit).to_pylist()
        examples = queries.troughs("6", unit)
        assert [(e.rank, e.value, e.source_image.image, e.y, e.x) for e in examples] == [
            (row["rank"], row["value"], row["image"], row["y"], row["x"]) for row in rows
        ]
        assert examples[0].receptive_field == Peak(**rows[0]).source_box
        assert atlas.unit("6", unit).troughs.to_pylist() == rows
    assert queries.troughs("1", 0) == []


@pytest.mark.parametrize(
    ("column", "value"), [("image", 999), ("image", None), ("y", 4), ("unit", 9), ("unit", -1), ("rank", 0), ("left", 1 << 30)]
)
def test_hostile_troughs_are_refused(atlas: Atlas, column: str, value: int | None) -> None:
    path = atlas.folder / "troughs.parquet"
    table = pq.read_table(path)
    index = table.column_names.index(column)
    values = pa.array([value, *table[column].to_pylist()[1:]], table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), values), path)
    with pytest.raises(AtlasError):
        AtlasQueries(Atlas(atlas.folder)).troughs("6", 0)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = write_photographs(tmp_path / "photographs", 12, (20, 16))
    options = ["--weights", "none", "--resize", "64", "--crop", "64", "--layers", "features.0", "classifier.1"]
    scan = ["scan", "torchvision:squeezenet1_1", str(photographs), *options]
    layers = ["features.3.squeeze", "features.3"]
    for name, flags, has_troughs in (("with", [], True), ("on", ["--troughs"], True), ("without", ["--no-troughs"], False)):
        assert main([*scan, *layers, *flags, "--out", str(tmp_path / name)]) == 0
        assert Atlas(tmp_path / name).has_troughs is has_troughs
    assert main([*scan, "--no-tuning", "--out", str(tmp_path / "untuned")]) == 0
    capsys.readouterr()
    assert main(["check", str(tmp_path / "with"), "--trust-code"]) == 0
    assert "of 1,152 troughs come back" in capsys.readouterr().out
    out = tmp_path / "drawn.png"
    assert main(["sheet", str(tmp_path / "with"), "features.3", "--troughs", "--out", str(out)]) == 0
    assert same_pixels(Image.open(out), Atlas(tmp_path / "with").sheet("features.3", troughs=True))
    assert main(["figure", str(tmp_path / "with"), "--troughs", "--out", str(out)]) == 0
    assert main(["figure", str(tmp_path / "without"), "--troughs", "--out", str(out)]) == 1
    assert "has no table 'troughs'" in capsys.readouterr().err
    for flags, is_packed in (([], False), (["--troughs"], True)):
        assert main(["pack", str(tmp_path / "with"), *flags]) == 0
        packed = Atlas(tmp_path / "with").packed_patches
        assert packed is not None
        assert packed.has_troughs is is_packed
