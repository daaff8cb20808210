"""Added tables of units on the pages: without code for each, layer pages sort by them and unit pages list them."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explored import explored_atlas, explored_network, unit_values
from starlette.testclient import TestClient

from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import Column, added_table
from unitscope.experiments import colour_or_shape
from unitscope.web import create_explorer

KEY = (Column("layer", pa.string(), "the layer"), Column("unit", pa.int32(), "the unit"))
SPARSENESS = added_table(
    "sparseness", "unit", ("layer", "unit"), "How rarely a unit is active",
    (*KEY, Column("rarity", pa.float64(), "one less the activation rate"), Column("comment", pa.string(), "in words")),
    "python sparseness.py ATLAS",
)  # fmt: skip


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    """With `colour_or_shape`, and a table that this version doesn't know, of two units of one layer."""
    atlas = explored_atlas(tmp_path)
    colour_or_shape(atlas, explored_network())
    rows = [{"layer": "relu", "unit": unit, "rarity": 0.25 * unit, "comment": "?"} for unit in (0, 2)]
    write_table(pa.Table.from_pylist(rows, schema=SPARSENESS.schema), SPARSENESS, atlas)
    return Atlas(atlas.folder)


def site_of(atlas: Atlas) -> TestClient:
    return TestClient(create_explorer(atlas), base_url="http://localhost")


def test_a_layer_page_sorts_by_every_number_of_every_table(atlas: Atlas) -> None:
    page = site_of(atlas).get("/api/layers/relu.json").json()
    assert [key["column"] for key in page["sort_keys"][3:]] == [
        "colour_or_shape.peaks", "colour_or_shape.grey", "colour_or_shape.blurred", "colour_or_shape.scrambled",
        "colour_or_shape.mirrored", "sparseness.rarity",
    ]  # fmt: skip
    assert [entry["added"]["sparseness.rarity"] for entry in page["units"][:4]] == [0.0, None, 0.5, None]
    html = site_of(atlas).get("/layers/relu.html").text
    index = dict(re.findall(r'<option value="([^"]+)" data-index="(\d+)"', html))["sparseness.rarity"]
    assert unit_values(html)[int(index)][:4] == [0, None, 0.5, None]


def test_a_unit_page_lists_what_tables_say_of_it(atlas: Atlas) -> None:
    site = site_of(atlas)
    with_both, with_one = (site.get(f"/api/units/relu/{unit}.json").json()["tables"] for unit in (2, 1))
    assert [table["name"] for table in with_both] == ["colour_or_shape", "sparseness"]
    assert with_both[1]["columns"] == [{"name": "rarity", "description": "one less the activation rate", "value": 0.5}]
    assert [table["name"] for table in with_one] == ["colour_or_shape"]
    html = site.get("/units/relu/2.html").text
    assert "How rarely a unit is active" in html
    assert "<td><code>rarity</code></td><td>0.5</td>" in html
    assert '<th scope="row">One less the activation rate</th>' in html


def test_a_stale_table_is_named_and_not_shown(atlas: Atlas) -> None:
    peaks = pq.read_table(atlas.folder / "peaks.parquet")
    pq.write_table(peaks, atlas.folder / "peaks.parquet", compression="none")  # the same rows in other bytes
    site = site_of(Atlas(atlas.folder))
    page = site.get("/api/units/relu/2.json").json()
    assert page["tables"] == []
    assert set(page["table_errors"]) == {"colour_or_shape", "sparseness"}
    html = site.get("/layers/relu.html").text
    assert "The table colour_or_shape can\u0027t be shown" in html.replace("&#39;", "\u0027")
    assert "unitscope colour-or-shape" in html


def test_a_table_that_contradicts_the_layers_breaks_no_page(atlas: Atlas) -> None:
    path = atlas.folder / "tables" / "sparseness.parquet"
    table = pq.read_table(path)
    wrong = table.set_column(1, table.schema.field("unit"), pa.array([0, 9_999], pa.int32()))
    pq.write_table(wrong.replace_schema_metadata(table.schema.metadata), path)
    page = site_of(Atlas(atlas.folder)).get("/api/units/relu/0.json").json()
    assert [table["name"] for table in page["tables"]] == ["colour_or_shape"]
    assert "sparseness" in page["table_errors"]
