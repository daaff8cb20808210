"""The gradient of a convolution in a crop is the dense one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unitscope.attribution.cropped_backward import CroppedBackward


def gradient(network: nn.Module, images: Tensor, grad_output: Tensor, mode: AbstractContextManager[Any]) -> Tensor:
    leaf = images.clone().requires_grad_()
    with mode:
        maps = network(leaf)
    return torch.autograd.grad(maps, leaf, grad_output)[0]


def gradients(network: nn.Module, images: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in a crop, and torch's own."""
    return gradient(network, images, grad_output, CroppedBackward()), gradient(network, images, grad_output, nullcontext())


KERNELS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=150, deadline=None)
@given(
    kernel=KERNELS, stride=st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 4), (2, 1)]), padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.sampled_from([(1, 1), (2, 1)]), groups=st.sampled_from([1, 2]), channels=st.sampled_from([2, 4, 6]),
    channels_last=st.booleans(), dense=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_the_gradient_equals_the_dense_one(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int,
    channels: int, channels_last: bool, dense: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = nn.Conv2d(channels, 4, kernel, stride, padding, dilation, groups).double()
    layer = layer.to(memory_format=torch.channels_last) if channels_last else layer
    images = torch.randn(3, channels, 20, 23, dtype=torch.double)
    grad_output = torch.zeros_like(layer(images))
    for of_image in grad_output[:2]:  # that of the third image is zero or dense
        y, x = (int(torch.randint(0, size, ())) for size in of_image.shape[1:])
        of_image[:, y : y + 3, x : x + 2] = torch.randn(4, 1, 1)
    if dense:
        grad_output[2] = torch.randn_like(grad_output[2])
    cropped, expected = gradients(layer, images, grad_output)
    torch.testing.assert_close(cropped, expected, rtol=1e-10, atol=1e-12)


def test_nan_comes_down() -> None:
    grad_output = torch.zeros(1, 2, 9, 9)
    grad_output[0, :, 4, 4] = torch.nan
    cropped, expected = gradients(nn.Conv2d(3, 2, 3, padding=1), torch.randn(1, 3, 9, 9), grad_output)
    assert cropped.isnan().sum() == 27
    assert torch.equal(cropped.isnan(), expected.isnan())


def convolution_node(network: nn.Module) -> str:
    """The name of the node that the network's convolution has in the graph while the mode is on."""
    with CroppedBackward():
        maps = network(torch.randn(1, 3, 9, 9, requires_grad=True))
    return str(maps.grad_fn.name())


def test_a_plain_convolution_is_not_left_to_torch() -> None:
    assert convolution_node(nn.Conv2d(3, 2, 3)) != "ConvolutionBackward0"


class Computed(nn.Module):
    """A convolution whose weights come from the image."""

    def forward(self, images: Tensor) -> Tensor:
        weight = images.mean((0, 2, 3)).view(1, 3, 1, 1).expand(2, 3, 3, 3)
        return nn.functional.conv2d(images, weight, None, (1, 1), (0, 0), (1, 1), 1)


@pytest.mark.parametrize(
    "network", [Computed(), nn.Conv2d(3, 2, 3, padding="same"), nn.Conv2d(3, 2, 3, padding_mode="reflect", padding=1)]
)
def test_other_convolutions_have_the_gradient_of_torch(network: nn.Module) -> None:
    images = torch.randn(2, 3, 12, 12)
    grad_output = torch.zeros_like(network(images))
    grad_output[:, :, 5, 5] = 1
    cropped, expected = gradients(network, images, grad_output)
    torch.testing.assert_close(cropped, expected)
