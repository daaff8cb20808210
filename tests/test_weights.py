"""Which files hold weights, and which of several state dicts in one file is loaded."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from unitscope.errors import NetworkError
from unitscope.networks import load_network
from unitscope.networks.weights import read_state_dict, split_key

FACTORY = """
from torch import nn
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return f"{tmp_path / 'mine.py'}:network"


def state_of(value: float, prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict of the network, all of one value, by which it is recognised."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return {f"{prefix}{name}": torch.full_like(tensor, value) for name, tensor in network.state_dict().items()}


def value_of(model: str, weights: object) -> float:
    parameter: Any = load_network(model, str(weights)).module.get_parameter("0.weight")
    assert len(parameter.unique()) == 1
    return float(parameter.detach().flatten()[0])


OPTIMISER = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
PLAIN_AND_AVERAGED: dict[str, tuple[dict[str, Any], str]] = {
    "timm": ({"epoch": 1, "state_dict_ema": state_of(2), "state_dict": state_of(1), "optimizer": OPTIMISER}, "state_dict_ema"),
    "torchvision": (
        {"model_ema": state_of(2, "module.") | {"n_averaged": torch.ones(1)}, "model": state_of(1)},
        "model_ema.module",
    ),
    "ema": ({"ema": state_of(2), "model": state_of(1)}, "ema"),
    "ema_state_dict": ({"model_state_dict": state_of(1), "ema_state_dict": state_of(2)}, "ema_state_dict"),
    "deep": ({"nets": {"student": state_of(1), "average": {"weights": state_of(2)}}}, "nets.average.weights"),
    "Lightning": ({"state_dict": state_of(2, "ema_model.") | state_of(1, "model.")}, "ema_model"),
    "one state dict": (state_of(1) | state_of(2, "ema."), "ema"),
    "DataParallel": ({"ema": state_of(2, "module."), "state_dict": state_of(1, "module.")}, "ema.module"),
}
"""Checkpoints with plain weights of value 1 and averaged ones of value 2, and the key of the averaged ones."""


@pytest.mark.parametrize("kind", PLAIN_AND_AVERAGED)
def test_of_plain_and_averaged_weights_the_plain_ones_are_taken_and_the_key_chooses(
    tmp_path: Path, model: str, kind: str
) -> None:
    checkpoint, key = PLAIN_AND_AVERAGED[kind]
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.warns(UserWarning, match=r"hold 2 sets that fit; .* is taken. Others: --weights .*last.pt:") as caught:
        assert value_of(model, tmp_path / "last.pt") == 1
    assert len(caught) == 1
    assert value_of(model, f"{tmp_path / 'last.pt'}:{key}") == 2
    other = str(caught[0].message).rpartition("--weights ")[2]
    assert value_of(model, other) == 2  # the argument that the warning names works


@pytest.mark.parametrize(
    ("checkpoint", "key"),
    [
        (state_of(1), ""), (state_of(1, "module."), "module"), ({"state_dict": state_of(1, "module.model.")}, "state_dict.module.model"),
        ({"model": {"state_dict": state_of(1)}}, "model.state_dict"), ({"ema": state_of(1), "optimizer": OPTIMISER}, "ema"),
        ({"state_dict": state_of(1), "hyper": {}, "names": ["a"]}, "state_dict"),
        ({"state_dict": state_of(1, "model.") | {"loss.weight": torch.ones(3)}}, "state_dict.model"),
        ({"params_ema": state_of(1)}, "params_ema"), ({"net": state_of(1, "module."), "acc": 91.2}, "net.module"),
        ({"state_dict": state_of(1, "backbone.")}, "state_dict.backbone"), (state_of(1, "_orig_mod."), ""),
        ({"model": state_of(1, "module._orig_mod.")}, "model.module"), ({"model_ema": state_of(1, "module."), "n_averaged": torch.ones(1)}, "model_ema.module"),
    ],
)  # fmt: skip
def test_of_a_file_with_one_state_dict_the_network_says_where_it_stands_there(
    tmp_path: Path, model: str, checkpoint: dict[str, Any], key: str
) -> None:
    torch.save(checkpoint, tmp_path / "last.pt")
    assert value_of(model, tmp_path / "last.pt") == 1  # without a warning, which would be an error here
    network = load_network(model, str(tmp_path / "last.pt"))
    assert network.weights == f"{tmp_path / 'last.pt'}:{key}".removesuffix(":")
    assert load_network(model, network.weights).hash() == network.hash()


def test_the_key_is_part_of_the_networks_weights(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": state_of(2), "model": state_of(1)}, "last.pt")
    network = load_network(model, "last.pt:ema")
    assert network.weights == f"{tmp_path / 'last.pt'}:ema"
    assert load_network(model, network.weights).hash() == network.hash()


def test_a_key_that_isnt_there_names_those_that_are(tmp_path: Path, model: str) -> None:
    torch.save({"model_ema": state_of(2), "model": state_of(1)}, tmp_path / "last.pt")
    with pytest.raises(
        NetworkError, match="have nothing under 'model_emma'. Close: 'model_ema', 'model'. Their keys: model_ema, model$"
    ):
        load_network(model, f"{tmp_path / 'last.pt'}:model_emma")


@given(
    st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1),
    st.sampled_from(["C:\\nets\\last.pt", "/nets/last.pt"]),
)
def test_a_path_that_isnt_there_is_a_path_whatever_its_colons(key: str, path: str) -> None:
    for weights in (path, f"{path}:{key}"):
        assert split_key(weights) == (Path(weights), "")


def test_a_file_whose_name_has_a_colon_is_that_file(tmp_path: Path, model: str) -> None:
    torch.save(state_of(1), tmp_path / "last")
    torch.save(state_of(2), tmp_path / "last:ema")
    assert value_of(model, tmp_path / "last:ema") == 2
    torch.save({"a": state_of(3)}, tmp_path / "12:30.pt")
    assert value_of(model, f"{tmp_path / '12:30.pt'}:a") == 3


# ── files of other kinds ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"", "are empty: 0 bytes, as after a download that failed; fetch them again"),
        ("w.safetensors", b"", "are empty: 0 bytes"),
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "is a pointer of Git LFS.*: git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("w.h5", b"\x89HDF\r\n\x1a\n....", "is an HDF5 file, as Keras writes; load it there"),
        ("w.pt", b"\x89HDF\r\n\x1a\n....", "is an HDF5 file"),
        ("w.keras", b"PK\x03\x04", "is a Keras file"),
        ("w.onnx", b"\x08\x07", "is an ONNX graph; give the network that it was exported from"),
        ("w.pt", b"<!DOCTYPE html><html>", "is a web page, not weights"),
        ("w.pt.gz", b"\x1f\x8b\x08", "is packed with gzip; unpack it first"),
        ("w.gguf", b"GGUF\x03", "is a GGUF file"),
        ("w.safetensors", b"nonsense that is no header", "can't be read: SafetensorError"),
        ("w.index.json", b"{", "can't be read: JSONDecodeError"),
        ("w.index.json", b"[]", "are no index of shards"),
        ("w.index.json", b'{"weight_map": {"0.weight": "../w.safetensors"}}', "are no index of shards"),
        ("w.index.json", b'{"weight_map": {"0.weight": "w-1.safetensors"}}', "name the file 'w-1.safetensors', which isn't beside"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_with_what_to_do(
    tmp_path: Path, model: str, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetworkError, match=message) as caught:
        load_network(model, str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_torchscript_archive_is_not_run(tmp_path: Path, model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.script(nn.Conv2d(3, 4, 3)).save(str(tmp_path / "w.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(NetworkError, match=r"is a TorchScript archive, .*torch.save\(torch.jit.load\(…\).state_dict\(\)"):
        load_network(model, str(tmp_path / "w.pt"))


def test_a_folder_names_the_files_to_give(tmp_path: Path, model: str) -> None:
    for name in ("model.safetensors", "config.json", "model.safetensors.index.json"):
        (tmp_path / name).touch()
    with pytest.raises(
        NetworkError, match="are a folder; give one of its files: model.safetensors, model.safetensors.index.json$"
    ):
        load_network(model, str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(NetworkError, match="are a folder; none of its files ends with .safetensors"):
        load_network(model, str(tmp_path / "none"))


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_the_shards_of_an_index_are_loaded_from_beside_it(tmp_path: Path, model: str, ending: str) -> None:
    state = state_of(5)
    files: dict[str, dict[str, torch.Tensor]] = {f"model-1{ending}": {}, f"model-2{ending}": {}}
    weight_map = {name: list(files)[number % 2] for number, name in enumerate(state)}
    for name, file in weight_map.items():
        files[file][name] = state[name]
    for file, part in files.items():
        if ending == ".bin":
            torch.save(part, tmp_path / file)
        else:
            save_file(part, tmp_path / file)
    index = tmp_path / f"model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert value_of(model, index) == 5
    assert read_state_dict(str(index), list(state))[1].keys() == state.keys()
    index.write_text(json.dumps({"weight_map": weight_map | {"0.more": f"model-1{ending}"}}))
    with pytest.raises(NetworkError, match="name 1 tensors that their files lack, such as '0.more'"):
        load_network(model, str(index))


def test_a_flat_state_dict_may_have_numbers_beside_it(tmp_path: Path, model: str) -> None:
    torch.save(state_of(3) | {"epoch": 7, "loss": 0.5, "name": "best"}, tmp_path / "w.pt")
    assert value_of(model, tmp_path / "w.pt") == 3


def test_an_empty_string_is_no_path(model: str) -> None:
    with pytest.raises(NetworkError, match="weights are ''; give 'default', 'none' or the path of a file"):
        load_network(model, "")


def test_an_index_names_a_shard_that_is_missing(tmp_path: Path, model: str) -> None:
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"0.weight": "a.safetensors", "0.bias": "b.safetensors"}}))
    save_file({"0.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match=r"m\.index\.json' name the file 'b\.safetensors', which isn't beside it; fetch"):
        load_network(model, str(tmp_path / "m.index.json"))


def test_arrays_of_numpy_are_no_weights(tmp_path: Path, model: str) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(NetworkError, match="is a NumPy archive; put its arrays into the network"):
        load_network(model, str(tmp_path / "w.npz"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give up rights")
def test_weights_that_may_not_be_read_are_one_line(tmp_path: Path, model: str) -> None:
    (tmp_path / "w.pt").write_bytes(b"x" * 99)
    try:
        os.seteuid(65534)
        with pytest.raises(NetworkError, match=r"there is no weights file|can't be read: Permission denied"):
            read_state_dict(str(tmp_path / "w.pt"), [])
    finally:
        os.seteuid(0)
