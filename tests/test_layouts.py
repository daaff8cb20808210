"""Which axes of an output hold images, units, rows and columns."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import assert_bounds_hold
from read_maps import read_maps
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from unitscope.errors import LayoutError
from unitscope.layers import choose_layers, trace
from unitscope.records import Box


class OneByOne(nn.Module):
    """A convolution that is called for every image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(3, 2, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.cat([self.convolution(image[None]) for image in images]))


class OneAProposal(nn.Module):
    """A linear layer on the cells whose value is high, of which every image has another number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.proposals = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.first(images).permute(0, 2, 3, 1).flatten(0, 2)
        values = cells[:, 0]
        return self.proposals(cells[values >= values.mean() + values.std() - 1e-6]).sum()


class AlwaysFourProposals(nn.Module):
    """A detector's head on the four best of all boxes: none of three images that are tried has fewer, but another one may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.proposals = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        rows = []
        for scores in maps.flatten(2).transpose(1, 2):
            corners = scores[:, :2].sigmoid()
            kept = nms(torch.cat([corners, corners + 0.1], 1), scores[:, 0], 0.99)[:4]
            gathered = torch.zeros(4, 4)
            gathered[torch.arange(4)] = scores[kept]
            rows.append(gathered)
        return self.proposals(torch.cat(rows)).sum() + maps.sum()


class Averages(nn.Module):
    """A linear layer on the mean of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mean = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.mean(maps.mean((0, 2, 3))[None])


@pytest.mark.parametrize(
    ("network", "layer", "reason"),
    [
        (OneByOne(), "convolution", r"has shape \(1, 2, 8, 8\) for one image and for two, so it has no dimension of images"),
        (Averages(), "mean", r"has shape \(1, 5\) for one image and for two"),
        (OneAProposal(), "proposals", "it runs on what 'index' selected in the image"),
        (AlwaysFourProposals(), "proposals", "it runs on what 'torchvision::nms' selected in the image"),
    ],
)
def test_a_layer_that_holds_no_image_of_its_own_is_left_out(network: nn.Module, layer: str, reason: str) -> None:
    traced = trace(network, torch.zeros(1, 3, 8, 8))
    with pytest.raises(
        LayoutError, match=rf"{layer!r}.*{reason}.*Layers that can be: --layers '\w+'.*\(layers=\[.*\] in Python\)"
    ):
        choose_layers(traced, [layer])
    with pytest.warns(UserWarning, match=f"{layer!r}.* is left out, since it can't be scanned.*{reason}"):
        assert layer not in [chosen.name for chosen in choose_layers(traced)]
    with pytest.warns(UserWarning, match=f"{layer!r}.* is left out"):
        assert layer not in [chosen.name for chosen in choose_layers(traced, ["*"])]


class Experts(nn.Module):
    """A mixture of experts: each token is sent to one of two linear layers, by what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts = nn.Conv2d(3, 4, 2, stride=2), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(images).flatten(2).transpose(1, 2)
        flat = tokens.flatten(0, 1)
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where((flat[:, 0] > 0) == bool(number))
            mixed[chosen] = expert(flat[chosen])
        return self.last(mixed.view_as(tokens))


def test_behind_experts_that_get_some_of_the_tokens_layers_are_read() -> None:
    traced = trace(Experts(), torch.zeros(1, 3, 8, 8))
    assert [layer.name for layer in traced.layers] == ["first", "last"]
    reasons = {layer.name: layer.reason for layer in traced.unreadable}
    assert reasons.keys() == {"experts.0", "experts.1"}
    assert any(
        "it runs on what 'nonzero' selected in the image" in reason for reason in reasons.values()
    )  # the other got no token


class Masked(nn.Module):
    """What is negative is set by a mask, which leaves every shape as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        maps[maps < 0] = 0
        return self.last(maps)


def test_what_a_mask_changes_in_place_keeps_its_shape_and_is_read() -> None:
    assert [layer.name for layer in trace(Masked(), torch.zeros(1, 3, 8, 8)).layers] == ["first", "last"]


def test_the_layers_that_an_error_names_can_be_scanned() -> None:
    traced = trace(OneByOne(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(LayoutError) as caught:
        choose_layers(traced, ["convolution"])
    names = re.findall(r"'(\w+)'", str(caught.value).partition("--layers")[2].partition("(")[0])
    assert [layer.name for layer in choose_layers(traced, names)] == names


class Tokens(nn.Module):
    """A layer of tokens, (image, token, unit), behind one of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.first(images).flatten(2).transpose(1, 2))


