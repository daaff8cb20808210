"""Rows of peaks, troughs, the sample and candidates, with the boxes that pages draw: computed for many rows at once."""

from collections.abc import Mapping

import numpy as np

from unitscope.atlas import Atlas
from unitscope.atlas.patches import boxes_on_input
from unitscope.atlas.samples import NumpyColumns
from unitscope.images import Geometry
from unitscope.records import Box, Layer
from unitscope.web.checked_tables import ImageEntry
from unitscope.web.page_records import Example


class Examples:
    """Makes examples from rows of an atlas that has these images."""

    def __init__(self, atlas: Atlas, images: Mapping[int, ImageEntry]) -> None:
        self._atlas, self._images = atlas, images
        sizes = [(image.height, image.width) for image in images.values()]
        geometries = {size: Geometry.of(atlas.preprocessing, *size) for size in set(sizes)}
        size_indices = {size: index for index, size in enumerate(geometries)}
        on_input = {size: geometry.to_source(Box(0, 0, *geometry.input)) for size, geometry in geometries.items()}
        seen = {size: box.clipped(*size) for size, box in on_input.items()}
        self._input_boxes = list(on_input.values())
        self._size_index_of_image = {image: size_indices[size] for image, size in zip(images, sizes, strict=True)}
        self._scales = np.array([geometry.scale for geometry in geometries.values()], dtype=np.float64).reshape(-1, 2)
        self._offsets = np.array([geometry.offset for geometry in geometries.values()], dtype=np.float64).reshape(-1, 2)
        self._seen = np.array([_sides(box) for box in seen.values()], dtype=np.float64).reshape(-1, 4)

    def of_rows(self, layer: Layer, patch_kind: str, columns: NumpyColumns) -> list[Example]:
        """Those of some rows of one layer. Where they have no rank, it is None; where they don't say where their receptive fields lie on the
        source image, it is computed.

        Raises `AtlasError` where a row names an image that the atlas lacks.
        """
        image_numbers = columns["image"].tolist()
        if not image_numbers:
            return []
        try:
            size_indices = [self._size_index_of_image[image] for image in image_numbers]
        except KeyError as unknown:
            raise self._atlas.broken(f"its sample names image {unknown}, which its images table lacks") from None
        scale, offset = np.tile(self._scales[size_indices], 2), np.tile(self._offsets[size_indices], 2)
        if "source_top" in columns:
            fields = np.stack([columns[f"source_{side}"] for side in ("top", "left", "bottom", "right")], axis=1)
        else:
            fields = (boxes_on_input(self._atlas, layer, "field", columns) + offset) * scale
        boxes = fields if patch_kind == "field" else (boxes_on_input(self._atlas, layer, patch_kind, columns) + offset) * scale
        seen = self._seen[size_indices]
        starts = np.maximum(boxes[:, :2], seen[:, :2])
        stops = np.maximum(np.minimum(boxes[:, 2:], seen[:, 2:]), starts)
        ranks = columns["rank"].tolist() if "rank" in columns else [None] * len(image_numbers)
        units, values, y, x = (columns[name].tolist() for name in ("unit", "value", "y", "x"))
        rows = zip(
            units, ranks, values, y, x, image_numbers, fields.tolist(), boxes.tolist(), starts.tolist(), stops.tolist(), size_indices, strict=True
        )  # fmt: skip
        return [
            Example(
                layer.name, unit, rank, value, cell_y, cell_x, self._images[image], Box(*field), Box(*box), Box(*start, *stop),
                self._input_boxes[index],
            )
            for unit, rank, value, cell_y, cell_x, image, field, box, start, stop, index in rows
        ]  # fmt: skip


def _sides(box: Box) -> tuple[float, float, float, float]:
    return box.top, box.left, box.bottom, box.right
