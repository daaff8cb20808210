"""Receptive fields against perturbation: change a row of the input and see which cells move."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import assert_boxes_equal, make_transparent, moving_rows_and_columns
from torch import Tensor, nn
from torch.nn import functional as F

from unitscope.layers import trace
from unitscope.receptive_fields import DependencyMode, ReceptiveFields
from unitscope.records import Box

CHAINS: dict[str, Callable[[], nn.Module]] = {
    "one-sided padding": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1)
    ),
    "stride above kernel": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, stride=3), nn.Conv2d(4, 4, 3, padding=1)),
    "ceil_mode": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 4, 3, padding=1)),
    "average pooling that counts padding": lambda: nn.Sequential(
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Conv2d(3, 4, 2)
    ),
    "uneven adaptive pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((5, 4)), nn.Conv2d(4, 4, 2)),
    "adaptive pooling that enlarges": lambda: nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.AdaptiveMaxPool2d((11, 13))),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3)
    ),
    "transposed with gaps": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=3, output_padding=1), nn.Conv2d(4, 4, 2)),
    "transposed and dilated": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, dilation=2, padding=2, groups=1)),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, dilation=3, padding=3), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
    ),
    "interpolated": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3)
    ),
    "interpolated to a size": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.UpsamplingBilinear2d((17, 30))),
    "nearest": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Upsample(size=(31, 23), mode="nearest"), nn.Conv2d(4, 4, 2)
    ),
    "mirrored padding": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=3, padding_mode="reflect"), nn.Conv2d(4, 4, 3, stride=2)
    ),
    "repeated padding": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, padding_mode="replicate"), nn.Conv2d(4, 4, 3)),
    "circular padding": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular")),
    "kernels that aren't square": lambda: nn.Sequential(
        nn.Conv2d(3, 4, (5, 1), stride=(1, 3)), nn.MaxPool2d((1, 3), (2, 1), (0, 1))
    ),
    "same padding": lambda: nn.Sequential(nn.Conv2d(3, 4, 4, padding="same"), nn.Conv2d(4, 4, 3, padding="same", dilation=2)),
    "grouped": lambda: nn.Sequential(
        Branches(), nn.Conv2d(8, 6, 3, groups=2), nn.ChannelShuffle(3), nn.Conv2d(6, 6, 3, groups=6)
    ),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    "global pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)),
    "flattened": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(140, 5), nn.Linear(5, 2)),
    "changed in place, then turned": lambda: nn.Sequential(InPlaceThenTurned()),
    "branches of unequal fields": lambda: nn.Sequential(Branches(), nn.Conv2d(8, 4, 3, padding=1)),
    "strips": lambda: nn.Sequential(Strips()),
    "written by slices": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Slices(), nn.Conv2d(4, 4, 3)),
    "antialiased": lambda: nn.Sequential(nn.Conv2d(3, 4, 2), Antialiased()),
    "gated": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GLU(1)),
    "shifted": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Shifted()),
}


class Branches(nn.Module):
    """Two branches side by side, one of which sees more than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.narrow(images), self.wide(images)], 1)


class InPlaceThenTurned(nn.Module):
    """ConvNeXt's way: an addition in place, and then a permuted view of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.first(images)
        total = self.second(skip) * 2
        total += skip
        return self.last(total.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Maps times a gate that depends on everything."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images)
        return maps * (1 + self.gate(maps.mean((2, 3), keepdim=True)))


class Strips(nn.Module):
    """Pooling over whole rows, added back: a cross, whose box is whole in one direction and, by the sum, in the other."""

    def forward(self, images: Tensor) -> Tensor:
        return images + images.mean(3, keepdim=True)


class Slices(nn.Module):
    """Writes into a new tensor, part by part."""

    def forward(self, maps: Tensor) -> Tensor:
        copy = torch.zeros_like(maps)
        copy[:, :, ::2] = maps[:, :, ::2]
        copy[:, :, 1::2] = maps[:, :, 1::2]
        return copy


class Antialiased(nn.Module):
    """Interpolation whose window grows with the step."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=(7, 9), mode="bilinear", antialias=True)


