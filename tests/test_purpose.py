"""What pages say of what units are for: classes, mistakes, effects, circuits, and why a picture has its class."""

import csv
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from io import BytesIO, StringIO
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explored import parts_of
from photographs import write_photographs
from PIL import Image
from starlette.testclient import TestClient
from test_effects import AS_IT_IS, CLASSES, classifier

import unitscope
from unitscope import web
from unitscope.atlas import Atlas
from unitscope.effects import find_circuits, knock_out, measure_effects
from unitscope.effects.explaining import open_explainer
from unitscope.responses import open_responses
from unitscope.web import ExplorerOptions, create_explorer
from unitscope.web.openapi import PATHS
from unitscope.web.purpose import PurposeQueries


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """An atlas with every table that says what units are for."""
    folder = tmp_path_factory.mktemp("complete")
    photographs = write_photographs(folder / "photographs", 24, (20, 16), CLASSES)
    network = classifier()
    atlas = unitscope.scan(network, photographs, folder / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), sample=24)
    measure_effects(atlas, network, verify=2)
    knock_out(atlas, {"4": [1]}, network)
    find_circuits(atlas, network)
    return Atlas(atlas.folder)


@pytest.fixture
def site(complete: Atlas) -> Iterator[TestClient]:
    with explorer(complete) as client:
        yield client


@contextmanager
def explorer(atlas: Atlas) -> Iterator[TestClient]:
    """The pages, with the network to run."""
    network = classifier()
    with open_responses(atlas, network) as run_network, open_explainer(atlas, network) as explainer:
        options = ExplorerOptions(
            run_network=run_network,
            explain_image=lambda image, question: explainer.explain(
                image, question.explained, question.against, question.taken_away
            ),
        )
        yield TestClient(create_explorer(atlas, options), base_url="http://localhost")


def png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_json_of_classes_and_mistakes_is_what_the_description_says(site: TestClient, complete: Atlas) -> None:
    cell = next(
        (row["label_class"], row["predicted"])
        for row in complete.table("predictions").to_pylist()
        if row["label_class"] != row["predicted"]
    )
    addresses = {
        "/api/predictions.json": "/api/predictions.json",
        "/api/classes/{position}.json": "/api/classes/1.json",
        "/api/images/{image}.json": f"/api/images/{complete.table('predictions')['image'][0]}.json",
        "/api/mistakes/{label_class}-{predicted}.json": f"/api/mistakes/{cell[0]}-{cell[1]}.json",
        "/api/units/{layer}/{unit}.json": "/api/units/4/1.json",
    }
    for path, address in addresses.items():
        answer = site.get(address)
        assert answer.status_code == 200, address
        assert msgspec.json.encode(msgspec.json.decode(answer.content, type=PATHS[path])) == answer.content


def test_pages_say_what_the_tables_say(site: TestClient, complete: Atlas) -> None:
    rows = complete.table("predictions").to_pylist()
    counts = {(row["label_class"], row["predicted"]): row["images"] for row in rows}
    page = site.get("/api/predictions.json").json()
    assert page["images"] == page["labelled"] == 24
    assert page["right"] == sum(count for (label, predicted), count in counts.items() if label == predicted)
    assert [m["images"] for m in page["mistakes"]] == sorted((m["images"] for m in page["mistakes"]), reverse=True)
    effects = [row for row in complete.table("effects", "4").to_pylist() if row["unit"] == 1]
    unit = site.get("/api/units/4/1.json").json()["effects"]
    shown = {row["position"]: row["effect"] for row in (*unit["raised"], *unit["lowered"])}
    assert shown == {row["class"]: pytest.approx(row["effect"]) for row in effects}
    assert unit["trust"]["exact"]
    assert {row["position"] for row in unit["knockouts"]} == {0, 1, 2}
    html = site.get("/units/4/1.html").text
    assert "so these" in html
    assert "are exact" in html
    assert re.search(r"Taken away for real", html)
    assert 'class="circuit"' in html
    fed_by = site.get("/api/units/7/0.json").json()["circuit"]["fed_by"]
    own = {row["source_unit"]: row["contribution"] for row in complete.table("circuits", "7").to_pylist() if row["unit"] == 0}
    assert {unit["unit"]: unit["contribution"] for unit in fed_by} == {
        unit: pytest.approx(value) for unit, value in own.items() if unit >= 0
    }
    feeds = site.get("/api/units/4/2.json").json()["circuit"]["feeds"]
    assert {unit["layer"] for unit in feeds} == {"7"}


