"""The explorer in a real browser: by mouse, finger and keyboard, in light and dark, served and from a disk."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from explored import LABELS, explored_atlas, explored_network
from playwright.sync_api import Browser, Page, expect, sync_playwright

from unitscope.atlas import Atlas
from unitscope.responses import open_responses
from unitscope.web import Offer, explorer, export
from unitscope.web.addresses import slug

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = (
    "index.html", "layers/relu.html", "units/relu@2/1.html", "units/relu/3.html", "images/3.html", f"labels/{slug(LABELS[2])}.html",
    "words.html", "fires.html", "compare/index.html", "compare/relu@2.html", "beside/index.html", "beside/units/relu/0.html",
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
def serving(atlas: Atlas, offer: Offer) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(explorer(atlas, offer), log_level="warning", lifespan="off"))
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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explored")


@pytest.fixture(scope="module")
def atlas(place: Path) -> Atlas:
    return explored_atlas(place)


@pytest.fixture(scope="module")
def site(place: Path, atlas: Atlas) -> Iterator[str]:
    with (
        open_responses(atlas, explored_network()) as fires,
        serving(atlas, Offer(explored_atlas(place, seed=1), fires)) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        yield found
        found.close()


class Watched:
    """A page that keeps what went wrong on it, and which addresses it asked for."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        self.page.wait_for_load_state("networkidle")
        return self.page

    def assert_nothing_wrong(self, *starts: str) -> None:
        assert self.wrong == []
        assert [url for url in self.asked if not url.startswith((*starts, "blob:"))] == []


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    held = Watched(browser)
    yield held
    held.context.close()


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_every_page_is_sound_and_accessible(browser: Browser, site: str, options: dict[str, Any]) -> None:
    held = Watched(browser, **options)
    for path in PAGES:
        page = held.open(site + path)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{path}\n{found.generate_report()}"
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} scrolls sideways by {wide}"
    held.assert_nothing_wrong(site)
    held.context.close()


