"""Fields against perturbation: change a row of the input and see which cells move."""

import pytest
import torch
from oracles import assert_boxes_equal, make_transparent, moved_cells
from torch import Tensor, nn

from unitscope.fields import FieldMode, fields_of

NETWORKS = {
    "one-sided padding": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1)
    ),
    "stride above kernel": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, stride=3), nn.Conv2d(4, 4, 3, padding=1)),
    "ceil_mode": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 4, 3, padding=1)),
    "uneven adaptive pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((5, 4)), nn.Conv2d(4, 4, 2)),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3)
    ),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, dilation=3, padding=3), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
    ),
    "interpolated": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3)
    ),
}


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    result = []
    for module in network:
        images = module(images)
        result.append(images)
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_fields_are_what_perturbation_finds(name: str) -> None:
    network, size = make_transparent(NETWORKS[name]()), (29, 22)
    mode, images = FieldMode(), torch.zeros(1, 3, *size, dtype=torch.float64)
    with torch.no_grad(), mode:
        mode.start(images)
        planes = [mode.planes(maps) for maps in outputs(network, images)]
    assert not mode.unknown
    for known, *moved in zip(planes, *moved_cells(network, outputs, size), strict=True):
        assert_boxes_equal(fields_of(known, *size), moved, size)
