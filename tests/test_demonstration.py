"""The demo's images."""

from pathlib import Path

import numpy as np
import pytest

from unitscope.demonstration import tile_boxes, write_demo_images


@pytest.mark.parametrize("size", [(512, 512), (427, 640), (172, 448), (1411, 1411), (128, 128), (127, 500)])
def test_tiles_do_not_overlap_and_lie_on_the_picture(size: tuple[int, int]) -> None:
    covered = np.zeros(size, int)
    for box in tile_boxes(*size):
        assert 0 <= box.top < box.bottom <= size[0]
        assert 0 <= box.left < box.right <= size[1]
        assert box.height == box.width >= 64
        covered[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] += 1
    assert covered.max() <= 1
    assert covered.mean() > 0.6 or min(size) < 128


@pytest.mark.slow
def test_some_hundreds_of_tiles_are_written_once(tmp_path: Path) -> None:
    assert write_demo_images(tmp_path) == tmp_path
    tiles = sorted(tmp_path.rglob("*.png"))
    assert 300 <= len(tiles) <= 600
    assert len({path.parent.name for path in tiles}) >= 15
    tiles[0].write_bytes(b"mine")
    assert write_demo_images(tmp_path) == tmp_path
    assert tiles[0].read_bytes() == b"mine"
