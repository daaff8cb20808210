"""Why an image is taken for what it is, in a real browser: where a unit has its effect, what is taken away, and the way back."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from test_browser import PHONE, WatchedPage, browser, serving  # noqa: F401 - a fixture
from test_effects import CLASSES
from test_purpose import classifier, sparse_atlas

from unitscope.atlas import Atlas
from unitscope.effects.explaining import open_explainer
from unitscope.responses import open_responses
from unitscope.web import ExplorerOptions, export

pytestmark = pytest.mark.slow

NOTHING_KEPT = {
    "a private window": "indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }",
    "a full disk": "IDBObjectStore.prototype.put = function () { this.transaction.abort(); return {}; }",
}


def test_a_tap_shows_an_effect_and_the_way_back_has_what_was_asked(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    atlas, network = sparse_atlas(tmp_path), classifier()
    image = atlas.table("images")["image"][0].as_py()
    with open_responses(atlas, network) as run_network, open_explainer(atlas, network) as explainer:
        options = ExplorerOptions(
            run_network=run_network,
            explain_image=lambda shown, asked: explainer.explain(shown, asked.explained, asked.against, asked.taken_away),
        )
        with serving(atlas, options) as address:
            watched = WatchedPage(browser, **PHONE)
            page = watched.open(f"{address}image-search.html?image={image}&class=dog&layer=4")
            link = page.locator(".why a[data-map]").first
            link.tap()
            expect(page.locator("#stage rect").first).to_be_attached()
            assert "image-search" in page.url
            box = page.locator('.why input[name="without"]').first
            taken = box.get_attribute("value")
            box.focus()
            page.keyboard.press("Space")
            expect(page.locator("#upload-status")).to_be_hidden()  # the answer has taken the place of what was asked from
            kept = page.locator(f'.why input[name="without"][value="{taken}"]:checked')
            expect(kept).to_be_attached()
            expect(kept).to_be_focused()
            page.wait_for_url(f"**image={image}*without={str(taken).replace(':', '%3A')}*")
            link = page.locator(".why a[data-map]").first
            link.tap()
            link.tap()
            page.wait_for_url("**/units/4/*.html")
            page.go_back()
            expect(kept).to_be_attached()
            watched.assert_sound(address)
            watched.context.close()


@contextmanager
def explaining(folder: Path) -> Iterator[str]:
    """The address of pages that explain images, of a small atlas."""
    atlas, network = sparse_atlas(folder), classifier()
    with open_responses(atlas, network) as run_network, open_explainer(atlas, network) as explainer:
        options = ExplorerOptions(
            run_network=run_network,
            explain_image=lambda shown, asked: explainer.explain(shown, asked.explained, asked.against, asked.taken_away),
        )
        with serving(atlas, options) as address:
            yield address


def test_an_uploaded_image_survives_the_way_to_a_unit_and_back(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    """With what was asked of it, in this browser alone; another upload takes its place."""
    with explaining(tmp_path) as address:
        first, second = sorted((tmp_path / "images").rglob("*.png"))[:2]
        watched = WatchedPage(browser)
        page = watched.open(f"{address}image-search.html")
        page.locator("#file").set_input_files(first)
        page.wait_for_url("**upload=*")
        page.locator('.why input[name="class"]').fill("dog")
        page.locator(".why select").select_option("4")
        expect(page.locator("#why")).to_have_text("Why dog?")
        box = page.locator('.why input[name="without"]').first
        taken = box.get_attribute("value")
        box.check()
        page.wait_for_url("**without=*")
        expect(page.locator(".without table tbody tr")).to_have_count(3)
        asked = page.url
        page.locator(".why a[data-map]").first.click()
        page.wait_for_url("**/units/4/*.html")
        page.go_back()
        assert page.url == asked
        expect(page.locator("#why")).to_have_text("Why dog?")
        expect(page.locator(f'.why input[value="{taken}"]')).to_be_checked()
        expect(page.locator("#uploaded-image")).to_have_attribute("href", re.compile("^blob:"))
        page.reload()
        expect(page.locator("#why")).to_have_text("Why dog?")

        page.locator("#file").set_input_files(second)
        page.wait_for_url(lambda url: "upload=" in url and url.split("&")[0] != asked.split("&")[0])
        page.goto(asked)
        expect(page.locator("#upload-status")).to_have_text("This browser no longer has the image; choose it again.")
        page.go_back()
        expect(page.locator("#uploaded-image")).to_have_attribute("href", re.compile("^blob:"))
        page.get_by_role("button", name="Forget it").click()
        assert page.url == f"{address}image-search.html"
        expect(page.locator("#kept-image")).to_be_hidden()
        watched.assert_sound(address)
        watched.context.close()


@pytest.mark.parametrize("broken", NOTHING_KEPT.values(), ids=list(NOTHING_KEPT))
def test_a_browser_that_keeps_no_image_says_nothing(browser: Browser, tmp_path: Path, broken: str) -> None:  # noqa: F811
    with explaining(tmp_path) as address:
        file = min((tmp_path / "images").rglob("*.png"))
        watched = WatchedPage(browser)
        watched.context.add_init_script(broken)
        page = watched.open(f"{address}image-search.html")
        page.locator("#file").set_input_files(file)
        expect(page.locator("#why")).to_be_visible()
        page.locator('.why input[name="without"]').first.check()
        expect(page.locator(".without")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.url == f"{address}image-search.html"
        expect(page.locator("#kept-image")).to_be_hidden()
        watched.assert_sound(address)
        watched.context.close()


def test_an_address_that_asks_for_no_class_shows_its_image(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with explaining(tmp_path) as address:
        watched = WatchedPage(browser)
        image = Atlas(tmp_path / "atlas").table("images")["image"][0].as_py()
        page = watched.open(f"{address}image-search.html?image={image}&class=dgo")
        expect(page.locator("#upload-status")).to_contain_text("Close: 'dog'")
        expect(page.locator("#why")).to_be_visible()
        names = page.locator("#class-names option").evaluate_all("options => options.map((option) => option.value)")
        assert names == sorted(CLASSES)
        watched.context.close()


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_pages_of_what_is_predicted_are_sound_and_accessible(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    with explaining(tmp_path) as address:
        atlas = Atlas(tmp_path / "atlas")
        rows = atlas.table("predictions").to_pylist()
        known = set(atlas.table("images")["image"].to_pylist())
        wrong = next(row for row in rows if row["label_class"] != row["predicted"])
        image = next(row["image"] for row in rows if row["image"] in known)
        pages = (
            "predictions.html",
            f"mistakes/{wrong['label_class']}-{wrong['predicted']}.html",
            f"classes/{wrong['label_class']}.html",
            f"labels/{CLASSES[0]}.html",
            f"images/{image}.html",
            f"image-search.html?image={image}&class=dog&layer=4&without=4:1",
        )
        watched = WatchedPage(browser, **options)
        for path in pages:
            page = watched.open(address + path)
            if "search" in path:
                expect(page.locator(".without")).to_be_visible()
            report = Axe().run(page)
            assert report.violations_count == 0, f"{path}\n{report.generate_report()}"
            excess_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert excess_px <= 0, f"{path} scrolls sideways by {excess_px} pixels"
        watched.assert_sound(address)
        watched.context.close()


@pytest.mark.parametrize("is_site", [False, True])
def test_mistakes_go_by_how_certain_they_are(browser: Browser, tmp_path: Path, is_site: bool) -> None:  # noqa: F811
    with explaining(tmp_path) as address:
        atlas = Atlas(tmp_path / "atlas")
        if is_site:
            export(atlas, tmp_path / "site")
            address = (tmp_path / "site").as_uri() + "/"
        wrong = [
            row for row in atlas.table("predictions").to_pylist() if row["label_class"] != row["predicted"] and row["rank"] == 1
        ]
        watched = WatchedPage(browser)
        page = watched.open(f"{address}predictions.html")
        shown = page.locator(".mistakes tbody tr")
        by_frequency = shown.all_inner_texts()
        page.get_by_label("Order").select_option("certain")
        assert page.url == f"{address}predictions.html#order=certain"
        cells = [tuple(text.split("\t")[:2]) for text in shown.all_inner_texts()]
        order = sorted(wrong, key=lambda row: -row["probability"])
        assert cells == [(CLASSES[row["label_class"]], CLASSES[row["predicted"]]) for row in order]
        page.reload()
        assert [tuple(text.split("\t")[:2]) for text in shown.all_inner_texts()] == cells
        page.get_by_label("Order").select_option("images")
        assert shown.all_inner_texts() == by_frequency
        watched.assert_sound(address)
        watched.context.close()
