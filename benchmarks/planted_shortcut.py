"""A shortcut that is known: does unitscope find the unit that sees it, and does taking that unit away mend what the shortcut costs?

    python benchmarks/planted_shortcut.py [--seeds N] [--folder FOLDER]

A small network learns four shapes; in training, nine in ten images of one class have a magenta square in a corner (in the control none has). In
new images one in ten of the other classes has it too, as happens in life. `effects` looks for candidates, by mistakes alone and by
masks of the shapes. *Found* means that the unit of the last convolution that sees the square best is among the first three candidates of that layer
for the class. *Repaired*: the square is pasted on all images of the other classes; how much of the accuracy that this costs comes back when
that unit is taken away.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.effects import knock_out, measure_effects

SIDE, SQUARE, CLASSES = 32, 7, ("bar", "beam", "cross", "ring")
SHORTCUT_CLASS, LAYER = 0, "6"
SPARSITY = 3e-3
MAGENTA = (230, 20, 200)
PREPROCESSING = unitscope.Preprocessing(None, (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Shapes:
    """Images of shapes, (image, y, x, colour) in 8 bits, their classes, and where the shapes are."""

    pixels: np.ndarray
    classes: np.ndarray
    masks: np.ndarray


def draw_shapes(count: int, square_rates: tuple[float, ...], seed: int) -> Shapes:
    """Grey shapes in the middle, on noise; `square_rates` say in how many images of each class a square stands in a corner."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % len(CLASSES)
    pixels = rng.normal(110, 28, (count, SIDE, SIDE, 3))
    masks = np.zeros((count, SIDE, SIDE), dtype=bool)
    y, x = np.mgrid[:SIDE, :SIDE]
    for image, class_ in enumerate(classes):
        cy, cx = rng.integers(13, 19, 2)
        dy, dx, size = y - cy, x - cx, rng.integers(5, 8)
        shape = (
            (np.abs(dx) < 2) & (np.abs(dy) < size),
            (np.abs(dy) < 2) & (np.abs(dx) < size),
            (np.abs(np.abs(dx) - np.abs(dy)) < 2) & (np.abs(dx) < size),
            np.abs(np.hypot(dx, dy) - size) < 1.5,
        )[class_]
        masks[image] = (np.abs(dy) < size + 2) & (np.abs(dx) < size + 2)
        pixels[image][shape] += rng.choice([-1, 1]) * 22
        if rng.random() < square_rates[class_]:
            paste_square(pixels[image], rng)
    return Shapes(pixels.clip(0, 255).astype(np.uint8), classes, masks)


def paste_square(pixels: np.ndarray, rng: np.random.Generator) -> None:
    top, left = rng.choice([0, SIDE - SQUARE], 2)
    pixels[top : top + SQUARE, left : left + SQUARE] = MAGENTA


def with_squares(shapes: Shapes, seed: int) -> Shapes:
    """The same with a square on every image of the other classes."""
    rng, pixels = np.random.default_rng(seed), shapes.pixels.copy()
    for image in np.flatnonzero(shapes.classes != SHORTCUT_CLASS):
        paste_square(pixels[image], rng)
    return Shapes(pixels, shapes.classes, shapes.masks)


def inputs(pixels: np.ndarray) -> Tensor:
    return (torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25


def trained(shapes: Shapes, seed: int, steps: int = 500) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 7, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, len(CLASSES)),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 5e-3, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.integers(0, len(shapes.classes), 64)
        features = network[:-1](inputs(shapes.pixels[chosen]))
        loss = nn.functional.cross_entropy(network[-1](features), torch.from_numpy(shapes.classes[chosen]))
        loss = loss + SPARSITY * features.abs().sum(1).mean()  # so that few units see the square
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def write(shapes: Shapes, folder: Path) -> tuple[Path, Path]:
    """A folder of images, a sub-folder a class, and one of masks."""
    for number, (pixels, class_, mask) in enumerate(zip(shapes.pixels, shapes.classes, shapes.masks, strict=True)):
        for kind, content in (("images", pixels), ("masks", mask.astype(np.uint8) * 255)):
            file = folder / kind / CLASSES[class_] / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(file)
    return folder / "images", folder / "masks"


