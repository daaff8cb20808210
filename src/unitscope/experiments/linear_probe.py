"""probe(): what a linear classifier makes of each layer's features (Zeiler & Fergus 2014, table 7)."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from unitscope.atlas import check_table_writable, write_table
from unitscope.atlas.tables import PROBE
from unitscope.errors import ImagesError, NetworkError, UnitscopeError
from unitscope.networks import Network
from unitscope.session.loader import LoadedImage
from unitscope.session.opening import open_session
from unitscope.session.session import ImageBatch, Session, read_layers

FOLDS = 5
BATCH_IMAGES = 32


def probe(
    network: "str | nn.Module | Network",
    images: Any,
    out: str | os.PathLike[str] = "probe",
    *,
    layers: Sequence[str] | None = None,
    preprocess: Any = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """How well a linear classifier tells the labels apart from each layer's pooled features, as `probe.parquet` in `out`.

    Features are the means of the layer's maps over their places, after the rectifier where one follows, brought to mean 0 and
    deviation 1. The classifier is scikit-learn's logistic regression; `accuracy` is its mean over a stratified cross-validation in
    five folds (fewer where a label has fewer images), `deviation` the standard deviation over the folds, `chance` the share of the
    most frequent label.

    Arguments are those of `scan`; `images` must have labels: sub-folders, or a data set of pairs. Raises `ImagesError` where there
    are fewer than two labels with two images each, before any is read where labels are known without that, `NetworkError` where a
    layer's features are no finite numbers, and `AtlasError` where the table can't be written.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UnitscopeError("probing needs scikit-learn: pip install 'unitscope[experiments]'") from error
    check_table_writable(PROBE, Path(out))
    with open_session(network, images, preprocess, layers, device) as session:
        if (source_labels := session.loader.source.labels()) is not None:
            _check_labels(source_labels)
        features, labels = _features(session, on_images)
        names = [traced.name for traced in session.layers]
    label_counts = Counter(labels.tolist())
    folds = StratifiedKFold(min(FOLDS, *label_counts.values()), shuffle=True, random_state=0)
    rows = []
    for name, of_layer in zip(names, features, strict=True):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the features separate the labels, the weights have no end
            accuracies = cross_val_score(classifier, of_layer, labels, cv=folds)
        rows.append(
            {
                "layer": name, "features": of_layer.shape[1], "accuracy": accuracies.mean(), "deviation": accuracies.std(),
                "chance": max(label_counts.values()) / len(labels), "images": len(labels), "folds": folds.get_n_splits(),
            }
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=PROBE.schema)
    return write_table(table, PROBE, Path(out), versions={"torch": torch.__version__})


def _features(session: Session, on_images: Callable[[int], None] | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Every layer's features, of shape (image, unit), and the images' labels; labels with one image are left out."""
    features: list[list[np.ndarray]] = []
    labels: list[str] = []
    for batch_features, batch_labels in session.run_batches(session.all_batches(BATCH_IMAGES), partial(_batch_features, session)):
        if batch_labels:
            features.append(batch_features)
            labels += batch_labels
        if on_images is not None:
            on_images(len(batch_labels))
    label_counts = _check_labels(labels)
    is_kept = np.array([label_counts[label] > 1 for label in labels], dtype=bool)
    return [np.concatenate(of_layer)[is_kept] for of_layer in zip(*features, strict=True)], np.array(labels)[is_kept]


def _batch_features(
    session: Session, replica: nn.Module, batch: ImageBatch, loaded: list[LoadedImage]
) -> tuple[list[np.ndarray], list[str]]:
    """Features of the images that can be read and have a label, by layer, and their labels."""
    labelled = [image for image in loaded if image.record is not None and image.record.label is not None]
    if not labelled:
        return [], []

    def pooled(layer: int, maps: Tensor) -> np.ndarray:
        rectified = session.layers[layer].layer.rectified
        return (maps.clamp(min=0) if rectified else maps).float().mean((2, 3)).cpu().numpy()

    features = read_layers(replica, session.layers, session.inputs(labelled), pooled)
    _check_finite(session, [image.key for image in labelled], features)
    return features, [image.record.label for image in labelled if image.record and image.record.label is not None]


def _check_labels(labels: Sequence[str | None]) -> Counter[str]:
    """How many images each label has. Raises `ImagesError` where fewer than two labels have two."""
    counts = Counter(label for label in labels if label is not None)
    enough = sum(count > 1 for count in counts.values())
    if enough < 2:
        labels_text = f"labels found: {len(counts):,}, {enough} with two images" if counts else "none of the images has a label"
        raise ImagesError(
            f"probing needs at least two labels with two images each; {labels_text}; a label is the name of an image's sub-folder, what "
            "stands behind its path in a list, or the second of a pair that a data set gives"
        )
    return counts


def _check_finite(session: Session, keys: Sequence[str], features: Sequence[np.ndarray]) -> None:
    """Raises `NetworkError` for the first layer whose features of some image can't be learnt from."""
    for traced, of_layer in zip(session.layers, features, strict=True):
        not_finite = np.flatnonzero(~np.isfinite(of_layer).all(axis=1))
        if len(not_finite):
            raise NetworkError(
                f"no classifier can be trained on layer {traced.name!r}: it gives values that are no finite numbers, first for the image "
                f"{keys[not_finite[0]]!r}; choose other layers with --layers (layers= in Python)"
            )
