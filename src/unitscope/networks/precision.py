"""Full float32 arithmetic, and nothing compiled, for as long as a network is run, whatever the caller has switched on; afterwards every
switch is as it was.

TF32 and bfloat16 round the factors of every product. torch has one switch for each kind of product and back end, which follows that of its
back end, which follows the one of all; and older switches (`set_float32_matmul_precision`, `allow_tf32`) that set the same.
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

PARENTS: tuple[Switch, ...] = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
LEAVES: tuple[Switch, ...] = tuple((backend, kind) for backend in ("cuda", "mkldnn") for kind in ("matmul", "conv", "rnn"))
EXACT = "ieee"
AUTOCASTS = ("cpu", "cuda", "mps")

_entering = Lock()
_users = 0
_restore = ExitStack()


@contextmanager
def exact_inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and full float32 precision for as long as the block lasts, without autocast; compiled parts run as they were written."""
    with evaluating(module), torch.autocast(device.type, enabled=False), _full_precision():
        yield


@contextmanager
def plain_tensors() -> Iterator[None]:
    """New tensors, and the arithmetic with them, are what they are in a fresh process, whatever the caller has set: no inference
    tensors, on the processor, without autocast."""
    with torch.inference_mode(False), ExitStack() as stack:
        for kind in AUTOCASTS:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.callback(torch.set_autocast_enabled, kind, True)
                torch.set_autocast_enabled(kind, False)  # not torch.autocast, which warns where there is no such device
        if torch.empty(0).device.type != "cpu":  # otherwise Python would be asked about every operator
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """The random states of Python, numpy and torch, on the device too, are afterwards as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def random_states(device: torch.device) -> tuple[int, ...]:
    """A number for each random generator, which changes when it is drawn from: Python's, numpy's and torch's, on the device too."""
    numpys: Any = np.random.get_state()
    on_device = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    torchs = torch.get_rng_state().numpy().tobytes()
    return tuple(map(hash, (random.getstate(), (numpys[1].tobytes(), *numpys[2:]), torchs, on_device)))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the block lasts; then every module's own mode is back."""
    training = [m for m in module.modules() if m.training]
    for part in training:
        part.training = False  # and not by eval(), which does more in some networks
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _full_precision() -> Iterator[None]:
    """The switches belong to the process: who comes first sets them, who goes last puts them back."""
    global _users
    with _entering:
        if not _users:
            with ExitStack() as stack:  # what fails halfway is put back
                _set_exact(stack)
                _restore.push(stack.pop_all())
        _users += 1
    try:
        yield
    finally:
        with _entering:
            _users -= 1
            if not _users:
                _restore.close()


def _set_exact(restore: ExitStack) -> None:
    if "torch._dynamo" in sys.modules and hasattr(
        torch.compiler, "set_stance"
    ):  # where nothing was compiled, nothing loads the compiler
        restore.enter_context(torch.compiler.set_stance("force_eager"))
    cudnn: Any = torch.backends.cudnn
    for name, value in (("enabled", True), ("benchmark", False), ("deterministic", True)):
        restore.callback(setattr, cudnn, name, getattr(cudnn, name))
        setattr(cudnn, name, value)
    read: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    write: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
    if read and write:  # since torch 2.9
        _set_switches(restore, read, write)
    else:
        _set_old_switches(restore)


def _set_switches(restore: ExitStack, read: Callable[[str, str], str], write: Callable[[str, str, str], None]) -> None:
    """All switches, so that none inherits anything else. A switch that follows its back end's is not touched: it could not be told to
    follow again."""
    for parent in PARENTS:  # from the top: a parent that is set to nothing itself shows its own parent's setting
        restore.callback(write, *parent, read(*parent))
        write(*parent, "none")
    for leaf in LEAVES:
        backend = (leaf[0], "all")
        write(*backend, EXACT)
        own = read(*leaf)
        write(*backend, "tf32")
        if own == read(*leaf):
            restore.callback(write, *leaf, own)
            write(*leaf, EXACT)
        write(*backend, "none")
    for parent in PARENTS:
        write(*parent, EXACT)


def _set_old_switches(restore: ExitStack) -> None:
    """The same for versions of torch that have the older switches alone."""
    restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    cudnn: Any = torch.backends.cudnn
    restore.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
    cudnn.allow_tf32 = False
