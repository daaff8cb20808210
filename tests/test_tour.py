"""The guided tour: from planted tables, in which what is true is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from colours import PREPROCESSING, Colours, Patterns
from planted import planted_atlas
from starlette.testclient import TestClient

import unitscope
from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import NAMES, VISUAL_TUNING, TableSpec
from unitscope.web import create_explorer, export
from unitscope.web.page_records import NetworkPage, PatchSize, TourStop, units_shown_on
from unitscope.web.pages import PageBuilder
from unitscope.web.queries import AtlasQueries
from unitscope.web.tour import TourLayer, choose_tour, tour_of

INPUT = (100, 100)
PATCHES = {"first": 5, "second": 11, "third": 30, "fourth": 45, "last": 90}
"""Layers from shallow to deep, with the sides of their patches."""
UNITS = 4


def tour_layers(hidden: Sequence[tuple[str, int]] = ()) -> list[TourLayer]:
    return [
        TourLayer(name, PatchSize("field", side, side), np.array([(name, unit) not in hidden for unit in range(UNITS)]))
        for name, side in PATCHES.items()
    ]


def seen(
    layer: str, unit: int, description: str | None, explained: float | None, angle_selectivity: float | None = 0.5
) -> dict[str, Any]:
    return {
        "layer": layer,
        "unit": unit,
        "description": description,
        "explained": explained,
        "angle_selectivity": angle_selectivity,
    }


def named(layer: str, unit: int, name: str | None = "dog", **changed: Any) -> dict[str, Any]:
    sure = {"kind": "class", "r_a": 0.6, "r_b": 0.5, "images_b": 50, "base_rate": 0.1, "peaks_inside": 9, "peaks": 9}
    return {"layer": layer, "unit": unit, "name": name, **sure, **changed}


def table(rows: Sequence[dict[str, Any]], spec: TableSpec) -> pa.Table:
    """With the columns that the rows lack as nulls."""
    return pa.Table.from_pylist(list(rows), spec.schema)


def tour(
    tuning: Sequence[dict[str, Any]] = (), names: Sequence[dict[str, Any]] = (), hidden: Sequence[tuple[str, int]] = ()
) -> list[TourStop]:
    return choose_tour(table(tuning, VISUAL_TUNING), table(names, NAMES), tour_layers(hidden), INPUT)


def places(stops: Sequence[TourStop]) -> list[tuple[str, str, int]]:
    return [(stop.stage, stop.layer, stop.unit) for stop in stops]


def text_of(stop: TourStop) -> str:
    return "".join(piece.text for piece in stop.sentence)


TUNING = [
    seen("first", 0, "orange", 0.99),
    seen("first", 1, "edge at 45°, dark below", 0.6),
    seen("first", 2, "horizontal edge, dark above", 0.9),
    seen("second", 0, "horizontal edge, dark above", 0.95),
    seen("first", 3, "fine vertical stripes", 0.99, 0.99),
    seen("second", 1, "fine vertical stripes", 0.9, 0.5),
    seen("second", 2, "coarse stripes at 30°", 0.7, 0.9),
]
NAMED = [
    named("third", 0, "dog", r_a=0.7),
    named("third", 1, "wheel", r_a=0.8, r_b=0.45, peaks_inside=8),
    named("fourth", 0, "bird", r_a=0.99, r_b=0.99),
    named("last", 2, "bird", r_a=0.9, r_b=0.7),
    named("last", 3, "canine", r_a=0.8, r_b=0.9),
]
"""The fourth layer's bird is a part, but not of the first layer that has one; nor is it a thing."""


def test_every_stage_shows_the_unit_with_the_best_evidence() -> None:
    stops = tour(TUNING, NAMED)
    assert places(stops) == [("edge", "first", 2), ("pattern", "second", 2), ("part", "third", 1), ("thing", "last", 2)]
    assert [stop.patch.height for stop in stops] == [5, 11, 30, 90]
    assert [text_of(stop) for stop in stops] == [
        "Tuned to horizontal edge, dark above: that explains 90 % of its response to images that weren't used to fit it.",
        "Tuned to coarse stripes at 30°: that explains 70 % of its response to images that weren't used to fit it.",
        "Responds to wheel: 8 of 9 patches are from images of it, and r = 0.45 on images that it wasn't chosen on.",
        "Responds to bird: 9 of 9 patches are from images of it, and r = 0.70 on images that it wasn't chosen on.",
    ]


