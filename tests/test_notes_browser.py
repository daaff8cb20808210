"""Notes and downloads in a real browser: by mouse and keyboard, served and from a disk, over a reload, and handed to somebody else."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from explored import explored_atlas
from playwright.sync_api import Browser, Page, expect
from test_browser import PHONE, WatchedPage, browser, serving  # noqa: F401 - a fixture

from unitscope.atlas import Atlas
from unitscope.web import ExplorerOptions, export

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return explored_atlas(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def exported(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> str:
    site = tmp_path_factory.mktemp("site") / "site"
    export(atlas, site)
    return site.as_uri() + "/"


@pytest.fixture(params=["served", "shared", "disk"])
def site(request: pytest.FixtureRequest, atlas: Atlas, exported: str) -> Iterator[str]:
    """Where notes lie beside the atlas, where they don't since others look, too, and from a disk."""
    if request.param == "disk":
        yield exported
        return
    notes_of(atlas).unlink(missing_ok=True)
    with serving(atlas, ExplorerOptions(hosts=("*",)) if request.param == "shared" else ExplorerOptions()) as address:
        yield address
    notes_of(atlas).unlink(missing_ok=True)


@pytest.fixture
def served(atlas: Atlas) -> Iterator[str]:
    notes_of(atlas).unlink(missing_ok=True)
    with serving(atlas, ExplorerOptions()) as address:
        yield address
    notes_of(atlas).unlink(missing_ok=True)


@pytest.fixture
def watched(browser: Browser) -> Iterator[WatchedPage]:  # noqa: F811
    watched = WatchedPage(browser)
    yield watched
    watched.context.close()


def notes_of(atlas: Atlas) -> Path:
    return atlas.folder.parent / f"{atlas.folder.name}.notes.json"


def unit(site: str, layer: str, number: int) -> str:
    return f"{site}page.html#units/{layer}/{number}" if site.startswith("file:") else f"{site}units/{layer}/{number}.html"


def star(page: Page) -> Any:
    return page.get_by_role("button", name="Favourite", exact=True)


def units_shown(page: Page) -> list[str]:
    texts: list[str] = page.locator("#noted > li").evaluate_all(
        "all => all.map(block => ['.layer-name', '.unit-number'].map(part => block.querySelector(part).textContent).join(' '))"
    )
    return texts


