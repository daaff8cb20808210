"""What an activation function does, found by giving it numbers: nothing is taken from its name (rules 1 and 5 of docs/exactness.md)."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unitscope.records import RECTIFIER, is_rectifier

LOG = logging.getLogger(__name__)

SMALL, LARGE = torch.logspace(-4, 0, 9, dtype=torch.float64), torch.logspace(0.95, 3, 12, dtype=torch.float64)
POSITIVE = torch.cat([SMALL, torch.linspace(1.125, 8, 56, dtype=torch.float64), LARGE])
GRID = torch.cat([-POSITIVE.flip(0), torch.zeros(1, dtype=torch.float64), POSITIVE])
"""Where functions are looked at: close around zero and where they bend, and up to a thousand in both directions."""
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How much of a value may be rounding, by the type that the network computes in: well above the type's epsilon (1.2e-7, 2.2e-16), since a
function may take several steps."""
COARSE_ROUNDING = 2e-2
"""The same in half precision; the epsilon of bfloat16 is 7.8e-3."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What follows the ranked value, as the `layers` table names it, and whether the function increases.

    A function that dips once below zero and increases from there on (GELU, SiLU) counts as one that increases.
    """

    name: str
    increases: bool


Function = Callable[[Tensor], Tensor]


def probe(function: Function, shape: tuple[int, ...], like: Tensor, name: str) -> Activation | None:
    """What the function does to inputs of that shape, for one image, in the type and on the device of `like`.

    It is named for what it does where it is silent at and below zero, and else as `name` says. None where it can't be tried: it gives
    no tensor of its input's shape.
    """
    results = _over_grid(function, ((1,) * (len(shape) - 1), *_inner_shapes(shape)), like)
    if results is None:
        return None
    values = results.flatten(1).double().cpu()
    rounding = ROUNDING.get(like.dtype, COARSE_ROUNDING)
    if not _increases(values, rounding):
        return Activation(RECTIFIER if _has_floor(values) else "none", increases=False)
    return Activation(_rectifier_name(values, rounding) or ("activation" if is_rectifier(name) else name), increases=True)


def is_pointwise_nonlinearity(function: Function, shape: tuple[int, ...], like: Tensor) -> bool:
    """True for a function that works on each number alone, and isn't a straight line."""
    results = _over_grid(function, _inner_shapes(shape), like)
    if results is None or results.isnan().all():
        return False
    grid = GRID.to(results).reshape(-1, *(1,) * (results.dim() - 1))
    if _is_straight(results, grid):
        return False
    indices = torch.randint(len(grid), results.shape, generator=torch.Generator().manual_seed(0)).to(results.device)
    shuffled = _apply(function, grid.expand_as(results).gather(0, indices))
    if shuffled is None:
        return False
    return torch.allclose(shuffled, results.gather(0, indices), rtol=COARSE_ROUNDING, atol=1e-4, equal_nan=True)


def _is_straight(results: Tensor, grid: Tensor) -> bool:
    """True where the results lie on a line between the first and the last, which are rounded as numbers of their size are. Infinite and
    missing numbers lie on no line."""
    values, points = results.cpu().double(), grid.cpu().double()  # some devices have no float64
    first, last = values[:1], values[-1:]
    line = first + (last - first) / (points[-1] - points[0]) * (points - points[0])
    rounding = 1e-4 + 4 * torch.finfo(results.dtype).eps * torch.maximum(first.abs(), last.abs())
    return bool(((values - line).abs() <= rounding + COARSE_ROUNDING * line.abs()).all())


def _over_grid(function: Function, inner_shapes: Iterable[tuple[int, ...]], like: Tensor) -> Tensor | None:
    """What the function makes of the grid, laid along the first dimension, in the first of these shapes that it takes."""
    grid = GRID.to(like.device, like.dtype)
    for inner in inner_shapes:
        if inner:
            results = _apply(function, grid.reshape(-1, *(1 for _ in inner)).expand(-1, *inner).clone())
            if results is not None:
                return results
    return None


def _inner_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """One cell for every channel, of which each may have a function of its own, wherever the channels are; or all cells."""
    inner = shape[1:]
    ones = (1,) * len(inner[1:])
    return list(dict.fromkeys(((*inner[:1], *ones), (*ones, *inner[-1:]), inner)))


def _apply(function: Function, inputs: Tensor) -> Tensor | None:
    """What the function gives; None where it fails, or gives no tensor of its input's shape."""
    shape = inputs.shape
    try:
        with torch.no_grad():
            result = function(inputs)
    except Exception:  # whatever a user's module raises for a shape that it doesn't expect
        LOG.debug("a function can't be probed on shape %s", tuple(shape), exc_info=True)
        return None
    return result if isinstance(result, Tensor) and result.shape == shape else None


def _increases(values: Float[Tensor, "grid function"], rounding: float) -> bool:
    """True where every function increases, or dips once and increases from there on; equal values in between are no fall."""
    if values.isnan().any():
        return False
    finite = values.nan_to_num(posinf=torch.finfo(torch.float64).max, neginf=torch.finfo(torch.float64).min)
    steps, slack = finite[1:] - finite[:-1], rounding * (0.1 + finite[1:].abs().maximum(finite[:-1].abs()))
    falls = steps < -slack
    lowest = finite.argmin(0)
    indices = torch.arange(len(steps))[:, None]
    falls_above_lowest = (falls & (indices >= lowest)).any(0)
    rises_below_lowest = ((steps > slack) & (indices < lowest)).any(0)
    dips = (finite[0] <= rounding) & (GRID[lowest] <= 0) & (finite[-1] > 0) & ~rises_below_lowest
    return bool((~falls_above_lowest & (~falls.any(0) | dips) & (finite[-1] > finite[0])).all())


def _has_floor(values: Float[Tensor, "grid function"]) -> bool:
    """True where what comes out is never below zero, and zero for all that goes in on one side of zero: there the unit is silent."""
    sides = (GRID <= 0, GRID >= 0)
    return bool((values >= 0).all() and torch.stack([(values[side] == 0).all(0) for side in sides]).any(0).all())


def _rectifier_name(values: Float[Tensor, "grid function"], rounding: float) -> str:
    """The name of a function that is zero at and below zero, and positive somewhere above; empty for others."""
    below, above = values[GRID <= 0], values[GRID > 0]
    if (below != 0).any() or (above < 0).any() or not (above > 0).any(0).all():
        return ""
    inputs, highest = GRID[GRID > 0][:, None], float(above.max())
    for name, expected in (("relu", inputs), (f"relu{highest:g}", inputs.clamp(max=highest))):
        if torch.allclose(above, expected.expand_as(above), rtol=rounding, atol=rounding):
            return name
    return RECTIFIER
