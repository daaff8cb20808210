"""The explorer's pages in process: what they say, what they refuse, and that every link leads somewhere."""

import io
import json
import logging
import re
import shutil
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from explored import ATTRIBUTED, LABELS, explored_atlas, explored_network, parts_of, tags_of, unit_values, walk
from PIL import Image
from planted import HIGHEST, planted_atlas, planted_network, shared
from planted import LABELS as LABELS_PLANTED
from starlette.testclient import TestClient

import unitscope
from unitscope.atlas import Atlas
from unitscope.atlas.patches import cut_attributions, resolve_patch_kind
from unitscope.attribution.methods import spread
from unitscope.drawing import GREY, PAGE_GROUND, SHEET_GROUND, Ground
from unitscope.errors import AtlasError
from unitscope.layers import trace
from unitscope.records import Peak, Preprocessing, Response
from unitscope.responses import open_activations, open_responses
from unitscope.web import ExplorerOptions, create_explorer, export
from unitscope.web.addresses import slug
from unitscope.web.blocks import BlockDrawer
from unitscope.web.comparison import AtlasComparison
from unitscope.web.drawings import histogram_drawing
from unitscope.web.numbers import number as number_in_words
from unitscope.web.openapi import PATHS, PICTURES, TABLES, describe_api
from unitscope.web.page_records import Histogram, UnitPage
from unitscope.web.pages import PageBuilder
from unitscope.web.pictures import LARGE_PATCH_PX, PATCH_PX
from unitscope.web.queries import AtlasQueries
from unitscope.web.server import create_server


def client(atlas: Atlas, **options: Any) -> TestClient:
    return TestClient(create_explorer(atlas, ExplorerOptions(**options)), base_url="http://localhost")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explored")


@pytest.fixture(scope="module")
def atlas(folder: Path) -> Atlas:
    return explored_atlas(folder)


@pytest.fixture(scope="module")
def second_atlas(folder: Path, atlas: Atlas) -> Atlas:
    return explored_atlas(folder, seed=1)


@pytest.fixture(scope="module")
def site(atlas: Atlas) -> TestClient:
    return client(atlas)


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_every_link_of_every_page_leads_somewhere(atlas: Atlas, second_atlas: Atlas) -> None:
    served = client(atlas, compared_atlas=second_atlas, run_network=lambda image: [])

    def read(path: str) -> bytes:
        answer = served.get("/" + path.replace("#", "%23").replace("?", "%3F"))
        assert answer.status_code == 200, path
        return answer.content

    kinds = Counter(path.rpartition(".")[2] for path, _ in walk(read))
    units = sum(layer.units for each in (atlas, second_atlas) for layer in each.layers)
    assert kinds["webp"] == 2 * 2 * len(ATTRIBUTED), "attributions, and the heat of them"
    dead, unrectified = 2, sum(layer.units for each in (atlas, second_atlas) for layer in each.layers if not layer.rectified)
    assert kinds["jpg"] == 3 * units - 2 * dead + unrectified + 2 * 24, (
        "blocks, large ones and bands of units that have patches, troughs, images"
    )
    layers = len(atlas.layers) + len(second_atlas.layers)
    images_and_labels = 2 * (24 + len(LABELS))
    network_units_notes_and_glossary, comparison, image_search = 2 * 4, 1 + len(atlas.layers), 1
    assert kinds["html"] == network_units_notes_and_glossary + layers + units + images_and_labels + comparison + image_search


def test_the_network_page_goes_from_shallow_to_deep(site: TestClient, atlas: Atlas) -> None:
    page = site.get("/api/index.json").json()
    assert [row["layer"]["name"] for row in page["layers"]] == [layer.name for layer in atlas.layers]
    assert page["layers"][0]["dead_units"] == 1
    assert 3 not in page["layers"][0]["units"]


def test_a_unit_page_shows_what_the_tables_hold(site: TestClient, atlas: Atlas) -> None:
    for layer in atlas.layers:
        for unit in range(layer.units):
            page = site.get(f"/api/units/{slug(layer.name)}/{unit}.json").json()
            rows = atlas.peaks(layer.name, unit).to_pylist()
            assert [(p["rank"], p["source_image"]["image"]) for p in page["peaks"]] == [(r["rank"], r["image"]) for r in rows]
            assert [p["value"] for p in page["peaks"]] == pytest.approx([r["value"] for r in rows])
            assert [p["source_image"]["key"] for p in page["peaks"]] == [atlas.key(r["image"]) for r in rows]
            html = site.get(f"/units/{slug(layer.name)}/{unit}.html").text
            assert html.count('<button type="button" class="show"') == len(rows) + len(page["troughs"]) + sum(
                len(b["examples"]) for b in page["bands"]
            )


def test_a_unit_page_shows_what_attributions_there_are(site: TestClient, atlas: Atlas) -> None:
    html = site.get("/units/relu/0.html").text
    images = [attributes for tag, attributes in tags_of(html) if tag == "img"]
    (image,) = [attributes for attributes in images if "attributions/" in (attributes.get("src") or "")]
    assert image["src"] == "../../attributions/deconvnet/relu/0.webp"
    assert image["alt"] == "deconvnet of the 9 patches of relu unit 0, in the same order"
    answer = site.get("/attributions/deconvnet/relu/0.webp")
    with Image.open(io.BytesIO(answer.content)) as drawn:
        assert drawn.size == (6 * PATCH_PX, 6 * PATCH_PX)
        pixels = np.asarray(drawn.convert("RGB"), dtype=float)
    peaks = [Peak(**row) for row in atlas.peaks("relu", 0).to_pylist()]
    kind = resolve_patch_kind(atlas, atlas.layer("relu"), "auto")
    pictures = cut_attributions(atlas, peaks, kind, "deconvnet", 2 * PATCH_PX, PAGE_GROUND)
    for peak in peaks:
        top, left = (peak.rank - 1) // 3 * 2 * PATCH_PX, (peak.rank - 1) % 3 * 2 * PATCH_PX
        shown = pixels[top : top + 2 * PATCH_PX, left : left + 2 * PATCH_PX]
        assert np.abs(shown - np.asarray(pictures[peak.unit, peak.rank], dtype=float)).mean() < 12  # what WebP makes of noise
    assert "attributions/" not in site.get("/units/relu/2.html").text
    for wrong in ("deconvnet/relu/2", "guided_backprop/relu/0", "deconvnet/nothing/0", "deconvnet/relu/99"):
        assert site.get(f"/attributions/{wrong}.webp").status_code == 404


JUNK: dict[str, Any] = {
    "no table": b"nothing",
    "another table": pa.table({"layer": ["relu"], "unit": ["zero"]}),
    "no rows": None,
}


