"""The records that cross module borders: frozen, without torch.

Lengths are in pixels. *Network-input pixels* are those of the image as the network gets it, after resize and crop. *Source pixels* are
those of the image as displayed, after EXIF orientation.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unitscope.arguments import unit_numbers
from unitscope.errors import AtlasError

RECTIFIER = "rectifier"
"""The activation of a layer that is followed by a function, other than a ReLU, that is zero at and below zero."""
MAX_SIDE_PX = 1 << 20
"""The longest side that an image may be resized or cropped to, far beyond any network's input."""
MAX_IMAGE_PIXELS = 500_000_000
"""The most pixels that an image may have, from its file, after its resize and in the network's input: 1.5 GB in 8-bit RGB."""
LIBRARIES = frozenset({"torchvision", "timm", "transformers", "open_clip", "demo"})
"""The schemes of model strings whose network a library builds."""


def names_user_code(model: str) -> bool:
    """True where a model string names the user's own code, which building the network would run.

    >>> names_user_code("torchvision:alexnet"), names_user_code("mine.networks:small"), names_user_code("/tmp/net.py:make")
    (False, True, True)
    """
    return model.partition(":")[0] not in LIBRARIES


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels, half-open: rows `top` to `bottom - 1`, columns `left` to `right - 1`."""

    top: float
    left: float
    bottom: float
    right: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left

    def scaled(self, scale_y: float, scale_x: float) -> "Box":
        """The same on an image whose sides are so many times as long."""
        return Box(self.top * scale_y, self.left * scale_x, self.bottom * scale_y, self.right * scale_x)

    def intersection(self, other: "Box") -> "Box":
        """The intersection of both boxes; its height or width is zero where they don't meet.

        >>> Box(-2, 3, 9, 12).intersection(Box(0, 0, 8, 10))
        Box(top=0, left=3, bottom=8, right=10)
        """
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Box(top, left, max(min(self.bottom, other.bottom), top), max(min(self.right, other.right), left))

    def clipped(self, height: float, width: float) -> "Box":
        """The part of the box inside an image of that size."""
        return self.intersection(Box(0, 0, height, width))


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: a row of the `layers` table. Receptive fields and strides are those of an inner cell, in network-input pixels.

    `activation` is the function that follows the ranked value: `relu`, `relu6`, `gelu`, … or `none`; `rectifier` is any other function
    that is zero at and below zero. The effective receptive field is None where there is none (see `scanning.effective_fields`);
    `effective_field_measured` is False where it lies between those of layers that were measured. `shares_units_of` names the layer whose units
    these are, seen through activations and normalisations; None where they are the layer's own.
    """

    name: str
    kind: str
    units: int
    map_height: int
    map_width: int
    receptive_field_height: int
    receptive_field_width: int
    stride_y: int
    stride_x: int
    activation: str
    order: int
    effective_field_height: int | None = None
    effective_field_width: int | None = None
    effective_field_measured: bool = False
    shares_units_of: str | None = None

    @property
    def rectified(self) -> bool:
        """True where the activation that follows is zero at and below zero."""
        return is_rectifier(self.activation)

    def unit_numbers(self, units: Any) -> list[int] | None:
        """Unit numbers as a list, from a list, a range or an array; None for all units.

        Raises `AtlasError` for what is no list of whole numbers, and for a number that no unit of the layer has.
        """
        numbers = unit_numbers(units)
        self.check_units(numbers or ())
        return numbers

    def check_units(self, unit_numbers: Iterable[int]) -> None:
        """Raises `AtlasError` for a number that no unit of the layer has."""
        unknown = next((number for number in unit_numbers if not 0 <= number < self.units), None)
        if unknown is not None:
            raise AtlasError(f"layer {self.name!r} has units 0 to {self.units - 1}, not {unknown}")


def is_rectifier(activation: str) -> bool:
    """True for the name of an activation that is zero at and below zero: `relu`, `relu6` and their like, and `rectifier`."""
    return activation == RECTIFIER or re.fullmatch(r"relu(\d+(\.\d+)?)?", activation) is not None


def ceiling(activation: str) -> float | None:
    """The most that an activation of that name passes on; None where it has no bound, or nobody knows it.

    >>> ceiling("relu6"), ceiling("relu")
    (6.0, None)
    """
    match = re.fullmatch(r"relu(\d+(\.\d+)?)", activation)
    return float(match[1]) if match else None


def name_matches(name: str, pattern: str) -> bool:
    """True where the pattern is the layer's name or a glob that matches it."""
    return name == pattern or fnmatchcase(name, pattern)


@runtime_checkable
class Named(Protocol):
    """Anything with the name of a layer."""

    @property
    def name(self) -> str: ...


NamedLayer = TypeVar("NamedLayer", bound=Named)


def match_layers(layers: Sequence[NamedLayer], patterns: Iterable[str]) -> dict[str, list[NamedLayer]]:
    """The layers that each pattern matches, in their own order, by pattern; an empty list where it matches none."""
    return {pattern: [layer for layer in layers if name_matches(layer.name, pattern)] for pattern in patterns}


