"""The tables of an atlas: each is declared once, and written, found, read and judged by its declaration."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import small_network

import unitscope
from unitscope.atlas import ADDED_TABLES, CORE_TABLES, Atlas, Column, TableSpec, added_table, check_table_writable, write_table
from unitscope.atlas.attribution_images import Attribution, encode_attribution
from unitscope.atlas.tables import ATLAS_TABLES, ATTRIBUTION_METHODS, COLOUR_OR_SHAPE, OWN_TABLES
from unitscope.attribution.store import AttributionStore
from unitscope.errors import AtlasError, LayerNotFound
from unitscope.records import Box

LAYER, UNIT = (CORE_TABLES["units"].columns[number] for number in (0, 1))
CONCEPTS = added_table(
    "concepts", "unit", ["layer", "unit"], "What a unit responds to",
    [LAYER, UNIT, Column("name", pa.string(), "the concept"), Column("correlation", pa.float64(), "how well it fits")],
    "my-concepts --of ATLAS",
)  # fmt: skip


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    images = torch.randn(30, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return unitscope.scan(small_network(), images, tmp_path_factory.mktemp("tables") / "atlas")


@pytest.fixture
def atlas(scanned: Atlas, tmp_path: Path) -> Atlas:
    """A copy that a test may add to."""
    shutil.copytree(scanned.folder, tmp_path / "atlas")
    return Atlas(tmp_path / "atlas")


def some_rows(spec: TableSpec, atlas: Atlas) -> pa.Table:
    """Two rows of every unit of every layer, as far as the key tells them apart, in an order of no meaning."""
    keys = [(layer.name, unit, number) for layer in atlas.layers for unit in range(layer.units) for number in (1, 2)]
    if "layer" in spec.key and len(spec.key) == 2:
        keys = [key for key in keys if key[2] == 1]
    if spec.key == ("layer",):
        keys = [key for key in keys if key[1:] == (0, 1)]
    key_values = {name: [key[index] for key in keys] for index, name in enumerate(("layer", "unit", "rank"))}
    kinds: dict[pa.DataType, Callable[[int], Any]] = {
        pa.string(): str, pa.binary(): lambda row: b"%d" % row, pa.bool_(): lambda row: row % 2 == 0,
        pa.list_(pa.float32()): lambda row: [row / 2], pa.list_(pa.int32()): lambda row: [row],
    }  # fmt: skip
    columns = {c.name: key_values.get(c.name) or [kinds.get(c.type, int)(row) for row in range(len(keys))] for c in spec.columns}
    table = pa.table({c.name: pa.array(columns[c.name], c.type) for c in spec.columns}, schema=spec.schema)
    return table.take(pa.array(sorted(range(len(keys)), key=lambda row: (row * 7) % 5)))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """The file with another table in it."""
    pq.write_table(change(pq.read_table(path)), path)


def declare(path: Path, **changes: Any) -> None:
    """The file with other values in its declaration."""
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"unitscope"]) | changes
    pq.write_table(table.replace_schema_metadata({b"unitscope": json.dumps(metadata).encode()}), path)


def scan_other_images(atlas: Atlas) -> Atlas:
    """The same folder with the core tables of another scan, as if the atlas had been made anew around the added tables."""
    other = unitscope.scan(small_network(), torch.randn(30, 3, 14, 14), atlas.folder.with_name("other"))
    for spec in CORE_TABLES.values():
        shutil.copy(other.folder / spec.file, atlas.folder / spec.file)
    return Atlas(atlas.folder)


# ── declared ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_declaration_is_sound() -> None:
    files = [spec.file for spec in (ATLAS_TABLES | OWN_TABLES).values()]
    assert len(set(files)) == len(files)
    for name, spec in (ATLAS_TABLES | OWN_TABLES).items():
        names = [column.name for column in spec.columns]
        assert spec.name == name
        assert len(set(names)) == len(names)
        assert set(spec.key) <= set(names)
        assert spec.command.startswith("unitscope ")
        assert not {column.name for column in spec.numeric_columns} & set(spec.key)
    assert [column.name for column in COLOUR_OR_SHAPE.numeric_columns] == ["peaks", "grey", "blurred", "scrambled", "mirrored"]


@pytest.mark.parametrize("name", ["", "a/b", "../peaks", ".hidden", "a\0b", "-"])
def test_a_table_has_a_name_that_a_file_can_have(name: str) -> None:
    with pytest.raises(AtlasError, match="a table can't have the name"):
        added_table(name, "unit", ["layer", "unit"], "", [LAYER, UNIT], "")


# ── written and read ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*ADDED_TABLES, "concepts"])
def test_what_is_written_is_what_is_read_in_the_order_of_its_key(atlas: Atlas, name: str) -> None:
    spec = ADDED_TABLES.get(name, CONCEPTS)
    order = [layer.name for layer in atlas.layers]
    rows = some_rows(spec, atlas)
    written = write_table(rows, spec, atlas, parameters={"a": [1, None]}, versions={"torch": "2.0"})
    expected = sorted(rows.to_pylist(), key=lambda row: [order.index(row[k]) if k == "layer" else row[k] for k in spec.key])
    assert written.to_pylist() == expected
    read = Atlas(atlas.folder).table(name)
    assert read.equals(written)
    assert read.schema.metadata is None
    if "layer" in spec.key:
        assert atlas.table(name, "4").to_pylist() == [row for row in expected if row["layer"] == "4"]
        assert atlas.table(name, "4", columns=spec.schema.names[1:2]).column_names == spec.schema.names[1:2]


@pytest.mark.parametrize("name", OWN_TABLES)
def test_a_table_of_no_single_atlas_lies_in_its_folder(tmp_path: Path, scanned: Atlas, name: str) -> None:
    spec = OWN_TABLES[name]
    rows = some_rows(spec, scanned)
    assert write_table(rows, spec, tmp_path / "new").equals(rows)
    file = pq.ParquetFile(tmp_path / "new" / spec.file)
    assert file.read().replace_schema_metadata(None).equals(rows)
    metadata = json.loads(file.schema_arrow.metadata[b"unitscope"])
    assert (metadata["table"], metadata["level"], metadata["peaks"]) == (name, spec.level, None)


def test_the_same_input_gives_the_same_bytes(atlas: Atlas) -> None:
    path = atlas.folder / CONCEPTS.file
    rows = some_rows(CONCEPTS, atlas)
    write_table(rows, CONCEPTS, atlas, parameters={"b": 1, "a": 2})
    first = path.read_bytes()
    time.sleep(0.01)
    write_table(rows.slice(3).cast(CONCEPTS.schema), CONCEPTS, atlas)
    assert path.read_bytes() != first
    backwards = rows.take(pa.array(range(len(rows) - 1, -1, -1)))
    write_table(backwards.select(CONCEPTS.schema.names[::-1]), CONCEPTS, Atlas(atlas.folder), parameters={"a": 2, "b": 1})
    assert path.read_bytes() == first


def test_a_table_says_how_it_was_made(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas, parameters={"metric": "pearson"}, versions={"torch": "2.0"})
    (summary,) = [table for table in atlas.tables() if table.name == "concepts"]
    provenance = summary.provenance
    assert provenance is not None
    assert (provenance.command, provenance.parameters) == ("my-concepts --of ATLAS", {"metric": "pearson"})
    assert provenance.versions == {"torch": "2.0", "unitscope": version("unitscope")}
    assert provenance.peaks == atlas.peaks_hash
    assert len(atlas.peaks_hash) == 32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), "has two rows of the same layer, unit"),
        (lambda rows: rows.set_column(0, "layer", pa.array(["nowhere"] * len(rows))), "of a layer that the atlas lacks"),
        (lambda rows: rows.set_column(1, "unit", pa.nulls(len(rows), pa.int32())), "has a row without layer or unit"),
    ],
)
def test_rows_that_their_key_doesnt_tell_apart_are_not_written(atlas: Atlas, change: Any, text: str) -> None:
    with pytest.raises(AtlasError, match=text):
        write_table(change(some_rows(CONCEPTS, atlas)), CONCEPTS, atlas)
    assert not (atlas.folder / "tables").exists()


def test_no_table_takes_the_place_of_one_of_unitscopes(atlas: Atlas) -> None:
    for name in ("peaks", "colour_or_shape"):
        spec = added_table(name, "unit", CONCEPTS.key, "", CONCEPTS.columns, "")
        for ask in (
            lambda spec=spec: check_table_writable(spec, atlas),
            lambda spec=spec: write_table(some_rows(CONCEPTS, atlas), spec, atlas),
        ):
            with pytest.raises(AtlasError, match=f"can't be added as {name!r}: unitscope has another table of that name"):
                ask()
    assert not (atlas.folder / "tables").exists()


WRITER = """
import sys
sys.path.insert(0, "tests")
from test_tables import CONCEPTS, some_rows
from unitscope.atlas import Atlas, write_table
atlas = Atlas(sys.argv[1])
rows = some_rows(CONCEPTS, atlas)
print("ready", flush=True)
for number in range(100_000):
    write_table(rows, CONCEPTS, atlas, parameters={"number": number})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_while_writing_leaves_a_whole_table_and_the_next_write_clears_up(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    folder, leftovers = atlas.folder / "tables", 0
    for attempt in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(atlas.folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + attempt / 200)
            os.kill(process.pid, signal.SIGKILL)
        assert atlas.table("concepts").num_rows == len(some_rows(CONCEPTS, atlas))
        assert {table.name for table in atlas.tables()} == {*CORE_TABLES, "concepts"}
        leftovers += len(list(folder.glob(".*.unfinished")))
    assert leftovers > 0  # or no kill came while something was written
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    assert [path.name for path in folder.iterdir()] == ["concepts.parquet"]


# ── listed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_of_tables_is_json_and_says_what_each_holds(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    write_table(some_rows(COLOUR_OR_SHAPE, atlas), COLOUR_OR_SHAPE, atlas)
    listed = json.loads(json.dumps([table.described() for table in atlas.tables()]))
    assert [table["name"] for table in listed] == [*CORE_TABLES, "colour_or_shape", "concepts"]
    for table in listed:
        assert table["rows"] == atlas.row_count(table["name"]) == atlas.table(table["name"]).num_rows
        assert (table["stale"], table["problem"]) == (False, None)
    names = listed[-1]
    assert (names["level"], names["key"], names["description"]) == ("unit", ["layer", "unit"], "What a unit responds to")
    assert names["columns"][-1] == {"name": "correlation", "type": "double", "description": "how well it fits"}
    assert [table["command"] for table in listed[-2:]] == ["unitscope colour-or-shape ATLAS", "my-concepts --of ATLAS"]


def test_a_page_finds_numbers_of_units_without_knowing_their_table(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    write_table(some_rows(ADDED_TABLES["gradient"], atlas), ADDED_TABLES["gradient"], atlas)
    numeric = {
        table.name: [column.name for column in table.spec.numeric_columns]
        for table in atlas.tables()
        if table.level == "unit" and table.spec is not None and table.problem is None
    }
    assert list(numeric) == ["units", "concepts"]
    assert numeric["concepts"] == ["correlation"]


# ── joined to units ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_come_with_the_columns_of_other_tables_of_units(atlas: Atlas) -> None:
    rows = some_rows(CONCEPTS, atlas)
    kept = [row for row in rows.to_pylist() if row["layer"] != "4" or row["unit"] != 2]
    write_table(pa.Table.from_pylist(kept, schema=CONCEPTS.schema), CONCEPTS, atlas)
    write_table(some_rows(COLOUR_OR_SHAPE, atlas), COLOUR_OR_SHAPE, atlas)
    write_table(some_rows(ADDED_TABLES["gradient"], atlas), ADDED_TABLES["gradient"], atlas)
    plain = atlas.units("4")
    joined, all_joined = atlas.units("4", joined=["concepts"]), atlas.units("4", joined=True)
    assert joined.column_names == [*plain.column_names, "concepts.name", "concepts.correlation"]
    assert all_joined.column_names == [
        *plain.column_names,
        *(f"colour_or_shape.{c.name}" for c in COLOUR_OR_SHAPE.columns[2:]),
        *joined.column_names[-2:],
    ]
    expected = {row["unit"]: row["correlation"] for row in kept if row["layer"] == "4"}
    assert joined["concepts.correlation"].to_pylist() == [expected.get(unit) for unit in range(5)]
    assert joined["concepts.correlation"].to_pylist()[2] is None
    assert joined.select(plain.column_names).equals(plain)


def test_what_cant_be_joined_to_units_is_named(atlas: Atlas) -> None:
    write_table(some_rows(ADDED_TABLES["gradient"], atlas), ADDED_TABLES["gradient"], atlas)
    with pytest.raises(AtlasError, match="'gradient' can't be joined to units: its rows are by layer, unit, rank"):
        atlas.units("4", joined=["gradient"])
    with pytest.raises(AtlasError, match="'colour_or_shape' yet; make it with: unitscope colour-or-shape "):
        atlas.units("4", joined=["colour_or_shape"])
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    rewrite(atlas.folder / CONCEPTS.file, lambda rows: pa.concat_tables([rows, rows]))
    with pytest.raises(AtlasError, match="is broken: its table concepts has two rows of one unit of layer '4'"):
        atlas.units("4", joined=True)
    rewrite(atlas.folder / CONCEPTS.file, lambda rows: rows.set_column(1, "unit", pa.array([99] * len(rows), pa.int32())))
    with pytest.raises(AtlasError, match="is broken: its table concepts has other units of layer '4' than 0 to 4"):
        atlas.units("4", joined=True)


# ── missing, stale, foreign and broken ──────────────────────────────────────────────────────────────────────────────


def test_a_table_that_isnt_there_is_named_with_what_there_is(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    with pytest.raises(
        AtlasError, match=r"has no table 'concept_s'\. Close: 'concepts'.* It has: layers, images, .*, skipped, concepts$"
    ):
        atlas.table("concept_s")
    for name in ("../atlas/peaks", "tables/concepts", ".concepts", ""):
        with pytest.raises(AtlasError, match="has no table"):
            atlas.table(name)
    with pytest.raises(LayerNotFound, match="has no layer 'nowhere'"):
        atlas.table("concepts", "nowhere")
    with pytest.raises(AtlasError, match="can't be read"):
        atlas.table("images", "4")


@pytest.mark.parametrize("name", ADDED_TABLES)
def test_a_table_that_isnt_made_yet_is_named_with_the_command_that_makes_it(atlas: Atlas, name: str) -> None:
    verbs = {
        "colour_or_shape": "colour-or-shape ATLAS",
        "class_probability": "occlude ATLAS LAYER UNIT",
        "names": "name ATLAS",
        "visual_tuning": "name ATLAS",
        "scores": "score ATLAS",
        "facets": "score ATLAS",
        "mean_maps": "effects ATLAS",
        "effects": "effects ATLAS",
        "predictions": "effects ATLAS",
        "mistakes": "effects ATLAS",
        "shortcuts": "effects ATLAS",
        "effect_layers": "effects ATLAS --verify N",
        "knockouts": "knock-out ATLAS LAYER UNIT",
        "circuits": "circuits ATLAS",
        "patches": "pack ATLAS",
        "pictures": "pack ATLAS",
    }
    command = "unitscope " + verbs.get(name, f"attribute ATLAS --method {name}").replace("ATLAS", str(atlas.folder))
    with pytest.raises(AtlasError) as raised:
        atlas.table(name)
    assert str(raised.value) == f"the atlas {str(atlas.folder)!r} has no table {name!r} yet; make it with: {command}"


def test_a_stale_table_is_refused_and_listed_as_such(atlas: Atlas) -> None:
    for spec in (COLOUR_OR_SHAPE, CONCEPTS):
        write_table(some_rows(spec, atlas), spec, atlas)
    other = scan_other_images(atlas)
    assert atlas.table("concepts").num_rows > 0  # who opened the atlas before looks at it as it was
    stale = "is stale, since it was made from other peaks; make it again"
    with pytest.raises(AtlasError, match=f"'colour_or_shape' .* {stale} with: unitscope colour-or-shape {other.folder}$"):
        other.table("colour_or_shape")
    with pytest.raises(AtlasError, match=f"'concepts' .* {stale}, or remove it; 'my-concepts --of ATLAS' made it$"):
        other.units("4", joined=["concepts"])
    assert {table.name for table in other.tables() if table.stale} == {"colour_or_shape", "concepts"}
    assert all("is stale" in (table.problem or "") for table in other.tables() if table.stale)
    write_table(some_rows(COLOUR_OR_SHAPE, other), COLOUR_OR_SHAPE, other)
    assert other.table("colour_or_shape").num_rows > 0


def test_a_stale_attribution_is_neither_drawn_nor_kept(atlas: Atlas) -> None:
    network = small_network()
    before = Atlas(atlas.folder, images=torch.randn(30, 3, 14, 14, generator=torch.Generator().manual_seed(0)))
    unitscope.attribute(before, "gradient", network, layers=["1"], units=[0, 1])
    images = torch.randn(30, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    other = unitscope.scan(network, images, atlas.folder.with_name("other"))
    shutil.copytree(before.folder / "tables", other.folder / "tables")
    for draw in (
        lambda: other.sheet("1", attribution="gradient"),
        lambda: other.figure(attribution="gradient"),
        lambda: other.attributions("gradient", "1"),
        lambda: other.attributed("gradient"),
    ):
        with pytest.raises(
            AtlasError, match="'gradient' .* is stale.* make it again with: unitscope attribute .* --method gradient"
        ):
            draw()
    unitscope.attribute(other, "gradient", network, layers=["1"], units=[1])
    assert other.attributed("gradient") == {("1", 1)}


def test_pieces_of_other_peaks_are_not_taken_in(atlas: Atlas) -> None:
    def projection(unit: int) -> Attribution:
        return Attribution("1", unit, 1, Box(0, 0, 2, 2), *encode_attribution(np.ones((3, 2, 2), dtype=np.float32)))

    with AttributionStore(atlas, "gradient").locked() as store:
        store.add(projection(0))
    other = scan_other_images(atlas)
    with AttributionStore(other, "gradient").locked() as store:
        store.add(projection(3))
        store.finish()
    assert other.attributed("gradient") == {("1", 3)}


def test_a_table_of_another_program_is_read_by_what_it_declares(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    declare(atlas.folder / CONCEPTS.file, level="unit", description="Of another kind", columns={"name": "what"})
    (summary,) = [table for table in atlas.tables() if table.name == "concepts"]
    assert summary.spec is not None
    assert summary.spec.description == "Of another kind"
    assert [column.description for column in summary.spec.columns] == ["", "", "what", ""]
    assert atlas.table("concepts", "4").num_rows == 5


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no Parquet": (lambda path: path.write_bytes(b"nothing"), "can't be read"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "can't be read"),
    "no metadata": (lambda path: rewrite(path, lambda rows: rows.replace_schema_metadata(None)), "doesn't say what it holds"),
    "metadata that is no JSON": (
        lambda path: rewrite(path, lambda rows: rows.replace_schema_metadata({b"unitscope": b"{"})), "its metadata is broken",
    ),
    "metadata that lacks a field": (
        lambda path: rewrite(path, lambda rows: rows.replace_schema_metadata({b"unitscope": b"{}"})), "its metadata is broken",
    ),
    "metadata without end": (
        lambda path: rewrite(path, lambda rows: rows.replace_schema_metadata({b"unitscope": b"[" * 100_000})), "its metadata is broken",
    ),
    "another table": (lambda path: declare(path, table="others"), "it holds the table 'others'"),
    "key columns that it lacks": (lambda path: declare(path, key=["layer", "cell"]), "it lacks key columns"),
    "no key": (lambda path: declare(path, key=[]), "it lacks key columns"),
    "units that are words": (
        lambda path: rewrite(path, lambda rows: rows.set_column(1, "unit", rows["layer"])), "a unit by its number",
    ),
    "peaks that nobody knows": (lambda path: declare(path, peaks=None), "is stale"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_or_foreign_file_is_one_line_and_leaves_the_other_tables(atlas: Atlas, how: str) -> None:
    break_file, text = BROKEN[how]
    for spec in (COLOUR_OR_SHAPE, CONCEPTS):
        write_table(some_rows(spec, atlas), spec, atlas)
    break_file(atlas.folder / CONCEPTS.file)
    with pytest.raises(AtlasError, match=text) as raised:
        atlas.table("concepts")
    assert "\n" not in str(raised.value)
    listed = {table.name: table.described() for table in atlas.tables()}
    assert listed["concepts"]["problem"] == str(raised.value)
    assert listed["colour_or_shape"]["problem"] is None
    json.dumps(listed)


@pytest.mark.parametrize("name", ADDED_TABLES)
def test_a_known_table_that_lacks_a_column_is_one_line(atlas: Atlas, name: str) -> None:
    spec = ADDED_TABLES[name]
    write_table(some_rows(spec, atlas), spec, atlas)
    required = [column.name for column in spec.columns if not column.optional][-1]
    rewrite(atlas.folder / spec.file, lambda rows: rows.drop_columns([required]))
    with pytest.raises(AtlasError, match=f"{name}.parquet' can't be read: it has no column '{required}'"):
        atlas.table(name)


def test_what_else_lies_in_the_folder_of_tables_is_no_table(atlas: Atlas) -> None:
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    folder = atlas.folder / "tables"
    for name in ("notes.txt", ".hidden.parquet", "peaks.parquet"):
        (folder / name).write_text("mine")
    assert [table.name for table in atlas.tables()] == [*CORE_TABLES, "concepts"]
    assert atlas.table("peaks").num_rows == atlas.row_count("peaks") > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda held: st.lists(held, max_size=3) | st.dictionaries(st.text(max_size=5), held, max_size=3),
    max_leaves=5,
)
FIELDS = ("table", "level", "key", "description", "columns", "command", "parameters", "versions", "peaks")


@given(changes=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_declaration_of_anything_is_read_or_one_line(scanned: Atlas, tmp_path: Path, changes: dict[str, Any]) -> None:
    if not (tmp_path / "atlas").exists():
        shutil.copytree(scanned.folder, tmp_path / "atlas")
    atlas = Atlas(tmp_path / "atlas")
    write_table(some_rows(CONCEPTS, atlas), CONCEPTS, atlas)
    declare(atlas.folder / CONCEPTS.file, **changes)
    (summary,) = [table for table in atlas.tables() if table.name == "concepts"]
    assert json.dumps(summary.described())
    if summary.problem is None:
        assert atlas.table("concepts").num_rows == summary.rows
    else:
        with pytest.raises(AtlasError):
            atlas.table("concepts")


def test_attributions_are_tables_like_others(atlas: Atlas) -> None:
    assert set(ATTRIBUTION_METHODS) < set(ADDED_TABLES)
    assert atlas.methods == []
    spec = ADDED_TABLES["gradient"]
    rows = write_table(some_rows(spec, atlas), spec, atlas)
    assert atlas.methods == ["gradient"]
    assert atlas.attributions("gradient", "4").equals(atlas.table("gradient", "4"))
    assert atlas.attributions("gradient", "4", unit=[1, 3])["unit"].to_pylist() == [1, 1, 3, 3]
    assert atlas.attributed("gradient") == set(zip(rows["layer"].to_pylist(), rows["unit"].to_pylist(), strict=True))
    for ask in (lambda: atlas.attributions("gradent", "4"), lambda: atlas.attributed("gradent")):
        with pytest.raises(AtlasError, match="attribution is one of activation, .*, not 'gradent'. Close: 'gradient'"):
            ask()
