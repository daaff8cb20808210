"""What the trial before a scan finds: networks whose values depend on more than the image, and how exact values are."""

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from networks import Reused, small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

import unitscope
from unitscope.errors import NetworkError
from unitscope.layers import choose_layers, trace
from unitscope.session.replicas import make_replicas
from unitscope.session.trials import Trial, run_trial

IMAGES = torch.randn(48, 3, 14, 14, generator=torch.Generator().manual_seed(0))


def trial_of(network: nn.Module, replica_count: int = 2) -> Trial:
    """What the trial found, without the magnitudes, which have a test of their own."""
    traced = trace(network, IMAGES[:1])
    return replace(make_replicas(network, traced, choose_layers(traced), replica_count).trial, magnitudes=())


class Body(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda maps: maps) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), between
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.second(self.between(self.relu(self.first(images)))))


# ── state that replicas share ───────────────────────────────────────────────────────────────────────────────────────


def by_hook() -> nn.Module:
    """Features go through a dict outside the network, which a hook fills."""
    features: dict[str, Tensor] = {}
    network = Body(lambda maps: features["first"].flip(1) + maps)
    network.first.register_forward_hook(lambda module, args, output: features.update(first=output))
    return network


class SharesClassVariable(nn.Module):
    """Features go through a variable of the class."""

    features: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        SharesClassVariable.features = [self.first(images)]
        branch = F.relu(self.second(SharesClassVariable.features[0]))
        return self.last(branch + SharesClassVariable.features[0])


SCRATCH = torch.empty(1 << 16)


def through_scratch(maps: Tensor) -> Tensor:
    """One operator writes into memory that all copies share, the next reads it."""
    scratch = SCRATCH[: maps.numel()].view(maps.shape)
    scratch.copy_(maps)
    return scratch * 2


STACK: list[Tensor] = []


class SharesStack(nn.Module):
    """One module pushes features onto a stack, another pops them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        STACK.append(self.first(images))
        maps = self.second(STACK[-1])
        return self.last(maps + STACK.pop())


class KeepsFeatures(nn.Module):
    """Keeps features in itself: every copy has its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.features: dict[str, Tensor] = {}
        self.first.register_forward_hook(self._keep)
        self.first.register_forward_hook(lambda module, args, output: setattr(self, "output", output))

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["first"] = output

    def forward(self, images: Tensor) -> Tensor:
        return self.second(F.relu(self.first(images))) + self.features["first"] + self.output


SHARING: dict[str, Callable[[], nn.Module]] = {
    "hook": by_hook,
    "class": SharesClassVariable,
    "scratch": lambda: Body(through_scratch),
    "stack": SharesStack,
}
INDEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "plain": small_network,
    "reused": Reused,
    "keeps features": KeepsFeatures,
    "body": Body,
}


@pytest.mark.parametrize("name", SHARING)
def test_replicas_that_share_state_are_found_and_one_runs_alone(name: str, tmp_path: Path) -> None:
    network = SHARING[name]()
    assert trial_of(network).shared is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with pytest.warns(UserWarning, match="change each other's values, from layer"):
            atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas", batch_size=2)
    finally:
        torch.set_num_threads(threads)
    assert atlas.manifest["trial"]["shared"] in {layer.name for layer in atlas.layers}
    assert_peaks_are_those_of_images_alone(atlas, network)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_replicas_that_share_nothing_run_side_by_side(name: str) -> None:
    assert trial_of(INDEPENDENT[name]()) == Trial()


def assert_peaks_are_those_of_images_alone(atlas: unitscope.Atlas, network: nn.Module) -> None:
    """Every stored value is the layer's when its image runs alone."""
    for layer in atlas.layers:
        rows = atlas.peaks(layer.name).to_pylist()
        maps_of_image: dict[int, Tensor] = {}
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
            maps_of_image[image] = calls[2 * (call - 1) + (0 if layer.kind == "ReLU" else 1)]
        for hook in hooks:
            hook.remove()
        for row in rows:
            value = float(maps_of_image[row["image"]][0, row["unit"], row["y"], row["x"]])
            assert row["value"] == pytest.approx(value, rel=1e-4, abs=1e-5), layer.name


# ── values that depend on more than the image ───────────────────────────────────────────────────────────────────────


class MinibatchDeviation(nn.Module):
    """As in discriminators: the deviation over the batch is one more channel."""

    def forward(self, maps: Tensor) -> Tensor:
        deviation = maps.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(maps), 1, *maps.shape[2:])
        return torch.cat([maps[:, 1:], deviation], 1)