class Transposed(nn.Module):
    """Maps whose rows and columns are swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).transpose(2, 3))


def test_maps_that_are_transposed_are_transposed_back() -> None:
    network, images = Transposed(), torch.randn(2, 3, 8, 6)
    (layer,) = choose_layers(trace(network, images[:1]), ["last"])
    with torch.no_grad():
        expected = network.last(network.first(images))
    torch.testing.assert_close(read_maps(network, images, ["last"])["last"], expected)
    assert layer.receptive_fields.box(0, 3, 1) == Box(6, 2, 8, 4)


class ChannelsLast(nn.Module):
    """Maps of shape (image, y, x, unit)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.last(self.first(images).permute(0, 2, 3, 1)))


class ClassToken(nn.Module):
    """Tokens of (image, token, unit) with a class token before them, or one at each end."""

    def __init__(self, behind: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)
        self.token, self.act, self.behind = nn.Parameter(torch.full((1, 1, 4), 99.0)), nn.GELU(), behind

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(images).flatten(2).transpose(1, 2)
        class_tokens = [self.token.expand(len(images), -1, -1)]
        return self.act(self.last(torch.cat([*class_tokens, tokens, *(class_tokens if self.behind else [])], 1)))


@pytest.mark.parametrize("network", [ChannelsLast(), Tokens(), ClassToken(), ClassToken(behind=True)])
def test_units_are_last_and_tokens_stand_at_their_cells(network: nn.Module) -> None:
    """Maps and fields are those of the same network with its linear layer as a convolution of one pixel."""
    images = torch.randn(2, 3, 8, 6)
    layers = choose_layers(trace(network, images[:1]))
    last = network.last if hasattr(network, "last") else network.tokens
    with torch.no_grad():
        expected = torch.einsum("nchw,uc->nuhw", network.first(images), last.weight) + last.bias[:, None, None]
    maps_by_name = read_maps(network, images, [layer.name for layer in layers])
    assert len(layers) > 1
    for layer in layers[1:]:
        torch.testing.assert_close(maps_by_name[layer.name], expected)
        assert (layer.layer.units, layer.layer.map_height, layer.layer.map_width) == (5, 4, 3)
        assert (layer.layer.receptive_field_height, layer.layer.stride_y) == (2, 2)
        assert layer.receptive_fields.box(3, 1, 2) == Box(2, 4, 4, 6)


