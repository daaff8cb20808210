"""Small networks whose answers are known."""

import torch
from torch import Tensor, nn


def see_through(channels: int, *later: nn.Module) -> nn.Sequential:
    """A network whose first maps are its input, bit for bit: unit i is channel i."""
    convolution = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(convolution.weight)
    return nn.Sequential(convolution, *later)


def small_network(classes: int = 4) -> nn.Sequential:
    """Two convolutions with in-place rectifiers and a classifier, for images of 14 x 14 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 5 * 5, classes),
    )


class Reused(nn.Module):
    """One rectifier called three times, once as a function, with an addition in place, as in residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.relu(self.norm(self.first(images)))
        total = self.second(skip)
        total += skip
        return torch.relu(self.last(self.relu(total)))


class NormsBeforeTokens(nn.Module):
    """A convolution, a norm, and a layer norm and a linear layer over tokens: the gradient comes back to the norm units last."""

    def __init__(self, norm: nn.Module, units: int = 8) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.norm = nn.Conv2d(3, units, 3, padding=1), norm
        self.token_norm, self.tokens = nn.LayerNorm(units), nn.Linear(units, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.token_norm(self.norm(self.first(images)).flatten(2).transpose(1, 2)))
