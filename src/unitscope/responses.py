"""The network of an atlas at hand for its pages: what units respond to an image that was not among those scanned, and their activation maps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn

from unitscope.atlas import Atlas
from unitscope.attribution.methods import spread
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


@contextmanager
def open_activations(
    atlas: Atlas, network: "nn.Module | Network | None" = None, device: str = "auto"
) -> Iterator[Callable[[str, int], Float32[ndarray, "peak height width"]]]:
    """A function from a layer's name and a unit to the unit's activation maps in the images of its peaks, over the pixels of the network's input;
    it may be called from several threads, and raises `ImagesError` where an image can't be read any more.

    Raises `AtlasError` where the weights are not those that were scanned.
    """
    with plain_tensors():
        session = atlas_session(atlas, network, device)
    one_at_a_time = Lock()

    def activations(layer: str, unit: int) -> Float32[ndarray, "peak height width"]:
        images = atlas.peaks(layer, unit)["image"].to_pylist()
        with one_at_a_time, plain_tensors():
            return _activations(session, layer, unit, images)

    yield activations


def _activations(session: Session, layer: str, unit: int, images: list[int]) -> Float32[ndarray, "peak height width"]:
    index = next(index for index, traced in enumerate(session.layers) if traced.name == layer)
    fields = session.layers[index].receptive_fields

    def read(number: int, maps: Tensor) -> Tensor | None:
        return maps[:, unit : unit + 1].float().clone() if number == index else None

    loaded = {image: session.loader.load(session.loader.item(image)) for image in set(images)}
    inputs = session.inputs([loaded[image] for image in images])
    maps = session.read_plainly(inputs, read)[index]
    assert maps is not None  # noqa: S101 - it is the one that is read
    pixels: Float32[ndarray, "peak height width"] = (
        spread(maps, (fields.centres_y, fields.centres_x), inputs.shape[2:])[:, 0].cpu().numpy()
    )
    return pixels


def _responses(session: Session, image: Image.Image, preprocessing: Preprocessing) -> list[Response]:
    def respond(layer: int, maps: Tensor) -> Response:
        traced, maximum = session.layers[layer], highest_cell(maps)
        values, cells = maximum.values[0].cpu().numpy(), maximum.cells[0].cpu().numpy()
        y, x = np.divmod(cells, traced.layer.map_width)
        sides = traced.receptive_fields.boxes(np.arange(len(values)), y, x)
        return Response(traced.name, values, np.stack([np.asarray(side, dtype=np.int64) for side in sides], axis=1))

    inputs = session.loader.normalise([prepare(image, preprocessing)], session.input_format)
    return session.read_plainly(inputs, respond)