def test_what_half_b_says_chooses_nothing() -> None:
    """So it stays a test of the unit that is shown."""
    stops = tour(names=[named("last", 0, "bird", r_a=0.8, r_b=0.5), named("last", 1, "fish", r_a=0.7, r_b=0.99)])
    assert places(stops) == [("thing", "last", 0)]


def test_the_order_of_the_rows_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        tuning, names = ([rows[i] for i in rng.permutation(len(rows))] for rows in (TUNING, NAMED))
        assert tour(tuning, names) == tour(TUNING, NAMED)
    tie = [named("last", unit, "bird") for unit in (3, 1, 2)]
    assert places(tour(names=tie)) == [("thing", "last", 1)]


def test_stages_go_from_shallow_to_deep() -> None:
    tuning = [seen("third", 0, "edge at 45°, dark below", 0.9), seen("second", 0, "fine vertical stripes", 0.9)]
    names = [named("second", 1, "dog", r_a=0.9), named("third", 1, "dog"), named("last", 1, "bird")]
    assert places(tour(tuning, names)) == [("edge", "third", 0), ("thing", "last", 1)]
    assert places(tour((), names)) == [("part", "second", 1), ("thing", "last", 1)]
    assert places(tour(TUNING, names)) == [
        ("edge", "first", 2),
        ("pattern", "second", 2),
        ("part", "third", 1),
        ("thing", "last", 1),
    ]


def test_a_stage_without_evidence_is_left_out() -> None:
    assert places(tour(TUNING)) == [("edge", "first", 2), ("pattern", "second", 2)]
    assert places(tour(names=NAMED)) == [("part", "third", 1), ("thing", "last", 2)]
    assert tour() == []
    assert choose_tour(None, None, tour_layers(), INPUT) == []
    assert choose_tour(table(TUNING, VISUAL_TUNING), table(NAMED, NAMES), [], INPUT) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"r_a": 0.39}, {"r_b": 0.39}, {"r_b": None}, {"r_a": float("nan")}, {"images_b": 49}, {"base_rate": 0.2}, {"base_rate": None}, {"peaks_inside": 7},
        {"peaks_inside": 0, "peaks": 0}, {"peaks": None}, {"kind": "visual"}, {"kind": "text"}, {"kind": None}, {"name": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["third", "last"])
def test_a_name_below_the_bar_is_not_shown(layer: str, changed: dict[str, Any]) -> None:
    assert len(tour(names=[named(layer, 1, "dog")])) == 1
    assert tour(names=[named(layer, 1, **{"name": "dog", **changed})]) == []


@pytest.mark.parametrize(
    ("description", "explained"),
    [
        ("edge at 45°, dark below", 0.49), ("edge at 45°, dark below", None), ("edge at 45°, dark below", float("nan")), ("orange", 0.99),
        ("contrast", 0.99), ("bright", 0.99), ("horizontal bright line", 0.99), ("hedge", 0.99), (None, 0.99), ("fine vertical stripes", 0.49),
    ],
)  # fmt: skip
def test_a_tuning_below_the_bar_is_not_shown(description: str | None, explained: float | None) -> None:
    assert tour([seen("first", 1, description, explained)]) == []


def test_stripes_whose_angle_nobody_knows_are_not_shown() -> None:
    assert tour([seen("second", 1, "fine vertical stripes", 0.9, None)]) == []


def test_units_that_may_not_be_shown_and_rows_of_none_are_passed_over() -> None:
    hidden = [("first", 2), ("last", 2)]
    rows = [named("last", UNITS, "bird", r_a=1.0), named("last", -1, "bird", r_a=1.0), named("nothing", 0, "bird", r_a=1.0)]
    assert places(tour(TUNING, [*NAMED, *rows], hidden)) == [
        ("edge", "first", 1), ("pattern", "second", 2), ("part", "third", 1), ("thing", "last", 3),
    ]  # fmt: skip


# ── of an atlas ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return planted_atlas(tmp_path)


