"""What an atlas knows of what its units respond to, in one place for sheets, figures and pages: name, evidence, score, facets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, isfinite, sqrt
from typing import Any

from unitscope.atlas.reading import AtlasReader
from unitscope.atlas.tables import NAMES, SCORES
from unitscope.errors import AtlasError

OUTPUT_CLASS = "output class"
"""The kind of the name of a unit that is one of the network's classes."""
VISUAL = "visual"
"""The kind of the name of a unit that an angle or a colour explains better than a concept."""

PERHAPS = "perhaps"
"""Said of a name that some unit of the atlas would have, were responses shuffled among the images, more often than once in 20 atlases."""
WEAKLY = "weakly"
"""Said of a name that goes with little of the response, however sure it is."""
MAX_CHANCE = 0.05
"""More units than this expected by chance to go with a name so well, and the name is doubted (Bonferroni)."""
MIN_EXPLAINED = 0.1
"""The share of the response's variance below which a visual tuning has no words, and other names are weak."""
TUNING_IMAGES = 200
"""What a visual tuning explains is measured on so many images of the sample at most, half of them in half b."""


def concept_id(name: str, node: str | None, kind: str | None) -> str:
    """By what the page of a name is found: a class that is called "red" is another thing than the colour."""
    return f"{VISUAL} {name}" if kind == VISUAL else node or name


@dataclass(frozen=True, slots=True)
class NamePiece:
    """A piece of the sentence that says what a unit is; `is_name` is true for names, `term` is the entry of the glossary that explains it."""

    text: str
    is_name: bool = False
    term: str | None = None


@dataclass(frozen=True, slots=True)
class UnitMeaning:
    """What is known of one unit; None where it isn't.

    `kind` says what `name` is: the `output class` that the unit is, a `class` or group of classes, a `text`, or `visual`; both are None
    where nothing holds on images that it was not chosen on. `nearest` came nearest, and the figures beside it are about that. `node` is the
    name's id, by which a group of classes is found. `chance` is how many units of the atlas would be expected to go with a name so well,
    were responses shuffled among the images. The other columns are those of the tables `names` and `scores`.
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
    chance: float | None = None

    @property
    def belief(self) -> str | None:
        """How the name is said: `perhaps`, `weakly`, or, where it is neither doubted nor weak or there is none, None."""
        if self.name is None or self.kind == OUTPUT_CLASS:
            return None
        if self.chance is not None and self.chance > MAX_CHANCE:
            return PERHAPS
        share = self.explained if self.kind == VISUAL else None if self.r_b is None else self.r_b**2
        return WEAKLY if share is not None and share < MIN_EXPLAINED else None

    @property
    def concept(self) -> str | None:
        """By what the page of its name is found."""
        return None if self.name is None else concept_id(self.name, self.node, self.kind)

    def sentence(self) -> list[NamePiece]:
        """What a student is told of the unit, in pieces. Empty where nothing is known."""
        pieces = self._name_pieces()
        if pieces and self.predictability is not None:
            text = f" {self.predictability * 100:.0f} times of 100 ("
            if self.predictability_low is not None and self.predictability_high is not None:
                text += f"{self.predictability_low * 100:.0f} to {self.predictability_high * 100:.0f}; "
            told = NamePiece("tell an unseen image right", term="predictability")
            judge = NamePiece(str(self.embedder), term="embedder")
            pieces += [NamePiece("; its patches "), told, NamePiece(f"{text}chance is 50), by "), judge]
        return [*pieces, NamePiece(".")] if pieces else []

    def _name_pieces(self) -> list[NamePiece]:
        if self.kind == OUTPUT_CLASS:
            return [NamePiece("is the network's class "), NamePiece(str(self.name), True)]
        belief = [NamePiece(self.belief, term=self.belief), NamePiece(" ")] if self.belief is not None else []
        if self.kind == VISUAL:
            explains = [NamePiece(", which "), NamePiece(f"explains {_percent(self.explained)}", term="explained")]
            tuned = [NamePiece("is "), *belief, NamePiece("tuned to "), NamePiece(str(self.name), True)]
            return [*tuned, *explains, NamePiece(" of its response")]
        if self.kind is not None:
            return [*belief, NamePiece("responds to "), NamePiece(str(self.name), True), *self._evidence()]
        unnamed = [NamePiece("has no "), NamePiece("name", term="name")]
        if self.nearest is not None:
            return [*unnamed, NamePiece(" that holds; nearest comes "), NamePiece(self.nearest, True), *self._evidence()]
        return unnamed if self.predictability is not None else []

    def _evidence(self) -> list[NamePiece]:
        evidence: list[list[NamePiece]] = []
        if self.peaks:
            by_chance = "" if self.base_rate is None else f" ({self.peaks * self.base_rate:.1f} by chance)"
            evidence.append([NamePiece(f"{self.peaks_inside} of {self.peaks} patches from its images{by_chance}")])
        if self.r_b is not None:
            r = f"{self.r_b:.2f}".replace("-", "−")
            evidence.append([NamePiece("r", term="correlation"), NamePiece(f" = {r} on images it wasn't chosen on")])
        return [piece for number, pieces in enumerate(evidence) for piece in (NamePiece(", " if number else ": "), *pieces)]


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
        known = (*UnitMeaning.__slots__, "p_value")
        columns = [name for name in table.column_names if name.startswith(prefix) and name[len(prefix) :] in known]
        for row, values in zip(rows, table.select(columns).to_pylist(), strict=True):
            row |= {name[len(prefix) :]: _known(value) for name, value in values.items()}
    if layer in atlas.manifest.get("class_layers", ()):
        for row, output in zip(rows, _classes(atlas, units), strict=True):
            row |= {"name": output["name"], "kind": OUTPUT_CLASS, "node": output["node"]}
    for row in rows:
        row["chance"] = _chance(row, row.pop("p_value", None), atlas)
    return [UnitMeaning(**row) for row in rows]


def _chance(row: Mapping[str, Any], p_value: float | None, atlas: AtlasReader) -> float | None:
    """How many units of the atlas would be expected to go so well with a name, were responses shuffled among the images; None without a name."""
    if row.get("kind") == VISUAL and row.get("explained") is not None:
        images = min(TUNING_IMAGES, int(atlas.manifest.get("sample", 0)), int(atlas.manifest["read"])) / 2
        p_value = tuning_p_value(row["explained"], images)
    return None if p_value is None or row.get("name") is None else p_value * sum(layer.units for layer in atlas.layers)


def tuning_p_value(explained: float, images: float) -> float:
    """An upper bound of the chance that a model which wasn't fitted on these images explains so much, were responses shuffled among them.

    A model that explains that share has a correlation of its root with the response at least, and under permutation a correlation has the
    variance 1 / (images - 1); the tail is the normal one.
    """
    return erfc(sqrt(explained * max(images - 1, 0) / 2)) / 2


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
