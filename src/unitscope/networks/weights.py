"""From a file to the tensors of a network, by name: which files hold weights, and which of several sets in one is meant."""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from unitscope.errors import NetworkError, first_line, suggestion
from unitscope.files import os_error_text

State = dict[str, torch.Tensor]

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".index.json")
AVERAGED = re.compile(r"ema|swa|average|avg|shadow", re.IGNORECASE)
"""What keys of weights are called that are means over the training's last steps."""
DEPTH = 3
STATE_DICT = "torch.save(network.state_dict(), …)"
OTHER_KINDS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights themselves; fetch them with: git lfs pull",
    b"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes; load it there, and save its tensors with {STATE_DICT}",
    b"GGUF": "is a GGUF file, whose tensors are quantised for other engines; give the weights that it was made from",
    b"<!DOCTYPE": "is a web page, not weights; download the file itself",
    b"<html": "is a web page, not weights; download the file itself",
    b"\x1f\x8b": "is packed with gzip; unpack it first",
}
OTHER_ENDINGS = {
    ".onnx": f"is an ONNX graph; give the network that it was exported from, and its {STATE_DICT}",
    ".h5": f"is a Keras file; load it there, and save its tensors with {STATE_DICT}",
    ".keras": f"is a Keras file; load it there, and save its tensors with {STATE_DICT}",
    ".tflite": "is a TensorFlow Lite graph; give the network that it was converted from",
    ".npz": f"is a NumPy archive; put its arrays into the network, and save that: {STATE_DICT}",
    ".npy": f"is a NumPy array; put it into the network, and save that: {STATE_DICT}",
    ".msgpack": f"is a Flax file; convert it, and save its tensors with {STATE_DICT}",
}


def split_key(weights: str) -> tuple[Path, str]:
    """The file, and the key behind a colon that chooses one of several sets of weights in it; empty where there is none."""
    head, _, key = weights.rpartition(":")
    if head and key and not os.path.exists(weights) and os.path.isfile(head):
        return Path(head), key
    return Path(weights), ""


def read_state(weights: str, own: Sequence[str]) -> State:
    """The tensors of a file, `PATH` or `PATH:KEY`, for a network whose own have those names.

    Where a file holds several sets that fit, as a training's own and their moving average, the plain ones are taken and a warning
    says so; `KEY` is that of another, or a prefix of names. Raises `NetworkError` for what is no such file. Nothing is executed.
    """
    if not weights:
        raise NetworkError("weights are ''; give 'default', 'none' or the path of a file")
    path, key = split_key(weights)
    content = _content(path)
    sets = dict(_sets(content, ""))
    if not sets:
        raise NetworkError(f"weights {str(path)!r} are a {type(content).__name__}, not a state dict of names and tensors")
    sets = _split_by_prefix(sets, own)
    if key:
        return _keyed(path, sets, key)
    fitting = sorted((name for name, state in sets.items() if _fits(state, own)), key=lambda name: bool(AVERAGED.search(name)))
    if len(fitting) > 1:
        others = ", ".join(f"--weights {path}:{name}" for name in fitting[1:4])
        warnings.warn(
            f"weights {str(path)!r} hold {len(fitting)} sets that fit; {_called(fitting[0])} is taken. Others: {others}",
            stacklevel=2,
        )
    if fitting:
        return sets[fitting[0]]
    unfitting = next((sets[name] for name in ("state_dict", "model") if name in sets), next(iter(sets.values())))
    parallel = all(name.startswith("module.") for name in unfitting)
    return {name.removeprefix("module.") if parallel else name: tensor for name, tensor in unfitting.items()}


def _called(name: str) -> str:
    return repr(name) if name else "the one without a prefix"


def _keyed(path: Path, sets: Mapping[str, State], key: str) -> State:
    if key in sets:
        return sets[key]
    for state in sets.values():
        if chosen := {name.removeprefix(f"{key}."): tensor for name, tensor in state.items() if name.startswith(f"{key}.")}:
            return chosen
    names = [name for name in sets if name] or ["none; leave the key away"]
    raise NetworkError(
        f"weights {str(path)!r} have nothing under {key!r}.{suggestion(key, names)} Their keys: {', '.join(names[:8])}"
    )


