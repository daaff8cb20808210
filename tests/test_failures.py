"""What is said of a network that doesn't run."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from unitscope.errors import NetworkError
from unitscope.layers import trace


class TwoInputs(nn.Module):
    def forward(self, images: Tensor, depth: Tensor, scale: float = 1.0) -> Tensor:
        return images + depth * scale


class ChannelsLast(nn.Module):
    """Takes (image, y, x, channel)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images.permute(0, 3, 1, 2))
        return maps


class Deep(nn.Module):
    """One module that is called twice, and fails the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())])

    def forward(self, images: Tensor) -> Tensor:
        for block in (*self.blocks, self.blocks[0]):
            images = block(images)
        return images


ADVICE = "Check the size and the channels that it expects."


@pytest.mark.parametrize(
    ("network", "channels", "failure", "advice"),
    [
        (TwoInputs(), 3, "TypeError", "It takes several inputs, images, depth: give a module around it that takes images alone and adds the others."),
        (ChannelsLast(), 3, "'stem', a Conv2d, fails on (1, 12, 3, 12): RuntimeError", "If it takes its channels last, give a module around it"),
        (nn.Sequential(nn.Conv3d(3, 4, 3)), 3, "'0', a Conv3d, fails on (1, 3, 12, 12): ", "It is made for videos or volumes: give a module around it"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), 1, "'0', a Conv2d, fails on (1, 1, 12, 12): ", "It expects images of 3 channels, not 1: "),
        (Deep(), 3, "'blocks.0.0', a Conv2d, fails on (1, 5, 8, 8): ", ADVICE),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2)), 3, "'2', a Linear, fails on (1, 400): ", ADVICE),
        (nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 2, 15))), 3, "'1.0', a Conv2d, fails on (1, 3, 12, 12): ", ADVICE),
    ],
)  # fmt: skip
def test_the_module_that_fails_is_named_with_what_it_got(network: nn.Module, channels: int, failure: str, advice: str) -> None:
    with pytest.raises(NetworkError) as caught:
        trace(network, torch.zeros(1, channels, 12, 12))
    message = str(caught.value)
    assert message.startswith(f"the network doesn't run on an input of shape (1, {channels}, 12, 12): {failure}")
    assert f". {advice}" in message
    assert "\n" not in message
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_a_torchscript_program_is_refused_with_what_to_give(kind: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        program = torch.jit.trace(network, torch.zeros(1, 3, 12, 12)) if kind == "traced" else torch.jit.script(network)
        program = torch.jit.freeze(program) if kind == "frozen" else program
    with pytest.raises(NetworkError, match=r"is a TorchScript program, .*; give the nn\.Module that it was made from"):
        trace(program, torch.zeros(1, 3, 12, 12))