def test_a_standard_error_is_announced_where_there_is_one(site: TestClient, complete: Atlas, tmp_path: Path) -> None:
    assert "Effect on its score ± s.e.</th>" in site.get("/units/4/1.html").text
    folder = tmp_path / "atlas"
    shutil.copytree(complete.folder, folder)
    path = folder / "tables" / "effects.parquet"
    table = pq.read_table(path)
    index = table.column_names.index("standard_error")
    pq.write_table(table.set_column(index, table.schema.field(index), pa.nulls(len(table), pa.float32())), path)
    with TestClient(create_explorer(Atlas(folder)), base_url="http://localhost") as without:
        html = without.get("/units/4/1.html").text
    assert "Effect on its score</th>" in html
    assert "s.e." not in html


def test_signs_of_effects_are_those_of_print(site: TestClient) -> None:
    html = site.get("/units/4/1.html").text
    signs = re.findall(r"<td>([+\-−])[\d.e−]+(?: ±|</td>)", html)
    assert set(signs) == {"+", "−"}


def test_classes_have_pages(site: TestClient, complete: Atlas) -> None:
    page = site.get("/api/classes/2.json").json()
    rows = [row for row in complete.table("effects").to_pylist() if row["class"] == 2]
    for layer in page["layers"]:
        effects = sorted(row["effect"] for row in rows if row["layer"] == layer["layer"])
        assert [unit["effect"] for unit in layer["raising"]] == pytest.approx([e for e in effects[::-1] if e > 0][:6])
        assert [unit["effect"] for unit in layer["lowering"]] == pytest.approx([e for e in effects if e < 0][:6])
    assert "fish" in site.get("/classes/2.html").text
    assert site.get("/classes/3.html").status_code == 404
    assert site.get("/mistakes/0-99.html").status_code == 404
    assert '"classes":[["cat",0]' in site.get("/search-index.js").text


def test_a_class_leads_to_its_images_and_its_output_unit(complete: Atlas, tmp_path: Path) -> None:
    web.export(complete, tmp_path / "site")
    parts = parts_of(tmp_path / "site")
    rows = {row["image"]: row for row in complete.table("predictions").to_pylist()}
    images = {row["image"]: row for row in complete.table("images").to_pylist()}
    [last] = complete.manifest["class_layers"]
    with TestClient(create_explorer(complete), base_url="http://localhost") as site:
        for position, name in enumerate(CLASSES):
            page = site.get(f"/api/classes/{position}.json").json()
            assert (page["label"], page["label_images"]) == (name, 8)
            assert page["output_units"] == [{"layer": last, "unit": position}]
            assert {images[shown["image"]["image"]]["label"] for shown in page["shown_images"]} == {name}
            assert len(page["shown_images"]) == len({shown["image"]["image"] for shown in page["shown_images"]}) == 8
            for shown in page["shown_images"]:
                row = rows.get(shown["image"]["image"])
                assert (shown["prediction"] or {}).get("predicted") == (row["predicted"] if row else None)
            html = site.get(f"/classes/{position}.html").text
            assert f'href="../units/{last}/{position}.html"' in html
            assert f'href="../../classes/{position}.html"' in site.get(f"/units/{last}/{position}.html").text
            assert f"page.html#classes/{position}" in parts[f"units/{last}/{position}"][1]
            first = complete.layers[0].name
            assert site.get(f"/api/units/{first}/{position}.json").json()["class_position"] is None
            assert f"images/{page['shown_images'][0]['image']['image']}.html" in html
            assert f"page.html#labels/{name}" in parts[f"classes/{position}"][1]
            assert f"class {position}</a> of the network's outputs" in site.get(f"/labels/{name}.html").text


