"""A training that is watched is the same as one that isn't, whatever becomes of the watching."""

import gc
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import write_photographs
from PIL import Image
from test_evolution import AS_IT_IS, network_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import unitscope
from unitscope.errors import AtlasError, ImagesError, LayerNotFound, NetworkError, UnitscopeError
from unitscope.experiments import Evolution
from unitscope.networks import network_from_module


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
        for given, expected in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(given), expected).backward()
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
    evolution = Evolution.open(tmp_path / "evolution")
    assert list(evolution.atlases) == ["epoch-001", "epoch-002", "epoch-003"]
    assert evolution.last.manifest["network"]["hash"] == network_from_module(network).hash()
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
    paths = {"network": tmp_path / "net.py", "photographs": photographs, "out": tmp_path / "out", "tests": Path(__file__).parent}
    program = PYTHONS_RANDOM_STATE.format(**{name: str(path) for name, path in paths.items()})
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
    with pytest.raises(UnitscopeError, match="every must be at least 1, not 0"):
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


class OwnDropout(nn.Module):
    """A dropout that eval mode doesn't switch off."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(maps, 0.5)


class Spared(nn.Module):
    """The network of the other tests, its blocks checkpointed."""

    def __init__(self, network: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.network, self.reentrant = network, reentrant

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, rest = self.network[:3], self.network[3:]  # type: ignore[index]
        maps = checkpoint(first, images, use_reentrant=self.reentrant)
        output: torch.Tensor = checkpoint(rest, maps, use_reentrant=self.reentrant)
        return output


def with_dropout(folder: Path) -> nn.Module:
    _, network = network_of(folder)
    return nn.Sequential(network.get_submodule("0"), OwnDropout(), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_training_is_recorded_with_projections(tmp_path: Path, reentrant: bool) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(Spared(network, reentrant), photographs, tmp_path / "out", preprocess=AS_IT_IS)
    recorder.epoch(1)
    plain = unitscope.Recorder(network, photographs, tmp_path / "plain", preprocess=AS_IT_IS)
    plain.epoch(1)
    last, other = recorder.evolution().last, plain.evolution().last
    assert last.methods == other.methods == ["deconvnet"]
    assert {name.removeprefix("network.") for name, _ in last.attributed("deconvnet")} == {
        n for n, _ in other.attributed("deconvnet")
    }


def test_projections_that_cant_be_made_end_and_the_recording_goes_on(tmp_path: Path) -> None:
    network = with_dropout(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2", "4"])
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for epoch in (1, 2, 3):
            recorder.epoch(epoch)
    warned = [warning for warning in warned if "projections" in str(warning.message)]
    assert len(warned) == 1
    assert str(warned[0].message).startswith("'epoch-001' and later epochs have no projections, and the training goes on: ")
    assert "\n" not in str(warned[0].message)
    assert list(recorder.evolution().atlases) == ["epoch-001", "epoch-002", "epoch-003"]
    assert torch.equal(torch.get_rng_state(), before)


def unmake_images(folder: Path) -> None:
    shutil.move(folder / "photographs", folder / "moved")


def mend_images(folder: Path) -> None:
    shutil.move(folder / "moved", folder / "photographs")


def block_folder(folder: Path) -> None:
    (folder / "out").write_text("in the way")


def clear_folder(folder: Path) -> None:
    (folder / "out").unlink()


def block_epoch(folder: Path) -> None:
    for number in (1, 2):
        (folder / "out" / f"epoch-00{number}").mkdir(parents=True)
        (folder / "out" / f"epoch-00{number}" / "mine.txt").touch()


def damage_images(folder: Path) -> None:
    shutil.copytree(folder / "photographs", folder / "moved")
    for path in (folder / "photographs").rglob("*.png"):
        path.write_bytes(b"")


def restore_images(folder: Path) -> None:
    shutil.rmtree(folder / "photographs")
    mend_images(folder)


@pytest.mark.parametrize(
    ("spoil", "mend", "said"),
    [
        (unmake_images, mend_images, "photographs"),
        (damage_images, restore_images, "none of 4 files"),
        (block_folder, clear_folder, "can't be"),
        (block_epoch, None, "is not empty"),
    ],
)
def test_an_epoch_that_cant_be_scanned_is_left_out_and_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, mend: Any, said: str
) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    network.train()
    spoil(tmp_path)
    with pytest.warns(UserWarning, match="'epoch-001' was not recorded, and the training goes on: ") as warned:
        assert recorder.record("epoch-001") is None
    assert said in str(warned[0].message)
    capsys.readouterr()
    recorder.epoch(2)
    assert capsys.readouterr().err == ""  # without another word
    if mend is not None:
        mend(tmp_path)
    recorder.epoch(3)
    assert list(recorder.evolution().atlases) == ["epoch-003"]
    assert all(module.training for module in network.modules())


class Moody(nn.Module):
    """Other values each time, which a scan warns of."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + torch.rand(())


