"""Lists of units of all layers, against the tables of the layers, filtered and sorted by hand."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow.parquet as pq
import pytest
from explored import tags_of
from listed import listed_atlas
from starlette.testclient import TestClient

from unitscope.atlas import Atlas
from unitscope.web import create_explorer, export

Row = dict[str, str]
ELSEWHERE = {"sec-fetch-site": "cross-site"}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return listed_atlas(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def site(atlas: Atlas) -> Iterator[TestClient]:
    with TestClient(create_explorer(atlas), base_url="http://localhost") as client:
        yield client


def rows_of(content: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


@pytest.fixture(scope="module")
def every_row(site: TestClient, atlas: Atlas) -> list[Row]:
    """Those of all layers, as the layers' own tables have them."""
    return [row for layer in atlas.layers for row in rows_of(site.get(f"/layers/{layer.name}.csv").content)]


def units_of(rows: list[Row]) -> list[tuple[str, int]]:
    return [(row["layer"], int(row["unit"])) for row in rows]


def sorted_by(rows: list[Row], column: str, sign: int) -> list[Row]:
    """In six digits; dead units, and those without a value, come last; the rows come by layer and number."""

    def place(row: Row) -> tuple[bool, float]:
        value = "" if row["dead"] == "true" else row.get(column, "")
        return value == "", sign * float(f"{float(value or 0):.6g}")

    return sorted(rows, key=place)


CHOICES: dict[str, Any] = {
    "": lambda rows: rows,
    "order=descending": lambda rows: rows[::-1],
    "sort=highest": lambda rows: sorted_by(rows, "highest", -1),
    "sort=z_score&order=ascending&show=not-dead": lambda rows: sorted_by([row for row in rows if row["dead"] == "false"], "z_score", 1),
    "sort=scores.predictability": lambda rows: sorted_by(rows, "scores.predictability", -1),
    "sort=scores.predictability&order=ascending&score=0.7": lambda rows: sorted_by(
        [row for row in rows if float(row.get("scores.predictability") or 0) >= 0.7], "scores.predictability", 1
    ),
    "name=DOG&sort=names.r_b": lambda rows: sorted_by([row for row in rows if "dog" in row["name"].lower()], "names.r_b", -1),
    "label=cat&layer=2": lambda rows: [row for row in rows if row["layer"] == "2" and "cat" in row["labels"]],
    "show=dead&sort=&order=&label=&name=&score=&layer=": lambda rows: [row for row in rows if row["dead"] == "true"],
}  # fmt: skip


@pytest.mark.parametrize("query", CHOICES)
def test_a_list_has_the_units_that_are_asked_for_in_their_order(site: TestClient, every_row: list[Row], query: str) -> None:
    expected = units_of(CHOICES[query](every_row))
    assert expected
    assert units_of(rows_of(site.get(f"/units.csv?{query}").content)) == expected
    table = pq.read_table(io.BytesIO(site.get(f"/units.parquet?{query}").content))
    assert list(zip(table["layer"].to_pylist(), table["unit"].to_pylist(), strict=True)) == expected
    page = site.get(f"/api/units.json?{query}").json()
    assert [(unit["layer"], unit["unit"]) for unit in page["units"]] == expected
    assert (page["fitting_units"], page["network_units"]) == (len(expected), len(every_row))
    html = site.get(f"/units.html?{query}").text
    blocks = [attributes["href"] for tag, attributes in tags_of(html) if tag == "a" and attributes.get("class") == "block"]
    assert blocks == [f"units/{layer}/{unit}.html" for layer, unit in expected]


def test_a_table_has_what_the_tables_of_layers_have(site: TestClient, every_row: list[Row]) -> None:
    rows = rows_of(site.get("/units.csv").content)
    assert set(rows[0]) == {name for row in every_row for name in row}
    assert [{name: value for name, value in row.items() if value} for row in rows] == [
        {name: value for name, value in row.items() if value} for row in every_row
    ]


@pytest.mark.parametrize("query", list(CHOICES)[1:])
def test_the_page_and_its_files_ask_for_the_same(site: TestClient, query: str) -> None:
    answer = site.get(f"/units.html?{query}")
    address = str(answer.url.query, "ascii")
    assert all(part.partition("=")[2] for part in address.split("&")), "an address has no more than it has to"
    files = [attributes["href"] or "" for tag, attributes in tags_of(answer.text) if tag == "a" and "download" in attributes]
    asked = dict(parse_qsl(address.lower()))
    assert [file.partition("?")[0] for file in files] == ["units.csv", "units.parquet"]
    assert [dict(parse_qsl(file.partition("?")[2])) for file in files] == [asked, asked]
    selected = {attributes["value"] for tag, attributes in tags_of(answer.text) if tag == "option" and "selected" in attributes}
    assert {asked[name] for name in ("sort", "order", "show") if name in asked} <= selected


@pytest.mark.parametrize(
    "query",
    ["sort=nothing", "order=up", "show=favourites", "score=-1", "score=nan", "score=1e3", "name=" + "x" * 1001, "sort=__class__", "sort=unit%00"],
)  # fmt: skip
def test_what_no_unit_has_is_refused_with_the_reason(site: TestClient, query: str) -> None:
    for path in ("/units.html", "/units.csv", "/units.parquet", "/api/units.json"):
        answer = site.get(f"{path}?{query}")
        assert answer.status_code == 422
        assert "These units can" in answer.text


def test_texts_that_are_asked_for_are_escaped(site: TestClient) -> None:
    hostile = '"><script>alert(1)</script>'
    html = site.get("/units.html", params={"name": hostile, "layer": hostile, "label": hostile}).text
    assert "<script>alert" not in html
    assert "No unit fits" in html
    assert [attributes["value"] for tag, attributes in tags_of(html) if tag == "input" and attributes.get("value")] == [
        hostile
    ] * 3


def test_a_list_without_units_is_a_table_without_rows(site: TestClient) -> None:
    answer = site.get("/units.csv?name=nobody")
    assert answer.status_code == 200
    assert rows_of(answer.content) == []
    assert answer.text.startswith("layer,unit,")
    assert site.get("/units.csv?layer=nothing").status_code == 422


def test_a_list_is_bounded(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitscope.web.network_lists.MAX_LISTED", 5)
    page = site.get("/api/units.json?sort=highest").json()
    assert (len(page["units"]), page["fitting_units"]) == (5, 30)
    assert len(rows_of(site.get("/units.csv?sort=highest").content)) == 30
    monkeypatch.setattr("unitscope.web.network_lists.MAX_UNITS", 24)
    answer = site.get("/units.csv")
    assert (answer.status_code, answer.text) == (
        422,
        "These units can't be listed: these layers have 30 units; name layers that have up to 24.",
    )
    assert len(rows_of(site.get("/units.csv?layer=2").content)) == 6


def test_no_other_site_has_a_list_saved(site: TestClient) -> None:
    assert site.get("/units.csv", headers=ELSEWHERE).status_code == 403
    assert site.get("/units.html", headers=ELSEWHERE).status_code == 200, "a link leads to it"


def test_an_exported_site_has_no_link_to_it(atlas: Atlas, site: TestClient, tmp_path: Path) -> None:
    export(atlas, tmp_path / "site")
    assert "units.html" not in (tmp_path / "site" / "index.html").read_text()
    assert 'href="units.html"' in site.get("/").text
