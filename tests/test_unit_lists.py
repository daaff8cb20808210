"""The lists of units that layer pages show, as files: the same units in the same order, whatever is asked for."""

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from explored import unit_values
from hypothesis import given
from hypothesis import strategies as st
from listed import ACTIVE, CONSTANT, DEAD, NEARLY_EQUAL, UNITS, listed_atlas
from starlette.testclient import TestClient

from unitscope.atlas import Atlas
from unitscope.atlas.meaning import read_meanings
from unitscope.atlas.tables import ADDED_TABLES
from unitscope.web import create_explorer
from unitscope.web.sort_keys import LABELS as COLUMN_LABELS
from unitscope.web.sort_keys import sort_key


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return listed_atlas(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def site(atlas: Atlas) -> Iterator[TestClient]:
    with TestClient(create_explorer(atlas), base_url="http://localhost") as site:
        yield site


@pytest.fixture(scope="module")
def entries(site: TestClient) -> list[dict[str, Any]]:
    units: list[dict[str, Any]] = site.get("/api/layers/1.json").json()["units"]
    assert any(unit["labels"] for unit in units)
    return units


def listed(site: TestClient, **query: str) -> list[int]:
    answer = site.get("/layers/1.csv", params=query)
    assert answer.status_code == 200, answer.text
    return [int(row["unit"]) for row in csv.DictReader(io.StringIO(answer.content.decode(), newline=""))]


def value(entry: dict[str, Any], column: str) -> float | None:
    """What the page's attributes have: six digits."""
    value = entry["added"][column] if "." in column else entry["statistics"][column]
    return None if value is None else float(f"{value:.6g}")


def expected(entries: list[dict[str, Any]], sort: str, order: str | None, query: dict[str, str]) -> list[int]:
    """By filtering one condition after the other, and sorting pairs."""
    kinds = {
        "all": lambda unit: True,
        "dead": lambda unit: unit["statistics"]["dead"],
        "not-dead": lambda unit: not unit["statistics"]["dead"],
        "always-active": lambda unit: unit["statistics"]["activation_rate"] == 1,
        "tied": lambda unit: unit["statistics"]["tie"] is not None,
        "no-preference": lambda unit: unit["statistics"]["tie"] is not None and unit["statistics"]["tie"]["first"] == 1,
        "facets": lambda unit: unit["several_facets"],
    }
    units = [unit for unit in entries if kinds[query.get("show", "all")](unit)]
    if label := query.get("label", "").lower():
        units = [unit for unit in units if [text for text in unit["labels"] if label in text.lower()]]
    if name := query.get("name", "").lower():
        units = [unit for unit in units if unit["name"] and name in unit["name"].lower()]
    if score := float(query.get("score", "0")):
        units = [unit for unit in units if (value(unit, "scores.predictability") or -1) >= score]
    if "units" in query:
        units = [unit for unit in units if str(unit["statistics"]["unit"]) in query["units"].split(",")]
    numbers = [unit["statistics"]["unit"] for unit in units]
    if sort == "unit":
        return numbers[::-1] if order == "descending" else numbers
    valued = [(value(unit, sort), unit["statistics"]["unit"]) for unit in units if not unit["statistics"]["dead"]]
    known = [(number, unit) for number, unit in valued if number is not None]
    known.sort(key=lambda pair: pair[1])
    known.sort(key=lambda pair: pair[0], reverse=order != "ascending")  # stable: equal values stay by number
    first = [unit for _, unit in known]
    return [*first, *(unit for unit in numbers if unit not in first)]


@given(
    st.sampled_from(["unit", "highest", "activation_rate", "z_score", "scores.predictability", "scores.facets", "names.r_b", "names.f1"]),
    st.sampled_from([None, "ascending", "descending"]),
    st.fixed_dictionaries(
        {},
        optional={
            "show": st.sampled_from(["all", "dead", "not-dead", "always-active", "tied", "no-preference", "facets"]),
            "label": st.sampled_from(["", "A", "cat", "fish", "nothing"]),
            "name": st.sampled_from(["", "DOG", "dogs &", "stripes"]),
            "score": st.sampled_from(["0", "0.5", ".7", "0.700000", "1"]),
            "units": st.sampled_from(["0,1,2,3,4,5,6,7,8,9", "11", "23,3"]),
        },
    ),
)  # fmt: skip
def test_a_list_has_what_is_asked_for_in_its_order(
    site: TestClient, entries: list[dict[str, Any]], sort: str, order: str | None, query: dict[str, str]
) -> None:
    ordered = {"sort": sort} | ({} if order is None else {"order": order})
    assert listed(site, **ordered, **query) == expected(entries, sort, order, query)


def test_a_list_without_a_choice_has_all_units_by_number(site: TestClient) -> None:
    assert listed(site) == list(range(UNITS))
    assert listed(site, sort="unit", order="descending") == list(range(UNITS))[::-1]


def test_dead_units_and_those_without_a_value_come_last_in_either_order(site: TestClient) -> None:
    without = sorted({*DEAD, 4, 8, 20})
    for order in ("ascending", "descending"):
        assert listed(site, sort="scores.predictability", order=order)[-len(without) :] == without


def test_values_that_pages_write_alike_are_equal(site: TestClient) -> None:
    for order in ("ascending", "descending"):
        units = [unit for unit in listed(site, sort="scores.predictability", order=order) if unit in NEARLY_EQUAL]
        assert units == sorted(NEARLY_EQUAL)


def test_kinds_of_units_are_found(site: TestClient) -> None:
    assert listed(site, show="dead") == list(DEAD)
    assert set(ACTIVE) <= set(listed(site, show="always-active"))
    assert listed(site, show="no-preference") == [CONSTANT]
    assert listed(site, units="9,2,9") == [2, 9]


def test_rows_are_those_of_the_whole_layer(site: TestClient) -> None:
    whole = {row["unit"]: row for row in pq.read_table(io.BytesIO(site.get("/layers/1.parquet").content)).to_pylist()}
    answer = site.get("/layers/1.parquet", params={"sort": "scores.predictability", "order": "ascending", "name": "dog"})
    rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    assert rows == [whole[row["unit"]] for row in rows]
    assert answer.headers["content-disposition"].endswith(f'-{len(rows)}-units.parquet"')


def test_names_that_are_doubted_say_so(site: TestClient, atlas: Atlas) -> None:
    """In the table, in the grid, and in the list of all layers' units, as on the page of each unit."""
    beliefs = {number: meaning.belief for number, meaning in enumerate(read_meanings(atlas, "1")) if meaning.name}
    assert set(beliefs.values()) == {None, "perhaps", "weakly"}
    rows = pq.read_table(io.BytesIO(site.get("/layers/1.parquet").content)).to_pylist()
    assert {row["unit"]: row["belief"] for row in rows if row["name"]} == beliefs
    assert {row["belief"] for row in rows if not row["name"]} == {None}
    blocks = re.findall(r"<li data-unit=.*?</li>", site.get("/layers/1.html").text)
    for unit, belief in beliefs.items():
        assert (f'class="unit-name doubted" title="{belief}"' in blocks[unit]) == (belief is not None)
    listed_units = site.get("/api/units.json", params={"layer": "1"}).json()["units"]
    assert {entry["unit"]: entry["belief"] for entry in listed_units if entry["name"]} == beliefs


def test_a_list_without_units_has_the_columns_of_all(site: TestClient) -> None:
    for kind in ("csv", "parquet"):
        whole, none = (site.get(f"/layers/1.{kind}", params=query).content for query in ({}, {"name": "nothing"}))
        if kind == "csv":
            assert none == whole.splitlines(keepends=True)[0]
        else:
            assert pq.read_schema(io.BytesIO(none)) == pq.read_schema(io.BytesIO(whole))


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "layer"}, {"sort": "statistics"}, {"sort": "__class__"}, {"sort": "scores.embedder"}, {"sort": ""}, {"sort": "../../etc/passwd"},
        {"order": "down"}, {"order": ""}, {"show": "favourites"}, {"show": "<script>"}, {"score": "nan"}, {"score": "-1"}, {"score": "1e400"},
        {"score": ""}, {"score": "."}, {"score": "٣"}, {"score": "9" * 5000}, {"units": ""}, {"units": "24"}, {"units": "-1"}, {"units": "1;2"},
        {"units": "9" * 5000}, {"units": "0," * 9},
    ],
    ids=lambda query: str(query)[:40],
)  # fmt: skip
def test_what_no_page_lists_is_refused(site: TestClient, query: dict[str, str]) -> None:
    for kind in ("csv", "parquet"):
        answer = site.get(f"/layers/1.{kind}", params=query)
        assert answer.status_code == 422
        assert answer.text.startswith("These units can't be listed: ")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "content-disposition" not in answer.headers