def test_warnings_that_are_errors_are_lines_on_stderr_and_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the scan, and the recorder's own; each once."""
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(
        nn.Sequential(Moody(), network), photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["1.2"]
    )
    filters = list(warnings.filters)
    assert ("error", None, Warning, None, 0) in filters  # as pytest is set up
    for epoch in (1, 2):
        recorder.epoch(epoch)
    assert list(recorder.evolution().atlases) == ["epoch-001", "epoch-002"]
    [line] = [line for line in capsys.readouterr().err.splitlines() if "differ from run to run" in line or "random" in line]
    assert line.startswith("UserWarning: ")
    unmake_images(tmp_path)
    for epoch in (3, 4):
        recorder.epoch(epoch)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("UserWarning: 'epoch-003' was not recorded, and the training goes on: ")
    assert warnings.filters == filters


def test_what_a_scan_warns_of_is_said_once_a_training(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(
        nn.Sequential(Moody(), network), photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["1.2"]
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for epoch in (1, 2):
            recorder.epoch(epoch)
    texts = [str(warning.message) for warning in warned]
    assert texts
    assert len(set(texts)) == len(texts)


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", ".", "..", ".hidden", "a\0b", "evolution.json", "evolution.parquet", 3, None, b"x"]
)
def test_a_name_that_is_no_folders_is_said_once_and_nothing_is_recorded(tmp_path: Path, name: Any) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers="2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="^.* was not recorded, and the training goes on: .*name") as warned:
        assert [recorder.record(name) for _ in range(2)] == [None, None]
    assert len(warned) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert isinstance(recorder.record("é x"), unitscope.Atlas)
    assert list(recorder.evolution().atlases) == ["é x"]


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("number", ["3", None, 1.5, [1]])
def test_an_epoch_that_is_no_number_is_said_once_and_not_recorded(tmp_path: Path, number: Any) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers="2")
    with pytest.warns(UserWarning, match="^epoch .* was not recorded, and the training goes on: .* whole number, not ") as warned:
        _ = [recorder.epoch(number) for _ in range(2)]
    assert len(warned) == 1
    assert not (tmp_path / "out").exists()
    recorder.epoch(np.int64(2))  # type: ignore[arg-type]
    assert list(recorder.evolution().atlases) == ["epoch-002"]


def test_a_training_with_one_layer_alone_goes_on(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    for _ in range(2):
        recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers="2", go_on=True)
        assert isinstance(recorder.record("first"), unitscope.Atlas)
    assert list(recorder.evolution().atlases) == ["first"]