def test_a_star_tags_and_a_text_are_kept_over_a_reload(watched: WatchedPage, site: str) -> None:
    page = watched.open(unit(site, "relu@2", 1))
    expect(star(page)).to_have_attribute("aria-pressed", "false")
    star(page).click()
    page.get_by_role("button", name="Note", exact=True).click()
    page.get_by_label("Tags").fill("edges, <b>bold</b>,, edges ")
    page.get_by_label("Note", exact=True).last.fill("first line\n<img src=x onerror=alert(1)>")
    page.reload()
    expect(star(page)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#note-glance")).to_have_text("edges, <b>bold</b> · first line\n<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Note", exact=True).click()
    expect(page.get_by_label("Tags")).to_have_value("edges, <b>bold</b>")
    watched.open(unit(site, "relu@2", 0))
    expect(star(page)).to_have_attribute("aria-pressed", "false")
    watched.open(site + "notes.html")
    assert units_shown(page) == ["relu#2 1"]
    assert page.locator("#noted .tags li").all_text_contents() == ["edges", "<b>bold</b>"]
    assert page.locator("#noted img[src=x], #noted b").count() == 0
    page.locator("#noted .block").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("relu#2 unit 1")
    watched.assert_sound(site)


def test_everything_goes_by_key_alone(watched: WatchedPage, site: str) -> None:
    page = watched.open(unit(site, "relu", 0))
    page.keyboard.press("f")
    expect(star(page)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Control+f")
    page.keyboard.press("/")
    page.keyboard.type("f")
    page.keyboard.press("Escape")
    expect(star(page)).to_have_attribute("aria-pressed", "true"), "a letter that is typed is no command"
    star(page).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Tags")).to_be_focused()
    page.keyboard.type("of fur")
    page.keyboard.press("Tab")
    page.keyboard.type("soft")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Note", exact=True)).to_be_focused()
    expect(page.locator("#note-glance")).to_have_text("of fur · soft")
    expect(star(page)).to_have_attribute("aria-pressed", "true")
    watched.open(site + "notes.html")
    button = page.get_by_role("button", name="Favourite: relu unit 0")
    button.focus()
    page.keyboard.press("Space")
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(button).to_be_focused()
    watched.assert_sound(site)


def test_pages_say_where_notes_are_kept(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "notes.html")
    file = notes_of(atlas).name
    if site.startswith("file:"):
        expect(page.locator("#notes-kept")).to_have_text("Kept in this browser.")
        return
    keeps_file = "Not beside" not in page.locator("#notes-kept").inner_text()
    if not keeps_file:
        expect(page.locator("#notes-kept")).to_contain_text(
            "Kept in this browser. Not beside the atlas: this server is there for other"
        )
    else:
        expect(page.locator("#notes-kept")).to_have_text(f"Kept in {file} beside the atlas, and in this browser.")
    watched.open(unit(site, "relu", 2)).keyboard.press("f")
    page.wait_for_timeout(1500)
    assert notes_of(atlas).exists() == keeps_file
    watched.assert_sound(site)


def test_a_browser_that_keeps_nothing_says_so(watched: WatchedPage, exported: str) -> None:
    watched.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page = watched.open(unit(exported, "relu", 0))
    page.keyboard.press("f")
    expect(star(page)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#notes-kept")).to_have_text(
        "Kept as long as this page is open: this browser keeps nothing for pages like this one."
    )
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text("relu unit 1")
    page.keyboard.press("ArrowLeft")
    expect(star(page)).to_have_attribute("aria-pressed", "true")
    watched.assert_sound(exported)


def test_another_browser_has_the_notes_that_lie_beside_the_atlas(browser: Browser, served: str, atlas: Atlas) -> None:  # noqa: F811
    first, second = WatchedPage(browser), WatchedPage(browser)
    first.open(unit(served, "relu", 0)).keyboard.press("f")
    first.page.wait_for_timeout(1500)
    assert [note["unit"] for note in json.loads(notes_of(atlas).read_text())["units"]] == [0]
    expect(star(second.open(unit(served, "relu", 0)))).to_have_attribute("aria-pressed", "true")
    # Both write, of different units and of the same, and nothing is lost: the later one counts.
    for page, number in ((first.page, 1), (second.page, 2)):
        page.goto(unit(served, "relu", number))
        page.wait_for_load_state("networkidle")
        page.keyboard.press("f")
    second.page.wait_for_timeout(2500)
    notes = {note["unit"]: note["favourite"] for note in json.loads(notes_of(atlas).read_text())["units"]}
    assert notes == {0: True, 1: True, 2: True}
    second.open(unit(served, "relu", 0)).keyboard.press("f")
    second.page.wait_for_timeout(1500)
    expect(star(first.open(unit(served, "relu", 0)))).to_have_attribute("aria-pressed", "false")
    first.context.close()
    second.context.close()


def test_a_page_with_an_old_copy_erases_nothing(browser: Browser, served: str, atlas: Atlas) -> None:  # noqa: F811
    """Two browsers, each with a server of its own, have the page of one unit open. What one writes, the other's page hasn't read when a person
    writes there."""
    with serving(Atlas(atlas.folder), ExplorerOptions()) as other_served:
        first, second = WatchedPage(browser), WatchedPage(browser)
        pages = [first.open(unit(served, "relu", 2)), second.open(unit(other_served, "relu", 2))]
        for page, tag, text in zip(pages, ("wheel", "dog"), ("round things", "of dogs, too"), strict=True):
            page.locator("#note-open").click()
            page.locator("#note-tags").fill(tag)
            page.locator("#note-text").fill(text)
            page.wait_for_timeout(1500)
        (kept,) = [
            known for known in json.loads(notes_of(atlas).read_text())["units"] if (known["layer"], known["unit"]) == ("relu", 2)
        ]
        assert (set(kept["tags"]), set(kept["text"].split("\n"))) == ({"wheel", "dog"}, {"round things", "of dogs, too"})
        expect(pages[1].locator("#note-text")).to_have_value(kept["text"])
        expect(pages[1].locator("#notes-kept")).to_contain_text("what both noted is in it")
        # What a person takes out now was read, and goes; the first page hears of it when it writes.
        pages[1].locator("#note-tags").fill("dog")
        pages[1].wait_for_timeout(1500)
        pages[0].locator("#note-text").press("End")
        pages[0].locator("#note-text").press_sequentially(" that turn", delay=20)
        pages[0].wait_for_timeout(1500)
        (kept,) = [
            known for known in json.loads(notes_of(atlas).read_text())["units"] if (known["layer"], known["unit"]) == ("relu", 2)
        ]
        assert (kept["tags"], set(kept["text"].split("\n"))) == (["dog"], {"round things that turn", "of dogs, too"})
        expect(pages[0].locator("#note-text")).to_have_value(kept["text"])
        for watched in (first, second):
            assert not [error for error in watched.errors if "412" not in error]
            watched.context.close()


def test_two_tabs_share_their_notes_at_once(watched: WatchedPage, site: str) -> None:
    if site.startswith("file:"):
        pytest.skip("pages from a disk are told nothing by each other")
    page = watched.open(unit(site, "relu", 0))
    second = watched.context.new_page()
    second.goto(unit(site, "relu", 0))
    star(second).click()
    expect(star(page)).to_have_attribute("aria-pressed", "true")


def note(layer: str, number: int, **changes: Any) -> dict[str, Any]:
    return {"layer": layer, "unit": number, "favourite": False, "tags": [], "text": "", "changed_ms": 1} | changes


def notes_file(page: Page, units: list[Any], **changes: Any) -> dict[str, Any]:
    network, images = page.evaluate("[document.documentElement.dataset.network, document.documentElement.dataset.images]")
    return {"format": "unitscope notes", "version": 1, "network": network, "images": images, "units": units} | changes


def import_file(page: Page, content: Any, name: str = "given.json") -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    page.evaluate("document.getElementById('notes-said').textContent = ''")
    page.locator("#import-file").set_input_files({"name": name, "mimeType": "application/json", "buffer": text})
    expect(page.locator("#notes-said")).not_to_have_text("")
    return page.locator("#notes-said").inner_text()


def test_notes_go_out_as_json_and_come_in_elsewhere(browser: Browser, site: str, exported: str) -> None:  # noqa: F811
    first, second = WatchedPage(browser), WatchedPage(browser)
    page = first.open(site + "notes.html")
    hostile = note("relu", 1, tags=["<img src=x>"], text="<script>alert(1)</script>", favourite=True)
    said = import_file(
        page, notes_file(page, [hostile, note("relu#2", 0, tags=["dog"]), note("relu", 400), note("nothing", 0), 7])
    )
    assert said == "2 notes imported; 3 of no unit of this atlas left out."
    assert units_shown(page) == ["relu 1", "relu#2 0"]
    page.get_by_label("Show").select_option(label="dog")
    assert units_shown(page) == ["relu#2 0"]
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export JSON").click()
    assert downloading.value.suggested_filename == "atlas-0.notes.json"
    content = json.loads(downloading.value.path().read_text())
    assert {note["layer"] for note in content["units"]} == {"relu", "relu#2"}, "all of them, whatever is shown"
    page = second.open(exported + "notes.html")
    assert import_file(page, content) == "2 notes imported."
    assert units_shown(page) == ["relu 1", "relu#2 0"]
    assert import_file(page, content) == "0 notes imported."
    star_of_unit = page.get_by_role("button", name="Favourite: relu#2 unit 0")
    star_of_unit.click()
    older = notes_file(page, [note("relu#2", 0, text="older"), note("relu#2", 1, text="new")], network="another")
    assert import_file(page, older) == "1 note imported; 1 older than yours left out; they were made on another network."
    expect(star_of_unit).to_have_attribute("aria-pressed", "true")
    assert page.locator("#noted script, #noted img[src=x]").count() == 0
    for each, address in ((first, site), (second, exported)):
        each.assert_sound(address)
        each.context.close()


def csv_of_notes(page: Page) -> tuple[str, list[dict[str, str]]]:
    """The name of a CSV of the units that the page of notes shows, and its rows."""
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export CSV").click()
    content = downloading.value.path().read_bytes().decode()
    return downloading.value.suggested_filename, list(csv.DictReader(io.StringIO(content, newline="")))


def test_notes_and_sets_go_out_as_csv_without_formulas(watched: WatchedPage, site: str) -> None:
    page = watched.open(site + "notes.html")
    expect(page.get_by_role("button", name="Export CSV")).to_be_disabled()
    text = '=HYPERLINK("http://evil.example", "x")\n=1+1, "quoted"'
    noted = [
        note("relu", 0, tags=["@SUM(A1)", "fur"], text=text),
        note("relu#2", 1, favourite=True, tags=["fur"], text="plain; ü"),
    ]
    import_file(page, notes_file(page, [*noted, note("relu", 2, text="\t-1")]))
    is_on_disk = site.startswith("file:")
    addresses = [
        f"{'' if is_on_disk else site}{unit(site, layer, number).removeprefix(site)}"
        for layer, number in (("relu", 0), ("relu@2", 1))
    ]
    rows = [
        {
            "layer": "relu",
            "unit": "0",
            "favourite": "false",
            "tags": "'@SUM(A1); fur",
            "note": f"'{text}",
            "address": addresses[0],
        },
        {"layer": "relu#2", "unit": "1", "favourite": "true", "tags": "fur", "note": "plain; ü", "address": addresses[1]},
    ]
    name, shown = csv_of_notes(page)
    assert name == "atlas-0.notes.csv"
    assert [row for row in shown if row["unit"] != "2"] == rows
    assert [row["note"] for row in shown if row["unit"] == "2"] == ["'\t-1"]
    page.get_by_label("Show").select_option(label="fur")
    assert csv_of_notes(page)[1] == rows
    page = watched.open(f"{site}notes.html#units=relu@2:1,0;relu:0")
    name, shown = csv_of_notes(page)
    unnoted = {
        "layer": "relu#2",
        "unit": "0",
        "favourite": "false",
        "tags": "",
        "note": "",
        "address": addresses[1].replace("2/1", "2/0"),
    }
    assert (name, shown) == ("atlas-0.set.csv", [rows[1], unnoted, rows[0]])
    watched.assert_sound(site)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no JSON"),
        (b"\xff\x00", "it is no JSON"),
        (b"null", "it holds no notes of unitscope"),
        (b"[1]", "it holds no notes of unitscope"),
        (b'{"format": "unitscope notes", "version": 1, "units": {}}', "it holds no notes of unitscope"),
        (b'{"format": "unitscope notes", "version": 2, "units": []}', "it is of another version of unitscope"),
        (b" " * (5 << 20), "it is larger than 4 MB"),
    ],
    ids=["empty", "binary", "null", "list", "units", "version", "large"],
)
def test_what_is_no_file_of_notes_says_so(watched: WatchedPage, exported: str, content: bytes, message: str) -> None:
    page = watched.open(exported + "notes.html")
    assert import_file(page, content, "<b>.json") == f"<b>.json can't be imported: {message}."
    assert units_shown(page) == []
    watched.assert_sound(exported)