@dataclass(frozen=True, slots=True)
class Peak:
    """A unit's spatial maximum in one image, with its cell and boxes: a row of the `peaks` table."""

    layer: str
    unit: int
    rank: int
    value: float
    image: int
    y: int
    x: int
    top: int
    left: int
    bottom: int
    right: int
    source_top: float
    source_left: float
    source_bottom: float
    source_right: float

    @property
    def box(self) -> Box:
        """The unclipped receptive field of the peak's cell, in network-input pixels."""
        return Box(self.top, self.left, self.bottom, self.right)

    @property
    def source_box(self) -> Box:
        """The same box in source pixels."""
        return Box(self.source_top, self.source_left, self.source_bottom, self.source_right)


@dataclass(frozen=True, slots=True)
class Response:
    """The responses of one layer's units to an image: each unit's spatial maximum, and the unclipped receptive field of its cell.

    `values` has the shape (unit,), `boxes` the shape (unit, side) with the sides top, left, bottom and right in network-input pixels.
    """

    layer: str
    values: NDArray[np.float32]
    boxes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One of a network's outputs in an image: its position, what it is called, its score and its probability."""

    position: int
    name: str
    score: float
    probability: float


@dataclass(frozen=True, slots=True)
class UnitEffect:
    """What a unit does to a score in one image: how far the score would fall, to first order, if the unit passed on its mean map.

    `share` is its size as a share of those of all units of its layer. `map` says where in the image that is, by cell, of shape (y, x); None
    where cells stand nowhere.
    """

    unit: int
    effect: float
    share: float
    map: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class LayerEffects:
    """What the units of one layer do to a score in one image: those that raise it and those that lower it, the strongest first.

    Where only linear operations follow the layer (`exact`), what its units pass on and the `rest`, which is a bias, add up to the score, and
    effects are exact. Elsewhere there is no rest.
    """

    layer: str
    raising: list[UnitEffect]
    lowering: list[UnitEffect]
    exact: bool
    rest: float | None = None


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What taking units away does to one class in one image: what the whole network says of it, and what it says without them."""

    before: ClassScore
    after: ClassScore


@dataclass(frozen=True, slots=True)
class ImageExplanation:
    """Why a network gives an image a score: that of the class `explained` or, with `against`, the difference of the two.

    Where units were taken away, everything is said of the network without them; `changes` has the classes that are among the most probable ones
    before or after, and those that are explained, the highest before first.
    """

    top: list[ClassScore]
    explained: ClassScore
    against: ClassScore | None
    layers: list[LayerEffects]
    changes: list[ClassChange] = field(default_factory=list)

    @property
    def score(self) -> float:
        """What the effects are effects on."""
        return self.explained.score - (0.0 if self.against is None else self.against.score)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of one image that was read: one row of the `images` table.

    `width` and `height` are in pixels as displayed; `content` is a hash of what it holds, None where nobody knows it; `perceptual_hash` is
    nearly the same for near-duplicates, None where it shows nothing to tell it by.
    """

    image: int
    key: str
    width: int
    height: int
    label: str | None
    content: int | None = None
    perceptual_hash: int | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of images scanned as one piece of work: images `start` to `stop - 1`."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the network's input.

    `resize` is the length of the shorter side (one number) or height and width (two numbers), None to keep the size. `crop` is the
    height and width cut from the centre. Each channel is divided by 255, then `mean` is subtracted, then it is divided by `std`.
    `channels` is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). `value_range` gives the values of black and white in images
    of more than 8 bits, since many files don't.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = "bilinear"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for numbers that make no input, such as a mean above 1, which belongs to values from 0 to 255."""
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"preprocessing with {self.channels} channels needs as many means and deviations, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        sizes = self.resize if isinstance(self.resize, tuple) else (1 if self.resize is None else self.resize,)
        if min(*self.crop, *sizes) < 1 or not all(0 < value < inf for value in self.std) or not all(map(isfinite, self.mean)):
            raise ValueError(
                f"resize {self.resize}, crop {self.crop} and std {self.std} must be positive, and mean {self.mean} finite numbers"
            )
        if max(self.mean) > 1:
            raise ValueError(
                f"mean {self.mean} and std {self.std} are for values from 0 to 1, and no mean of those is above 1; divide those of values "
                "from 0 to 255 by 255"
            )
        if self.crop[0] * self.crop[1] > MAX_IMAGE_PIXELS:
            raise ValueError(f"crop {self.crop} has more than {MAX_IMAGE_PIXELS // 1_000_000} million pixels")
        if max(*self.crop, *sizes) > MAX_SIDE_PX:
            raise ValueError(f"resize and crop may have sides of up to {MAX_SIDE_PX:,} pixels")
        if self.value_range is not None and not (
            all(map(isfinite, self.value_range)) and self.value_range[0] < self.value_range[1]
        ):
            raise ValueError(f"value range {self.value_range} must be a lower and a higher finite number")
