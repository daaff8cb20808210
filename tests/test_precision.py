"""What a verb sets for the whole process while it runs, and that all of it is afterwards as it was."""

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
PARENTS = {"all": BACKENDS, "cudnn": BACKENDS.cudnn}
LEAVES = {
    "cuda.matmul": BACKENDS.cuda.matmul,
    "cudnn.conv": getattr(BACKENDS.cudnn, "conv", None),
    "cudnn.rnn": getattr(BACKENDS.cudnn, "rnn", None),
    "mkldnn.matmul": getattr(BACKENDS.mkldnn, "matmul", None),
    "mkldnn.conv": getattr(BACKENDS.mkldnn, "conv", None),
    "mkldnn.rnn": getattr(BACKENDS.mkldnn, "rnn", None),
}
needs_switches = pytest.mark.skipif(LEAVES["mkldnn.conv"] is None, reason="this torch has the older switches alone")


def responses() -> dict[str, list[str]]:
    """What every switch says, as it is and while its parents are set to one thing after the other: so it shows whether it follows."""
    found: dict[str, list[str]] = {name: [leaf.fp32_precision] for name, leaf in LEAVES.items()}
    own: dict[str, str] = {}
    for name, parent in PARENTS.items():  # from the top, since what is set to nothing shows its parent's setting
        own[name] = parent.fp32_precision
        parent.fp32_precision = "none"
    for parent in PARENTS.values():
        for value in ("ieee", "tf32", "none"):
            parent.fp32_precision = value
            for leaf_name, leaf in LEAVES.items():
                found[leaf_name].append(leaf.fp32_precision)
    for name, parent in PARENTS.items():
        parent.fp32_precision = own[name]
    return found | {name: [value] for name, value in own.items()}


@pytest.fixture
def switches() -> Iterator[None]:
    """Puts every switch back to following its back end's."""
    yield
    for one in (*LEAVES.values(), *PARENTS.values()):
        one.fp32_precision = "none"


def process_wide() -> dict[str, Any]:
    """Everything of the process that running a network or reading images could touch."""
    cudnn = torch.backends.cudnn
    return {
        "switches": responses(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast types": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "stance": getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None),
        # Python's own random numbers are left out: the checks of types that tests run under draw from them.
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
def test_all_that_is_set_for_a_verb_is_put_back(tmp_path: Path, switches: None) -> None:
    torch.backends.cudnn.benchmark = True
    try:
        network = small_network()
        before = process_wide()
        atlas = unitscope.scan(network, IMAGES, tmp_path / "atlas")
        assert process_wide() == before, "scan"
        unitscope.check(atlas, network)
        assert process_wide() == before, "check"
        unitscope.attribute(atlas, "gradient", network, layers=["4"])
        assert process_wide() == before, "attribute"
        atlas.figure(size_px=16)
        assert process_wide() == before, "figure"
        trace(network, torch.zeros(1, 3, 14, 14))
        assert process_wide() == before, "trace"
        with pytest.raises(unitscope.UnitscopeError):
            trace(network, torch.zeros(1, 5, 14, 14))
        assert process_wide() == before, "a trace that fails"
    finally:
        torch.backends.cudnn.benchmark = False


@pytest.mark.slow
@needs_switches
@pytest.mark.parametrize("name", [*PARENTS, *LEAVES])
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_every_switch_for_precision_may_be_set_before(tmp_path: Path, switches: None, name: str, value: str) -> None:
    network = small_network()
    plain = unitscope.scan(network, IMAGES, tmp_path / "plain")
    (PARENTS | LEAVES)[name].fp32_precision = value
    before = responses()
    other = unitscope.scan(network, IMAGES, tmp_path / "other")
    assert unitscope.check(other, network).differences == []
    assert responses() == before
    assert bytes_of(plain.folder) == bytes_of(other.folder)


@needs_switches
def test_a_switch_that_is_set_after_a_scan_is_heard(tmp_path: Path, switches: None) -> None:
    unitscope.scan(small_network(), IMAGES, tmp_path / "atlas")
    torch.backends.fp32_precision = "tf32"
    assert {leaf.fp32_precision for leaf in LEAVES.values()} == {"tf32"}


@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
def test_the_older_switches_may_be_set_before(tmp_path: Path, switches: None, legacy: str) -> None:
    torch.set_float32_matmul_precision(legacy)
    try:
        unitscope.scan(small_network(), IMAGES, tmp_path / "atlas")
        assert torch.get_float32_matmul_precision() == legacy
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
        other = unitscope.scan(network, IMAGES, tmp_path / "other")
        assert unitscope.check(other, network).differences == []
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
    assert bytes_of(plain.folder) == bytes_of(other.folder)


@pytest.mark.parametrize("device_type", AUTOCAST_DEVICES)
def test_autocast_is_off_in_plain_tensors_and_on_again_afterwards(device_type: str) -> None:
    """Also where there is no such device; torch.autocast would warn of that."""
    before = torch.is_autocast_enabled(device_type)
    torch.set_autocast_enabled(device_type, True)
    try:
        with plain_tensors():
            assert not torch.is_autocast_enabled(device_type)
        assert torch.is_autocast_enabled(device_type)
    finally:
        torch.set_autocast_enabled(device_type, before)


class Labelled:
    """The images with labels in turn."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, image: int) -> tuple[torch.Tensor, int]:
        return IMAGES[image], image % 2


def every_verbs_numbers(folder: Path) -> dict[str, Any]:
    """What every verb says of the same network and images."""
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


def test_no_verb_says_anything_else_under_the_callers_autocast(tmp_path: Path) -> None:
    plain = every_verbs_numbers(tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        cast = every_verbs_numbers(tmp_path / "cast")
        assert torch.is_autocast_enabled("cpu")
    assert [name for name in plain if repr(plain[name]) != repr(cast[name])] == []
