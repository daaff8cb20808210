"""Texts, depth, and what pages say of a unit: from an atlas in which all of it is known."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colours import NAMES as COLOUR_NAMES
from colours import PREPROCESSING, ColourEmbedder, Colours, Patterns, colour_atlas
from starlette.testclient import TestClient

import unitscope
from unitscope.atlas import write_table
from unitscope.atlas.depth import depth_table
from unitscope.atlas.meaning import UnitMeaning, read_meanings, tuning_p_value
from unitscope.atlas.tables import VISUAL_TUNING
from unitscope.cli import main
from unitscope.errors import UnitscopeError
from unitscope.naming import TextNaming, name_units, tune_visually
from unitscope.naming.texts import correlations, vocabulary
from unitscope.scoring import score_units
from unitscope.web.app import ExplorerOptions, create_explorer
from unitscope.web.page_records import ConceptPage, GlossaryPage
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendering import Navigation, encode_json, render_html


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> unitscope.Atlas:
    return colour_atlas(tmp_path_factory.mktemp("colours") / "atlas")


@pytest.fixture
def atlas(scanned: unitscope.Atlas, tmp_path: Path) -> unitscope.Atlas:
    shutil.copytree(scanned.folder, tmp_path / "atlas")
    return unitscope.Atlas(tmp_path / "atlas", images=Patterns())


@pytest.fixture(scope="module")
def complete(scanned: unitscope.Atlas, tmp_path_factory: pytest.TempPathFactory) -> unitscope.Atlas:
    """An atlas with names and scores."""
    folder = tmp_path_factory.mktemp("complete") / "atlas"
    shutil.copytree(scanned.folder, folder)
    atlas = unitscope.Atlas(folder, images=Patterns())
    name_units(atlas)
    score_units(atlas, ColourEmbedder())
    return unitscope.Atlas(folder, images=Patterns())


def rows(table: pa.Table, layer: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["layer"] == layer]


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_are_named_by_texts_that_an_embedder_joins_with_images(atlas: unitscope.Atlas) -> None:
    texts = [*(f"a {name} thing" for name in COLOUR_NAMES), "a dog"]
    table = name_units(atlas, TextNaming.of(atlas, texts, ColourEmbedder()))
    last = rows(table, "last")
    assert [row["name"] for row in last[:3]] == ["a red thing", "a green thing", "a blue thing"]
    assert {row["kind"] for row in last[:3]} == {"text"}
    for row in last[:3]:
        assert row["r_b"] > 0.9
        assert row["base_rate"] is None
        assert row["peaks"] is None
    provenance = next(summary.provenance for summary in atlas.tables() if summary.name == "names")
    assert provenance is not None
    assert provenance.parameters["embedder"] == "colours"


def test_texts_that_say_nothing_name_no_more_than_the_rate(scanned: unitscope.Atlas, tmp_path: Path) -> None:
    """Shuffled similarities, 200 times five units."""
    naming = TextNaming.of(scanned, [f"text {number}" for number in range(40)], ColourEmbedder())
    rng = np.random.default_rng(0)
    layer = scanned.layer("last")
    found = []
    for _ in range(200):
        naming.similarities[:] = rng.normal(size=naming.similarities.shape)
        found += naming.layer_columns(layer)["p_value"].tolist()
    for level in (0.5, 0.1, 0.05, 0.01):
        assert np.mean(np.array(found) <= level) <= level + 3 * np.sqrt(level / len(found))


def test_correlations_beside_numpy() -> None:
    rng = np.random.default_rng(1)
    responses, similarities = rng.normal(size=(5, 40)), rng.normal(size=(40, 3))
    responses[1, ::3] = np.nan
    responses[2, 0] = np.inf
    responses[3] = 4
    found = correlations(responses, similarities)
    for unit in (0, 1, 2, 4):
        is_value = np.isfinite(responses[unit])
        for column in range(3):
            expected = np.corrcoef(responses[unit, is_value], similarities[is_value, column])[0, 1]
            assert found[unit, column] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(found[3]).all()


def test_the_vocabulary_has_some_thousand_words_once() -> None:
    words = vocabulary()
    assert 2500 <= len(words) <= 3500
    assert len(set(words)) == len(words)
    assert {"striped", "red", "dog", "wheel", "musical instrument"} <= set(words)


def test_what_cant_name_by_texts(atlas: unitscope.Atlas, tmp_path: Path) -> None:
    for texts, embedder, problem in [
        (["", " "], ColourEmbedder(), "no texts"),
        (["red"], "timm:resnet18", "doesn't join images and texts"),
        (["red"], "open_clip:nothing/openai", "open_clip has no model 'nothing'"),
        (["red"], ColourEmbedder(float("nan")), "NaN or infinite"),
    ]:
        with pytest.raises(UnitscopeError, match=problem):
            TextNaming.of(atlas, texts, embedder)
    (tmp_path / "texts.txt").write_text("red\n")
    assert main(["name", str(atlas.folder), "--texts", str(tmp_path / "texts.txt")]) == 1
    assert not (atlas.folder / "tables").exists()


# ── what is seen beside what it is ──────────────────────────────────────────────────────────────────────────────────


def write_visual_tuning(atlas: unitscope.Atlas, explained: float, description: str | None) -> None:
    columns = {name: pa.nulls(sum(layer.units for layer in atlas.layers)) for name in VISUAL_TUNING.schema.names}
    columns["layer"] = pa.array([layer.name for layer in atlas.layers for _ in range(layer.units)])
    columns["unit"] = pa.array([unit for layer in atlas.layers for unit in range(layer.units)])
    columns["explained"] = pa.array([explained] * len(columns["unit"]))
    columns["description"] = pa.array([description] * len(columns["unit"]), pa.string())
    write_table(pa.table(columns), VISUAL_TUNING, atlas)


@pytest.mark.parametrize(
    ("explained", "description", "name", "kind"),
    [
        (0.999, "red", "red", "visual"),
        (0.999, None, None, None),
        (0.01, "stripes", "green", "class"),
        (0.0, None, "green", "class"),
    ],
)
def test_what_explains_more_is_the_name(
    atlas: unitscope.Atlas, explained: float, description: str | None, name: str | None, kind: str | None
) -> None:
    write_visual_tuning(atlas, explained, description)
    row = rows(name_units(atlas), "last")[1]
    assert (row["name"], row["kind"]) == (name, kind)
    assert row["nearest"] == "green"
    assert row["explained"] == pytest.approx(explained)
    assert (row["node"] is None) == (kind != "class")


def test_names_without_what_is_seen_where_it_was_looked_for_before(atlas: unitscope.Atlas) -> None:
    write_visual_tuning(atlas, 0.999, "red")
    row = rows(name_units(atlas, visual=False), "last")[1]
    assert (row["name"], row["kind"], row["explained"]) == ("green", "class", None)


def test_a_visual_tuning_of_other_peaks_is_none(atlas: unitscope.Atlas) -> None:
    write_visual_tuning(atlas, 0.999, "red")
    peaks = pq.read_table(atlas.folder / "peaks.parquet")
    pq.write_table(peaks.slice(0, len(peaks) - 1), atlas.folder / "peaks.parquet")
    row = rows(name_units(unitscope.Atlas(atlas.folder, images=Patterns())), "last")[1]
    assert row["kind"] == "class"


def test_a_wrong_rate_leaves_the_tables_as_they_are(atlas: unitscope.Atlas) -> None:
    assert main(["name", str(atlas.folder), "--rate", "5"]) == 1
    assert not (atlas.folder / "tables").exists()


def test_names_as_json(atlas: unitscope.Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["name", str(atlas.folder), "--no-visual", "--json"]) == 0
    answer = msgspec.json.decode(capsys.readouterr().out)
    assert answer["units"] == sum(layer.units for layer in atlas.layers)
    assert answer["named"] == len(answer["names"]) > 0
    assert {"red", "green", "blue"} <= {row["name"] for row in answer["names"]}


def test_names_by_a_tree_that_lacks_labels(atlas: unitscope.Atlas, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree.csv").write_text("red,warm\nyellow,warm\nwarm,colour\n")
    assert main(["name", str(atlas.folder), "--no-visual", "--tree", str(tmp_path / "tree.csv")]) == 0
    assert "2 of 4 labels aren't in the tree, such as 'blue'" in capfd.readouterr().err
    named = {row["name"] for row in atlas.table("names").to_pylist()}
    assert "warm" in {*named, *atlas.table("names")["nearest"].to_pylist()}


def test_scores_of_some_layers_by_an_embedder_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for image in range(200):
        Patterns()[image][0].save(tmp_path / "images" / f"{image}.png")
    atlas = unitscope.scan(Colours().eval(), tmp_path / "images", tmp_path / "atlas", preprocess=PREPROCESSING)
    (tmp_path / "embedder.py").write_text(
        "class Mean:\n    name, weights_hash, size = 'mean', 'none', (8, 8)\n"
        "    def maps(self, pictures):\n        return pictures.float().permute(0, 3, 1, 2)\n"
    )
    assert main(["score", str(atlas.folder), "--embedder", f"{tmp_path / 'embedder.py'}:Mean", "--layers", "last"]) == 0
    table = atlas.table("scores")
    assert set(table["layer"].to_pylist()) == {"last"}
    assert set(table["embedder"].to_pylist()) == {"mean"}
    assert table["predictability"][0].as_py() > 0.9


def test_colours_that_units_see_are_what_they_are_tuned_to(atlas: unitscope.Atlas) -> None:
    tuned = rows(tune_visually(atlas, Colours().eval()), "last")
    assert [row["description"] for row in tuned[:3]] == ["red", "green", "blue"]
    named = rows(name_units(atlas), "last")
    assert all(row["explained"] > 0.5 for row in named[:3])


# ── depth ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_depth_says_what_the_tables_say(complete: unitscope.Atlas) -> None:
    table = {row["layer"]: row for row in depth_table(complete).to_pylist()}
    assert list(table) == [layer.name for layer in complete.layers]
    names, scores = rows(complete.table("names"), "last"), rows(complete.table("scores"), "last")
    row = table["last"]
    assert row["named"] == pytest.approx(np.mean([name["kind"] == "class" for name in names]))
    assert row["r"] == pytest.approx(np.mean([name["r_b"] for name in names]))
    assert row["predictability"] == pytest.approx(np.mean([score["predictability"] for score in scores]))
    assert row["several_facets"] == pytest.approx(np.mean([score["facets"] > 1 for score in scores]))
    (images_b,) = {name["images_b"] for name in names}
    assert images_b == max(half["images"] for half in rows(complete.table("halves"), "last") if half["half"] == "b")
    assert row["r_chance"] == pytest.approx(1 / np.sqrt(images_b - 1))
    assert row["grey"] is None
    assert row["scrambled"] is None


def test_depth_of_an_atlas_without_tables(scanned: unitscope.Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = depth_table(scanned).to_pylist()[-1]
    assert {name for name, value in row.items() if value is None} >= {
        "named",
        "visual",
        "r",
        "r_chance",
        "predictability",
        "grey",
    }
    assert main(["depth", str(scanned.folder), "--out", str(tmp_path / "depth"), "--json"]) == 0
    assert len(msgspec.json.decode(capsys.readouterr().out)) == len(scanned.layers)
    assert (tmp_path / "depth" / "depth.png").stat().st_size > 10_000


# ── in words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_of(meaning: UnitMeaning) -> str:
    return "".join(piece.text for piece in meaning.sentence())


def test_sentences() -> None:
    mammal = UnitMeaning(
        "mammal", "class", "n01861778", "mammal", 0.82, 9, 9, 0.22, 0.01, 0.961, 0.93, 0.99, "lpips-alex", 1
    )  # fmt: skip
    assert text_of(mammal) == (
        "responds to mammal: 9 of 9 patches from its images (2.0 by chance), r = 0.82 on images it wasn't chosen on; its patches tell an unseen "
        "image right 96 times of 100 (93 to 99; chance is 50), by lpips-alex."
    )
    assert [piece.text for piece in mammal.sentence() if piece.is_name] == ["mammal"]
    stripes = UnitMeaning("fine vertical stripes", "visual", None, "artifact", 0.1, 5, 9, 0.5, 0.452)
    assert text_of(stripes) == "is tuned to fine vertical stripes, which explains 45 % of its response."
    none = UnitMeaning(None, None, None, "bird", 0.06, 1, 9, 0.061)
    assert (
        text_of(none)
        == "has no name that holds; nearest comes bird: 1 of 9 patches from its images (0.5 by chance), r = 0.06 on images it wasn't chosen on."
    )
    no_evidence = UnitMeaning(nearest="bird")
    assert text_of(no_evidence) == "has no name that holds; nearest comes bird."
    assert text_of(UnitMeaning("tench", "output class")) == "is the network's class tench."
    assert text_of(UnitMeaning()) == ""


@pytest.mark.parametrize(
    ("meaning", "belief", "begins"),
    [
        (UnitMeaning("dog", "class", r_b=0.5, chance=0.001), None, "responds to dog: r"),
        (UnitMeaning("dog", "class", r_b=0.5, chance=0.06), "perhaps", "perhaps responds to dog: r"),
        (UnitMeaning("dog", "class", r_b=0.31, chance=0.001), "weakly", "weakly responds to dog: r"),
        (UnitMeaning("dog", "class", r_b=0.31, chance=0.06), "perhaps", "perhaps responds to dog: r"),
        (UnitMeaning("dog", "text", r_b=0.32, chance=0.001), None, "responds to dog: r"),
        (UnitMeaning("red", "visual", r_b=0.1, explained=0.2, chance=1.0), "perhaps", "is perhaps tuned to red, which"),
        (UnitMeaning("red", "visual", r_b=0.1, explained=0.2, chance=0.0), None, "is tuned to red, which"),
        (UnitMeaning("tench", "output class", r_b=0.1, chance=1.0), None, "is the network's class tench"),
        (UnitMeaning(nearest="dog", r_b=0.1), None, "has no name that holds"),
    ],
)
def test_a_name_is_said_as_it_is_believed(meaning: UnitMeaning, belief: str | None, begins: str) -> None:
    assert meaning.belief == belief
    assert text_of(meaning).startswith(begins)
    assert [piece.text for piece in meaning.sentence() if piece.term in ("perhaps", "weakly")] == ([belief] if belief else [])


def test_the_glossary_has_the_terms_of_the_sentence(pages: PageBuilder) -> None:
    explained = {"perhaps", "weakly", "name", "explained", "correlation", "predictability", "embedder"}
    meanings = [
        UnitMeaning("mammal", "class", None, "mammal", 0.2, 9, 9, 0.2, None, 0.9, 0.8, 1, "lpips-alex", 1, 1.0),
        UnitMeaning("mammal", "class", None, "mammal", 0.2, chance=0.0),
        UnitMeaning("red", "visual", explained=0.2),
        UnitMeaning(nearest="dog"),
    ]
    assert {piece.term for meaning in meanings for piece in meaning.sentence() if piece.term} == explained
    glossary = html_of(GlossaryPage("glossary.html", pages.atlas_summary))
    for term in explained:
        assert f'<dt id="{term}">' in glossary


def test_what_a_tuning_explains_by_chance_is_bounded() -> None:
    """Shuffled, a perfect model's share of the variance is the square of a correlation."""
    rng = np.random.default_rng(0)
    response = rng.normal(size=40)
    r = np.array([np.corrcoef(response, rng.permutation(response))[0, 1] for _ in range(5000)])
    for explained in (0.05, 0.1, 0.2):
        share = (r >= np.sqrt(explained)).mean()
        assert tuning_p_value(explained, 40) == pytest.approx(share, abs=0.01)