def _sets(content: Any, place: str, depth: int = DEPTH) -> Iterator[tuple[str, State]]:
    """Every mapping of names to tensors in a checkpoint, by its keys with dots between; the checkpoint itself has the key ''."""
    if not isinstance(content, Mapping) or (place and not content):
        return
    if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        yield place, dict(content)
    elif depth:
        for name, value in content.items():
            yield from _sets(value, f"{place}.{name}" if place else str(name), depth - 1)
        if flat := {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}:
            yield place, flat  # with an epoch, or other numbers, beside them


def _split_by_prefix(sets: Mapping[str, State], own: Sequence[str]) -> dict[str, State]:
    """The sets, and those parts of them that hold the network's names behind a prefix, as `DataParallel`, Lightning and averages do."""
    found: dict[str, State] = {}
    for place, state in sets.items():
        rest, parts = state, {}
        for prefix in [name.removesuffix(own[0]) for name in state if name.endswith(f".{own[0]}")] if own else []:
            part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            if _fits(part, own):
                parts[f"{place}.{prefix[:-1]}" if place else prefix[:-1]] = part
                rest = {name: tensor for name, tensor in rest.items() if not name.startswith(prefix)}
        found |= {place: rest if _fits(rest, own) else state} | parts
    return found


def _fits(state: State, own: Sequence[str]) -> bool:
    return all(name in state or name.endswith("num_batches_tracked") for name in own)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _content(path: Path) -> Any:
    """What a file holds."""
    _check_kind(path)
    try:
        if path.name.endswith(".index.json"):
            return _shards(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused next
            return torch.load(path, map_location="cpu", weights_only=True)
    except NetworkError:
        raise
    except UnpicklingError as error:
        raise NetworkError(
            f"weights {str(path)!r} hold pickled objects or are no state dict; nothing of them was executed. Save the tensors "
            f"alone: {STATE_DICT} or safetensors"
        ) from error
    except Exception as error:
        raise NetworkError(f"weights {str(path)!r} can't be read: {type(error).__name__}: {first_line(error)}") from error


def _check_kind(path: Path) -> None:
    """Raises `NetworkError` for what is known to be no state dict, and says what to do."""
    if os.path.isdir(path):  # Path.is_dir may raise
        files = sorted(file.name for file in path.iterdir() if file.name.endswith(ENDINGS))
        said = f"give one of its files: {', '.join(files[:5])}" if files else f"none of its files ends with {', '.join(ENDINGS)}"
        raise NetworkError(f"weights {str(path)!r} are a folder; {said}")
    if not os.path.isfile(path):
        raise NetworkError(f"there is no weights file {str(path)!r}; weights are 'default', 'none' or a path")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise NetworkError(f"weights {str(path)!r} can't be read: {os_error_text(error)}") from error
    if not start:
        raise NetworkError(f"weights {str(path)!r} are empty: 0 bytes, as after a download that failed; fetch them again")
    kind = next((said for sign, said in OTHER_KINDS.items() if start.startswith(sign)), OTHER_ENDINGS.get(path.suffix.lower()))
    if kind is None and start.startswith(b"PK") and _is_torchscript(path):
        kind = f"is a TorchScript archive, a program with its weights; save them alone: {STATE_DICT.replace('network', 'torch.jit.load(…)')}"
    if kind is not None:
        raise NetworkError(f"weights file {str(path)!r} {kind}")


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _shards(path: Path) -> State:
    """The tensors of all the files that an index of Hugging Face's names, which lie beside it."""
    said = json.loads(path.read_text(encoding="utf-8"))
    files = said.get("weight_map") if isinstance(said, Mapping) else None
    if not isinstance(files, Mapping) or not all(isinstance(file, str) and file == Path(file).name for file in files.values()):
        raise NetworkError(f"weights {str(path)!r} are no index of shards: there is no 'weight_map' of names and files beside it")
    gone = [file for file in sorted(set(files.values())) if not os.path.isfile(path.with_name(file))]
    if gone:
        raise NetworkError(f"weights {str(path)!r} name the file {gone[0]!r}, which isn't beside it; fetch that too")
    shards: State = {}
    for file in sorted(set(files.values())):
        content = _content(path.with_name(file))
        shards |= {name: tensor for name, tensor in content.items() if files.get(name) == file}
    lacking = sorted(files.keys() - shards.keys())
    if lacking:
        raise NetworkError(f"weights {str(path)!r} name {len(lacking)} tensors that their files lack, such as {lacking[0]!r}")
    return shards
