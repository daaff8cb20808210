"""Networks of transformers and open_clip: real loading code, from configurations and from files that lie where a download would put them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unitscope
from unitscope.errors import NetworkError
from unitscope.images import prepare
from unitscope.networks import load_network
from unitscope.records import Preprocessing

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about their own versions and about weights that are random

PROCESSORS: dict[str, tuple[Any, int | tuple[int, int] | None]] = {
    "squashed": (lambda: transformers.ViTImageProcessor(size={"height": 96, "width": 96}), (96, 96)),
    "shorter side, then a crop": (
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 128}, crop_size=96, resample=3),
        128,
    ),
    "a crop of seven eighths": (lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 112}), 128),
    "LeViT's larger side": (lambda: transformers.LevitImageProcessor(size={"shortest_edge": 224}), 256),
    "not resized": (lambda: transformers.ViTImageProcessor(do_resize=False, do_normalize=False), None),
    "normalised twice": (lambda: transformers.EfficientNetImageProcessor(size={"height": 96, "width": 96}), (96, 96)),
    "from -1 to 1": (lambda: transformers.ViTImageProcessor(do_normalize=False, rescale_factor=2 / 255), (224, 224)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_preprocessing_gives_what_the_image_processor_gives(name: str) -> None:
    from unitscope.networks.transformers_models import preprocessing_of_processor

    make, resize = PROCESSORS[name]
    processor = make()
    preprocessing = preprocessing_of_processor(processor)
    assert preprocessing is not None
    assert preprocessing.resize == resize
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (320, 200) if resize is None else (400, 300), Image.Resampling.BICUBIC
    )
    given = processor(images=picture, return_tensors="np")["pixel_values"][0]
    ours = (prepare(picture, preprocessing) / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    assert given.shape == ours.transpose(2, 0, 1).shape
    assert np.abs(given - ours.transpose(2, 0, 1)).mean() < 0.05 / min(preprocessing.std)


def test_an_image_processor_that_does_what_cannot_be_said_gives_no_preprocessing() -> None:
    from unitscope.networks.transformers_models import preprocessing_of_processor

    assert preprocessing_of_processor(transformers.MobileViTImageProcessor()) is None  # blue before red


def tiny_vit(folder: Path) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    torch.manual_seed(5)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return network


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_transformers_is_scanned_with_its_weights_and_preprocessing(
    tmp_path: Path, photographs: Path, monkeypatch
) -> None:
    network = tiny_vit(tmp_path / "vit")
    monkeypatch.chdir(tmp_path)
    loaded = load_network("transformers:vit")
    assert loaded.model == f"transformers:{tmp_path / 'vit'}"
    assert loaded.preprocessing == Preprocessing((32, 32), (32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3, "bilinear")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images).logits, network(images).logits)
    atlas = unitscope.scan(loaded, photographs, tmp_path / "atlas", k=2)
    assert [layer.name for layer in atlas.layers if "attention.q_proj" in layer.name or "query" in layer.name]
    assert unitscope.check(unitscope.Atlas(tmp_path / "atlas")).differences == []  # built anew from its name


def test_weights_are_random_where_none_are_asked_for_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    tiny_vit(tmp_path / "vit")
    first, again, other = (load_network(f"transformers:{tmp_path / 'vit'}", "none", seed).hash() for seed in (0, 0, 1))
    assert first == again != other


def test_of_a_network_of_texts_and_images_the_part_that_takes_images_is_read(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    transformers.CLIPConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path / "clip")
    network = load_network(f"transformers:{tmp_path / 'clip'}", "none")
    assert type(network.module).__name__ == "CLIPVisionModel"
    transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(NetworkError, match="a BertModel of transformers has no part that takes images alone"):
        load_network(f"transformers:{tmp_path / 'bert'}", "none")


def test_a_network_in_the_hubs_cache_is_found(tmp_path: Path, monkeypatch) -> None:
    """As a download leaves it: a snapshot, and a reference to it."""
    from huggingface_hub import constants

    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--tiny-vit"
    network = tiny_vit(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True, raising=False)
    loaded = load_network("transformers:someone/tiny-vit")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images).logits, network(images).logits)


def test_the_visual_tower_of_open_clip_is_read_with_its_preprocessing() -> None:
    network = load_network("open_clip:RN50", "none")
    assert type(network.module).__name__ == "ModifiedResNet"
    assert network.preprocessing is not None
    assert (network.preprocessing.resize, network.preprocessing.crop) == (224, (224, 224))
    with pytest.raises(
        NetworkError, match=r"open_clip has no weights 'openia' for 'RN50'; give one of open_clip:RN50/\{.*openai"
    ):
        load_network("open_clip:RN50/openia")
    with pytest.raises(NetworkError, match="open_clip has no model 'RN5O'. Close: 'RN50'"):
        load_network("open_clip:RN5O/openai")