@pytest.mark.parametrize("junk", JUNK)
def test_a_broken_table_of_attributions_leaves_the_rest_of_the_page(tmp_path: Path, atlas: Atlas, junk: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(atlas.folder, folder)
    unitscope.attribute(Atlas(folder), "guided_backprop", explored_network(), layers=["relu"], units=[0])
    content, path = JUNK[junk], folder / "tables" / "deconvnet.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pq.read_table(path).slice(0, 0) if content is None else content, path)
    shown = client(Atlas(folder)).get("/units/relu/0.html")
    assert shown.status_code == 200
    assert ("The attributions by deconvnet can't be shown" in shown.text) == (junk != "no rows")
    sources = [attributes["src"] for tag, attributes in tags_of(shown.text) if tag == "img" and "attributions" in str(attributes)]
    assert sources == ["../../attributions/guided_backprop/relu/0.webp"]
    export(Atlas(folder), tmp_path / "site")
    number = [layer.name for layer in atlas.layers].index("relu")
    assert (tmp_path / "site" / "attributions" / "guided_backprop" / f"{number}-0.webp").exists()


@pytest.mark.parametrize(
    "columns",
    [
        {"image": lambda image: b"no image"},
        {"image": lambda image: bomb()},
        {"top": lambda top: None},
        {"bottom": lambda bottom: -(10**9)},
        {"unit": lambda unit: 10**6 if unit else unit},
        {"layer": lambda layer: None if layer == "relu#2" else layer},
    ],
)
def test_broken_attributions_of_a_unit_leave_its_page(tmp_path: Path, atlas: Atlas, columns: dict[str, Any]) -> None:
    served = client(broken := changed(atlas, tmp_path / "atlas", "tables/deconvnet", **columns))
    assert served.get("/units/relu/0.html").status_code == 200
    assert served.get("/units/relu@2/1.html").status_code == 200
    drawn = served.get("/attributions/deconvnet/relu/0.webp")
    assert drawn.status_code == 200 or "that can't be drawn" in drawn.text
    export(broken, tmp_path / "site")
    assert "units/relu/0" in parts_of(tmp_path / "site")


def test_a_dead_unit_says_so(site: TestClient) -> None:
    html = site.get("/units/relu/3.html").text
    assert "none of the 24 images excites it" in html
    highest = number_in_words(site.get("/api/units/relu/3.json").json()["statistics"]["highest"])
    assert f"value</a> in any of them is {highest};" in html
    for absent in ("z-score", 'class="histogram"', 'class="patches"', 'class="collapsed"', "What excites it less"):
        assert absent not in html


def test_bands_lie_at_the_quantiles_of_the_sample(site: TestClient, atlas: Atlas) -> None:
    values = np.sort([row["value"] for row in atlas.sample("relu").to_pylist() if row["unit"] == 0])
    bands = {band["name"]: [e["value"] for e in band["examples"]] for band in site.get("/api/units/relu/0.json").json()["bands"]}
    assert list(bands) == ["99 %", "90 %", "50 %", "weakest"]
    assert bands["weakest"] == pytest.approx(values[:3])
    assert bands["50 %"][1] == pytest.approx(values[round(0.5 * 23)])
    assert bands["90 %"][1] == pytest.approx(values[round(0.9 * 23)])
    assert bands["99 %"] == pytest.approx(values[-3:][::-1])


def test_boxes_of_the_sample_are_the_cells_fields(atlas: Atlas) -> None:
    for traced in trace(explored_network(), torch.zeros(1, 3, 40, 40)).layers:
        if traced.name not in {layer.name for layer in atlas.layers}:
            continue
        sample = atlas.sample(traced.name)
        unit, y, x = (sample[name].to_numpy() for name in ("unit", "y", "x"))
        for side, values in zip(("top", "left", "bottom", "right"), traced.receptive_fields.boxes(unit, y, x), strict=True):
            assert sample[side].to_pylist() == np.broadcast_to(values, len(y)).tolist()


def test_similar_units_are_those_that_share_most_images(atlas: Atlas) -> None:
    images = {
        (layer.name, unit): set(atlas.peaks(layer.name, unit)["image"].to_pylist())
        for layer in atlas.layers
        for unit in range(layer.units)
    }
    queries = AtlasQueries(atlas)
    for (layer, unit), unit_images in images.items():
        counts = sorted((len(unit_images & images[key]) for key in images if key != (layer, unit)), reverse=True)
        similar_units = queries.similar_units(layer, unit, max_units=5)
        assert [similar.shared_images for similar in similar_units] == [count for count in counts[:5] if count > 1]
        assert all(len(unit_images & images[similar.layer, similar.unit]) == similar.shared_images for similar in similar_units)


def sample_values(atlas: Atlas, layer: str, unit: int) -> np.ndarray:
    return np.array([row["value"] for row in atlas.sample(layer).to_pylist() if row["unit"] == unit], dtype=np.float64)


def test_z_scores_are_standard_deviations_from_the_mean_of_the_sample(site: TestClient, atlas: Atlas) -> None:
    for layer in atlas.layers:
        entries = site.get(f"/api/layers/{slug(layer.name)}.json").json()["units"]
        for row, entry in zip(atlas.units(layer.name).to_pylist(), entries, strict=True):
            values, statistics = sample_values(atlas, layer.name, row["unit"]), entry["statistics"]
            assert (statistics["sample_mean"], statistics["sample_std"]) == pytest.approx((values.mean(), values.std()))
            assert statistics["z_score"] == pytest.approx((row["highest"] - values.mean()) / values.std())


def test_a_unit_whose_sample_is_all_equal_has_no_z_score(atlas: Atlas, tmp_path: Path) -> None:
    page = client(changed(atlas, tmp_path / "atlas", "sample", value=lambda value: 2.0)).get("/api/units/relu/0.json").json()
    assert page["statistics"]["sample_mean"] == 2
    assert page["statistics"]["sample_std"] == 0
    assert page["statistics"]["z_score"] is None


def test_units_are_found_by_labels_that_their_peaks_have_twice_as_often_as_images_have(site: TestClient, atlas: Atlas) -> None:
    images = {row["label"]: row["images"] for row in atlas.table("labels").to_pylist()}
    labels = {row["image"]: row["label"] for row in atlas.table("images").to_pylist()}
    found = 0
    for layer in atlas.layers:
        page = site.get(f"/api/layers/{slug(layer.name)}.json").json()
        for entry in page["units"]:
            of_peaks = Counter(labels[row["image"]] for row in atlas.peaks(layer.name, entry["statistics"]["unit"]).to_pylist())
            typical = {
                label
                for label, peaks in of_peaks.items()
                if peaks / sum(of_peaks.values()) >= 2 * images[label] / sum(images.values()) and peaks > 1
            }
            assert set(entry["labels"]) == typical
            found += len(typical)
    assert found


def test_units_of_a_layer_carry_what_they_can_be_sorted_by(site: TestClient) -> None:
    page = site.get("/api/layers/relu.json").json()
    html = site.get("/layers/relu.html").text
    units = [attributes for tag, attributes in tags_of(html) if tag == "li" and "data-unit" in attributes]
    options = [attributes["value"] for tag, attributes in tags_of(html) if tag == "option" and "title" in attributes]
    assert options == [key["column"] for key in page["sort_keys"]] == ["highest", "activation_rate", "z_score"]
    assert [int(attributes["data-unit"]) for attributes in units] == [entry["statistics"]["unit"] for entry in page["units"]]
    for name, values in zip(options, unit_values(html), strict=True):
        assert values == pytest.approx([entry["statistics"][name] for entry in page["units"]], rel=1e-5)


def test_an_image_page_lists_every_unit_that_it_is_a_peak_of(site: TestClient, atlas: Atlas) -> None:
    rows = [row for row in atlas.table("peaks").to_pylist() if row["image"] == 5]
    page = site.get("/api/images/5.json").json()
    shown = {(peak["layer"], peak["unit"], peak["rank"]) for layer in page["layers"] for peak in layer["peaks"]}
    assert shown == {(row["layer"], row["unit"], row["rank"]) for row in rows}


def test_a_label_page_lists_its_images_and_units(site: TestClient, atlas: Atlas) -> None:
    page = site.get(f"/api/labels/{slug(LABELS[2])}.json").json()
    assert (page["image_count"], page["base_rate"], len(page["images"])) == (8, pytest.approx(1 / 3), 8)
    labels = {row["image"]: row["label"] for row in atlas.table("images").to_pylist()}
    first = page["units"][0]
    peaks = [labels[image] for image in atlas.peaks(first["layer"], first["unit"])["image"].to_pylist()]
    assert peaks.count(LABELS[2]) == first["label_peaks"] == max(unit["label_peaks"] for unit in page["units"])


def test_units_without_a_sample_or_peaks_have_pages(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU())
    torch.nn.init.constant_(network[0].bias, -100)
    served = client(unitscope.scan(network, torch.randn(4, 3, 8, 8), tmp_path / "atlas"))
    assert "None of its units has a peak" in served.get("/").text
    assert served.get("/layers/1.html").status_code == 200
    page = served.get("/units/1/0.html").text
    assert "dead</a></strong>: none of the 4 images excites it." in page


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_block_holds_the_patches_of_its_unit(site: TestClient, atlas: Atlas) -> None:
    for unit in (0, 1, 2):
        block = Image.open(io.BytesIO(site.get(f"/blocks/relu@2/{unit}.jpg").content))
        assert block.size == (3 * PATCH_PX, 3 * PATCH_PX)
        for row in atlas.peaks("relu#2", unit).to_pylist():
            left, top = (row["rank"] - 1) % 3 * PATCH_PX, (row["rank"] - 1) // 3 * PATCH_PX
            patch = block.crop((left, top, left + PATCH_PX, top + PATCH_PX))
            expected = np.asarray(atlas.patch(Peak(**row), size_px=PATCH_PX), dtype=float)
            seen = ~np.stack([(expected == colour).all(2) for colour in SHEET_GROUND.hatch]).any(0)
            assert seen.any()
            assert np.abs(np.asarray(patch, dtype=float) - expected)[seen].mean() < 12  # what JPEG makes of noise


@pytest.mark.parametrize("kind", ["auto", "field", "image"])
def test_patches_show_what_the_switch_says(atlas: Atlas, kind: str) -> None:
    served = client(atlas)
    served.cookies.set("unitscope-patch", kind)
    suffix = "" if kind == "auto" else f"?patch={kind}"
    for path in ("units/relu@2/1.html", "layers/relu@2.html", "index.html"):
        pictures = re.findall(r'(?:src|href)="[./]*((?:large-)?blocks/[^"]+\.jpg[^"]*)"', served.get(f"/{path}").text)
        assert pictures
        assert all(picture.endswith(f".jpg{suffix}") for picture in pictures)
    for route, side in (("blocks", PATCH_PX), ("large-blocks", LARGE_PATCH_PX)):
        block = Image.open(io.BytesIO(served.get(f"/{route}/relu@2/1.jpg{suffix}").content))
        assert block.size == (3 * side, 3 * side)
        for row in atlas.peaks("relu#2", 1).to_pylist():
            expected = np.asarray(atlas.patch(row, patch=kind, size_px=side), float)
            seen = ~np.stack([(expected == colour).all(2) for colour in SHEET_GROUND.hatch]).any(0)
            left, top = (row["rank"] - 1) % 3 * side, (row["rank"] - 1) // 3 * side
            assert np.abs(np.asarray(block.crop((left, top, left + side, top + side)), float) - expected)[seen].mean() < 12
    assert f'<option value="{kind}" selected>' in served.get("/index.html").text


def test_an_unknown_kind_of_patches_is_the_usual_one(site: TestClient) -> None:
    usual = site.get("/blocks/relu@2/1.jpg").content
    assert site.get("/blocks/relu@2/1.jpg?patch=../../etc").content == usual
    page = site.get("/units/relu@2/1.html", headers={"Cookie": 'unitscope-patch="><script>'}).text
    assert page == site.get("/units/relu@2/1.html").text


def test_heat_is_strongest_where_the_attribution_is(site: TestClient, atlas: Atlas) -> None:
    heat = Image.open(io.BytesIO(site.get("/heat/deconvnet/relu/0.webp").content))
    assert (heat.mode, heat.size) == ("RGBA", (6 * PATCH_PX, 6 * PATCH_PX))
    peaks = [Peak(**row) for row in atlas.peaks("relu", 0).to_pylist()]
    kind = resolve_patch_kind(atlas, atlas.layer("relu"), "auto")
    zero = Ground(((128, 128, 128), (128, 128, 128)), (128, 128, 128))
    pictures = cut_attributions(atlas, peaks, kind, "deconvnet", 2 * PATCH_PX, zero)
    for peak in peaks:
        left, top = (peak.rank - 1) % 3 * 2 * PATCH_PX, (peak.rank - 1) // 3 * 2 * PATCH_PX
        alpha = np.asarray(heat.crop((left, top, left + 2 * PATCH_PX, top + 2 * PATCH_PX)), float)[..., 3]
        strength = np.abs(np.asarray(pictures[peak.unit, peak.rank], float) - 128).max(2)
        assert np.corrcoef(alpha.ravel(), strength.ravel())[0, 1] > 0.8  # it is blurred
    assert site.get("/heat/deconvnet/relu/2.webp").status_code == 404


def test_the_activation_is_laid_over_patches_and_nothing_below_zero_of_a_rectified_one(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 5, padding=2, bias=False), torch.nn.ReLU())
    network[0].weight.data[:] = 0
    network[0].weight.data[0, 0, 2, 2] = 1
    images = -torch.ones(4, 3, 8, 8)
    images[:, 0, 3, 4] = torch.arange(1.0, 5)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["1"])
    unitscope.attribute(atlas, "activation", network)
    served = client(atlas)
    heat = np.asarray(Image.open(io.BytesIO(served.get("/heat/activation/1/0.webp?patch=field").content)), float)
    assert heat[64, 64, 3] > 150, "the middle one of five by five cells"
    assert heat[64, 64, 0] > heat[64, 64, 2], "orange"
    assert heat[:32, :128, 3].max() < 5
    on_input = np.asarray(Image.open(io.BytesIO(served.get("/heat/activation/1/0.webp?patch=image").content)), float)
    y, x = np.unravel_index(on_input[:128, :128, 3].argmax(), (128, 128))
    assert (y // 16, x // 16) == (3, 4), "the cell on an input of eight by eight"


def test_an_activation_of_one_cell_is_not_laid_over_the_patches(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    atlas = unitscope.scan(network, torch.rand(12, 3, 8, 8), tmp_path / "atlas", layers=["0", "2"])
    unattributed = client(atlas).get("/units/2/0.html").text
    assert "has one cell, one value for the whole picture" in unattributed
    assert "--method gradient --layers &#39;2&#39;" in unattributed or "--method gradient --layers '2'" in unattributed
    for method in ("activation", "gradient"):
        unitscope.attribute(atlas, method, network)
    served = client(unitscope.Atlas(atlas.folder))
    methods = {layer: served.get(f"/api/units/{layer}/0.json").json()["heat_methods"] for layer in ("0", "2")}
    assert methods == {"0": ["activation", "gradient"], "2": ["gradient"]}
    assert "<option disabled>activation (one value for the whole picture)</option>" in served.get("/units/2/0.html").text
    assert "one value for the whole picture" not in served.get("/units/0/0.html").text


def test_values_that_the_activation_cuts_off_say_so(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1, bias=False), torch.nn.ReLU6())
    network[0].weight.data[:] = 1
    images = torch.arange(1.0, 13)[:, None, None, None].expand(12, 3, 4, 4) * torch.ones(12, 3, 4, 4)
    served = client(unitscope.scan(network, images, tmp_path / "atlas", layers=["1"]))
    page = served.get("/units/1/0.html").text
    assert "All of these values lie above 6: relu6 passes on 6 of each." in page
    assert served.get("/api/units/1/0.json").json()["ceiling"] == 6


class Counting(Sequence[Image.Image]):
    """Pictures that count how often each of them is read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pictures = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(30)]
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, image: Any) -> Any:
        self.reads[image] += 1
        return self.pictures[image]


def test_an_image_that_holds_peaks_of_many_units_is_decoded_once(tmp_path: Path) -> None:
    pictures = Counting()
    preprocessing = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)
    unitscope.scan(explored_network(), pictures, tmp_path / "atlas", preprocess=preprocessing)
    atlas = Atlas(tmp_path / "atlas", images=pictures)
    pictures.reads.clear()
    units = [(layer.name, unit) for layer in atlas.layers for unit in range(layer.units)]
    for block in BlockDrawer(AtlasQueries(atlas)).draw(units).values():
        block.result(timeout=60)
    assert set(pictures.reads.values()) == {1}


def test_a_browser_keeps_blocks_by_their_tag(site: TestClient) -> None:
    first = site.get("/blocks/relu/0.jpg")
    second = site.get("/blocks/relu/0.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert (second.status_code, second.content) == (304, b"")


def test_a_page_is_the_same_compressed_or_not_and_asked_for_again(site: TestClient) -> None:
    answers = [site.get("/layers/relu.html", headers={"Accept-Encoding": encoding}) for encoding in ("gzip", "identity", "gzip")]
    assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None, "gzip"]
    assert all("Accept-Encoding" in answer.headers["vary"] for answer in answers)
    assert len({answer.text for answer in answers}) == 1


def test_a_page_that_is_not_there_is_not_there_again(site: TestClient) -> None:
    assert [site.get(f"/units/relu/{unit}.html").status_code for unit in (999, 999, 0)] == [404, 404, 200]


def test_images_that_are_gone_leave_the_rest(tmp_path: Path) -> None:
    atlas = explored_atlas(tmp_path)
    (tmp_path / "photographs" / atlas.key(0)).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "photographs" / atlas.key(1))
    served = client(Atlas(atlas.folder))
    assert served.get("/images/0.jpg").status_code == 404
    assert "is 9 x 9 pixels now and was 64 x 48" in served.get("/images/1.jpg").text
    assert served.get("/images/2.jpg").status_code == 200
    assert served.get("/images/0.html").status_code == 200
    assert served.get("/blocks/relu/0.jpg").status_code == 200
    shutil.rmtree(tmp_path / "photographs")
    served = client(Atlas(atlas.folder))
    for path in ("/", "/layers/relu.html", "/units/relu/0.html", "/images/0.html"):
        answer = served.get(path)
        assert answer.status_code == 200
        assert "The images can't be shown: there is no folder" in answer.text
    assert served.get("/images/2.jpg").status_code == 404
    assert served.get("/blocks/relu/0.jpg").status_code == 200


# ── the interface for programs ──────────────────────────────────────────────────────────────────────────────────────


FILES = {f"{path}.{ending}" for path in TABLES for ending in ("csv", "parquet")} | PICTURES.keys() | {"/notes.json"}


def test_json_is_what_the_description_says(site: TestClient) -> None:
    description = site.get("/api/openapi.json").json()
    assert set(description["paths"]) == {path for path in PATHS if "compare" not in path} | FILES
    referenced = {part.split('"')[0] for part in json.dumps(description).split("#/components/schemas/")[1:]}
    assert referenced <= set(description["components"]["schemas"])
    values = {"{layer}": "relu@2", "{unit}": "1", "{image}": "3", "{label}": "cat"}
    for path, page in PATHS.items():
        if any(word in path for word in ("compare", "concepts", "predict", "classes")):  # see test_meaning and test_purpose
            continue
        for name, value in values.items():
            path = path.replace(name, value)
        answer = site.get(path)
        assert msgspec.json.encode(msgspec.json.decode(answer.content, type=page)) == answer.content


def test_the_description_has_an_operation_for_every_path_that_gives_json() -> None:
    assert describe_api(has_comparison=True)["paths"].keys() == PATHS.keys() | FILES
    assert describe_api(has_comparison=False)["paths"].keys() == {path for path in PATHS if "compare" not in path} | FILES


# ── safety ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_peoples_text_is_never_markup(site: TestClient, atlas: Atlas) -> None:
    hostile = next(row["image"] for row in atlas.table("images").to_pylist() if "onerror" in row["key"])
    unit = next(row for row in atlas.table("peaks").to_pylist() if row["image"] == hostile)
    pages = [f"/images/{hostile}.html", f"/units/{slug(unit['layer'])}/{unit['unit']}.html", "/layers/relu.html"]
    for path in [*pages, f"/labels/{slug(LABELS[2])}.html"]:
        answer = site.get(path)
        assert answer.status_code == 200
        for tag, attributes in tags_of(answer.text):
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (path, tag)
            assert tag != "b"
            is_data = attributes.get("type") == "application/json"
            assert (
                tag != "script" or is_data or (attributes.get("src") or "").startswith(("static/", "../static/", "../../static/"))
            )


def test_a_page_keeps_to_itself(site: TestClient) -> None:
    for path in ("/", "/nothing.html", "/static/keys.js", "/blocks/relu/0.jpg", "/api/index.json"):
        headers = site.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/layers/..%2f..%2fetc%2fpasswd.html",
        "/images/-1.jpg",
        "/images/99.jpg",
        "/images/99.html",
        "/units/relu/4.html",
        "/units/nothing/0.html",
        "/blocks/relu/4.jpg",
        "/labels/x.html",
        "/images/99999999999999999999999.html",
        f"/images/{'9' * 5000}.html",
        f"/images/{'9' * 5000}.jpg",
        f"/api/images/{'0' * 5000}1.json",
        f"/units/relu/{'9' * 5000}.html",
        f"/blocks/relu/{'9' * 5000}.jpg",
        f"/attributions/deconvnet/relu/{'9' * 5000}.webp",
        "/api/images/99.json",
        "/image-search.html",
        "/compare/index.html",
        "/compared/index.html",
    ],
)
def test_what_is_not_in_the_tables_is_not_there(site: TestClient, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_another_host_name_is_refused(atlas: Atlas) -> None:
    assert TestClient(create_explorer(atlas), base_url="http://evil.example").get("/").status_code == 400
    assert (
        TestClient(create_explorer(atlas, ExplorerOptions(hosts=("*",))), base_url="http://a.example").get("/").status_code == 200
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("[::1]", 200), ("[::1]:8000", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("127.0.0.1:8000", 200),
        ("[::2]", 400), ("::1", 400), ("[", 400), ("", 400), ("localhost.evil.example", 400), ("evil@localhost", 400),
        ("localhost/", 400), ("localhost#", 400), ("[::1].evil.example", 400),
    ],
)  # fmt: skip
def test_a_server_answers_to_its_own_names_and_addresses(atlas: Atlas, host: str, status: int) -> None:
    served = client(atlas, hosts=("localhost", "127.0.0.1", "::1"))
    assert served.get("/index.html", headers={"Host": host}).status_code == status


def changed(atlas: Atlas, to: Path, table: str, **columns: Any) -> Atlas:
    """A copy of an atlas with changed columns in one table; a function gets each old value."""
    shutil.copytree(atlas.folder, to)
    content = pq.read_table(to / f"{table}.parquet")
    for name, change in columns.items():
        column = pa.array([change(value) for value in content[name].to_pylist()])
        content = content.set_column(content.column_names.index(name), name, column)
    pq.write_table(content, to / f"{table}.parquet")
    return Atlas(to)


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("peaks", {"unit": lambda unit: f"{unit}<script>"}, "can&#39;t be read"),
        ("peaks", {"unit": lambda unit: 10_000}, "a unit or a cell"),
        ("peaks", {"image": lambda image: 10**12}, "names image 1000000000000"),
        ("peaks", {"right": lambda right: 2**31 - 1}, "beyond any image"),
        ("peaks", {"source_bottom": lambda bottom: 1e12}, "beyond any image"),
        ("peaks", {"source_bottom": lambda bottom: float("nan")}, "beyond any image"),
        ("peaks", {"bottom": lambda bottom: -1000}, "no pixels"),
        ("peaks", {"layer": lambda layer: "elsewhere"}, "no layer that it has"),
        ("peaks", {"rank": lambda rank: 32_767}, "another rank than 1 to 9"),
        ("peaks", {"rank": lambda rank: 0}, "another rank than 1 to 9"),
        ("images", {"width": lambda width: -5}, "pixels large"),
        ("images", {"key": lambda key: None}, "lacks its number"),
        ("units", {"unit": lambda unit: 0}, "other units"),
        ("sample", {"y": lambda y: 2**31 - 1}, "units or cells"),
        ("sample", {"image": lambda image: 10**12}, "names image"),
        ("sample", {"value": lambda value: "many"}, "can&#39;t be read"),
    ],
)
def test_a_hostile_table_is_a_page_that_says_so(
    atlas: Atlas, tmp_path: Path, table: str, columns: dict[str, Any], message: str
) -> None:
    served = client(changed(atlas, tmp_path / "atlas", table, **columns))
    answer = served.get("/units/relu/0.html")
    assert answer.status_code == 500
    assert message in answer.text
    assert "<script>" not in answer.text
    assert served.get("/glossary.html").status_code == 200


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"units": lambda units: -3}, "has -3 units"),
        ({"receptive_field_height": lambda height: 2**31 - 1}, "sizes of"),
        ({"layer": lambda layer: "same"}, "the same name"),
        ({"activation": lambda activation: None}, "lacks its name"),
    ],
)
def test_a_hostile_list_of_layers_is_one_line(atlas: Atlas, tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(AtlasError, match=message):
        create_explorer(changed(atlas, tmp_path / "atlas", "layers", **columns))


@pytest.mark.parametrize(
    "entries",
    [
        {"k": "many"},
        {"input": [3, 0, 0]},
        {"input": [3, 1 << 20, 1 << 20]},
        {"input": [3, 41, 40]},
        {"network": 5},
        {"preprocessing": {"crop": 1}},
        {"images": []},
    ],
)
def test_a_hostile_manifest_is_one_line(atlas: Atlas, tmp_path: Path, entries: dict[str, Any]) -> None:
    shutil.copytree(atlas.folder, tmp_path / "atlas")
    manifest = tmp_path / "atlas" / "atlas.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | entries))
    with pytest.raises(AtlasError, match="is broken"):
        create_explorer(Atlas(tmp_path / "atlas"))


def search_memory(atlas: Atlas) -> int:
    """The most bytes that a search by image takes at a time."""
    quiet = [
        Response(layer.name, np.zeros(layer.units, np.float32), np.zeros((layer.units, 4), np.int64)) for layer in atlas.layers
    ]
    served = client(atlas, run_network=lambda image: quiet)
    served.get("/image-search.html")  # what every page needs is read now
    tracemalloc.start()
    assert served.post("/image-search", content=png(Image.new("RGB", (20, 20)))).status_code == 200
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


def test_a_high_rank_takes_no_memory(atlas: Atlas, tmp_path: Path) -> None:
    """A cell for each unit and rank, up to the layer's highest, would take gigabytes for a layer of many units."""
    high = changed(atlas, tmp_path / "atlas", "peaks", rank=lambda rank: 32_767 if rank == 9 else rank)
    manifest = high.folder / "atlas.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"k": 32_767}))
    assert client(Atlas(high.folder)).get("/units/relu/0.html").status_code == 200
    search_memory(atlas)  # whatever the first search of a process loads
    cells = sum(layer.units for layer in atlas.layers) * 32_767
    assert search_memory(Atlas(high.folder)) < search_memory(atlas) + cells


@pytest.mark.parametrize("units", [[9_000_000, 4, 4, 2], [4, 5, 4, 2], [2**31 - 1] * 4])
def test_units_that_no_table_has_take_no_memory(atlas: Atlas, tmp_path: Path, units: list[int]) -> None:
    """A layer of nine million units would take gigabytes, page after page."""
    counts = iter(units)
    with pytest.raises(AtlasError, match=f"its layers have {sum(units):,} units, but its table of units "):
        create_explorer(changed(atlas, tmp_path / "atlas", "layers", units=lambda _: next(counts)))


@pytest.mark.slow
def test_more_units_than_pages_can_show_are_refused(atlas: Atlas, tmp_path: Path) -> None:
    many = changed(atlas, tmp_path / "atlas", "layers", units=lambda units: 3_000_000)
    rows = 3_000_000 * len(many.layers)
    schema = pq.read_schema(many.folder / "units.parquet")
    pq.write_table(
        pa.table({f.name: pa.repeat(pa.scalar(None, f.type), rows) for f in schema}, schema=schema), many.folder / "units.parquet"
    )
    with pytest.raises(AtlasError, match=f"has {rows:,} units, 3,000,000 in one layer; pages show up to 2,000,000"):
        create_explorer(many)


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>", "a\nb", "\x00"])
def test_a_hostile_key_is_text_and_no_path(atlas: Atlas, tmp_path: Path, key: str) -> None:
    served = client(changed(atlas, tmp_path / "atlas", "images", key=lambda _: key))
    assert served.get("/images/1.jpg").status_code == 404
    answer = served.get("/images/1.html")
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text


def test_slugs_of_different_names_differ_and_are_safe() -> None:
    names = ["a#2", "a@2", "a~2", "..", ".", "", "a/b", "a%2fb", "A b", "é", "x" * 300, "x" * 301, "-a", "~40", "<script>"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~@") for text in slugs)
    assert all(text and not text.startswith(".") and len(text) < 130 for text in slugs)


# ── search by image ─────────────────────────────────────────────────────────────────────────────────────────────────


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_an_image_of_the_data_set_takes_its_own_rank(atlas: Atlas) -> None:
    with open_responses(atlas, explored_network()) as run_network:
        served = client(atlas, run_network=run_network)
        row = atlas.peaks("relu#2", 1).to_pylist()[0]
        responses = {response.layer: response for response in run_network(atlas.open_image(row["image"]))}
        assert responses["relu#2"].values[1] == pytest.approx(row["value"], rel=1e-5)
        assert responses["relu#2"].boxes[1].tolist() == [row[side] for side in ("top", "left", "bottom", "right")]
        answer = served.post("/image-search", content=png(atlas.open_image(row["image"])))
    assert answer.status_code == 200
    shown = [attributes for tag, attributes in tags_of(answer.text) if attributes.get("href") == "units/relu@2/1.html"]
    box = [float(side) for side in (shown[0]["data-box"] or "").split()]
    expected = [row["source_left"], row["source_top"], row["source_right"] - row["source_left"]]
    assert box[:3] == pytest.approx(expected, abs=0.01)
    assert "rank 1" in answer.text


def test_an_image_finds_units_in_the_order_of_its_z_scores(atlas: Atlas) -> None:
    layer = atlas.layer("relu#2")
    samples = [sample_values(atlas, layer.name, unit) for unit in range(layer.units)]
    z_scores = [11.0, 14.0, 12.0, 13.0]
    values = [sample.mean() + z * sample.std() for sample, z in zip(samples, z_scores, strict=True)]
    response = Response(layer.name, np.array(values, np.float32), np.zeros((layer.units, 4), np.int64))
    answer = client(atlas, run_network=lambda image: [response]).post("/image-search", content=png(Image.new("RGB", (20, 20))))
    assert [int(unit) for unit in re.findall(r'href="units/relu@2/(\d)\.html"', answer.text)] == [1, 3, 2, 0]
    assert answer.text.count("rank 1") == 4


def test_silent_units_are_not_found_by_an_image(atlas: Atlas) -> None:
    quiet = [
        Response(layer.name, np.full(layer.units, -1, np.float32), np.zeros((layer.units, 4), np.int64)) for layer in atlas.layers
    ]
    answer = client(atlas, run_network=lambda image: quiet).post("/image-search", content=png(Image.new("RGB", (20, 20))))
    layers = [layer.name for layer in atlas.layers if layer.rectified]
    assert layers
    assert not [name for name in layers if f"layers/{slug(name)}.html" in answer.text]


def bomb() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels, and holds a few."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)), b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"no image", 422, "no image that can be read"),
        (b"", 422, "no image that can be read"),
        (bomb(), 422, "more than 50 million"),
        (png(Image.new("RGB", (300, 300)))[:200], 422, "The image"),
        (b"x" * (21 << 20), 413, "larger than 20 MB"),
    ],
)
def test_uploads_that_are_no_image_are_refused(atlas: Atlas, content: bytes, status: int, message: str) -> None:
    answer = client(atlas, run_network=lambda image: []).post("/image-search", content=content)
    assert answer.status_code == status
    assert message in answer.text


