"""The explorer in a real browser: by mouse, finger and keyboard, in light and dark, served and from a disk."""

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from explored import AS_IT_IS, LABELS, explored_atlas, explored_network
from numpy.typing import NDArray
from photographs import write_photographs
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from starlette.testclient import TestClient
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.responses import open_responses
from unitscope.web import ExplorerOptions, create_explorer, export
from unitscope.web.addresses import slug
from unitscope.web.server import create_server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = (
    "index.html", "layers/relu.html", "units/relu@2/1.html", "units/relu/3.html", "images/3.html", f"labels/{slug(LABELS[2])}.html",
    "glossary.html", "notes.html", "units.html", "image-search.html", "compare/index.html", "compare/relu@2.html", "compared/index.html", "compared/units/relu/0.html",
)  # fmt: skip
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@contextmanager
def serving(atlas: Atlas, options: ExplorerOptions) -> Iterator[str]:
    server = create_server(create_explorer(atlas, options))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explored")


@pytest.fixture(scope="module")
def atlas(folder: Path) -> Atlas:
    return explored_atlas(folder)


@pytest.fixture(scope="module")
def site(folder: Path, atlas: Atlas) -> Iterator[str]:
    second_atlas = explored_atlas(folder, seed=1)
    with (
        open_responses(atlas, explored_network()) as run_network,
        serving(atlas, ExplorerOptions(second_atlas, run_network)) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        yield browser
        browser.close()


class WatchedPage:
    """A page that keeps the errors on it, and the addresses that it requests."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: set[str] = set()
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.add(request.url))

    def _log(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self, address: str) -> Page:
        self.page.goto(address)
        self.page.wait_for_load_state("networkidle")
        return self.page

    def assert_sound(self, site: str) -> None:
        """No error was logged, and nothing was requested from elsewhere."""
        assert self.errors == []
        assert [address for address in self.requests if not address.startswith((site, "blob:"))] == []


@pytest.fixture
def watched(browser: Browser) -> Iterator[WatchedPage]:
    watched = WatchedPage(browser)
    yield watched
    watched.context.close()


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_every_page_is_sound_and_accessible(browser: Browser, site: str, options: dict[str, Any]) -> None:
    watched = WatchedPage(browser, **options)
    for path in PAGES:
        page = watched.open(site + path)
        report = Axe().run(page)
        assert report.violations_count == 0, f"{path}\n{report.generate_report()}"
        excess_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert excess_px <= 0, f"{path} scrolls sideways by {excess_px} pixels"
    watched.assert_sound(site)
    watched.context.close()


def test_the_search_box_finds_units_layers_labels_and_images(watched: WatchedPage, site: str) -> None:
    page = watched.open(site)
    for query, path in [
        ("relu#2 1", "units/relu@2/1.html"), ("last", "layers/last.html"), ("dog", "labels/dog.html"), ("dog/001", "images/"),
    ]:  # fmt: skip
        page.keyboard.press("/")
        page.keyboard.type(query)
        expect(page.locator("#search-results").get_by_role("option").first).to_be_visible()
        page.wait_for_function("path => document.querySelector('#search-results a').href.includes(path)", arg=path)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{path}*")
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    expect(page.get_by_text("Nothing of that name.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    watched.assert_sound(site)


def test_arrow_keys_go_from_unit_to_unit_and_layer_to_layer(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu/1.html")
    for key, path in [("ArrowRight", "units/relu/2.html"), ("ArrowLeft", "units/relu/1.html"), ("ArrowUp", "layers/relu.html")]:
        page.keyboard.press(key)
        page.wait_for_url(f"**/{path}")
    following = atlas.layers[[layer.name for layer in atlas.layers].index("relu") + 1].name
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/layers/{slug(following)}.html")
    page.keyboard.press("/")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert page.url.endswith(f"layers/{slug(following)}.html")  # the key belongs to the box


def shown_units(page: Page) -> list[int]:
    return [
        int(unit or 0)
        for unit in page.eval_on_selector_all("#units > li:not([hidden])", "blocks => blocks.map(block => block.dataset.unit)")
    ]


def test_units_are_sorted_chosen_and_sized_and_a_link_keeps_that(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "layers/relu.html")
    units = atlas.units("relu").to_pylist()
    assert shown_units(page) == [0, 1, 2, 3]
    page.get_by_label("Sort by").select_option("highest")
    assert shown_units(page) == [row["unit"] for row in sorted(units, key=lambda row: -row["highest"])]
    page.get_by_label("Sort by").select_option("activation_rate")
    rates = {row["unit"]: row["activation_rate"] for row in units}
    shown = page.eval_on_selector_all(
        "#units > li:not([data-dead])", "all => all.map(li => [li.dataset.unit, li.querySelector('.value').textContent])"
    )
    assert {int(unit): float(value) for unit, value in shown} == pytest.approx({u: rates[u] for u in rates if u != 3}, rel=0.01)
    page.get_by_label("Sort by").select_option("highest")
    page.get_by_role("combobox", name="Show").select_option("dead")
    assert shown_units(page) == [row["unit"] for row in units if row["dead"]] == [3]
    page.get_by_role("combobox", name="Show").select_option("always-active")
    assert shown_units(page) == [
        row["unit"] for row in sorted(units, key=lambda row: -row["highest"]) if row["activation_rate"] == 1
    ]
    page.get_by_role("combobox", name="Show").select_option("not-dead")
    page.get_by_role("combobox", name="Label", exact=True).fill("no such label")
    assert shown_units(page) == []
    expect(page.get_by_role("status").filter(has_text="unit")).to_have_text("No unit fits")
    page.get_by_role("combobox", name="Label", exact=True).fill("cat")
    assert shown_units(page) == [0], (
        "six of nine patches, where a third of all images are cats; the others have no label so often"
    )
    page.get_by_label("Size").fill("240")
    width = page.eval_on_selector("#units > li:not([hidden])", "block => block.getBoundingClientRect().width")
    assert width >= 240
    linked = watched.context.new_page()
    linked.goto(page.url)
    assert shown_units(linked) == shown_units(page)
    assert linked.get_by_label("Size").input_value() == "240"
    watched.assert_sound(site)


def test_units_follow_the_list_that_they_were_opened_from(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    order = [
        row["unit"] for row in sorted(atlas.units("relu#2").to_pylist(), key=lambda row: (row["activation_rate"], -row["unit"]))
    ]
    page = watched.open(site + "layers/relu@2.html")
    page.get_by_label("Sort by").select_option("activation_rate")
    assert shown_units(page) == order[::-1]
    page.locator("#units > li a.block").first.click()
    for unit in order[::-1][1:]:
        expect(page.locator('a[rel="next"]')).to_have_attribute("href", re.compile("#sort=activation_rate$"))
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"**/units/relu@2/{unit}.html#sort=activation_rate")
    expect(page.locator('a[rel="next"]')).to_have_count(0)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/units/relu@2/{order[1]}.html#sort=activation_rate")
    page.locator('a[rel="up"]').click()
    page.wait_for_url("**/layers/relu@2.html#sort=activation_rate")
    assert shown_units(page) == order[::-1]
    page.evaluate("location.hash = ''")
    page.wait_for_timeout(200)
    assert shown_units(page) == sorted(order), "the address says what is shown, also when it changes"
    watched.assert_sound(site)


def test_a_number_finds_that_unit_in_every_layer(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site)
    page.keyboard.press("/")
    page.keyboard.type("3")
    expect(page.locator("#search-results").get_by_role("option").first).to_contain_text(" 3")
    links = page.eval_on_selector_all("#search-results a", "all => all.map(link => link.getAttribute('href'))")
    layers = [layer for layer in atlas.layers if layer.units > 3]
    assert links[: len(layers)] == [f"units/{slug(layer.name)}/3.html" for layer in layers]
    watched.assert_sound(site)


def boxes(page: Page, selector: str) -> list[list[float]]:
    return page.eval_on_selector_all(
        f"{selector} rect.patch-box",
        "all => all.map(rectangle => ['x', 'y', 'width', 'height'].map(name => Number(rectangle.getAttribute(name))))",
    )


def test_pointing_at_a_patch_shows_where_it_is(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu@2/1.html")
    rows = atlas.peaks("relu#2", 1).to_pylist()
    for action in ("hover", "focus"):
        for rank in (3, 1):
            getattr(page.locator(".patches button.show").nth(rank - 1), action)()
            row = rows[rank - 1]
            size = row["source_right"] - row["source_left"], row["source_bottom"] - row["source_top"]
            assert boxes(page, "#source") == [pytest.approx([row["source_left"], row["source_top"], *size], abs=0.01)]
            expect(page.locator("#source a")).to_have_text(atlas.key(row["image"]))
            assert page.locator("#source image").get_attribute("href") == f"../../images/{row['image']}.jpg"
    watched.assert_sound(site)


def test_a_patch_on_a_page_is_the_patch_of_the_atlas(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    import io

    import numpy as np
    from PIL import Image

    page = watched.open(site + "units/relu@2/1.html")
    row = next(
        row
        for row in atlas.peaks("relu#2", 1).to_pylist()
        if row["top"] >= 0 and row["left"] >= 0 and row["bottom"] <= 40 and row["right"] <= 40
    )
    shot = page.locator(".patches .patch").nth(row["rank"] - 1).screenshot()
    seen = Image.open(io.BytesIO(shot)).convert("RGB").resize((64, 64))
    expected = atlas.patch(row, size_px=64)
    difference = np.abs(np.asarray(seen, dtype=float) - np.asarray(expected, dtype=float))[8:-8, 8:-8]
    assert difference.mean() < 8  # filters and JPEG differ; another patch is off by more than 40


def test_pointing_at_a_unit_draws_its_box_on_the_image(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    row = atlas.peaks("relu#2", 1).to_pylist()[2]
    page = watched.open(f"{site}images/{row['image']}.html")
    block = page.locator(f'.excited-layers a[href$="units/relu@2/{row["unit"]}.html"]').first
    for action in ("hover", "focus"):
        getattr(block, action)()
        assert boxes(page, "#stage")[0][:2] == pytest.approx([row["source_left"], row["source_top"]], abs=0.01)
    watched.assert_sound(site)


def test_a_finger_shows_where_a_patch_is(browser: Browser, site: str) -> None:
    watched = WatchedPage(browser, **PHONE)
    page = watched.open(site + "units/relu@2/1.html")
    first_boxes = boxes(page, "#source")
    page.locator(".patches button.show").nth(4).tap()
    assert boxes(page, "#source") != first_boxes
    watched.assert_sound(site)
    watched.context.close()


def test_the_first_tap_shows_where_and_the_second_opens_the_unit(browser: Browser, site: str, atlas: Atlas) -> None:
    row = atlas.peaks("relu#2", 1).to_pylist()[2]
    watched = WatchedPage(browser, **PHONE)
    page = watched.open(f"{site}images/{row['image']}.html")
    link = page.locator(f'.excited-layers a[href$="units/relu@2/{row["unit"]}.html"]').first
    link.tap()
    assert boxes(page, "#stage")[0][:2] == pytest.approx([row["source_left"], row["source_top"]], abs=0.01)
    assert "/images/" in page.url
    link.tap()
    page.wait_for_url(f"**/units/relu@2/{row['unit']}.html")
    watched.assert_sound(site)
    watched.context.close()


def test_a_click_shows_a_patch_in_its_image_large(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu@2/1.html")
    first, second = page.locator(".patches button.show").nth(0), page.locator(".patches button.show").nth(1)
    first.click()
    dialog = page.get_by_role("dialog", name="The image of a patch, large")
    expect(dialog).to_be_visible()
    stage = dialog.locator(".lightbox-stage > svg")

    def view() -> list[float]:
        return [float(number) for number in (stage.get_attribute("viewBox") or "").split()]

    rows = atlas.peaks("relu#2", 1).to_pylist()
    width = view()[2]
    page.keyboard.press("+")
    assert view()[2] == pytest.approx(width / 1.5)
    page.keyboard.press("0")
    assert view()[2] == width
    page.keyboard.press("p")
    side = max(rows[0]["source_right"] - rows[0]["source_left"], rows[0]["source_bottom"] - rows[0]["source_top"])
    assert view()[2] == pytest.approx(1.1 * side, abs=0.05)
    page.mouse.move(640, 400)
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(100)
    assert view()[2] == pytest.approx(1.1 * side / 1.2, abs=0.05)
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("a")).to_have_text(atlas.key(rows[1]["image"]))
    expect(dialog.locator(".legend li")).to_have_count(3)
    assert Axe().run(page).violations_count == 0
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert second.evaluate("button => button === document.activeElement")
    assert page.url.endswith("units/relu@2/1.html"), "the arrow was the dialog's"
    watched.assert_sound(site)


def test_what_is_laid_over_patches_stays(watched: WatchedPage, site: str) -> None:
    page = watched.open(site + "units/relu/0.html")
    assert page.locator(".heat").count() == 0
    page.get_by_label("Laid over the patches").select_option("deconvnet")
    expect(page.locator(".patches .heat")).to_have_count(9)
    for rank in (5, 2):
        page.locator(".patches button.show").nth(rank - 1).hover()
        cell = page.locator("#source .heat")
        assert cell.get_attribute("viewBox") == f"{(rank - 1) % 3} {(rank - 1) // 3} 1 1"
        assert page.locator(".patches .heat").nth(rank - 1).get_attribute("viewBox") == cell.get_attribute("viewBox")
    assert page.locator("#overlay option[disabled]").count() == 5, "what wasn't computed is said"
    page = watched.open(site + "units/relu@2/1.html")
    expect(page.locator(".patches .heat")).to_have_count(9)
    page.get_by_label("Laid over the patches").select_option("")
    expect(page.locator(".heat")).to_have_count(0)
    expect(watched.open(site + "units/relu/1.html").get_by_text("No heat or attribution was computed")).to_be_visible()
    watched.assert_sound(site)


def test_what_is_laid_over_few_patches_is_theirs(watched: WatchedPage, tmp_path: Path) -> None:
    """A unit with four peaks of nine: its square has room for nine."""
    with serving(explored_atlas(tmp_path, count=4), ExplorerOptions()) as site:
        page = watched.open(site + "units/relu/0.html")
        page.locator("#overlay").select_option("deconvnet")
        page.wait_for_selector(".patches .heat", state="attached")
        cells = page.locator(".patches .heat").evaluate_all("all => all.map(cell => cell.getAttribute('viewBox'))")
        assert cells == ["0 0 1 1", "1 0 1 1", "2 0 1 1", "0 1 1 1"]
        assert page.locator(".patches .heat image").first.get_attribute("width") == "3"


def test_the_switch_of_patches_stays_from_page_to_page(watched: WatchedPage, site: str) -> None:
    page = watched.open(site + "units/relu@2/1.html")
    page.locator("#patches").select_option("image")
    page.wait_for_selector('html[data-patches="image"]')
    assert (page.locator(".patches image").first.get_attribute("href") or "").endswith("large-blocks/relu@2/1.jpg?patch=image")
    page = watched.open(site + "layers/relu.html")
    assert (page.locator("#units img").first.get_attribute("src") or "").endswith("blocks/relu/0.jpg?patch=image")
    assert page.locator("#patches").input_value() == "image"
    page.locator("#patches").select_option("auto")
    page.wait_for_selector('html[data-patches="auto"]')
    watched.assert_sound(site)


def test_the_switch_stands_in_the_address_where_cookies_are_forbidden(browser: Browser, site: str) -> None:
    watched = WatchedPage(browser)
    watched.page.add_init_script("Object.defineProperty(document, 'cookie', { get: () => '', set: () => {} })")
    page = watched.open(site + "units/relu@2/1.html")
    page.locator("#patches").select_option("field")
    page.wait_for_url("**/units/relu@2/1.html?patch=field")
    assert page.locator("html").get_attribute("data-patches") == "field"
    watched.context.close()


def test_the_histogram_says_what_a_bar_counts(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu@2/1.html")
    drawing = page.locator(".histogram > svg")
    counts = [int(count) for count in (drawing.get_attribute("data-counts") or "").split()]
    assert sum(counts) == 24
    box = drawing.bounding_box()
    assert box is not None
    tallest = counts.index(max(counts))
    x = 34 + 320 * (tallest + 0.5) / len(counts)
    page.mouse.move(box["x"] + x / 360 * box["width"], box["y"] + 60 / 128 * box["height"])
    expect(page.locator(".histogram output")).to_contain_text(f": {max(counts)} images")
    watched.assert_sound(site)


def test_the_head_is_one_row_on_a_phone_and_its_menu_opens(browser: Browser, site: str) -> None:
    watched = WatchedPage(browser, **PHONE)
    page = watched.open(site + "units/relu@2/1.html")
    closed = page.locator(".top").bounding_box()
    assert closed is not None
    assert closed["height"] < 64
    expect(page.get_by_role("link", name="Glossary")).to_be_hidden()
    page.get_by_role("button", name="Menu").tap()
    page.get_by_role("link", name="Glossary").tap()
    page.wait_for_url("**/glossary.html")
    watched.assert_sound(site)
    watched.context.close()


def test_an_uploaded_image_finds_units(watched: WatchedPage, site: str, atlas: Atlas, folder: Path) -> None:
    page = watched.open(site + "image-search.html")
    (folder / "text.txt").write_text("no image")
    page.locator("#file").set_input_files(folder / "text.txt")
    expect(page.locator("#upload-status")).to_have_text("The image is no image that can be read.")
    page.locator("#file").set_input_files(folder / "photographs" / atlas.key(0))
    expect(page.locator("#upload-results h2").first).to_be_visible()
    expect(page.locator("#upload-status")).to_be_hidden()
    page.locator("#upload-results [data-box]").first.hover()
    assert len(boxes(page, "#stage")) == 1
    assert page.locator("#uploaded-image").get_attribute("href").startswith("blob:")
    assert [message[:76] for message in watched.errors] == [
        "Failed to load resource: the server responded with a status of 422 (Unproces"
    ]


def test_an_address_names_an_image_of_the_atlas(watched: WatchedPage, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "image-search.html?image=3")
    picture = page.locator("#uploaded-image")
    expect(picture).to_have_attribute("href", "images/3.jpg")
    expect(page.get_by_role("link", name=atlas.key(3))).to_have_attribute("href", "images/3.html")
    page.locator("#file").set_input_files(
        {
            "name": "a.png",
            "mimeType": "image/png",
            "buffer": (Path(atlas.manifest["images"]["folder"]) / atlas.key(4)).read_bytes(),
        }
    )
    expect(picture).to_have_attribute("href", re.compile("^blob:"))
    watched.assert_sound(site)
    page = watched.open(site + "image-search.html?image=99999")
    expect(page.locator("#upload-status")).to_have_text("The atlas has no image of that number.")


def test_light_and_dark_are_kept(watched: WatchedPage, site: str) -> None:
    page = watched.open(site)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(background)
    assert dark != light
    assert watched.open(site + "glossary.html").evaluate(background) == dark


def test_a_page_says_which_images_are_gone(browser: Browser, tmp_path: Path) -> None:
    atlas = explored_atlas(tmp_path)
    gone = atlas.peaks("relu", 0).to_pylist()[0]["image"]
    (tmp_path / "photographs" / atlas.key(gone)).unlink()
    watched = WatchedPage(browser)
    with serving(Atlas(atlas.folder), ExplorerOptions()) as site:
        page = watched.open(site + "units/relu/0.html")
        expect(page.locator("#missing-images")).to_contain_text("can't be shown: it is gone")
    watched.context.close()


def test_nothing_jumps_while_blocks_arrive(watched: WatchedPage, site: str) -> None:
    watched.page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries()) window.shift += entry.value; })"
        ".observe({ type: 'layout-shift', buffered: true })"
    )
    for path in PAGES[:3]:
        assert watched.open(site + path).evaluate("window.shift") < 0.05


@pytest.fixture(scope="module")
def exported(folder: Path, atlas: Atlas) -> Path:
    export(atlas, folder / "under" / "a" / "path", explored_atlas(folder / "more", seed=1))
    return folder / "under"


@pytest.fixture(scope="module", params=["disk", "host"])
def static(request: pytest.FixtureRequest, exported: Path) -> Iterator[str]:
    if request.param == "disk":
        yield exported.as_uri() + "/a/path/"
        return

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *parts: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(exported))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a/path/"
        server.shutdown()


def site_path(path: str) -> str:
    """Where an exported site shows what is served at a path."""
    root, path = ("compared/", path.removeprefix("compared/")) if path.startswith("compared/") else ("", path)
    is_part = path.startswith(("units/", "images/", "labels/"))
    return f"{root}page.html#{path.removesuffix('.html')}" if is_part else root + path


def test_an_exported_site_works_from_a_disk_and_under_a_path(watched: WatchedPage, static: str) -> None:
    for path in PAGES:
        if path in ("image-search.html", "units.html"):  # a server alone has them
            continue
        page = watched.open(static + site_path(path))
        loaded = "[...document.images].every(image => image.complete && (image.naturalWidth > 0 || image.loading === 'lazy'))"
        page.wait_for_function(loaded)
    page = watched.open(static + site_path("units/relu@2/1.html"))
    page.locator(".patches button.show").nth(2).hover()
    assert len(boxes(page, "#source")) == 1
    page.keyboard.press("/")
    page.keyboard.type("relu 0")
    page.wait_for_function("() => document.querySelector('#search-results a')?.href.includes('units/relu')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/page.html#units/relu*/0")
    watched.assert_sound(static)
    # A person walks on by key, and back.
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("unit 0$"))
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/page.html#units/relu*/1")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("unit 1$"))
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("unit 0$"))
    page.keyboard.press("ArrowUp")
    page.wait_for_url("**/layers/relu*.html")
    page.goto(static + "page.html#units/relu/99")
    expect(page.get_by_text("There is nothing at this address.")).to_be_visible()
    page.goto(static + "page.html#units/<img src=x onerror=alert(1)>/1")
    expect(page.get_by_text("There is nothing at this address.")).to_be_visible()
    watched.assert_sound(static)


def test_the_switch_of_patches_works_in_a_site(watched: WatchedPage, static: str) -> None:
    page = watched.open(static + "page.html#units/relu@2/1")
    before = page.locator(".patches .patch").first.get_attribute("viewBox")
    page.locator("#patches").select_option("image")
    page.wait_for_selector(".patches .patch > rect", state="attached")
    button = page.locator(".patches button.show").first
    assert button.locator(".patch").get_attribute("viewBox") == button.get_attribute("data-input") != before
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("unit 2$"))
    assert page.locator(".patches .patch").first.get_attribute("viewBox") == page.locator(
        ".patches button.show"
    ).first.get_attribute("data-input")
    watched.assert_sound(static)


def pixels(content: bytes) -> NDArray[np.float32]:
    picture = Image.open(BytesIO(content)).convert("RGB").resize((48, 48), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float32).ravel()


@pytest.mark.parametrize("kind", ["field", "image"])
def test_blocks_on_a_layer_s_page_of_a_site_follow_the_switch(watched: WatchedPage, static: str, atlas: Atlas, kind: str) -> None:
    """The oracle is the block that a server draws of the same kind. What is out of view isn't cut, and nothing jumps."""
    served = TestClient(create_explorer(atlas), base_url="http://localhost")
    page = watched.open(static + "layers/relu@2.html")
    before = page.locator("#units").bounding_box()
    page.get_by_label("Sort by").select_option("z_score")
    order = page.locator("#units > li").evaluate_all("all => all.map(block => block.dataset.unit)")
    page.locator("#patches").select_option(kind)
    expect(page.locator("#units .sprite canvas")).to_have_count(len(order))
    page.wait_for_load_state("networkidle")
    assert page.locator("#units > li").evaluate_all("all => all.map(block => block.dataset.unit)") == order
    assert page.locator("#units").bounding_box() == before
    page.add_style_tag(content=".block::before { content: none !important }")
    for unit in map(int, order):
        shown = pixels(page.locator(f'#units > li[data-unit="{unit}"] .sprite').screenshot())
        drawn = {known: pixels(served.get(f"/blocks/relu@2/{unit}.jpg?patch={known}").content) for known in ("auto", kind)}
        alike = {known: np.corrcoef(shown, content)[0, 1] for known, content in drawn.items()}
        assert alike[kind] > 0.9, unit  # browsers make small pictures large in another way
        if kind == "image":  # what matters is the field here
            assert alike["auto"] < 0.5, unit
    watched.assert_sound(static)


def test_blocks_on_the_network_s_page_of_a_site_follow_the_switch(watched: WatchedPage, static: str, atlas: Atlas) -> None:
    served = TestClient(create_explorer(atlas), base_url="http://localhost")
    page = watched.open(static + "index.html")
    assert page.locator(".scale").first.is_visible()
    page.locator("#patches").select_option("image")
    page.wait_for_selector("html[data-cut]")
    blocks = page.locator(".layers .block")
    blocks.last.scroll_into_view_if_needed()
    expect(page.locator(".layers .block .sprite canvas")).to_have_count(blocks.count())
    page.wait_for_load_state("networkidle")
    page.add_style_tag(content=".block::before { content: none !important }")
    for block in blocks.all():
        layer, unit = (block.get_attribute("href") or "").rpartition("#units/")[2].split("/")
        shown = pixels(block.locator(".sprite").screenshot())
        drawn = {known: pixels(served.get(f"/blocks/{layer}/{unit}.jpg?patch={known}").content) for known in ("auto", "image")}
        alike = {known: np.corrcoef(shown, content)[0, 1] for known, content in drawn.items()}
        assert alike["image"] > max(0.9, alike["auto"]), (layer, unit)
    assert not page.locator(".scale").first.is_visible(), "it would be that of other patches"
    assert not page.locator(".patch-size").first.is_visible()
    page.locator("#patches").select_option("auto")
    page.wait_for_selector("html:not([data-cut])")
    expect(page.locator("canvas")).to_have_count(0)
    assert page.locator(".patch-size").first.is_visible()
    watched.assert_sound(static)


def test_blocks_of_dead_units_and_blocks_out_of_view_stay_as_they_are(watched: WatchedPage, static: str, atlas: Atlas) -> None:
    page = watched.open(static + "layers/relu.html")
    page.locator("#patches").select_option("image")
    dead = [row["unit"] for row in atlas.units("relu").to_pylist() if row["dead"]]
    page.wait_for_load_state("networkidle")
    page.wait_for_selector("#units .sprite[data-cut]", state="attached")
    expect(page.locator("#units .sprite:not([data-cut])")).to_have_count(0)
    for unit in dead:
        assert page.locator(f'#units > li[data-unit="{unit}"] canvas').count() == 0
    assert page.locator("#units canvas").count() == page.locator("#units > li").count() - len(dead) > 0
    page.locator("#patches").select_option("auto")
    page.wait_for_selector("html:not([data-cut])")
    assert page.locator("#units canvas").count() == 0
    page.locator("#patches").select_option("image")
    page.locator('select[name="show"]').select_option("dead")
    page.reload()
    page.wait_for_load_state("networkidle")
    assert page.locator("#units canvas").count() == 0
    page.locator('select[name="show"]').select_option("all")
    page.wait_for_selector("#units canvas")
    watched.assert_sound(static)


def test_pictures_of_blocks_lie_in_view_before_they_are_there(watched: WatchedPage, tmp_path: Path) -> None:
    """Firefox loads a lazy picture only where its own box, which has no height yet, lies in the part of its block that is seen."""
    images = write_photographs(tmp_path / "images", 6)
    network = nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU()).eval()
    export(unitscope.scan(network, images, tmp_path / "atlas", preprocess=AS_IT_IS), tmp_path / "site")
    layer = next((tmp_path / "site/layers").iterdir())
    is_in_view = """all => all.map(picture => {
        const [own, seen] = [picture, picture.parentElement].map(element => element.getBoundingClientRect())
        return own.top < seen.bottom && own.bottom > seen.top && own.left < seen.right && own.right > seen.left
    })"""
    page = watched.open(layer.as_uri())
    heights = (
        "all => all.map(picture => picture.getBoundingClientRect().height / picture.parentElement.getBoundingClientRect().height)"
    )
    assert page.locator("#units .sprite img").evaluate_all(heights) == pytest.approx([4] * 30, abs=0.05)  # as it has rows
    watched.assert_sound(tmp_path.as_uri())
    for picture in (tmp_path / "site/blocks").iterdir():
        picture.unlink()
    page = watched.open(layer.as_uri())
    assert page.locator("#units .sprite img").evaluate_all(is_in_view) == [True] * 30


