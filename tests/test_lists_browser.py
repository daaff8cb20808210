"""Lists of units in a real browser: their order by keyboard and address, and files that hold what is shown, served and from a disk."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from explored import explored_atlas
from listed import DEAD, NAMED, UNITS, evidence_of, listed_atlas, named_atlas
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient
from test_browser import WatchedPage, browser, serving, shown_units  # noqa: F401 - a fixture
from test_unit_kinds import atlas_of_kinds

from unitscope.atlas import Atlas
from unitscope.web import ExplorerOptions, create_explorer, export
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries
from unitscope.web.rendering import Navigation, render_html

pytestmark = [pytest.mark.browser, pytest.mark.slow]
BROKEN_WORDS = """cells => cells.flatMap(cell => {
  const broken = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    for (const { 0: word, index } of node.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word);
    }
  }
  return broken;
})"""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return listed_atlas(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def served(atlas: Atlas) -> Iterator[str]:
    with serving(atlas, ExplorerOptions(hosts=("*",))) as address:
        yield address


@pytest.fixture(scope="module")
def exported(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> str:
    site = tmp_path_factory.mktemp("site") / "site"
    export(atlas, site)
    return site.as_uri() + "/"


@pytest.fixture(params=["served", "disk"])
def site(request: pytest.FixtureRequest, served: str, exported: str) -> str:
    return served if request.param == "served" else exported


@pytest.fixture
def watched(browser: Browser) -> Iterator[WatchedPage]:  # noqa: F811
    watched = WatchedPage(browser)
    yield watched
    watched.context.close()


def unit_path(site: str, layer: str, unit: int) -> str:
    return f"{site}page.html#units/{layer}/{unit}" if site.startswith("file:") else f"{site}units/{layer}/{unit}.html"


def downloaded(page: Page, label: str | re.Pattern[str]) -> tuple[str, list[dict[str, str]]]:
    """The name of a CSV, and its rows."""
    if not page.locator(".downloads[open]").count():
        page.locator(".downloads summary").click()
    entry = page.locator(".downloads a, .downloads button").filter(has_text=label)
    expect(entry).to_have_count(1)
    with page.expect_download() as downloading:
        entry.click()
    content = downloading.value.path().read_bytes().decode()
    page.keyboard.press("Escape")
    return downloading.value.suggested_filename, list(csv.DictReader(io.StringIO(content, newline="")))


def units_in(rows: list[dict[str, str]]) -> list[int]:
    return [int(row["unit"]) for row in rows]


def test_a_list_without_units_says_so_and_offers_no_table(watched: WatchedPage, site: str) -> None:
    page = watched.open(f"{site}layers/1.html#name=nobody")
    assert shown_units(page) == []
    expect(page.get_by_text("No unit fits")).to_be_visible()
    page.locator(".downloads summary").click()
    for entry in page.locator(".downloads li").all():
        expect(entry).to_be_hidden()
    page.locator('#grid-choice input[name="name"]').fill("")
    expect(page.locator(".downloads li").first).to_be_visible()
    watched.assert_sound(site)


@pytest.mark.parametrize(
    "choice",
    [
        "sort=highest", "sort=highest&order=ascending", "order=descending", "sort=scores.predictability", "sort=scores.predictability&order=ascending",
        "sort=names.r_b&order=ascending&name=DOG", "sort=z_score&show=not-dead", "sort=z_score&show=tied", "show=always-active", "show=facets&order=descending",
        "label=cat&sort=activation_rate&order=ascending", "score=0.7", "score=0.70&sort=scores.predictability&order=ascending&size=240", "show=dead&sort=highest",
        "sort=nothing&order=nothing&show=nothing", "name=%26%20c", "sort=highest&order=descending",
    ],
)  # fmt: skip
def test_a_file_has_the_units_that_the_page_shows_in_their_order(watched: WatchedPage, site: str, choice: str) -> None:
    page = watched.open(f"{site}layers/1.html#{choice}")
    shown = shown_units(page)
    assert shown
    name, rows = downloaded(page, re.compile("CSV$"))
    assert units_in(rows) == shown
    assert site.startswith("file:") or name == f"atlas-layers-1{f'-{len(shown)}-units' if len(shown) < UNITS else ''}.csv"
    watched.assert_sound(site)


def test_labels_of_files_say_what_they_hold(watched: WatchedPage, site: str) -> None:
    page = watched.open(f"{site}layers/1.html")
    entries = page.locator(".downloads a, .downloads button").filter(has_text=re.compile("CSV$"))
    page.locator(".downloads summary").click()
    expect(entries).to_have_text("All its units, by number, as CSV")
    assert units_in(downloaded(page, "All its units, by number, as CSV")[1]) == list(range(UNITS))
    page.get_by_role("combobox", name="Show").select_option("dead")
    page.locator(".downloads summary").click()
    expect(entries).to_have_text("The 2 units shown, in their order, as CSV")
    assert units_in(downloaded(page, "The 2 units shown, in their order, as CSV")[1]) == list(DEAD)
    page.locator(".downloads summary").click()
    page.evaluate("location.hash = 'size=240'")
    expect(entries).to_have_text("All its units, by number, as CSV")
    page.evaluate("location.hash = 'name=nothing'")
    expect(entries).to_be_hidden()
    page.evaluate("location.hash = 'name=stripes&score=0.5'")
    expect(entries).to_have_text("The 4 units shown, in their order, as CSV")
    watched.assert_sound(site)


def test_favourites_are_a_list_too(watched: WatchedPage, site: str) -> None:
    for unit in (9, 2, 21):
        page = watched.open(unit_path(site, "1", unit))
        page.get_by_role("button", name="Favourite", exact=True).click()
    page = watched.open(f"{site}layers/1.html#show=favourites&sort=highest&order=ascending")
    shown = shown_units(page)
    assert sorted(shown) == [2, 9, 21]
    assert units_in(downloaded(page, re.compile("CSV$"))[1]) == shown
    page.get_by_role("combobox", name="Name", exact=True).fill("dogs")
    assert units_in(downloaded(page, "The unit shown as CSV")[1]) == shown_units(page) == [2]
    watched.assert_sound(site)


def test_the_order_is_chosen_by_keyboard_and_kept_in_the_address(watched: WatchedPage, site: str) -> None:
    page = watched.open(f"{site}layers/1.html")
    order, sort = page.get_by_role("combobox", name="Order", exact=True), page.get_by_role("combobox", name="Sort by")
    assert (order.input_value(), page.url) == ("ascending", f"{site}layers/1.html")
    order.focus()
    page.keyboard.press("ArrowUp")
    assert shown_units(page) == list(range(UNITS))[::-1]
    assert page.url.endswith("#order=descending")
    sort.select_option("scores.predictability")
    assert (order.input_value(), page.url.rpartition("#")[2]) == ("descending", "sort=scores.predictability")
    assert sort.get_attribute("title") == page.locator("option[value='scores.predictability']").get_attribute("title")
    descending = shown_units(page)
    order.focus()
    page.keyboard.press("ArrowDown")
    assert page.url.endswith("#sort=scores.predictability&order=ascending")
    last = sorted({*DEAD, 4, 8, 20})
    assert descending[-len(last) :] == shown_units(page)[-len(last) :] == last
    shown = page.locator("#units > li:not([data-dead]) .value").all_text_contents()
    values = [float(value) for value in shown if value != "–"]
    assert values == sorted(values)
    assert len(values) == UNITS - len(last)
    linked = watched.context.new_page()
    linked.goto(page.url)
    assert shown_units(linked) == shown_units(page)
    watched.assert_sound(site)


def test_pages_of_units_go_on_in_the_order_of_the_list(watched: WatchedPage, site: str) -> None:
    choice = "sort=highest&order=ascending&show=not-dead"
    page = watched.open(f"{site}layers/1.html#{choice}")
    units = shown_units(page)
    page.locator("#units > li:not([hidden]) a.block").first.click()
    for unit in units[1:4]:
        expect(page.locator('a[rel="next"]')).to_have_text(re.compile(rf"^{unit}\b"))
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(f"unit {unit}$"))
        assert page.url.endswith(choice)
    expect(page.locator('a[rel="prev"]')).to_have_text(re.compile(rf"\b{units[2]}$"))
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(f"unit {units[2]}$"))
    page.locator('a[rel="up"]').click()
    page.wait_for_url(f"**/layers/1.html#{choice}")
    assert shown_units(page) == units
    watched.assert_sound(site)


@pytest.mark.parametrize("path", ["concepts/stripes", "labels/dog"])
def test_pages_of_units_go_on_in_the_order_of_a_name_or_a_label(watched: WatchedPage, site: str, path: str) -> None:
    address = f"{site}page.html#{path}" if site.startswith("file:") else f"{site}{path}.html"
    page = watched.open(address)
    numbers, layers = (page.locator(f".blocks .{part}").all_text_contents() for part in ("unit-number", "layer-name"))
    assert len(numbers) > 2
    page.locator(".blocks a.block").nth(1).click()
    for key, place in ((None, 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0)):
        if key is not None:
            page.keyboard.press(key)
        expect(page.get_by_role("heading", level=1)).to_have_text(f"{layers[place]} unit {numbers[place]}")
        expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ {place + 1} of {len(numbers)}: {path.partition('/')[2]}")
    expect(page.locator('a[rel="prev"]')).to_have_count(0)
    page.keyboard.press("ArrowUp")
    page.wait_for_url(address)
    watched.assert_sound(site)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return named_atlas(tmp_path_factory.mktemp("named"))


@pytest.mark.parametrize("kind", ["served", "disk"])
def test_a_name_of_many_units_shows_and_gives_them_all(watched: WatchedPage, many: Atlas, kind: str, tmp_path: Path) -> None:
    with serving(many, ExplorerOptions()) as address:
        if kind == "disk":
            export(many, tmp_path / "site")
        site = address if kind == "served" else (tmp_path / "site").as_uri() + "/"
        path = f"{site}concepts/stripes.html" if kind == "served" else f"{site}page.html#concepts/stripes"
        everything = sorted(
            ((layer, unit) for layer, units in enumerate(NAMED) for unit in range(units)),
            key=lambda unit: -evidence_of(*unit),
        )
        page, count = watched.open(path), len(everything)
        blocks = page.locator("#unit-list > li")
        expect(page.get_by_text(f"{count} units are named so")).to_be_visible()
        expect(blocks).to_have_count(240)
        assert [
            (int(row["layer"]), int(row["unit"])) for row in downloaded(page, re.compile("units as CSV", re.IGNORECASE))[1]
        ] == everything
        page.get_by_role("button", name=f"Show 240 more of {count}").click()
        expect(blocks).to_have_count(480)
        expect(blocks.nth(240).locator("a")).to_be_focused()
        page.get_by_role("button", name=f"Show {count - 480} more of {count}").click()
        expect(blocks).to_have_count(count)
        expect(page.locator(".more")).to_be_hidden()
        shown = zip(
            *(page.locator(f"#unit-list .{part}").all_text_contents() for part in ("layer-name", "unit-number")), strict=True
        )
        assert [(int(layer), int(unit)) for layer, unit in shown] == everything
        assert page.locator("#unit-list .value").nth(300).text_content() == f"r {evidence_of(*everything[300]):.3g}"
        pictures = "#unit-list li:nth-child(241) img"
        page.locator(pictures).scroll_into_view_if_needed()
        expect(page.locator(pictures)).to_have_js_property("complete", True)
        page.locator("#unit-list a.block").nth(500).click()
        expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 501 of {count}: stripes")
        page.keyboard.press("ArrowRight")
        layer, unit = everything[501]
        expect(page.get_by_role("heading", level=1)).to_have_text(f"{layer} unit {unit}")
        expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 502 of {count}: stripes")
        page.keyboard.press("ArrowUp")
        expect(blocks).to_have_count(count)
        watched.assert_sound(site)


def test_a_file_of_a_name_has_all_its_units(many: Atlas) -> None:
    site = TestClient(create_explorer(many, ExplorerOptions()), base_url="http://localhost")
    rows = list(csv.DictReader(io.StringIO(site.get("/concepts/stripes.csv").text, newline="")))
    assert len(rows) == sum(NAMED)
    assert rows[-1] == {"layer": "0", "unit": "0", "kind": "class", "evidence": "0.0"}
    assert pq.read_table(io.BytesIO(site.get("/concepts/stripes.parquet").content)).num_rows == len(rows)
    page = PageBuilder(AtlasQueries(many)).concept_page("stripes", most=7)
    assert page is not None
    assert "This page has the first 7, the atlas all of them." in render_html(page, Navigation())


def test_units_of_all_layers_are_found_by_keyboard_and_go_on_in_their_order(watched: WatchedPage, served: str) -> None:
    page = watched.open(f"{served}units.html")
    expect(page.get_by_text("30 units")).to_be_visible()
    page.get_by_role("combobox", name="Sort by").select_option("highest")
    page.get_by_role("combobox", name="Show").select_option("not-dead")
    page.get_by_label("Score from").focus()
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    address = f"{served}units.html?sort=highest&show=not-dead&score=0.5"
    page.wait_for_url(address)
    numbers, layers = (page.locator(f"#unit-list .{part}").all_text_contents() for part in ("unit-number", "layer-name"))
    name, rows = downloaded(page, re.compile("CSV$"))
    assert name == f"atlas-units-{len(rows)}.csv"
    assert [(row["layer"], row["unit"]) for row in rows] == list(zip(layers, numbers, strict=True))
    page.locator("#unit-list a.block").first.click()
    expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 1 of {len(rows)}: Units of all layers")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{layers[1]} unit {numbers[1]}")
    expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 2 of {len(rows)}: Units of all layers")
    assert "?" not in page.url
    page.keyboard.press("ArrowUp")
    page.wait_for_url(address)
    expect(page.get_by_role("combobox", name="Sort by")).to_have_value("highest")
    watched.assert_sound(served)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_menu_of_files_is_on_the_screen_and_says_where_more_is(browser: Browser, site: str, width: int) -> None:  # noqa: F811
    watched = WatchedPage(browser, viewport={"width": width, "height": 900})
    page = watched.open(unit_path(site, "2", 1))
    if width < 720:
        page.get_by_role("button", name="Menu").click()
    page.locator(".downloads summary").click()
    box = page.locator(".downloads ul").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    expect(page.get_by_text("sample are in the served explorer")).to_have_count(1 if site.startswith("file:") else 0)
    watched.assert_sound(site)
    watched.context.close()


def shown_overlaps(page: Page) -> list[int]:
    return [int(text.partition(" of ")[0]) for text in page.locator("#units .value").all_inner_texts() if " of " in text]


def test_a_comparison_is_sorted_by_overlap_in_either_order(watched: WatchedPage, tmp_path: Path) -> None:
    first, second = explored_atlas(tmp_path), explored_atlas(tmp_path, seed=1)
    with serving(first, ExplorerOptions(second)) as address:
        page = watched.open(f"{address}compare/relu.html#sort=shared_images")
        overlaps = shown_overlaps(page)
        assert overlaps == sorted(overlaps, reverse=True)
        assert len(set(overlaps)) > 1
        page.get_by_role("combobox", name="Order", exact=True).select_option("ascending")
        overlaps = shown_overlaps(page)
        assert overlaps == sorted(overlaps)
        watched.assert_sound(address)


def test_troughs_are_kept_as_peaks_are(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(unit_path(site, "2", 1))
    expect(page.locator(".troughs .example").first).to_be_attached()
    name, rows = downloaded(page, "Its troughs as CSV")
    troughs = atlas.troughs("2", 1).to_pylist()
    assert name == ("2-1-troughs.csv" if site.startswith("file:") else "atlas-units-2-1-troughs.csv")
    assert [(int(row["rank"]), int(row["image"])) for row in rows] == [(row["rank"], row["image"]) for row in troughs]
    assert [float(row["value"]) for row in rows] == pytest.approx([row["value"] for row in troughs], rel=0.01)
    assert float(rows[0]["value"]) < 0
    assert [int(row["image"]) for row in downloaded(page, "Its peaks as CSV")[1]] == atlas.peaks("2", 1)["image"].to_pylist()
    page.goto(unit_path(site, "1", 1))
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("unit 1$"))
    page.locator(".downloads summary").click()
    expect(page.get_by_text("Its troughs as CSV")).to_be_hidden()
    watched.assert_sound(site)


@pytest.mark.parametrize("width", [390, 900, 1280])
def test_no_word_of_a_table_is_broken(browser: Browser, site: str, width: int) -> None:  # noqa: F811
    options: dict[str, Any] = {"viewport": {"width": width, "height": 900}}
    watched = WatchedPage(browser, **options)
    page = watched.open(unit_path(site, "1", 1))
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.locator(".measurements td").count() > 10
    assert page.eval_on_selector_all("th, td, caption", BROKEN_WORDS) == []
    excess_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert excess_px <= 0
    watched.context.close()


@pytest.mark.parametrize("is_served", [True, False], ids=["served", "disk"])
def test_a_kind_of_names_is_found_by_other_words(watched: WatchedPage, is_served: bool, tmp_path: Path) -> None:
    atlas = atlas_of_kinds(tmp_path)
    first = atlas.layers[0].name
    if not is_served:
        export(atlas, tmp_path / "site")
    with serving(atlas, ExplorerOptions(hosts=("*",))) as address:
        site = address if is_served else (tmp_path / "site").as_uri() + "/"
        page = watched.open(site if is_served else site + "index.html")
        for typed, found in {
            "color": ["colours2 units"],
            "Colour": ["colours2 units"],
            "object": ["partsone unit", f"{first} 2the tour's part"],
            "part": ["partsone unit", f"{first} 2the tour's part"],
            "arts": [],
        }.items():
            page.keyboard.press("/")
            page.locator("#search-text").fill(typed)
            options = page.locator("#search-results").get_by_role("option")
            expect(options).to_have_count(len(found))
            assert options.all_text_contents() == found
            page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.locator("#search-text").fill("colour")
        expect(page.locator("#search-results").get_by_role("option")).to_have_count(1)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("colours")
        watched.assert_sound(site)