def tiff_of_nan() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(content, "TIFF")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (png(Image.new("L", (1, 49_000_000))), 422),
        (png(Image.new("L", (49_000_000, 1))), 422),
        (png(Image.new("L", (1, 200_000))), 422),
        (tiff_of_nan(), 422),
        (png(Image.new("L", (1, 6_000))), 200),
        (png(Image.new("L", (6_000, 1))), 200),
        (png(Image.new("1", (1, 1))), 200),
    ],
    ids=["1 x 49,000,000", "49,000,000 x 1", "1 x 200,000", "NaN", "1 x 6,000", "6,000 x 1", "1 x 1"],
)
def test_images_of_absurd_shapes_are_answered_or_refused(resizing: TestClient, content: bytes, status: int) -> None:
    answer = resizing.post("/image-search", content=content)
    assert answer.status_code == status
    assert status == 200 or answer.text.startswith("The image ")
    assert "\n" not in answer.text.strip() or status == 200


@pytest.fixture(scope="module")
def resizing(tmp_path_factory: pytest.TempPathFactory, atlas: Atlas, folder: Path) -> Iterator[TestClient]:
    """A site that listens, of a network whose images are resized to 256 pixels."""
    preprocessing = Preprocessing(256, (40, 40), (0.5,) * 3, (0.25,) * 3)
    out = tmp_path_factory.mktemp("resizing") / "atlas"
    resized = unitscope.scan(explored_network(), folder / "photographs", out, preprocess=preprocessing)
    with open_responses(resized, explored_network()) as run_network:
        yield client(resized, run_network=run_network)


