"""What a notebook shows: a unit, and the explorer in a frame."""

import re
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from explored import explored_atlas

from unitscope.atlas import Atlas
from unitscope.drawing import draw_grid
from unitscope.errors import AtlasError, LayerNotFound
from unitscope.web.notebook import explore


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return explored_atlas(tmp_path_factory.mktemp("explored"))


def test_a_unit_has_what_the_tables_have(atlas: Atlas) -> None:
    unit = atlas.unit("relu#2", 1)
    assert unit.peaks.equals(atlas.peaks("relu#2", 1))
    assert unit.statistics["highest"] == atlas.units("relu#2")["highest"].to_pylist()[1]
    values = [row["value"] for row in atlas.sample("relu#2").to_pylist() if row["unit"] == 1]
    assert unit.sample.tolist() == sorted(values)
    assert unit.name is None
    assert repr(unit) == "relu#2 unit 1: not named or scored yet"
    patches = [atlas.patch(row, "auto", 32) for row in unit.peaks.to_pylist()]
    assert (np.asarray(unit.block(size_px=32)) == np.asarray(draw_grid(patches, 9, 32))).all()


def test_a_unit_shows_itself(atlas: Atlas) -> None:
    for layer in atlas.layers:
        for number in range(layer.units):
            html = atlas.unit(layer.name, number)._repr_html_()
            assert html.count("data:image/jpeg;base64,") == 1
            assert len(re.findall("<rect", html)) == 32
            assert html.count("stroke=") == len(atlas.peaks(layer.name, number))


def test_a_unit_that_is_not_there_is_refused(atlas: Atlas) -> None:
    with pytest.raises(AtlasError, match="99"):
        atlas.unit("relu", 99)
    with pytest.raises(LayerNotFound):
        atlas.unit("rellu", 0)


def test_the_explorer_is_served_from_this_process(atlas: Atlas) -> None:
    exploration = atlas.explore(height=700)
    try:
        with urlopen(exploration.address) as answer:
            assert b"What has this network learned" in answer.read()
            assert "frame-ancestors" not in answer.headers["Content-Security-Policy"], "a notebook shows it in a frame"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        html = exploration._repr_html_()
        assert f'src="{exploration.address}"' in html
        assert 'height="700"' in html
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(exploration.address, headers={"Host": "elsewhere.example"}))
        assert refused.value.code == 400
        refused.value.close()
    finally:
        exploration.stop()
    with pytest.raises(URLError):
        urlopen(exploration.address, timeout=5)


def test_several_can_be_explored_at_once(atlas: Atlas, tmp_path: Path) -> None:
    first, second = explore(atlas), explore(atlas)
    assert first.address != second.address
    for exploration in (first, second):
        with urlopen(f"{exploration.address}units/relu/0.html") as answer:
            assert answer.status == 200
        exploration.stop()
