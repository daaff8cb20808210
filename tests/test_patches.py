"""One geometry: sheets, the pages' blocks and the pages' SVG show the same pixels of a peak's image, and the same padding."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from explored import parts_of, tags_of
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

import unitscope
from unitscope.atlas import Atlas, figures
from unitscope.atlas.patches import PatchOptions
from unitscope.drawing import PAGE_GROUND, SHEET_GROUND
from unitscope.records import Box, Layer, Preprocessing
from unitscope.web import create_explorer, export
from unitscope.web.addresses import slug

SIZE_PX = 64
"""The side of a patch in a block."""
PREPROCESSINGS = {
    "a crop of the image": Preprocessing(48, (40, 40), (0.5,) * 3, (0.5,) * 3),
    "a crop that is larger than the image": Preprocessing(None, (56, 56), (0.5,) * 3, (0.5,) * 3),
    "an image squeezed": Preprocessing((40, 40), (40, 40), (0.5,) * 3, (0.5,) * 3),
}


def smooth_images(folder: Path, count: int = 9) -> Path:
    """Images whose colour says where a pixel lies: red grows to the right, green downwards; blue tells images apart."""
    folder.mkdir(parents=True)
    for number in range(count):
        height, width = (48, 80) if number % 2 else (72, 52)
        y, x = np.mgrid[:height, :width]
        channels = [x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 20 * number)]
        Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=PREPROCESSINGS)
def atlas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Three layers: small fields, fields that aren't square and reach far beyond the image, and fields drawn as effective ones."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, (5, 11), padding=(4, 10), stride=2), nn.ReLU(),
        nn.Conv2d(4, 3, 7, padding=6), nn.ReLU(),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("geometry")
    preprocessing = PREPROCESSINGS[request.param]
    return unitscope.scan(network, smooth_images(folder / "images"), folder / "atlas", preprocess=preprocessing)


@dataclass(frozen=True, slots=True)
class Shown:
    """A patch as it is drawn: colours of shape (y, x, 3), and where they are those of the image, of shape (y, x)."""

    colours: np.ndarray
    is_image: np.ndarray


def sheet_patches(atlas: Atlas, layer: Layer, unit: int) -> list[Shown]:
    """What a sheet shows."""
    (block,) = figures.panel(atlas, layer, [unit], PatchOptions(size_px=SIZE_PX)).blocks
    shown = []
    for patch in block.patches:
        colours = np.asarray(patch).astype(float)
        is_ground = [(colours == colour).all(-1) for colour in (*SHEET_GROUND.hatch, SHEET_GROUND.empty)]
        shown.append(Shown(colours, ~np.any(is_ground, axis=0)))
    return shown


def block_patches(site: TestClient, atlas: Atlas, layer: Layer, unit: int) -> list[np.ndarray]:
    """The colours of what the block of a unit shows, of nine patches row by row."""
    block = Image.open(io.BytesIO(site.get(f"/blocks/{slug(layer.name)}/{unit}.jpg").content))
    shown = []
    for index in range(len(atlas.peaks(layer.name, unit))):
        left, top = index % 3 * SIZE_PX, index // 3 * SIZE_PX
        shown.append(np.asarray(block.crop((left, top, left + SIZE_PX, top + SIZE_PX))).astype(float))
    return shown


@dataclass(frozen=True)
class SvgPatch:
    """An SVG patch that is cut from an image: its view box, the box that the image is clipped to, the image's box, and its key."""

    view: Box
    clip: Box
    image: Box
    key: str


def sampled_patches(html: str) -> Iterator[SvgPatch]:
    """The patches of the sample on an exported page, which are cut from their images by its script, from what their buttons say."""
    tags, is_band = tags_of(html), False
    for number, (tag, attributes) in enumerate(tags):
        if tag in ("section", "div") and attributes.get("class"):
            is_band = attributes["class"] == "band" or (is_band and tag == "div")
        if is_band and tag == "button" and attributes.get("class") == "show":
            assert tags[number + 1][0] == "svg"
            assert "data-cut" in tags[number + 1][1]
            width, height = map(float, str(attributes["data-size"]).split())
            view, size = box_of(attributes["data-patch"]), Box(0, 0, height, width)
            yield SvgPatch(
                view,
                view.intersection(box_of(attributes["data-input"])).clipped(height, width),
                size,
                str(attributes["data-key"]),
            )


def box_of(text: str | None) -> Box:
    left, top, width, height = map(float, (text or "").split())
    return Box(top, left, top + height, left + width)


def svg_pixels(picture: Image.Image, view: Box, clip: Box, image: Box) -> Shown:
    """What a browser shows of an SVG patch: the view box fits in the middle of a square, and the image is clipped, but not to that box."""
    source = np.asarray(picture).astype(float)
    centres = np.arange(SIZE_PX) + 0.5
    scale = SIZE_PX / max(view.height, view.width)
    y = view.top + (centres - (SIZE_PX - view.height * scale) / 2) / scale
    x = view.left + (centres - (SIZE_PX - view.width * scale) / 2) / scale
    visible = clip.intersection(image)
    is_image = np.outer((y >= visible.top) & (y < visible.bottom), (x >= visible.left) & (x < visible.right))
    rows, columns = (np.clip(at.astype(int), 0, length - 1) for at, length in zip((y, x), source.shape, strict=False))
    return Shown(source[rows[:, None], columns], is_image)


def edge_free(is_image: np.ndarray) -> np.ndarray:
    """Where a pixel and all its neighbours show the image, or all show padding, which is also around the patch."""
    padded = np.pad(is_image, 1)
    height, width = is_image.shape
    neighbours = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return np.all(neighbours, axis=0) | ~np.any(neighbours, axis=0)