def test_labels_of_another_kind_are_not_those_of_classes(tmp_path: Path) -> None:
    """Effects by labels that go across those that the scan read: no label is said to be a class."""
    photographs = write_photographs(tmp_path / "photographs", 24, (20, 16), CLASSES)
    atlas = unitscope.scan(classifier(), photographs, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), sample=24)
    labels = {atlas.key(image): CLASSES[image % 3] for image in atlas.table("images")["image"].to_pylist()}
    measure_effects(atlas, classifier(), labels=labels)
    with TestClient(create_explorer(Atlas(atlas.folder)), base_url="http://localhost") as site:
        page = site.get("/api/classes/0.json").json()
        assert page["label"] is None
        assert {shown["prediction"]["label_class"] for shown in page["shown_images"]} == {0}
        assert "of the network's outputs" not in site.get(f"/labels/{CLASSES[0]}.html").text


def test_units_of_classes_and_mistakes_can_be_kept(site: TestClient, complete: Atlas) -> None:
    page = site.get("/api/classes/2.json").json()
    units = [unit for layer in page["layers"] for unit in (*layer["raising"], *layer["lowering"])]
    assert pq.read_table(BytesIO(site.get("/classes/2.parquet").content)).to_pylist() == units != []
    mistake = site.get("/api/predictions.json").json()["mistakes"][0]
    mistakes = list(csv.DictReader(StringIO(site.get("/predictions.csv").text)))
    assert [int(row["images"]) for row in mistakes] == [
        row["images"] for row in site.get("/api/predictions.json").json()["mistakes"]
    ]
    assert mistakes[0]["predicted_name"] == mistake["predicted_name"]
    path = f"mistakes/{mistake['label_class']}-{mistake['predicted']}"
    rows = list(csv.DictReader(StringIO(site.get(f"/{path}.csv").text)))
    assert [(row["layer"], float(row["difference"])) for row in rows] == [
        (unit["layer"], unit["difference"]) for unit in site.get(f"/api/{path}.json").json()["units"]
    ]


def test_images_of_a_mistake_come_with_how_certain_the_network_is(site: TestClient, complete: Atlas) -> None:
    rows = complete.table("predictions").to_pylist()
    for label, predicted in set(site_cells(complete)):
        own = sorted(
            (r for r in rows if (r["label_class"], r["predicted"]) == (label, predicted)), key=lambda r: -r["probability"]
        )
        path = f"mistakes/{label}-{predicted}"
        kept = list(csv.DictReader(StringIO(site.get(f"/{path}-images.csv").text)))
        assert [(int(row["rank"]), row["key"]) for row in kept] == [(rank, row["key"]) for rank, row in enumerate(own, start=1)]
        assert [float(row["probability"]) for row in kept] == pytest.approx([row["probability"] for row in own])
        assert [float(row["label_probability"]) for row in kept] == pytest.approx(
            [row["top_probabilities"][row["top_classes"].index(label)] for row in own]
        )
        assert pq.read_table(BytesIO(site.get(f"/{path}-images.parquet").content)).num_rows == len(own)
        html = site.get(f"/{path}.html").text
        assert f'href="../{path}-images.csv"' in html
        shown = re.findall(r'class="certainty"><span class="rank">(\d+)\.</span> (\w+) <b>[\d.]+ %</b>, (\w+) <b>', html)
        assert shown == [(str(rank), CLASSES[predicted], CLASSES[label]) for rank in range(1, len(own) + 1)]
    assert site.get("/mistakes/0-99-images.csv").status_code == 404


