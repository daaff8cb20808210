"""Model strings, weights, preprocessing."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_network
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import unitscope
from unitscope.errors import NetworkError
from unitscope.images import prepare
from unitscope.networks import (
    Network,
    PreprocessingOverrides,
    as_preprocessing,
    load_network,
    network_from_module,
    preprocessing_for,
)
from unitscope.networks.precision import eval_mode
from unitscope.records import Preprocessing
from unitscope.session.opening import trace_network

FACTORY = """
from torch import nn
from beside import WIDTH

def network():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU())

def text():
    return "no network"

def failing():
    return nn.Linear("three", 4)
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A file with functions that build networks, which imports a file beside it."""
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    return str(tmp_path / "mine.py")


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert actual.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in actual.state_dict().items())


def test_random_weights_depend_on_the_seed_alone() -> None:
    rng_state = torch.get_rng_state()
    first, second, third = (load_network("torchvision:squeezenet1_1", "none", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert first.hash() == second.hash() != third.hash()
    torch.manual_seed(0)
    assert_same_weights(first.module, models.squeezenet1_1())
    assert not first.module.training


def test_torchvision_weights_come_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    stored = models.squeezenet1_1()
    name = Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(stored.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    network = load_network("torchvision:squeezenet1_1")
    assert_same_weights(network.module, stored)
    assert network.preprocessing == Preprocessing(256, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", raise_no_route)
    with pytest.raises(NetworkError, match="'torchvision:squeezenet1_1' can't be built: URLError: .*--weights PATH or none"):
        load_network("torchvision:squeezenet1_1")


def raise_no_route(*_: object, **__: object) -> None:
    from urllib.error import URLError

    raise URLError("no route")


def test_a_pickled_object_in_the_hubs_cache_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.save({"weights": Trap(tmp_path / "sprung")}, cached)
    with pytest.raises(NetworkError, match="nothing of them was executed"):
        load_network("torchvision:squeezenet1_1")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
def test_a_pickled_object_in_a_weights_file_is_not_executed(tmp_path: Path, factory: str, save: object, ending: str) -> None:
    save({"0.weight": Trap(tmp_path / "sprung")}, tmp_path / f"weights{ending}")
    with pytest.raises(NetworkError, match="pickled objects|can't be read"):
        load_network(f"{factory}:network", str(tmp_path / f"weights{ending}"))
    assert not (tmp_path / "sprung").exists()


TIMM = """
import sys, timm, torch
from pathlib import Path
from safetensors.torch import save_file
from unitscope.networks import load_network