def assert_same_pixels(actual: Shown, expected: Shown, tolerance: float) -> None:
    """The same padding but for a pixel at its edge; elsewhere colours that differ by no more than `tolerance` of 255."""
    inner = edge_free(actual.is_image)
    assert (actual.is_image == expected.is_image)[inner].all()
    differences = np.abs(actual.colours - expected.colours)[inner & actual.is_image]
    assert differences.max(initial=0) <= tolerance


def test_sheets_and_blocks_show_the_same_pixels(atlas: Atlas) -> None:
    site = TestClient(create_explorer(atlas), base_url="http://localhost")
    padded, compared = 0, 0
    for layer in atlas.layers:
        for unit in range(layer.units):
            for sheet, block in zip(sheet_patches(atlas, layer, unit), block_patches(site, atlas, layer, unit), strict=True):
                inner = edge_free(sheet.is_image)
                differences = np.abs(sheet.colours - block)[sheet.is_image & inner]
                assert not len(differences) or differences.mean() <= 12  # what JPEG leaves of the colours
                beyond = np.abs(block - PAGE_GROUND.empty)[~sheet.is_image & inner]
                assert not len(beyond) or beyond.mean() <= 20
                padded += not sheet.is_image.all()
                compared += 1
    assert compared >= 20  # these images are near-duplicates of each other, so a unit has few peaks
    assert padded > 10


def test_pages_take_each_peak_from_its_place_in_the_block(atlas: Atlas) -> None:
    site = TestClient(create_explorer(atlas), base_url="http://localhost")
    for layer in atlas.layers:
        for unit in range(layer.units):
            peaks = atlas.peaks(layer.name, unit).to_pylist()
            tags = tags_of(site.get(f"/units/{slug(layer.name)}/{unit}.html").text)
            patches = [number for number, (tag, found) in enumerate(tags) if tag == "svg" and found.get("class") == "patch"]
            for peak, number in zip(peaks, patches, strict=False):  # the page has more patches
                place = peak["rank"] - 1
                assert tags[number][1]["viewbox"] == f"{place % 3} {place // 3} 1 1"
                assert tags[number + 1][1]["href"] == f"../../large-blocks/{slug(layer.name)}/{unit}.jpg"
                assert (tags[number + 1][1]["width"], tags[number + 1][1]["height"]) == ("3", "3")


def test_patches_of_a_site_show_the_same_pixels_as_the_served_ones(atlas: Atlas, tmp_path: Path) -> None:
    """Those of the sample: served as one picture, and cut from their images by an exported page."""
    export(atlas, tmp_path / "site")
    parts, compared = parts_of(tmp_path / "site"), 0
    site = TestClient(create_explorer(atlas), base_url="http://localhost")
    pictures = {row["key"]: atlas.picture(row["image"]) for row in atlas.table("images").to_pylist()}
    for layer in atlas.layers:
        for unit, is_dead in enumerate(atlas.units(layer.name)["dead"].to_pylist()):
            answer = site.get(f"/bands/{slug(layer.name)}/{unit}.jpg")
            patches = list(sampled_patches(parts[f"units/{slug(layer.name)}/{unit}"][1]))
            assert (answer.status_code == 200 and not is_dead) == (len(patches) == 12), "the page of a dead unit has none"
            for place, patch in enumerate(patches):
                left, top = place % 3 * SIZE_PX, place // 3 * SIZE_PX
                served = Image.open(io.BytesIO(answer.content)).crop((left, top, left + SIZE_PX, top + SIZE_PX))
                shown = svg_pixels(pictures[patch.key], patch.view, patch.clip, patch.image)
                inner = edge_free(shown.is_image) & shown.is_image
                differences = np.abs(shown.colours - np.asarray(served, dtype=float))[inner]
                assert not len(differences) or differences.mean() <= 12
                compared += 1
    assert compared > 20


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_shows_the_pixels_of_the_images(atlas: Atlas, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    export(atlas, tmp_path / "site")
    parts = parts_of(tmp_path / "site")
    pictures = {row["key"]: atlas.picture(row["image"]) for row in atlas.table("images").to_pylist()}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for layer in atlas.layers:
            page = browser.new_page(viewport={"width": 12 * SIZE_PX, "height": SIZE_PX})
            part = f"units/{slug(layer.name)}/1"
            page.goto(f"{(tmp_path / 'site' / 'page.html').as_uri()}#{part}")
            page.wait_for_load_state("networkidle")
            page.locator("svg.patch").first.wait_for()
            page.evaluate(PATCHES_ALONE, SIZE_PX)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            for index, patch in enumerate(sampled_patches(parts[part][1])):
                left = index * SIZE_PX
                colours = np.asarray(picture.crop((left, 0, left + SIZE_PX, SIZE_PX))).astype(float)
                is_padding = np.abs(colours - (0, 0, 255)).max(-1) < 8
                expected = svg_pixels(pictures[patch.key], patch.view, patch.clip, patch.image)
                assert_same_pixels(
                    expected, Shown(colours, ~is_padding), tolerance=24
                )  # the pages' images are JPEG; one is smoothed
            page.close()
        browser.close()


PATCHES_ALONE = """size => {
    const patches = [...document.querySelectorAll(".band svg.patch")]; // those of the sample
    document.body.replaceChildren(...patches);
    document.body.style.cssText = "margin: 0; background: rgb(0 0 255)";
    patches.forEach((patch, index) => {
        patch.style.cssText = `position: absolute; margin: 0; top: 0; left: ${index * size}px; width: ${size}px; height: ${size}px; background: none; border: 0; border-radius: 0`;
        patch.querySelector("rect")?.style.setProperty("fill", "rgb(0 0 255)");
    });
}"""
"""Leaves nothing of a page but its patches side by side, with padding in blue, which no image has."""