ELSEWHERE: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost:9999"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://["},
    {"Origin": "https://localhost"},
    {"Origin": "http://localhost:443"},
    {"Origin": "file://localhost"},
    {"Origin": "localhost"},
    {"Origin": "http://evil@localhost"},
    {"Origin": "http://localhost#.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
]
HERE: list[dict[str, str]] = [
    {},
    {"Origin": "http://localhost"},
    {"Origin": "http://LOCALHOST", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "http://localhost:80"},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_what_another_site_sends_is_refused_unread(atlas: Atlas, headers: dict[str, str]) -> None:
    def must_not_run(image: Image.Image) -> list[Response]:
        raise AssertionError("the network ran")

    served = client(atlas, run_network=must_not_run)
    answer = served.post("/image-search", content=png(Image.new("RGB", (20, 20))), headers=headers)
    assert (answer.status_code, answer.text) == (403, "Another site may not send anything here.")
    assert served.delete("/index.html", headers=headers).status_code == 403
    assert served.get("/index.html", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", HERE, ids=str)
def test_what_the_own_pages_send_is_taken(atlas: Atlas, headers: dict[str, str]) -> None:
    answer = client(atlas, run_network=lambda image: []).post(
        "/image-search", content=png(Image.new("RGB", (20, 20))), headers=headers
    )
    assert answer.status_code == 200


def test_behind_https_the_own_pages_say_https(atlas: Atlas) -> None:
    served = TestClient(create_explorer(atlas, ExplorerOptions(run_network=lambda image: [])), base_url="https://localhost:8443")
    for origin, status in (("https://localhost:8443", 200), ("http://localhost:8443", 403), ("https://localhost", 403)):
        content = png(Image.new("RGB", (20, 20)))
        assert served.post("/image-search", content=content, headers={"Origin": origin}).status_code == status


def test_a_page_says_why_search_by_image_is_off(atlas: Atlas) -> None:
    served = client(atlas, search_off_reason="the atlas names <code>")
    assert "image-search.html" in served.get("/index.html").text
    page = served.get("/image-search.html")
    assert page.status_code == 200
    assert "Search by image is off: the atlas names &lt;code&gt;." in page.text
    assert not [tag for tag, _ in tags_of(page.text) if tag == "input" and "file" in page.text.split("<main")[1]]
    answer = served.post("/image-search", content=png(Image.new("RGB", (20, 20))))
    assert (answer.status_code, answer.text) == (403, "Search by image is off: the atlas names <code>.")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/index.html", {"GET", "HEAD"}),
        ("DELETE", "/", {"GET", "HEAD"}),
        ("PUT", "/units/relu/0.html", {"GET", "HEAD"}),
        ("PATCH", "/api/index.json", {"GET", "HEAD"}),
        ("POST", "/blocks/relu/0.jpg", {"GET", "HEAD"}),
        ("POST", "/static/keys.js", {"GET", "HEAD"}),
        ("POST", "/notes.json", {"GET", "HEAD", "PUT"}),
        ("DELETE", "/notes.json", {"GET", "HEAD", "PUT"}),
        ("PUT", "/notes.html", {"GET", "HEAD"}),
        ("GET", "/image-search", {"POST"}),
    ],
)
def test_an_answer_to_a_method_that_is_not_allowed_names_those_that_are(
    atlas: Atlas, method: str, path: str, allowed: set[str]
) -> None:
    answer = client(atlas, run_network=lambda image: []).request(method, path)
    assert answer.status_code == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


