"""The user's network is left bit for bit as it was: everything runs on copies."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_network
from torch import Tensor, nn
from torch.nn.utils import prune

import unitscope
from unitscope.layers import choose_layers, trace
from unitscope.networks.isolation import has_hooks, isolated_copy, needs_hooks
from unitscope.session.replicas import make_replicas

IMAGES = torch.randn(24, 3, 14, 14, generator=torch.Generator().manual_seed(0))


def all_attributes(network: nn.Module) -> list[tuple[str, str]]:
    """Names and values of all attributes of all modules, as text; tensors with all their values."""
    with torch.no_grad():
        torch.set_printoptions(threshold=10**9, precision=17)
        try:
            return [
                (f"{name}.{key}", repr(value) if not isinstance(value, nn.Module) else type(value).__name__)
                for name, module in network.named_modules()
                for key, value in sorted(vars(module).items())
                if key != "_modules"
            ]
        finally:
            torch.set_printoptions(profile="default")


class Careless(nn.Module):
    """Changes its own state in eval mode: buffer, lists, dict and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[Tensor] = []
        self.shapes: dict[str, list[int]] = {"all": []}
        self.last: Tensor | None = None
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.seen.append(images.mean())
        self.shapes["all"].append(len(images))
        self.last = images
        return self.network(images)


def run_all_functions(network: nn.Module, folder: Path) -> None:
    """Every public function that takes a module."""
    from unitscope.experiments import colour_or_shape, invariance

    trace(network, IMAGES[:1])
    atlas = unitscope.scan(network, IMAGES, folder / "atlas")
    unitscope.check(atlas, network)
    unitscope.attribute(atlas, "deconvnet", network, units=[0])
    colour_or_shape(atlas, network)
    invariance(network, IMAGES, folder / "invariance")


def test_every_function_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = Careless().train()
    network.network[1].eval()
    attributes, identities = all_attributes(network), identities_of(network)
    run_all_functions(network, tmp_path)
    assert all_attributes(network) == attributes
    assert identities_of(network) == identities


def identities_of(network: nn.Module) -> list[int]:
    return [id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())]


@pytest.mark.slow
@pytest.mark.parametrize("compiled_part", ["whole", "part", "in place", "function"])
def test_a_compiled_network_runs_its_graph_afterwards_as_before(compiled_part: str, tmp_path: Path) -> None:
    compilations: list[int] = []
    graph_runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compilations.append(len(inputs))

        def run(*values: Any) -> Any:
            graph_runs.append(1)
            return graph.forward(*values)

        return run

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_network()

        def forward(self, images: Tensor) -> Tensor:
            return twice(self.body(images)) if compiled_part == "function" else self.body(images)

    def plain_twice(values: Tensor) -> Tensor:
        return values * 2

    twice = torch.compile(plain_twice, backend=backend) if compiled_part == "function" else plain_twice
    network: Any = Network().eval()
    if compiled_part == "whole":
        network = torch.compile(network, backend=backend)
    elif compiled_part == "part":
        network.body = torch.compile(network.body, backend=backend)
    elif compiled_part == "in place":
        network.body.compile(backend=backend)
    with torch.no_grad():
        expected = network(IMAGES[:2])
        graph_count, run_count = len(compilations), len(graph_runs)
        assert graph_count
        assert run_count
        run_all_functions(network, tmp_path)
        assert (len(compilations), len(graph_runs)) == (graph_count, run_count)
        output = network(IMAGES[:2])
    assert len(compilations) == graph_count
    assert len(graph_runs) > run_count
    assert torch.equal(expected, output)
    torch._dynamo.reset()