class OwnWeights(nn.Module):
    """A convolution whose weights are made from all of the image."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, 1 + maps.mean((2, 3))[:, :, None, None].expand(-1, -1, 2, 2))


class Shifted(nn.Module):
    """A map and the same map moved by a cell."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.roll(maps, 1, 3)


def outputs_of_children(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What comes out of each child, as activation maps."""
    outputs = []
    for module in network.children():
        images = module(images)
        outputs.append(images if images.dim() == 4 else images[..., None, None])
    return outputs


def receptive_fields(network: nn.Module, size: tuple[int, int]) -> list[ReceptiveFields]:
    """The receptive fields of each child's output; every operator has a rule."""
    mode, images = DependencyMode(), torch.zeros(1, 3, *size, dtype=torch.float64)
    with torch.no_grad(), mode:
        mode.start(images)
        bounds = [mode.bounds_of(maps) for maps in outputs_of_children(network.double(), images)]
    assert not mode.unknown_operators
    return [ReceptiveFields.from_bounds(b, *size) for b in bounds]


def assert_fields_are_exact(network: nn.Module, size: tuple[int, int], base: float = 0.0) -> None:
    network = make_transparent(network)
    moving = moving_rows_and_columns(network, outputs_of_children, size, base)
    for fields, *lines in zip(receptive_fields(network, size), *moving, strict=True):
        assert_boxes_equal(fields, lines, size)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CHAINS)
def test_fields_are_what_perturbation_finds(name: str) -> None:
    assert_fields_are_exact(CHAINS[name](), (29, 22))


@pytest.mark.parametrize(
    "network",
    [lambda: nn.Sequential(SqueezeExcitation()), lambda: nn.Sequential(Branches(), nn.LocalResponseNorm(3), nn.Conv2d(8, 4, 3))],
    ids=["squeezed and excited", "normalised across units"],
)
def test_what_multiplies_maps_counts(network: Callable[[], nn.Module]) -> None:
    assert_fields_are_exact(network(), (15, 12), base=0.1)  # nothing times a gate would not move


def test_weights_made_of_the_images_make_every_cell_see_them() -> None:
    _, convolved = receptive_fields(nn.Sequential(nn.Conv2d(3, 4, 3), OwnWeights()), (9, 7))
    assert {convolved.box(0, y, x) for y in range(6) for x in range(4)} == {Box(0, 0, 9, 7)}


@st.composite
def windows(draw: st.DrawFn) -> nn.Module:
    """A convolution or pooling with any geometry."""
    kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["convolution", "max", "average", "transposed"]))
    if kind == "convolution":
        return nn.Conv2d(3, 3, kernel, stride, draw(st.integers(0, 4)), dilation)
    if kind == "transposed":
        return nn.ConvTranspose2d(3, 3, kernel, stride, draw(st.integers(0, 2)), dilation=dilation)
    ceil_mode, padding = draw(st.booleans()), draw(st.integers(0, kernel // 2))
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil_mode)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(windows(), min_size=1, max_size=4), st.integers(5, 19), st.integers(5, 19))
def test_fields_of_any_chain_are_what_perturbation_finds(chain: list[nn.Module], height: int, width: int) -> None:
    network = nn.Sequential(*chain)
    try:
        outputs_of_children(network.double(), torch.zeros(1, 3, height, width, dtype=torch.float64))
    except RuntimeError:
        assume(False)  # the map became smaller than a window
    assert_fields_are_exact(network, (height, width))


