"""One network at several moments; and a training that is watched is the same as one that isn't."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import write_photographs
from PIL import Image
from planted import AS_IT_IS as PLANTED
from planted import planted_images, planted_network
from torch import nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.errors import AtlasError, UnitscopeError
from unitscope.experiments import Evolution, evolve
from unitscope.experiments.evolving import _change
from unitscope.networks import given_network
from unitscope.records import Preprocessing

AS_IT_IS = Preprocessing(None, (24, 24), (0.5,) * 3, (0.25,) * 3)
NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(5 * 11 * 11, 2),
    )
"""


def network_of(folder: Path) -> tuple[str, nn.Module]:
    (folder / "net.py").write_text(NETWORK)
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    return f"{folder / 'net.py'}:net", space["net"]()


def checkpoints(folder: Path, network: nn.Module, count: int = 3) -> list[Path]:
    """The network with its last convolution changed more and more."""
    paths = []
    for number in (1, 2, 10)[:count]:
        with torch.no_grad():
            convolution: Any = network.get_submodule("3")
            convolution.weight += torch.randn(convolution.weight.shape, generator=torch.Generator().manual_seed(number)) / 4
        paths.append(folder / f"epoch-{number}.pt")
        torch.save(network.state_dict(), paths[-1])
    return paths


def test_checkpoints_become_a_family_of_atlases(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 14, (24, 24))
    paths = checkpoints(tmp_path, network)
    evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    assert list(evolution.atlases) == ["epoch-1", "epoch-2", "epoch-10"]
    rows = evolution.settling().to_pylist()
    assert {row["before"] for row in rows} == {"epoch-1", "epoch-2"}
    assert all(row["overlap"] == 1 and row["jumps"] == 0 for row in rows if row["layer"] == "2")  # its weights stay
    assert any(row["overlap"] < 1 for row in rows if row["layer"] == "4")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == written
    figure = np.asarray(again.figure(size_px=40))
    assert figure.shape[1] > 3 * 40
    assert (figure == (226, 112, 58)).all(2).any()  # a jump
    layer = evolution.last.layers[0]
    moments = evolution._moments(layer, evolution._shown(layer)[0], 40)
    assert [moment.projection is not None for moment in moments] == [True, True, True]


