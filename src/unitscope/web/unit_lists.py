"""The units that a layer's page lists: which ones, and in which order, as its address says. unit-grid.js does the same in a browser."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from unitscope.records import Layer
from unitscope.web.numbers import sortable
from unitscope.web.page_records import LayerPage, UnitEntry
from unitscope.wordnet import in_words

BY_NUMBER, SCORE = "unit", "scores.predictability"
ORDERS = ("ascending", "descending")
SHOWN: dict[str, Callable[[UnitEntry], bool]] = {
    "all": lambda _: True,
    "not-dead": lambda entry: not entry.statistics.dead,
    "dead": lambda entry: entry.statistics.dead,
    "always-active": lambda entry: entry.statistics.activation_rate == 1,
    "no-preference": lambda entry: entry.statistics.tie is not None and entry.statistics.tie.wholly,
    "tied": lambda entry: entry.statistics.tie is not None,
    "facets": lambda entry: entry.several_facets,
}
"""What an address may ask for as `show`. Favourites are known to the browser alone, which names them as `units`."""


@dataclass(frozen=True, slots=True)
class UnitList:
    """Which units of a layer, and in which order.

    `sort` is a sort key's column, or `unit`. Dead units, and those without a value, come last in either order; among values that are equal
    in six digits, which is what pages sort by, the lower number comes first. `label` and `name` are parts of texts, in any case; `score` is
    the least predictability, and asks for nothing where it is 0. Of `units` all are asked for where it is None.
    """

    sort: str = BY_NUMBER
    is_descending: bool = False
    show: str = "all"
    label: str = ""
    name: str = ""
    score: float = 0
    units: frozenset[int] | None = None

    @classmethod
    def of(cls, query: Mapping[str, str], page: LayerPage) -> "UnitList":
        """What a query asks for of that page. Raises `ValueError` for what the page doesn't have."""
        units = frozenset(units_asked_for(page.layer, query["units"])) if "units" in query else None
        return replace(cls.asked_for(query, [key.column for key in page.sort_keys]), units=units)

    @classmethod
    def asked_for(cls, query: Mapping[str, str], columns: Sequence[str]) -> "UnitList":
        """What a query asks for of units that have these columns to be sorted by. Raises `ValueError` for what they don't have."""
        sort, show, score = query.get("sort", BY_NUMBER), query.get("show", "all"), query.get("score", "0")
        order = query.get("order", "ascending" if sort == BY_NUMBER else "descending")
        _check_one_of("sort", sort, [BY_NUMBER, *columns])
        _check_one_of("order", order, ORDERS)
        _check_one_of("show", show, list(SHOWN))
        if not re.fullmatch(r"[0-9]{0,9}\.?[0-9]{0,20}", score) or not re.search("[0-9]", score):
            raise ValueError(f"score={score!r} is no number from 0 on")
        if float(score) and SCORE not in columns:
            raise ValueError("units have no scores; 'unitscope score' makes them")
        label, name = (query.get(text, "").strip().lower() for text in ("label", "name"))
        return cls(sort, order == "descending", show, label, name, float(score))

    def entries(self, page: LayerPage) -> list[UnitEntry]:
        """The units of the page that are asked for, in order."""
        chosen = [entry for entry in page.units if self.has(entry)]
        if self.sort == BY_NUMBER:
            return sorted(chosen, key=lambda entry: entry.statistics.unit, reverse=self.is_descending)
        return sorted(chosen, key=self.place)

    def place(self, entry: UnitEntry) -> tuple[bool, float, int]:
        """By what units are sorted, the lowest first, where it isn't their number."""
        value = None if entry.statistics.dead else _sorted_value(entry, self.sort)
        return value is None, (-1 if self.is_descending else 1) * (value or 0), entry.statistics.unit

    def has(self, entry: UnitEntry) -> bool:
        """Whether the unit is asked for."""
        return (
            (self.units is None or entry.statistics.unit in self.units)
            and SHOWN[self.show](entry)
            and (not self.label or any(self.label in in_words(label).lower() for label in entry.labels))
            and (not self.name or self.name in (entry.name or "").lower())
            and (not self.score or ((value := _sorted_value(entry, SCORE)) is not None and value >= self.score))
        )


def is_usual_order(units: UnitList) -> bool:
    """True where addresses needn't name the order: the highest values first, and the lowest number."""
    return units.is_descending == (units.sort != BY_NUMBER)


def units_asked_for(layer: Layer, text: str) -> list[int]:
    """The units of a list, `3,1,7`, each once. Raises `ValueError` for what is no list of units of the layer."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise ValueError("units are numbers with commas between")
    units = list(dict.fromkeys(int(number) for number in text.split(",")))
    if max(units) >= layer.units:
        raise ValueError(f"layer {layer.name!r} has units 0 to {layer.units - 1}")
    return units


def _check_one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is none of {', '.join(known)}")


def _sorted_value(entry: UnitEntry, column: str) -> float | None:
    """As pages have it."""
    text = sortable(entry.value_of(column))
    return float(text) if text else None