CLASSES = ["crane", "crane", "maillot", "maillot", "either"]
"""ImageNet has two cranes and two maillots."""


class Classifier(Colours):
    """Colours as classes: what the classes' layer gives becomes the output in one of several ways."""

    def __init__(self, ending: Any = None) -> None:
        super().__init__()
        self.classes, self.ending = torch.nn.Linear(5, 5), ending

    def forward(self, images: Any) -> Any:
        scores = self.classes(super().forward(images).mean((2, 3)))
        return scores if self.ending is None else self.ending(scores)


def scan_classifier(network: torch.nn.Module, folder: Path, classes: Any) -> unitscope.Atlas:
    return unitscope.scan(network.eval(), Patterns(60), folder, preprocess=PREPROCESSING, classes=classes)


@pytest.mark.parametrize(
    "ending", [None, torch.nn.Softmax(1), torch.nn.LogSoftmax(1), torch.nn.Sigmoid()], ids=["scores", "softmax", "log", "sigmoid"]
)
def test_units_of_the_last_layer_are_called_by_their_class(ending: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    atlas = scan_classifier(Classifier(ending), tmp_path / "atlas", CLASSES)
    (layer,) = atlas.manifest["class_layers"]
    assert layer == ("ending" if isinstance(ending, torch.nn.Sigmoid) else "classes")  # a layer is read behind its activation
    assert [meaning.name for meaning in read_meanings(atlas, layer)] == CLASSES
    assert {meaning.kind for meaning in read_meanings(atlas, layer)} == {"output class"}
    assert {meaning.name for meaning in read_meanings(atlas, "last")} == {None}


def test_classes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n02084071\nred\ngreen\nblue\ngrey\n")
    atlas = scan_classifier(Classifier(), tmp_path / "atlas", tmp_path / "classes.txt")
    assert [meaning.name for meaning in read_meanings(atlas, "classes")] == ["dog", "red", "green", "blue", "grey"]


def test_as_many_classes_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(UnitscopeError, match="4 classes were given for a network that has 5 outputs"):
        scan_classifier(Classifier(), tmp_path / "atlas", CLASSES[:4])
    with pytest.raises(UnitscopeError, match="4 classes were given for a network that doesn't return class scores"):
        scan_classifier(Colours(), tmp_path / "atlas", CLASSES[:4])
    with pytest.raises(UnitscopeError, match="list of classes is empty"):
        scan_classifier(Classifier(), tmp_path / "atlas", [])
    assert not (tmp_path / "atlas").exists()


def test_a_colour_and_a_class_of_one_name_are_two() -> None:
    assert UnitMeaning("red", "visual").concept != UnitMeaning("red", "class", "red").concept
    assert UnitMeaning("mammal", "class", "n01861778").concept == "n01861778"
    assert UnitMeaning().concept is None


def test_stale_names_are_no_names(complete: unitscope.Atlas, tmp_path: Path) -> None:
    shutil.copytree(complete.folder, tmp_path / "atlas")
    peaks = tmp_path / "atlas" / "peaks.parquet"
    table = pq.read_table(peaks)
    pq.write_table(table.slice(0, len(table) - 1), peaks)
    assert {meaning.name for meaning in read_meanings(unitscope.Atlas(tmp_path / "atlas"), "last")} == {None}


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pages(complete: unitscope.Atlas) -> PageBuilder:
    return PageBuilder(AtlasQueries(complete))


def html_of(page: Any) -> str:
    assert page is not None
    assert msgspec.json.decode(encode_json(page))
    return render_html(page, Navigation())


def test_a_unit_page_begins_with_what_the_unit_is(pages: PageBuilder) -> None:
    page = pages.unit_page("last", 0)
    html = html_of(page)
    assert page is not None
    assert page.meaning.name == "red"
    assert '<a href="../../concepts/red.html"><strong>red</strong></a>' in html
    assert "times of 100" in html
    assert '<a class="term" href="../../glossary.html#predictability">tell an unseen image right</a>' in html
    assert page.facets == []


def test_a_unit_page_has_a_row_a_facet(pages: PageBuilder) -> None:
    page = pages.unit_page("last", 4)
    assert page is not None
    assert [{example.source_image.label for example in facet.examples} for facet in page.facets] in (
        [{"red"}, {"blue"}],
        [{"blue"}, {"red"}],
    )
    assert sum(facet.size for facet in page.facets) == 50
    assert "It is several things" in html_of(page)


def test_layer_pages_filter_by_name_and_sort_by_score(pages: PageBuilder) -> None:
    page = pages.layer_page("last")
    html = html_of(page)
    assert page is not None
    assert {"scores.predictability", "scores.facets", "names.r_b"} <= {key.column for key in page.sort_keys}
    assert 'data-name="red"' in html
    assert '<option value="blue">' in html
    assert "red" in page.names


def test_a_page_of_a_name_has_its_units(pages: PageBuilder) -> None:
    page = pages.concept_page("red")
    assert page is not None
    assert ("last", 0) in {(unit.layer, unit.unit) for unit in page.units}
    assert page.unit_count == len(page.units)
    assert "units are named so" in html_of(page)
    assert msgspec.json.decode(encode_json(page), type=ConceptPage) == page
    assert pages.concept_page("nothing") is None
    assert ["red", "red", page.unit_count] in [found[:3] for found in pages.search_index()["names"]]


def test_pages_of_names_are_served(complete: unitscope.Atlas) -> None:
    site = TestClient(create_explorer(complete, ExplorerOptions()), base_url="http://localhost")
    answer = site.get("/api/concepts/red.json")
    page = msgspec.json.decode(answer.content, type=ConceptPage)
    assert msgspec.json.encode(page) == answer.content
    assert page.name == "red"
    assert site.get("/concepts/red.html").status_code == 200
    for address in ("/api/concepts/nothing.json", "/concepts/nothing.html"):
        assert site.get(address).status_code == 404


def test_the_network_page_has_curves_over_the_layers(pages: PageBuilder) -> None:
    page = pages.network_page()
    assert [plot.title for plot in page.depth] == ["Share of units", "How far to believe it"]
    assert "What changes on the way" in html_of(page)


def test_sheets_print_names(complete: unitscope.Atlas, scanned: unitscope.Atlas) -> None:
    with_names, without = complete.sheet("last"), scanned.sheet("last")
    assert with_names.height > without.height