def test_moments_come_in_the_order_given(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    names = ("start", "middle", "end")
    paths = [path.rename(tmp_path / f"{name}.pt") for path, name in zip(checkpoints(tmp_path, network), names, strict=True)]
    evolution = evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    assert tuple(evolution.atlases) == tuple(Evolution(tmp_path / "out").atlases) == names
    with pytest.raises(AtlasError, match="start' holds an atlas of other layers; give another out"):
        evolve(model, paths, photographs, tmp_path / "out", preprocess=AS_IT_IS)


def test_overlap_and_jumps_by_hand() -> None:
    import pyarrow as pa

    def peaks(*rows: tuple[int, int, int]) -> pa.Table:
        return pa.table({name: [row[place] for row in rows] for place, name in enumerate(("unit", "rank", "image"))})

    before = peaks((0, 1, 5), (0, 2, 6), (1, 1, 5))
    after = peaks((0, 1, 6), (0, 2, 7), (2, 1, 1))
    overlap, jumps = _change(before, after, 4)
    assert overlap == pytest.approx((0.5 + 0 + 0) / 3)
    assert jumps == 1
    assert _change(before, before, 4) == (1, 0)


def test_what_doesnt_belong_together_is_refused(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 6, (24, 24))
    with pytest.raises(AtlasError, match="holds no atlases; make them with: unitscope evolve"):
        Evolution(tmp_path)
    paths = checkpoints(tmp_path, network, 2)
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / paths[0].name
    twin.write_bytes(paths[0].read_bytes())
    with pytest.raises(AtlasError, match="two checkpoints have the name 'epoch-1'"):
        evolve(model, [paths[0], twin], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    evolve(model, paths[:1], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    twin.write_bytes(paths[1].read_bytes())
    with pytest.raises(AtlasError, match="holds an atlas of other weights"):
        evolve(model, [twin], photographs, tmp_path / "out", preprocess=AS_IT_IS)
    unitscope.scan(network, photographs, tmp_path / "out" / "more", preprocess=AS_IT_IS, layers=["2"])
    with pytest.raises(AtlasError, match="has other layers than"):
        Evolution(tmp_path / "out")


# ── inside a training loop ──────────────────────────────────────────────────────────────────────────────────────────


def trained(folder: Path, photographs: Path, watched: bool) -> tuple[dict[str, torch.Tensor], tuple[Any, ...], nn.Module]:
    """Weights and random states after three epochs with dropout, batch norm and shuffling."""
    _, network = network_of(folder)
    np.random.seed(1)
    torch.manual_seed(1)
    network.train()
    network.get_submodule("4").eval()  # a mode of its own
    images = torch.randn(32, 3, 24, 24)
    labels = torch.randint(2, (32,))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    recorder = unitscope.Recorder(network, photographs, folder / "evolution", preprocess=AS_IT_IS) if watched else None
    for epoch in range(1, 4):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 8, shuffle=True)
        for given, wanted in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(given), wanted).backward()
            optimiser.step()
        if recorder is not None:
            before = [(name, module.training) for name, module in network.named_modules()]
            gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
            recorder.epoch(epoch)
            assert [(name, module.training) for name, module in network.named_modules()] == before
            for gradient, parameter in zip(gradients, network.parameters(), strict=True):
                assert parameter.grad is not None
                assert gradient is not None
                assert torch.equal(gradient, parameter.grad)
    states = np.random.rand(), float(torch.rand(()))
    return network.state_dict(), states, network


def test_a_training_that_is_watched_gives_the_same_weights(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", 8, (24, 24))
    alone, random_alone, _ = trained(tmp_path, photographs, watched=False)
    seen, random_seen, network = trained(tmp_path, photographs, watched=True)
    assert random_alone == random_seen
    assert all(torch.equal(alone[name], seen[name]) for name in alone)
    evolution = Evolution(tmp_path / "evolution")
    assert list(evolution.atlases) == ["epoch-001", "epoch-002", "epoch-003"]
    assert evolution.last.manifest["network"]["hash"] == given_network(network).hash()
    assert unitscope.check(evolution.last, network).differences == []
    assert evolution.last.methods == ["deconvnet"]
    assert isinstance(evolution.figure(size_px=24), Image.Image)


PYTHONS_RANDOM_STATE = """
import random, sys
sys.path.insert(0, {tests!r})
import unitscope
from unitscope.records import Preprocessing
space = {{}}
exec(open({network!r}).read(), space)
preprocess = Preprocessing(None, (24, 24), (0.5,) * 3, (0.25,) * 3)
recorder = unitscope.Recorder(space["net"](), {photographs!r}, {out!r}, preprocess=preprocess)
random.seed(1)
state = random.getstate()
recorder.epoch(1)
assert random.getstate() == state
"""


@pytest.mark.slow
def test_pythons_random_state_stays(tmp_path: Path) -> None:
    """In a process of its own: beartype, which checks all other tests, draws random numbers itself."""
    network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    said = {"network": tmp_path / "net.py", "photographs": photographs, "out": tmp_path / "out", "tests": Path(__file__).parent}
    program = PYTHONS_RANDOM_STATE.format(**{name: str(path) for name, path in said.items()})
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_only_every_nth_epoch_is_scanned(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", every=2, preprocess=AS_IT_IS, layers=["2"])
    for epoch in range(1, 5):
        recorder.epoch(epoch)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["epoch-002", "epoch-004", "evolution.json"]
    assert list(recorder.evolution().atlases) == ["epoch-002", "epoch-004"]
    with pytest.raises(AtlasError, match="holds an evolution already; give another out"):
        unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    more = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"], go_on=True)
    more.record("at the end")
    more.record("afterwards")
    assert list(more.evolution().atlases) == ["epoch-002", "epoch-004", "at the end", "afterwards"]
    with pytest.raises(UnitscopeError, match="every must be at least 1"):
        unitscope.Recorder(network, photographs, every=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_lightning_calls_the_recorder(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))

    class Training(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, number: int) -> Any:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2", "4"])
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[recorder.callback()],
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 24, 24), torch.randint(2, (8,)))
    trainer.fit(Training(), torch.utils.data.DataLoader(data, 4))
    assert list(recorder.evolution().atlases) == ["epoch-001", "epoch-002"]


@pytest.mark.slow
def test_the_command_line_evolves(tmp_path: Path) -> None:
    model, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 8, (24, 24))
    paths = [str(path) for path in checkpoints(tmp_path, network)]
    out = tmp_path / "out"
    arguments = [*paths, "--model", model, "--images", str(photographs), "--out", str(out)]
    sizes = ["--crop", "24", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    done = subprocess.run(
        [sys.executable, "-m", "unitscope", "evolve", *arguments, *sizes], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "overlap" in done.stdout
    with Image.open(out / "figure.png") as figure:
        assert figure.width > 300
    assert isinstance(Atlas(out / "epoch-10"), Atlas)


def test_units_that_show_no_preference_do_not_count_in_settling(tmp_path: Path) -> None:
    """Unit 0 ties in the first moment and is dead in the second, which says nothing of how far the layer has settled."""
    images, network = planted_images(tmp_path / "images"), planted_network()
    unitscope.scan(network, images, tmp_path / "run" / "epoch-1", preprocess=PLANTED)
    with torch.no_grad():
        network[0].weight[0] = -1
    unitscope.scan(network, images, tmp_path / "run" / "epoch-2", preprocess=PLANTED)
    evolution = Evolution(tmp_path / "run")
    assert {row["layer"]: row["overlap"] for row in evolution.settling().to_pylist()} == {"1": 1.0, "3": 1.0}
    assert evolution.figure(layers=["1"]).size