def test_a_time_that_is_yet_to_come_makes_no_note_unchangeable(watched: WatchedPage, exported: str) -> None:
    page = watched.open(exported + "notes.html")
    import_file(page, notes_file(page, [note("relu", 0, text="theirs", changed_ms=2**53 - 1)]))
    page.goto(unit(exported, "relu", 0))
    expect(page.locator("#note-glance")).to_have_text("theirs")
    page.get_by_role("button", name="Note", exact=True).click()
    page.get_by_label("Note", exact=True).last.fill("mine")
    page.reload()
    expect(page.locator("#note-glance")).to_have_text("mine")


def test_an_address_shows_the_same_units_to_somebody_else(browser: Browser, site: str, exported: str) -> None:  # noqa: F811
    first, second = WatchedPage(browser), WatchedPage(browser)
    page = first.open(site + "notes.html#units=relu@2:1,0;relu:2;relu@2:1;relu:99,x,-1;nothing:1;;relu:")
    assert units_shown(page) == ["relu#2 1", "relu#2 0", "relu 2"]
    expect(page.locator("#set-notice")).to_have_text(
        "The address names these units. 4 units that it names are not in this atlas."
    )
    page.get_by_role("button", name="Copy address of this set").click()
    expect(page.locator("#notes-said")).to_contain_text("It names units alone, no tags and no texts.")
    address = page.get_by_label("Address").input_value()
    assert address == f"{site}notes.html#units=relu@2:1,0;relu:2"
    page = second.open(exported + address.removeprefix(site))
    assert units_shown(page) == ["relu#2 1", "relu#2 0", "relu 2"]
    loaded = "[...document.images].every(image => image.complete && (image.naturalWidth > 0 || image.loading === 'lazy'))"
    page.wait_for_function(loaded)
    page.get_by_role("button", name="Add all to my favourites").click()
    expect(page.locator("#notes-said")).to_have_text("3 units added to your favourites.")
    expect(page.get_by_role("button", name="Add all to my favourites")).to_be_disabled()
    page.get_by_role("link", name="My notes").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Notes")
    assert units_shown(page) == ["relu 2", "relu#2 0", "relu#2 1"], "from the first layer to the last"
    for each, root in ((first, site), (second, exported)):
        each.assert_sound(root)
        each.context.close()


