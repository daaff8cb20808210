"""The settings of the process that functions change while they run: they don't matter before, and are as they were afterwards."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import bytes_of
from networks import small_network
from PIL import Image, ImageFile

import unitscope
from unitscope.experiments import colour_or_shape, invariance, occlude, probe
from unitscope.layers import trace
from unitscope.networks.precision import AUTOCAST_DEVICES, plain_tensors

IMAGES = torch.randn(10, 3, 14, 14, generator=torch.Generator().manual_seed(0))
BACKENDS: Any = torch.backends
PARENT_SWITCHES = {"all": BACKENDS, "cudnn": BACKENDS.cudnn}
LEAF_SWITCHES = {
    "cuda.matmul": BACKENDS.cuda.matmul,
    "cudnn.conv": getattr(BACKENDS.cudnn, "conv", None),
    "cudnn.rnn": getattr(BACKENDS.cudnn, "rnn", None),
    "mkldnn.matmul": getattr(BACKENDS.mkldnn, "matmul", None),
    "mkldnn.conv": getattr(BACKENDS.mkldnn, "conv", None),
    "mkldnn.rnn": getattr(BACKENDS.mkldnn, "rnn", None),
}
needs_switches = pytest.mark.skipif(LEAF_SWITCHES["mkldnn.conv"] is None, reason="this torch has only the older switches")


def switch_states() -> dict[str, list[str]]:
    """Every switch's value, as it is and with each value of its parents, which shows whether it follows them."""
    values: dict[str, list[str]] = {name: [leaf.fp32_precision] for name, leaf in LEAF_SWITCHES.items()}
    parent_values: dict[str, str] = {}
    for name, parent in PARENT_SWITCHES.items():  # from the top: a switch that is not set reads as its parent
        parent_values[name] = parent.fp32_precision
        parent.fp32_precision = "none"
    for parent in PARENT_SWITCHES.values():
        for value in ("ieee", "tf32", "none"):
            parent.fp32_precision = value
            for leaf_name, leaf in LEAF_SWITCHES.items():
                values[leaf_name].append(leaf.fp32_precision)
    for name, parent in PARENT_SWITCHES.items():
        parent.fp32_precision = parent_values[name]
    return values | {name: [value] for name, value in parent_values.items()}


@pytest.fixture
def switches() -> Iterator[None]:
    """After the test every switch follows its backend's again."""
    yield
    for switch in (*LEAF_SWITCHES.values(), *PARENT_SWITCHES.values()):
        switch.fp32_precision = "none"


def process_state() -> dict[str, Any]:
    """Everything of the process that running a network or reading images could change."""
    cudnn = torch.backends.cudnn
    return {
        "switches": switch_states(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast types": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "stance": getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None),
        # Python's generator is left out: the type checks of the tests draw from it.
        "random": (torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()]),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "folder": Path.cwd(),
        "pixels": Image.MAX_IMAGE_PIXELS,
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "filters": list(warnings.filters),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()),
    }


@needs_switches
def test_the_state_of_the_process_is_restored(tmp_path: Path, switches: None) -> None:
    torch.backends.cudnn.benchmark = True
    try:
        network = small_network()
        expected = process_state()
        atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
        assert process_state() == expected, "scan"
        unitscope.check(atlas, network)
        assert process_state() == expected, "check"
        unitscope.attribute(atlas, "gradient", network, layers=["4"])
        assert process_state() == expected, "attribute"
        atlas.figure(size_px=16)
        assert process_state() == expected, "figure"
        trace(network, torch.zeros(1, 3, 14, 14))
        assert process_state() == expected, "trace"
        with pytest.raises(unitscope.UnitscopeError):
            trace(network, torch.zeros(1, 5, 14, 14))
        assert process_state() == expected, "a trace that fails"
    finally:
        torch.backends.cudnn.benchmark = False


@pytest.mark.slow
@needs_switches
@pytest.mark.parametrize("name", [*PARENT_SWITCHES, *LEAF_SWITCHES])
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_an_atlas_is_the_same_whatever_switch_for_precision_is_set(tmp_path: Path, switches: None, name: str, value: str) -> None:
    network = small_network()
    plain = unitscope.scan(network, IMAGES, tmp_path / "plain")
    (PARENT_SWITCHES | LEAF_SWITCHES)[name].fp32_precision = value
    expected = switch_states()
    atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
    assert unitscope.check(atlas, network).differences == []
    assert switch_states() == expected
    assert bytes_of(atlas.folder) == bytes_of(plain.folder)


@needs_switches
def test_a_switch_that_is_set_after_a_scan_takes_effect(tmp_path: Path, switches: None) -> None:
    unitscope.scan(small_network(), IMAGES, tmp_path / "atlas")
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    assert {leaf.fp32_precision for leaf in LEAF_SWITCHES.values()} == {"tf32"}


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_older_switches_may_be_set(tmp_path: Path, switches: None, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        unitscope.scan(small_network(), IMAGES, tmp_path / "atlas")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", ["dtype", "device", "deterministic"])
def test_defaults_of_the_caller_change_nothing(tmp_path: Path, setting: str) -> None:
    network = small_network()
    plain = unitscope.scan(network, IMAGES, tmp_path / "plain")
    try:
        if setting == "dtype":
            torch.set_default_dtype(torch.float64)
        elif setting == "device":
            torch.set_default_device("meta")
        else:
            torch.use_deterministic_algorithms(True)
        atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
        assert unitscope.check(atlas, network).differences == []
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
    assert bytes_of(atlas.folder) == bytes_of(plain.folder)


@pytest.mark.parametrize("device_type", AUTOCAST_DEVICES)
def test_autocast_is_off_in_plain_tensors_and_on_again_afterwards(device_type: str) -> None:
    """Also where there is no such device; torch.autocast would warn of that."""
    enabled = torch.is_autocast_enabled(device_type)
    torch.set_autocast_enabled(device_type, True)
    try:
        with plain_tensors():
            assert not torch.is_autocast_enabled(device_type)
        assert torch.is_autocast_enabled(device_type)
    finally:
        torch.set_autocast_enabled(device_type, enabled)


class Labelled:
    """The images with labels in turn."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, image: int) -> tuple[torch.Tensor, int]:
        return IMAGES[image], image % 2


def results_of_all_functions(folder: Path) -> dict[str, Any]:
    """What every public function gives for the same network and images."""
    network = small_network()
    atlas = unitscope.scan(network, Labelled(), folder / "atlas")
    assert unitscope.check(atlas, network).differences == []
    for method in ("gradient", "occlusion"):
        unitscope.attribute(atlas, method, network)
    return {
        "scan": [atlas.table(name).to_pydict() for name in ("peaks", "units", "sample")],
        "attribute": [atlas.attributions(method, "4").to_pydict() for method in ("gradient", "occlusion")],
        "colour_or_shape": colour_or_shape(atlas, network).to_pydict(),
        "invariance": invariance(network, Labelled(), folder / "invariance").to_pydict(),
        "probe": probe(network, Labelled(), folder / "probe").to_pydict(),
        "occlusion": occlude(atlas, "4", [0], network).to_pydict(),
    }


def test_every_function_gives_the_same_under_the_callers_autocast(tmp_path: Path) -> None:
    plain = results_of_all_functions(tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        cast = results_of_all_functions(tmp_path / "cast")
        assert torch.is_autocast_enabled("cpu")
    assert [name for name in plain if repr(plain[name]) != repr(cast[name])] == []
