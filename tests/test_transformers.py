"""Networks with units last and tokens: ConvNeXt, Swin and ViT, scanned with their default layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import unitscope
from unitscope.layers import TracedLayer, choose_layers, tapped, trace

pytestmark = pytest.mark.slow


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(name, weights=None).eval()


def input_and_output(network: nn.Module, images: Tensor, activation: str, linear: str) -> tuple[Tensor, Tensor]:
    """What goes into the module at one path and what comes out of that at another, as plain hooks see it; units are last."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(activation).register_forward_hook(lambda _, args, output: inputs.append(args[0].clone())),
        network.get_submodule(linear).register_forward_hook(lambda _, args, output: outputs.append(output.clone())),
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    (into_activation,), (out_of_linear,) = inputs, outputs
    return into_activation, out_of_linear


# The paths of an activation, which is ranked by what goes in, and of the linear layer behind it, which is ranked by what comes out.
PATHS = {
    "convnext_tiny": ("features.3.1.block.4", "features.3.1.block.5"),
    "swin_t": ("features.3.1.mlp.1", "features.3.1.mlp.3"),
    "vit_b_16": ("encoder.layers.encoder_layer_3.mlp.1", "encoder.layers.encoder_layer_3.mlp.3"),
}


@pytest.mark.parametrize("name", PATHS)
def test_default_layers_are_scanned_and_their_peaks_are_those_of_hooks(tmp_path: Path, name: str) -> None:
    network, images = build(name), torch.randn(6, 3, 224, 224)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", k=2)
    layers = {layer.name: layer for layer in atlas.layers}
    for path, tokens in zip(PATHS[name], input_and_output(network, images, *PATHS[name]), strict=True):
        by_cell = (tokens[:, 1:] if name == "vit_b_16" else tokens).flatten(1, -2)  # without the class token
        peaks = atlas.peaks(path).to_pylist()
        assert len(peaks) == 2 * layers[path].units
        values = torch.tensor([peak["value"] for peak in peaks]).reshape(-1, 2).T
        torch.testing.assert_close(values, by_cell.amax(1).topk(2, dim=0).values, rtol=1e-4, atol=1e-5)
        for peak in peaks[::97]:
            cell = peak["y"] * layers[path].map_width + peak["x"]
            assert float(by_cell[peak["image"], cell, peak["unit"]]) == pytest.approx(peak["value"], rel=1e-3, abs=1e-5)


def bounds_by_perturbation(network: nn.Module, layer: TracedLayer, images: Tensor, rows: bool) -> np.ndarray:
    """For every row (column) of cells the first row (column) of pixels that moves any of its units, and the exclusive stop."""

    def maps_of(inputs: Tensor) -> Tensor:
        read: list[Tensor] = []
        with torch.no_grad(), tapped(network, [layer], lambda _, maps: read.append(maps.clone())) as tap:
            tap.run(inputs)
        (maps,) = read
        return maps

    unchanged, moved_by_line = maps_of(images), []
    for line in range(images.shape[2 if rows else 3]):
        changed = images.clone()
        changed.select(2 if rows else 3, line).add_(1)
        moved_by_line.append((maps_of(changed) != unchanged).flatten(0, 1).any(0).any(1 if rows else 0))
    moved = torch.stack(moved_by_line).numpy()
    return np.stack([moved.argmax(0), len(moved) - moved[::-1].argmax(0)])


@pytest.mark.parametrize(
    ("name", "path", "minimal"),
    [
        ("convnext_tiny", "features.1.1.block.4", True),
        ("swin_t", "features.1.0.mlp.1", True),
        ("swin_t", "features.1.1.mlp.1", False),  # masked tokens count, though e⁻¹⁰⁰ of them doesn't show
        ("swin_t", "features.2.reduction", False),
    ],
)
def test_fields_of_windows_hold_all_that_moves_a_cell(name: str, path: str, minimal: bool) -> None:
    network, images = build(name).double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    (layer,) = choose_layers(trace(network, images), [path])
    fields = layer.receptive_fields
    for rows, bounds in ((True, fields.rows[:, 0, :, 0]), (False, fields.columns[:, 0, 0, :])):
        moved = bounds_by_perturbation(network, layer, images, rows)
        bounds = np.broadcast_to(bounds.clip(0, 64), moved.shape)
        assert (bounds[0] <= moved[0]).all()
        assert (bounds[1] >= moved[1]).all()
        if minimal:
            np.testing.assert_array_equal(bounds, moved)


def test_attention_over_the_whole_image_is_the_whole_image() -> None:
    network = build("vit_b_16")
    patches, attended = choose_layers(
        trace(network, torch.zeros(1, 3, 224, 224)), ["conv_proj", "encoder.layers.encoder_layer_5.mlp.1"]
    )
    assert (patches.layer.receptive_field_height, patches.layer.map_height) == (16, 14)
    assert (attended.layer.receptive_field_height, attended.layer.receptive_field_width) == (224, 224)
    assert (attended.layer.map_height, attended.layer.map_width, attended.layer.units) == (14, 14, 3072)
    np.testing.assert_allclose(attended.receptive_fields.centres_y, np.arange(14) * 16 + 8)