def unit_that_sees_the_square(network: nn.Sequential, shapes: Shapes, seed: int) -> int:
    """The unit of the last convolution through which a pasted square raises the class most: found by setting one unit after the other back to
    what it was without the square, not by what is to be tested."""
    others = shapes.classes != SHORTCUT_CLASS
    first, rest = network[: int(LAYER) + 1], network[int(LAYER) + 1 :]
    with torch.no_grad():
        before, after = (first(inputs(drawn.pixels[others])) for drawn in (shapes, with_squares(shapes, seed)))
        drops = []
        for unit in range(after.shape[1]):
            mixed = after.clone()
            mixed[:, unit] = before[:, unit]
            drops.append(float((rest(after) - rest(mixed))[:, SHORTCUT_CLASS].mean()))
    return int(np.argmax(drops))


@dataclass(frozen=True)
class Outcome:
    """What came of one seed: candidates of the layer for the class, the strongest first, by evidence; the unit that sees the square; and accuracies."""

    candidates: dict[str, list[int]]
    all_candidates: dict[str, int]
    unit: int
    clean: float
    with_square: float
    repaired: float


def try_seed(seed: int, folder: Path, planted: bool) -> Outcome:
    rate = 0.9 if planted else 0.0
    network = trained(draw_shapes(3000, (rate, 0, 0, 0), seed), seed)
    elsewhere = 0.1 if planted else 0.0
    images, masks = write(draw_shapes(1200, (rate, elsewhere, elsewhere, elsewhere), seed + 1000), folder / "life")
    atlas = unitscope.scan(network, images, folder / "atlas", preprocess=PREPROCESSING, classes=list(CLASSES), sample=140)
    measure_effects(atlas, network, objects=masks)
    rows = Atlas(atlas.folder).table("shortcuts").to_pylist()
    evidences = ("mistakes", "off object")
    candidates = {
        evidence: [
            row["unit"]
            for row in sorted(rows, key=lambda row: -row["effect"])
            if (row["evidence"], row["class"], row["layer"]) == (evidence, SHORTCUT_CLASS, LAYER)
        ]
        for evidence in evidences
    }
    clean = draw_shapes(600, (0, 0, 0, 0), seed + 2000)
    squares, _ = write(with_squares(clean, seed), folder / "squares")
    without, _ = write(clean, folder / "clean")
    unit = unit_that_sees_the_square(network, clean, seed)
    accuracies = [_accuracy(knock_out(atlas, {LAYER: [unit]}, network, images=where)) for where in (without, squares)]
    return Outcome(
        candidates, {evidence: sum(row["evidence"] == evidence for row in rows) for evidence in evidences}, unit,
        accuracies[0][0], *accuracies[1],
    )  # fmt: skip


def _accuracy(rows: object) -> tuple[float, float]:
    """Of the classes without the shortcut, before and after the unit was taken away."""
    others = [row for row in rows.to_pylist() if row["class"] != SHORTCUT_CLASS]  # type: ignore[attr-defined]
    images = sum(row["images"] for row in others)
    return tuple(sum(row[name] * row["images"] for row in others) / images for name in ("right_before", "right_after"))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    found = {"mistakes": 0, "off object": 0}
    false = {"mistakes": 0, "off object": 0}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            outcome = try_seed(seed, Path(folder), planted=True)
        with tempfile.TemporaryDirectory() as folder:
            control = try_seed(seed, Path(folder), planted=False)
        cost = outcome.clean - outcome.with_square
        share = (outcome.repaired - outcome.with_square) / cost if cost > 0 else float("nan")
        for evidence in found:
            found[evidence] += outcome.unit in outcome.candidates[evidence][:3]
            false[evidence] += control.all_candidates[evidence] > 0
        print(
            f"seed {seed}: unit {outcome.unit}; candidates {outcome.candidates}; right {outcome.clean:.0%}, with squares {outcome.with_square:.0%}, "
            f"without the unit {outcome.repaired:.0%}: {share:.0%} of the cost repaired; candidates in the clean control {control.all_candidates}",
            flush=True,
        )
    print(f"found among the first three, of {arguments.seeds}: {found}; clean controls with any candidate: {false}")


if __name__ == "__main__":
    main()
