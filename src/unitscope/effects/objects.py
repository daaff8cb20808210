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
        if not found._keys:
            raise ImagesError(f"{str(path)!r} has no objects: it needs a mask an image, or COCO's images and annotations")
        return found

    def masks(self, key: str) -> NDArray[np.bool_] | None:
        """Where the image's object is on the network's input, and where those of two other images are, of shape (3, y, x); None where nobody
        knows."""
        name = self._name_of(key)
        if name is None or len(self._keys) < 3:
            return None
        place = self._places[name]
        return np.stack([self._mask(self._keys[(place + step) % len(self._keys)]) for step in (0, 1, 2)])

    def _name_of(self, key: str) -> str | None:
        """As the key, without its ending, or its last part alone, is named in the folder or the file."""
        stem = str(PurePosixPath(key).with_suffix(""))
        return next((name for name in (stem, PurePosixPath(stem).name) if name in self._places), None)

    @property
    def _keys(self) -> list[str]:
        return sorted(self.files or self.shapes)

    @property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._keys)}

    def _mask(self, name: str) -> Mask:
        return (
            _read_mask(self.files[name], self.preprocessing) if self.files else _draw_mask(*self.shapes[name], self.preprocessing)
        )


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
