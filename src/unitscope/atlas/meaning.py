"""What an atlas knows of what its units respond to, in one place for sheets, figures and pages: name, evidence, score, facets."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from unitscope.atlas.reading import AtlasReader
from unitscope.atlas.tables import NAMES, SCORES
from unitscope.errors import AtlasError

OUTPUT_CLASS = "output class"
"""The kind of the name of a unit that is one of the network's classes."""
VISUAL = "visual"
"""The kind of the name of a unit that an angle or a colour explains better than a concept."""


def concept_id(name: str, node: str | None, kind: str | None) -> str:
    """By what the page of a name is found: a class that is called "red" is another thing than the colour."""
    return f"{VISUAL} {name}" if kind == VISUAL else node or name


@dataclass(frozen=True, slots=True)
class NamePiece:
    """A piece of the sentence that says what a unit is; `is_name` is true for names."""

    text: str
    is_name: bool = False


@dataclass(frozen=True, slots=True)
class UnitMeaning:
    """What is known of one unit; None where it isn't.

    `kind` says what `name` is: the `output class` that the unit is, a `class` or group of classes, a `text`, or `visual`; both are None
    where nothing holds on images that it was not chosen on. `nearest` came nearest, and the figures beside it are about that. `node` is the
    name's id, by which a group of classes is found. The other columns are those of the tables `names` and `scores`.
    """

    name: str | None = None
    kind: str | None = None
    node: str | None = None
    nearest: str | None = None
    r_b: float | None = None
    peaks_inside: int | None = None
    peaks: int | None = None
    base_rate: float | None = None
    explained: float | None = None
    predictability: float | None = None
    predictability_low: float | None = None
    predictability_high: float | None = None
    embedder: str | None = None
    facets: int | None = None

    @property
    def concept(self) -> str | None:
        """By what the page of its name is found."""
        return None if self.name is None else concept_id(self.name, self.node, self.kind)

    def sentence(self) -> list[NamePiece]:
        """What a student is told of the unit, in pieces. Empty where nothing is known."""
        pieces = self._name_pieces()
        if pieces and self.predictability is not None:
            text = f"; its patches tell an unseen image right {self.predictability * 100:.0f} times of 100"
            if self.predictability_low is not None and self.predictability_high is not None:
                text += f" ({self.predictability_low * 100:.0f} to {self.predictability_high * 100:.0f})"
            pieces.append(NamePiece(f"{text}, by {self.embedder}"))
        return [*pieces, NamePiece(".")] if pieces else []

    def _name_pieces(self) -> list[NamePiece]:
        if self.kind == OUTPUT_CLASS:
            return [NamePiece("is the network's class "), NamePiece(str(self.name), True)]
        if self.kind == VISUAL:
            explains = NamePiece(f", which explains {_percent(self.explained)} of its response")
            return [NamePiece("is tuned to "), NamePiece(str(self.name), True), explains]
        if self.kind is not None:
            return [NamePiece("responds to "), NamePiece(str(self.name), True), *self._evidence()]
        if self.nearest is not None:
            return [NamePiece("has no name that holds; nearest comes "), NamePiece(self.nearest, True), *self._evidence()]
        return [NamePiece("has no name")] if self.predictability is not None else []

    def _evidence(self) -> list[NamePiece]:
        evidence = []
        if self.peaks:
            evidence.append(f"{self.peaks_inside} of {self.peaks} patches")
        if self.r_b is not None:
            r = f"{self.r_b:.2f}".replace("-", "−")
            evidence.append(f"r = {r} on images it wasn't chosen on")
        if self.base_rate is not None:
            evidence.append(f"{_percent(self.base_rate)} of all images")
        return [NamePiece(f": {', '.join(evidence)}")] if evidence else []


def read_meanings(atlas: AtlasReader, layer: str) -> list[UnitMeaning]:
    """What is known of each unit of a layer. Tables that can't be read, or are stale, count as if they weren't there."""
    units = atlas.layer(layer).units
    rows: list[dict[str, Any]] = [{} for _ in range(units)]
    for spec in (NAMES, SCORES):
        try:
            table = atlas.units(layer, joined=(spec.name,))
        except AtlasError:
            continue
        prefix = f"{spec.name}."
        columns = [
            name for name in table.column_names if name.startswith(prefix) and name[len(prefix) :] in UnitMeaning.__slots__
        ]
        for row, values in zip(rows, table.select(columns).to_pylist(), strict=True):
            row |= {name[len(prefix) :]: _known(value) for name, value in values.items()}
    if layer in atlas.manifest.get("class_layers", ()):
        for row, output in zip(rows, _classes(atlas, units), strict=True):
            row |= {"name": output["name"], "kind": OUTPUT_CLASS, "node": output["node"]}
    return [UnitMeaning(**row) for row in rows]


def _classes(atlas: AtlasReader, count: int) -> Sequence[dict[str, Any]]:
    """Raises `AtlasError` where there is another number of classes than of units."""
    classes = sorted(atlas.table("classes").to_pylist(), key=lambda row: row["class"])
    if len(classes) != count:
        raise atlas.broken(f"it has {len(classes):,} classes for a layer of {count:,} units")
    return classes


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def _percent(share: float | None) -> str:
    if share is None:
        return "an unknown share"
    return f"{share * 100:.0f} %" if share >= 0.095 else f"{share * 100:.1f} %"
