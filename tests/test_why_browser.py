"""Why an image is taken for what it is, in a real browser: where a unit has its effect, what is taken away, and the way back."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from test_browser import PHONE, WatchedPage, browser, serving  # noqa: F401 - a fixture
from test_purpose import classifier, sparse_atlas

from unitscope.effects.explaining import open_explainer
from unitscope.responses import open_responses
from unitscope.web import ExplorerOptions

pytestmark = pytest.mark.slow


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