@pytest.mark.parametrize("address", ["%E0%A4%A", "<img src=x onerror=alert(1)>:1", "relu%402:1", "constructor:1;__proto__:0"])
def test_any_address_of_a_set_is_shown(watched: WatchedPage, exported: str, address: str) -> None:
    page = watched.open(f"{exported}notes.html#units={address}")
    assert units_shown(page) == (["relu#2 1"] if "relu" in address else [])
    watched.assert_sound(exported)


def heading(page: Page) -> Any:
    return page.get_by_role("heading", level=1)


def test_pages_of_units_go_on_in_the_order_of_their_set(watched: WatchedPage, site: str) -> None:
    address = f"{site}notes.html#units=relu@2:1;relu:2,0"
    page = watched.open(address)
    page.locator("#noted .block").first.click()
    expect(heading(page)).to_have_text("relu#2 unit 1")
    expect(page.locator(".steps a")).to_have_text(["↑ 1 of 3: Set", "relu 2 →"])
    for place, name in ((2, "relu unit 2"), (3, "relu unit 0")):
        page.keyboard.press("ArrowRight")
        expect(heading(page)).to_have_text(name)
        expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ {place} of 3: Set")
    page.keyboard.press("ArrowRight")
    expect(page.locator('a[rel="next"]')).to_have_count(0)
    page.reload()
    expect(page.locator('.steps a[rel="up"]')).to_have_text("↑ 3 of 3: Set")
    page.keyboard.press("ArrowLeft")
    expect(page.locator('.steps a[rel="up"]')).to_have_text("↑ 2 of 3: Set")
    expect(heading(page)).to_have_text("relu unit 2")
    page.keyboard.press("ArrowUp")
    page.wait_for_url(address)
    assert units_shown(page) == ["relu#2 1", "relu 2", "relu 0"]
    watched.assert_sound(site)