class BatchStatistics(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return (maps - maps.mean(0, keepdim=True)) / (maps.std(0, unbiased=False, keepdim=True) + 1)


class Tokens(nn.Module):
    """A transformer layer; without `batch_first` it takes the images for its sequence."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 7, 7)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.patches(images).flatten(2).transpose(1, 2))


def ghost_batch_norm(maps: Tensor, group: int) -> Tensor:
    """Batch norm over groups of so many images, without statistics of its own."""
    parts = [F.batch_norm(part, None, None, training=True) if len(part) == group else part for part in maps.split(group)]
    return torch.cat(parts)


def with_one_changed(maps: Tensor, image: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The maps with those of one image replaced, where there are several, by a function of all."""
    result = maps.clone()
    if len(maps) > 1:
        result[image] = function(maps)
    return result


def from_a_seed(maps: Tensor) -> Tensor:
    """Numbers that are the same in every run, for the whole batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return maps * torch.rand(maps.shape)


ON_BATCH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "deviation": (lambda: Body(MinibatchDeviation()), "between"),
    "statistics of the batch": (lambda: Body(BatchStatistics()), "between"),
    "batch norm without running statistics": (lambda: Body(nn.BatchNorm2d(4, track_running_stats=False)), "between"),
    "attention over images": (lambda: Tokens(batch_first=False), "layer"),
    "the image before": (lambda: Body(lambda maps: maps + maps.roll(1, 0)), "second"),
    "the image behind": (lambda: Body(lambda maps: maps + maps.roll(-1, 0)), "second"),
    "the image opposite": (lambda: Body(lambda maps: maps + maps.flip(0)), "second"),
    "the loudest image": (lambda: Body(lambda maps: maps / maps.abs().amax()), "second"),
    "how many images there are": (lambda: Body(lambda maps: maps / len(maps)), "second"),
    "softmax over images": (lambda: Body(nn.Softmax(0)), "between"),
    "three images and more": (lambda: Body(lambda maps: maps + maps.mean(0) if len(maps) >= 3 else maps), "second"),
    "four images and more": (lambda: Body(lambda maps: maps + maps.mean(0) if len(maps) >= 4 else maps), "second"),
    "an even number": (lambda: Body(lambda maps: maps + maps.roll(1, 0) if len(maps) % 2 == 0 else maps), "second"),
    "ghost batch norm of two": (lambda: Body(lambda maps: ghost_batch_norm(maps, 2)), "second"),
    "ghost batch norm of four": (lambda: Body(lambda maps: ghost_batch_norm(maps, 4)), "second"),
    "float32 alone": (lambda: Body(lambda maps: maps - maps.mean(0) if maps.dtype == torch.float32 else maps), "second"),
    "a seed of its own": (lambda: Body(from_a_seed), "second"),
}
ON_SOME_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "differences of frames": lambda maps: torch.cat([maps[:1], maps[1:] - maps[:-1]]),
    "differences of frames, mirrored": lambda maps: torch.cat([maps[:-1] - maps[1:], maps[-1:]]),
    "the front image": lambda maps: with_one_changed(maps, 0, lambda maps: maps[0] + maps[1:].mean(0)),
    "the front image, a little": lambda maps: with_one_changed(maps, 0, lambda maps: maps[0] + 1e-4 * maps[1:].mean(0)),
    "the last image": lambda maps: with_one_changed(maps, -1, lambda maps: maps[-1] + maps[:-1].mean(0)),
    "the front image by its median": lambda maps: with_one_changed(maps, 0, lambda maps: maps.median(0).values),
    "the loudest image": lambda maps: maps.clamp(max=float(maps.flatten(1).amax(1).sort().values[:2].max())),
}


@pytest.mark.parametrize("name", ON_BATCH)
def test_the_first_layer_that_depends_on_the_batch_is_named(name: str) -> None:
    make_network, layer = ON_BATCH[name]
    torch.manual_seed(0)
    trial = trial_of(make_network())
    assert trial.batch is not None
    assert trial.batch.startswith(layer)
    assert (trial.random, trial.shared, dict(trial.rounding)) == (None, None, {})


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ON_SOME_IMAGES)
def test_a_batch_on_which_only_some_of_its_images_depend_is_found(name: str, count: int) -> None:
    trial = trial_of(Body(ON_SOME_IMAGES[name]), count)
    assert (trial.batch, trial.random, trial.shared, dict(trial.rounding)) == ("second", None, None, {})


@pytest.mark.parametrize("count", [1, 2])
def test_the_maps_of_two_images_of_the_batch_are_kept(count: int) -> None:
    network = small_network()
    traced = trace(network, IMAGES[:1])
    assert [len(maps) for maps in run_trial(network, traced, choose_layers(traced), test_second_image=count == 1).maps] == [
        2
    ] * len(choose_layers(traced))


def test_a_transformer_layer_that_takes_tokens_for_its_sequence_is_none_of_these() -> None:
    torch.manual_seed(0)
    assert trial_of(Tokens(batch_first=True)) == Trial()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_trial_stands_in_the_manifest_and_in_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        atlas = unitscope.scan(Body(MinibatchDeviation()), IMAGES, tmp_path / "atlas")
    messages = [str(warning.message) for warning in caught]
    assert sum("depend on the images that run in the same batch, from layer 'between' on" in message for message in messages) == 1
    assert atlas.manifest["trial"] == {"batch": "between", "random": None, "shared": None, "rounding": {}}


class Dropout(nn.Module):
    """Drops in eval mode too."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.dropout(maps)


class NumpyNoise(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + float(np.random.rand())


class OwnGenerator(nn.Module):
    """Has a random generator of its own, which can't be copied."""

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


class DrawsForNegatives(nn.Module):
    """Draws as many numbers as there are values below zero."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.rrelu(maps - 0.1, training=True)


@pytest.mark.parametrize("between", [Dropout, NumpyNoise, OwnGenerator, Counting, DrawsForNegatives])
def test_values_that_differ_from_run_to_run_are_found(between: type[nn.Module], tmp_path: Path) -> None:
    network = Body(between())
    state = torch.get_rng_state()
    assert trial_of(network).random in ("between", "second")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="values may differ from run to run, from layer '(between|second)' on"):
        unitscope.scan(network, IMAGES, tmp_path / "atlas")


RARE: dict[str, Callable[[Tensor], Tensor]] = {
    "a coin of torch": lambda maps: maps * 2 if torch.rand(()) < 1e-3 else maps,
    "a coin of Python": lambda maps: maps * 2 if random.random() < 0.5 else maps,
    "a coin of numpy": lambda maps: maps * 2 if np.random.rand() < 1e-3 else maps,
    "a path that is dropped": lambda maps: maps * (torch.rand(len(maps), 1, 1, 1) > 1e-3),
    "dropped units": lambda maps: F.dropout2d(maps, 1e-3),
    "stochastic depth": lambda maps: stochastic_depth(maps, 1e-3, "row", training=True),
    "very little noise": lambda maps: maps + 1e-9 * torch.randn(maps.shape),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", RARE)
def test_random_numbers_are_found_where_they_are_drawn_however_seldom_they_show(name: str, count: int) -> None:
    network = Body(RARE[name])
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    trial = trial_of(network, count)
    assert (trial.batch, trial.random, trial.shared, dict(trial.rounding)) == (None, "second", None, {})
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_numbers_of_pythons_generator_that_change_no_value_do_not_count() -> None:
    """Such as those that a type checker draws."""
    assert trial_of(Body(lambda maps: maps * (1 + 0 * random.getrandbits(32)))) == Trial()


def test_the_first_layer_behind_random_numbers_is_named() -> None:
    """Even if it is none of the chosen layers."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity(), Dropout(), nn.Identity(), nn.Conv2d(3, 3, 1))
    traced = trace(network, IMAGES[:1])
    assert make_replicas(network, traced, choose_layers(traced, ["4"]), 2).trial.random == "2"


def reseeding(maps: Tensor) -> Tensor:
    torch.manual_seed(0)
    return maps * torch.rand(maps.shape[1:])


def test_a_network_that_seeds_the_generators_itself_gives_the_same_in_every_run() -> None:
    assert trial_of(Body(reseeding), 1) == Trial()


def test_numbers_drawn_from_a_seed_for_a_whole_batch_depend_on_the_batch() -> None:
    trial = trial_of(Body(lambda maps: (torch.manual_seed(0), maps * torch.rand(maps.shape))[1]), 1)
    assert trial == Trial(batch="second")


class Observer(nn.Module):
    """Scales by the largest value that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.largest.copy_(torch.maximum(self.largest, maps.abs().max()))
        return maps / self.largest


class ActNorm(nn.Module):
    """Sets its shift by the first images that it gets."""

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
    """Writes into its parameter through `out`, which is no operator in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, maps: Tensor) -> Tensor:
        with torch.no_grad():
            torch.maximum(self.scale, maps.abs().max(), out=self.scale)
        return maps / self.scale


class Normalising(nn.Module):
    """Writes into its parameter in inference mode, where operators aren't decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    @torch.inference_mode()
    def forward(self, maps: Tensor) -> Tensor:
        self.mean.lerp_(maps.mean((0, 2, 3)), 0.1)
        return F.batch_norm(maps, self.mean, self.var)


class WritesThroughList(nn.Module):
    """Writes into its parameter with an operator that takes lists and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_([self.shift], [maps.mean((0, 2, 3), keepdim=True)])
        return maps + self.shift


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Observer(), "depend on the images that ran before, from layer 'between' on"),
        (ActNorm(parameters=False), "depend on the images that ran before, from layer 'between' on"),
        (ActNorm(parameters=True), "writes into its parameter 'between.shift'"),
        (Scaling(), "writes into its parameter 'between.scale'"),
        (Normalising(), "writes into its parameter 'between.mean'"),
        (WritesThroughList(), "writes into its parameter 'between.shift'"),
        (torch.ao.quantization.FakeQuantize(), "depend on the images that ran before"),
        (nn.Sequential(Observer(), Dropout()), "depend on the images that ran before, from layer 'between.0' on"),
    ],
)
def test_a_network_that_sets_itself_by_its_images_is_refused_and_left_as_it_was(
    between: nn.Module, reason: str, hooked: bool, tmp_path: Path
) -> None:
    network = Body(between).eval()
    if hooked:
        network.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NetworkError, match=reason):
        unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not (tmp_path / "atlas").exists()