@contextmanager
def listening_server(atlas: Atlas, idle_timeout_s: int, **options: Any) -> Iterator[tuple[str, int]]:
    """A server in a thread, as `serve` runs it, and where it listens."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = create_server(create_explorer(atlas, ExplorerOptions(**{"run_network": lambda image: []} | options)), idle_timeout_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield bound.getsockname()
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"POST /image-search HTTP/1.1\r\nX: "], ids=repr
)
def test_a_connection_that_asks_nothing_is_closed(atlas: Atlas, sent: bytes) -> None:
    with listening_server(atlas, idle_timeout_s=1) as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_slow_connection_is_closed_too_and_one_that_asks_again_is_not(atlas: Atlas) -> None:
    with (
        listening_server(atlas, idle_timeout_s=2) as address,
        socket.create_connection(address, timeout=10) as slow,
        socket.create_connection(address, timeout=10) as brisk,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\n")
        slow.settimeout(0.3)
        ended, start = False, time.monotonic()
        while not ended and time.monotonic() - start < 8:
            brisk.sendall(b"HEAD /glossary.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert brisk.recv(5000).startswith(b"HTTP/1.1 200")
            with suppress(TimeoutError):
                slow.sendall(b"a")
                ended = slow.recv(10) == b""
    assert ended


def test_an_upload_that_breaks_off_is_one_line_in_the_log(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    with listening_server(atlas, idle_timeout_s=5) as address:
        for _ in range(3):
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(
                    b"POST /image-search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
                )
                time.sleep(0.2)
        time.sleep(0.3)
        assert request(address, "HEAD /glossary.html").startswith(b"HTTP/1.1 200")
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in lines] == ["an upload from 127.0.0.1 ended before the whole image was there"] * 3
    assert not any(record.exc_info for record in lines)


def test_an_upload_that_does_not_end_is_given_up(atlas: Atlas) -> None:
    with (
        listening_server(atlas, idle_timeout_s=5, upload_s=0.5) as address,
        socket.create_connection(address, timeout=10) as connection,
    ):
        connection.sendall(b"POST /image-search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
        assert b"408" in connection.recv(100)


@pytest.mark.slow
def test_images_are_looked_at_one_at_a_time_and_pages_do_not_wait_for_them(atlas: Atlas) -> None:
    """What an image takes when it is decoded may be many times its file."""
    at_once: list[int] = []
    inside = threading.Semaphore(0)

    def slow(image: Image.Image) -> list[Response]:
        inside.release()
        time.sleep(0.2)
        at_once.append(1)
        assert inside.acquire(blocking=False)
        assert not inside.acquire(blocking=False)  # nobody else came in
        return []

    def send(address: tuple[str, int]) -> bytes:
        content = png(Image.new("RGB", (20, 20)))
        with socket.create_connection(address, timeout=60) as connection:
            head = f"POST /image-search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            return connection.recv(100)

    with listening_server(atlas, idle_timeout_s=30, run_network=slow) as address, ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(send, address) for _ in range(50)]
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(b"HEAD /glossary.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert not all(answer.done() for answer in answers)
        assert all(answer.result().startswith(b"HTTP/1.1 200") for answer in answers)
    assert len(at_once) == 50


def test_an_upload_is_not_kept(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = set(atlas.folder.parent.rglob("*"))
    client(atlas, run_network=lambda image: []).post("/image-search", content=png(Image.new("RGB", (20, 20))))
    assert set(atlas.folder.parent.rglob("*")) == files
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_refused(atlas: Atlas) -> None:
    with pytest.raises(AtlasError, match="are not those"), open_responses(atlas, explored_network(seed=3)):
        pass


def request(address: tuple[str, int], line: str) -> bytes:
    """The beginning of the answer to a request."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return connection.recv(100)


