"""What pages say of the names of units: the units that share one, and what is more general or more special."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from unitscope.atlas import Atlas
from unitscope.atlas.meaning import OUTPUT_CLASS, VISUAL, concept_id
from unitscope.atlas.tables import NAMES
from unitscope.errors import AtlasError
from unitscope.web.page_records import ConceptLink, ConceptUnit
from unitscope.wordnet import Noun, imagenet_nouns

MAX_NARROWER = 24


@dataclass(frozen=True)
class NamedUnits:
    """The names that units have, by id: a node of the class tree, a label, or, for other names, the name itself."""

    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, Sequence[ConceptUnit]] = field(default_factory=dict)

    @classmethod
    def of(cls, atlas: Atlas) -> "NamedUnits":
        """Those of the table of names, where it can be read, and of the network's classes."""
        names: dict[str, str] = {}
        units: dict[str, list[ConceptUnit]] = {}

        def add(node: str, name: str, unit: ConceptUnit) -> None:
            names.setdefault(node, name)
            units.setdefault(node, []).append(unit)

        class_layers = set(atlas.manifest.get("class_layers", ()))
        for row in _named_rows(atlas):
            if row["layer"] not in class_layers:
                evidence = row["explained"] if row["kind"] == VISUAL else row["r_b"]
                unit = ConceptUnit(row["layer"], row["unit"], row["kind"], evidence)
                add(concept_id(row["name"], row["node"], row["kind"]), row["name"], unit)
        classes = atlas.table("classes").to_pylist() if class_layers else []
        for layer in atlas.layers:
            for row in classes if layer.name in class_layers else ():
                if row["class"] < layer.units:
                    unit = ConceptUnit(layer.name, row["class"], OUTPUT_CLASS, None)
                    add(concept_id(row["name"], row["node"], OUTPUT_CLASS), row["name"], unit)
        originals = {layer.name: layer.shares_units_of or layer.name for layer in atlas.layers}
        return cls(names, {node: _once(sorted(of_node, key=_evidence), originals) for node, of_node in units.items()})

    def broader(self, node: str) -> list[ConceptLink]:
        """Names of units above one in WordNet, the nearest first."""
        return self._links(_reached(node, {node: noun.parents for node, noun in imagenet_nouns().items()}))

    def narrower(self, node: str) -> list[ConceptLink]:
        """Names of units below one in WordNet, those of most units first."""
        links = self._links(_reached(node, self._children))
        return sorted(links, key=lambda link: -link.units)[:MAX_NARROWER]

    def definition(self, node: str) -> str:
        """WordNet's, empty where it has none."""
        noun: Noun | None = imagenet_nouns().get(node)
        return noun.definition if noun else ""

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for node, noun in imagenet_nouns().items():
            for parent in noun.parents:
                children.setdefault(parent, []).append(node)
        return children

    def _links(self, nodes: Sequence[str]) -> list[ConceptLink]:
        return [ConceptLink(node, self.names[node], len(self.units[node])) for node in nodes if node in self.names]


def _once(units: Sequence[ConceptUnit], originals: Mapping[str, str]) -> list[ConceptUnit]:
    """The first of each unit, which several layers may show; `originals` leads from a layer to the one whose units it shows."""
    once: dict[tuple[str, int], ConceptUnit] = {}
    for unit in units:
        once.setdefault((originals.get(unit.layer, unit.layer), unit.unit), unit)
    return list(once.values())


def _named_rows(atlas: Atlas) -> list[dict[str, Any]]:
    try:
        table = atlas.table(NAMES.name, columns=("layer", "unit", "name", "kind", "node", "r_b", "explained"))
    except AtlasError:  # there is none, or pages say why it can't be read
        return []
    rows: list[dict[str, Any]] = table.filter(table["name"].is_valid()).to_pylist()
    return rows


def _evidence(unit: ConceptUnit) -> float:
    return -2.0 if unit.evidence is None else -unit.evidence


def _reached(start: str, links: Mapping[str, Sequence[str]]) -> list[str]:
    """All that links lead to from a node, near ones first."""
    reached: dict[str, None] = {}
    waiting = list(links.get(start, ()))
    while waiting:
        node = waiting.pop(0)
        if node not in reached:
            reached[node] = None
            waiting += links.get(node, ())
    return list(reached)