def test_the_page_of_predictions_has_the_most_certain_mistakes(site: TestClient, complete: Atlas) -> None:
    wrong = [row for row in complete.table("predictions").to_pylist() if row["label_class"] != row["predicted"]]
    page = site.get("/api/predictions.json").json()
    order = sorted(wrong, key=lambda row: (-row["probability"], row["image"]))
    assert [shown["shown"]["image"] for shown in page["most_certain"]] == [row["image"] for row in order[:12]]
    highest = {
        cell: max(r["probability"] for r in wrong if (r["label_class"], r["predicted"]) == cell) for cell in site_cells(complete)
    }
    assert {(m["label_class"], m["predicted"]): m["probability"] for m in page["mistakes"]} == pytest.approx(highest)
    kept = list(csv.DictReader(StringIO(site.get("/predictions.csv").text)))
    assert [float(row["probability"]) for row in kept] == [mistake["probability"] for mistake in page["mistakes"]]
    assert f">{page['most_certain'][0]['label_name']} taken for " in site.get("/predictions.html").text


def test_a_picture_is_explained_and_units_taken_away(site: TestClient, complete: Atlas) -> None:
    file = sorted(Path(complete.manifest["images"]["folder"]).rglob("*.png"))[3]
    content = file.read_bytes()
    html = site.post("/image-search?layer=4&class=dog&not=0", content=content).text
    assert "Why dog, not cat?" in html
    scores = [float(text) for text in re.findall(r"The score is (-?[\d.]+)\.", html)]
    unit = re.search(r'name="without" value="4:(\d)"', html)
    assert unit is not None
    assert "data-map=" in html
    without = site.post(f"/image-search?layer=4&class=dog&not=0&without=4:{unit[1]}", content=content).text
    assert re.search(rf'value="4:{unit[1]}"[^>]* checked', without)
    assert f'href="units/4/{unit[1]}.html">4 unit {unit[1]}</a>' in without
    rows = re.findall(r'<th scope="row">(\w+)</th>' + r"<td>([^<]+)</td>" * 6, without)
    assert {row[0] for row in rows} == set(CLASSES)
    before, after = ({row[0]: float(row[column].replace("−", "-")) for row in rows} for column in (1, 2))
    assert before["dog"] - before["cat"] == pytest.approx(scores[0], abs=0.02)
    assert f"With all units it is {re.findall(r'The score is (.+?) ', html)[0]}" in without.replace("−", "-")
    assert after != before
    assert "Before is the whole network" not in html
    assert [float(text) for text in re.findall(r"The score is (-?[\d.]+)\.", without)] != scores
    assert 'name="class" value="dog"' in html
    assert 'name="not" value="cat"' in html
    assert "Why dog, not cat?" in site.post("/image-search?class=%20dog%20&not=cat+", content=content).text
    assert "blocks/4/1.jpg?patch=" not in html
    whole = site.post("/image-search?layer=4&class=dog", content=content, headers={"Cookie": "unitscope-patch=image"}).text
    assert re.search(r'src="blocks/4/\d\.jpg\?patch=image"', whole)
    hostile = (
        ("class=dgo", "no class 'dgo'"), ("layer=nothing", "no layer 'nothing'"), ("without=4:99", "99"),
        ("class=dog&not=1", "'dog' can't be held against itself"),
    )  # fmt: skip
    for question, words in hostile:
        answer = site.post(f"/image-search?{question}", content=content)
        assert (answer.status_code, words in answer.text) == (422, True), question


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return sparse_atlas(tmp_path_factory.mktemp("sparse"))


def sparse_atlas(folder: Path) -> Atlas:
    """Forty images, one peak a unit and no sample: few have a page."""
    images = write_photographs(folder / "images", 40, (20, 16), CLASSES)
    atlas = unitscope.scan(
        classifier(), images, folder / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), k=1, sample=1, candidates=1
    )
    measure_effects(atlas, classifier())
    return atlas


def links_of(site: TestClient, page: str) -> list[str]:
    """Where a page's links to search by image lead, with a question."""
    return [unescape(link) for link in re.findall(r'href="\.\./(image-search\.html\?[^"]+)"', site.get(page).text)]


