"""Receptive fields of real architectures, for every cell of every layer, against perturbation; and their published sizes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from oracles import assert_boxes_equal, make_transparent, moving_rows_and_columns
from torch import Tensor, nn

from unitscope.layers import trace
from unitscope.networks import load_network
from unitscope.receptive_fields import DependencyMode, ReceptiveFields

PLAIN = {
    "alexnet": (96, 80),
    "vgg16": (64, 48),
    "googlenet": (96, 80),
    "inception_v3": (96, 112),
    "resnet18": (96, 80),
    "resnet50": (64, 48),
    "resnext50_32x4d": (64, 48),
    "wide_resnet50_2": (64, 48),
    "densenet121": (64, 48),
    "squeezenet1_1": (96, 80),
    "mobilenet_v2": (96, 80),
    "shufflenet_v2_x1_0": (96, 80),
    "mnasnet1_0": (64, 80),
    "fcn_resnet50": (48, 64),
    "deeplabv3_resnet50": (48, 64),
}
# Squeeze-excitation multiplies by a global gate: from an input of zeros nothing would be seen to move behind it.
GATED = {"mobilenet_v3_small": (64, 80), "efficientnet_b0": (64, 48), "regnet_y_400mf": (64, 80)}


@contextmanager
def leaf_hooks(network: nn.Module, look: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `look` with every activation map that a module without children gives; (unit,) outputs as maps of one cell."""

    def hook(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() in (2, 4):
            look(output)

    handles = [m.register_forward_hook(hook) for m in network.modules() if next(m.children(), None) is None]
    yield
    for handle in handles:
        handle.remove()


def leaf_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of all modules without children in one pass, as maps; copied, since in-place modules change them later."""
    outputs: list[Tensor] = []
    with leaf_hooks(
        network, lambda output: outputs.append(output.clone() if output.dim() == 4 else output[..., None, None].clone())
    ):
        network(images)
    return outputs


def leaf_fields(network: nn.Module, size: tuple[int, int]) -> list[ReceptiveFields]:
    """The receptive fields of the same outputs; every operator has a rule."""
    mode, images = DependencyMode(), torch.zeros(1, 3, *size, dtype=torch.float64)
    fields: list[ReceptiveFields] = []

    def look(output: Tensor) -> None:
        fields.append(ReceptiveFields.from_bounds(mode.bounds_of(output), *size))

    with leaf_hooks(network, look), torch.no_grad(), mode:
        mode.start(images)
        network(images)
    assert not mode.unknown_operators
    return fields


def assert_fields_are_exact(network: nn.Module, size: tuple[int, int], base: float) -> None:
    moving = moving_rows_and_columns(network, leaf_outputs, size, base)
    for number, (fields, *lines) in enumerate(zip(leaf_fields(network, size), *moving, strict=True)):
        assert_boxes_equal(fields, lines, size, f"layer {number}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_fields_of_plain_networks_are_exact(name: str) -> None:
    network = make_transparent(load_network(f"torchvision:{name}", "none").module)
    assert_fields_are_exact(network, PLAIN[name], base=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", GATED)
def test_fields_of_gated_networks_are_exact(name: str) -> None:
    network = make_transparent(load_network(f"torchvision:{name}", "none").module, spread=1.0)
    assert_fields_are_exact(network, GATED[name], base=0.01)


@pytest.mark.slow
def test_fields_of_the_demo_network_are_exact() -> None:
    network = make_transparent(load_network("demo:efficientnet-lite0", "none").module)
    assert_fields_are_exact(network, (224, 224), base=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layer", "size"),
    [
        ("alexnet", "features.12", 195),
        ("vgg16", "features.30", 212),
        (
            "resnet50",
            "layer4.2.relu#3",
            427,
        ),  # 483 where the stride is in the last block of a stage; torchvision has it in the first
        ("mobilenet_v3_small", "features.12.2", 224),
    ],
)
def test_published_field_sizes_come_out(model: str, layer: str, size: int) -> None:
    traced = trace(load_network(f"torchvision:{model}", "none").module, torch.zeros(1, 3, 224, 224))
    (described,) = (t.layer for t in traced.layers if t.name == layer)
    assert (described.receptive_field_height, described.receptive_field_width) == (size, size)
