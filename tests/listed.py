"""An atlas of units to list: dead ones, some that tie, some always active, with names and scores of which some are missing and some nearly equal."""

from pathlib import Path

import pyarrow as pa
import torch
from photographs import write_photographs
from torch import nn

import unitscope
from unitscope.atlas import Atlas, write_table
from unitscope.atlas.tables import NAMES, SCORES, TableSpec
from unitscope.records import Preprocessing

UNITS, DEAD, CONSTANT, ACTIVE = 24, (3, 7), 11, (5, 14)
LABELS = ("cat", "dog", "<b>&quot;fish")
NEARLY_EQUAL = {9: 0.7000001, 2: 0.7000002, 17: 0.7000003}
"""Predictabilities that are one number in six digits, as pages have them."""
AS_IT_IS = Preprocessing(None, (24, 24), (0.5,) * 3, (0.25,) * 3)


def listed_network() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    first, second = nn.Conv2d(3, UNITS, 3, padding=1), nn.Conv2d(UNITS, 6, 3, padding=1)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
        first.bias[list(DEAD)] = -1000
        first.bias[list(ACTIVE)] = 1000
        first.weight[CONSTANT], first.bias[CONSTANT] = 0, 1
    return nn.Sequential(first, nn.ReLU(), second).eval()


def listed_atlas(folder: Path) -> Atlas:
    """Layer `1` has 24 units behind a rectifier; nothing rectifies layer `2`."""
    photographs = write_photographs(folder / "photographs", 24, (24, 24), LABELS)
    atlas = unitscope.scan(listed_network(), photographs, folder / "atlas", preprocess=AS_IT_IS)
    scores: list[dict[str, object]] = [
        {"predictability": NEARLY_EQUAL.get(unit, round(0.4 + 0.02 * (unit * 7 % 24), 2)), "facets": 1 + (unit % 5 == 0)}
        for unit in range(UNITS)
    ]
    for unit in (4, 8, 20):
        scores[unit] = {"predictability": None, "facets": None}
    names = [
        {
            "name": None if unit in DEAD else name,
            "kind": "class",
            "r_b": None if unit in DEAD else 0.1 * unit - 1,
            "p_value": float(unit % 4 == 1),
        }
        for unit, name in enumerate((None, "Dog", "dogs & cats", "stripes") * 6)
    ]
    _write(atlas, SCORES, scores)
    _write(atlas, NAMES, names)
    return Atlas(atlas.folder)


NAMED = (300, 220)
"""Units of two layers that have one name."""


def named_atlas(folder: Path) -> Atlas:
    """Layers `0` and `1`, all of whose units are named *stripes*: the higher the number, the better the evidence."""
    photographs = write_photographs(folder / "photographs", 24, (24, 24), LABELS)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, NAMED[0], 3), nn.Conv2d(NAMED[0], NAMED[1], 3)).eval()
    atlas = unitscope.scan(network, photographs, folder / "atlas", preprocess=AS_IT_IS)
    ordinary = {column.name: 1 if column.is_number else None for column in NAMES.columns}
    rows = [
        ordinary | {"layer": str(layer), "unit": unit, "name": "stripes", "kind": "class", "r_b": evidence_of(layer, unit)}
        for layer, units in enumerate(NAMED)
        for unit in range(units)
    ]
    write_table(pa.Table.from_pylist(rows, schema=NAMES.schema), NAMES, atlas)
    return Atlas(atlas.folder)


def evidence_of(layer: int, unit: int) -> float:
    return 0.001 * (2 * unit + layer)


def _write(atlas: Atlas, spec: TableSpec, rows: list[dict[str, object]]) -> None:
    """A row for each unit; other numbers are 1."""
    ordinary = {column.name: 1 if column.is_number else None for column in spec.columns}
    content = [ordinary | {"layer": "1", "unit": unit} | row for unit, row in enumerate(rows)]
    write_table(pa.Table.from_pylist(content, schema=spec.schema), spec, atlas)