def test_a_unit_that_its_list_lacks_goes_on_by_number(watched: WatchedPage, site: str) -> None:
    watched.open(f"{site}notes.html#units=relu:2,0")
    for mark in ("from=notes", "from=<img src=x>", "from=notes-1", "from="):
        page = watched.open("about:blank")
        page = watched.open(unit(site, "relu", 1) + ("?" if site.startswith("file:") else "#") + mark)
        expect(page.locator(".steps a")).to_have_text([re.compile("^. 0$"), re.compile("^2 ")])
        page.keyboard.press("ArrowUp")
        page.wait_for_url("**/layers/relu.html")
    watched.assert_sound(site)


def test_notes_of_a_tag_have_an_address_and_an_order(watched: WatchedPage, site: str) -> None:
    tag = "=fur & <b>#1</b>"
    for layer, number in (("relu@2", 1), ("relu", 0)):
        page = watched.open(unit(site, layer, number))
        page.get_by_role("button", name="Note", exact=True).click()
        page.get_by_label("Tags").fill(tag)
    page = watched.open(unit(site, "relu", 2))
    star(page).click()
    page = watched.open(site + "notes.html")
    assert units_shown(page) == ["relu 0", "relu 2", "relu#2 1"]
    page.get_by_label("Show").select_option(label=tag)
    assert units_shown(page) == ["relu 0", "relu#2 1"]
    address = page.url
    page.reload()
    expect(page.get_by_label("Show")).to_have_value(f"tag {tag}")
    page.locator("#noted .block").first.click()
    expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 1 of 2: {tag}")
    page.keyboard.press("ArrowRight")
    expect(heading(page)).to_have_text("relu#2 unit 1")
    expect(page.locator('.steps a[rel="up"]')).to_have_text(f"↑ 2 of 2: {tag}")
    page.keyboard.press("ArrowUp")
    page.wait_for_url(address)
    assert units_shown(page) == ["relu 0", "relu#2 1"]
    page.get_by_label("Show").select_option("all")
    assert page.url == site + "notes.html"
    watched.assert_sound(site)


