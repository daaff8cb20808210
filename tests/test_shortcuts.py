"""Mistakes and candidates for shortcuts: against plain sums, and on a shortcut that is planted."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.effects import measure_effects
from unitscope.errors import ImagesError
from unitscope.records import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import planted_shortcut

SIDE, COLOURS = 8, ("blue", "green", "red")
AS_IT_IS = Preprocessing(None, (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)


class ColourClassifier(nn.Module):
    """Some units, a mean, and a linear layer of known weights: which class wins is close, so there are mistakes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.weight.sub_(self.head.weight.mean(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.first(images)).mean((2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    for image in range(180):
        noise = rng.integers(-30, 31, (SIDE, SIDE, 3))
        pixels = (rng.integers(30, 226, 3) + noise).astype(np.uint8)
        file = folder / COLOURS[image % 3] / f"{image:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture
def atlas(folder: Path, tmp_path: Path) -> Atlas:
    network = ColourClassifier().eval()
    atlas = unitscope.scan(network, folder, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(COLOURS))
    measure_effects(atlas, network)
    return atlas


def effects_one_by_one(folder: Path) -> dict[str, Any]:
    """Labels, predictions, and the effect of every unit on every class in every image, (image, unit, class): exact, since all is linear."""
    files = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file), dtype=np.float32) for file in files]) / 255
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) - 0.5) / 0.25
    network = ColourClassifier().eval()
    with torch.no_grad():
        maps = network.relu(network.first(inputs))
        scores = network(inputs)
        deviation = (maps - maps.mean(0)).mean((2, 3))
        effects = deviation[:, :, None] * network.head.weight.T[None]
    return {
        "label": np.array([COLOURS.index(file.parent.name) for file in files]),
        "predicted": scores.argmax(1).numpy(),
        "effects": effects.numpy(),
    }


def test_mistakes_are_means_over_right_and_wrong_images(atlas: Atlas, folder: Path) -> None:
    truth = effects_one_by_one(folder)
    label, predicted, effects = truth["label"], truth["predicted"], truth["effects"]
    rows = atlas.table("mistakes").to_pylist()
    cells = {(a, b) for a in range(3) for b in range(3) if a != b and ((label == a) & (predicted == b)).sum() >= 2}
    right = {c for c in range(3) if ((label == c) & (predicted == c)).any()}
    assert {(row["label_class"], row["predicted"]) for row in rows} == {cell for cell in cells if set(cell) <= right}
    assert rows
    for row in rows:
        a, b, unit = row["label_class"], row["predicted"], row["unit"]
        wrong = (label == a) & (predicted == b)
        expected = {
            "on_predicted": effects[wrong, unit, b].mean(),
            "on_predicted_right": effects[(label == b) & (predicted == b), unit, b].mean(),
            "on_label": effects[wrong, unit, a].mean(),
            "on_label_right": effects[(label == a) & (predicted == a), unit, a].mean(),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-5)
        difference = expected["on_predicted"] - expected["on_predicted_right"] - expected["on_label"] + expected["on_label_right"]
        assert row["difference"] == pytest.approx(difference, abs=1e-5)
        assert row["images"] == wrong.sum()


def test_candidates_by_mistakes_are_correlated_with_being_wrong(folder: Path, tmp_path: Path) -> None:
    """One unit sees a bright corner. It raises `red`, and stands in half of the images that are no red: those are taken for it."""
    rng, images = np.random.default_rng(1), tmp_path / "images"
    for image in range(240):
        class_ = image % 3
        pixels = np.full((SIDE, SIDE, 3), 40, dtype=np.uint8) + rng.integers(0, 20, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[2:6, 2:6, (2, 1, 0)[class_]] = 150
        if class_ != 2 and rng.random() < 0.4:
            pixels[0, 0] = 255
        file = images / COLOURS[class_] / f"{image:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)

    class Corner(nn.Module):
        """Units 0 to 2 see blue, green and red, unit 3 what is white: the mean of each is its class's score; white is taken for red."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.head = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 3, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]])[:, :, None, None])
                self.first.bias.copy_(torch.tensor([0.0, 0, 0, -5.0]))
                self.head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 300]]))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.relu(self.first(images)).mean((2, 3)))

    network = Corner().eval()
    atlas = unitscope.scan(network, images, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(COLOURS))
    measure_effects(atlas, network)
    rows = [row for row in atlas.table("shortcuts").to_pylist() if row["evidence"] == "mistakes"]
    assert [(row["class"], row["layer"], row["unit"]) for row in rows] == [(2, "relu", 3)]
    assert rows[0]["r"] == pytest.approx(1, abs=1e-3)
    assert rows[0]["effect"] > rows[0]["effect_right"]
    assert rows[0]["by_chance"] == 0


def test_labels_dealt_out_at_random_give_no_candidates_above_the_rate(folder: Path, tmp_path: Path) -> None:
    """Twenty times: what a network is right about has nothing to do with its units then. One time in twenty may show a candidate."""
    network = ColourClassifier().eval()
    atlas = unitscope.scan(network, folder, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(COLOURS))
    keys = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*.png"))]
    with_candidates = 0
    for seed in range(20):
        dealt = np.random.default_rng(seed).permutation([key.partition("/")[0] for key in keys])
        measure_effects(atlas, network, labels=dict(zip(keys, dealt.tolist(), strict=True)))
        with_candidates += len(atlas.table("shortcuts")) > 0
    assert with_candidates <= 3  # more than three of twenty come by chance in 1.6 % of the cases


@pytest.mark.slow
def test_a_planted_shortcut_is_found_and_there_is_none_without(tmp_path: Path) -> None:
    found, repaired = 0, []
    for seed in range(3):
        outcome = planted_shortcut.try_seed(seed, tmp_path / str(seed), planted=True)
        found += outcome.unit in outcome.candidates["off object"][:3]
        repaired.append((outcome.repaired - outcome.with_square) / (outcome.clean - outcome.with_square))
    control = planted_shortcut.try_seed(0, tmp_path / "control", planted=False)
    assert found == 3
    assert np.median(repaired) > 0.5
    assert control.all_candidates["off object"] == 0


def test_objects_come_as_masks_or_as_coco(folder: Path, tmp_path: Path) -> None:
    """A box, its outline, and a mask of the same pixels say the same."""
    network = ColourClassifier().eval()
    keys = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*.png"))]
    boxes, outlines = (
        {
            "images": [{"id": n, "file_name": key, "width": SIDE, "height": SIDE} for n, key in enumerate(keys)],
            "annotations": [{"image_id": n, "bbox": [2, 2, 3, 3]} | more for n in range(len(keys))],
        }
        for more in ({}, {"segmentation": [[2, 2, 5, 2, 5, 5, 2, 5]]})
    )
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "outlines.json").write_text(json.dumps(outlines))
    for key in keys:
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[2:6, 2:6] = 1
        (tmp_path / "masks" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / key)
    tables = []
    for objects in ("boxes.json", "outlines.json", "masks"):
        atlas = unitscope.scan(network, folder, tmp_path / f"atlas of {objects}", preprocess=AS_IT_IS, classes=list(COLOURS))
        measure_effects(atlas, network, objects=tmp_path / objects)
        tables.append(atlas.table("shortcuts").to_pylist())
    assert tables[0] == tables[1] == tables[2]
    (tmp_path / "wrong.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError, match="no COCO file"):
        measure_effects(atlas, network, objects=tmp_path / "wrong.json")
    with pytest.raises(ImagesError, match="has no objects"):
        measure_effects(atlas, network, objects=tmp_path / "empty")