def test_a_user_can_still_stop_a_training(tmp_path: Path) -> None:
    class Stopped(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(nn.Sequential(network, Stopped()), photographs, tmp_path / "out", preprocess=AS_IT_IS)
    with pytest.raises(KeyboardInterrupt):
        recorder.epoch(1)


def test_an_epoch_that_comes_twice_has_a_number_more(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    recorder.epoch(1)
    recorder.epoch(1)  # the same weights
    assert list(recorder.evolution().atlases) == ["epoch-001"]
    for _ in range(2):
        with torch.no_grad():
            network.get_parameter("0.weight").mul_(1.5)
        recorder.epoch(1)
    recorder.epoch(2)
    assert list(recorder.evolution().atlases) == ["epoch-001", "epoch-001-2", "epoch-001-3", "epoch-002"]
    hashes = [atlas.manifest["network"]["hash"] for atlas in recorder.evolution().atlases.values()]
    assert hashes[2] == hashes[3] == network_from_module(network).hash()
    assert len(set(hashes)) == 3


def test_two_recorders_dont_write_to_one_folder(tmp_path: Path) -> None:
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    first = unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS)
    for out in (tmp_path / "out", str(tmp_path / "photographs" / ".." / "out"), tmp_path / "link"):
        with pytest.raises(AtlasError, match="another recorder writes to '.*'; give another out, or go_on=True"):
            unitscope.Recorder(network, photographs, out, preprocess=AS_IT_IS)
    unitscope.Recorder(network, photographs, tmp_path / "other", preprocess=AS_IT_IS)
    del first
    gc.collect()
    unitscope.Recorder(network, photographs, tmp_path / "out", preprocess=AS_IT_IS)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"every": 0}, UnitscopeError, "every must be at least 1, not 0"),
        ({"images": "nowhere"}, ImagesError, "nowhere"),
        ({"preprocess": None}, NetworkError, "nothing is known of how"),
        ({"preprocess": "as usual"}, NetworkError, "is neither a unitscope.Preprocessing nor"),
        ({"layers": ["2", "conv9"]}, LayerNotFound, "no layer 'conv9'"),
        ({"layers": "relu*"}, LayerNotFound, "no layer 'relu.'"),
        ({"out": "file"}, AtlasError, "can't be written: .*file' is a file"),
        ({"out": "file/deep"}, AtlasError, "can't be written: .*file' is a file"),
    ],
)
def test_what_cant_work_is_said_when_a_recorder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _, network = network_of(tmp_path)
    (tmp_path / "file").touch()
    write_photographs(tmp_path / "photographs", 4, (24, 24))
    given = {"network": network, "images": "photographs", "out": "out", "preprocess": AS_IT_IS, "layers": ["2", "[34]", "4#1"]}
    with pytest.raises(error, match=said):
        unitscope.Recorder(**(given | changed))
    unitscope.Recorder(**given)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_callback_can_be_sent_to_another_process(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    _, network = network_of(tmp_path)
    photographs = write_photographs(tmp_path / "photographs", 4, (24, 24))
    recorder = unitscope.Recorder(network, str(photographs), tmp_path / "out", preprocess=AS_IT_IS, layers=["2"])
    sent = pickle.dumps([network, recorder.callback()])
    (tmp_path / "sent").write_bytes(sent)
    program = (
        "import pickle, sys; network, callback = pickle.load(open(sys.argv[1], 'rb')); import pytorch_lightning\n"
        "assert callback.recorder.network is network and isinstance(callback, pytorch_lightning.Callback)\n"
        "callback.recorder.epoch(1)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path / "sent")], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert list(recorder.evolution().atlases) == ["epoch-001"]


LIGHTNING = """
import sys, torch, warnings
sys.path.insert(0, {tests!r})
import pytorch_lightning as lightning
import unitscope
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pathlib import Path
from test_evolution import AS_IT_IS, network_of
from torch import nn

class Training(lightning.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network
    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

if __name__ == "__main__":
    folder, way = Path(sys.argv[1]), sys.argv[2]
    _, network = network_of(folder)
    recorder = unitscope.Recorder(network, str(folder / "photographs"), folder / "out", preprocess=AS_IT_IS, layers=["2", "4"])
    averaging = [StochasticWeightAveraging(0.01, swa_epoch_start=1)] if way == "averaging" else []
    spawned = dict(strategy="ddp_spawn", devices=2) if way == "spawned" else {{}}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*averaging, recorder.callback()], **spawned,
    )
    images, labels = torch.randn(8, 3, 24, 24), torch.randint(2, (8,))
    trainer.fit(Training(network), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4))
    print(list(recorder.evolution().atlases))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "recorded"),
    [("spawned", ["epoch-001", "epoch-002"]), ("averaging", ["epoch-001", "epoch-002", "epoch-003"])],
)
def test_lightnings_ways_to_train_are_recorded(tmp_path: Path, way: str, recorded: list[str]) -> None:
    pytest.importorskip("pytorch_lightning")
    write_photographs(tmp_path / "photographs", 4, (24, 24))
    (tmp_path / "training.py").write_text(LIGHTNING.format(tests=str(Path(__file__).parent)))
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "training.py"), str(tmp_path), way], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == str(recorded), ran.stderr
    assert "was not recorded" not in ran.stderr