def test_favourites_have_a_star_on_the_page_of_their_layer(watched: WatchedPage, site: str) -> None:
    for number in (0, 2):
        page = watched.open(unit(site, "relu", number))
        page.keyboard.press("f")
    page = watched.open(site + "layers/relu.html")
    expect(page.get_by_role("img", name="favourite")).to_have_count(2)
    page.get_by_role("combobox", name="Show").select_option("favourites")
    assert page.url.endswith("#show=favourites")
    shown = "all => all.map(block => block.dataset.unit)"
    assert page.locator("#units > li:not([hidden])").evaluate_all(shown) == ["0", "2"]
    page.reload()
    assert page.locator("#units > li:not([hidden])").evaluate_all(shown) == ["0", "2"]
    watched.assert_sound(site)


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_notes_and_downloads_are_accessible(browser: Browser, served: str, exported: str, options: dict[str, Any]) -> None:  # noqa: F811
    for site in (served, exported):
        watched = WatchedPage(browser, **options)
        page = watched.open(site + "notes.html")
        import_file(page, notes_file(page, [note("relu", 0, favourite=True, tags=["dog"] * 3 + ["w" * 90], text="w" * 500)]))

        def check(what: str, page: Page = page) -> None:
            report = Axe().run(page)
            assert report.violations_count == 0, f"{what}\n{report.generate_report()}"
            excess_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert excess_px <= 0, f"{what} scrolls sideways by {excess_px} pixels"

        check("notes")
        page.goto(site + "notes.html#units=relu:0,1;relu:77")
        page.get_by_role("button", name="Copy address of this set").click()
        check("a set")
        page.goto(unit(site, "relu", 0))
        check("a unit with a note")
        page.get_by_role("button", name="Note", exact=True).click()
        check("a unit's note")
        open_downloads(page)
        check("downloads")
        page.keyboard.press("Escape")
        expect(page.locator(".downloads")).not_to_have_attribute("open", "")
        page.goto(site + "layers/relu.html")
        open_downloads(page)
        check("a layer")
        watched.context.close()


# ── downloads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def open_downloads(page: Page) -> None:
    """On a phone they are behind the menu."""
    if page.locator("#menu-open").is_visible() and not page.locator("#menu[data-open]").count():
        page.locator("#menu-open").click()
    page.locator(".downloads summary").click()


def downloaded(page: Page, name: str | Any, role: Any = "link") -> tuple[str, bytes]:
    if not page.locator(".downloads[open]").count():
        page.locator(".downloads summary").click()
    with page.expect_download() as downloading:
        page.get_by_role(role, name=name).click()
    return downloading.value.suggested_filename, downloading.value.path().read_bytes()


def test_a_sheet_has_the_units_that_are_shown(watched: WatchedPage, served: str, atlas: Atlas) -> None:
    page = watched.open(served + "layers/relu.html#sort=highest&show=not-dead")
    order = [row["unit"] for row in sorted(atlas.units("relu").to_pylist(), key=lambda row: -row["highest"]) if not row["dead"]]
    name, content = downloaded(page, "Sheet of the 3 units shown as PNG")
    assert name == "atlas-0-relu-3-units.png"
    sheet = io.BytesIO()
    atlas.sheet("relu", order).save(sheet, "PNG")
    assert content == sheet.getvalue()
    name, content = downloaded(page, "The 3 units shown, in their order, as CSV")
    assert name == "atlas-0-layers-relu-3-units.csv"
    assert [int(row["unit"]) for row in csv.DictReader(io.StringIO(content.decode(), newline=""))] == order
    watched.assert_sound(served)


def test_an_exported_page_makes_csv_of_what_it_shows(watched: WatchedPage, exported: str, atlas: Atlas) -> None:
    page = watched.open(exported + "layers/relu@2.html#sort=highest")
    name, content = downloaded(page, f"The {len(atlas.units('relu#2'))} units shown, in their order, as CSV", "button")
    units = sorted(atlas.units("relu#2").to_pylist(), key=lambda row: -row["highest"])
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert name == "relu_2.csv" or name == "relu#2.csv"
    assert [int(row["unit"]) for row in rows] == [row["unit"] for row in units]
    assert [float(row["highest"]) for row in rows] == pytest.approx([row["highest"] for row in units], rel=1e-5)
    page = watched.open(unit(exported, "relu", 0))
    rows = list(csv.DictReader(io.StringIO(downloaded(page, "Its peaks as CSV", "button")[1].decode(), newline="")))
    assert [(int(row["image"]), row["key"]) for row in rows] == [
        (peak["image"], atlas.key(peak["image"])) for peak in atlas.peaks("relu", 0).to_pylist()
    ]
    page.goto(exported + "page.html#images/3")
    expect(page.locator("#stage")).to_be_visible()
    expect(page.locator(".downloads")).to_be_hidden()
    watched.assert_sound(exported)
