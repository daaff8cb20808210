"""Tables with a row a unit, whoever added them: layer pages sort by their numbers, unit pages list them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from unitscope.atlas import Atlas
from unitscope.atlas.tables import ATTRIBUTION_METHODS, CORE_TABLES, TableSpec
from unitscope.errors import AtlasError
from unitscope.web.page_records import ColumnValue, SortKey, TableOfUnit
from unitscope.web.sort_keys import sort_key

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnitTables:
    """The tables of an atlas that have a row a unit, beside `units` itself; `errors` says by name which can't be read, and why."""

    specs: Sequence[TableSpec]
    errors: Mapping[str, str]

    @classmethod
    def of(cls, atlas: Atlas) -> "UnitTables":
        added = [table for table in atlas.tables() if table.name not in CORE_TABLES and table.name not in ATTRIBUTION_METHODS]
        readable = [table.spec for table in added if table.spec is not None and table.problem is None]
        specs = [spec for spec in readable if set(spec.key) == {"layer", "unit"} and spec.numeric_columns]
        return cls(specs, {table.name: table.problem for table in added if table.problem is not None})

    @property
    def sort_keys(self) -> list[SortKey]:
        """One for every column of numbers, named `TABLE.COLUMN`."""
        return [sort_key(spec, column) for spec in self.specs for column in spec.numeric_columns]

    def of_layer(self, atlas: Atlas, layer: str) -> "LayerTables":
        """The rows of one layer."""
        values: dict[str, list[float | None]] = {}
        errors = dict(self.errors)
        for spec in self.specs:
            try:
                units = atlas.units(layer, joined=[spec.name])
            except AtlasError as error:
                LOG.debug("the table %s can't be shown", spec.name, exc_info=True)
                errors[spec.name] = str(error)
                continue
            for column in spec.numeric_columns:
                name = f"{spec.name}.{column.name}"
                values[name] = [_finite(value) for value in units[name].to_pylist()]
        return LayerTables(self.specs, values, errors)


@dataclass(frozen=True, slots=True)
class LayerTables:
    """What tables of units say of one layer: by `TABLE.COLUMN` a value for each unit, None where there is none."""

    specs: Sequence[TableSpec]
    values: Mapping[str, Sequence[float | None]]
    errors: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))

    def values_of(self, unit: int) -> dict[str, float | None]:
        """By `TABLE.COLUMN`."""
        return {name: of_units[unit] for name, of_units in self.values.items()}

    def tables_of(self, unit: int) -> list[TableOfUnit]:
        """What each table says of a unit; tables that have no value for it are left out."""
        tables = []
        for spec in self.specs:
            names = [(column, f"{spec.name}.{column.name}") for column in spec.numeric_columns]
            columns = [
                ColumnValue(column.name, column.description, self.values[name][unit])
                for column, name in names
                if name in self.values and self.values[name][unit] is not None
            ]
            if columns:
                tables.append(TableOfUnit(spec.name, spec.description, columns))
        return tables


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
