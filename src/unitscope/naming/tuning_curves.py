"""From responses to gratings and colours to what a unit is tuned to: angle, spatial frequency, phase, hue, brightness."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unitscope.naming.stimuli import ANGLES, GREYS, HUES, PERIODS_PX, PHASES, normal_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GratingTuning:
    """For each unit: the response to the best grating above that to middle grey; its angle in degrees; how sharp the angle is, from 0 for
    all the same to 1 for one alone; its period in network-input pixels; its phase in degrees; and the share of the response that depends on
    the phase."""

    gain: Floats
    angle: Floats
    selectivity: Floats
    period_px: Floats
    phase: Floats
    modulation: Floats


def grating_tuning(responses: Floats, grey: Floats, offsets: Floats) -> GratingTuning:
    """The tuning to gratings.

    `responses` has the shape (grating, unit), in the order of `stimuli.gratings`; `grey` are the responses to middle grey, of shape (unit);
    `offsets`, of shape (grating, axis), say how far down and to the right of the grating's centre the field's middle lay, in pixels. The
    phases of the tuning are those in the middle of the field.
    """
    shape = (len(ANGLES), len(PERIODS_PX), len(PHASES))
    by_phase = responses.reshape(*shape, -1)
    normals = np.array([normal_of(angle)[::-1] for angle in ANGLES])  # down and right, as the offsets
    distance = np.einsum("apfx,ax->apf", offsets.reshape(*shape, 2), normals)
    phases = np.deg2rad(PHASES) - 2 * np.pi * distance / np.array(PERIODS_PX)[None, :, None]
    design = np.stack([np.ones_like(phases), np.cos(phases), np.sin(phases)], axis=-1)
    mean, cosine, sine = np.moveaxis(np.linalg.pinv(design) @ by_phase, 2, 0)
    first = cosine + 1j * sine  # of the response's wave over the phases
    mean = mean - grey
    highest = mean + np.abs(first)
    units = np.arange(highest.shape[2])
    best_angle, best_period = np.unravel_index(highest.reshape(-1, len(units)).argmax(0), highest.shape[:2])
    gain = highest[best_angle, best_period, units]
    wave = first[best_angle, best_period, units]
    curve = np.clip(highest[:, best_period, units], 0, None)  # of shape (angle, unit)
    turning = np.exp(2j * np.deg2rad(ANGLES))[:, None]
    total = curve.sum(0)
    selectivity = np.abs((curve * turning).sum(0)) / np.where(total > 0, total, 1)
    angle, period = _refined(highest, best_angle, best_period)
    modulation = np.abs(wave) / np.where(gain > 0, gain, 1)
    return GratingTuning(gain, angle, selectivity, period, np.rad2deg(np.angle(wave)) % 360, np.where(gain > 0, modulation, 0))


def _refined(highest: Floats, best_angle: NDArray[np.intp], best_period: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Angles and periods between those of the gratings: where the logarithm of the response, as a quadratic form of the frequencies along
    both axes, is highest. That is exact for Gabor functions, whose spectrum is a Gaussian. Where the form has no such place near the best
    grating, each axis has a parabola of its own."""
    angles, periods = np.array(ANGLES, dtype=np.float64)[best_angle], np.array(PERIODS_PX)[best_period]
    step = ANGLES[1] - ANGLES[0]
    for unit in range(highest.shape[2]):
        peak = highest[best_angle[unit], best_period[unit], unit]
        points, logs = [], []
        for turn in (-1, 0, 1):
            for row in range(best_period[unit] - 1, best_period[unit] + 2):
                value = highest[(best_angle[unit] + turn) % len(ANGLES), row, unit] if 0 <= row < len(PERIODS_PX) else 0
                if value > 0.01 * peak > 0:
                    points.append((step * turn, np.log(PERIODS_PX[best_period[unit]] / PERIODS_PX[row])))
                    logs.append(np.log(value))
        shift = _peak_of_quadratic(np.array(points), np.array(logs), PERIODS_PX[best_period[unit]]) if len(points) >= 6 else None
        if shift is None:
            shift = _peaks_along_axes(highest[:, :, unit], int(best_angle[unit]), int(best_period[unit]))
        angles[unit] = (angles[unit] + shift[0]) % 180
        periods[unit] *= np.exp(-shift[1])
    return angles, periods


