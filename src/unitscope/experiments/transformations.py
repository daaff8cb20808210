"""invariance(): how far features move when the image does (Zeiler & Fergus 2014, section 4.1, figure 5)."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from unitscope.atlas import check_table_writable, write_table
from unitscope.atlas.tables import INVARIANCE
from unitscope.errors import ImagesError
from unitscope.networks import Network, as_float32
from unitscope.networks.outputs import class_scores
from unitscope.session.opening import open_session
from unitscope.session.session import Session, read_layers_and_output

IMAGES = 5


@dataclass(frozen=True, slots=True)
class Transformation:
    """A translation down by a share of the height, a scaling to a size, or a rotation by degrees, about the middle of the image."""

    name: str
    amount: float

    def apply(self, images: Tensor) -> Tensor:
        """What is beyond the border is zero, the mean colour."""
        down = self.amount * images.shape[2] if self.name == "translation" else 0
        scale = self.amount if self.name == "scale" else 1.0
        angle = self.amount if self.name == "rotation" else 0.0
        transformed: Tensor = affine(images, angle, [0, round(down)], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        return transformed


def transformations() -> Iterator[Transformation]:
    """Those of the paper: up and down by 60 of 224 pixels, up to 1.8 times as large, all the way round."""
    yield from (Transformation("translation", step * 15 / 224) for step in range(-4, 5))
    yield from (Transformation("scale", 1 + step / 10) for step in range(9))
    yield from (Transformation("rotation", float(angle)) for angle in range(0, 361, 30))


def invariance(
    network: "str | nn.Module | Network",
    images: Any,
    out: str | os.PathLike[str] = "invariance",
    *,
    layers: Sequence[str] | None = None,
    preprocess: Any = None,
    device: str = "auto",
) -> pa.Table:
    """Move the first five images up and down, make them larger, turn them, and see how far every layer's features go with them.

    Written as `invariance.parquet` in `out`: for every image, transformation and layer the Euclidean `distance` of the features from those of
    the image as it was, the `norm` of those, and the probability of the class that the network finds in it (null where it doesn't
    classify). Arguments are those of `scan`. Raises as `scan` does, and `AtlasError` where the table can't be written.
    """
    check_table_writable(INVARIANCE, Path(out))
    rows: list[dict[str, object]] = []
    with open_session(network, images, preprocess, layers, device) as session:
        first_images = list(islice(session.readable_images(), IMAGES))
        if not first_images:
            raise ImagesError("none of the files is an image that can be read")
        with session.running(to_output=True) as threads:
            for image in first_images:
                inputs = session.inputs([image])
                original = threads.submit(_features, session, inputs).result()
                futures = [
                    threads.submit(_rows, session, image.key, transformation, original, transformation.apply(as_float32(inputs)))
                    for transformation in transformations()
                ]
                rows += [row for future in futures for row in future.result()]
    table = pa.Table.from_pylist(rows, schema=INVARIANCE.schema)
    return write_table(table, INVARIANCE, Path(out), versions={"torch": torch.__version__})


@dataclass(frozen=True, slots=True)
class Features:
    """What the network makes of an image: every layer's maps, and the number of the most probable class, None where it gives no scores."""

    maps: list[Tensor]
    class_number: int | None


def _features(replica: nn.Module, session: Session, inputs: Tensor) -> Features:
    maps, output = read_layers_and_output(replica, session.layers, inputs, partial(_seen_by_next_layer, session))
    scores = class_scores(output)
    return Features(maps, None if scores is None else int(scores.argmax()))


def _rows(
    replica: nn.Module, session: Session, key: str, transformation: Transformation, original: Features, transformed: Tensor
) -> list[dict[str, object]]:
    """A row a layer, from one pass over the transformed image."""

    def compare(layer: int, maps: Tensor) -> tuple[float, float]:
        original_map = original.maps[layer]
        return float((_seen_by_next_layer(session, layer, maps) - original_map).norm()), float(original_map.norm())

    inputs = session.input_format.convert(transformed)
    distances, output = read_layers_and_output(replica, session.layers, inputs, compare)
    number, scores = original.class_number, class_scores(output)
    probability = None if number is None or scores is None else float(scores.float().softmax(1)[0, number])
    return [
        {
            "image": key, "transformation": transformation.name, "amount": transformation.amount, "layer": traced.name,
            "distance": distance, "norm": norm, "probability": probability,
        }
        for traced, (distance, norm) in zip(session.layers, distances, strict=True)
    ]  # fmt: skip


def _seen_by_next_layer(session: Session, layer: int, maps: Tensor) -> Tensor:
    """A copy of the maps, rectified where a rectifier follows."""
    rectified = session.layers[layer].layer.rectified
    return as_float32(maps).clamp(min=0) if rectified else as_float32(maps).clone()
