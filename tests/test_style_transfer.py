"""The example of style transfer: a picture in the style of another is nearer to it in each layer, and shows the content yet."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

import unitscope

SIDE = 64


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("skimage", reason="the pictures come with scikit-image")
    file = Path(__file__).parents[1] / "examples" / "style_transfer.py"
    spec = importlib.util.spec_from_file_location("style_transfer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    """Random filters, the layers of which lie ever deeper."""
    torch.manual_seed(0)
    parts = [
        [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        for channels_in, channels_out in ((3, 16), (16, 24), (24, 32))
    ]
    return nn.Sequential(*(module for part in parts for module in part)).eval()


def checks(side: int, colours: tuple[tuple[int, int, int], tuple[int, int, int]], size: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), colours[0])
    for top in range(0, side, size):
        for left in range(0, side, size):
            if (top + left) // size % 2:
                picture.paste(colours[1], (left, top, left + size, top + size))
    return picture


def half_dark(side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), (200, 200, 200))
    picture.paste((60, 60, 60), (0, 0, side // 2, side))
    return picture


def test_a_picture_takes_the_style_and_keeps_the_content(example: ModuleType, network: nn.Sequential) -> None:
    content, style = half_dark(SIDE), checks(SIDE, ((220, 30, 30), (250, 220, 40)), 4)
    styles = ["1", "4", "7"]
    restyled = example.restyled(network, content, style, "7", styles, SIDE, 30)
    assert restyled.shape == (3, SIDE, SIDE)
    assert float(restyled.min()) >= 0
    assert float(restyled.max()) <= 1
    pictures = {"content": example.square(content, SIDE), "style": example.square(style, SIDE), "restyled": restyled}
    grams = {}
    with example.read(network, styles) as values:
        for name, picture in pictures.items():
            network(example.normalised(picture))
            grams[name] = [example.gram(values[layer]) for layer in styles]
    for before, wanted, after in zip(grams["content"], grams["style"], grams["restyled"], strict=True):
        assert (after - wanted).norm() < 0.4 * (before - wanted).norm()
    assert restyled[:, :, : SIDE // 2].mean() < restyled[:, :, SIDE // 2 :].mean()  # the left is dark yet


def test_layers_are_proposed_from_the_fields(example: ModuleType, network: nn.Sequential, tmp_path: Path) -> None:
    preprocess = unitscope.Preprocessing(SIDE, (SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
    atlas = unitscope.scan(network, [half_dark(SIDE)] * 4, tmp_path / "atlas", preprocess=preprocess)
    contents, styles = example.proposed_layers(atlas)
    names = [layer.name for layer in atlas.layers]
    for proposed in (contents, styles):
        assert [layer.name for layer in proposed] == sorted((layer.name for layer in proposed), key=names.index)
        assert all("pixels" in layer.reason for layer in proposed)
    assert styles[0].name == contents[0].name == names[0]


@pytest.mark.slow
def test_the_trained_trunk_from_end_to_end(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stlpips_pytorch", reason="the weights come with stlpips-pytorch")
    monkeypatch.setattr("sys.argv", ["style_transfer.py", "--out", str(tmp_path), "--side", "64", "--steps", "2"])
    example.main()
    with Image.open(tmp_path / "style-transfer.png") as picture:
        assert picture.width > 3 * 64