def test_names_of_classes_are_suggested(site: TestClient, complete: Atlas, tmp_path: Path) -> None:
    html = site.get("/image-search.html").text
    assert re.findall(r'<option value="(\w+)"></option>', html) == sorted(CLASSES)
    assert 'list="class-names"' in site.post("/image-search?image=3").text
    with TestClient(
        create_explorer(complete, ExplorerOptions(search_off_reason="it is off")), base_url="http://localhost"
    ) as off:
        assert "datalist" not in off.get("/image-search.html").text
    folder = tmp_path / "atlas"
    shutil.copytree(complete.folder, folder)
    hostile = [f'<b>" {number}' for number in range(5000)]
    classes = pa.table({"class": pa.array(range(5000), pa.int32()), "name": hostile, "node": pa.nulls(5000, pa.string())})
    pq.write_table(classes, folder / "classes.parquet")
    names = PurposeQueries(Atlas(folder), dict).suggested_names(2000)
    assert len(names) == 2000
    assert set(hostile[:3]) <= set(names)


def test_a_wrong_name_is_answered_with_those_that_are_close(site: TestClient) -> None:
    close = {"DGO": "dog", "is": "fish", "caat": "cat", "Fishes": "fish"}
    for asked, name in close.items():
        answer = site.post(f"/image-search?image=3&class={asked}")
        assert (answer.status_code, f"Close: '{name}'" in answer.text) == (422, True), answer.text
    assert "Close" not in site.post("/image-search?image=3&class=%3Cxyz%3E").text


def test_each_picture_of_a_mistake_leads_to_why_it_is_one(sparse: Atlas) -> None:
    """One click: what the link names is explained as the same file is when it is uploaded."""
    folder = Path(sparse.manifest["images"]["folder"])
    rows = sparse.table("predictions").to_pylist()
    with explorer(sparse) as site:
        for label_class, predicted in {(row["label_class"], row["predicted"]) for row in rows}:
            shown = [row for row in rows if (row["label_class"], row["predicted"]) == (label_class, predicted)]
            links = links_of(site, f"/mistakes/{label_class}-{predicted}.html")
            assert len(links) == len(shown)
            for row, link in zip(sorted(shown, key=lambda row: row["rank"]), links, strict=True):
                question = link.partition("?")[2]
                answer = site.post(f"/image-search?{question}").text
                uploaded = site.post(
                    f"/image-search?{question.partition('&')[2]}", content=(folder / row["key"]).read_bytes()
                ).text
                against = "" if label_class == predicted else f", not {CLASSES[label_class]}"
                assert f"Why {CLASSES[predicted]}{against}?" in answer
                assert explained(answer) == explained(uploaded)
                picture = re.search(r'id="uploaded-image" href="([^"]+)"', answer)
                assert picture is not None
                assert site.get(f"/{picture[1]}").headers["content-type"] == "image/jpeg"


def explained(html: str) -> str:
    """What a piece of a page says of why, without which image it is of."""
    return html.partition('<section class="why"')[2]


def test_the_page_of_an_image_leads_to_why(site: TestClient) -> None:
    link = links_of(site, "/images/3.html")[0]
    answer = site.post(f"/image-search?{link.partition('?')[2]}")
    assert "Why " in answer.text
    assert 'href="images/3.html"' in answer.text


