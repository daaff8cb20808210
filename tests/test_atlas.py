"""The atlas on disk: its columns, and that it is there whole or not at all."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import see_through, small_network
from planted import HIGHEST, planted_atlas, shared
from torch import nn

import unitscope
from unitscope.atlas import CORE_TABLES, FORMAT, Atlas, new_atlas_folder, write_atlas
from unitscope.errors import AtlasError, ImagesError, LayerNotFound
from unitscope.networks.model_strings import LIBRARY_BUILDERS
from unitscope.records import LIBRARIES

CONTRACT = {
    "layers": "layer kind units map_height map_width receptive_field_height receptive_field_width effective_field_height effective_field_width effective_field_measured:bool stride_y stride_x "
    "activation order shares_units_of",
    "images": "image:int64 key width height label content:uint64 perceptual_hash:uint64",
    "labels": "label images",
    "peaks": "layer unit:int32 rank:int16 value:float image:int64 y:int32 x:int32 top:int32 left:int32 bottom:int32 right:int32 "
    "source_top:float source_left:float source_bottom:float source_right:float",
    "troughs": "layer unit:int32 rank:int16 value:float image:int64 y:int32 x:int32 top:int32 left:int32 bottom:int32 right:int32 "
    "source_top:float source_left:float source_bottom:float source_right:float tied:int64",
    "candidates": "layer unit candidate:int16 value:float image:int64 y:int32 x:int32 top:int32 left:int32 bottom:int32 right:int32 "
    "near_duplicate:bool",
    "units": "layer unit images activation_rate mean std lowest highest nan_images dead:bool tied:int64",
    "sample": "layer unit image value y x top left bottom right",
    "halves": "layer unit half images:int64 mean:double std:double skewness:double",
    "tuning": "layer unit label images_a:int32 mean_a:double images_b:int32 mean_b:double",
    "classes": "class:int32 name node",
    "skipped": "key reason",
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    images = torch.randn(30, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return unitscope.scan(small_network(), images, tmp_path_factory.mktemp("atlas") / "atlas")


def test_tables_have_the_columns_of_the_contract(atlas: Atlas) -> None:
    assert {path.name for path in atlas.folder.iterdir()} == {"atlas.json", *(f"{name}.parquet" for name in CONTRACT)}
    for name, columns in CONTRACT.items():
        schema = pq.read_schema(atlas.folder / f"{name}.parquet")
        expected = [column.partition(":") for column in columns.split()]
        assert schema.names == [column for column, _, _ in expected]
        for column, _, column_type in expected:
            assert not column_type or str(schema.field(column).type) == column_type


def test_rows_are_sorted_by_layer_unit_and_rank(atlas: Atlas) -> None:
    order = {layer.name: layer.order for layer in atlas.layers}
    keys = [(order[row["layer"]], row["unit"], row["rank"]) for row in atlas.table("peaks").to_pylist()]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys))


def test_the_manifest_says_what_was_scanned(atlas: Atlas) -> None:
    manifest = json.loads((atlas.folder / "atlas.json").read_text())
    assert manifest["format"] == FORMAT
    assert len(manifest["network"]["hash"]) == len(manifest["images"]["hash"]) == 64
    assert (manifest["k"], manifest["read"], manifest["listed"], manifest["precision"], manifest["preprocessing"]) == (
        9,
        30,
        30,
        "fp32",
        None,
    )
    assert manifest["torch"] == torch.__version__
    assert manifest["input"] == [3, 14, 14]


def test_layers_and_peaks_are_read_as_records(atlas: Atlas) -> None:
    assert [(layer.name, layer.units, layer.order) for layer in atlas.layers] == [("1", 6, 1), ("4", 5, 4), ("6", 4, 6)]
    peaks = atlas.peaks("4", unit=2)
    assert peaks["rank"].to_pylist() == list(range(1, len(peaks) + 1))
    assert atlas.peaks("4").num_rows >= len(peaks)
    assert unitscope.Peak(**peaks.to_pylist()[0]).box.height == 8
    assert atlas.sample("4").num_rows == 30 * 5
    assert repr(atlas).endswith("module:torch.nn.modules.container.Sequential, 3 layers, 30 images")


def test_what_is_not_in_an_atlas_is_named(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(LayerNotFound, match="has no layer '3'.*It has: 1, 4, 6"):
        atlas.peaks("3")
    with pytest.raises(AtlasError, match="layer '4' has units 0 to 4, not 5"):
        atlas.peaks("4", unit=5)
    with pytest.raises(AtlasError, match="holds no atlas"):
        Atlas(tmp_path)
    (tmp_path / "atlas.json").write_text("{")
    with pytest.raises(AtlasError, match="can't be read"):
        Atlas(tmp_path)
    for version in (1, 99):
        (tmp_path / "atlas.json").write_text(json.dumps({"format": version}))
        with pytest.raises(AtlasError, match=f"has format {version}; this version reads format {FORMAT}; scan again"):
            Atlas(tmp_path)


def test_a_manifest_that_lacks_something_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "atlas.json").write_text(json.dumps({"format": FORMAT, "k": 9}))
    with pytest.raises(AtlasError, match="is broken: atlas.json holds what it can't: .*missing required field `network`"):
        Atlas(tmp_path)


def test_a_broken_table_is_one_line(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "atlas.json").write_bytes((atlas.folder / "atlas.json").read_bytes())
    (tmp_path / "layers.parquet").write_bytes((atlas.folder / "layers.parquet").read_bytes()[:100])
    with pytest.raises(AtlasError, match=r"table '.*layers.parquet' can't be read"):
        _ = Atlas(tmp_path).layers


MANIFEST = {
    "network": {"model": "demo:efficientnet-lite0", "weights": "default", "seed": 0, "hash": "0" * 64},
    "preprocessing": {"resize": 256, "crop": [224, 224], "mean": [0.5], "std": [0.25], "channels": 1, "interpolation": "bicubic"},
    "input": [1, 224, 224],
    "images": {"kind": "folder", "folder": "photographs", "hash": "0" * 64},
    "listed": 3,
    "read": 3,
    "k": 9,
    "trial": {"batch": None, "random": None, "shared": None, "rounding": {}},
}

BROKEN_FIELDS: dict[str, dict[str, object]] = {
    "k is infinite": {"k": float("inf")},
    "k is no number": {"k": "many"},
    "k is zero": {"k": 0},
    "k is huge": {"k": 10**30},
    "counts are negative": {"read": -1},
    "counts are lists": {"listed": [3]},
    "an input has two sides": {"input": [3, 224]},
    "an input is larger than any": {"input": [3, 1 << 14, 1 << 14], "preprocessing": None},
    "an input isn't the crop": {"input": [1, 224, 225]},
    "an input has other channels": {"input": [3, 224, 224]},
    "a crop is endless": {"preprocessing": MANIFEST["preprocessing"] | {"crop": [10**400, 224]}},
    "a resize is endless": {"preprocessing": MANIFEST["preprocessing"] | {"resize": 10**400}},
    "a resize of two sides is endless": {"preprocessing": MANIFEST["preprocessing"] | {"resize": [224, 1 << 40]}},
    "an input is endless": {"input": [3, 1 << 40, 224]},
    "a network is a number": {"network": 5},
    "a network has no model": {"network": {"weights": "default", "seed": 0, "hash": ""}},
    "a seed is no number": {"network": MANIFEST["network"] | {"seed": None}},
    "preprocessing lacks its mean": {"preprocessing": {"crop": [224, 224]}},
    "a crop is negative": {"preprocessing": MANIFEST["preprocessing"] | {"crop": [-1, 3]}},
    "an interpolation is unknown": {"preprocessing": MANIFEST["preprocessing"] | {"interpolation": "magic"}},
    "images are a list": {"images": []},
    "a folder has no folder": {"images": {"kind": "folder"}},
    "a list has no folder": {"images": {"kind": "list", "paths": ["a.png"]}},
    "a list's paths are numbers": {"images": {"kind": "list", "paths": [1], "folder": "."}},
    "files are a name": {"images": {"kind": "files", "files": "a.tar"}},
    "a total of contents is no number": {"images": MANIFEST["images"] | {"contents": "many"}},
    "a kind is a number": {"images": {"kind": 3}},
    "a trial found a number": {"trial": MANIFEST["trial"] | {"batch": 3}},
    "rounding is a word": {"trial": MANIFEST["trial"] | {"rounding": {"0": "much"}}},
}


def manifest_of(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "atlas.json").write_text(text)
    return folder


@pytest.mark.parametrize("problem", BROKEN_FIELDS)
def test_a_manifest_with_a_wrong_value_is_one_line_when_an_atlas_is_opened(tmp_path: Path, problem: str) -> None:
    manifest = {"format": FORMAT, **MANIFEST}
    assert Atlas(manifest_of(tmp_path / "sound", json.dumps(manifest))).k == 9
    with pytest.raises(AtlasError, match="is broken: atlas.json holds what it can't: ") as raised:
        Atlas(manifest_of(tmp_path / "wrong", json.dumps(manifest | BROKEN_FIELDS[problem])))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"format": 2, "a": ' + '{"a": ' * 100_000,
        '{"format": ' + "[" * 900 + "]" * 900 + "}",
        '{"format": ' + "9" * 10_000 + "}",
        json.dumps({"format": "x" * 100_000}),
        "2",
        "",
        "\x00",
        json.dumps({"format": FORMAT, **MANIFEST, "images": {"kind": "folder", "folder": "\udc80", "deep": {"a": [[[]]] * 9}}})[
            :-20
        ],
    ],
)
def test_text_that_is_no_manifest_is_one_short_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(AtlasError, match="can't be read|has format") as raised:
        Atlas(manifest_of(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@given(fields=st.dictionaries(st.sampled_from([*MANIFEST, "skipped", "per_image", "precision", "layers"]), json_values))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_of_anything_opens_or_is_one_line(tmp_path: Path, fields: dict[str, object]) -> None:
    try:
        atlas = Atlas(manifest_of(tmp_path, json.dumps({"format": FORMAT, **MANIFEST, **fields})))
    except AtlasError:
        return
    assert atlas.k > 0
    assert min(atlas.input_size) > 0
    assert atlas.why_no_network is None or "network" in atlas.why_no_network
    assert atlas.preprocessing is None or min(atlas.preprocessing.crop) > 0


@pytest.mark.parametrize(
    ("table", "column", "value", "problem"),
    [
        ("layers", "map_height", None, "lacks its name"),
        ("layers", "receptive_field_width", -3, "sizes of"),
        ("layers", "effective_field_width", 2**31 - 1, "sizes of"),
        ("layers", "units", -1, "has -1 units"),
        ("layers", "layer", "1", "the same name"),
        ("peaks", "unit", 10**6, "other units of layer"),
        ("peaks", "unit", -1, "other units of layer"),
        ("peaks", "rank", 0, "another rank than 1 to 9"),
        ("peaks", "rank", 10, "another rank than 1 to 9"),
        ("peaks", "rank", None, "another rank than 1 to 9"),
        ("units", "unit", None, "other units of layer"),
    ],
)
def test_a_figure_of_broken_tables_is_one_line(
    atlas: Atlas, tmp_path: Path, table: str, column: str, value: object, problem: str
) -> None:
    shutil.copytree(atlas.folder, tmp_path / "atlas")
    path = tmp_path / "atlas" / f"{table}.parquet"
    rows = pq.read_table(path)
    values = pa.array([value] * len(rows), rows.schema.field(column).type)
    pq.write_table(rows.set_column(rows.column_names.index(column), column, values), path)
    with pytest.raises(AtlasError, match=f"is broken: .*{problem}"):
        Atlas(tmp_path / "atlas").figure()


def test_a_network_of_an_impossible_number_of_layers_is_not_read(tmp_path: Path) -> None:
    schema = CORE_TABLES["layers"].schema
    many = pa.table({f.name: pa.array([None] * 200_000, f.type) for f in schema}, schema=schema)
    write_atlas(tmp_path / "atlas", tables() | {"layers": many}, MANIFEST)
    with pytest.raises(AtlasError, match="says that the network has 200,000 layers"):
        _ = Atlas(tmp_path / "atlas").layers


@pytest.mark.parametrize("model", ["/tmp/net.py:make", "net.py:make", "package.module:make", "os:system", "a:b:c", "new:thing"])
def test_code_that_an_atlas_names_is_not_run_in_python_unless_the_network_is_given(tmp_path: Path, model: str) -> None:
    write_atlas(tmp_path / "atlas", tables(0), MANIFEST | {"network": MANIFEST["network"] | {"model": model}})
    atlas = Atlas(tmp_path / "atlas")
    with pytest.raises(AtlasError, match="names code to build its network with.*--trust-code, or network= in Python"):
        unitscope.check(atlas)
    with pytest.raises(AtlasError, match="the weights of 'module:.*' are not those"):
        unitscope.check(atlas, small_network())


@pytest.mark.parametrize("images", [{}, {"kind": "magic"}, {"name": ""}])
def test_an_atlas_that_doesnt_say_where_its_images_are_is_one_line(tmp_path: Path, images: dict[str, str]) -> None:
    atlas = Atlas(manifest_of(tmp_path, json.dumps({"format": FORMAT, **MANIFEST, "images": images})))
    with pytest.raises(ImagesError, match="^the images were of a source that the atlas doesn't name; give it again: "):
        _ = atlas.source


def test_libraries_networks_are_no_code_of_an_atlas() -> None:
    assert set(LIBRARY_BUILDERS) == LIBRARIES


def tables(rows: int = 3) -> dict[str, pa.Table]:
    """The core tables with some made-up rows."""
    values = {pa.string(): "a", pa.bool_(): True}
    return {
        name: pa.table({c.name: pa.array([values.get(c.type, 7)] * rows, c.type) for c in spec.columns}, schema=spec.schema)
        for name, spec in CORE_TABLES.items()
    }


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    written = tables()
    write_atlas(tmp_path / "atlas", written, MANIFEST)
    atlas = Atlas(tmp_path / "atlas")
    for name, table in written.items():
        assert atlas.table(name).equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("occupant", ["an atlas", "something else", "a file"])
def test_nothing_is_ever_overwritten(tmp_path: Path, occupant: str) -> None:
    out = tmp_path / "out"
    if occupant == "an atlas":
        write_atlas(out, tables(), {})
    elif occupant == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    files = files_in(tmp_path)
    with pytest.raises(AtlasError, match="already holds an atlas|is not empty|is a file"):
        unitscope.scan(see_through(1), torch.ones(1, 1, 1, 1), out)
    assert files_in(tmp_path) == files


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_atlas(tmp_path / "out", tables(), MANIFEST)
    assert Atlas(tmp_path / "out").table("skipped").num_rows == 3


def test_the_current_folder_cant_become_an_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AtlasError, match="'.' is the folder that you are in"):
        new_atlas_folder(".")


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AtlasError, match="can't be made"):
        new_atlas_folder(tmp_path / "file" / "atlas")


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, "tests")
from test_atlas import tables
from unitscope.atlas import write_atlas
from unitscope.errors import AtlasError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = tables(int(sys.argv[3]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_atlas(sys.argv[1], written, {})
except AtlasError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the limit that stands for a full disk exists on POSIX only")
@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "atlas"), str(limit), "100"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert "can't be written: File too large" in ran.stdout
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
sys.path.insert(0, "tests")
from test_atlas import MANIFEST, tables
from unitscope.atlas import write_atlas
written = tables(20_000)
print("ready", flush=True)
for number in range(1_000):
    write_atlas(f"{sys.argv[1]}/{number}", written, MANIFEST)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_while_writing_leaves_a_whole_atlas_or_none(tmp_path: Path) -> None:
    chance, unfinished_count = random.Random(0), 0
    for attempt in range(10):
        folder = tmp_path / f"{attempt}"
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
        for atlas_folder in folder.glob("[0-9]*"):
            assert all(Atlas(atlas_folder).table(name).num_rows == 20_000 for name in CORE_TABLES)
        unfinished_count += len(list(folder.glob(".*.unfinished")))
    assert unfinished_count > 0  # or no kill came while something was written


def test_a_scan_clears_what_a_killed_one_left_and_nothing_of_one_that_runs(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    for process in (dead.stdout.strip(), "1"):
        (tmp_path / f".atlas.{process}.unfinished").mkdir()
    write_atlas(tmp_path / "atlas", tables(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".atlas.1.unfinished", "atlas"]


def test_a_link_is_followed_and_a_mount_point_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atlas(tmp_path / "link", tables(), MANIFEST)
    assert Atlas(tmp_path / "real").table("skipped").num_rows == 3
    with pytest.raises(AtlasError, match="is a mount point|is not empty"):
        new_atlas_folder("/proc")


def test_a_network_without_peaks_still_makes_an_atlas(tmp_path: Path) -> None:
    atlas = unitscope.scan(see_through(2, nn.ReLU()), -torch.ones(4, 2, 3, 3), tmp_path / "atlas")
    assert atlas.table("peaks").num_rows == 0
    assert atlas.units("1")["dead"].to_pylist() == [True, True]
    assert atlas.sample("1").num_rows == 8
    assert atlas.figure().size[0] > 100


# ── ties ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ties_are_those_that_counting_finds(tmp_path: Path) -> None:
    atlas = planted_atlas(tmp_path)
    counted = {unit: tie for unit in range(3) if (tie := shared(HIGHEST[:, unit])) is not None}
    assert {unit: tie.images for unit, tie in counted.items()} == {0: 24, 1: 19}
    for layer in ("1", "3"):
        ties = atlas.ties(layer)
        assert {unit: (tie.first, tie.last, tie.shown, tie.images) for unit, tie in ties.items()} == {
            unit: astuple(tie) for unit, tie in counted.items()
        }
        assert {unit: tie.wholly for unit, tie in ties.items()} == {0: True, 1: False}
        assert str(ties[1]) == "ranks 6 to 9: 4 of 19 images that tie"


@given(values=st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=3), min_size=1, max_size=30), k=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_ties_of_any_values_are_those_that_counting_finds(values: list[list[int]], k: int) -> None:
    highest = np.array(values)
    with TemporaryDirectory() as folder:
        images = torch.tensor(values, dtype=torch.float32)[:, :, None, None]
        ties = unitscope.scan(see_through(3, nn.ReLU()), images, Path(folder) / "atlas", k=k).ties("1")
    for unit in range(3):
        tie, expected = ties.get(unit), shared(highest[:, unit], k)
        assert (tie and (tie.first, tie.last, tie.shown, tie.images)) == (expected and astuple(expected))


def test_several_peaks_of_one_image_count_once_among_those_that_tie(tmp_path: Path) -> None:
    images = 6 * torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(0))  # no near-duplicates
    images[:, 0, ::4, ::4] = 7.0  # nine cells of each image have the same value
    (tie,) = unitscope.scan(see_through(1, nn.ReLU()), images, tmp_path / "atlas", k=9, per_image=3).ties("1").values()
    assert (tie.first, tie.last, tie.shown, tie.images) == (1, 9, 3, 5)


def test_an_atlas_of_before_opens_without_its_optional_columns(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    atlas = unitscope.scan(network, torch.randn(12, 3, 8, 8), tmp_path / "atlas", layers=["*"])
    assert [layer.shares_units_of for layer in atlas.layers] == [None, "0", "0"]
    path = atlas.folder / "layers.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["shares_units_of"]), path)
    old = Atlas(atlas.folder)
    assert [layer.name for layer in old.layers] == ["0", "1", "2"]
    assert {layer.shares_units_of for layer in old.layers} == {None}
    pq.write_table(table.drop_columns(["activation"]), path)
    with pytest.raises(AtlasError, match="it has no column 'activation'"):
        _ = Atlas(atlas.folder).layers
