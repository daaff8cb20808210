"""What a scan finds out about a network before it begins: whose values depend on more than the image, and how exact they are."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn
from torch.nn import functional as F

import unitscope
from unitscope.errors import NetworkError
from unitscope.layers import Trial, choose, replicas, trace

IMAGES = torch.randn(48, 3, 14, 14, generator=torch.Generator().manual_seed(0))


def trial_of(network: nn.Module, count: int = 2) -> Trial:
    traced = trace(network, IMAGES[:1])
    return replicas(network, traced, choose(traced), count).trial


class Body(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda maps: maps) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), between
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.second(self.between(self.relu(self.first(images)))))


# ── state that replicas share ───────────────────────────────────────────────────────────────────────────────────────


def by_hook() -> nn.Module:
    """Features travel through a dict outside the network, that a hook fills."""
    held: dict[str, Tensor] = {}
    network = Body(lambda maps: held["first"].flip(1) + maps)
    network.first.register_forward_hook(lambda module, args, output: held.update(first=output))
    return network


class Global(nn.Module):
    """Features travel through a variable of the class."""

    held: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        Global.held = [self.first(images)]
        branch = F.relu(self.second(Global.held[0]))
        return self.last(branch + Global.held[0])


SCRATCH = torch.empty(1 << 16)


def by_scratch(maps: Tensor) -> Tensor:
    """One operator writes into memory that all share, the next reads it."""
    place = SCRATCH[: maps.numel()].view(maps.shape)
    place.copy_(maps)
    return place * 2


STACK: list[Tensor] = []


class Stacked(nn.Module):
    """What a module lays on a stack, another takes off it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        STACK.append(self.first(images))
        maps = self.second(STACK[-1])
        return self.last(maps + STACK.pop())


class Own(nn.Module):
    """Keeps features in itself: every copy has its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.held: dict[str, Tensor] = {}
        self.first.register_forward_hook(self._keep)
        self.first.register_forward_hook(lambda module, args, output: setattr(self, "again", output))

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.held["first"] = output

    def forward(self, images: Tensor) -> Tensor:
        return self.second(F.relu(self.first(images))) + self.held["first"] + self.again


SHARING: dict[str, Callable[[], nn.Module]] = {
    "hook": by_hook,
    "class": Global,
    "scratch": lambda: Body(by_scratch),
    "stack": Stacked,
}
APART: dict[str, Callable[[], nn.Module]] = {"plain": small_network, "reused": Reused, "own": Own, "body": Body}


@pytest.mark.parametrize("name", SHARING)
def test_replicas_that_share_state_are_found_and_one_runs_alone(name: str, tmp_path: Path) -> None:
    network = SHARING[name]()
    assert trial_of(network).shared is not None
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with pytest.warns(UserWarning, match="change each other's values, from layer"):
            atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas", batch_size=2)
    finally:
        torch.set_num_threads(before)
    assert atlas.manifest["trial"]["shared"] in {layer.name for layer in atlas.layers}
    assert_peaks_are_those_of_images_alone(atlas, network)


@pytest.mark.parametrize("name", APART)
def test_replicas_that_share_nothing_run_side_by_side(name: str) -> None:
    assert trial_of(APART[name]()) == Trial()


def assert_peaks_are_those_of_images_alone(atlas: unitscope.Atlas, network: nn.Module) -> None:
    """Every stored value is what the layer gives when its image runs alone."""
    for layer in atlas.layers:
        rows = atlas.peaks(layer.name).to_pylist()
        found: dict[int, Tensor] = {}
        module = network.get_submodule(layer.name.partition("#")[0])
        calls: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0].clone())),
            module.register_forward_hook(lambda _, __, output, calls=calls: calls.append(output.clone())),
        ]
        for image in {row["image"] for row in rows}:
            calls.clear()
            with torch.no_grad():
                network(IMAGES[image : image + 1])
            call = int(layer.name.partition("#")[2] or 1)
            found[image] = calls[2 * (call - 1) + (0 if layer.kind == "ReLU" else 1)]
        for hook in hooks:
            hook.remove()
        for row in rows:
            value = float(found[row["image"]][0, row["unit"], row["y"], row["x"]])
            assert row["value"] == pytest.approx(value, rel=1e-4, abs=1e-5), layer.name


# ── values that depend on more than the image ───────────────────────────────────────────────────────────────────────


class MinibatchDeviation(nn.Module):
    """As in discriminators: the deviation over the batch is one more channel."""

    def forward(self, maps: Tensor) -> Tensor:
        deviation = maps.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(maps), 1, *maps.shape[2:])
        return torch.cat([maps[:, 1:], deviation], 1)


class OwnStatistics(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return (maps - maps.mean(0, keepdim=True)) / (maps.std(0, unbiased=False, keepdim=True) + 1)


class Tokens(nn.Module):
    """A transformer layer that takes the images for its sequence."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 7, 7)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.patches(images).flatten(2).transpose(1, 2))


ON_BATCH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "deviation": (lambda: Body(MinibatchDeviation()), "between"),
    "own statistics": (lambda: Body(OwnStatistics()), "between"),
    "batch norm without running statistics": (lambda: Body(nn.BatchNorm2d(4, track_running_stats=False)), "between"),
    "attention over images": (lambda: Tokens(batch_first=False), "layer"),
    "the image before": (lambda: Body(lambda maps: maps + maps.roll(1, 0)), "second"),
    "the image behind": (lambda: Body(lambda maps: maps + maps.roll(-1, 0)), "second"),
    "the image opposite": (lambda: Body(lambda maps: maps + maps.flip(0)), "second"),
    "the loudest image": (lambda: Body(lambda maps: maps / maps.abs().amax()), "second"),
    "how many images there are": (lambda: Body(lambda maps: maps / len(maps)), "second"),
    "softmax over images": (lambda: Body(nn.Softmax(0)), "between"),
}


