"""What shallow units are tuned to, in words."""

from math import isnan

HUES = (
    (15, "red"), (45, "orange"), (75, "yellow"), (105, "yellow-green"), (150, "green"), (195, "cyan"), (255, "blue"), (285, "violet"),
    (330, "magenta"), (360, "red"),
)  # fmt: skip
"""Names of hues, each up to an angle in degrees."""
FINE_CYCLES = 3
"""From so many cycles in the field on, stripes are fine."""
STRIPE_CYCLES = 1.25
"""From so many cycles in the field on, a grating is stripes; below, a line or an edge."""
ANGLE_TOLERANCE = 11.25
"""How far from it, in degrees, lines are still called horizontal or vertical."""


def describe(feature: str, angle: float, phase: float, cycles: float, hue: float, brightness: float) -> str | None:
    """A tuning in a few words, None where what it is about is NaN. `feature` is the one that explains most; `cycles` are those in the
    receptive field.

    >>> describe("match", 45, 270, 0.8, 0, 0), describe("energy", 90, 0, 4, 0, 0), describe("red", 0, 0, 1, 40, 0)
    ('edge at 45°, dark below', 'fine vertical stripes', 'orange')
    """
    if feature == "contrast":
        return "contrast"
    if feature in ("red", "yellow"):
        return None if isnan(hue) else hue_name(hue)
    if feature == "brightness":
        return None if isnan(brightness) else "bright" if brightness > 0 else "dark"
    if isnan(angle + phase + cycles):
        return None
    if feature == "energy" or cycles >= STRIPE_CYCLES:
        fineness = "fine " if cycles >= FINE_CYCLES else "coarse "
        return f"{fineness}{_with_direction('stripes', angle)}"
    quarter = round(phase / 90) % 4
    if quarter in (0, 2):
        return _with_direction("bright line" if quarter == 0 else "dark line", angle)
    return f"{_with_direction('edge', angle)}, dark {_dark_side(angle, is_bright_across=quarter == 1)}"


def _with_direction(lines: str, angle: float) -> str:
    return f"{lines} {_direction(angle)}" if _is_in_degrees(angle) else f"{_direction(angle)} {lines}"


def _is_in_degrees(angle: float) -> bool:
    return _direction(angle).startswith("at")


def hue_name(hue: float) -> str:
    """What people call a hue: red is 0, green 120, blue 240 degrees.

    >>> hue_name(355), hue_name(240)
    ('red', 'blue')
    """
    return next(name for end, name in HUES if hue % 360 < end)


def _direction(angle: float) -> str:
    """Of lines: in words, or in degrees."""
    angle %= 180
    if min(angle, 180 - angle) <= ANGLE_TOLERANCE:
        return "horizontal"
    return "vertical" if abs(angle - 90) <= ANGLE_TOLERANCE else f"at {round(angle / 5) * 5}°"


def _dark_side(angle: float, is_bright_across: bool) -> str:
    """Where an edge is dark. The direction across lines of an angle leads down, and to the right the steeper they are."""
    is_steep = 45 < angle % 180 < 135
    bright = "on the right" if is_steep else "below"
    dark = {"on the right": "on the left", "below": "above"}[bright]
    if angle % 180 >= 135:  # the direction across leads up there
        bright, dark = dark, bright
    return dark if is_bright_across else bright