def test_hostile_texts_list_nothing(site: TestClient) -> None:
    for text in ("\0", "%00", "'; drop table units", "\ufffd" * 1000, "(a+)+$", "=cmd|' /C calc'!A0"):
        assert listed(site, label=text) == listed(site, name=text) == []


def test_a_score_is_asked_for_where_there_are_scores(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "unscored")
    (tmp_path / "unscored" / "tables" / "scores.parquet").unlink()
    site = TestClient(create_explorer(Atlas(tmp_path / "unscored")), base_url="http://localhost")
    answer = site.get("/layers/1.csv", params={"score": "0.5"})
    assert answer.status_code == 422
    assert "unitscope score" in answer.text


# ── labels of columns ───────────────────────────────────────────────────────────────────────────────────────────────


def test_columns_are_called_by_words(site: TestClient) -> None:
    columns = {
        f"{spec.name}.{column.name}": sort_key(spec, column) for spec in ADDED_TABLES.values() for column in spec.numeric_columns
    }
    assert set(COLUMN_LABELS) <= set(columns), "a label is of no column"
    assert len(set(COLUMN_LABELS.values())) == len(COLUMN_LABELS)
    assert not [key for key in columns.values() if "_" in key.label]
    html = site.get("/layers/1.html").text
    assert '<optgroup label="Scores"><option value="scores.predictability"' in html
    assert "tells right (scores.predictability)" in html or "tell right (scores.predictability)" in html, "the column's own name"
    assert html.count("<optgroup") == html.count("</optgroup>") == 2


