"""The state of torch and of the process that a network runs under: full float32 precision, eval mode, plain tensors, random states.

Each is a context manager: the caller's own settings are back when its block ends.

TF32 and bfloat16 round the factors of every product. torch has one switch for each backend and operation (`cuda`, `matmul`). Until it is
set, it follows the switch of its backend (`cuda`, `all`), which follows the switch of all backends (`generic`, `all`). The older switches
(`set_float32_matmul_precision`, `allow_tf32`) set the same.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

Switch = tuple[str, str]
"""Backend and operation, as torch names its switches for precision."""

PARENT_SWITCHES: tuple[Switch, ...] = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
LEAF_SWITCHES: tuple[Switch, ...] = tuple(
    (backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")
)
FULL_PRECISION = "ieee"
AUTOCAST_DEVICES = ("cpu", "cuda", "mps")

_full_precision_lock = Lock()
_full_precision_users = 0
_full_precision_undo = ExitStack()


@contextmanager
def exact_inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and full float32 precision while the block lasts, without autocast. Compiled parts run uncompiled."""
    with eval_mode(module), torch.autocast(device.type, enabled=False), _full_precision():
        yield


@contextmanager
def plain_tensors() -> Iterator[None]:
    """New tensors are as in a fresh process, whatever the caller has set: on the CPU, no inference tensors, without autocast.

    The public functions that run a network are decorated with this. They must leave a caller's inference mode for two reasons. Tensors
    made there are inference tensors, which can't take part in a backward pass nor be written to outside of that mode. And operators
    reach a `TorchDispatchMode` there before they are decomposed, so that a trace would see other operators than without the mode.
    """
    with torch.inference_mode(False), ExitStack() as undo:
        for device_type in AUTOCAST_DEVICES:
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                undo.callback(torch.set_autocast_enabled, device_type, True)
                torch.set_autocast_enabled(device_type, False)  # torch.autocast would warn where there is no such device
        if torch.empty(0).device.type != "cpu":  # only then, since a device context costs Python code at every operator
            undo.enter_context(torch.device("cpu"))
        yield


@contextmanager
def fork_random_states(device: torch.device) -> Iterator[None]:
    """As `torch.random.fork_rng`, for Python and numpy too: after the block the random states are as before it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices, device_type = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=device_type):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def random_state_hashes(device: torch.device) -> tuple[int, ...]:
    """A hash of each generator's state, which changes with every draw: Python's, numpy's, torch's, and torch's on the device."""
    numpy_state: Any = np.random.get_state()
    torch_state = torch.get_rng_state().numpy().tobytes()
    device_state = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    return tuple(map(hash, (random.getstate(), (numpy_state[1].tobytes(), *numpy_state[2:]), torch_state, device_state)))


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode while the block lasts; then every module has its own mode back."""
    training_modules = [module for module in network.modules() if module.training]
    for module in training_modules:
        module.training = False  # eval() does more in some networks
    try:
        yield
    finally:
        for module in training_modules:
            module.training = True


@contextmanager
def _full_precision() -> Iterator[None]:
    """Full precision in the whole process. The first user sets the switches, the last one to leave restores them."""
    global _full_precision_users
    with _full_precision_lock:
        if not _full_precision_users:
            with ExitStack() as undo:  # restores what was set before something failed
                _set_full_precision(undo)
                _full_precision_undo.push(undo.pop_all())
        _full_precision_users += 1
    try:
        yield
    finally:
        with _full_precision_lock:
            _full_precision_users -= 1
            if not _full_precision_users:
                _full_precision_undo.close()


def _set_full_precision(undo: ExitStack) -> None:
    # Where nothing was compiled the compiler isn't loaded, and importing it takes over a second.
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        undo.enter_context(torch.compiler.set_stance("force_eager"))
    cudnn: Any = torch.backends.cudnn
    for name, value in (("enabled", True), ("benchmark", False), ("deterministic", True)):
        undo.callback(setattr, cudnn, name, getattr(cudnn, name))
        setattr(cudnn, name, value)
    read: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    write: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
    if read and write:  # since torch 2.9
        _set_switches(undo, read, write)
    else:
        _set_old_switches(undo)


def _set_switches(undo: ExitStack, read: Callable[[str, str], str], write: Callable[[str, str, str], None]) -> None:
    """Set every switch but those leaves that follow their backend's: nothing could make them follow it again."""
    for parent in PARENT_SWITCHES:  # from the top: a parent that is not set reads as its own parent
        undo.callback(write, *parent, read(*parent))
        write(*parent, "none")
    for leaf in LEAF_SWITCHES:
        backend = (leaf[0], "all")
        write(*backend, FULL_PRECISION)
        value = read(*leaf)
        write(*backend, "tf32")
        follows_backend = value != read(*leaf)
        if not follows_backend:
            undo.callback(write, *leaf, value)
            write(*leaf, FULL_PRECISION)
        write(*backend, "none")
    for parent in PARENT_SWITCHES:
        write(*parent, FULL_PRECISION)


def _set_old_switches(undo: ExitStack) -> None:
    """The same for versions of torch before 2.9."""
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    cudnn: Any = torch.backends.cudnn
    undo.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
    cudnn.allow_tf32 = False
