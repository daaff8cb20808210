"""What pages say of what units are for: effects on classes, knock-outs, mistakes and circuits. `/api` gives them as JSON."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trust:
    """How far the effects of a layer's units can be believed: `exact` where only linear operations follow; else `r`, the correlation of first
    order with real knock-outs, None where nobody tried."""

    exact: bool
    r: float | None
    knockouts: int


@dataclass(frozen=True, slots=True)
class ClassEffect:
    """What a unit does to a class: how far its score would fall without the unit, the mean over the class's images."""

    position: int
    name: str
    effect: float
    standard_error: float | None
    share: float
    images: int


@dataclass(frozen=True, slots=True)
class Knockout:
    """What taking units away did to a class: a row of the table `knockouts`, with the class's name."""

    layer: str
    units: str
    replacement: str
    position: int
    name: str
    images: int
    logit_drop: float
    standard_error: float | None
    probability_drop: float
    right_before: float
    right_after: float


@dataclass(frozen=True, slots=True)
class UnitEffects:
    """The classes that a unit raises most and those that it lowers, and what came of taking it away."""

    raised: list[ClassEffect]
    lowered: list[ClassEffect]
    trust: Trust
    knockouts: list[Knockout]


@dataclass(frozen=True, slots=True)
class ClassUnit:
    """A unit that raises a class, or lowers it, where its effect is below zero."""

    layer: str
    unit: int
    effect: float
    share: float


@dataclass(frozen=True, slots=True)
class ClassLayer:
    """The units of one layer that raise a class most, and those that lower it."""

    layer: str
    trust: Trust
    raising: list[ClassUnit]
    lowering: list[ClassUnit]


@dataclass(frozen=True, slots=True)
class PredictedClass:
    """A class, and how probable the network takes it to be of an image; `has_page` is true where the atlas has a page of the class."""

    position: int
    name: str
    probability: float
    has_page: bool


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """An image with what the network predicts; `is_known` is true where the atlas has a page of it.

    `probability` is that of the prediction, `label_probability` that of the label's class, None where that is none of the most probable ones.
    """

    image: int
    key: str
    is_known: bool
    probability: float
    label_probability: float | None
    top: list[PredictedClass]


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What the network takes one image for. `label_class` is -1 where it has no label, and then nobody knows whether that is right.

    Its certainty is number `rank` among the `images` images of its label that are taken for that class.
    """

    label_class: int
    label_name: str
    predicted: int
    predicted_name: str
    rank: int
    images: int
    shown: PredictedImage


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many images of one class are taken for another, or for what they are, with the most certain ones; `probability` is that of the most
    certain one."""

    label_class: int
    predicted: int
    label_name: str
    predicted_name: str
    images: int
    probability: float
    shown: list[PredictedImage]


@dataclass(frozen=True, slots=True)
class CertainMistake:
    """One image that is taken for another class than its label's."""

    label_class: int
    predicted: int
    label_name: str
    predicted_name: str
    shown: PredictedImage


@dataclass(frozen=True, slots=True)
class OutputUnit:
    """A unit whose values are the scores of one class."""

    layer: str
    unit: int


@dataclass(frozen=True, slots=True)
class MistakenUnit:
    """A unit that speaks more for a wrong class, and less for the right one, than in images that are taken for what they are: a row of the
    table `mistakes`."""

    layer: str
    unit: int
    difference: float
    on_predicted: float
    on_predicted_right: float
    on_label: float
    on_label_right: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate for a shortcut to a class: a row of the table `shortcuts`."""

    layer: str
    unit: int
    evidence: str
    effect: float
    effect_right: float | None
    off_share: float | None
    r: float | None
    p_value: float
    images: int
    by_chance: int


@dataclass(frozen=True, slots=True)
class FeedingUnit:
    """A unit that feeds another one, or is fed by it: its contribution to the value of the peaks, and its share of all contributions."""

    layer: str
    unit: int
    contribution: float
    share: float


@dataclass(frozen=True, slots=True)
class CircuitNode:
    """A unit in a drawing; columns go from -2, earlier layers, to 2."""

    number: int
    column: int
    row: int
    layer: str
    unit: int


@dataclass(frozen=True, slots=True)
class CircuitEdge:
    """From one node of a drawing to another, by their numbers."""

    start: int
    stop: int
    contribution: float
    share: float


@dataclass(frozen=True, slots=True)
class CircuitDrawing:
    """A unit with what feeds it and what it feeds, two layers up and down."""

    nodes: list[CircuitNode]
    edges: list[CircuitEdge]


@dataclass(frozen=True, slots=True)
class UnitCircuit:
    """What feeds a unit, and what it feeds, the strongest first."""

    fed_by: list[FeedingUnit]
    feeds: list[FeedingUnit]
    drawing: CircuitDrawing

    def units(self) -> list[tuple[str, int]]:
        """Layer and number of all units that are shown."""
        drawn = [(node.layer, node.unit) for node in self.drawing.nodes]
        return [*drawn, *((unit.layer, unit.unit) for unit in (*self.fed_by, *self.feeds))]
