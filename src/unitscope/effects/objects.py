"""Where the object is in each image: from a folder of masks, or from the boxes and outlines of a COCO file."""

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unitscope.errors import ImagesError, first_line
from unitscope.files import os_error_text
from unitscope.images import Skipped, decode_image, prepare
from unitscope.images.keys import key_hash
from unitscope.layers import TracedLayer
from unitscope.records import Preprocessing

MASKS_KEPT = 512
HALF = 127

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Objects:
    """The objects of images, by key: `files` of masks, white on the object, or `shapes` of outlines and boxes with the image's size."""

    preprocessing: Preprocessing
    files: dict[str, Path] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, int], list[list[tuple[float, float]]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Any, preprocessing: Preprocessing | None) -> "Objects | None":
        """From the path of a folder or of a JSON file; None for None. Raises `ImagesError` where there is nothing in it that can be used."""
        if objects is None:
            return None
        if preprocessing is None:
            raise ImagesError(
                "the images are tensors, so there is no known way from an object in an image to the network's input"
            )
        path = Path(os.fspath(objects))
        found = cls(preprocessing, files=_mask_files(path)) if path.is_dir() else cls(preprocessing, shapes=_coco_shapes(path))
        if not (found.files or found.shapes):
            raise ImagesError(f"{str(path)!r} has no objects: it needs a mask an image, or COCO's images and annotations")
        return found

    def masks(self, key: str) -> NDArray[np.bool_] | None:
        """Where the image's object is on the network's input and, twice, where it would be if the mask were shifted around the borders by chance,
        of shape (3, y, x); None where nobody knows."""
        name = self._name_of(key)
        if name is None:
            return None
        mask = (
            _read_mask(self.files[name], self.preprocessing) if self.files else _draw_mask(*self.shapes[name], self.preprocessing)
        )
        shifted = []
        for number in (1, 2):
            drawn = key_hash(f"shift {number} {key}")
            shifted.append(np.roll(mask, (drawn % mask.shape[0], drawn // mask.shape[0] % mask.shape[1]), (0, 1)))
        return np.stack([mask, *shifted])

    def _name_of(self, key: str) -> str | None:
        """As the key, without its ending, or its last part alone, is named in the folder or the file."""
        stem = str(PurePosixPath(key).with_suffix(""))
        known = self.files or self.shapes
        return next((name for name in (stem, PurePosixPath(stem).name) if name in known), None)


def cells_off_objects(masks: Mask, traced: TracedLayer) -> Mask:
    """Which cells of a layer stand off the objects, of shape (…, y, x), from masks of that shape by pixel: where the middle of the receptive
    field, half as high and as wide, shows none of the object."""
    fields, layer = traced.receptive_fields, traced.layer
    height, width = masks.shape[-2:]
    sums = np.zeros((*masks.shape[:-2], height + 1, width + 1), dtype=np.int64)
    sums[..., 1:, 1:] = masks.cumsum(-2).cumsum(-1)
    top, bottom = _middle(fields.centres_y, layer.receptive_field_height, height)
    left, right = _middle(fields.centres_x, layer.receptive_field_width, width)
    of_rows = sums[..., bottom, :] - sums[..., top, :]
    off: Mask = of_rows[..., right] - of_rows[..., left] == 0
    return off


def _middle(centres: NDArray[Any], size: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and the one behind the last of the middle half of fields of that size, on an input of that length."""
    reach = max(size / 4, 0.5)
    first = np.clip(np.floor(centres - reach), 0, length - 1).astype(np.int64)
    return first, np.clip(np.ceil(centres + reach), first + 1, length).astype(np.int64)


@lru_cache(MASKS_KEPT)
def _read_mask(file: Path, preprocessing: Preprocessing) -> Mask:
    try:
        mask = decode_image(file).convert("L")
    except Skipped as reason:
        raise ImagesError(f"the mask {str(file)!r} {reason}") from reason
    return _on_input(mask.point(lambda value: 255 if value else 0), preprocessing)


def _draw_mask(size: tuple[int, int], shapes: list[list[tuple[float, float]]], preprocessing: Preprocessing) -> Mask:
    mask = Image.new("L", size)
    for shape in shapes:
        ImageDraw.Draw(mask).polygon(shape, fill=255)
    return _on_input(mask, preprocessing)


def _on_input(mask: Image.Image, preprocessing: Preprocessing) -> Mask:
    """Resized and cropped as the image is."""
    on_input: Mask = prepare(mask.convert("RGB"), preprocessing)[..., 0] > HALF
    return on_input


def _mask_files(folder: Path) -> dict[str, Path]:
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() in Image.registered_extensions()
    ]
    return {str(PurePosixPath(path.relative_to(folder).with_suffix(""))): path for path in files}


def _coco_shapes(file: Path) -> dict[str, tuple[tuple[int, int], list[list[tuple[float, float]]]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {
            image["id"]: (str(PurePosixPath(image["file_name"]).with_suffix("")), (int(image["width"]), int(image["height"])))
            for image in content["images"]
        }
        shapes: dict[str, tuple[tuple[int, int], list[list[tuple[float, float]]]]] = {}
        for annotation in content["annotations"]:
            name, size = images[annotation["image_id"]]
            shapes.setdefault(name, (size, []))[1].extend(_shapes_of(annotation))
    except OSError as error:
        raise ImagesError(f"the objects {str(file)!r} can't be read: {os_error_text(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ImagesError(f"the objects {str(file)!r} are no COCO file: {type(error).__name__}: {first_line(error)}") from error
    return shapes


def _shapes_of(annotation: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """The outlines of an object where it has any, else its box; run lengths are not read, so their box is taken."""
    outlines = annotation.get("segmentation")
    if isinstance(outlines, list) and outlines:
        return [list(zip(outline[::2], outline[1::2], strict=True)) for outline in outlines]
    left, top, width, height = annotation["bbox"]
    return [[(left, top), (left + width, top), (left + width, top + height), (left, top + height)]]
