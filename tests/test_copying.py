"""Copies compute what the network computes, and running them leaves it alone, however its modules refer to each other."""

import gc
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import unitscope
from unitscope.networks.isolation import isolated_copy

IMAGES = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    """A convolution and a batch norm that count their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, maps: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(maps)).relu()


class Body(nn.Module):
    """Calls its block through a reference."""

    def __init__(self, make_reference: Callable[[nn.Module, Block], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = Block()
        self.last = nn.Conv2d(4, 3, 3)
        self.act = nn.ReLU()
        self.reference = make_reference(self, self.block)

    def forward(self, images: Tensor) -> Tensor:
        block = self.reference
        while isinstance(block, (list, tuple, deque)):
            block = block[0]
        if isinstance(block, dict):
            block = next(iter(block.values()))
        if isinstance(block, (weakref.ref, weakref.WeakMethod)):
            block = block()
        return self.act(self.last(block(images)))


class Helper:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, images: Tensor) -> Tensor:
        return self.module(images)


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, images: Tensor) -> Tensor:
        return self.module(images)


Pair = namedtuple("Pair", "first second")


def patched(network: nn.Module, block: Block) -> Any:
    """The everyday patch: a function that calls the method that it replaces."""
    forward = block.forward

    @wraps(forward)
    def timed(images: Tensor) -> Tensor:
        return forward(images)

    block.forward = timed
    return [block]


def closure_over(content: Any) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        inner = content
        while isinstance(inner, list):
            inner = inner[0]
        return (inner() if isinstance(inner, weakref.ref) else inner)(images)

    return run


def recursive(block: Block) -> Callable[..., Tensor]:
    def run(images: Tensor, recurse: bool = True) -> Tensor:
        return run(images, False) if recurse else block(images)

    return run


def with_default(block: Block) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor, block: Block = block) -> Tensor:
        return block(images)

    return run


def with_keyword(block: Block) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor, *, block: Block = block) -> Tensor:
        return block(images)

    return run


REFERENCES: dict[str, Callable[[nn.Module, Block], Any]] = {
    "the module": lambda _, block: [block],
    "its method": lambda _, block: block.forward,
    "a patched forward": patched,
    "a closure over it": lambda _, block: closure_over(block),
    "a closure over a list": lambda _, block: closure_over([[block]]),
    "a closure over a method": lambda _, block: closure_over(block.forward),
    "a closure over a closure": lambda _, block: closure_over(closure_over(block)),
    "a closure over a weak reference": lambda _, block: closure_over(weakref.ref(block)),
    "a closure over itself": lambda _, block: recursive(block),
    "a default": lambda _, block: with_default(block),
    "a keyword's default": lambda _, block: with_keyword(block),
    "a partial": lambda _, block: partial(lambda b, images: b(images), block),
    "a partial's keyword": lambda _, block: partial(lambda images, b: b(images), b=block),
    "a partial of a method": lambda _, block: partial(block.forward),
    "a helper's method": lambda _, block: Helper(block).run,
    "an object with slots": lambda _, block: Slotted(block),
    "a namespace": lambda _, block: types.SimpleNamespace(module=block).module.forward,
    "a named tuple": lambda _, block: Pair(block, 1),
    "a dictionary with an order": lambda _, block: OrderedDict(a=block),
    "a dictionary with a default": lambda _, block: defaultdict(list, a=block),
    "a queue": lambda _, block: deque([block], maxlen=3),
    "functions in a list": lambda _, block: [[closure_over(block)]],
    "a weak reference": lambda _, block: weakref.ref(block),
    "a weak method": lambda _, block: weakref.WeakMethod(block.forward),
    "a weak proxy": lambda _, block: [weakref.proxy(block)],
    "a weak dictionary": lambda _, block: closure_over(weakref.WeakValueDictionary(a=block)["a"]),
    "a compiled function": lambda _, block: torch.compile(block.forward, backend="eager"),
}


def state(network: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_state(network: nn.Module, expected: dict[str, Any]) -> None:
    state_dict = network.state_dict()
    assert state_dict.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state_dict[name], expected[name])] == []


@pytest.mark.filterwarnings("ignore:.*SWIG.*:DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", REFERENCES)
def test_a_copy_refers_to_its_own_modules(kind: str, training: bool) -> None:
    network = Body(REFERENCES[kind]).train(training)
    original_state, calls = state(network), network.block.calls
    copied = isolated_copy(network)
    with torch.no_grad():
        output = copied(IMAGES)
    assert_state(network, original_state)
    assert (network.block.calls, copied.block.calls) == (calls, calls + 1)
    with torch.no_grad():
        assert torch.equal(output, network.eval()(IMAGES))


@pytest.mark.parametrize("kind", ["a patched forward", "a partial's keyword", "a helper's method", "a weak reference"])
def test_a_scan_of_a_training_network_reads_all_its_layers_and_leaves_it_alone(kind: str, tmp_path: Path) -> None:
    network = Body(REFERENCES[kind]).train()
    original_state = state(network)
    atlas = unitscope.scan(network, TensorDataset(IMAGES), tmp_path / "atlas")
    assert_state(network, original_state)
    assert network.block.calls == 0
    assert "block.norm" in {layer.name for layer in atlas.layers}
    assert not unitscope.check(atlas, network).differences


def test_a_whole_forward_that_was_wrapped_is_copied(tmp_path: Path) -> None:
    network = Body(REFERENCES["the module"])
    network.forward = torch.compile(network.forward, backend="eager")
    atlas = unitscope.scan(network, TensorDataset(IMAGES), tmp_path / "atlas")
    assert [layer.name for layer in atlas.layers] == ["block.norm", "act"]
    assert network.block.calls == 0


class Writer:
    """Closes its file when it is collected."""

    def __init__(self, path: Path, module: nn.Module | None = None) -> None:
        self.file, self.module, self.lines = path.open("w"), module, ["one"]

    def __call__(self, images: Tensor) -> Tensor:
        return self.module(images)

    def __del__(self) -> None:
        if self.module is None:
            self.file.close()


def test_an_object_that_cant_be_copied_is_not_copied_in_part(tmp_path: Path) -> None:
    network = Body(lambda _, block: [block])
    network.writer = Writer(tmp_path / "log")
    copied = isolated_copy(network)
    assert copied.writer is network.writer
    del copied
    gc.collect()
    assert not network.writer.file.closed


class LockHolder:
    """Has a function that holds a lock, and a count."""

    def __init__(self) -> None:
        lock = threading.Lock()

        def acquire() -> None:
            with lock:
                pass

        self.acquire, self.count = acquire, [0]


def test_a_lock_behind_a_function_is_no_part_of_an_object() -> None:
    network = Body(lambda _, block: [block])
    network.holder = LockHolder()
    copied = isolated_copy(network)
    assert copied.holder.count is not network.holder.count
    assert copied.holder.acquire is network.holder.acquire


def test_an_object_that_cant_be_copied_is_copied_in_part_where_it_leads_to_the_network(tmp_path: Path) -> None:
    network = Body(lambda _, block: Writer(tmp_path / "log", block)).eval()
    copied = isolated_copy(network)
    copied(IMAGES)
    assert (network.block.calls, copied.block.calls) == (0, 1)
    assert copied.reference.file is network.reference.file
    network.reference.file.close()


# ── tables whose keys are modules ───────────────────────────────────────────────────────────────────────────────────


class Keyed(nn.Module):
    """Scales each of two layers by its entry in a table."""

    def __init__(self, make_table: Callable[[nn.Module, nn.Module], Any], key: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
        self.table, self.key = make_table(self.first, self.second), key

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images) * self.table.get(self.key(self.first), 1.0)
        return (self.second(maps) * self.table.get(self.key(self.second), 1.0)).relu()


@pytest.mark.parametrize(
    ("make_table", "key"),
    [
        (lambda first, second: {first: 3.0, second: -2.0}, lambda module: module),
        (lambda first, second: {id(first): 3.0, id(second): -2.0}, id),
        (lambda first, second: weakref.WeakKeyDictionary({first: 3.0, second: -2.0}), lambda module: module),
        (lambda first, second: OrderedDict({first: 3.0, second: -2.0}), lambda module: module),
    ],
)
def test_keys_that_are_modules_become_those_of_the_copy(make_table: Any, key: Any) -> None:
    network = Keyed(make_table, key).eval()
    assert torch.equal(isolated_copy(network)(IMAGES), network(IMAGES))


# ── tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class TripleGain(nn.Parameter):
    """A parameter whose class means that it counts three times."""


class Marked(nn.Module):
    """Reads attributes and classes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.weight.mask = torch.tensor([1.0, 0, 1, 0])[:, None, None, None]  # type: ignore[attr-defined]
        self.gain = TripleGain(torch.ones(4, 1, 1))
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.scale.factor = 5.0

    def forward(self, images: Tensor) -> Tensor:
        weight = self.conv.weight
        mask = getattr(weight, "mask", None)
        maps = nn.functional.conv2d(images, weight if mask is None else weight * mask, self.conv.bias)
        maps = maps * (self.gain * 3 if isinstance(self.gain, TripleGain) else self.gain)
        return maps * self.scale * getattr(self.scale, "factor", 1.0)