@pytest.mark.parametrize("name", ON_BATCH)
def test_values_that_depend_on_the_batch_are_told_with_the_first_layer(name: str) -> None:
    make, layer = ON_BATCH[name]
    torch.manual_seed(0)
    found = trial_of(make())
    assert found.batch is not None
    assert found.batch.startswith(layer)
    assert (found.random, found.shared, dict(found.rounding)) == (None, None, {})


def test_a_transformer_layer_that_takes_tokens_for_its_sequence_is_none_of_these() -> None:
    torch.manual_seed(0)
    assert trial_of(Tokens(batch_first=True)) == Trial()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_found_stands_in_the_manifest_and_in_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        atlas = unitscope.scan(Body(MinibatchDeviation()), IMAGES, tmp_path / "atlas")
    said = [str(one.message) for one in caught]
    assert sum("depend on the images that run in the same batch, from layer 'between' on" in one for one in said) == 1
    assert atlas.manifest["trial"] == {"batch": "between", "random": None, "shared": None, "rounding": {}}


class Dropout(nn.Module):
    """Drops in eval mode too."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.dropout(maps)


class OfNumpy(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        import numpy as np

        return maps + float(np.random.rand())


class OfItsOwn(nn.Module):
    """Has random numbers of its own, which can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.rand(1, generator=self.generator)


class Counting(nn.Module):
    """Every call gives a little more."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.calls += 1
        return maps * self.calls


@pytest.mark.parametrize("between", [Dropout, OfNumpy, OfItsOwn, Counting])
def test_values_that_differ_from_run_to_run_are_told(between: type[nn.Module], tmp_path: Path) -> None:
    network = Body(between())
    state = torch.get_rng_state()
    assert trial_of(network).random in ("between", "second")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="differ from run to run, from layer '(between|second)' on"):
        unitscope.scan(network, IMAGES, tmp_path / "atlas")


class Observer(nn.Module):
    """Scales by the largest value that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.largest.copy_(torch.maximum(self.largest, maps.abs().max()))
        return maps / self.largest


class ActNorm(nn.Module):
    """Sets itself by the first images that it meets."""

    def __init__(self, parameters: bool) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))
        if parameters:
            self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))
        else:
            self.register_buffer("shift", torch.zeros(1, 4, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        if not self.done:
            with torch.no_grad():
                self.shift.copy_(-maps.mean((0, 2, 3), keepdim=True))
                self.done.fill_(True)
        return maps + self.shift


class Scaling(nn.Module):
    """Writes into its weight by `out`, which is no argument in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, maps: Tensor) -> Tensor:
        with torch.no_grad():
            torch.maximum(self.scale, maps.abs().max(), out=self.scale)
        return maps / self.scale


class Normalising(nn.Module):
    """Writes into its parameter in inference mode, where operators come before they are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    @torch.inference_mode()
    def forward(self, maps: Tensor) -> Tensor:
        self.mean.lerp_(maps.mean((0, 2, 3)), 0.1)
        return F.batch_norm(maps, self.mean, self.var)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Observer(), "depend on the images that ran before, from layer 'between' on"),
        (ActNorm(parameters=False), "depend on the images that ran before, from layer 'between' on"),
        (ActNorm(parameters=True), "writes into its parameter 'between.shift'"),
        (Scaling(), "writes into its parameter 'between.scale'"),
        (Normalising(), "writes into its parameter 'between.mean'"),
        (torch.ao.quantization.FakeQuantize(), "depend on the images that ran before"),
    ],
)
def test_a_network_that_sets_itself_by_its_images_is_refused_and_left_alone(
    between: nn.Module, reason: str, hooked: bool, tmp_path: Path
) -> None:
    network = Body(between).eval()
    if hooked:
        network.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NetworkError, match=reason):
        unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not (tmp_path / "atlas").exists()


def test_one_that_was_set_before_is_scanned(tmp_path: Path) -> None:
    network = Body(ActNorm(parameters=True)).eval()
    network(IMAGES)
    atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert_peaks_are_those_of_images_alone(atlas, network)


# ── rounding ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Steep(nn.Module):
    """Makes a thousand times more of what float32 rounds off, and more in some images than in others."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.sin(maps * (1000 * maps.abs().amax((2, 3), keepdim=True) ** 3))


def test_rounding_that_a_network_amplifies_is_measured_and_allowed_for(tmp_path: Path) -> None:
    network = Body(Steep())
    with pytest.warns(UserWarning, match="rounding moves values"):
        atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas", batch_size=7)
    assert atlas.manifest["trial"]["shared"] is None
    rounding = atlas.manifest["trial"]["rounding"]
    assert set(rounding) <= {layer.name for layer in atlas.layers}
    assert "relu" not in rounding
    assert 1e-5 < max(rounding.values()) < 0.5
    assert unitscope.check(atlas, network, batch_size=1).differences == []


def test_what_is_no_rounding_is_not_allowed_for(tmp_path: Path) -> None:
    network = Body()
    atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert atlas.manifest["trial"]["rounding"] == {}
    changed = unitscope.Atlas(tmp_path / "atlas", images=IMAGES * (1 + 1e-3))
    assert unitscope.check(changed, network).differences
