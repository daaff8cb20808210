"""Convolutions on the way down: where the signal is cut out, the gradient is the dense one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unitscope.attribution.cropped_backward import Cones


def gradients(network: nn.Module, images: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own, and the one in cones."""
    found = []
    for cones in (False, True):
        leaf = images.clone().requires_grad_()
        if cones:
            with Cones():
                maps = network(leaf)
        else:
            maps = network(leaf)
        found.append(torch.autograd.grad(maps, leaf, signal)[0])
    return found[0], found[1]


pair = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=150, deadline=None)
@given(
    kernel=pair, stride=st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 4), (2, 1)]), padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.sampled_from([(1, 1), (2, 1)]), groups=st.sampled_from([1, 2]), channels=st.sampled_from([2, 4, 6]),
    last=st.booleans(), everywhere=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_the_dense_gradient(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int,
    channels: int, last: bool, everywhere: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = nn.Conv2d(channels, 4, kernel, stride, padding, dilation, groups).double()
    layer = layer.to(memory_format=torch.channels_last) if last else layer
    images = torch.randn(3, channels, 20, 23, dtype=torch.double)
    signal = torch.zeros_like(layer(images))
    for one in signal[:2]:  # the third image has none, or is full
        y, x = (int(torch.randint(0, size, ())) for size in one.shape[1:])
        one[:, y : y + 3, x : x + 2] = torch.randn(4, 1, 1)
    if everywhere:
        signal[2] = torch.randn_like(signal[2])
    ours, theirs = gradients(layer, images, signal)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_not_a_number_comes_down() -> None:
    signal = torch.zeros(1, 2, 9, 9)
    signal[0, :, 4, 4] = torch.nan
    ours, theirs = gradients(nn.Conv2d(3, 2, 3, padding=1), torch.randn(1, 3, 9, 9), signal)
    assert torch.equal(ours.isnan(), theirs.isnan())


def test_is_at_work() -> None:
    with Cones():
        maps = nn.Conv2d(3, 2, 3)(torch.randn(1, 3, 9, 9, requires_grad=True))
    assert maps.grad_fn.name() == "_ConvolutionBackward"


class Computed(nn.Module):
    """A convolution whose weights come from the image."""

    def forward(self, images: Tensor) -> Tensor:
        weight = images.mean((0, 2, 3)).view(1, 3, 1, 1).expand(2, 3, 3, 3)
        return nn.functional.conv2d(images, weight, None, (1, 1), (0, 0), (1, 1), 1)


@pytest.mark.parametrize(
    "network", [Computed(), nn.Conv2d(3, 2, 3, padding="same"), nn.Conv2d(3, 2, 3, padding_mode="reflect", padding=1)]
)
def test_leaves_what_it_does_not_know(network: nn.Module) -> None:
    images = torch.randn(2, 3, 12, 12)
    signal = torch.zeros_like(network(images))
    signal[:, :, 5, 5] = 1
    ours, theirs = gradients(network, images, signal)
    torch.testing.assert_close(ours, theirs)
