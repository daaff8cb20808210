"""What can be kept of a page: tables whose numbers are those of the atlas, in files that no spreadsheet runs, and pictures."""

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explored import LABELS, explored_atlas, tags_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planted import planted_atlas
from starlette.testclient import TestClient
from test_web import ELSEWHERE, HERE, changed

from unitscope.atlas import Atlas, pack
from unitscope.web import ExplorerOptions, create_explorer
from unitscope.web.addresses import slug
from unitscope.web.downloads import BLOCK_PX, MAX_SHEET_UNITS, as_csv, as_parquet, units_of_sheet


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return explored_atlas(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def site(atlas: Atlas) -> TestClient:
    return client(atlas)


def client(atlas: Atlas, **options: Any) -> TestClient:
    return TestClient(create_explorer(atlas, ExplorerOptions(**options)), base_url="http://localhost")


def csv_rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def parquet_rows(content: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(content)).to_pylist()


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_units_of_a_layer_are_those_of_the_atlas(site: TestClient, atlas: Atlas) -> None:
    rows = parquet_rows(site.get("/layers/relu@2.parquet").content)
    units = atlas.units("relu#2").to_pylist()
    for name in ("layer", "unit", "highest", "activation_rate", "mean", "lowest", "dead"):
        assert [row[name] for row in rows] == [unit[name] for unit in units]
    page = site.get("/api/layers/relu@2.json").json()
    assert [row["z_score"] for row in rows] == [unit["statistics"]["z_score"] for unit in page["units"]]
    assert [row["labels"] for row in rows] == [unit["labels"] for unit in page["units"]]


def test_the_peaks_of_a_unit_are_those_of_the_atlas(site: TestClient, atlas: Atlas) -> None:
    rows = parquet_rows(site.get("/units/relu/0.parquet").content)
    peaks = atlas.peaks("relu", 0).to_pylist()
    for name in ("layer", "unit", "rank", "value", "image", "y", "x"):
        assert [row[name] for row in rows] == [peak[name] for peak in peaks]
    for side in ("top", "left", "bottom", "right"):
        assert [row[f"receptive_field_{side}"] for row in rows] == [peak[f"source_{side}"] for peak in peaks]
    assert [row["key"] for row in rows] == [atlas.key(peak["image"]) for peak in peaks]


def test_the_sample_of_a_unit_is_that_of_the_atlas(site: TestClient, atlas: Atlas) -> None:
    rows = csv_rows(site.get("/units/relu/1-sample.csv").content)
    sample = [row for row in atlas.sample("relu").to_pylist() if row["unit"] == 1]
    by_image = {int(row["image"]): row for row in rows}
    assert [float(row["value"]) for row in rows] == sorted(row["value"] for row in sample)
    assert {image: (float(row["value"]), int(row["y"])) for image, row in by_image.items()} == {
        row["image"]: (row["value"], row["y"]) for row in sample
    }


@pytest.mark.parametrize(
    "path", ["index", "layers/relu", "units/relu@2/1", "units/relu/1-sample", "images/3", f"labels/{slug(LABELS[2])}"]
)
def test_csv_says_what_parquet_says_exactly(site: TestClient, path: str) -> None:
    texts, values = csv_rows(site.get(f"/{path}.csv").content), parquet_rows(site.get(f"/{path}.parquet").content)
    assert len(texts) == len(values) > 0
    for text_row, row in zip(texts, values, strict=True):
        assert list(text_row) == list(row)
        for name, value in row.items():
            if isinstance(value, bool):
                assert text_row[name] == str(value).lower()
            elif isinstance(value, float | int):
                assert type(value)(text_row[name]) == value
            elif value is None:
                assert text_row[name] == ""


def test_a_dead_unit_has_a_table_without_rows(site: TestClient) -> None:
    answer = site.get("/units/relu/3.csv")
    assert answer.status_code == 200
    assert csv_rows(answer.content) == []
    assert answer.text.startswith("layer,unit,rank,value,")
    assert pq.read_table(io.BytesIO(site.get("/units/relu/3.parquet").content)).num_rows == 0


HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "\uff1d1", '=HYPERLINK("http://evil.example","x")']