def test_unclipped_boxes_count_the_padding() -> None:
    first, second = receptive_fields(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, stride=2, padding=2)), (9, 9)
    )
    assert first.box(0, 0, 0) == Box(-1, -1, 2, 2)
    assert second.box(0, 0, 0) == Box(-3, -3, 4, 4)
    assert second.box(0, 4, 2) == Box(5, 1, 12, 8)
    assert second.middle_size() == (7, 7)


def test_a_global_operation_sees_the_input_and_no_padding() -> None:
    _, pooled = receptive_fields(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)), (9, 7))
    assert pooled.box(0, 0, 0) == Box(0, 0, 9, 7)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), {"max_unpool2d"}),
        (lambda x: x.index_add(3, x[0, 0, 0].long(), x), {"index_add"}),
        (lambda x: torch.fft.rfft(x).abs().softmax(-1), set()),
        (lambda x: F.max_unpool2d(torch.zeros_like(x), torch.zeros_like(x).long(), 2) + 1, set()),
    ],
    ids=["unpooled", "added by the image", "all of a row, by rules", "nothing of the image"],
)
def test_operators_that_take_everything_for_want_of_a_rule_are_named(
    function: Callable[[Tensor], Tensor], names: set[str]
) -> None:
    mode, images = DependencyMode(), torch.rand(1, 3, 8, 6, dtype=torch.float64)
    with torch.no_grad(), mode:
        mode.start(images)
        bounds = mode.bounds_of(function(images))
    assert mode.unknown_operators.keys() == names
    if names:
        assert ReceptiveFields.from_bounds(bounds, 8, 6).box(0, 3, 3) == Box(0, 0, 8, 6)


class InferenceMode(nn.Module):
    """Part of a network that enters inference mode."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self.part(images)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CHAINS)
def test_fields_in_inference_mode_are_the_same(name: str) -> None:
    network = CHAINS[name]()
    expected = receptive_fields(network, (29, 22))
    whole = nn.Sequential(*map(InferenceMode, network))
    all_but_first = nn.Sequential(network[0], *map(InferenceMode, network[1:]))
    for entering in (whole, all_but_first):
        for fields, expected_fields in zip(receptive_fields(entering, (29, 22)), expected, strict=True):
            np.testing.assert_array_equal(fields.rows, expected_fields.rows)
            np.testing.assert_array_equal(fields.columns, expected_fields.columns)


def test_writing_outside_inference_mode_into_what_was_made_in_it_is_followed() -> None:
    class PartlyInInferenceMode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)

        def forward(self, images: Tensor) -> Tensor:
            maps = torch.zeros_like(images)
            with torch.inference_mode():
                wide = self.second(images)
                maps[:, :, 1::2] = wide[:, :, 1::2]
            maps[:, :, ::2] += self.first(images)[:, :, ::2]
            return maps

    assert_fields_are_exact(nn.Sequential(PartlyInInferenceMode(), nn.Conv2d(3, 3, 1)), (9, 8))


def test_cells_of_one_layer_stand_a_stride_apart() -> None:
    (fields,) = receptive_fields(nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1)), (29, 22))
    np.testing.assert_array_equal(fields.centres_y, np.arange(8) * 4 + 0.5)
    np.testing.assert_array_equal(fields.centres_x, np.arange(6) * 4 + 0.5)


class TokensInWindows(nn.Module):
    """Tokens that are normed, cut into windows and put back: what they depend on is followed number by number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.tokens = nn.Conv2d(3, 12, 3, padding=1), nn.LayerNorm(12), nn.Linear(12, 9)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.first(images).flatten(2).transpose(1, 2))
        windows = tokens.view(-1, 2, 4, 2, 4, 12).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 12)
        return self.tokens(windows)


def test_fields_take_no_memory_for_units_that_have_the_same() -> None:
    network = TokensInWindows()
    for layer in trace(network, torch.zeros(1, 3, 8, 8)).layers:
        fields = layer.receptive_fields
        assert fields.rows.shape[1] == fields.columns.shape[1] == 1
        assert fields.rows.shape[3] == fields.columns.shape[2] == 1