# ── troughs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_troughs_of_a_unit_are_those_of_the_atlas(site: TestClient, atlas: Atlas) -> None:
    answer = site.get("/units/2/1-troughs.parquet")
    assert answer.headers["content-disposition"] == 'attachment; filename="atlas-units-2-1-troughs.parquet"'
    rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    troughs = atlas.troughs("2", 1).to_pylist()
    assert len(troughs) == 9
    for name in ("layer", "unit", "rank", "value", "image", "y", "x"):
        assert [row[name] for row in rows] == [trough[name] for trough in troughs]
    for side in ("top", "left", "bottom", "right"):
        assert [row[f"receptive_field_{side}"] for row in rows] == [trough[f"source_{side}"] for trough in troughs]
    texts = list(csv.DictReader(io.StringIO(site.get("/units/2/1-troughs.csv").content.decode(), newline="")))
    assert [float(row["value"]) for row in texts] == [trough["value"] for trough in troughs]
    assert min(float(row["value"]) for row in texts) < 0, "with a hyphen, which programs read"
    assert list(texts[0]) == list(rows[0]) == pq.read_schema(io.BytesIO(site.get("/units/2/1.parquet").content)).names


def test_troughs_are_offered_where_there_are_some(site: TestClient) -> None:
    for path, is_offered in (("2/1", True), ("1/1", False)):
        assert (f"../../units/{path}-troughs.csv" in site.get(f"/units/{path}.html").text) == is_offered
    for path in ("1/1-troughs.csv", "2/6-troughs.csv", "nothing/0-troughs.parquet"):
        assert site.get(f"/units/{path}").status_code == 404


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_write_a_true_minus_and_what_programs_read_a_hyphen(site: TestClient, atlas: Atlas) -> None:
    lowest = atlas.troughs("2", 1).to_pylist()[0]["value"]
    html = site.get("/units/2/1.html").text
    assert f">{lowest:.3g}<".replace("-", "\u2212") in html
    assert f">{lowest:.3g}<" not in html
    layer = site.get("/layers/1.html").text
    assert min(value for value in unit_values(layer)[0] if value is not None) < 0, "dead units have a highest value below zero"
