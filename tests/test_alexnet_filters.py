"""What AlexNet's first layer is tuned to is what its filters' own spectra say. The weights are those of a package for perceptual distances."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import write_photographs
from torch import nn

import unitscope
from unitscope.embedding import open_embedder
from unitscope.embedding.embedders import NetworkEmbedder
from unitscope.naming import tune_visually
from unitscope.naming.stimuli import PERIODS_PX
from unitscope.records import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, SPECTRUM = 128, 512
ORIENTED = 0.15
"""From this selectivity on, a unit has an angle."""


@pytest.fixture(scope="module")
def convolution() -> nn.Conv2d:
    try:
        embedder = open_embedder("lpips-alex")
    except unitscope.UnitscopeError as error:
        pytest.skip(str(error))
    assert isinstance(embedder, NetworkEmbedder)
    return next(module for module in embedder.network.modules() if isinstance(module, nn.Conv2d))


def spectral_peak(filters: torch.Tensor) -> tuple[float, float]:
    """The angle of the lines of the grating of grey that a filter has most of, in degrees, and its period in pixels."""
    grey = (filters / torch.tensor(STD)[:, None, None]).sum(0).numpy().astype(np.float64)
    power = np.abs(np.fft.fft2(grey - grey.mean(), s=(SPECTRUM, SPECTRUM)))
    frequency = np.hypot(np.fft.fftfreq(SPECTRUM)[:, None], np.fft.fftfreq(SPECTRUM)[None])
    power[(frequency < 1 / max(PERIODS_PX)) | (frequency > 1 / min(PERIODS_PX))] = 0  # which aren't shown
    y, x = (np.fft.fftfreq(SPECTRUM)[index] for index in np.unravel_index(power.argmax(), power.shape))
    return math.degrees(math.atan2(x, y)) % 180, 1 / math.hypot(x, y)


def test_angles_and_periods_are_those_of_the_spectra(convolution: nn.Conv2d, tmp_path: Path) -> None:
    network = nn.Sequential(convolution, nn.ReLU()).eval()
    write_photographs(tmp_path / "images", 40)
    preprocessing = Preprocessing(SIDE, (SIDE, SIDE), MEAN, STD)
    atlas = unitscope.scan(network, tmp_path / "images", tmp_path / "atlas", preprocess=preprocessing)
    rows = tune_visually(atlas, network).to_pylist()
    oriented = [row for row in rows if row["angle_selectivity"] > ORIENTED]
    assert len(oriented) >= 40
    near = []
    for row in oriented:
        angle, period = spectral_peak(convolution.weight[row["unit"]].detach())
        turned = abs((row["angle"] - angle + 90) % 180 - 90)
        near.append(turned <= 5 and abs(row["period_px"] / period - 1) <= 0.1)
    assert np.mean(near) >= 0.9
