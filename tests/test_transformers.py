"""Networks with units last and tokens: ConvNeXt, Swin and ViT, scanned with their default layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import unitscope
from unitscope.layers import TracedLayer, choose_layers, tapped, trace

pytestmark = pytest.mark.slow


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(name, weights=None).eval()


def highest_by_hooks(network: nn.Module, images: Tensor, paths: dict[str, tuple[str, bool]]) -> dict[str, Tensor]:
    """The highest value of every unit in every image, as plain hooks see it; units are last."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, (path, inward) in paths.items():

        def keep(_: nn.Module, given: Any, output: Tensor, name: str = name, inward: bool = inward) -> None:
            found[name] = (given[0] if inward else output).clone()

        handles.append(network.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


PATHS = {
    "convnext_tiny": ("features.3.1.block.4", "features.3.1.block.5"),
    "swin_t": ("features.3.1.mlp.1", "features.3.1.mlp.3"),
    "vit_b_16": ("encoder.layers.encoder_layer_3.mlp.1", "encoder.layers.encoder_layer_3.mlp.3"),
}


@pytest.mark.parametrize("name", PATHS)
def test_default_layers_are_scanned_and_their_peaks_are_those_of_hooks(tmp_path: Path, name: str) -> None:
    network, images = built(name), torch.randn(6, 3, 224, 224)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", k=2)
    named = {layer.name: layer for layer in atlas.layers}
    inward, outward = PATHS[name]
    assert {inward, outward} <= named.keys()
    seen = highest_by_hooks(network, images, {inward: (inward, True), outward: (outward, False)})
    for layer in (inward, outward):
        tokens = seen[layer][:, 1:] if name == "vit_b_16" else seen[layer]  # without the class token
        by_place = tokens.flatten(1, -2)
        best = by_place.amax(1).topk(2, dim=0)
        rows = atlas.peaks(layer).to_pylist()
        assert len(rows) == 2 * named[layer].units
        values = torch.tensor([row["value"] for row in rows]).reshape(-1, 2).T
        torch.testing.assert_close(values, best.values, rtol=1e-4, atol=1e-5)
        for row in rows[::97]:
            cell = row["y"] * named[layer].map_width + row["x"]
            assert float(by_place[row["image"], cell, row["unit"]]) == pytest.approx(row["value"], rel=1e-3, abs=1e-5)


def bounds_by_perturbation(network: nn.Module, layer: TracedLayer, images: Tensor, rows: bool) -> np.ndarray:
    """For every row (column) of cells the first and last-but-one row (column) of pixels that moves any of its units."""

    def maps(given: Tensor) -> Tensor:
        found: list[Tensor] = []
        with torch.no_grad(), tapped(network, [layer], lambda _, m: found.append(m.clone())) as tap:
            tap.run(given)
        return found[0]

    plain, moved = maps(images), []
    for line in range(images.shape[2 if rows else 3]):
        changed = images.clone()
        changed.select(2 if rows else 3, line).add_(1)
        moved.append((maps(changed) != plain).flatten(0, 1).any(0).any(1 if rows else 0))
    seen = torch.stack(moved).numpy()
    return np.stack([seen.argmax(0), len(seen) - seen[::-1].argmax(0)])


@pytest.mark.parametrize(
    ("name", "layer", "exact"),
    [
        ("convnext_tiny", "features.1.1.block.4", True),
        ("swin_t", "features.1.0.mlp.1", True),
        ("swin_t", "features.1.1.mlp.1", False),  # masked places count, though e⁻¹⁰⁰ of them doesn't show
        ("swin_t", "features.2.reduction", False),
    ],
)
def test_fields_of_windows_hold_all_that_moves_a_cell(name: str, layer: str, exact: bool) -> None:
    network, images = built(name).double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    (found,) = choose_layers(trace(network, images), [layer])
    for rows, held in ((True, found.receptive_fields.rows), (False, found.receptive_fields.columns)):
        moved = bounds_by_perturbation(network, found, images, rows)
        bounds = held[:, 0, :, 0] if rows else held[:, 0, 0, :]
        bounds = np.broadcast_to(bounds.clip(0, 64), moved.shape)
        assert (bounds[0] <= moved[0]).all()
        assert (bounds[1] >= moved[1]).all()
        if exact:
            np.testing.assert_array_equal(bounds, moved)


def test_attention_over_the_whole_image_is_the_whole_image() -> None:
    network = built("vit_b_16")
    first, later = choose_layers(
        trace(network, torch.zeros(1, 3, 224, 224)), ["conv_proj", "encoder.layers.encoder_layer_5.mlp.1"]
    )
    assert (first.layer.receptive_field_height, first.layer.map_height) == (16, 14)
    assert (later.layer.receptive_field_height, later.layer.receptive_field_width) == (224, 224)
    assert (later.layer.map_height, later.layer.map_width, later.layer.units) == (14, 14, 3072)
    np.testing.assert_allclose(later.receptive_fields.centres_y, np.arange(14) * 16 + 8)