def test_a_compiled_network_has_the_layers_and_the_hash_of_the_plain_one(tmp_path: Path) -> None:
    network = nn.Sequential(small_network()).eval()
    atlas = unitscope.scan(torch.compile(network), IMAGES, tmp_path / "whole")
    part = copy.deepcopy(network)
    part[0] = torch.compile(part[0])
    assert [layer.name for layer in atlas.layers] == [layer.name for layer in choose_layers(trace(network, IMAGES[:1]))]
    assert unitscope.check(atlas, network).differences == []
    assert unitscope.check(atlas, part).differences == []


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Collector:
    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.count = 0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.count += 1
        self.outputs.append(output)

    def collect(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.count += 1


@pytest.mark.slow
def test_the_users_hooks_do_not_fire_and_stay_registered(tmp_path: Path) -> None:
    network, calls, number, collector = small_network().eval(), [], 0, Collector()

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal number
        number += 1

    network[0].register_forward_hook(lambda module, args, output: calls.append(output))
    network[0].register_forward_pre_hook(lambda module, args: calls.append(args))
    network[3].register_forward_hook(count)
    network[4].register_forward_hook(collector)
    network[4].register_forward_hook(collector.collect)
    network[6].register_full_backward_hook(lambda module, inputs, outputs: calls.append(outputs))
    run_all_functions(network, tmp_path)
    assert (calls, number, collector.outputs, collector.count) == ([], 0, [], 0)
    network(IMAGES[:1])
    assert (len(calls), number, len(collector.outputs), collector.count) == (2, 1, 1, 2)


def negated(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(-1)


@pytest.mark.parametrize("hook", [lambda module, args, output: output.relu(), negated])
def test_a_hook_that_changes_what_is_computed_is_part_of_the_network(hook: Callable[..., Any]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).eval()
    network[0].register_forward_hook(hook)
    traced = trace(network, IMAGES[:1])
    assert traced.needs_hooks
    for replica in make_replicas(network, traced, choose_layers(traced), 2).networks:
        torch.testing.assert_close(replica(IMAGES), network(IMAGES))


def test_a_stale_variable_is_not_taken_for_a_feature() -> None:
    """The hook's dict still holds the features of the user's own last image: without the hook the network would run on those."""
    features: dict[str, Tensor] = {}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            self.first(images)
            return self.last(features["first"])

    network = Network().eval()
    network.first.register_forward_hook(lambda module, args, output: features.update(first=output))
    network(IMAGES[:1])
    assert trace(network, IMAGES[:1]).needs_hooks


def test_hooks_of_torch_are_not_the_users() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 3)).eval()
    prune.l1_unstructured(network[1], "weight", 0.5)
    assert not has_hooks(network)
    with torch.no_grad():
        network[0].weight_g *= 2  # the weight itself is computed by the hook, at the next call
        expected = network(IMAGES)
        network[0].weight_g *= 2
    assert not torch.equal(isolated_copy(network)(IMAGES), expected)
    torch.testing.assert_close(isolated_copy(network)(IMAGES), network(IMAGES))


def test_a_hook_that_is_not_needed_is_called_once_at_most() -> None:
    calls: list[int] = []
    network = small_network().eval()
    network[0].register_forward_hook(lambda module, args, output: calls.append(1))
    calls_after_run: list[int] = []

    def run(module: nn.Module) -> list[Tensor]:
        output = module(IMAGES[:1])
        calls_after_run.append(len(calls))
        return [output]

    assert not needs_hooks(network, run)
    assert calls_after_run == [0, 1]
    assert calls == []


# ── copies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """A weight used twice, a module that is reached in three ways, and functions that close over modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.also = self.first
        self.blocks = [self.first, self.second]
        self.by_function = lambda images: self.second(images)
        self.register_buffer("shift", torch.ones(()))
        self.alias = self.shift

    def forward(self, images: Tensor) -> Tensor:
        self.shift += 1
        return self.by_function(self.blocks[0](images)) + self.also(images) + self.alias


def test_a_copy_refers_to_itself_where_the_network_does() -> None:
    network = Tied().eval()
    copied: Any = isolated_copy(network)
    assert copied.second.weight is copied.first.weight
    assert copied.also is copied.first
    assert copied.blocks[1] is copied.second
    assert copied.alias is copied.shift
    calls: list[nn.Module] = []
    copied.second.register_forward_hook(lambda module, args, output: calls.append(module))
    torch.testing.assert_close(copied(IMAGES), network(IMAGES))
    assert calls == [copied.second]
    assert float(network.shift) == 2
    assert {id(p) for p in copied.parameters()}.isdisjoint({id(p) for p in network.parameters()})
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(copied.parameters(), network.parameters(), strict=True))
    assert not any(p.requires_grad for p in copied.parameters())


def test_a_network_whose_forward_was_replaced_is_copied_with_it() -> None:
    network: Any = small_network().eval()
    network.forward = lambda images: network[1](network[0](images)) * 2
    copied: Any = isolated_copy(network)
    torch.testing.assert_close(copied(IMAGES), network(IMAGES))
    calls: list[int] = []
    network[0].register_forward_hook(lambda module, args, output: calls.append(1))
    copied(IMAGES)
    assert calls == []


def test_graph_modules_scripted_ones_and_parametrized_ones_are_copied() -> None:
    plain = small_network().eval()
    parametrized = small_network().eval()
    torch.nn.utils.parametrizations.weight_norm(parametrized[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(small_network().eval(), IMAGES[:1])
    for network in (torch.fx.symbolic_trace(plain), parametrized, scripted, nn.Sequential(scripted, nn.ReLU())):
        torch.testing.assert_close(isolated_copy(network)(IMAGES), network(IMAGES))


def test_attributes_that_a_module_leaves_out_of_its_state_are_not_copied() -> None:
    """As a Lightning module leaves out its trainer, with all its data."""

    class Module(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 2, 3))
            self.trainer: Any = Untouchable()

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "trainer": None}

    class Untouchable:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    network = Module().eval()
    copied: Any = isolated_copy(network)
    assert copied.trainer is None
    torch.testing.assert_close(copied(IMAGES), network(IMAGES))
