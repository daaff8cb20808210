"""From a weights file to a state dict: which files hold weights, and which of several state dicts in one file is loaded."""

import json
import logging
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

log = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".index.json")
AVERAGED_KEY = re.compile(r"ema|swa|average|avg|shadow", re.IGNORECASE)
"""Keys of weights that are averages over the last steps of a training."""
MAX_DEPTH = 3
"""How deep a state dict may be nested in a checkpoint; with `{"nets": {"average": {"weights": …}}}` the known ones need three levels."""
SAVE_STATE_DICT = "torch.save(network.state_dict(), …)"
REFUSED_SIGNATURES = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights themselves; fetch them with: git lfs pull",
    b"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes; load it there, and save its tensors with {SAVE_STATE_DICT}",
    b"GGUF": "is a GGUF file, whose tensors are quantised for other engines; give the weights that it was made from",
    b"<!DOCTYPE": "is a web page, not weights; download the file itself",
    b"<html": "is a web page, not weights; download the file itself",
    b"\x1f\x8b": "is packed with gzip; unpack it first",
}
"""First bytes of files that are known to hold no state dict, and what to do instead."""
REFUSED_SUFFIXES = {
    ".onnx": f"is an ONNX graph; give the network that it was exported from, and its {SAVE_STATE_DICT}",
    ".h5": f"is a Keras file; load it there, and save its tensors with {SAVE_STATE_DICT}",
    ".keras": f"is a Keras file; load it there, and save its tensors with {SAVE_STATE_DICT}",
    ".tflite": "is a TensorFlow Lite graph; give the network that it was converted from",
    ".npz": f"is a NumPy archive; put its arrays into the network, and save that: {SAVE_STATE_DICT}",
    ".npy": f"is a NumPy array; put it into the network, and save that: {SAVE_STATE_DICT}",
    ".msgpack": f"is a Flax file; convert it, and save its tensors with {SAVE_STATE_DICT}",
}
"""Suffixes of such files."""
COMPILED = "_orig_mod."
MAX_SHOWN = 6
"""How many names of a file an error shows."""
SIGNATURE_BYTES = 64
"""More than the longest of the signatures above."""


def split_key(weights: str) -> tuple[Path, str]:
    """The file's path, and the key after a colon that chooses one of its state dicts; empty where there is none."""
    head, _, key = weights.rpartition(":")
    if head and key and not os.path.exists(weights) and os.path.isfile(head):
        return Path(head), key
    return Path(weights), ""


def with_key(weights: str, key: str) -> str:
    """The weights with the key that was taken, where none was given."""
    return f"{weights}:{key}" if key and not split_key(weights)[1] else weights


def read_state_dict(weights: str, parameter_names: Sequence[str]) -> tuple[str, StateDict]:
    """The state dict in a weights file, `PATH` or `PATH:KEY`, for a network with these names of parameters and buffers; and its key there.

    Where several state dicts in the file fit, such as weights and their moving average, the plain weights are taken and a warning names
    the others. `KEY` chooses one of them, or is a prefix of names. Raises `NetworkError` for what is no such file. No code of the file is
    executed.
    """
    if not weights:
        raise NetworkError("weights are ''; give 'default', 'none' or the path of a file")
    path, key = split_key(weights)
    content = _read_file(path)
    state_dicts = {name: _uncompiled(state_dict, parameter_names) for name, state_dict in _state_dicts(content, "")}
    if not state_dicts:
        raise NetworkError(
            f"weights {str(path)!r} are a {type(content).__name__}, not a state dict of names and tensors{_described(content)}"
        )
    state_dicts = _split_by_prefix(state_dicts, parameter_names)
    if key:
        return key, _state_dict_of_key(path, state_dicts, key)
    fitting = [name for name, state_dict in state_dicts.items() if _fits(state_dict, parameter_names)]
    fitting.sort(key=lambda name: bool(AVERAGED_KEY.search(name)))
    if not fitting:
        return "", _most_likely(state_dicts)
    if len(fitting) > 1:
        chosen = repr(fitting[0]) if fitting[0] else "the one without a prefix"
        alternatives = ", ".join(f"--weights {path}:{name}" for name in fitting[1:4])
        warnings.warn(
            f"weights {str(path)!r} hold {len(fitting)} sets that fit; {chosen} is taken. Others: {alternatives}",
            stacklevel=2,
        )
    log.info("of the weights %r those under %r are taken", str(path), fitting[0])
    return fitting[0], state_dicts[fitting[0]]


