"""Lists of units of all layers: those that an address asks for, in one order, as a page and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from heapq import nsmallest
from urllib.parse import urlencode

import pyarrow as pa

from unitscope.records import Layer
from unitscope.web.addresses import slug
from unitscope.web.downloads import table_of
from unitscope.web.numbers import number
from unitscope.web.page_records import LayerPage, ListedUnit, UnitEntry, UnitsPage
from unitscope.web.pages import PageBuilder
from unitscope.web.sort_keys import SORT_KEYS
from unitscope.web.unit_lists import BY_NUMBER, UnitList, is_usual_order
from unitscope.wordnet import in_words

MAX_UNITS = 1 << 18
"""Of how many units a list is made: some seconds' work."""
MAX_LISTED = 5000
"""Of how many of them a page has the first; tables have all."""
MAX_QUERY_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class NetworkList:
    """Which units of the network: those of `units`, in layers whose names have the letters `layer`, in any case.

    Where they are sorted by number, layers come in call order; among equal values the earlier layer comes first, then the lower number.
    """

    units: UnitList
    layer: str = ""

    @property
    def asked(self) -> dict[str, str]:
        """What an address has to ask for, and no more."""
        units = self.units
        order = {} if is_usual_order(units) else {"order": "descending" if units.is_descending else "ascending"}
        score = {"score": f"{Decimal(str(units.score)):f}"} if units.score else {}
        texts = {"layer": self.layer, "label": units.label, "name": units.name}
        choice = {name: value for name, value in (("sort", units.sort), ("show", units.show)) if value not in (BY_NUMBER, "all")}
        return choice | order | score | {name: text for name, text in texts.items() if text}

    @property
    def query(self) -> str:
        return urlencode(self.asked)

    def place(self, layer_index: int, entry: UnitEntry) -> tuple[bool, float, int, int]:
        """By what units are sorted, the lowest first."""
        if self.units.sort == BY_NUMBER:
            sign = -1 if self.units.is_descending else 1
            return False, 0, sign * layer_index, sign * entry.statistics.unit
        is_last, value, unit = self.units.place(entry)
        return is_last, value, layer_index, unit


class NetworkLists:
    """Makes the lists of one atlas."""

    def __init__(self, pages: PageBuilder) -> None:
        self._pages = pages

    def asked_for(self, query: Mapping[str, str]) -> NetworkList:
        """What a query asks for; what it leaves empty counts as absent. Raises `ValueError` for what the atlas doesn't have, and for layers
        with too many units."""
        filled_in = {name: text for name, text in query.items() if text.strip()}
        if sum(map(len, filled_in.values())) > MAX_QUERY_LENGTH:
            raise ValueError(f"a question has up to {MAX_QUERY_LENGTH:,} letters")
        units = UnitList.asked_for(filled_in, [key.column for key in self._pages.network_sort_keys])
        asked = NetworkList(units, filled_in.get("layer", "").strip().lower())
        count = sum(layer.units for layer in self._layers(asked))
        if count > MAX_UNITS:
            raise ValueError(f"these layers have {count:,} units; name layers that have up to {MAX_UNITS:,}")
        return asked

    def page(self, asked: NetworkList) -> UnitsPage:
        """The first units of a list."""
        queries, layers = self._pages.queries, self._layers(asked)
        rows = [
            (asked.place(queries.layer_index(page.layer.name), entry), _listed(page.layer.name, entry, asked.units.sort))
            for page in self._chosen(asked, layers)
            for entry in page.units
        ]
        return UnitsPage(
            "units.html", self._pages.atlas_summary, asked.asked, self._pages.network_sort_keys,
            sum(queries.unit_counts.values()), len(rows), [unit for _, unit in nsmallest(MAX_LISTED, rows)],
            sorted(set(queries.concepts.names.values())), sorted(map(in_words, queries.labels)),
        )  # fmt: skip

    def table(self, asked: NetworkList) -> pa.Table:
        """All units of a list, with the columns of layers' tables; of numbers that a layer lacks there are none."""
        index = self._pages.queries.layer_index
        pages = list(self._chosen(asked, self._layers(asked)))
        places = [asked.place(index(page.layer.name), entry) for page in pages for entry in page.units]
        if not pages:
            raise ValueError(f"no layer's name has {asked.layer!r}")
        table = pa.concat_tables([table_of(page) for page in pages], promote_options="default")
        return table.take(pa.array(sorted(range(len(places)), key=places.__getitem__), pa.int64()))

    def _layers(self, asked: NetworkList) -> list[Layer]:
        return [layer for layer in self._pages.queries.layers if asked.layer in layer.name.lower()]

    def _chosen(self, asked: NetworkList, layers: Sequence[Layer]) -> Iterator[LayerPage]:
        """The pages of layers with those of their units alone that are asked for."""
        for layer in layers:
            page = self._pages.layer_page(slug(layer.name))
            if page is not None:
                yield replace(page, units=[entry for entry in page.units if asked.units.has(entry)])


def _listed(layer: str, entry: UnitEntry, sort: str) -> ListedUnit:
    column = SORT_KEYS[0].column if sort == BY_NUMBER else sort
    value = entry.value_of(column)
    caption = "dead" if entry.statistics.dead else number(value)
    return ListedUnit(layer, entry.statistics.unit, entry.name, entry.belief, entry.statistics.dead, value, caption)
