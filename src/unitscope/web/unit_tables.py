"""Tables with a row a unit, whoever added them: layer pages sort by their numbers, unit pages list them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unitscope.atlas import Atlas
from unitscope.atlas.tables import ATTRIBUTION_METHODS, CORE_TABLES, Column, TableSpec
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
        tables: list[NumericTable] = []
        errors = dict(self.errors)
        for spec in self.specs:
            try:
                units = atlas.units(layer, joined=[spec.name])
            except AtlasError as error:
                LOG.debug("the table %s can't be shown", spec.name, exc_info=True)
                errors[spec.name] = str(error)
                continue
            columns = spec.numeric_columns
            tables.append(NumericTable(spec, columns, {name: _finite(units[name]) for name in _names(spec, columns)}))
        return LayerTables(tables, errors)


@dataclass(frozen=True, slots=True)
class NumericTable:
    """The numbers that a table has of a layer's units: by `TABLE.COLUMN` a value a unit, NaN where there is none."""

    spec: TableSpec
    columns: Sequence[Column]
    numbers: Mapping[str, NDArray[np.float64]]

    def values_of(self, unit: int) -> list[float | None]:
        """The value of each column for a unit, None where there is none."""
        values = [float(of_units[unit]) for of_units in self.numbers.values()]
        return [None if isnan(value) else value for value in values]


@dataclass(frozen=True, slots=True)
class LayerTables:
    """What tables of units say of one layer; `errors` says by name which can't be read, and why."""

    tables: Sequence[NumericTable]
    errors: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many units there are, as far as a table says it."""
        return max((len(of_units) for table in self.tables for of_units in table.numbers.values()), default=0)

    @property
    def columns(self) -> list[str]:
        """The columns, as `TABLE.COLUMN`."""
        return [name for table in self.tables for name in table.numbers]

    def values_of(self, unit: int) -> dict[str, float | None]:
        """By `TABLE.COLUMN`."""
        return {name: value for table in self.tables for name, value in zip(table.numbers, table.values_of(unit), strict=True)}

    def tables_of(self, unit: int) -> list[TableOfUnit]:
        """What each table says of a unit; tables that have no value for it are left out."""
        tables = []
        for table in self.tables:
            values = zip(table.columns, table.values_of(unit), strict=True)
            known = [ColumnValue(column.name, column.description, value) for column, value in values if value is not None]
            if known:
                tables.append(TableOfUnit(table.spec.name, table.spec.description, known))
        return tables


def _names(spec: TableSpec, columns: Sequence[Column]) -> list[str]:
    return [f"{spec.name}.{column.name}" for column in columns]


def _finite(numbers: pa.ChunkedArray) -> NDArray[np.float64]:
    values = numbers.cast(pa.float64(), safe=False).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)
