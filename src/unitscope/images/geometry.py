"""Where a point of the network's input lies on the source image."""

from dataclasses import dataclass

from unitscope.records import Box, Preprocessing


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one image is resized and cropped to the network's input; sizes and offsets are (y, x) in pixels.

    >>> square = Preprocessing(256, (224, 224), (0.5,) * 3, (0.5,) * 3)
    >>> Geometry.of(square, height=512, width=1024).to_source(Box(0, 0, 224, 224))
    Box(top=32.0, left=288.0, bottom=480.0, right=736.0)
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    input: tuple[int, int]

    @classmethod
    def of(cls, preprocessing: Preprocessing | None, height: int, width: int) -> "Geometry":
        """For a source image of that size; without preprocessing, the input is the source."""
        size = (height, width)
        if preprocessing is None:
            return cls(size, size, (0, 0), size)
        resized, crop = resized_size(preprocessing.resize, height, width), preprocessing.crop
        return cls(size, resized, (_crop_offset(resized[0], crop[0]), _crop_offset(resized[1], crop[1])), crop)

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per network-input pixel, along y and x."""
        return self.source[0] / self.resized[0], self.source[1] / self.resized[1]

    def to_source(self, box: Box) -> Box:
        """A box on the network's input, in pixels of the source image as displayed; nothing is clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset
        return Box(
            (box.top + top) * scale_y, (box.left + left) * scale_x, (box.bottom + top) * scale_y, (box.right + left) * scale_x
        )  # fmt: skip


def resized_size(resize: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    """Height and width after the resize; one number is the length of the shorter side, the longer one is rounded down."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    return (resize, max(1, int(resize * width / height))) if height <= width else (max(1, int(resize * height / width)), resize)


def _crop_offset(length: int, crop: int) -> int:
    """The first row (column) of a centre crop, as torchvision rounds it; below zero where the image must be padded."""
    if length < crop:
        return -((crop - length) // 2)
    return round((length - crop) / 2)