class SetsClassVariable(nn.Module):
    """Scales by the first images that any of its copies gets."""

    scale: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        if SetsClassVariable.scale is None:
            SetsClassVariable.scale = maps.abs().max() + 1
        return maps / SetsClassVariable.scale


class SetsClassDict(nn.Module):
    """The same in a dict of the class, beside a list that grows."""

    scales: ClassVar[dict[str, Tensor]] = {}
    seen: ClassVar[list[int]] = [7]

    def forward(self, maps: Tensor) -> Tensor:
        self.seen.append(len(maps))
        return maps / self.scales.setdefault("scale", maps.abs().max() + 1)


class SetsClassTensor(nn.Module):
    """The same in a tensor of the class, and in a variable that wasn't there before."""

    largest = torch.ones(())

    def forward(self, maps: Tensor) -> Tensor:
        type(self).maps = maps  # type: ignore[attr-defined]
        self.largest.copy_(torch.maximum(self.largest, maps.abs().max()))
        return maps / self.largest


@pytest.mark.parametrize("between", [SetsClassVariable, SetsClassDict, SetsClassTensor])
def test_a_network_that_sets_its_class_by_its_images_is_refused_and_the_class_left_alone(
    between: type[nn.Module], tmp_path: Path
) -> None:
    variables = {
        name: copy.deepcopy(value) for name, value in vars(between).items() if name in ("scale", "scales", "seen", "largest")
    }
    with pytest.raises(NetworkError, match="depend on the images that ran before, from layer 'between' on"):
        unitscope.scan(Body(between()), IMAGES, tmp_path / "atlas")
    assert variables
    assert {name: vars(between)[name] for name in variables} == variables
    assert "maps" not in vars(between)