def test_the_page_of_an_image_says_what_the_network_takes_it_for(complete: Atlas, tmp_path: Path) -> None:
    """Without a network, served and exported: the classes of the table, and whether that is what the label says."""
    web.export(complete, tmp_path / "site")
    parts = parts_of(tmp_path / "site")
    rows = {row["image"]: row for row in complete.table("predictions").to_pylist()}
    said = set()
    with TestClient(create_explorer(complete), base_url="http://localhost") as site:
        for image in complete.table("images")["image"].to_pylist():
            prediction = site.get(f"/api/images/{image}.json").json()["prediction"]
            html = site.get(f"/images/{image}.html").text
            part = parts[f"images/{image}"][1]
            if image not in rows:
                assert prediction is None
                assert "This atlas doesn't say what" in html
                continue
            row = rows[image]
            label, predicted = row["label_class"], row["predicted"]
            top = [(known["position"], known["probability"]) for known in prediction["shown"]["top"]]
            assert top == [
                (p, pytest.approx(share)) for p, share in zip(row["top_classes"], row["top_probabilities"], strict=True)
            ]
            assert [known["name"] for known in prediction["shown"]["top"]] == [CLASSES[position] for position, _ in top]
            assert prediction["shown"]["label_probability"] == pytest.approx(dict(top)[label])
            assert f'classes/{predicted}.html">{CLASSES[predicted]}</a></h2>' in html
            assert ("<strong>Right:" in html, "<strong>Wrong:" in html) == (label == predicted, label != predicted)
            assert (f"../mistakes/{label}-{predicted}.html" in html) == (label != predicted)
            assert (f"page.html#mistakes/{label}-{predicted}" in part) == (label != predicted)
            assert f"page.html#classes/{predicted}" in part
            said.add(label == predicted)
    assert said == {True, False}


def test_predictions_of_other_images_are_not_those_of_an_image(complete: Atlas, tmp_path: Path) -> None:
    """Effects can be measured over other images, whose numbers say nothing; and without the table nothing is said."""
    folder = tmp_path / "atlas"
    shutil.copytree(complete.folder, folder)
    path = folder / "tables" / "predictions.parquet"
    table = pq.read_table(path)
    index = table.column_names.index("key")
    others = pa.array([f"other {key}" for key in table["key"].to_pylist()])
    pq.write_table(table.set_column(index, table.schema.field(index), others), path)
    image = table["image"][0].as_py()
    with TestClient(create_explorer(Atlas(folder)), base_url="http://localhost") as site:
        assert site.get(f"/api/images/{image}.json").json()["prediction"] is None
        assert "takes it for" in site.get(f"/images/{image}.html").text
    path.unlink()
    with TestClient(create_explorer(Atlas(folder)), base_url="http://localhost") as site:
        assert "takes it for" not in site.get(f"/images/{image}.html").text


@pytest.mark.parametrize("name", ["image", "predicted-image"])
@pytest.mark.parametrize("number", ["99999", "-1", "", "1" * 40, "../../etc/passwd", "٣", "1e1", "%00"])
def test_images_are_named_by_their_number_alone(sparse: Atlas, name: str, number: str) -> None:
    with explorer(sparse) as site:
        answer = site.post(f"/image-search?{name}={number}")
    assert (answer.status_code, answer.text) == (404, "The atlas has no image of that number.")


def test_numbers_of_images_without_a_page_are_no_others(sparse: Atlas) -> None:
    known = set(sparse.table("images")["image"].to_pylist())
    predicted = {row["image"] for row in sparse.table("predictions").to_pylist()} - known
    with explorer(sparse) as site:
        assert site.post(f"/image-search?image={min(predicted)}").status_code == 404
        assert site.post(f"/image-search?predicted-image={min(known)}").status_code == 404


def test_another_site_explains_no_image(site: TestClient) -> None:
    assert site.post("/image-search?image=3", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert site.get("/image-search?image=3").status_code == 405


def test_an_image_that_changed_or_has_gone_is_not_explained(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "images", 24, (20, 16), CLASSES)
    atlas = unitscope.scan(classifier(), folder, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), sample=24)
    measure_effects(atlas, classifier())
    with explorer(atlas) as site:
        Image.new("RGB", (16, 20)).save(folder / atlas.key(3))
        (folder / atlas.key(4)).unlink()
        answers = [site.post(f"/image-search?image={image}") for image in (3, 4)]
    assert [(answer.status_code, answer.text) for answer in answers] == [
        (422, "The image has changed: it is not the image that was scanned."),
        (422, "The image can't be opened: No such file or directory."),
    ]