def _uncompiled(state_dict: StateDict, parameter_names: Sequence[str]) -> StateDict:
    """The state dict without what `torch.compile` puts into the names of a compiled module's parameters, wherever that stands."""
    if any(COMPILED in name for name in parameter_names):
        return state_dict
    return {name.replace(COMPILED, ""): tensor for name, tensor in state_dict.items()}


def _described(content: Any) -> str:
    """What a file holds in place of a state dict: its first keys, with shapes or types."""
    if not isinstance(content, Mapping):
        return ""
    parts = [f"{name!r} {_shape_or_type(value)}" for name, value in list(content.items())[:MAX_SHOWN]]
    more = f" and {len(content) - MAX_SHOWN} more" if len(content) > MAX_SHOWN else ""
    return f"; it holds {', '.join(parts) or 'nothing'}{more}"


def _shape_or_type(value: Any) -> str:
    """The shape of a tensor, or the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"(a {type(value).__name__})"


def _most_likely(state_dicts: Mapping[str, StateDict]) -> StateDict:
    """Of state dicts that don't fit the network, the one whose misfit is reported."""
    first = next(iter(state_dicts.values()))
    state_dict = next((state_dicts[name] for name in ("state_dict", "model") if name in state_dicts), first)
    parallel = all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if parallel else name: tensor for name, tensor in state_dict.items()}


def _state_dict_of_key(path: Path, state_dicts: Mapping[str, StateDict], key: str) -> StateDict:
    if key in state_dicts:
        return state_dicts[key]
    for state_dict in state_dicts.values():
        if part := _part_with_prefix(state_dict, f"{key}."):
            return part
    names = [name for name in state_dicts if name] or ["none; leave the key away"]
    raise NetworkError(
        f"weights {str(path)!r} have nothing under {key!r}.{suggestion(key, names)} Their keys: {', '.join(names[:8])}"
    )


def _part_with_prefix(state_dict: StateDict, prefix: str) -> StateDict:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def _state_dicts(content: Any, key: str, depth: int = MAX_DEPTH) -> Iterator[tuple[str, StateDict]]:
    """Every mapping from names to tensors in a checkpoint, by its keys joined with dots; the checkpoint itself has the key ''."""
    if not isinstance(content, Mapping) or (key and not content):
        return
    if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        yield key, dict(content)
    elif depth:
        for name, value in content.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)
        tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
        if tensors:  # beside an epoch or other values
            yield key, tensors


def _split_by_prefix(state_dicts: Mapping[str, StateDict], parameter_names: Sequence[str]) -> dict[str, StateDict]:
    """The state dicts and, by key and prefix, their parts that fit the network once a prefix is removed from the names.

    `DataParallel`, Lightning and averages of weights add such prefixes.
    """
    result: dict[str, StateDict] = {}
    for key, state_dict in state_dicts.items():
        remaining, parts = state_dict, {}
        for prefix in _possible_prefixes(state_dict, parameter_names):
            part = _part_with_prefix(state_dict, prefix)
            if _fits(part, parameter_names):
                parts[f"{key}.{prefix[:-1]}" if key else prefix[:-1]] = part
                remaining = {name: tensor for name, tensor in remaining.items() if not name.startswith(prefix)}
        result |= {key: remaining if _fits(remaining, parameter_names) else state_dict} | parts
    return result


def _possible_prefixes(state_dict: StateDict, parameter_names: Sequence[str]) -> list[str]:
    """What stands in front of the network's first name, with the dot."""
    if not parameter_names:
        return []
    first = parameter_names[0]
    return [name.removesuffix(first) for name in state_dict if name.endswith(f".{first}")]