def test_tables_are_read_when_the_server_starts(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "atlas")
    with listening_server(Atlas(tmp_path / "atlas"), idle_timeout_s=10) as address:
        assert request(address, "HEAD /glossary.html").startswith(b"HTTP/1.1 200")  # the server has started
        (tmp_path / "atlas" / "peaks.parquet").unlink()
        assert request(address, "HEAD /images/1.html").startswith(b"HTTP/1.1 200")


def test_an_atlas_of_many_units_is_served_before_its_peaks_are_read(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = threading.Event()

    def slow(queries: AtlasQueries) -> None:
        assert may_read.wait(60)

    monkeypatch.setattr(AtlasQueries, "layers_to_read_ahead", [])
    monkeypatch.setattr(AtlasQueries, "read_for_layers", slow)
    with listening_server(atlas, idle_timeout_s=60) as address:
        assert request(address, "HEAD /glossary.html").startswith(b"HTTP/1.1 200")
        may_read.set()


def test_pages_of_layers_are_made_while_nobody_asks(atlas: Atlas, tmp_path: Path) -> None:
    """What they need is gone when they are asked for; a slow machine gets more time."""
    for patience_s in (2, 8, 32):
        folder = tmp_path / str(patience_s)
        shutil.copytree(atlas.folder, folder)
        with listening_server(Atlas(folder), idle_timeout_s=60) as address:
            time.sleep(patience_s)
            for table in folder.rglob("*.parquet"):
                table.unlink()
            answers = [request(address, f"HEAD /layers/{slug(layer.name)}.html")[:12] for layer in atlas.layers]
        if set(answers) == {b"HTTP/1.1 200"}:
            break
    assert set(answers) == {b"HTTP/1.1 200"}


def test_nothing_is_read_before_the_application_starts(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.folder, tmp_path / "atlas")
    served = client(Atlas(tmp_path / "atlas"))
    (tmp_path / "atlas" / "peaks.parquet").unlink()
    assert served.get("/images/1.html").status_code == 500


# ── two atlases ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_atlas_compared_with_itself_overlaps_wholly(atlas: Atlas) -> None:
    comparison = AtlasComparison(PageBuilder(AtlasQueries(atlas)), PageBuilder(AtlasQueries(atlas)))
    page = comparison.network_page()
    assert [pair.overlap for pair in page.pairs] == [1.0] * len(atlas.layers)
    assert (page.common_images, page.unpaired_layers) == (24, [])


def test_the_overlap_is_the_share_of_common_images(atlas: Atlas, second_atlas: Atlas) -> None:
    page = AtlasComparison(PageBuilder(AtlasQueries(atlas)), PageBuilder(AtlasQueries(second_atlas))).layer_page("relu@2")
    assert page is not None
    for pair in page.units:
        first, second = (set(each.peaks("relu#2", pair.first)["image"].to_pylist()) for each in (atlas, second_atlas))
        expected = (pair.first, len(first & second), max(len(first), len(second)))
        assert (pair.second, pair.shared_images, pair.images) == expected
    assert any(0 < pair.shared_images < pair.images for pair in page.units)
    assert page.pair.chance is not None
    assert 0 < page.pair.chance < 1


def test_units_that_look_at_other_images_overlap_no_more_than_chance(tmp_path: Path) -> None:
    images = torch.randn(400, 3, 1, 1)
    atlases = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1, bias=False))
        atlases.append(unitscope.scan(network, images if seed == 0 else images.flip(1) ** 3, tmp_path / str(seed)))
    with_itself, with_other = (
        AtlasComparison(PageBuilder(AtlasQueries(atlases[0])), PageBuilder(AtlasQueries(other))).network_page().pairs[0]
        for other in atlases
    )
    assert with_itself.overlap == 1
    assert with_itself.chance is not None
    assert with_itself.chance < 0.1, "nine of some 200 images"
    assert with_other.chance is not None
    assert with_other.overlap is not None
    assert with_other.overlap < with_other.chance + 0.15


