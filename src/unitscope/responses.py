"""listening(): what the units of a scanned network say to an image that was not among those scanned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
from PIL import Image
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.errors import AtlasError
from unitscope.images import prepare
from unitscope.networks import Network
from unitscope.networks.precision import plain_tensors
from unitscope.records import Response
from unitscope.session.again import Again, opened_again
from unitscope.spatial_max import highest_cell


@contextmanager
def listening(
    atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto"
) -> Iterator[Callable[[Image.Image], list[Response]]]:
    """A function from an image as displayed to what each layer of the atlas says to it; it may be called from several threads.

    Raises `AtlasError` where the weights are not those that were scanned, or where the atlas was made from tensors.
    """
    if atlas.preprocessing is None:
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} was made from tensors; there is no known way from an image to its input"
        )
    with opened_again(atlas, network, device) as again:
        alone = Lock()

        def listen(image: Image.Image) -> list[Response]:
            with alone:
                return _responses(again, image)

        yield listen


@plain_tensors()
def _responses(again: Again, image: Image.Image) -> list[Response]:
    def look(number: int, maps: Tensor) -> Response:
        traced = again.layers[number]
        reading = highest_cell(maps)
        values, cells = reading.values[0].cpu().numpy(), reading.cells[0].cpu().numpy()
        y, x = np.divmod(cells, traced.layer.map_width)
        sides = traced.fields.boxes(np.arange(len(values)), y, x)
        return Response(traced.name, values, np.stack([np.asarray(side, dtype=np.int64) for side in sides], axis=1))

    assert again.loader.preprocessing is not None  # noqa: S101
    return again.each(again.loader.normalised([prepare(image, again.loader.preprocessing)], again.form), look)
