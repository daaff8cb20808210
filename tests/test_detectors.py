"""torchvision's detectors and segmentation networks: what is read of them, and how they want their images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import unitscope
from unitscope.experiments import occlude
from unitscope.layers import choose_layers, trace
from unitscope.networks import load_network
from unitscope.records import Preprocessing

SIDE = 64


class Backbone(nn.Module):
    """One map of 8 units or more, at an eighth of the image's size."""

    def __init__(self, out_channels: int | list[int] = 8) -> None:
        super().__init__()
        units = out_channels if isinstance(out_channels, int) else out_channels[0]
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, units, 5, stride=4, padding=2), nn.ReLU()
        )
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.convolutions(images)


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))


SIZE = {"min_size": SIDE, "max_size": SIDE}
DETECTORS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "faster_rcnn": (lambda: FasterRCNN(Backbone(), 3, rpn_anchor_generator=anchors(), **SIZE), "roi_heads."),
    "mask_rcnn": (lambda: MaskRCNN(Backbone(), 3, rpn_anchor_generator=anchors(), **SIZE), "roi_heads."),
    "retinanet": (lambda: RetinaNet(Backbone(), 3, anchor_generator=anchors(), **SIZE), ""),
    "fcos": (lambda: FCOS(Backbone(32), 3, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **SIZE), ""),
    "ssd": (lambda: SSD(Backbone([8]), DefaultBoxGenerator([[2]]), (SIDE, SIDE), 3), ""),
}
"""Small detectors, and how the names of the layers begin that run once a proposal; empty where none does."""


@pytest.mark.parametrize("name", DETECTORS)
def test_layers_that_run_once_an_image_are_scanned_and_those_once_a_proposal_are_left_out(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    build, once_a_proposal = DETECTORS[name]
    network = build().eval()
    traced = trace(network, torch.zeros(1, 3, SIDE, SIDE))
    left_out = {layer.name: layer.reason for layer in traced.unreadable if layer.is_default}
    assert left_out.keys() >= ({"roi_heads.box_head.fc6", "roi_heads.box_predictor.cls_score"} if once_a_proposal else set())
    assert all(once_a_proposal and name.startswith(once_a_proposal) for name in left_out)
    assert not [layer.name for layer in traced.layers if once_a_proposal and layer.name.startswith(once_a_proposal)]
    assert all("'torchvision::nms' selected in the image" in reason for reason in left_out.values())
    images = torch.rand(5, 3, SIDE, SIDE)
    names = [layer.name for layer in traced.layers if layer.is_default]
    atlas = unitscope.scan(network, images, tmp_path / "atlas", k=2, layers=names)
    assert [layer.name for layer in atlas.layers] == names
    assert not unitscope.check(atlas, network).differences
    maps = network.transform([*images])[0].tensors
    activations = network.backbone.convolutions[:3](maps).amax((2, 3)).relu()
    peaks = atlas.peaks("backbone.convolutions.3").to_pylist()
    values = torch.tensor([peak["value"] for peak in peaks]).reshape(-1, 2).T
    torch.testing.assert_close(values.relu(), activations.topk(2, dim=0).values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", (320, 320)), ("ssdlite320_mobilenet_v3_large", (320, 320)),
        ("ssd300_vgg16", (300, 300)), ("fasterrcnn_mobilenet_v3_large_fpn", (800, 800)),
    ],
)  # fmt: skip
def test_a_detector_gets_pixels_from_0_to_1_at_the_size_that_it_works_at(name: str, size: tuple[int, int]) -> None:
    network = load_network(f"torchvision:{name}", "none")
    assert network.preprocessing == Preprocessing(size, size, (0.0,) * 3, (1.0,) * 3)
    transform: nn.Module = network.module.get_submodule("transform")
    images, _ = transform([torch.rand(3, *size)])
    assert tuple(images.tensors.shape[2:]) == size


def test_a_segmentation_network_is_scanned_by_its_model_string(tmp_path: Path) -> None:
    network = load_network("torchvision:lraspp_mobilenet_v3_large", "none")
    assert network.preprocessing is not None
    assert network.preprocessing.crop == (520, 520)
    traced = trace(network.module, torch.zeros(1, 3, 96, 96))
    assert not [layer for layer in traced.unreadable if layer.is_default]
    assert "classifier.high_classifier" in [layer.name for layer in choose_layers(traced)]


class Classifier(nn.Module):
    """Returns its scores in a mapping, as transformers' networks do, or as the first of several outputs."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.convolution, self.activation, self.wrap = nn.Conv2d(3, 4, 3), nn.ReLU(), wrap

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.activation(self.convolution(images)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["logits", "out", "tuple", "tensor"])
def test_class_scores_are_found_in_what_a_network_returns(tmp_path: Path, kind: str) -> None:
    wraps: dict[str, Callable[[Tensor], object]] = {
        "logits": lambda scores: {"loss": None, "logits": scores, "hidden_states": (scores[:, :1],)},
        "out": lambda scores: {"out": scores},
        "tuple": lambda scores: (scores, scores[:, :2]),
        "tensor": lambda scores: scores,
    }
    torch.manual_seed(0)
    plain, wrapped = Classifier(wraps["tensor"]), Classifier(wraps[kind])
    wrapped.load_state_dict(plain.state_dict())
    images = torch.rand(3, 3, 24, 24)
    tables = []
    for number, network in enumerate((plain, wrapped)):
        atlas = unitscope.scan(network, images, tmp_path / f"atlas{number}", k=1)
        tables.append(occlude(atlas, "activation", [0], network=network))
    assert tables[0].equals(tables[1])
