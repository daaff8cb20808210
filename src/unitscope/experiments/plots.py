"""Plots of experiments, by matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unitscope.atlas import Atlas
from unitscope.atlas.attribution_images import decode_attribution
from unitscope.atlas.depth import DEPTH_PLOTS, SIZE_PLOT
from unitscope.errors import UnitscopeError
from unitscope.files import atomic_write, check_writable
from unitscope.records import Peak

ACCENT, MUTED = "#e2703a", "#787c82"
CURVE_COLOURS = (ACCENT, "#4d7ea8", "#5d8a4f", MUTED)
AMOUNT_LABELS = {"translation": "share of the height", "scale": "times", "rotation": "degrees"}
OCCLUSION_TITLES = ("image", "drop of the unit", "probability of its class", "most probable class")
NAMED_CLASSES = 3
"""Of the most probable classes, how many are named below the map."""


def draw_invariance(table: pa.Table, path: Path) -> None:
    """One curve a layer for each transformation: the distance over the norm, mean over the images; below, the class's probability."""
    pyplot = import_pyplot()
    rows = table.to_pylist()
    transformations, layers = (list(dict.fromkeys(row[name] for row in rows)) for name in ("transformation", "layer"))
    size = (4.2 * len(transformations), 6)
    figure, axes = pyplot.subplots(2, len(transformations), figsize=size, squeeze=False, sharey="row", layout="constrained")
    colours = dict(zip(layers, pyplot.get_cmap("viridis")(np.linspace(0, 0.92, len(layers))), strict=True))
    for transformation, (distance_axis, probability_axis) in zip(transformations, axes.T, strict=True):
        matching = [row for row in rows if row["transformation"] == transformation]
        _plot_distances(distance_axis, matching, colours)
        _plot_probabilities(probability_axis, [row for row in matching if row["layer"] == layers[0]])
        distance_axis.set_title(transformation)
        probability_axis.set_xlabel(AMOUNT_LABELS[transformation])
    axes[0, 0].set_ylabel("distance of features ÷ their norm")
    axes[1, 0].set_ylabel("probability of the class")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    _save(pyplot, figure, path)