torch.manual_seed(3)
stored = timm.create_model("test_vit")
config = stored.pretrained_cfg
repository = "models--" + config["hf_hub_id"].replace("/", "--")
cache = Path(sys.argv[1]) / "hub" / repository
(cache / "refs").mkdir(parents=True)
(cache / "refs" / "main").write_text("0" * 40)
(cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
save_file(stored.state_dict(), cache / "snapshots" / ("0" * 40) / "model.safetensors")
network = load_network("timm:test_vit")
assert all(torch.equal(t, network.module.state_dict()[n]) for n, t in stored.state_dict().items())
assert network.preprocessing is not None
print(network.preprocessing)
"""


@pytest.mark.slow
def test_timm_weights_come_from_the_hubs_cache(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", TIMM, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "crop=(160, 160)" in process.stdout


def test_a_timm_model_brings_its_preprocessing() -> None:
    assert load_network("timm:resnet18", "none").preprocessing == Preprocessing(
        235, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), interpolation="bicubic"
    )


def test_the_demos_network_has_its_imagenet_weights() -> None:
    network = load_network("demo:efficientnet-lite0")
    assert network.preprocessing is not None
    assert network.preprocessing.interpolation == "bicubic"
    assert network.hash() != load_network("demo:efficientnet-lite0", "none").hash()


def test_a_file_with_a_factory(factory: str) -> None:
    network = load_network(f"{factory}:network")
    assert network.module[0].out_channels == 5
    assert not network.module.training
    assert network.preprocessing is None


def test_a_package_with_a_factory() -> None:
    network = load_network("torchvision.models.squeezenet:squeezenet1_1", "none")
    assert isinstance(network.module, models.SqueezeNet)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file(tmp_path: Path, factory: str, ending: str, wrapped: bool) -> None:
    stored = load_network(f"{factory}:network", seed=7).module
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        save_file(stored.state_dict(), path)
    elif wrapped:  # a training checkpoint of a network in DataParallel
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in stored.state_dict().items()}}, path)
    else:
        torch.save(stored.state_dict(), path)
    assert_same_weights(load_network(f"{factory}:network", str(path)).module, stored)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("alexnet", "'alexnet' isn't one of the forms .* Did you mean 'torchvision:alexnet'"),
        ("torchvision:alexnett", "torchvision has no model 'alexnett'. Close: 'alexnet'"),
        ("timm:resnet19", "timm has no model 'resnet19'. Close: 'resnet18'"),
        ("demo:nothing", "the demo's is 'demo:efficientnet-lite0'"),
        ("no.such.package:thing", "'no.such.package' .* can't be imported: No module named 'no'"),
        ("torchvision.models:nothing", "has no function or class 'nothing'"),
        ("nowhere.py:network", "there is no file 'nowhere.py'"),
        (":", "isn't one of the forms"),
        (
            "torchvision:r3d_18",
            "'torchvision:r3d_18' takes videos, clips of shape .* write a function .* and give FILE.py:FUNCTION",
        ),
        ("torchvision:mvit_v2_s", "takes videos"),
        ("torchvision:swin3d_t", "takes videos"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line_with_what_to_do(model: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        load_network(model, "none")
    assert "\n" not in str(caught.value)


def test_a_factory_that_gives_no_network_is_refused(factory: str) -> None:
    with pytest.raises(NetworkError, match=r"gave a str, not a torch\.nn\.Module"):
        load_network(f"{factory}:text")


def test_what_a_users_own_code_raises_is_one_line_with_its_place(tmp_path: Path, factory: str) -> None:
    with pytest.raises(NetworkError, match=r"mine.py:failing' can't be built: TypeError: .* \(.*, line \d+\)$"):
        load_network(f"{factory}:failing")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(NetworkError, match=r"can't be imported: ZeroDivisionError: division by zero \(broken.py, line 1\)$"):
        load_network(f"{tmp_path / 'broken.py'}:network")


def test_weights_that_do_not_fit_are_named_with_their_shapes(tmp_path: Path, factory: str) -> None:
    torch.save({"0.weight": torch.zeros(5, 3, 1, 1), "1.weight": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(NetworkError) as caught:
        load_network(f"{factory}:network", str(tmp_path / "w.pt"))
    for misfit in ("lacks 0.bias", "has unknown 1.weight", "shape of 0.weight is (5, 3, 1, 1), not (5, 3, 3, 3)"):
        assert misfit in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "are empty: 0 bytes"), (b"nonsense", "pickled objects|can't be read"), (None, "there is no weights file")],
)
def test_weights_that_cannot_be_read_are_one_line(tmp_path: Path, factory: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(NetworkError, match=message) as caught:
        load_network(f"{factory}:network", str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_state_dict_are_refused(tmp_path: Path, factory: str) -> None:
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with pytest.raises(NetworkError, match="a list, not a state dict"):
        load_network(f"{factory}:network", str(tmp_path / "w.pt"))


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "inception_v3", "efficientnet_b0", "mobilenet_v3_small"])
def test_images_are_prepared_as_torchvision_does_with_the_default_weights(name: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 411, 3), dtype=np.uint8)).resize((822, 600))
    transform = models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = load_network(f"torchvision:{name}", "none").preprocessing
    assert preprocessing is not None
    pixels = torch.tensor(prepare(image, preprocessing)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close((pixels - mean) / std, transform(image), atol=1e-6, rtol=1e-6)


def test_what_the_user_overrides_of_the_preprocessing_wins(factory: str) -> None:
    network = load_network("torchvision:alexnet", "none")
    changed = preprocessing_for(network, PreprocessingOverrides(mean=(0.5,), std=(0.5,), channels=1))
    assert changed == Preprocessing(256, (224, 224), (0.5,), (0.5,), 1)
    changed = preprocessing_for(network, PreprocessingOverrides(crop=(64, 96)))
    assert (changed.resize, changed.crop) == (256, (64, 96))
    with pytest.raises(NetworkError, match=r"nothing is known .*mine.py:network.*--crop H,W --mean"):
        preprocessing_for(load_network(f"{factory}:network"), PreprocessingOverrides(crop=(8, 8)))
    with pytest.raises(NetworkError, match="3 channels needs as many means"):
        preprocessing_for(network, PreprocessingOverrides(channels=3, mean=(0.5,)))


def test_transforms_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(NetworkError, match=r"'function' is neither a unitscope\.Preprocessing nor a torchvision preset"):
        as_preprocessing(lambda image: image)


@pytest.mark.slow
def test_a_file_of_torchvisions_own_weights_gives_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet's file holds auxiliary heads, and its network transforms its input; both come with `weights=` only."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(models.GoogLeNet_Weights.DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.save(models.googlenet(weights=None, init_weights=False).state_dict(), cached)
    images, expected_network = torch.randn(1, 3, 64, 64), load_network("torchvision:googlenet").module
    torch.save(expected_network.state_dict(), tmp_path / "own.pt")
    for path in (cached, tmp_path / "own.pt"):
        with torch.no_grad():
            torch.testing.assert_close(load_network("torchvision:googlenet", str(path)).module(images), expected_network(images))


def test_no_other_network_may_lack_what_looks_like_a_training_head(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\ndef network(): return nn.ModuleDict({'aux1': nn.Linear(2, 2)})\n")
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(NetworkError, match="lacks aux1.bias, aux1.weight"):
        load_network(f"{tmp_path / 'own.py'}:network", str(tmp_path / "w.pt"))


def test_weights_of_another_kind_are_refused(tmp_path: Path, factory: str) -> None:
    state = load_network(f"{factory}:network").module.state_dict()
    torch.save({name: tensor.to(torch.int8) for name, tensor in state.items()}, tmp_path / "w.pt")
    with pytest.raises(NetworkError, match="0.weight is torch.int8, not torch.float32"):
        load_network(f"{factory}:network", str(tmp_path / "w.pt"))


def test_numbers_that_make_no_preprocessing_are_refused() -> None:
    network = load_network("torchvision:alexnet", "none")
    for overrides in (
        PreprocessingOverrides(resize=0),
        PreprocessingOverrides(resize=(-1, 5)),
        PreprocessingOverrides(crop=(0, 4)),
        PreprocessingOverrides(channels=0),
    ):
        with pytest.raises(NetworkError):
            preprocessing_for(network, overrides)
    for overrides in (
        PreprocessingOverrides(mean=(float("nan"),) * 3),
        PreprocessingOverrides(std=(float("inf"),) * 3),
        PreprocessingOverrides(std=(0.0,) * 3),
    ):
        with pytest.raises(NetworkError, match="must be positive, and mean"):
            preprocessing_for(network, overrides)


def test_the_hash_knows_names_shapes_types_and_values() -> None:
    first = small_network()
    hashes = {network_from_module(first).hash()}
    with torch.no_grad():
        first[0].bias[0] += 1e-6
    hashes.add(network_from_module(first).hash())
    hashes.add(network_from_module(first.double()).hash())
    hashes.add(network_from_module(nn.Sequential(first)).hash())
    assert len(hashes) == 4


def test_eval_mode_lasts_as_long_as_the_block_even_where_it_fails() -> None:
    network = small_network()
    network[1].eval()
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    with pytest.raises(KeyError), eval_mode(network):
        raise KeyError
    assert network.training
    assert not network[1].training


def lazy_buffer() -> nn.Module:
    norm = nn.LazyBatchNorm2d(affine=False)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm)


VALUELESS = {
    "lazy convolution": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), "'0.weight' has no shape yet.*lazy"),
    "lazy buffers": (lazy_buffer, "'1.running_mean' has no shape yet.*lazy"),
    "meta": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), nn.ReLU()), "'0.weight' is on the meta device"),
    "meta buffers": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).to("meta")), "on the meta device"),
}


@pytest.mark.parametrize("kind", VALUELESS)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_parameters_without_values_are_one_line(tmp_path: Path, kind: str) -> None:
    make_network, message = VALUELESS[kind]
    with pytest.raises(NetworkError, match=message):
        unitscope.scan(make_network(), torch.rand(2, 3, 8, 8), tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_a_factory_may_not_leave_parameters_without_values(tmp_path: Path) -> None:
    (tmp_path / "meta.py").write_text("from torch import nn\ndef network():\n    return nn.Conv2d(3, 4, 3, device='meta')\n")
    with pytest.raises(NetworkError, match="'weight' is on the meta device"):
        load_network(f"{tmp_path / 'meta.py'}:network")


OWN = """
import sys
from torch import nn
made = nn.Sequential(nn.Conv2d(3, 4, 3))
def needy(depth, *, width, height=3): return nn.Sequential()
def ending(): sys.exit("no data")
class Net(nn.Module):
    def __init__(self, classes): super().__init__()
"""


def test_a_network_that_a_file_holds_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}, tmp_path / "w.pt")
    for weights in ("default", str(tmp_path / "w.pt")):
        assert isinstance(load_network(f"{tmp_path / 'own.py'}:made", weights).module, nn.Sequential)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needy", "'needy' needs arguments, depth, width; write a function without any"), ("Net", "'Net' needs arguments, classes; write"),
        ("ending", r"can't be built: SystemExit: no data \(own.py, line 6\)"),
    ],
)  # fmt: skip
def test_factories_that_give_nothing_say_what_to_do(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(NetworkError, match=message) as caught:
        load_network(f"{tmp_path / 'own.py'}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "script", ["import sys; sys.exit(3)", "import argparse; p = argparse.ArgumentParser(); p.add_argument('x'); p.parse_args([])"]
)
def test_a_script_that_ends_the_program_is_one_line(tmp_path: Path, script: str) -> None:
    (tmp_path / "script.py").write_text(script)
    with pytest.raises(NetworkError, match=r"it ends the program, SystemExit: \d .*belongs under if __name__ == '__main__':"):
        load_network(f"{tmp_path / 'script.py'}:network")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            PreprocessingOverrides(None, (8, 8), (123.0, 117.0, 104.0), (58.0, 57.0, 57.0)),
            "no mean of those is above 1; divide .* by 255",
        ),
        (PreprocessingOverrides(None, (99999, 99999), (0.5,), (0.5,)), "has more than 500 million pixels"),
        (
            PreprocessingOverrides(None, (8, 8), (0.5,), (0.5,), None, (9.0, 1.0)),
            r"must be a lower and a higher .*\[--value-range LOW HIGH\]",
        ),
    ],
)
def test_impossible_preprocessing_is_refused_with_what_to_give(overrides: PreprocessingOverrides, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        preprocessing_for(Network(nn.Sequential(), "own", "", 0, None), overrides)


def test_an_input_larger_than_the_memory_is_one_line() -> None:
    network = Network(nn.Sequential(nn.Conv2d(3, 4, 3)), "own", "", 0, None)
    preprocessing = Preprocessing(None, (20_000, 20_000), (0.5,) * 3, (0.5,) * 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (1 << 30), hard))
    try:
        with pytest.raises(
            NetworkError, match=r"one input of shape \(3, 20000, 20000\) takes more memory than there is; give a smaller"
        ):
            trace_network(network, preprocessing)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