def test_the_search_box_finds_units_layers_labels_and_images(watched: Watched, site: str) -> None:
    page = watched.open(site)
    for asked, leads in [
        ("relu#2 1", "units/relu@2/1.html"), ("last", "layers/last.html"), ("dog", "labels/dog.html"), ("dog/001", "images/"),
    ]:  # fmt: skip
        page.keyboard.press("/")
        page.keyboard.type(asked)
        expect(page.get_by_role("option").first).to_be_visible()
        page.wait_for_function("asked => document.querySelector('#find-list a').href.includes(asked)", arg=leads)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{leads}*")
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    expect(page.get_by_text("Nothing of that name.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    watched.assert_nothing_wrong(site)


def test_arrow_keys_go_from_unit_to_unit_and_layer_to_layer(watched: Watched, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu/1.html")
    for key, leads in [("ArrowRight", "units/relu/2.html"), ("ArrowLeft", "units/relu/1.html"), ("ArrowUp", "layers/relu.html")]:
        page.keyboard.press(key)
        page.wait_for_url(f"**/{leads}")
    following = atlas.layers[[layer.name for layer in atlas.layers].index("relu") + 1].name
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/layers/{slug(following)}.html")
    page.keyboard.press("/")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert page.url.endswith(f"layers/{slug(following)}.html")  # the key belongs to the box


def order(page: Page) -> list[int]:
    return [
        int(unit or 0)
        for unit in page.eval_on_selector_all("#units > li:not([hidden])", "all => all.map(one => one.dataset.unit)")
    ]


def test_units_are_sorted_chosen_and_sized_and_a_link_keeps_that(watched: Watched, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "layers/relu.html")
    units = atlas.units("relu").to_pylist()
    assert order(page) == [0, 1, 2, 3]
    page.get_by_label("Sort by").select_option("highest")
    assert order(page) == [row["unit"] for row in sorted(units, key=lambda row: -row["highest"])]
    page.get_by_role("combobox", name="Show").select_option("dead")
    assert order(page) == [row["unit"] for row in units if row["dead"]] == [3]
    page.get_by_role("combobox", name="Show").select_option("always")
    assert order(page) == [row["unit"] for row in sorted(units, key=lambda row: -row["highest"]) if row["activation_rate"] == 1]
    page.get_by_role("combobox", name="Show").select_option("fires")
    page.get_by_role("combobox", name="Label", exact=True).fill("no such label")
    assert order(page) == []
    expect(page.get_by_role("status").filter(has_text="units")).to_have_text("0 of 4 units")
    page.get_by_role("combobox", name="Label", exact=True).fill("dog")
    page.get_by_label("Size").fill("240")
    width = page.eval_on_selector("#units > li:not([hidden])", "one => one.getBoundingClientRect().width")
    assert width >= 240
    again = watched.context.new_page()
    again.goto(page.url)
    assert order(again) == order(page)
    assert again.get_by_label("Size").input_value() == "240"
    watched.assert_nothing_wrong(site)


def boxes(page: Page, where: str) -> list[list[float]]:
    return page.eval_on_selector_all(
        f"{where} rect.field", "all => all.map(one => ['x', 'y', 'width', 'height'].map(side => Number(one.getAttribute(side))))"
    )


def test_pointing_at_a_patch_shows_where_it_is(watched: Watched, site: str, atlas: Atlas) -> None:
    page = watched.open(site + "units/relu@2/1.html")
    rows = atlas.peaks("relu#2", 1).to_pylist()
    for way in ("hover", "focus", "click"):
        for rank in (3, 1):
            getattr(page.locator(".nine button.show").nth(rank - 1), way)()
            row = rows[rank - 1]
            size = row["source_right"] - row["source_left"], row["source_bottom"] - row["source_top"]
            assert boxes(page, "#source") == [pytest.approx([row["source_left"], row["source_top"], *size], abs=0.01)]
            expect(page.locator("#source a")).to_have_text(atlas.key(row["image"]))
            assert page.locator("#source image").get_attribute("href") == f"../../images/{row['image']}.jpg"
    watched.assert_nothing_wrong(site)


def test_a_patch_on_a_page_is_the_patch_of_the_atlas(watched: Watched, site: str, atlas: Atlas) -> None:
    import io

    import numpy as np
    from PIL import Image

    page = watched.open(site + "units/relu@2/1.html")
    row = next(
        row
        for row in atlas.peaks("relu#2", 1).to_pylist()
        if row["top"] >= 0 and row["left"] >= 0 and row["bottom"] <= 40 and row["right"] <= 40
    )
    shot = page.locator(".nine .patch").nth(row["rank"] - 1).screenshot()
    seen = Image.open(io.BytesIO(shot)).convert("RGB").resize((64, 64))
    expected = atlas.patch(row, size_px=64)
    difference = np.abs(np.asarray(seen, dtype=float) - np.asarray(expected, dtype=float))[8:-8, 8:-8]
    assert difference.mean() < 8  # filters and JPEG differ; another patch is off by more than 40


def test_pointing_at_a_unit_draws_its_box_on_the_image(watched: Watched, site: str, atlas: Atlas) -> None:
    row = atlas.peaks("relu#2", 1).to_pylist()[2]
    page = watched.open(f"{site}images/{row['image']}.html")
    chip = page.locator(f'.chips a[href$="units/relu@2/{row["unit"]}.html"]').first
    for way in ("hover", "focus"):
        getattr(chip, way)()
        assert boxes(page, "#stage")[0][:2] == pytest.approx([row["source_left"], row["source_top"]], abs=0.01)
    watched.assert_nothing_wrong(site)


def test_a_finger_shows_where_a_patch_is(browser: Browser, site: str) -> None:
    held = Watched(browser, **PHONE)
    page = held.open(site + "units/relu@2/1.html")
    before = boxes(page, "#source")
    page.locator(".nine button.show").nth(4).tap()
    assert boxes(page, "#source") != before
    held.assert_nothing_wrong(site)
    held.context.close()


def test_an_image_of_ones_own_shows_what_fires(watched: Watched, site: str, atlas: Atlas, place: Path) -> None:
    page = watched.open(site + "fires.html")
    (place / "words.txt").write_text("no image")
    page.locator("#file").set_input_files(place / "words.txt")
    expect(page.locator("#said")).to_have_text("The image is no image that can be read.")
    page.locator("#file").set_input_files(place / "photographs" / atlas.key(0))
    expect(page.locator("#fired h2").first).to_be_visible()
    expect(page.locator("#said")).to_be_hidden()
    page.locator("#fired [data-boxes]").first.hover()
    assert len(boxes(page, "#stage")) == 1
    assert page.locator("#own").get_attribute("href").startswith("blob:")
    assert [said[:76] for said in watched.wrong] == [
        "Failed to load resource: the server responded with a status of 422 (Unproces"
    ]


def test_light_and_dark_are_kept(watched: Watched, site: str) -> None:
    page = watched.open(site)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    assert watched.open(site + "words.html").evaluate(ground) == dark


def test_images_that_are_gone_are_said_to_be(browser: Browser, tmp_path: Path) -> None:
    atlas = explored_atlas(tmp_path)
    gone = atlas.peaks("relu", 0).to_pylist()[0]["image"]
    (tmp_path / "photographs" / atlas.key(gone)).unlink()
    held = Watched(browser)
    with serving(Atlas(atlas.folder), Offer()) as site:
        page = held.open(site + "units/relu/0.html")
        expect(page.locator("#gone")).to_contain_text("can't be shown: it is gone")
        assert page.locator(".nine .example.gone").count() == 1
        assert page.locator(".nine .example:not(.gone)").count() == 8
    held.context.close()


def test_nothing_jumps_while_blocks_arrive(watched: Watched, site: str) -> None:
    watched.page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const one of list.getEntries()) window.shift += one.value; })"
        ".observe({ type: 'layout-shift', buffered: true })"
    )
    for path in PAGES[:3]:
        assert watched.open(site + path).evaluate("window.shift") < 0.05


@pytest.fixture(scope="module")
def exported(place: Path, atlas: Atlas) -> Path:
    export(atlas, place / "under" / "a" / "path", explored_atlas(place / "more", seed=1))
    return place / "under"


@pytest.fixture(scope="module", params=["disk", "host"])
def static(request: pytest.FixtureRequest, exported: Path) -> Iterator[str]:
    if request.param == "disk":
        yield exported.as_uri() + "/a/path/"
        return

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(exported))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a/path/"
        server.shutdown()


def test_an_exported_site_works_from_a_disk_and_under_a_path(watched: Watched, static: str) -> None:
    for path in PAGES:
        if path == "fires.html":
            continue
        page = watched.open(static + path)
        loaded = "[...document.images].every(one => one.complete && (one.naturalWidth > 0 || one.loading === 'lazy'))"
        assert page.evaluate(loaded), path
    page = watched.open(static + "units/relu@2/1.html")
    page.locator(".nine button.show").nth(2).hover()
    assert len(boxes(page, "#source")) == 1
    page.keyboard.press("/")
    page.keyboard.type("relu 0")
    page.wait_for_function("() => document.querySelector('#find-list a')?.href.includes('units/relu')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/units/relu*/0.html")
    watched.assert_nothing_wrong(static)