def test_units_of_another_network_are_paired_by_their_images(atlas: Atlas, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)
    third = unitscope.scan(
        torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), folder / "photographs", tmp_path / "atlas", preprocess=preprocessing
    )
    page = AtlasComparison(PageBuilder(AtlasQueries(atlas)), PageBuilder(AtlasQueries(third))).layer_page("relu")
    assert page is not None
    assert page.pair.second is not None
    for pair in page.units[:3]:
        images = set(atlas.peaks("relu", pair.first)["image"].to_pylist())
        shared_images = [len(images & set(third.peaks("0", unit)["image"].to_pylist())) for unit in range(3)]
        assert (pair.second, pair.shared_images) == (shared_images.index(max(shared_images)), max(shared_images))


def test_without_common_images_there_is_no_overlap(atlas: Atlas, tmp_path: Path) -> None:
    from photographs import write_photographs

    pictures = write_photographs(tmp_path / "birds", labels=("bird",))
    preprocessing = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)
    third = unitscope.scan(explored_network(), pictures, tmp_path / "atlas", preprocess=preprocessing)
    page = AtlasComparison(PageBuilder(AtlasQueries(atlas)), PageBuilder(AtlasQueries(third))).network_page()
    assert page.common_images == 0
    assert {pair.overlap for pair in page.pairs} == {None}


def test_histograms_count_the_sample_up_to_the_highest_value(atlas: Atlas) -> None:
    page = PageBuilder(AtlasQueries(atlas)).unit_page("relu", 0)
    assert isinstance(page, UnitPage)
    assert page.histogram is not None
    values = [row["value"] for row in atlas.sample("relu").to_pylist() if row["unit"] == 0]
    highest = atlas.units("relu")["highest"].to_pylist()[0]
    counts, edges = np.histogram(values, len(page.histogram.counts), (min(values), highest))
    assert page.histogram.counts == counts.tolist()
    assert (page.histogram.lowest, page.histogram.highest) == (edges[0], edges[-1])


@pytest.mark.parametrize("low", [0, 0.1805, -1e6, 3e-20, 1e30])
@pytest.mark.parametrize("relative_width", [1e-6, 1e-3, 1, 1e9])
def test_the_numbers_along_a_histogram_differ_and_rise(low: float, relative_width: float) -> None:
    histogram = Histogram(low, low + relative_width * (abs(low) or 1), [1, 2, 3])
    drawn = str(histogram_drawing(histogram, [], None))
    numbers = [float(text.replace("−", "-")) for text in re.findall(r'y="118">([^<]+)<', drawn)]
    assert 1 <= len(numbers) <= 6
    assert numbers == sorted(set(numbers))
    assert histogram.lowest - 1e-9 * abs(low) <= numbers[0] <= numbers[-1] <= histogram.highest + 1e-9 * abs(low)


def test_blocks_of_an_earlier_page_are_given_up_and_still_drawn_when_asked_for(atlas: Atlas) -> None:
    blocks = BlockDrawer(AtlasQueries(atlas))
    first, second = ([(layer.name, unit) for unit in range(layer.units)] for layer in atlas.layers[:2])
    blocks.prepare(first)
    blocks.prepare(second)
    assert all(blocks.block(unit).result(timeout=60) for unit in second)
    for unit in first:
        drawn = blocks.block(unit)
        assert (blocks.block(unit) if drawn.cancelled() else drawn).result(timeout=60)


def test_who_asks_first_is_answered_first(atlas: Atlas) -> None:
    """Four people ask for a block each, one after the other, while a fifth opens a page: none of them waits for who came later."""
    queries = AtlasQueries(atlas)
    blocks = BlockDrawer(queries)
    opened, begun = atlas.picture, threading.Event()

    def slow_picture(image: int) -> Image.Image:
        begun.wait(10)
        return opened(image)

    queries.atlas.picture = slow_picture  # type: ignore[method-assign]
    finished: list[int] = []
    blocks.prepare([("relu#2", unit) for unit in range(4)])
    for unit in range(3):
        blocks.block(("relu", unit)).add_done_callback(lambda _, unit=unit: finished.append(unit))
    begun.set()
    blocks.block(("relu", 2)).result(timeout=60)
    queries.atlas.picture = opened  # type: ignore[method-assign]
    assert 0 in finished[:2]  # two threads draw: the last patch of one may come after the next one's


# ── ties ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return planted_atlas(tmp_path_factory.mktemp("planted"))


def test_strips_and_glances_leave_out_units_that_show_no_preference(planted: Atlas) -> None:
    page = client(planted).get("/api/index.json").json()
    for row in (*page["layers"], *page["overview"]):
        assert sorted(row["units"]) == [1, 2]
        assert row["no_preference_units"] == 1


def test_unit_pages_name_the_ranks_that_tie(planted: Atlas) -> None:
    served = client(planted)
    for layer in ("1", "3"):
        pages = [served.get(f"/api/units/{layer}/{unit}.json").json()["statistics"] for unit in range(3)]
        expected = [(tie := shared(HIGHEST[:, unit])) and asdict(tie) for unit in range(3)]
        assert [page["tie"] for page in pages] == expected
        texts = [" ".join(re.sub("<[^>]+>", "", served.get(f"/units/{layer}/{unit}.html").text).split()) for unit in range(3)]
        assert "This unit shows no preference: 24 images tie at its highest value" in texts[0]
        assert "ranks 6 to 9: 4 of 19 images that tie" in texts[1]
        assert not ["tie" in words for text in texts[1:] for words in text.split() if words == "no preference:"]
        assert "that tie" not in texts[2]


def test_the_layer_page_says_which_units_show_no_preference(planted: Atlas) -> None:
    served = client(planted)
    page = served.get("/api/layers/1.json").json()
    assert page["units"][0]["labels"] == []
    text = served.get("/layers/1.html").text
    marked = [attributes["data-unit"] for tag, attributes in tags_of(text) if tag == "li" and "data-no-preference" in attributes]
    assert marked == ["0"]
    assert "no preference: 24 images tie" in text