@pytest.mark.parametrize("text", HOSTILE)
def test_no_spreadsheet_takes_a_text_for_a_formula(text: str) -> None:
    content = as_csv(pa.table({text: [text, "plain"], "number": [-1.5, None]})).decode()
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert rows == [[f"'{text}", "number"], [f"'{text}", "-1.5"], ["plain", ""]]


def test_hostile_keys_and_labels_are_no_formulas(atlas: Atlas, tmp_path: Path) -> None:
    broken = changed(atlas, tmp_path / "atlas", "images", key=lambda key: f"=cmd|'{key}'", label=lambda label: f'@{label}",1')
    rows = csv_rows(client(broken).get("/units/relu/0.csv").content)
    assert len(rows) == 9
    assert all(row["key"].startswith("'=cmd") and row["label"].startswith("'@") for row in rows)


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8")))))
def test_what_is_written_is_read_again(rows: list[tuple[float, int, str]]) -> None:
    table = pa.table(
        {
            "value": pa.array([row[0] for row in rows], pa.float64()),
            "count": pa.array([row[1] for row in rows], pa.int64()),
            "text": pa.array([row[2] for row in rows], pa.string()),
        }
    )
    assert pq.read_table(io.BytesIO(as_parquet(table))).equals(table)
    read = [(float(row[0]), int(row[1]), row[2]) for row in list(csv.reader(io.StringIO(as_csv(table).decode(), newline="")))[1:]]
    assert [row[:2] for row in read] == [row[:2] for row in rows]
    assert all(text in (row[2], f"'{row[2]}") for (_, _, text), row in zip(read, rows, strict=True))


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def picture(answer: Any) -> Image.Image:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def test_a_block_to_keep_has_the_patches_of_its_unit(site: TestClient, atlas: Atlas) -> None:
    block = picture(site.get("/blocks/relu/0.png"))
    assert np.array_equal(np.asarray(block), np.asarray(atlas.unit("relu", 0).block(size_px=BLOCK_PX)))


def test_a_block_comes_from_packed_patches_where_the_images_are_gone(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "packed")
    pack(Atlas(tmp_path / "packed"))
    from_images = picture(client(Atlas(tmp_path / "packed")).get("/blocks/relu/0.png"))
    assert np.array_equal(np.asarray(from_images), np.asarray(picture(client(atlas).get("/blocks/relu/0.png"))))
    manifest = tmp_path / "packed" / "atlas.json"
    manifest.write_text(manifest.read_text().replace(str(atlas.manifest["images"]["folder"]), "/nowhere/photographs"))
    away = Atlas(tmp_path / "packed")
    from_patches = picture(client(away).get("/blocks/relu/0.png"))
    assert from_patches.size == from_images.size
    assert np.array_equal(np.asarray(from_patches), np.asarray(away.unit("relu", 0).block(size_px=BLOCK_PX)))


def test_a_sheet_shows_the_units_that_were_asked_for_in_their_order(site: TestClient, atlas: Atlas) -> None:
    for query, units in (("", None), ("?units=2,0", [2, 0]), ("?units=1,1,1", [1])):
        sheet = picture(site.get(f"/layers/relu.png{query}"))
        assert np.array_equal(np.asarray(sheet), np.asarray(atlas.sheet("relu", units)))


@pytest.mark.parametrize("units", ["", "a", "-1", "4", "0,99", "1;2", "0," * 9, "9" * 5000, "1.5", "٣"])
def test_a_sheet_of_no_units_of_the_layer_is_refused(site: TestClient, units: str) -> None:
    answer = site.get("/layers/relu.png", params={"units": units})
    assert answer.status_code == 422
    assert answer.text.startswith("This sheet can't be drawn: ")