def test_an_image_with_too_many_pixels_is_not_explained(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitscope.web.image_search.MAX_UPLOAD_PIXELS", 10)
    assert site.post("/image-search?image=3").status_code == 422


@pytest.mark.parametrize("has_search_off_reason", [False, True])
def test_where_no_network_runs_the_page_says_which_command_explains(complete: Atlas, has_search_off_reason: bool) -> None:
    cell = next(iter(site_cells(complete)))
    options = ExplorerOptions(search_off_reason="it is off" if has_search_off_reason else None)
    site = TestClient(create_explorer(complete, options), base_url="http://localhost")
    page = f"/mistakes/{cell[0]}-{cell[1]}.html"
    assert f"unitscope why ATLAS IMAGE --class {cell[1]} --not {cell[0]}" in site.get(page).text
    assert links_of(site, page) == links_of(site, "/images/3.html") == []


def test_an_exported_mistake_says_which_command_explains(complete: Atlas, tmp_path: Path) -> None:
    web.export(complete, tmp_path / "site")
    parts = parts_of(tmp_path / "site")
    cell = next(iter(site_cells(complete)))
    assert f"unitscope why ATLAS IMAGE --class {cell[1]} --not {cell[0]}" in parts[f"mistakes/{cell[0]}-{cell[1]}"][1]
    assert not any("image-search" in content for _, content in parts.values())


def site_cells(atlas: Atlas) -> list[tuple[int, int]]:
    """The mistakes of an atlas, as label and prediction."""
    rows = atlas.table("predictions").to_pylist()
    return [cell for row in rows if (cell := (row["label_class"], row["predicted"])) and cell[0] != cell[1]]


def test_images_of_mistakes_that_are_not_the_atlas_s_say_so(tmp_path: Path) -> None:
    """Effects can be measured over other images than those that were scanned."""
    scanned = write_photographs(tmp_path / "scanned", 24, (20, 16), CLASSES)
    atlas = unitscope.scan(classifier(), scanned, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), sample=24)
    others = write_photographs(tmp_path / "others", 12, (20, 16), CLASSES)
    for file in sorted(others.rglob("*.png")):
        file.rename(file.with_name(f"other-{file.name}"))
    measure_effects(atlas, classifier(), images=others)
    row = atlas.table("predictions").to_pylist()[0]
    page = f"mistakes/{row['label_class']}-{row['predicted']}"
    with explorer(atlas) as site:
        html = site.get(f"/{page}.html").text
        assert site.get(f"/api/{page}.json").json()["missing_images"]
        assert links_of(site, f"/{page}.html") == []
    assert f"{row['key']} can't be shown: it is not among the images of the atlas." in html
    assert "predicted-images" not in html


def test_mistakes_show_images_that_the_atlas_does_not_mention(tmp_path: Path) -> None:
    """The picture that stands for those that have no page is theirs, by their key."""
    atlas, folder = sparse_atlas(tmp_path), tmp_path / "images"
    web.export(atlas, tmp_path / "site")
    known = set(atlas.table("images")["image"].to_pylist())
    unknown = {row["image"]: row["key"] for row in atlas.table("predictions").to_pylist() if row["image"] not in known}
    assert unknown
    with TestClient(create_explorer(atlas), base_url="http://localhost") as site:
        for image, key in unknown.items():
            content = site.get(f"/predicted-images/{image}.jpg").content
            drawn = np.asarray(Image.open(BytesIO(content)), dtype=np.float32)
            expected = np.asarray(Image.open(folder / key).convert("RGB"), dtype=np.float32)
            assert np.abs(drawn - expected).mean() < 25  # JPEG of small noise
            assert (tmp_path / f"site/predicted-images/{image}.jpg").read_bytes() == content
        assert site.get(f"/predicted-images/{next(iter(known))}.jpg").status_code == 404
        gone, key = next(iter(unknown.items()))
        (folder / key).unlink()
        assert site.get(f"/predicted-images/{gone}.jpg").status_code == 404


def test_exported_pages_have_classes_and_mistakes(complete: Atlas, tmp_path: Path) -> None:
    web.export(complete, tmp_path / "site")
    assert (tmp_path / "site/predictions.html").exists()
    parts = parts_of(tmp_path / "site")
    assert "classes/0" in parts
    assert [part for part in parts if part.startswith("mistakes/")]


