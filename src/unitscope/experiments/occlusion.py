"""occlusion(): what the classifier makes of an image while a square of it is covered (Zeiler & Fergus 2014, section 4.2)."""

from collections import Counter
from collections.abc import Callable, Sequence

import pyarrow as pa
import torch
from torch import Tensor, nn

from unitscope.arguments import unit_numbers
from unitscope.atlas import Atlas
from unitscope.attribution.methods import squares
from unitscope.errors import AtlasError
from unitscope.experiments.tables import place_for_table, write_table
from unitscope.networks import Network
from unitscope.networks.precision import plain_tensors
from unitscope.session.again import Again, opened_again

BATCH_IMAGES = 32

SCHEMA = pa.schema(
    [
        ("image", pa.int64()),
        ("class", pa.int32()),
        ("labelled", pa.bool_()),
        ("uncovered", pa.float32()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("probability", pa.list_(pa.float32())),
        ("most_probable", pa.list_(pa.int32())),
    ]
)


@plain_tensors()
def occlude(
    atlas: Atlas,
    layer: str,
    units: Sequence[int] | None = None,
    network: "nn.Module | Network | None" = None,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    on_images: Callable[[int], None] | None = None,
) -> pa.Table:
    """For the images of some units' peaks, the class probabilities while a grey square slides over them.

    Written as `experiments/class_probability.parquet`, a row an image: the probability of its class, and the number of the most probable
    class, at each place of the square, row by row. With `classes`, the labels in the order of the network's outputs, the class is
    that of the image's label (`labelled`); else, and for an image without such a label, the one that the network finds most
    probable in the whole image. How the unit's own value drops is `attribute` with the method `occlusion`, with the same squares.
    A table that is there is replaced. A label that stands there twice says nothing of the class.

    Raises `AtlasError` for a unit that the layer doesn't have, where the network gives no class scores, of shape (image, class), or
    where `classes` are more or fewer than those, and `ImagesError` where an image is gone.
    """
    chosen = unit_numbers(units)
    atlas.layer(layer).check_units(chosen or ())
    peaks = atlas.peaks(layer)
    wanted = None if chosen is None else set(chosen)
    images = sorted(
        {image for image, unit in zip(peaks["image"].to_pylist(), peaks["unit"].to_pylist(), strict=True) if wanted is None or unit in wanted}
    )  # fmt: skip
    if not images:
        raise AtlasError(f"the chosen units of layer {layer!r} have no peaks in the atlas {str(atlas.folder)!r}")
    place = place_for_table(atlas.folder / "experiments" / "class_probability.parquet")
    labels = {row["image"]: row["label"] for row in atlas.table("images").to_pylist()}
    counts = Counter(classes or ())
    numbers = {label: number for number, label in enumerate(classes or ()) if counts[label] == 1}
    with opened_again(atlas, network, device) as again:
        _check_classes(again, images[0], classes)
        rows = []
        for image in images:
            rows.append(_row(again, image, numbers.get(labels.get(image) or "")))
            if on_images is not None:
                on_images(1)
    return write_table(pa.Table.from_pylist(rows, schema=SCHEMA), place)


def _check_classes(again: Again, image: int, classes: Sequence[str] | None) -> None:
    """Raises `AtlasError` where the labels are not as many as the network's outputs; found with one image, before all the others."""
    outputs = _probabilities(again, again.inputs([again.loader.load(image)])).shape[1]
    if classes is not None and len(classes) != outputs:
        raise AtlasError(
            f"{len(classes):,} classes were given, but the network has {outputs:,} outputs; give one label for each, in their order"
        )


def _row(again: Again, image: int, known: int | None) -> dict[str, object]:
    given = again.inputs([again.loader.load(image)])
    whole = _probabilities(again, given)
    number = int(whole.argmax()) if known is None else known
    places = list(squares(*again.trace.shape[1:]))
    found = torch.cat(
        [_covered(again, given, places[start : start + BATCH_IMAGES]) for start in range(0, len(places), BATCH_IMAGES)]
    )
    rows = len({place[0].start for place in places})
    return {
        "image": image, "class": number, "labelled": known is not None, "uncovered": float(whole[0, number]), "rows": rows,
        "columns": len(places) // rows, "probability": found[:, number].tolist(), "most_probable": found.argmax(1).tolist(),
    }  # fmt: skip


def _covered(again: Again, given: Tensor, places: Sequence[tuple[slice, slice]]) -> Tensor:
    images = given.repeat(len(places), 1, 1, 1)
    for one, (rows, columns) in zip(images, places, strict=True):
        one[:, rows, columns] = 0  # the mean colour
    return _probabilities(again, again.form.convert(images))


def _probabilities(again: Again, images: Tensor) -> Tensor:
    scores = again.outputs(images)
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise AtlasError(f"the network gives no class scores of shape (image, class), but {tuple(scores.shape)}")
    return scores.float().softmax(1).cpu()
