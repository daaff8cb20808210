"""Whole networks over real photographs, against hooks that keep every image's highest value and sort at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

import unitscope
from unitscope.images import DatasetSource
from unitscope.networks import InputFormat, load_network
from unitscope.session.loader import Loader

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
NEAR = 1e-4
"""How far values may be apart, relatively: a convolution's last bits depend on the batch and on the layout in memory."""


@contextmanager
def kept(network: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes into every call of every ReLU, and what comes out of the modules wanted: highest values and cells of the last batch."""
    maps_by_layer: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, maps: Tensor) -> None:
        calls = sum(1 for known in maps_by_layer if known.split("#")[0] == name)
        highest = maps.flatten(2).max(2) if maps.dim() == 4 else maps[..., None].max(2)
        maps_by_layer[f"{name}#{calls + 1}" if calls else name] = (highest.values, highest.indices)

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0])))
        elif wanted(name, module):
            handles.append(module.register_forward_hook(lambda _, __, maps, name=name: note(name, maps)))
    yield maps_by_layer
    for handle in handles:
        handle.remove()


def highest_of_all(
    network: nn.Module, paths: list[Path], transform: Callable[[Image.Image], Tensor], wanted: Callable[..., bool]
):
    """Every image's highest values and cells by layer, in call order."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(paths), 16):
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 16]])
        with torch.no_grad(), kept(network.eval(), wanted) as maps_by_layer:
            network(batch)
        for name, maxima_and_cells in maps_by_layer.items():
            parts.setdefault(name, []).append(maxima_and_cells)
    return {name: tuple(torch.cat(t) for t in zip(*maxima_and_cells, strict=True)) for name, maxima_and_cells in parts.items()}


def assert_peaks_are_the_highest(atlas: unitscope.Atlas, layer: str, values: Tensor, cells: Tensor) -> None:
    known = atlas.layer(layer)
    candidates = values.masked_fill(values <= 0, -torch.inf) if known.rectified else values
    order = candidates.sort(dim=0, descending=True, stable=True).indices[:9]
    table = atlas.peaks(layer)
    unit, rank, image = (table[name].to_numpy() for name in ("unit", "rank", "image"))
    expected = candidates.gather(0, order).numpy()
    assert len(table) == np.isfinite(expected).sum()
    np.testing.assert_allclose(table["value"], expected[rank - 1, unit], rtol=NEAR, atol=1e-5)
    np.testing.assert_allclose(values.numpy()[image, unit], table["value"], rtol=NEAR, atol=1e-5)
    swapped = image != order.numpy()[rank - 1, unit]
    np.testing.assert_allclose(values.numpy()[image, unit][swapped], expected[rank - 1, unit][swapped], rtol=1e-5, atol=1e-6)
    same_cell = table["y"].to_numpy() * known.map_width + table["x"].to_numpy() == cells.numpy()[image, unit]
    assert swapped.mean() < 0.005
    assert same_cell.mean() > 0.995


WANTED: dict[str, Callable[[str, nn.Module], bool]] = {
    "alexnet": lambda name, _: name == "classifier.6",
    "vgg16": lambda name, _: name == "classifier.6",
    "resnet18": lambda name, _: name == "fc" or name.endswith((".bn2", "downsample.1")),
}


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs of ../shared/data are not on this machine")
@pytest.mark.parametrize(("name", "count"), [("alexnet", 150), ("resnet18", 100), ("vgg16", 40)])
def test_the_top_nine_of_real_photographs(name: str, count: int, tmp_path: Path) -> None:
    paths = sorted(PHOTOGRAPHS.iterdir())[:count]
    atlas = unitscope.scan(load_network(f"torchvision:{name}", "none", seed=0), PHOTOGRAPHS, tmp_path / "atlas", limit=count)
    torch.manual_seed(0)
    network = models.get_model(name)
    transform = models.get_model_weights(name).DEFAULT.transforms()
    truth = highest_of_all(network, paths, transform, WANTED[name])
    assert sorted(truth) == sorted(layer.name for layer in atlas.layers)
    for layer, (values, cells) in truth.items():
        assert_peaks_are_the_highest(atlas, layer, values, cells)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs of ../shared/data are not on this machine")
def test_the_demos_network_knows_the_photographs() -> None:
    """Its weights and its preprocessing fit each other: it ranks the true class first for most (86 % of all 600)."""
    network = load_network("demo:efficientnet-lite0")
    assert network.preprocessing is not None
    loader = Loader(DatasetSource(Pictures()), network.preprocessing, (3, 224, 224))
    input_format = InputFormat(torch.device("cpu"), torch.float32, torch.contiguous_format)
    with torch.no_grad():
        images = loader.normalise([loader.load(loader.item(i)).pixels for i in range(60)], input_format)
        ranked = network.module(images).argmax(1).tolist()
    names = models.AlexNet_Weights.DEFAULT.meta["categories"]
    assert np.mean([plain(names[number]) == Pictures.name(i) for i, number in enumerate(ranked)]) > 0.75


class Pictures:
    """Every tenth photograph; its class is in its file's name."""

    paths = sorted(PHOTOGRAPHS.glob("*"))[::10]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, image: int) -> Image.Image:
        return Image.open(self.paths[image])

    @classmethod
    def name(cls, image: int) -> str:
        return plain(cls.paths[image].stem.split("_", 1)[1])


def plain(name: str) -> str:
    return name.lower().replace("_", " ")