def test_a_circuit_has_what_feeds_a_unit_and_what_it_feeds_the_strongest_first(complete: Atlas, tmp_path: Path) -> None:
    """Whatever the order of the rows; those of units that aren't there are left out. Drawn are two layers up and down."""
    folder = shutil.copytree(complete.folder, tmp_path / "atlas")
    path = folder / "tables" / "circuits.parquet"
    table = pq.read_table(path)
    counts = {layer.name: layer.units for layer in complete.layers}
    rows = sorted(table.to_pylist(), key=lambda row: row["contribution"] % 0.01)
    nobody = [
        rows[0] | other for other in ({"layer": "9"}, {"unit": 77}, {"source_unit": 99}, {"source_layer": "none"}, {"unit": -2})
    ]
    pq.write_table(pa.Table.from_pylist([*nobody, *rows], schema=table.schema), path)
    site = TestClient(create_explorer(Atlas(folder), ExplorerOptions()), base_url="http://localhost")
    known = [
        row for row in rows if row["source_unit"] is not None and 0 <= row["source_unit"] < counts.get(row["source_layer"], 0)
    ]
    known.sort(key=lambda row: -row["share"])
    seen = 0
    for layer, units in counts.items():
        for unit in range(units):
            circuit = site.get(f"/api/units/{layer}/{unit}.json").json()["circuit"]
            fed_by = [
                (r["source_layer"], r["source_unit"], r["share"]) for r in known if (r["layer"], r["unit"]) == (layer, unit)
            ]
            feeds = [(r["layer"], r["unit"], r["share"]) for r in known if (r["source_layer"], r["source_unit"]) == (layer, unit)]
            if not fed_by and not feeds:
                assert circuit is None
                continue
            shown = [[(u["layer"], u["unit"], u["share"]) for u in circuit[side]] for side in ("fed_by", "feeds")]
            assert [[share for *_, share in units] for units in shown] == [
                [share for *_, share in units[:8]] for units in (fed_by, feeds)
            ]
            assert set(shown[0]) <= set(fed_by)
            assert set(shown[1]) <= set(feeds)
            nodes = circuit["drawing"]["nodes"]
            columns = [(node["column"], node["row"]) for node in nodes]
            assert len(set(columns)) == len(columns)
            assert {abs(column) for column, _ in columns} <= {0, 1, 2}
            seen += 1
    assert seen > 5


@pytest.mark.parametrize("name", ["effects", "predictions", "knockouts", "effect_layers", "circuits"])
def test_a_hostile_table_spoils_no_page(complete: Atlas, tmp_path: Path, name: str) -> None:
    """Nulls, numbers of units that no layer has, infinities: what such rows say is left out."""
    folder = tmp_path / "atlas"
    shutil.copytree(complete.folder, folder)
    path = folder / "tables" / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for column in table.schema:
        broken = dict(rows[0])
        broken[column.name] = None
        rows.append(broken)
        if pa.types.is_integer(column.type):
            rows.append(rows[0] | {column.name: 99})
            rows.append(rows[0] | {column.name: -7})
        if pa.types.is_floating(column.type):
            rows.append(rows[0] | {column.name: np.inf})
        if pa.types.is_list(column.type):
            rows += [rows[0] | {column.name: hostile} for hostile in ([], [None], [7, None, 1])]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    served = TestClient(create_explorer(Atlas(folder), ExplorerOptions()), base_url="http://localhost")
    row = complete.table("predictions").to_pylist()[0]
    others = f"/images/{row['image']}.html", f"/mistakes/{row['label_class']}-{row['predicted']}.html", "/labels/cat.html"
    for address in ("/", "/units/4/1.html", "/units/7/0.html", "/classes/0.html", "/predictions.html", "/layers/4.html", *others):
        assert served.get(address).status_code in (200, 404), address
        assert served.get(address).status_code == 200 or name == "predictions"
