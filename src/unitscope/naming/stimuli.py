"""Pictures that are shown to a network to learn what shallow units are tuned to: gratings, and fields of one colour.

Values are those of pixels from 0 (black) to 1 (white), before normalisation. A grating is seen at the centre of the input: there its phase
is what its name says, 0 a bright line, 90 an edge whose bright side the angle's normal points to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ANGLES = tuple(7.5 * step for step in range(24))
"""Of the lines, in degrees: 0 is horizontal, 45 goes up to the right, 90 is vertical."""
PERIODS_PX = (3.0, 3.75, 4.7, 5.9, 7.3, 9.2, 11.4, 14.3, 17.9, 22.4, 28.0, 35.0, 45.0, 64.0)
"""Of a grating, in network-input pixels: about three to an octave, since the spectrum of a filter of eleven pixels
changes within a tenth of a cycle a pixel."""
PHASES = (0, 120, 240)
"""As many as it takes to tell the mean, the phase, and how much depends on it."""
HUES = tuple(range(0, 360, 30))
GREYS = (0.0, 0.25, 0.5, 0.75, 1.0)
CONTRAST = 0.8
"""Of gratings, as a share of what black and white allow."""
CHROMA = 0.3
"""How far the colours of the circle of hues lie from grey: further, some would have no pixel values."""
RED_AXIS, YELLOW_AXIS = np.array([2, -1, -1]) / np.sqrt(6), np.array([0, 1, -1]) / np.sqrt(2)
"""Two directions from grey in the plane of equal sums of red, green and blue: hues are angles between them, red being 0 and green 120."""


@dataclass(frozen=True, slots=True)
class Grating:
    """A grating of grey: the angle of its lines and its phase in degrees, its period in network-input pixels."""

    angle: float
    period_px: float
    phase: float

    def at(self, y: NDArray[np.int64], x: NDArray[np.int64], centre: tuple[float, float]) -> Floats:
        """How bright it is at some pixels, with its phase at `centre`."""
        across = normal_of(self.angle)
        distance = (x - centre[1]) * across[0] + (y - centre[0]) * across[1]
        wave: Floats = np.cos(2 * np.pi * distance / self.period_px - np.deg2rad(self.phase))
        return 0.5 + CONTRAST / 2 * wave


@dataclass(frozen=True, slots=True)
class ColourField:
    """A field of one colour."""

    colour: tuple[float, float, float]

    def draw(self, height: int, width: int) -> Floats:
        """Its pixels, of shape (y, x, colour)."""
        return np.broadcast_to(np.array(self.colour), (height, width, 3)).copy()


def normal_of(angle: float) -> tuple[float, float]:
    """The direction across lines of that angle, (right, down): of horizontal ones down, of vertical ones right."""
    radians = np.deg2rad(angle)
    return float(np.sin(radians)), float(np.cos(radians))


def colour_of_hue(hue: float, chroma: float = CHROMA) -> tuple[float, float, float]:
    """Red, green and blue of the colour that far from middle grey, in the direction of a hue in degrees."""
    radians = np.deg2rad(hue)
    red, green, blue = 0.5 + chroma * (np.cos(radians) * RED_AXIS + np.sin(radians) * YELLOW_AXIS)
    return float(red), float(green), float(blue)


def gratings() -> Iterator[Grating]:
    """All of them: by angle, then period, then phase."""
    for angle, period, phase in product(ANGLES, PERIODS_PX, PHASES):
        yield Grating(angle, period, phase)


def colour_fields() -> Iterator[ColourField]:
    """The circle of hues, then greys from black to white."""
    yield from (ColourField(colour_of_hue(hue)) for hue in HUES)
    yield from (ColourField((grey,) * 3) for grey in GREYS)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How several stimuli share one picture, each in a tile of its own: what sees no more than a tile sees one of them.

    `side` is that of a tile; tiles touch, and what is left of the picture beside them belongs to the last ones.
    """

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, height: int, width: int) -> "Tiles":
        """Tiles a little larger than a quarter of the shorter side, whose distance most strides divide."""
        third = min(height, width) // 3
        return cls(height, width, max(1, third - third % 16 if third >= 32 else third))

    @property
    def rows(self) -> int:
        return self.height // self.side

    @property
    def columns(self) -> int:
        return self.width // self.side

    def corners(self) -> NDArray[np.int64]:
        """Top and left of each tile, row by row."""
        return np.array([(row * self.side, column * self.side) for row in range(self.rows) for column in range(self.columns)])

    def pictures(self, stimuli: Sequence[Grating]) -> Iterator[Floats]:
        """Pictures of shape (y, x, colour) that show the stimuli, as many each as there are tiles; the last one's free tiles are grey."""
        corners = self.corners().tolist()
        for start in range(0, len(stimuli), len(corners)):
            picture = np.full((self.height, self.width, 3), 0.5)
            for (top, left), stimulus in zip(corners, stimuli[start : start + len(corners)], strict=False):
                bottom = self.height if top // self.side == self.rows - 1 else top + self.side
                right = self.width if left // self.side == self.columns - 1 else left + self.side
                centre = (top + (self.side - 1) / 2, left + (self.side - 1) / 2)
                y, x = np.mgrid[top:bottom, left:right]
                picture[top:bottom, left:right] = stimulus.at(y, x, centre)[..., None]
            yield picture