def test_parts_of_a_site_follow_the_list_too(watched: WatchedPage, static: str, atlas: Atlas) -> None:
    order = [
        row["unit"] for row in sorted(atlas.units("relu#2").to_pylist(), key=lambda row: (row["activation_rate"], -row["unit"]))
    ]
    page = watched.open(static + "layers/relu@2.html")
    page.get_by_label("Sort by").select_option("activation_rate")
    page.locator("#units > li a.block").first.click()
    for unit in order[::-1][1:3]:
        expect(page.locator('a[rel="next"]')).to_have_attribute(
            "href", re.compile(rf"units/relu@2/{unit}\?sort=activation_rate$")
        )
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(f"unit {unit}$"))
    page.locator('a[rel="up"]').click()
    page.wait_for_url("**/layers/relu@2.html#sort=activation_rate")
    watched.assert_sound(static)


def test_an_exported_site_is_accessible_and_shows_its_layers_without_scripts(browser: Browser, static: str) -> None:
    watched = WatchedPage(browser)
    for path in ("index.html", "layers/relu.html", "page.html#units/relu@2/1", "page.html#images/3"):
        report = Axe().run(watched.open(static + path))
        assert report.violations_count == 0, f"{path}\n{report.generate_report()}"
    watched.context.close()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(static + "layers/relu.html")
    assert page.locator("#units .sprite img").count() == 4
    page.goto(static + "page.html#units/relu/0")
    expect(page.get_by_text("scripts are off here")).to_be_visible()
    context.close()
