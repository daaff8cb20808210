"""Plots of experiments, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unitscope.atlas import Atlas
from unitscope.atlas.attribution_images import decode_attribution
from unitscope.errors import UnitscopeError
from unitscope.files import atomic_write, check_writable
from unitscope.records import Peak


def draw_invariance(table: pa.Table, path: Path) -> None:
    """One curve a layer for each kind of move: the distance over the norm, mean over the images; below, the class's probability."""
    plots = matplotlib_here()
    rows = table.to_pylist()
    kinds, layers = (list(dict.fromkeys(row[name] for row in rows)) for name in ("transformation", "layer"))
    figure, axes = plots.subplots(2, len(kinds), figsize=(4.2 * len(kinds), 6), squeeze=False, sharey="row", layout="constrained")
    colours = plots.get_cmap("viridis")(np.linspace(0, 0.92, len(layers)))
    for column, kind in enumerate(kinds):
        of_kind = [row for row in rows if row["transformation"] == kind]
        for layer, colour in zip(layers, colours, strict=True):
            amounts, distances = _means(
                [(row["amount"], row["distance"] / (row["norm"] or 1)) for row in of_kind if row["layer"] == layer]
            )
            # matplotlib hides labels that begin with an underscore, and modules' names may
            axes[0, column].plot(amounts, distances, color=colour, label=f" {layer}", linewidth=1.5)
        seen = [
            (row["amount"], row["probability"]) for row in of_kind if row["layer"] == layers[0] and row["probability"] is not None
        ]
        if seen:
            axes[1, column].plot(*_means(seen), color="#e2703a", linewidth=2)
        axes[0, column].set_title(kind)
        axes[1, column].set_xlabel({"translation": "share of the height", "scale": "times", "rotation": "degrees"}[kind])
        axes[1, column].set_ylim(0, 1)
    axes[0, 0].set_ylabel("distance of features ÷ their norm")
    axes[1, 0].set_ylabel("probability of the class")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    _saved(plots, figure, path)


def draw_probe(table: pa.Table, path: Path) -> None:
    """Accuracy a layer, with its deviation over the folds, and chance as a line."""
    plots = matplotlib_here()
    rows = table.to_pylist()
    figure, axis = plots.subplots(figsize=(max(5, 0.32 * len(rows) + 2), 4), layout="constrained")
    places = range(len(rows))
    axis.errorbar(
        places, [row["accuracy"] for row in rows], [row["deviation"] for row in rows], marker="o", color="#e2703a", capsize=3
    )
    axis.axhline(rows[0]["chance"], color="#787c82", linestyle="--", linewidth=1, label="most frequent label")
    axis.set_xticks(list(places), [row["layer"] for row in rows], rotation=60, ha="right", fontsize=8)
    axis.set_ylabel("accuracy of a linear classifier")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False)
    _saved(plots, figure, path)


def draw_occlusion(atlas: Atlas, layer: str, unit: int, classes: Sequence[str] | None, path: Path) -> None:
    """A row for each image of the unit's peaks: the image, how far the unit drops, the class's probability, and the most probable
    class, each where the grey square's middle is (the paper's figure on occlusion)."""
    plots = matplotlib_here()
    found = {row["image"]: row for row in atlas.table("class_probability").to_pylist()}
    drops = {row["rank"]: row for row in atlas.attributions("occlusion", layer, unit).to_pylist()}
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist() if row["image"] in found and row["rank"] in drops]
    figure, axes = plots.subplots(len(peaks), 4, figsize=(9, 2.3 * len(peaks)), squeeze=False, layout="constrained")
    for axis, title in zip(
        axes[0], ("image", "drop of the unit", "probability of its class", "most probable class"), strict=True
    ):
        axis.set_title(title, fontsize=9)
    for row, peak in zip(axes, peaks, strict=True):
        said = found[peak.image]
        shape = said["rows"], said["columns"]
        row[0].imshow(atlas.patch(peak, "image"))
        row[1].imshow(_whole(atlas, drops[peak.rank]), cmap="magma")
        row[2].imshow(np.reshape(said["probability"], shape), cmap="viridis", vmin=0, vmax=1)
        numbers, places = np.unique(said["most_probable"], return_inverse=True)
        row[3].imshow(places.reshape(shape), cmap="tab20", vmin=0, vmax=19)
        names = [classes[number] if classes else str(number) for number in numbers[np.argsort(-np.bincount(places))][:3]]
        row[3].set_xlabel(", ".join(names), fontsize=7)
        row[0].set_ylabel(f"{peak.value:.3g}", fontsize=8)
        row[2].set_xlabel(f"{said['uncovered']:.2f} uncovered", fontsize=7)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    _saved(plots, figure, path)


def _whole(atlas: Atlas, row: dict[str, Any]) -> np.ndarray:
    """A row of `attributions` on the whole input; zero where it says nothing."""
    canvas = np.zeros(atlas.input_size, dtype=np.float32)
    canvas[row["top"] : row["bottom"], row["left"] : row["right"]] = decode_attribution(
        row["image"], row["scale"], row["bottom"] - row["top"]
    )[0]
    return canvas


def _means(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Amounts in order, and the mean of the values at each."""
    amounts = sorted({amount for amount, _ in pairs})
    return amounts, [float(np.mean([value for amount, value in pairs if amount == one])) for one in amounts]


def plot_format(path: Path) -> str:
    """The format that the path's ending means. Raises `UnitscopeError` where there is none, or where nothing can be written there."""
    matplotlib_here()
    from matplotlib.backend_bases import FigureCanvasBase

    kind = path.suffix.lower().removeprefix(".")
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise UnitscopeError(
            f"the plot {str(path)!r} can't be written: {path.suffix!r} is no picture format; end it with .png or .pdf"
        )
    check_writable(path, f"the plot {str(path)!r}", UnitscopeError)
    return kind


def matplotlib_here() -> Any:
    """matplotlib's functions. Raises `UnitscopeError` where it isn't installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnitscopeError("plots need matplotlib: pip install 'unitscope[experiments]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plots

    return plots


def _saved(plots: Any, figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    try:
        with atomic_write(path, f"the plot {str(path)!r}", UnitscopeError) as aside:
            figure.savefig(aside, dpi=140, format=plot_format(path))
    finally:
        plots.close(figure)