def test_attributes_and_classes_of_tensors_are_kept() -> None:
    network = Marked().eval()
    copied = isolated_copy(network)
    assert torch.equal(copied(IMAGES), network(IMAGES))
    assert copied.conv.weight.data_ptr() == network.conv.weight.data_ptr()
    assert copied.conv.weight.mask is not network.conv.weight.mask  # type: ignore[attr-defined]


class Pooled(nn.Module):
    """Two buffers that are halves of a third, and a view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 3, 3)
        self.register_buffer("pool", torch.zeros(16, 8, 10, 10), persistent=False)
        self.left, self.right = self.pool[:, :4], self.pool[:, 4:]
        self.row = self.conv.weight.data[0]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        self.left[: len(images)] = maps
        self.right[: len(images)] = maps.relu() * self.row.sum()
        return self.last(self.pool[: len(images)])


def test_tensors_that_share_memory_share_that_of_the_copy() -> None:
    network = Pooled().eval()
    copied = isolated_copy(network)
    with torch.no_grad():
        output = copied(IMAGES)
        assert not network.pool.any()
        assert copied.row.data_ptr() == network.conv.weight.data_ptr()
        assert torch.equal(output, network(IMAGES))


# ── modules that are rebuilt ────────────────────────────────────────────────────────────────────────────────────────


class Rebuilt(nn.Module):
    """Leaves a function out when it is pickled, and makes it again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = lambda maps: maps * 2

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.function = lambda maps: maps * 2

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self.conv(images))


