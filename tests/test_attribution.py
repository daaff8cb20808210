"""Projections down to pixels: against captum where captum is right, by hand where it isn't, and in every batch the same."""

import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from captum.attr import NeuronDeconvolution, NeuronGuidedBackprop, NeuronIntegratedGradients, Occlusion
from networks import NormsBeforeTokens, Reused, small_network
from photographs import write_photographs
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models import VisionTransformer

import unitscope
from unitscope.atlas import Atlas
from unitscope.atlas.attribution_images import Attribution, decode_attribution, encode_attribution
from unitscope.atlas.tables import ATTRIBUTION_METHODS
from unitscope.attribution import METHODS, attribute
from unitscope.attribution.methods import ActivationMethod, BatchAttribution, Method, TargetCells
from unitscope.attribution.rectifiers import deconvnet, guided_backprop, rectifiers
from unitscope.attribution.store import AttributionStore
from unitscope.attribution.windows import WindowGrid, choose_grid, peak_windows, window_batches
from unitscope.errors import AtlasError, LayerNotFound, NetworkError, UnitscopeError
from unitscope.experiments import occlude
from unitscope.layers import trace
from unitscope.records import Box, Peak, Preprocessing

PREPROCESSING = ("--crop", "40", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25")
AS_IT_IS = Preprocessing(None, (40, 40), (0.5,) * 3, (0.25,) * 3)


def plain_network() -> nn.Sequential:
    """Rectifiers that are modules and called once, so that captum can follow."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 10, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * 3 * 3, 7),
    )
    norm: Any = network[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return network.eval()


def maps_at(network: nn.Sequential, stop: int) -> Any:
    return lambda images: network[:stop](images)


def cells_of(units: list[int], indices: list[int]) -> TargetCells:
    index = torch.tensor(indices)
    return TargetCells(torch.tensor(units), index, index)


def projected(method: Method, maps_of: Any, images: Tensor, cells: TargetCells) -> BatchAttribution:
    return next(iter(method.attribute(maps_of, images, [cells])))


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max(), (
        actual - expected
    ).abs().max() / expected.abs().max()


# ── oracles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 5, 8])
@pytest.mark.parametrize(
    ("name", "captums"),
    [
        ("deconvnet", NeuronDeconvolution),
        ("guided_backprop", NeuronGuidedBackprop),
        ("integrated_gradients", NeuronIntegratedGradients),
    ],
)
def test_projections_are_captums_where_captum_is_right(name: str, captums: Any, stop: int) -> None:
    network = plain_network()
    images = torch.randn(3, 3, 40, 40)
    cells = cells_of([1, 4, 7], [1, 2, 2])
    actual = projected(METHODS[name], maps_at(network, stop), images, cells)
    for index in range(3):
        selector = int(cells.unit[index]), int(cells.y[index]), int(cells.x[index])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = captums(network, network[stop - 1]).attribute(images[index : index + 1].clone(), selector)
        assert_close(actual.pixels[index : index + 1], expected.detach())
        assert actual.values[index] == pytest.approx(network[:stop](images)[(index, *selector)].item(), rel=1e-5)


def test_occlusion_is_captums() -> None:
    network, images, cells = plain_network(), torch.randn(2, 3, 40, 40), cells_of([3, 5], [1, 2])
    actual = projected(METHODS["occlusion"], maps_at(network, 8), images, cells)
    for index in range(2):
        unit, y, x = int(cells.unit[index]), int(cells.y[index]), int(cells.x[index])
        tool = Occlusion(lambda given, unit=unit, y=y, x=x: network[:8](given)[:, unit, y, x])
        expected = tool.attribute(images[index : index + 1], sliding_window_shapes=(3, 5, 5), strides=(3, 2, 2))
        assert_close(actual.pixels[index : index + 1].expand(-1, 3, -1, -1), expected.float(), 1e-4)


def test_the_gradient_is_autograds() -> None:
    network, images = plain_network(), torch.randn(2, 3, 40, 40)
    actual = projected(METHODS["gradient"], maps_at(network, 8), images, cells_of([0, 9], [2, 0]))
    leaf = images.clone().requires_grad_()
    maps = network[:8](leaf)
    (maps[0, 0, 2, 2] + maps[1, 9, 0, 0]).backward()
    assert leaf.grad is not None
    assert_close(actual.pixels, leaf.grad)


NORMS: list[nn.Module] = [
    nn.BatchNorm2d(8).eval(), nn.BatchNorm2d(8, track_running_stats=False), nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True),
    nn.GroupNorm(2, 8),
]  # fmt: skip
RECTIFIED_NORM = nn.Sequential(nn.BatchNorm2d(8).eval(), nn.ReLU(inplace=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("name", "norm"),
    [*((name, norm) for name in ("gradient", "guided_backprop", "deconvnet") for norm in NORMS), ("gradient", RECTIFIED_NORM)],
    ids=str,
)
def test_one_image_alone_has_the_gradient_that_small_changes_of_it_have(name: str, norm: nn.Module, memory_format: Any) -> None:
    """torch's own is wrong behind batch and instance norms (2.14, on a processor); so it is no oracle here."""
    network = NormsBeforeTokens(norm).double()
    image = torch.randn(1, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = image.contiguous(memory_format=memory_format)

    def maps_of(images: Tensor) -> Tensor:
        return network(images).transpose(1, 2).unflatten(2, (12, 12))

    cells = TargetCells(torch.tensor([2]), torch.tensor([4]), torch.tensor([7]))
    pixels = projected(METHODS[name], maps_of, image, cells).pixels[0].double()
    for channel, y, x in [(0, 4, 7), (2, 3, 8), (1, 0, 0), (1, 11, 3)]:
        moved = torch.zeros_like(image)
        moved[0, channel, y, x] = 1e-5
        with torch.no_grad():
            slope = (maps_of(image + moved) - maps_of(image - moved))[0, 2, 4, 7] / 2e-5
        assert float(pixels[channel, y, x]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_integrated_gradients_add_up_to_the_value_less_that_of_the_mean_colour() -> None:
    network, images = plain_network(), torch.randn(2, 3, 40, 40)
    cells = cells_of([2, 6], [1, 1])
    actual = projected(METHODS["integrated_gradients"], maps_at(network, 8), images, cells)
    nothing = cells.values_in(network[:8](torch.zeros_like(images)))
    assert actual.pixels.sum((1, 2, 3)).tolist() == pytest.approx((actual.values - nothing).tolist(), rel=2e-2, abs=1e-3)


class Functional(nn.Module):
    """Two scalings with a rectifier, called as a function, between them."""

    def __init__(self, second: float, rectify: Any = functional.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.first.weight, 2)
        nn.init.constant_(self.second.weight, second)
        self.rectify = rectify

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.rectify(self.first(images)))


@pytest.mark.parametrize(
    "rectify",
    [
        functional.relu, lambda x: functional.relu(x, inplace=True), torch.relu, torch.relu_, functional.relu6,
        lambda x: x.clamp(min=0), lambda x: x.clamp(0, 6), lambda x: torch.clamp_min(x, 0), lambda x: functional.threshold(x, 0, 0),
        lambda x: functional.hardtanh(x, 0, 6, inplace=True),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "pixel", "second", "expected"),
    [
        ("deconvnet", -1.0, 3.0, 6.0),  # rectified is the signal, 3, whatever went forward: 2 * 3
        ("deconvnet", 1.0, -3.0, 0.0),  # the signal is -3
        ("guided_backprop", -1.0, 3.0, 0.0),  # nothing went forward
        ("guided_backprop", 1.0, -3.0, 0.0),
        ("guided_backprop", 1.0, 3.0, 6.0),
        ("gradient", 1.0, -3.0, -6.0),
    ],
)
def test_rectifiers_that_are_no_modules_by_hand(name: str, pixel: float, second: float, expected: float, rectify: Any) -> None:
    network = Functional(second, rectify)
    actual = projected(METHODS[name], network, torch.full((1, 1, 1, 1), pixel), cells_of([0], [0]))
    assert float(actual.pixels) == expected


def test_captum_is_wrong_where_rectifiers_are_functions() -> None:
    network = Functional(3.0)
    pixel = torch.full((1, 1, 1, 1), -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captums = NeuronDeconvolution(network, network.second).attribute(pixel.clone(), (0, 0, 0))
    assert float(captums) == 0
    assert float(projected(METHODS["deconvnet"], network, pixel, cells_of([0], [0])).pixels) == 6


def test_a_rectifier_that_is_called_three_times_counts_three_times() -> None:
    network, images = Reused().eval(), torch.randn(1, 3, 8, 8)
    maps = network(images.clone().requires_grad_())
    assert len(list(rectifiers(maps.grad_fn))) == 3
    first, second, last = network.first, network.second, network.last
    actual = projected(METHODS["deconvnet"], network, images, cells_of([1], [4]))

    signal = torch.zeros(1, 2, 8, 8)
    signal[0, 1, 4, 4] = 1
    signal = functional.conv_transpose2d(signal.clamp(min=0), last.weight)  # through the last rectifier and filter
    signal = signal.clamp(min=0)  # of the sum
    signal = signal + functional.conv_transpose2d(signal, second.weight, padding=1)  # to both its terms
    signal = signal.clamp(min=0)
    scale = network.norm.weight / (network.norm.running_var + network.norm.eps).sqrt()
    expected = functional.conv_transpose2d(signal * scale[:, None, None], first.weight, padding=1)
    assert_close(actual.pixels, expected.detach())


@pytest.mark.parametrize(
    "smooth",
    [
        nn.SiLU(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.Hardswish(),
        nn.Mish(),
        nn.ELU(),
        nn.CELU(),
        nn.SELU(),
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.RReLU().eval(),
        nn.Softplus(),
    ],
)
def test_smooth_activations_rectify_the_signal(smooth: nn.Module) -> None:
    assert (
        float(projected(METHODS["deconvnet"], Functional(3.0, smooth), torch.full((1, 1, 1, 1), -1.0), cells_of([0], [0])).pixels)
        == 6
    )
    assert (
        float(projected(METHODS["deconvnet"], Functional(-3.0, smooth), torch.full((1, 1, 1, 1), 1.0), cells_of([0], [0])).pixels)
        == 0
    )
    rising = float(
        projected(METHODS["guided_backprop"], Functional(3.0, smooth), torch.full((1, 1, 1, 1), 1.0), cells_of([0], [0])).pixels
    )
    assert rising > 0


def test_rules_keep_what_is_no_signal() -> None:
    assert deconvnet((None, None), (torch.ones(1),)) == (None, None)
    assert guided_backprop((None,), (None,)) == (None,)


def test_compiled_parts_are_refused() -> None:
    class Compiled:
        next_functions = ()

        def name(self) -> str:
            return "torch::jit::(anonymous namespace)::DifferentiableGraphBackward"

    with pytest.raises(NetworkError, match=r"part of the network is compiled, .*; give the network as it was before torch\.jit"):
        list(rectifiers(Compiled()))


@pytest.mark.parametrize("compiled", ["jit", "dynamo"])
def test_a_network_that_is_compiled_is_refused(compiled: str) -> None:
    network = plain_network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast: Any = torch.jit.script(network[:6]) if compiled == "jit" else torch.compile(network[:6], backend="aot_eager")
        for _ in range(3):  # the first calls only watch
            maps = fast(torch.randn(1, 3, 40, 40, requires_grad=True))
    with pytest.raises(NetworkError, match="part of the network is compiled"):
        list(rectifiers(maps.grad_fn))


# ── the contract of a method ────────────────────────────────────────────────────────────────────────────────────────


class MethodContract:
    """What every method promises; subclasses name it."""

    name: str

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    def test_it_has_its_name(self) -> None:
        assert self.method.name == self.name

    def test_values_are_those_of_the_cells(self) -> None:
        network, images = plain_network(), torch.randn(3, 3, 40, 40)
        rounds = [cells_of([0, 1, 2], [0, 1, 2]), cells_of([5, 5, 5], [2, 1, 0])]
        maps = network[:8](images)
        for cells, actual in zip(rounds, self.method.attribute(maps_at(network, 8), images, rounds), strict=True):
            torch.testing.assert_close(actual.values, cells.values_in(maps).detach())
            assert actual.pixels.shape[0] == 3
            assert actual.pixels.shape[1] in (1, 3)
            assert not actual.pixels.requires_grad

    @pytest.mark.slow
    def test_rounds_and_batches_change_nothing(self) -> None:
        network, images = plain_network(), torch.randn(3, 3, 40, 40)
        rounds = [cells_of([0, 1, 2], [0, 1, 2]), cells_of([5, 5, 5], [2, 1, 0])]
        together = list(self.method.attribute(maps_at(network, 8), images, rounds))
        for cells, actual in zip(rounds, together, strict=True):
            for index in range(3):
                alone = TargetCells(cells.unit[index : index + 1], cells.y[index : index + 1], cells.x[index : index + 1])
                one = projected(self.method, maps_at(network, 8), images[index : index + 1], alone)
                assert_close(one.pixels[0], actual.pixels[index], 1e-4)

    def test_the_images_stay_as_they_are(self) -> None:
        network, images = small_network().eval(), torch.randn(2, 3, 14, 14)
        before = images.clone()
        projected(self.method, maps_at(network, 4), images, cells_of([0, 1], [0, 1]))
        assert torch.equal(images, before)
        assert images.grad is None
        assert all(parameter.grad is None for parameter in network.parameters())


class TestDeconvnet(MethodContract):
    name = "deconvnet"


class TestGuided(MethodContract):
    name = "guided_backprop"


class TestGradient(MethodContract):
    name = "gradient"


class TestIntegrated(MethodContract):
    name = "integrated_gradients"


class TestOcclusion(MethodContract):
    name = "occlusion"


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def peak_at(image: int, top: int, left: int, size: int) -> Peak:
    return Peak("layer", 0, 1, 1.0, image, 0, 0, top, left, top + size, left + size, 0, 0, 1, 1)


def test_windows_hold_every_field_and_reach_borders_in_whole_steps() -> None:
    for size in (20, 23, 40, 57):
        for step in (1, 2, 4, 8):
            for field in range(1, 18):
                peaks = [peak_at(0, top, top, field) for top in range(-field + 1, size)]
                grid = WindowGrid.smallest((field, field), (step, step), (size, size))
                assert grid.size[0] <= max(field + 2 * step - 2, 1)
                for peak in peaks:
                    top, _ = grid.corner(peak)
                    assert 0 <= top <= size - grid.size[0]
                    assert top % step == 0 or grid.size[0] == size
                    box = peak.box.clipped(size, size)
                    assert top <= box.top
                    assert box.bottom <= top + grid.size[0]
                    assert peak.bottom <= size or top + grid.size[0] == size


def test_the_windows_of_a_batch_have_about_as_many_peaks() -> None:
    peaks = [peak_at(image, 0, 0, 40) for image in range(5) for _ in range(image + 1)]
    grid = WindowGrid.whole_image((40, 40))
    peak_counts = [[len(window.peaks) for window in batch] for batch in window_batches(peaks, grid, 2)]
    assert peak_counts == [[5, 4], [3, 2], [1]]
    assert sum(len(window.peaks) for window in peak_windows(peaks, grid)) == len(peaks)


def test_small_fields_run_in_windows_and_large_ones_on_whole_images() -> None:
    traced = trace(plain_network(), torch.zeros(1, 3, 40, 40)).layers
    few = [peak_at(image, 0, 0, 5) for image in range(4)]
    assert choose_grid(few, traced[:1], (40, 40)).size == (6, 6)
    assert choose_grid([peak_at(0, 0, 0, 40)], traced, (40, 40)).size == (40, 40)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def scanned(folder: Path, network: nn.Module | None = None, count: int = 12) -> tuple[Atlas, nn.Module]:
    network = network or plain_network()
    write_photographs(folder / "photographs", count)
    return unitscope.scan(network, folder / "photographs", folder / "atlas", preprocess=AS_IT_IS, workers=0), network


def input_of(atlas: Atlas, image: int) -> Tensor:
    opened: Any = atlas.open_image(image)
    left, top = (opened.width - 40) // 2, round((opened.height - 40) / 2)
    pixels = np.asarray(opened.crop((left, top, left + 40, top + 40)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.5) / 0.25).permute(2, 0, 1)[None]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_the_table_holds_every_peak_as_it_is_on_the_whole_image(tmp_path: Path, name: str) -> None:
    atlas, network = scanned(tmp_path)
    assert attribute(atlas, name, network) == atlas.table("peaks").num_rows
    layers = {layer.name: layer for layer in atlas.layers}
    modules = dict(network.named_modules())
    fields = {traced.name: traced.receptive_fields for traced in trace(network, torch.zeros(1, 3, 40, 40)).layers}
    for layer in layers.values():
        method = METHODS[name]
        if isinstance(method, ActivationMethod):
            method = replace(method, centres=(fields[layer.name].centres_y, fields[layer.name].centres_x))
        stop = int(layer.name) + (0 if isinstance(modules[layer.name], nn.ReLU) else 1)
        peaks, rows = atlas.peaks(layer.name).to_pylist(), atlas.attributions(name, layer.name).to_pylist()
        assert [(row["unit"], row["rank"]) for row in rows] == [(peak["unit"], peak["rank"]) for peak in peaks]
        for peak, row in list(zip(peaks, rows, strict=True))[::5]:
            given = input_of(atlas, peak["image"])
            cells = TargetCells(torch.tensor([peak["unit"]]), torch.tensor([peak["y"]]), torch.tensor([peak["x"]]))

            def maps(images: Tensor, stop: int = stop) -> Tensor:
                actual = network[:stop](images)
                return actual if actual.dim() == 4 else actual[..., None, None]

            box = slice(row["top"], row["bottom"]), slice(row["left"], row["right"])
            assert (row["top"], row["left"]) == (max(peak["top"], 0), max(peak["left"], 0))
            actual = decode_attribution(row["image"], row["scale"], row["bottom"] - row["top"])
            expected = projected(method, maps, given, cells).pixels[0].numpy()
            assert actual.shape[1:] == expected[:, *box].shape[1:]
            assert np.abs(actual - expected[:, *box]).max() <= (0.51 + 1e-3 * 127) * row["scale"]
            outside = expected.copy()
            outside[:, *box] = 0
            assert (
                name in ("activation", "occlusion") or np.abs(outside).max() <= 1e-6 * np.abs(expected).max()
            )  # squares reach in from outside


class Checkpointed(nn.Module):
    """Two blocks that run as they are, or through one of the ways to spare their memory in training."""

    def __init__(self, checkpointing: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.checkpointing = checkpointing
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        if self.checkpointing == "sequential":
            return checkpoint_sequential([*self.first, *self.second], 3, images, use_reentrant=False)
        if self.checkpointing == "nested":
            return checkpoint(self.inner, images, use_reentrant=False)
        for block in (self.first, self.second):
            images = (
                block(images)
                if self.checkpointing == "plain"
                else checkpoint(block, images, use_reentrant=self.checkpointing == "reentrant")
            )
        return images

    def inner(self, images: Tensor) -> Tensor:
        for block, reentrant in ((self.first, True), (self.second, False)):
            images = checkpoint(block, images, use_reentrant=reentrant)
        return images


def assert_same_projections(atlases: list[Atlas], name: str) -> None:
    """Each value to within a hundredth of its image's largest: one is kept in 127 steps."""
    rows, expected = (pq.read_table(atlas.folder / "tables" / f"{name}.parquet").to_pylist() for atlas in atlases)
    assert rows
    for row, plain in zip(rows, expected, strict=True):
        assert (row["layer"], row["unit"], row["rank"]) == (plain["layer"], plain["unit"], plain["rank"])
        images = (decode_attribution(r["image"], r["scale"], r["bottom"] - r["top"]) for r in (row, plain))
        np.testing.assert_allclose(*images, atol=1.3 * plain["scale"], rtol=0)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # torch's, of every reentrant checkpoint without a gradient
@pytest.mark.parametrize(
    "name",
    ["deconvnet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gradient", "guided_backprop", "integrated_gradients"))],
)
@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant", "sequential", "nested"])
def test_checkpoints_of_the_training_change_no_projection(tmp_path: Path, checkpointing: str, name: str) -> None:
    atlases = []
    for folder, network in (("plain", Checkpointed("plain")), ("checkpointed", Checkpointed(checkpointing))):
        atlas, _ = scanned(tmp_path / folder, network, count=4)
        attribute(atlas, name, network)
        atlases.append(atlas)
    assert_same_projections(atlases, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_libraries_own_checkpoints_change_no_projection(tmp_path: Path, library: str) -> None:
    import timm
    from torchvision.models import DenseNet

    atlases = []
    for spared in (False, True):
        torch.manual_seed(0)
        if library == "timm":
            network: Any = timm.create_model("resnet10t", num_classes=5)
            network.set_grad_checkpointing(spared)
        else:
            network = DenseNet(4, (2, 2), 8, memory_efficient=spared)
        atlas, _ = scanned(tmp_path / str(spared), network, count=3)
        layers = [layer.name for layer in atlas.layers][-4:]
        attribute(atlas, "deconvnet", network, layers=layers, units=[0, 1])
        atlases.append(atlas)
    assert_same_projections(atlases, "deconvnet")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_training_checkpoints_as_before_afterwards(tmp_path: Path) -> None:
    network = Checkpointed("reentrant")
    atlas, _ = scanned(tmp_path, network, count=2)
    attribute(atlas, "deconvnet", network, layers=["second.3"])
    maps = network(torch.randn(2, 3, 40, 40, requires_grad=True))
    assert "CheckpointFunction" in type(maps.grad_fn).__name__
    maps.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient", "guided_backprop"])
def test_a_transformer_gives_its_tokens_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(image_size=40, patch_size=10, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=12).eval()
    atlas, _ = scanned(tmp_path, network)
    layer = next(layer.name for layer in atlas.layers if "encoder_layer_1.mlp" in layer.name)
    attribute(atlas, name, network, layers=[layer], units=[2])
    linear: Any = network.get_submodule("encoder.layers.encoder_layer_1.mlp.0")
    held: list[Tensor] = []
    linear.register_forward_hook(lambda module, given, output: held.append(output))
    rows = atlas.attributions(name, layer, 2).to_pylist()
    peaks = atlas.peaks(layer, 2).to_pylist()
    assert len(rows) == len(peaks) == atlas.k
    for row, peak in zip(rows, peaks, strict=True):
        images = input_of(atlas, peak["image"]).requires_grad_()
        network(images)
        value = held[-1][0, 1 + peak["y"] * 4 + peak["x"], 2]  # a token for the class comes first
        assert value.item() == pytest.approx(peak["value"], rel=1e-4)
        if name == "gradient":
            expected = torch.autograd.grad(value, images)[0][0].numpy()
            actual = decode_attribution(row["image"], row["scale"], 40)
            assert np.abs(actual - expected).max() <= 0.51 * row["scale"] + 1e-5 * np.abs(expected).max()


def test_pixels_and_scale_give_values_back() -> None:
    for channels in (1, 2, 3, 5):
        values = np.random.default_rng(0).normal(size=(channels, 6, 9)).astype(np.float32)
        image, scale = encode_attribution(values)
        assert np.abs(decode_attribution(image, scale, 6) - values).max() <= scale / 2 * 1.001
    image, scale = encode_attribution(np.zeros((3, 2, 2), dtype=np.float32))
    assert scale == 0
    assert not decode_attribution(image, scale, 2).any()


def test_chosen_units_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    assert attribute(atlas, "deconvnet", network, layers=["5"], units=[3, 1]) == 18
    first = atlas.attributions("deconvnet", "5", unit=3)
    assert attribute(atlas, "deconvnet", network, layers=["5"], units=[1, 2]) == 9
    assert attribute(atlas, "deconvnet", network, layers=["5"], units=[1, 2]) == 0
    assert atlas.attributions("deconvnet", "5")["unit"].to_pylist() == [1] * 9 + [2] * 9 + [3] * 9
    assert atlas.attributions("deconvnet", "5", unit=3).equals(first)
    assert atlas.methods == ["deconvnet"]
    assert atlas.attributed("deconvnet") == {("5", 1), ("5", 2), ("5", 3)}
    assert [path.name for path in (atlas.folder / "tables").iterdir()] == ["deconvnet.parquet"]


def test_a_network_that_isnt_the_same_everywhere_runs_on_whole_images(tmp_path: Path) -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, 4, 3)
            self.place = nn.Parameter(torch.linspace(0, 3, 38)[:, None].expand(38, 38).clone())
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.convolution(images).relu()
            height, width = maps.shape[2:]
            return self.last(maps * self.place[:height, :width])

    atlas, network = scanned(tmp_path, Placed())
    attribute(atlas, "gradient", network)
    peaks, rows = atlas.peaks("last").to_pylist(), atlas.attributions("gradient", "last").to_pylist()
    for peak, row in zip(peaks, rows, strict=True):
        cells = TargetCells(torch.tensor([peak["unit"]]), torch.tensor([peak["y"]]), torch.tensor([peak["x"]]))
        expected = projected(METHODS["gradient"], network, input_of(atlas, peak["image"]), cells).pixels[0].numpy()
        box = slice(row["top"], row["bottom"]), slice(row["left"], row["right"])
        actual = decode_attribution(row["image"], row["scale"], row["bottom"] - row["top"])
        assert np.abs(actual - expected[:, *box]).max() <= 0.52 * row["scale"]


def test_a_network_that_minds_its_inputs_size_runs_on_whole_images(tmp_path: Path) -> None:
    class Minds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.relu, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2:] == (40, 40)
            return self.last(self.relu(self.convolution(images)))

    atlas, network = scanned(tmp_path, Minds())
    assert attribute(atlas, "deconvnet", network) == atlas.table("peaks").num_rows


def test_pieces_that_were_left_with_gaps_lose_nothing(tmp_path: Path) -> None:
    atlas, _ = scanned(tmp_path)
    with AttributionStore(atlas, "gradient", piece_every_s=0).locked() as store:
        for unit in range(4):
            store.add(
                Attribution("5", unit, 1, Box(0, 0, 2, 2), *encode_attribution(np.ones((3, 2, 2), dtype=np.float32) * unit))
            )
        pieces = sorted((atlas.folder / "tables").rglob("*.piece"))
        assert len(pieces) == 4
        pieces[0].unlink()
        for unit in (4, 5):
            store.add(
                Attribution("5", unit, 1, Box(0, 0, 2, 2), *encode_attribution(np.ones((3, 2, 2), dtype=np.float32) * unit))
            )
        store.finish()
    assert atlas.attributions("gradient", "5")["unit"].to_pylist() == [1, 2, 3, 4, 5]


def test_what_was_not_attributed_is_not_drawn_as_if(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    attribute(atlas, "deconvnet", network, layers=["5"], units=[1])
    for draw in (
        lambda: atlas.sheet("8", attribution="deconvnet"),
        lambda: atlas.figure(layers=["8"], attribution="deconvnet"),
        lambda: atlas.sheet("5", units=[2], attribution="deconvnet"),
    ):
        with pytest.raises(
            AtlasError, match=r"'deconvnet' was not used on these units of layer '\d'; make it with: unitscope attribute"
        ):
            draw()


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cant_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    with pytest.raises(
        AtlasError, match=r"method is one of activation, deconvnet, guided_backprop, .*, not 'deconvnt'. Close: 'deconvnet'"
    ):
        attribute(atlas, "deconvnt", network)
    with pytest.raises(LayerNotFound, match="has no layer 'convolution'"):
        attribute(atlas, "deconvnet", network, layers=["convolution"])
    with pytest.raises(AtlasError, match="has units 0 to 11, not 12"):
        attribute(atlas, "deconvnet", network, layers=["5"], units=[12])
    with pytest.raises(AtlasError, match="the weights of .* are not those"):
        attribute(atlas, "deconvnet", small_network())
    with pytest.raises(AtlasError, match="give that in Python"):
        attribute(atlas, "deconvnet")
    with pytest.raises(AtlasError, match=r"has no table 'guided_backprop' yet; make it with: unitscope attribute"):
        atlas.attributions("guided_backprop", "5")
    assert not (atlas.folder / "tables").exists()


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    ("units", "message"),
    [
        (3, "units must be a list of numbers, such as \\[0, 1\\], not 3"),
        ("12", "units must be a list of numbers, such as .*, not '12'"),
        ([1.5], "units must be whole numbers, such as .*, not 1.5"),
        ([True], "units must be whole numbers, such as .*, not True"),
        (np.array([0.0]), "units must be whole numbers"),
        (np.array(3), "units must be a list of numbers"),
        ([], "units is an empty list; name some, or leave it away for all"),
    ],
)
def test_units_that_are_no_numbers_are_named(tmp_path: Path, units: Any, message: str) -> None:
    atlas, network = scanned(tmp_path)
    for ask in (
        lambda: attribute(atlas, "deconvnet", network, layers=["5"], units=units),
        lambda: occlude(atlas, "5", units, network),
        lambda: atlas.sheet("5", units=units),
        lambda: atlas.figure(units=units),
    ):
        with pytest.raises(AtlasError, match=f"^{message}$" if message.endswith(("all", "3", "5")) else message):
            ask()


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("units", [range(2), np.array([0, 1]), (0, 1), torch.tensor([0, 1]), {0, 1}], ids=repr)
def test_units_may_stand_in_anything_that_lists_whole_numbers(tmp_path: Path, units: Any) -> None:
    atlas, network = scanned(tmp_path)
    done = attribute(atlas, "gradient", network, layers="5", units=units)
    assert done == sum(unit < 2 for unit in atlas.peaks("5")["unit"].to_pylist()) > 0
    assert atlas.attributed("gradient") == {("5", 0), ("5", 1)}
    assert atlas.sheet("5", units=units).tobytes() == atlas.sheet("5", units=[0, 1]).tobytes()
    assert atlas.figure(layers="5", units=units).tobytes() == atlas.figure(layers=["5"], units=[0, 1]).tobytes()


def test_an_empty_list_of_layers_is_named(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    with pytest.raises(LayerNotFound, match="layers is an empty list; name some, or leave it away for all"):
        attribute(atlas, "deconvnet", network, layers=[])


def test_dead_units_have_nothing_to_bring_down(tmp_path: Path) -> None:
    network = plain_network()
    with torch.no_grad():
        network[4].bias[5] = -1000
    atlas, network = scanned(tmp_path, network)
    with pytest.raises(AtlasError, match="the chosen units have no peaks in the atlas .*: they are dead"):
        attribute(atlas, "deconvnet", network, layers=["5"], units=[5])
    assert attribute(atlas, "deconvnet", network, layers=["5"], units=[4, 5]) == 9


def test_an_image_that_is_gone_or_changed_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    attribute(atlas, "deconvnet", network, layers=["5"], units=[0])
    before = (atlas.folder / "tables" / "deconvnet.parquet").read_bytes()
    peak = atlas.peaks("8", 0).to_pylist()[0]
    path = tmp_path / "photographs" / atlas.key(peak["image"])
    kept = path.read_bytes()
    Image.new("RGB", (64, 48), (200, 10, 10)).save(path)
    with pytest.raises(AtlasError, match=r"has changed: it is not the image that was scanned"):
        attribute(atlas, "deconvnet", network, layers=["8"])
    path.unlink()
    with pytest.raises(AtlasError, match=f"the image '{atlas.key(peak['image'])}' is no longer there"):
        attribute(Atlas(atlas.folder), "deconvnet", network, layers=["8"])
    assert (atlas.folder / "tables" / "deconvnet.parquet").read_bytes() == before
    path.write_bytes(kept)
    attribute(Atlas(atlas.folder), "deconvnet", network, layers=["8"])
    assert atlas.attributions("deconvnet", "8").num_rows == atlas.peaks("8").num_rows


class Blocked(nn.Module):
    """Keeps gradients from flowing in one way or another."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.block = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), block

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.block(self.first(images)))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return values * 2


def _without_gradient(values: Tensor) -> Tensor:
    with torch.no_grad():
        return values.clone()


@pytest.mark.slow
@pytest.mark.parametrize("block", [_without_gradient, lambda values: values.detach(), NoWayBack.apply])
def test_a_network_through_which_no_gradient_comes_is_refused(tmp_path: Path, block: Any) -> None:
    atlas, network = scanned(tmp_path, Blocked(block))
    for name in ("deconvnet", "guided_backprop", "gradient", "integrated_gradients"):
        with pytest.raises(NetworkError, match="no gradient comes down through the network") as raised:
            attribute(atlas, name, network, layers=["last"])
        assert "\n" not in str(raised.value)
    attribute(atlas, "occlusion", network, layers=["last"])
    assert atlas.methods == ["occlusion"]


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    with AttributionStore(atlas, "deconvnet").locked(), pytest.raises(AtlasError, match="'deconvnet' is at work on the atlas"):
        attribute(atlas, "deconvnet", network)


@pytest.mark.slow
def test_a_run_that_fails_midway_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, network = scanned(tmp_path)
    monkeypatch.setattr("unitscope.attribution.store.PIECE_EVERY_S", 0.0)
    done_count = 0

    def stop(done: int) -> None:
        nonlocal done_count
        done_count += done
        if done_count > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribute(atlas, "deconvnet", network, on_peaks=stop)
    assert atlas.methods == []
    left = attribute(atlas, "deconvnet", network)
    assert 0 < left <= atlas.table("peaks").num_rows - 100
    whole = Atlas(atlas.folder).folder / "tables" / "deconvnet.parquet"
    assert pq.read_table(whole, columns=["unit"]).num_rows == atlas.table("peaks").num_rows


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import unitscope.attribution.store as store
store.PIECE_EVERY_S = 0.0
from test_attribution import plain_network
from unitscope.atlas import Atlas
from unitscope.attribution import attribute
attribute(Atlas({atlas!r}), "integrated_gradients", plain_network(), on_peaks=lambda done: print(done, flush=True))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_what_it_had_done(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path, count=24)
    program = KILLED.format(tests=str(Path(__file__).parent), atlas=str(atlas.folder))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for _ in range(60):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.communicate()
    assert atlas.methods == []
    peaks = atlas.table("peaks").num_rows
    assert attribute(atlas, "integrated_gradients", network) <= peaks - 40
    assert sum(atlas.attributions("integrated_gradients", layer.name).num_rows for layer in atlas.layers) == peaks


# ── drawn ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_projections_are_drawn_beside_their_patches(tmp_path: Path) -> None:
    atlas, network = scanned(tmp_path)
    attribute(atlas, "deconvnet", network, layers=["5", "8"], units=[1, 4])
    plain, beside = atlas.sheet("5", units=[1, 4]), atlas.sheet("5", attribution="deconvnet")
    assert beside.width > plain.width * 1.3
    pixels = np.asarray(atlas.figure(attribution="deconvnet"))
    assert (pixels == 128).all(axis=2).mean() > 0.005  # the grey of zero
    assert tuple(METHODS) == tuple(ATTRIBUTION_METHODS)
    with pytest.raises(
        AtlasError, match=r"attribution is one of activation, deconvnet, .*, not 'guided_backpro'\. Close: 'guided_backprop'"
    ):
        atlas.sheet("5", attribution="guided_backpro")
    with pytest.raises(UnitscopeError, match="has no table 'guided_backprop'"):
        atlas.figure(attribution="guided_backprop")


def assert_runs(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "unitscope", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_line_attributes_and_draws(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU())\n"
    )
    photographs = write_photographs(tmp_path / "photographs", 10)
    atlas = str(tmp_path / "atlas")
    assert_runs(
        "scan",
        f"{tmp_path / 'net.py'}:net",
        str(photographs),
        "--weights",
        "none",
        "--out",
        atlas,
        *PREPROCESSING,
    )
    output = assert_runs("attribute", atlas, "--method", "deconvnet", "--layers", "3", "--units", "0", "2", "--trust-code")
    assert output.startswith("18 peaks in ")
    assert_runs("sheet", atlas, "3", "--attribution", "deconvnet", "--out", str(tmp_path / "sheet.png"))
    assert_runs("figure", atlas, "--attribution", "deconvnet", "--out", str(tmp_path / "figure.png"))
    done = subprocess.run(
        [sys.executable, "-m", "unitscope", "attribute", atlas, "--method", "magic"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
