"""invariance(): how far features move when the image does (Zeiler & Fergus 2014, section 4.1, figure 5)."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from unitscope.errors import ImagesError
from unitscope.experiments.tables import place_for_table, write_table
from unitscope.networks import Network, as_float32
from unitscope.networks.precision import plain_tensors
from unitscope.session.again import Again, opened

IMAGES = 5

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("transformation", pa.string()),
        ("amount", pa.float32()),
        ("layer", pa.string()),
        ("distance", pa.float32()),
        ("norm", pa.float32()),
        ("probability", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Move:
    """One way to move an image: by a share of its height, to a size, or by degrees, about its middle."""

    transformation: str
    amount: float

    def of(self, images: Tensor) -> Tensor:
        """What is beyond the border is zero, the mean colour."""
        down = self.amount * images.shape[2] if self.transformation == "translation" else 0
        scale = self.amount if self.transformation == "scale" else 1.0
        angle = self.amount if self.transformation == "rotation" else 0.0
        moved: Tensor = affine(images, angle, [0, round(down)], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        return moved


def moves() -> Iterator[Move]:
    """Those of the paper: up and down by 60 of 224 pixels, up to 1.8 times as large, all the way round."""
    yield from (Move("translation", step * 15 / 224) for step in range(-4, 5))
    yield from (Move("scale", 1 + step / 10) for step in range(9))
    yield from (Move("rotation", float(angle)) for angle in range(0, 361, 30))


@plain_tensors()
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

    Written as `invariance.parquet` in `out`: for every image, move and layer the Euclidean `distance` of the features from those of
    the image as it was, the `norm` of those, and the probability of the class that the network finds in it (null where it doesn't
    classify). Arguments are those of `scan`. Raises as `scan` does, and `AtlasError` where the table can't be written.
    """
    place = place_for_table(Path(out) / "invariance.parquet")
    with opened(network, images, preprocess, layers, device) as again:
        rows = [row for key, image in _first(again) for row in _rows(again, key, image)]
    return write_table(pa.Table.from_pylist(rows, schema=SCHEMA), place)


def _first(again: Again) -> Iterator[tuple[str, Tensor]]:
    """The first images that can be read, by key."""
    first = list(islice(again.loaded(), IMAGES))
    if not first:
        raise ImagesError("none of the files is an image that can be read")
    yield from ((one.key, again.inputs([one])) for one in first)


def _rows(again: Again, key: str, image: Tensor) -> Iterator[dict[str, object]]:
    before = _features(again, image)
    scores = again.outputs(image)
    classifies = scores.dim() == 2 and scores.shape[1] > 1
    number = int(scores.argmax()) if classifies else 0
    for move in moves():
        moved = again.form.convert(move.of(as_float32(image)))
        probability = float(again.outputs(moved).float().softmax(1)[0, number]) if classifies else None
        for traced, old, new in zip(again.layers, before, _features(again, moved), strict=True):
            yield {
                "image": key, "transformation": move.transformation, "amount": move.amount, "layer": traced.name,
                "distance": float((new - old).norm()), "norm": float(old.norm()), "probability": probability,
            }  # fmt: skip


def _features(again: Again, images: Tensor) -> list[Tensor]:
    """Every layer's maps, as what follows gets them: rectified where a rectifier follows."""
    rectified = [traced.layer.rectified for traced in again.layers]
    return again.each(
        images, lambda number, maps: as_float32(maps).clamp(min=0) if rectified[number] else as_float32(maps).clone()
    )