def _plot_distances(axis: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    for layer, colour in colours.items():
        points = [(row["amount"], row["distance"] / (row["norm"] or 1)) for row in rows if row["layer"] == layer]
        # matplotlib hides labels that begin with an underscore, and modules' names may
        axis.plot(*_means_by_amount(points), color=colour, label=f" {layer}", linewidth=1.5)


def _plot_probabilities(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Nothing for a network that doesn't classify."""
    points = [(row["amount"], row["probability"]) for row in rows if row["probability"] is not None]
    if points:
        axis.plot(*_means_by_amount(points), color=ACCENT, linewidth=2)
    axis.set_ylim(0, 1)


def draw_probe(table: pa.Table, path: Path) -> None:
    """Accuracy a layer, with its deviation over the folds, and chance as a line."""
    pyplot = import_pyplot()
    rows = table.to_pylist()
    figure, axis = pyplot.subplots(figsize=(max(5, 0.32 * len(rows) + 2), 4), layout="constrained")
    accuracies, deviations = ([row[name] for row in rows] for name in ("accuracy", "deviation"))
    axis.errorbar(range(len(rows)), accuracies, deviations, marker="o", color=ACCENT, capsize=3)
    axis.axhline(rows[0]["chance"], color=MUTED, linestyle="--", linewidth=1, label="most frequent label")
    axis.set_xticks(range(len(rows)), [row["layer"] for row in rows], rotation=60, ha="right", fontsize=8)
    axis.set_ylabel("accuracy of a linear classifier")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False)
    _save(pyplot, figure, path)


def draw_depth(table: pa.Table, network: str, path: Path) -> None:
    """Curves over the layers from the first to the last: fields; shares of named units; correlation and predictability with what chance
    gives; what is left in grey and scrambled. Curves of tables that aren't there are left out."""
    pyplot = import_pyplot()
    rows = table.to_pylist()
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 6.4), layout="constrained", sharex=True)
    figure.suptitle(f"{network}: units from the first layer to the last", fontsize=12)
    for axis, (title, curves) in zip(axes.ravel(), DEPTH_PLOTS.items(), strict=True):
        axis.set_title(title, fontsize=10)
        for curve in curves:
            values = [np.nan if row[curve.column] is None else row[curve.column] for row in rows]
            if not np.isnan(values).all():
                style = ":" if curve.is_control else "o-"
                colour = CURVE_COLOURS[curve.number]
                axis.plot(range(len(rows)), values, style, color=colour, label=curve.label, linewidth=1.8, markersize=3)
        if title == SIZE_PLOT:
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:.0f}")
        else:
            axis.set_ylim(0, 1.02)
        if axis.lines:
            axis.legend(framealpha=0.85, edgecolor="none", fontsize=8)
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=MUTED)
    step = max(1, len(rows) // 26)
    for axis in axes[1]:
        axis.set_xticks(range(0, len(rows), step), [row["layer"] for row in rows][::step], rotation=60, ha="right", fontsize=7)
    _save(pyplot, figure, path)


def draw_occlusion(atlas: Atlas, layer: str, unit: int, classes: Sequence[str] | None, path: Path) -> None:
    """A row for each image of the unit's peaks: the image, how far the unit drops, the class's probability, and the most probable
    class, each where the grey square's middle is (the paper's figure on occlusion).

    Needs the atlas's tables `class_probability` and `occlusion`.
    """
    pyplot = import_pyplot()
    probabilities = {row["image"]: row for row in atlas.table("class_probability").to_pylist()}
    attributions = {row["rank"]: row for row in atlas.attributions("occlusion", layer, unit).to_pylist()}
    peaks = [Peak(**row) for row in atlas.peaks(layer, unit).to_pylist()]
    peaks = [peak for peak in peaks if peak.image in probabilities and peak.rank in attributions]
    figure, axes = pyplot.subplots(len(peaks), 4, figsize=(9, 2.3 * len(peaks)), squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], OCCLUSION_TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    for row_axes, peak in zip(axes, peaks, strict=True):
        row_axes[0].imshow(atlas.patch(peak, "image"))
        row_axes[0].set_ylabel(f"{peak.value:.3g}", fontsize=8)
        row_axes[1].imshow(_on_input(atlas, attributions[peak.rank]), cmap="magma")
        _plot_classes(row_axes[2:], probabilities[peak.image], classes)
        for axis in row_axes:
            axis.set_xticks([])
            axis.set_yticks([])
    _save(pyplot, figure, path)


def _plot_classes(axes: np.ndarray, row: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    """A row of `class_probability`: the class's probability and the most probable class, for each position of the square."""
    shape = row["rows"], row["columns"]
    axes[0].imshow(np.reshape(row["probability"], shape), cmap="viridis", vmin=0, vmax=1)
    axes[0].set_xlabel(f"{row['uncovered']:.2f} uncovered", fontsize=7)
    numbers, indices = np.unique(row["most_probable"], return_inverse=True)
    axes[1].imshow(indices.reshape(shape), cmap="tab20", vmin=0, vmax=19)
    most_frequent = numbers[np.argsort(-np.bincount(indices))][:NAMED_CLASSES]
    axes[1].set_xlabel(", ".join(classes[number] if classes else str(number) for number in most_frequent), fontsize=7)


def _on_input(atlas: Atlas, row: Mapping[str, Any]) -> np.ndarray:
    """A row of `attributions` on the whole input; zero where it says nothing."""
    canvas = np.zeros(atlas.input_size, dtype=np.float32)
    values = decode_attribution(row["image"], row["scale"], row["bottom"] - row["top"])
    canvas[row["top"] : row["bottom"], row["left"] : row["right"]] = values[0]
    return canvas


def _means_by_amount(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Amounts in order, and the mean of the values at each."""
    values: dict[float, list[float]] = {}
    for amount, value in points:
        values.setdefault(amount, []).append(value)
    return sorted(values), [float(np.mean(values[amount])) for amount in sorted(values)]


def plot_format(path: Path) -> str:
    """The format that the path's ending means. Raises `UnitscopeError` where there is none, or where nothing can be written there."""
    import_pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FigureCanvasBase.get_supported_filetypes():
        raise UnitscopeError(
            f"the plot {str(path)!r} can't be written: {path.suffix!r} is no picture format; end it with .png or .pdf"
        )
    check_writable(path, f"the plot {str(path)!r}", UnitscopeError)
    return file_format


def import_pyplot() -> Any:
    """matplotlib's functions. Raises `UnitscopeError` where it isn't installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnitscopeError("plots need matplotlib: pip install 'unitscope[experiments]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    try:
        with atomic_write(path, f"the plot {str(path)!r}", UnitscopeError) as unfinished:
            figure.savefig(unfinished, dpi=140, format=plot_format(path))
    finally:
        pyplot.close(figure)