def test_a_network_whose_class_was_set_before_is_scanned(tmp_path: Path) -> None:
    SetsClassVariable.scale = torch.tensor(3.0)
    try:
        network = Body(SetsClassVariable())
        assert trial_of(network) == Trial()
        assert_peaks_are_those_of_images_alone(unitscope.scan(network, IMAGES, tmp_path / "atlas"), network)
    finally:
        SetsClassVariable.scale = None


def test_a_network_that_was_set_before_is_scanned(tmp_path: Path) -> None:
    network = Body(ActNorm(parameters=True)).eval()
    network(IMAGES)
    atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert_peaks_are_those_of_images_alone(atlas, network)


# ── rounding ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Steep(nn.Module):
    """Amplifies rounding a thousandfold, and more in some images than in others."""

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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("frequency", [10, 20, 30, 40, 60, 80, 120, 200])
def test_rounding_close_to_what_is_usual_is_not_taken_for_shared_state(frequency: float, count: int) -> None:
    trial = trial_of(Body(lambda maps: torch.sin(frequency * maps) + 0.1 * torch.sin(3 * frequency * maps)), count)
    assert (trial.batch, trial.random, trial.shared) == (None, None, None)
    assert max(trial.rounding.values(), default=0) < 1e-3


def test_differences_larger_than_rounding_are_not_allowed_for(tmp_path: Path) -> None:
    network = Body()
    atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert atlas.manifest["trial"]["rounding"] == {}
    changed = unitscope.Atlas(tmp_path / "atlas", images=IMAGES * (1 + 1e-3))
    assert unitscope.check(changed, network).differences


# ── magnitudes ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Tripled(nn.Module):
    """Minus three times its input, but for a first cell that is infinite."""

    def forward(self, maps: Tensor) -> Tensor:
        tripled = -3 * maps
        tripled[..., 0, 0] = torch.inf
        return tripled


def test_a_layers_magnitude_is_its_largest_finite_value_without_its_sign() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ZeroPad2d(1), Tripled())
    traced = trace(network, IMAGES[:1])
    trial = make_replicas(network, traced, choose_layers(traced, ["0", "2"]), 1).trial
    assert trial.magnitudes[0] > 0
    assert trial.magnitudes[1] == pytest.approx(3 * trial.magnitudes[0])