class WithSlots(Rebuilt):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = 3.0

    def __getstate__(self) -> Any:
        return object.__getstate__(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images) * self.factor


class Table(nn.Module, dict):  # type: ignore[type-arg]
    """A module that is a dictionary as well."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self["layer"] = self.conv

    __hash__ = object.__hash__

    def forward(self, images: Tensor) -> Tensor:
        return self["layer"](images)


class Recurrent(nn.Module):
    """Reads the rows of a map one after the other."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rows = nn.Conv2d(3, 4, 3), kind(4 * 10, 6, batch_first=True)  # type: ignore[call-arg]

    def forward(self, images: Tensor) -> Tensor:
        return self.rows(self.conv(images).permute(0, 2, 1, 3).flatten(2))[0]


@pytest.mark.parametrize(
    "make_network", [Rebuilt, WithSlots, Table, *(partial(Recurrent, kind) for kind in (nn.LSTM, nn.GRU, nn.RNN))]
)
def test_modules_with_an_unusual_state_are_copied(make_network: Callable[[], nn.Module]) -> None:
    network = make_network().eval()
    copied = isolated_copy(network)
    del make_network
    gc.collect()
    assert torch.equal(copied(IMAGES), network(IMAGES))


def test_a_scan_goes_through_recurrent_layers(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out"):
        atlas = unitscope.scan(Recurrent(nn.GRU), TensorDataset(IMAGES), tmp_path / "atlas", layers=["*"])
    assert [layer.name for layer in atlas.layers] == ["conv"]


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Fused(nn.Module):
    """A hook fills a table that a later module holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        store: dict[str, Tensor] = {}
        self.first, self.last, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3), nn.ReLU()
        self.first.register_forward_hook(lambda module, args, output: store.update(first=output))
        self.last.store = store

    def forward(self, images: Tensor) -> Tensor:
        self.first(images)
        return self.act(self.last(self.last.store["first"]))


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_table_that_a_hook_fills_is_the_one_that_a_module_of_the_copy_reads(ran_before: bool, tmp_path: Path) -> None:
    network = Fused().eval()
    if ran_before:
        network(IMAGES[:1])
    atlas = unitscope.scan(network, TensorDataset(IMAGES), tmp_path / "atlas", k=3)
    network.requires_grad_(False)
    expected = torch.cat([network.last(network.first(image[None])) for image in IMAGES]).flatten(2).amax(2)
    for row in atlas.peaks("act").to_pylist():
        assert row["value"] == pytest.approx(float(expected[row["image"], row["unit"]]), rel=1e-5)
