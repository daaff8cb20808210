"""What the units of a scanned network respond to an image that was not among those scanned, for search by image."""

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
from unitscope.records import Preprocessing, Response
from unitscope.session.session import Session
from unitscope.session.stored import atlas_session
from unitscope.spatial_max import highest_cell


@contextmanager
def open_responses(
    atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto"
) -> Iterator[Callable[[Image.Image], list[Response]]]:
    """A function from an image as displayed to each layer's response; it may be called from several threads.

    Raises `AtlasError` where the weights are not those that were scanned, or where the atlas was made from tensors.
    """
    preprocessing = atlas.preprocessing
    if preprocessing is None:
        raise AtlasError(
            f"the atlas {str(atlas.folder)!r} was made from tensors; there is no known way from an image to its input"
        )
    with plain_tensors():
        session = atlas_session(atlas, network, device)
    one_at_a_time = Lock()

    def respond(image: Image.Image) -> list[Response]:
        with one_at_a_time, plain_tensors():
            return _responses(session, image, preprocessing)

    yield respond


def _responses(session: Session, image: Image.Image, preprocessing: Preprocessing) -> list[Response]:
    def respond(layer: int, maps: Tensor) -> Response:
        traced, maximum = session.layers[layer], highest_cell(maps)
        values, cells = maximum.values[0].cpu().numpy(), maximum.cells[0].cpu().numpy()
        y, x = np.divmod(cells, traced.layer.map_width)
        sides = traced.receptive_fields.boxes(np.arange(len(values)), y, x)
        return Response(traced.name, values, np.stack([np.asarray(side, dtype=np.int64) for side in sides], axis=1))

    inputs = session.loader.normalise([prepare(image, preprocessing)], session.input_format)
    return session.read_plainly(inputs, respond)
