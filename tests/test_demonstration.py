"""The demo's images."""

from pathlib import Path

import numpy as np
import pytest

from unitscope.demonstration import demo_images, tiles


@pytest.mark.parametrize("size", [(512, 512), (427, 640), (172, 448), (1411, 1411), (128, 128), (127, 500)])
def test_tiles_do_not_overlap_and_lie_on_the_picture(size: tuple[int, int]) -> None:
    covered = np.zeros(size, int)
    for box in tiles(*size):
        assert 0 <= box.top < box.bottom <= size[0]
        assert 0 <= box.left < box.right <= size[1]
        assert box.height == box.width >= 64
        covered[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] += 1
    assert covered.max() <= 1
    assert covered.mean() > 0.6 or min(size) < 128


@pytest.mark.slow
def test_there_are_some_hundreds_and_a_second_call_finds_them(tmp_path: Path) -> None:
    folder = demo_images(tmp_path)
    names = sorted(path for path in folder.rglob("*.png"))
    assert 300 <= len(names) <= 600
    assert len({path.parent.name for path in names}) >= 15
    names[0].write_bytes(b"mine")
    assert demo_images(tmp_path).joinpath(names[0]).read_bytes() == b"mine"