def linear_then(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Maps of 24 units, made by a linear layer, of shape (image, y, x, unit), and what a function makes of them."""
    units_last = FunctionModule(lambda maps: maps.permute(0, 2, 3, 1))
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), units_last, nn.Linear(4, 24), FunctionModule(function))


class FunctionModule(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps)


def windows(maps: Tensor) -> Tensor:
    """(image, y, x, unit) as (image, window, token, unit), in windows of two by two."""
    n, height, width, units = maps.shape
    return maps.reshape(n, height // 2, 2, width // 2, 2, units).transpose(2, 3).reshape(n, -1, 4, units)


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, int]]] = {
    "units last, one cell": (lambda maps: maps.mean((1, 2), keepdim=True), (24, 1, 1)),
    "units last, one cell, as tokens": (lambda maps: maps.mean((1, 2))[:, None], (24, 1, 1)),
    "units first, one cell": (lambda maps: maps.mean((1, 2))[..., None, None], (24, 1, 1)),
    "units last": (lambda maps: maps.contiguous(), (24, 4, 4)),
    "units first": (lambda maps: maps.permute(0, 3, 1, 2), (24, 4, 4)),
    "units between": (lambda maps: maps.permute(0, 1, 3, 2), (24, 4, 4)),
    "rows of means": (lambda maps: maps.mean(2, keepdim=True), (24, 4, 1)),
    "columns of means, as tokens": (lambda maps: maps.mean(1), (24, 1, 4)),
    "windows": (windows, (24, 4, 4)),
    "windows, units first": (lambda maps: windows(maps).permute(0, 3, 1, 2), (24, 4, 4)),
    "windows of units in two parts, joined": (lambda maps: windows(maps).unflatten(3, (2, 12)).flatten(3), (24, 4, 4)),
    "tokens, units first": (lambda maps: maps.flatten(1, 2).transpose(1, 2), (24, 4, 4)),
    "pixels shuffled": (lambda maps: torch.pixel_shuffle(maps.permute(0, 3, 1, 2), 2), (6, 8, 8)),
    "cells shuffled into units": (lambda maps: torch.pixel_unshuffle(maps.permute(0, 3, 1, 2), 2), (96, 2, 2)),
    "the highest of groups of units": (lambda maps: maps.unflatten(3, (6, 4)).amax(4), (6, 4, 4)),
    "weighed by a gate of other units": (lambda maps: maps * maps.mean((1, 2), keepdim=True).flip(3), (24, 4, 4)),
    "enlarged": (lambda maps: F.interpolate(maps.permute(0, 3, 1, 2), scale_factor=2).flatten(2).mT, (24, 8, 8)),
    "convolved, as tokens": (
        lambda maps: F.conv2d(maps.permute(0, 3, 1, 2), maps.new_ones(5, 24, 3, 3), padding=1).flatten(2).mT,
        (5, 4, 4),
    ),
    "spread, as tokens": (
        lambda maps: F.conv_transpose2d(maps.permute(0, 3, 1, 2), maps.new_ones(24, 5, 2, 2), stride=2).flatten(2).mT,
        (5, 8, 8),
    ),
    "attended": (lambda maps: (maps.flatten(1, 2) @ maps.flatten(1, 2).mT).softmax(-1) @ maps.flatten(1, 2), (24, 4, 4)),
    "attended, fused": (lambda maps: F.scaled_dot_product_attention(*[maps.flatten(1, 2)[:, None]] * 3)[:, 0], (24, 4, 4)),
    "added to what was attended from elsewhere": (
        lambda maps: maps + maps.flatten(1, 2)[:, :1, None].expand(-1, 4, 4, -1),
        (24, 4, 4),
    ),
    "added to itself, moved": (lambda maps: maps + maps.roll(1, 2), (24, 4, 4)),
    "one unit": (lambda maps: maps[..., :1].permute(0, 3, 1, 2), (1, 4, 4)),
    "one unit of tokens": (lambda maps: maps[..., :1].flatten(1, 2), (1, 4, 4)),
    "one unit that all make": (lambda maps: maps.mean(3)[:, None], (1, 4, 4)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_units_are_followed_from_what_made_them(name: str) -> None:
    function, shape = SHAPES[name]
    network, images = linear_then(function), torch.randn(2, 3, 8, 8)
    (layer,) = choose_layers(trace(network, images[:1]), ["3"])
    assert (layer.layer.units, layer.layer.map_height, layer.layer.map_width) == shape
    maps = read_maps(network, images, ["3"])["3"]
    with torch.no_grad():
        linear, output = network[:3](images), network(images)
    assert_same_numbers(maps, output)
    if shape == (24, 4, 4) and holds_same_numbers(output, linear):  # the function only moves what the linear layer gives
        torch.testing.assert_close(maps, linear.permute(0, 3, 1, 2))


def heads(maps: Tensor) -> Tensor:
    """(image, y, x, unit) as (image, head, token, unit of the head)."""
    return maps.flatten(1, 2).unflatten(2, (4, 6)).transpose(1, 2)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "heads": heads,
    "heads and images together": lambda maps: heads(maps).flatten(0, 1),
    "images within heads": lambda maps: heads(maps).transpose(0, 1).flatten(0, 1),
    "heads behind the units of a head": lambda maps: heads(maps).permute(0, 3, 1, 2),
    "queries, keys and values": lambda maps: maps.flatten(1, 2).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4),
    "images between": lambda maps: maps.flatten(1, 2).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).flatten(0, 2),
    "windows and images together": lambda maps: windows(maps).flatten(0, 1),
    "images within windows": lambda maps: windows(maps).transpose(0, 1).flatten(0, 1),
    "heads of windows": lambda maps: windows(maps).flatten(0, 1).unflatten(2, (4, 6)).transpose(1, 2),
    "tokens first": lambda maps: maps.flatten(1, 2).transpose(0, 1),
    "tokens and images together": lambda maps: maps.flatten(0, 2),
    "images within tokens": lambda maps: maps.flatten(1, 2).transpose(0, 1).flatten(0, 1),
    "images last": lambda maps: maps.permute(1, 2, 3, 0),
    "five dimensions": lambda maps: maps[:, None],
    "a place for a class token in front": lambda maps: F.pad(maps.flatten(1, 2), (0, 0, 1, 0)),
    "places at both ends, of heads": lambda maps: F.pad(heads(maps), (0, 0, 2, 1)),
    "rows and columns apart": lambda maps: maps.permute(0, 2, 3, 1)[:, :, None],
}
"""Ways to move what a linear layer gives; the maps are the same."""


@pytest.mark.parametrize("name", MOVED)
def test_whatever_moves_numbers_the_maps_are_those_of_the_layer_that_made_them(name: str) -> None:
    network, images = linear_then(MOVED[name]), torch.randn(3, 3, 8, 8)
    made, moved = choose_layers(trace(network, images[:1]), ["2", "3"])
    maps = read_maps(network, images, ["2", "3"])
    torch.testing.assert_close(maps["3"], maps["2"])
    assert maps["3"].shape == (3, 24, 4, 4)
    assert [moved.receptive_fields.box(5, y, x) for y in range(4) for x in range(4)] == [
        made.receptive_fields.box(5, y, x) for y in range(4) for x in range(4)
    ]


MADE_OF_SEVERAL_CELLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, int]]] = {
    "some tokens are missing": (lambda maps: maps.flatten(1, 2)[:, 1:14:2], (24, 1, 7)),
    "tokens are mixed, as by a linear layer over them": (lambda maps: maps.flatten(1, 2).mT @ maps.new_ones(16, 9), (24, 1, 9)),
    "means of windows": (lambda maps: windows(maps).mean(2), (24, 2, 2)),
    "means of one cell of every window": (lambda maps: windows(maps).mean(1), (24, 1, 4)),
    "means of windows, of heads": (lambda maps: windows(maps).mean(2).unflatten(2, (4, 6)), (24, 2, 2)),
    "one cell, of heads": (lambda maps: maps.mean((1, 2)).unflatten(1, (1, 4, 6)), (24, 1, 1)),
    "products of tokens": (lambda maps: maps.flatten(1, 2) @ maps.flatten(1, 2).mT, (16, 4, 4)),
    "products of units": (lambda maps: maps.flatten(1, 2).softmax(1).mT @ maps.flatten(1, 2), (576, 1, 1)),
    "one unit of tokens": (lambda maps: maps.mean(3).flatten(1), (1, 4, 4)),
    "the highest units, whichever they are": (lambda maps: maps.topk(3).values.mean((1, 2)), (3, 1, 1)),
}


@pytest.mark.parametrize("name", MADE_OF_SEVERAL_CELLS)
def test_what_is_made_of_several_cells_is_read(name: str) -> None:
    """In rows and columns or, where nothing tells them, in one row; each with the field that a change of any row or column of the input finds."""
    function, shape = MADE_OF_SEVERAL_CELLS[name]
    network, images = linear_then(function).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    (layer,) = choose_layers(trace(network, images[:1]), ["3"])
    assert (layer.layer.units, layer.layer.map_height, layer.layer.map_width) == shape
    maps = read_maps(network, images, ["3"])["3"]
    with torch.no_grad():
        assert_same_numbers(maps, network(images))

    def numbers(image: Tensor) -> Tensor:
        return layer.layout.maps(network(image)).flatten()

    fields = layer.receptive_fields
    intervals = [np.broadcast_to(axis, (2, *shape)).reshape(2, -1) for axis in (fields.rows, fields.columns)]
    assert_bounds_hold(numbers, images.split(1), intervals, minimal=name != "the highest units, whichever they are")


def assert_same_numbers(maps: Tensor, output: Tensor) -> None:
    assert maps.shape[0] == output.shape[0]
    torch.testing.assert_close(maps.flatten(1).sort().values, output.flatten(1).sort().values)


def holds_same_numbers(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.flatten().sort().values, second.flatten().sort().values)


def test_a_convolution_says_anew_where_units_and_rows_are() -> None:
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 48),
        FunctionModule(lambda x: x.unflatten(1, (3, 4, 4))),
        nn.ConvTranspose2d(3, 5, 2, stride=2),
    )
    traced = trace(network, torch.zeros(1, 3, 8, 8))
    (last,) = choose_layers(traced, ["3"])
    assert (last.layer.units, last.layer.map_height, last.layer.map_width) == (5, 8, 8)
    assert last.receptive_fields.box(0, 0, 0) == Box(0, 0, 8, 8)
    (unflattened,) = choose_layers(traced, ["2"])
    assert (unflattened.layer.units, unflattened.layer.map_height, unflattened.layer.map_width) == (48, 1, 1)


class Blocks(nn.Module):
    """Maps of 8 x 8 cells as 4 x 4 blocks of four cells, (image, block, cell, unit), reduced along one of the two."""

    def __init__(self, reduced_dim: int, mean: bool) -> None:
        super().__init__()
        self.first, self.tokens = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 5)
        self.reduced_dim, self.mean = reduced_dim, mean

    def forward(self, images: Tensor) -> Tensor:
        blocks = (
            self.first(images).unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        )
        reduced = blocks.mean(self.reduced_dim) if self.mean else blocks.amax(self.reduced_dim)
        return self.tokens(reduced)


@pytest.mark.parametrize("mean", [False, True])
def test_blocks_that_are_pooled_stand_where_they_are(mean: bool) -> None:
    (layer,) = [layer for layer in trace(Blocks(2, mean), torch.zeros(1, 3, 16, 16)).layers if layer.name == "tokens"]
    assert layer.layout.is_spatial
    assert (layer.layer.map_height, layer.layer.map_width) == (4, 4)
    assert layer.receptive_fields.box(0, 1, 3) == Box(4, 12, 8, 16)


@pytest.mark.parametrize("mean", [False, True])
def test_what_is_made_of_one_cell_of_every_block_stands_nowhere(mean: bool) -> None:
    (layer,) = [layer for layer in trace(Blocks(1, mean), torch.zeros(1, 3, 16, 16)).layers if layer.name == "tokens"]
    assert not layer.layout.is_spatial
    assert (layer.layer.map_height, layer.layer.map_width) == (1, 4)
    assert layer.receptive_fields.box(0, 0, 3).clipped(16, 16) == Box(2, 2, 16, 16)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.mT).softmax(-1) @ values


class WindowsWithGlobalQueries(nn.Module):
    """Every window of two by two tokens is asked the same four queries, which are of the whole image (GCViT, Hatamizadeh et al. 2023)."""

    def __init__(self, fused: bool, heads: int, batched: bool) -> None:
        super().__init__()
        self.first, self.project = nn.Conv2d(3, 24, 2, stride=2), nn.Linear(24, 24)
        self.fused, self.heads, self.batched = fused, heads, batched

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        queries = F.adaptive_avg_pool2d(maps, 2).flatten(2).mT[:, None].repeat(1, 4, 1, 1)
        keys = windows(maps.permute(0, 2, 3, 1))
        count = len(images)
        if self.batched:
            queries, keys = queries.flatten(0, 1), keys.flatten(0, 1)
        queries, keys = (tokens.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for tokens in (queries, keys))
        attend = F.scaled_dot_product_attention if self.fused else attention
        projected = self.project(attend(queries, keys, keys).transpose(-2, -3).flatten(-2))
        return projected.reshape(count, 2, 2, 2, 2, 24).transpose(2, 3).reshape(count, 4, 4, 24).permute(0, 3, 1, 2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("batched", [False, True])
def test_queries_of_the_whole_image_stand_in_every_window(fused: bool, heads: int, batched: bool) -> None:
    network, images = WindowsWithGlobalQueries(fused, heads, batched).eval(), torch.randn(3, 3, 8, 8)
    maps = read_maps(network, images, ["project"])["project"]
    with torch.no_grad():
        torch.testing.assert_close(maps, network(images))


class WindowsWithLearnedQueries(nn.Module):
    """Every window of two by two tokens is asked queries that are weights."""

    def __init__(self, fused: bool, queries: int) -> None:
        super().__init__()
        self.first, self.project = nn.Conv2d(3, 24, 2, stride=2), nn.Linear(24, 24)
        self.queries, self.fused = nn.Parameter(torch.randn(1, 1, queries, 24)), fused

    def forward(self, images: Tensor) -> Tensor:
        keys = windows(self.first(images).permute(0, 2, 3, 1))
        attend = F.scaled_dot_product_attention if self.fused else attention
        return self.project(attend(self.queries.expand(len(images), 4, -1, -1), keys, keys))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
def test_learned_queries_of_windows_are_read(fused: bool, queries: int) -> None:
    network, images = WindowsWithLearnedQueries(fused, queries).eval(), torch.randn(3, 3, 8, 8)
    maps = read_maps(network, images, ["project"])["project"]
    with torch.no_grad():
        assert_same_numbers(maps, network(images))
    assert maps.shape[:2] == (3, 24)


class HeadsThatSharePooling(nn.Module):
    """A depthwise convolution pools the maps of each head, with the same filters for all of them (MViTv2, Li et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 24, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, images: Tensor) -> Tensor:
        heads = self.first(images).unflatten(1, (4, 6))
        return self.pool(heads.flatten(0, 1))


def test_heads_that_share_filters_have_their_units_one_after_the_other() -> None:
    network, images = HeadsThatSharePooling().eval(), torch.randn(3, 3, 8, 8)
    maps = read_maps(network, images, ["pool"])["pool"]
    with torch.no_grad():
        torch.testing.assert_close(maps, network(images).unflatten(0, (3, 4)).flatten(1, 2))