def _fits(state_dict: StateDict, parameter_names: Sequence[str]) -> bool:
    return all(name in state_dict or name.endswith("num_batches_tracked") for name in parameter_names)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_file(path: Path) -> Any:
    """The content of a weights file. Raises `NetworkError` where it can't be read."""
    _check_file(path)
    try:
        if path.name.endswith(".index.json"):
            return _read_sharded(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about files that are refused next
            return torch.load(path, map_location="cpu", weights_only=True)
    except NetworkError:
        raise
    except UnpicklingError as error:
        raise NetworkError(
            f"weights {str(path)!r} hold pickled objects or are no state dict; nothing of them was executed. Save the tensors "
            f"alone: {SAVE_STATE_DICT} or safetensors"
        ) from error
    except Exception as error:
        raise NetworkError(f"weights {str(path)!r} can't be read: {type(error).__name__}: {first_line(error)}") from error


def _check_file(path: Path) -> None:
    """Raises `NetworkError`, with what to do, for a file that is missing, empty or known to hold no state dict."""
    if os.path.isdir(path):  # Path.is_dir may raise
        raise NetworkError(f"weights {str(path)!r} are a folder; {_files_to_give(path)}")
    if not os.path.isfile(path):
        raise NetworkError(f"there is no weights file {str(path)!r}; weights are 'default', 'none' or a path")
    try:
        with path.open("rb") as file:
            first_bytes = file.read(SIGNATURE_BYTES)
    except OSError as error:
        raise NetworkError(f"weights {str(path)!r} can't be read: {os_error_text(error)}") from error
    if not first_bytes:
        raise NetworkError(f"weights {str(path)!r} are empty: 0 bytes, as after a download that failed; fetch them again")
    if reason := _reason_to_refuse(path, first_bytes):
        raise NetworkError(f"weights file {str(path)!r} {reason}")


def _files_to_give(folder: Path) -> str:
    """The weights files in a folder that was given in place of a file, for an error message."""
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(WEIGHTS_SUFFIXES))
    if not files:
        return f"none of its files ends with {', '.join(WEIGHTS_SUFFIXES)}"
    return f"give one of its files: {', '.join(files[:5])}"


def _reason_to_refuse(path: Path, first_bytes: bytes) -> str | None:
    """Why a file holds no state dict, by its first bytes and its suffix; None for a file that may hold one."""
    for signature, reason in REFUSED_SIGNATURES.items():
        if first_bytes.startswith(signature):
            return reason
    if path.suffix.lower() in REFUSED_SUFFIXES:
        return REFUSED_SUFFIXES[path.suffix.lower()]
    if first_bytes.startswith(b"PK") and _is_torchscript(path):
        save = SAVE_STATE_DICT.replace("network", "torch.jit.load(…)")
        return f"is a TorchScript archive, a program with its weights; save them alone: {save}"
    return None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_sharded(path: Path) -> StateDict:
    """The tensors of all files that a Hugging Face index names; they lie beside it."""
    index = json.loads(path.read_text(encoding="utf-8"))
    file_of = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(file_of, Mapping) or not all(
        isinstance(file, str) and file == Path(file).name for file in file_of.values()
    ):
        raise NetworkError(f"weights {str(path)!r} are no index of shards: there is no 'weight_map' of names and files beside it")
    files = sorted(set(file_of.values()))
    missing_files = [file for file in files if not os.path.isfile(path.with_name(file))]
    if missing_files:
        raise NetworkError(f"weights {str(path)!r} name the file {missing_files[0]!r}, which isn't beside it; fetch that too")
    state_dict: StateDict = {}
    for file in files:
        content = _read_file(path.with_name(file))
        state_dict |= {name: tensor for name, tensor in content.items() if file_of.get(name) == file}
    missing = sorted(file_of.keys() - state_dict.keys())
    if missing:
        raise NetworkError(f"weights {str(path)!r} name {len(missing)} tensors that their files lack, such as {missing[0]!r}")
    return state_dict
