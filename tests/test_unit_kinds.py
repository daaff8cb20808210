"""Kinds of names: what is a colour, an edge, a part or a thing, and how a person finds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from explored import parts_of
from planted import planted_atlas
from starlette.testclient import TestClient
from test_tour import named, table

from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import NAMES
from unitscope.naming.words import HUES, describe
from unitscope.web import create_explorer, export
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries
from unitscope.web.unit_kinds import BRIGHTNESS, COLOURS, EDGES, LINES, STRIPES, visual_kind


def test_every_description_has_its_kind() -> None:
    angles, phases = np.arange(0, 180, 7.5).tolist(), np.arange(0.0, 360, 30).tolist()
    described = {
        (feature, cycles >= 1.25): {describe(feature, a, p, cycles, 0.0, 1.0) for a in angles for p in phases}
        for feature in ("match", "energy")
        for cycles in (0.8, 4.0)
    }
    assert {visual_kind(str(text)) for text in described["match", False]} == {EDGES, LINES}
    for key in (("match", True), ("energy", True), ("energy", False)):
        assert {visual_kind(str(text)) for text in described[key]} == {STRIPES}
    assert {visual_kind(name) for _, name in HUES} == {COLOURS}
    assert {visual_kind(str(describe("brightness", 0.0, 0.0, 1.0, 0.0, sign))) for sign in (-1.0, 1.0)} == {BRIGHTNESS}
    assert visual_kind("contrast") is None


def atlas_of_kinds(folder: Path) -> Atlas:
    """Units 0 and 1, red and green, tie, so the tour may not show them; unit 2 of the second layer is below its bar."""
    planted = planted_atlas(folder)

    def visual(layer: str, unit: int, name: str, explained: float) -> dict[str, Any]:
        return named(layer, unit, name, kind="visual", explained=explained)

    first, second = (layer.name for layer in planted.layers[:2])
    rows: Sequence[dict[str, Any]] = [
        named(first, 0, "wheel"), named(first, 1, "wheel"), named(first, 2, "wheel"), named(second, 2, "wheel", r_b=0.3),
        visual(second, 0, "red", 0.2), visual(second, 1, "blue", 0.3), 
    ]  # fmt: skip
    write_table(table(rows, NAMES), NAMES, planted)
    return Atlas(planted.folder)


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return atlas_of_kinds(tmp_path)


def test_search_offers_kinds_and_the_stops_of_the_tour(atlas: Atlas) -> None:
    first, second = (layer.name for layer in atlas.layers[:2])
    index = PageBuilder(AtlasQueries(atlas)).search_index()
    assert [(row[0], row[3], row[4]) for row in index["kinds"]] == [("colours", 2, f"{second}/1"), ("parts", 1, f"{first}/2")]
    assert [(row[0], row[2], row[4]) for row in index["tour"]] == [("part", first, 2)]
    for name, words, address, count, _ in index["kinds"]:
        page = PageBuilder(AtlasQueries(atlas)).concept_page(address)
        assert page is not None
        assert (page.name, page.unit_count, page.is_kind) == (name, count, True)
        assert words


def test_pages_of_kinds_have_their_units_and_names_lead_to_them(atlas: Atlas, tmp_path: Path) -> None:
    first, second = (layer.name for layer in atlas.layers[:2])
    with TestClient(create_explorer(atlas), base_url="http://127.0.0.1:8000") as client:
        colours = client.get("/api/concepts/kind~20colours.json").json()
        assert [(unit["layer"], unit["unit"]) for unit in colours["units"]] == [(second, 1), (second, 0)], "the best first"
        assert {(name["name"], name["units"]) for name in colours["narrower"]} == {("red", 1), ("blue", 1)}
        assert "Units that are tuned to a colour: 2." in client.get("/concepts/kind~20colours.html").text
        parts = client.get("/api/concepts/kind~20parts.json").json()
        assert [(unit["layer"], unit["unit"]) for unit in parts["units"]] == [(first, 2)]
        wheel = client.get("/concepts/wheel.html").text
        assert '<a href="../concepts/kind~20parts.html">parts (1 unit)</a>' in wheel
        assert client.get("/concepts/kind~20things.html").status_code == 404
    export(atlas, tmp_path / "site")
    assert (
        "Units that are tuned to a colour: 2."
        in {unquote(part): html for part, (_, html) in parts_of(tmp_path / "site").items()}["concepts/kind~20colours"]
    )
