"""Numbers, boxes and curves as pages write them: with a true minus. What scripts and other programs read has a hyphen."""

from collections.abc import Sequence
from math import ceil, floor, log10

from markupsafe import Markup

from unitscope.records import Box
from unitscope.web.page_records import Histogram


def number(value: float | None) -> str:
    """A value in three digits.

    >>> number(12.3456), number(-0.5), number(None)
    ('12.3', '−0.5', '–')
    """
    return "–" if value is None else with_minus(f"{value:.3g}")


def number_or_count(value: float | None) -> str:
    """A value in three digits, or a whole number in all of its digits.

    >>> number_or_count(2604.0), number_or_count(-0.5)
    ('2,604', '−0.5')
    """
    is_count = value is not None and 1000 <= value < 1e15 and value == int(value)
    return f"{value:,.0f}" if is_count else number(value)


def decimals(value: float) -> str:
    """A correlation or the like, with two digits after the point.

    >>> decimals(-0.128)
    '−0.13'
    """
    return with_minus(f"{value:.2f}")


def signed(value: float) -> str:
    """A value in three digits, with its sign.

    >>> signed(12.3456), signed(-0.5), signed(0)
    ('+12.3', '−0.5', '0')
    """
    return f"{'+' if value > 0 else ''}{number(value)}"


def with_minus(text: str) -> str:
    """A written number with a true minus for each hyphen."""
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share in per cent, in two digits at most.

    >>> percent(0.25), percent(-0.0004), percent(0)
    ('25 %', '−0.04 %', '0 %')
    """
    if share is None:
        return "–"
    return with_minus(f"{share * 100:.0f} %" if abs(share) >= 0.1 or share == 0 else f"{share * 100:.2g} %")


def probability(share: float) -> str:
    """A probability in per cent, with as many nines as it has, since certain predictions differ in those.

    >>> probability(0.25), probability(0.9987), probability(0.99996), probability(1.0), probability(0.0004)
    ('25 %', '99.9 %', '99.996 %', '100 %', '0.04 %')
    """
    rest = (1 - share) * 100
    return f"{share * 100:.{ceil(-log10(rest))}f} %" if 1e-6 <= rest < 1 else percent(share)


def signed_percent(share: float) -> str:
    """A share in per cent, with its sign.

    >>> signed_percent(0.25), signed_percent(-0.25)
    ('+25 %', '−25 %')
    """
    return f"{'+' if share > 0 else ''}{percent(share)}"


def curve_path(values: list[float | None]) -> str:
    """The SVG path of a curve from 0 to 1 in a box of 100 × 50; values that aren't there leave a gap.

    >>> curve_path([0, None, 1])
    'M0 50M100 0'
    """
    points, is_open = [], False
    for index, value in enumerate(values):
        if value is not None:
            points.append(
                f"{'L' if is_open else 'M'}{px(100 * index / max(len(values) - 1, 1))} {px(50 * (1 - min(max(value, 0), 1)))}"
            )
        is_open = value is not None
    return "".join(points)


def first_and_last(values: list[float | None]) -> str:
    """The first and the last number of a curve, in words.

    >>> first_and_last([0.25, None, 1.0]), first_and_last([None])
    ('0.25 → 1', '–')
    """
    known = [value for value in values if value is not None]
    return f"{number(known[0])} → {number(known[-1])}" if known else "–"


def ticks(histogram: Histogram, most: int = 5) -> list[float]:
    """Round numbers along a histogram's axis, so many at most.

    >>> ticks(Histogram(-0.7, 3.3, [1, 2])), ticks(Histogram(2, 2, [5]))
    ([0.0, 1.0, 2.0, 3.0], [2])
    """
    width = histogram.highest - histogram.lowest
    if not width > 0:
        return [histogram.lowest]
    exact = width / most
    power = 10.0 ** floor(log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact)
    first, last = ceil(histogram.lowest / step), floor(histogram.highest / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def told_apart(values: Sequence[float]) -> list[str]:
    """Different values in three digits, or in as many as tell them apart.

    >>> told_apart([0.0, 12.3456]), told_apart([0.1805, 0.181, 0.1815])
    (['0', '12.3'], ['0.1805', '0.181', '0.1815'])
    """
    texts = ([f"{value:.{digits}g}" for value in values] for digits in range(3, 18))
    return [with_minus(text) for text in next(written for written in texts if len(set(written)) == len(written))]


def px(length: float) -> str:
    """A length for a drawing: two digits after the point at most."""
    return f"{length:.2f}".rstrip("0").rstrip(".")


def coordinates(box: Box) -> str:
    """A box as SVG has it in a `viewBox`: left, top, width and height.

    >>> coordinates(Box(1, 2.5, 3, 4))
    '2.5 1 1.5 2'
    """
    return f"{px(box.left)} {px(box.top)} {px(box.width)} {px(box.height)}"


def rectangle(box: Box) -> Markup:
    """A box as the attributes of a `rect`."""
    return Markup(f'x="{px(box.left)}" y="{px(box.top)}" width="{px(box.width)}" height="{px(box.height)}"')


def sortable(value: float | None) -> str:
    """A value to sort by, in six digits; nothing where there is none."""
    return "" if value is None else f"{value:.6g}"


def bar_path(histogram: Histogram) -> str:
    """The SVG path of a histogram's bars in a box of 100 × 40."""
    highest_count, width = max(histogram.counts), 100 / len(histogram.counts)
    across = px(width - 0.4)
    heights = [px(38 * count / highest_count) if count else None for count in histogram.counts]
    return "".join(
        [f"M{px(index * width + 0.2)} 40v-{height}h{across}v{height}z" for index, height in enumerate(heights) if height]
    )