def with_names(atlas: Atlas, names: Sequence[str]) -> Atlas:
    """Of each layer's red, green and blue unit; red, which ties wholly, has the best evidence, then green, of which some peaks tie."""
    rows = [
        named(layer.name, unit, name, r_a=0.9 - unit / 10, r_b=0.9) for layer in atlas.layers for unit, name in enumerate(names)
    ]
    write_table(table(rows, NAMES), NAMES, atlas)
    return Atlas(atlas.folder)


def network_page(atlas: Atlas) -> NetworkPage:
    return PageBuilder(AtlasQueries(atlas)).network_page()


def test_units_that_tie_are_never_shown(atlas: Atlas) -> None:
    page = network_page(with_names(atlas, ["red", "green", "blue"]))
    assert places(page.tour) == [("part", atlas.layers[0].name, 2)]
    assert units_shown_on(page)[0] == (atlas.layers[0].name, 2)


def test_dead_units_are_never_shown(atlas: Atlas) -> None:
    peaks = pyarrow.parquet.read_table(atlas.folder / "peaks.parquet")
    is_blue = np.array(peaks["unit"]) == 2
    pyarrow.parquet.write_table(peaks.filter(pa.array(~is_blue)), atlas.folder / "peaks.parquet")
    assert network_page(with_names(Atlas(atlas.folder), ["red", "green", "blue"])).tour == []


def test_an_atlas_without_names_has_no_tour(atlas: Atlas) -> None:
    assert network_page(atlas).tour == []
    with TestClient(create_explorer(atlas), base_url="http://127.0.0.1:8000") as client:
        assert "A short tour" not in client.get("/").text


def test_names_of_other_peaks_show_nothing(atlas: Atlas) -> None:
    with_names(atlas, ["red", "green", "blue"])
    peaks = pyarrow.parquet.read_table(atlas.folder / "peaks.parquet")
    pyarrow.parquet.write_table(peaks.slice(0, len(peaks) - 1), atlas.folder / "peaks.parquet")
    assert network_page(Atlas(atlas.folder)).tour == []


def test_the_tour_is_served_and_exported(atlas: Atlas, tmp_path: Path) -> None:
    atlas = with_names(atlas, ["red", "green", "<blue>"])
    layer = atlas.layers[0].name
    with TestClient(create_explorer(atlas), base_url="http://127.0.0.1:8000") as client:
        served = client.get("/").text
        answer = client.get("/api/index.json").json()
        _, _, section = served.partition('<h2 id="tour">')
        address = section.partition('href="')[2].partition('"')[0]
        assert client.get(f"/{address}").status_code == 200
    assert address.endswith("/2.html")
    assert [(stop["stage"], stop["layer"], stop["unit"]) for stop in answer["tour"]] == [("part", layer, 2)]
    export(atlas, tmp_path / "site")
    exported = (tmp_path / "site" / "index.html").read_text()
    for html in (served, exported):
        section = html.partition('<h2 id="tour">')[2].partition("</section>")[0]
        assert section.count("<li>") == 1
        assert "A part" in section
        assert "Responds to <em>&lt;blue&gt;</em>: 9 of 9 patches" in section
    assert 'class="sprite"' in exported.partition('<h2 id="tour">')[2].partition("</section>")[0]


def test_classes_that_units_are_given_are_not_found_by_them(atlas: Atlas) -> None:
    manifest = json.loads((atlas.folder / "atlas.json").read_text())
    (atlas.folder / "atlas.json").write_text(json.dumps(manifest | {"class_layers": [atlas.layers[0].name]}))
    page_tour = tour_of(AtlasQueries(with_names(Atlas(atlas.folder), ["red", "green", "blue"])))
    assert places(page_tour) == [("part", atlas.layers[1].name, 2)]


@pytest.mark.parametrize("images", [80, 120])
def test_what_few_images_explain_is_not_shown(images: int, tmp_path: Path) -> None:
    atlas = unitscope.scan(Colours().eval(), Patterns(images), tmp_path / "atlas", preprocess=PREPROCESSING)
    rows = [seen("activation", unit, "edge at 45°, dark below", 0.9) for unit in range(atlas.layer("activation").units)]
    write_table(table(rows, VISUAL_TUNING), VISUAL_TUNING, atlas)
    assert [stop.stage for stop in tour_of(AtlasQueries(Atlas(atlas.folder, images=Patterns(images))))] == ["edge"] * (
        images > 100
    )