def _peaks_along_axes(highest: Floats, angle: int, period: int) -> tuple[float, float]:
    """How far the peaks of parabolas through the logarithms of three neighbours lie from the best grating: in degrees, and in the logarithm of
    the frequency, whose neighbours are nearly evenly apart."""
    step = ANGLES[1] - ANGLES[0]
    degrees = step * _peak_of_parabola([highest[(angle + turn) % len(ANGLES), period] for turn in (-1, 0, 1)])
    if not 0 < period < len(PERIODS_PX) - 1:
        return degrees, 0.0
    spacing = np.log(PERIODS_PX[period + 1] / PERIODS_PX[period - 1]) / 2
    return degrees, -spacing * _peak_of_parabola([highest[angle, period + row] for row in (-1, 0, 1)])


def _peak_of_parabola(values: list[float]) -> float:
    """Where the peak lies, from -1 to 1, of a parabola through the logarithms of values at -1, 0 and 1, of which the middle one is highest."""
    if min(values) <= 0.01 * values[1]:
        return 0.0
    before, middle, after = np.log(values)
    bend = before - 2 * middle + after
    return float(np.clip((before - after) / (2 * bend), -1, 1)) if bend < 0 else 0.0


def _peak_of_quadratic(points: Floats, logs: Floats, period: float) -> tuple[float, float] | None:
    """How far the peak lies from the best grating: degrees, and the logarithm of the ratio of frequencies; None where it isn't near."""
    frequency = np.exp(points[:, 1])
    turned = np.deg2rad(points[:, 0])
    u, v = frequency * np.cos(turned) - 1, frequency * np.sin(turned)
    design = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    _, a, b, c, d, e = np.linalg.lstsq(design, logs, rcond=None)[0]
    hessian = np.array([[2 * c, d], [d, 2 * e]])
    if not (hessian[0, 0] < 0 and np.linalg.det(hessian) > 0):
        return None
    peak_u, peak_v = np.linalg.solve(hessian, [-a, -b])
    degrees = float(np.rad2deg(np.arctan2(peak_v, 1 + peak_u)))
    ratio = float(np.log(np.hypot(1 + peak_u, peak_v)))
    return (degrees, ratio) if abs(degrees) <= ANGLES[1] and abs(ratio) <= 0.3 else None


@dataclass(frozen=True, slots=True)
class ColourTuning:
    """For each unit: how much more it responds to the best hue than to grey of the same brightness, for a colour `CHROMA` away from grey; that
    hue in degrees; how much less than to grey it responds to the opposite hue; and how much more to white than to black."""

    gain: Floats
    hue: Floats
    opponent: Floats
    brightness: Floats


def colour_tuning(responses: Floats) -> ColourTuning:
    """The tuning to colour. `responses` has the shape (field, unit), in the order of `stimuli.colour_fields`."""
    hues, greys = responses[: len(HUES)], responses[len(HUES) :]
    middle = greys[GREYS.index(0.5)]
    waves = np.exp(1j * np.deg2rad(HUES))[:, None]
    first = ((hues - middle) * waves).mean(0) * 2
    hue = np.rad2deg(np.angle(first)) % 360
    return ColourTuning(_at(hues - middle, hue), hue, -_at(hues - middle, (hue + 180) % 360), greys[-1] - greys[0])


def _at(by_hue: Floats, hue: Floats) -> Floats:
    """The response to a hue of each unit, between those of its neighbours on the circle."""
    step = 360 / len(HUES)
    position = hue / step
    low = np.floor(np.nan_to_num(position)).astype(int) % len(HUES)
    share, units = position - np.floor(position), np.arange(by_hue.shape[1])
    value: Floats = by_hue[low, units] * (1 - share) + by_hue[(low + 1) % len(HUES), units] * share
    return value