def test_a_sheet_has_so_many_units_and_no_more(atlas: Atlas) -> None:
    layer = atlas.layer("relu")
    wide = type(layer)(**{name: getattr(layer, name) for name in layer.__slots__} | {"units": 3000})
    assert units_of_sheet(wide, None) == list(range(MAX_SHEET_UNITS))
    with pytest.raises(ValueError, match="up to 400"):
        units_of_sheet(wide, ",".join(map(str, range(MAX_SHEET_UNITS + 1))))


def test_pictures_that_cannot_be_drawn_are_not_offered(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "away")
    manifest = tmp_path / "away" / "atlas.json"
    manifest.write_text(manifest.read_text().replace(str(atlas.manifest["images"]["folder"]), "/nowhere/photographs"))
    site = client(Atlas(tmp_path / "away"))
    for path in ("/blocks/relu/0.png", "/layers/relu.png"):
        answer = site.get(path)
        assert answer.status_code == 404
        assert answer.text.startswith("This can't be drawn: ")
    for path in ("/layers/relu.html", "/units/relu/0.html"):
        addresses = offered(site, path)
        assert addresses
        assert not [address for address in addresses if address.endswith(".png")]


def test_units_without_a_preference_are_drawn_with_their_notice(tmp_path: Path) -> None:
    planted = planted_atlas(tmp_path)
    site = client(planted)
    for layer in planted.layers:
        assert picture(site.get(f"/layers/{slug(layer.name)}.png")).width > BLOCK_PX


# ── the menu ────────────────────────────────────────────────────────────────────────────────────────────────────────


def offered(site: TestClient, path: str) -> list[str]:
    html = site.get(path).text
    return [attributes["href"] or "" for tag, attributes in tags_of(html) if tag == "a" and "download" in attributes]


@pytest.mark.parametrize(
    ("path", "count"),
    [("/", 2), ("/layers/relu.html", 3), ("/units/relu/0.html", 5), ("/images/3.html", 2), ("/labels/cat.html", 2), ("/glossary.html", 0)],
)  # fmt: skip
def test_what_a_page_offers_is_there_and_is_saved(site: TestClient, path: str, count: int) -> None:
    addresses = offered(site, path)
    assert len(addresses) == count
    names = set()
    for address in addresses:
        answer = site.get(str(site.base_url.join(path).join(address).path))
        assert answer.status_code == 200
        match = re.fullmatch(
            r'attachment; filename="(atlas-0-[\w.~@-]+\.(csv|parquet|png))"', answer.headers["content-disposition"]
        )
        assert match is not None
        names.add(match[1])
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(names) == count, "no file is saved over another"


@pytest.mark.parametrize(
    "path",
    [
        "/layers/nothing.csv", "/layers/..%2f..%2fetc%2fpasswd.csv", "/layers/nothing.png", "/units/relu/4.csv", "/units/relu/4-sample.csv",
        "/units/nothing/0.parquet", "/blocks/relu/4.png", f"/blocks/relu/{'9' * 5000}.png", "/blocks/..%2frelu/0.png", "/images/99.csv",
        "/labels/x.csv", "/concepts/x.csv", "/classes/0.csv", "/mistakes/0-1.csv", "/predictions.csv", "/glossary.csv", "/index.json",
    ],
)  # fmt: skip
def test_what_no_page_shows_is_not_there(site: TestClient, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["/layers/relu.csv", "/units/relu/0-sample.csv", "/layers/relu.png", "/blocks/relu/0.png"])
def test_no_other_site_has_files_saved(site: TestClient, path: str) -> None:
    for headers in ELSEWHERE:
        assert site.get(path, headers=headers).status_code == 403
        assert site.post(path, headers=headers).status_code == 403
    for headers in HERE:
        assert site.get(path, headers=headers).status_code == 200
        assert site.post(path, headers=headers).status_code == 405


def test_a_broken_table_is_a_line_that_says_so(atlas: Atlas, tmp_path: Path) -> None:
    broken = changed(atlas, tmp_path / "atlas", "sample", image=lambda image: 10**12)
    answer = client(broken).get("/units/relu/0-sample.csv")
    assert answer.status_code == 500
    assert "names an image" in answer.text