def test_images_labels_and_similarities_leave_out_units_that_show_no_preference(planted: Atlas) -> None:
    served, rows = client(planted), planted.table("peaks").to_pylist()
    for image in planted.table("images")["image"].to_pylist():
        page = served.get(f"/api/images/{image}.json").json()
        shown = {(peak["layer"], peak["unit"]) for layer in page["layers"] for peak in layer["peaks"]}
        units = {(row["layer"], row["unit"]) for row in rows if row["image"] == image}
        assert shown == {(layer, unit) for layer, unit in units if unit != 0}
        assert page["no_preference_peaks"] == sum(unit == 0 for _, unit in units)
    for label in LABELS_PLANTED:
        assert {entry["unit"] for entry in served.get(f"/api/labels/{label}.json").json()["units"]} == {1, 2}
    for layer in ("1", "3"):
        similar_units = [served.get(f"/api/units/{layer}/{unit}.json").json()["similar_units"] for unit in range(3)]
        assert similar_units[0] == []
        assert {similar["unit"] for of_unit in similar_units for similar in of_unit} == {1, 2}
        assert served.get(f"/api/units/{layer}/0.json").json()["labels"] == []


def test_a_comparison_leaves_out_units_that_show_no_preference(planted: Atlas) -> None:
    comparison = AtlasComparison(PageBuilder(AtlasQueries(planted)), PageBuilder(AtlasQueries(planted)))
    page = comparison.layer_page("1")
    assert page is not None
    pairs = [(pair.shared_images, pair.images, pair.no_preference) for pair in page.units]
    assert pairs == [(0, 0, True), (9, 9, False), (9, 9, False)]
    assert page.pair.overlap == 1.0


def test_an_image_that_only_ties_does_not_find_the_unit(planted: Atlas) -> None:
    with open_responses(planted, planted_network()) as run_network:
        served = client(planted, run_network=run_network)

        def excited(red: int, green: int, blue: int) -> set[tuple[int, str]]:
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[3, 4] = red, green, blue
            text = served.post("/image-search", content=png(Image.fromarray(pixels))).text
            return {
                (int(unit), rank)
                for unit, rank in re.findall(r'units/1/(\d)\.html.*?class="value">(.*?)</span>', text, re.DOTALL)
            }

        assert excited(200, 200, 99) == set()
        assert excited(201, 200, 100) == {(0, "rank 1")}
        assert excited(200, 203, 250) == {(1, "rank 3"), (2, "rank 1")}
        assert excited(199, 199, 176) == {(2, "rank 9")}


def test_blocks_of_units_that_tie_or_are_dead_have_a_grey_frame(planted: Atlas, atlas: Atlas) -> None:
    def has_frame(shown: Atlas, layer: str, unit: int) -> bool:
        with Image.open(io.BytesIO(client(shown).get(f"/blocks/{layer}/{unit}.jpg").content)) as block:
            pixels = np.asarray(block).astype(int)
        edges = np.concatenate([pixels[1], pixels[-2], pixels[:, 1], pixels[:, -2]])
        return bool((np.abs(edges - GREY).max(axis=1) < 25).mean() > 0.95)

    assert [has_frame(planted, "1", unit) for unit in range(3)] == [True, False, False]
    assert [has_frame(atlas, "relu", unit) for unit in range(4)] == [False, False, False, True]


def test_a_unit_that_several_layers_show_is_there_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 6, 1)
    ).eval()
    served = client(unitscope.scan(network, torch.randn(40, 3, 4, 4), tmp_path / "atlas", layers=["*"]))
    shown = served.get("/api/units/2/1.json").json()
    assert shown["views"] == ["0", "1"]
    assert (
        'the same unit in <a href="../../units/0/1.html">0</a>, <a href="../../units/1/1.html">1</a>'
        in served.get("/units/2/1.html").text
    )
    for layer in ("0", "1", "2", "3"):
        for unit in range(6):
            similar = served.get(f"/api/units/{layer}/{unit}.json").json()["similar_units"]
            originals = [(other["layer"] if other["layer"] == "3" else "0", other["unit"]) for other in similar]
            assert len(set(originals)) == len(originals)
            assert (layer if layer == "3" else "0", unit) not in originals
    assert "views" not in served.get("/units/3/0.html").text


def test_a_unit_that_nothing_rectifies_shows_where_it_is_lowest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1)).eval()
    images = torch.randn(30, 3, 8, 8)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["1", "2"])
    served = client(atlas)
    with torch.no_grad():
        lowest = network(images)[:, 1].flatten(1).amin(1).sort()
    page = served.get("/api/units/2/1.json").json()
    assert [trough["source_image"]["image"] for trough in page["troughs"]] == lowest.indices[:9].tolist()
    assert [trough["value"] for trough in page["troughs"]] == pytest.approx(lowest.values[:9].tolist(), rel=1e-4)
    html = served.get("/units/2/1.html").text
    assert "Where it is lowest" in html
    assert 'data-href="../../troughs/2/1.jpg"' in html
    block = Image.open(io.BytesIO(served.get("/troughs/2/1.jpg").content))
    assert block.size == (3 * PATCH_PX, 3 * PATCH_PX)
    whole = served.get("/troughs/2/1.jpg?patch=image").content
    assert whole != served.get("/troughs/2/1.jpg").content
    assert served.get("/troughs/1/1.jpg").status_code == 404
    assert "Where it is lowest" not in served.get("/units/1/1.html").text


def test_activations_are_read_from_the_network_where_none_were_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).eval()
    images = torch.randn(20, 3, 8, 8)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", layers=["1", "2"])
    with open_activations(atlas, network) as read, torch.no_grad():
        for layer, unit, length in (("1", 2, 3), ("2", 1, 2)):
            maps = (network[0] if layer == "1" else network)(images)[:, unit].numpy()
            order = atlas.peaks(layer, unit)["image"].to_pylist()
            spread = read(layer, unit)
            assert spread.shape == (9, 8, 8)
            cells = (
                spread
                if length == 3
                else (spread[:, ::2, ::2] + spread[:, 1::2, 1::2] + spread[:, ::2, 1::2] + spread[:, 1::2, ::2]) / 4
            )
            inner = np.s_[:, 1:-1, 1:-1]
            assert np.corrcoef(cells[inner].ravel(), maps[order][inner].ravel())[0, 1] > (0.999 if length == 3 else 0.9)
        served = client(atlas, read_activations=read)
        assert '<option value="activation"' in served.get("/units/1/2.html").text
        heat = np.asarray(Image.open(io.BytesIO(served.get("/heat/activation/1/2.webp?patch=image").content)), float)
        for row in atlas.peaks("1", 2).to_pylist():
            top, left = (row["rank"] - 1) // 3 * 128, (row["rank"] - 1) % 3 * 128
            y, x = np.unravel_index(heat[top : top + 128, left : left + 128, 3].argmax(), (128, 128))
            assert abs(y / 16 - row["y"] - 0.5) < 1
            assert abs(x / 16 - row["x"] - 0.5) < 1
        assert served.get("/heat/gradient/1/2.webp").status_code == 404
    assert client(atlas).get("/heat/activation/1/2.webp").status_code == 404
    assert "No heat or attribution was computed" in client(atlas).get("/units/1/2.html").text


@pytest.mark.parametrize(("y", "size"), [([1.5, 3.5, 5.5], (8, 8)), ([4.0] * 3, (9, 8))])
def test_a_map_has_its_values_at_its_cells_centres(y: list[float], size: tuple[int, int]) -> None:
    """Where centres don't tell cells apart, these share the input evenly."""
    maps, x = torch.arange(6.0).reshape(1, 1, 3, 2), [2.5, 4.5]
    spread_map = spread(maps, (np.array(y), np.array(x)), size)[0, 0].numpy()
    assert spread_map.shape == size
    rows = [1, 3, 5] if len(set(y)) > 1 else [1, 4, 7]
    np.testing.assert_allclose(spread_map[rows][:, [2, 4]], maps[0, 0].numpy())
    assert spread_map[rows[0], 3] == pytest.approx(0.5), "half way between two cells"
    assert spread_map.min() == 0
    assert spread_map.max() == 5
