"""By what layer pages sort units, and what that is called there. Addresses and files have the columns' own names."""

from collections.abc import Iterable

from unitscope.atlas.tables import Column, TableSpec
from unitscope.web.page_records import SortKey

SORT_KEYS = (
    SortKey("highest", "highest value", "The unit's highest value over all images"),
    SortKey("activation_rate", "activation rate", "The share of images in which the unit's spatial maximum is above zero"),
    SortKey(
        "z_score",
        "z-score of the highest value",
        "The highest value less the sample's mean, over the sample's standard deviation",
    ),
)
"""Besides by number, and by the columns of added tables."""
LABELS = {
    "colour_or_shape.peaks": "peaks above zero",
    "colour_or_shape.grey": "left in grey",
    "colour_or_shape.blurred": "left when blurred",
    "colour_or_shape.scrambled": "left when phases are scrambled",
    "colour_or_shape.mirrored": "left when mirrored",
    "names.r_a": "r with the nearest concept, half a",
    "names.r_b": "r with the nearest concept, half b",
    "names.images_b": "labelled images in half b",
    "names.p_value": "p-value of r, half b",
    "names.explained": "response explained by visual tuning, beside r²",
    "names.base_rate": "base rate of the nearest concept",
    "names.peaks_inside": "peaks in images of the nearest concept",
    "names.peaks": "peaks in labelled images",
    "names.f1": "F1 for the nearest concept",
    "names.average_precision": "average precision for the nearest concept",
    "names.sample_base_rate": "average precision by chance",
    "scores.predictability": "predictability",
    "scores.predictability_low": "predictability, lower end of the interval",
    "scores.predictability_high": "predictability, upper end of the interval",
    "scores.predictability_shuffled": "predictability, shuffled",
    "scores.pairs": "pairs of unseen images",
    "scores.monosemanticity": "monosemanticity",
    "scores.monosemanticity_shuffled": "monosemanticity, shuffled",
    "scores.localisation": "localisation",
    "scores.localisation_chance": "localisation by chance",
    "scores.facets": "facets",
    "scores.facets_shuffled": "facets, shuffled",
    "visual_tuning.explained": "response explained by visual tuning",
    "visual_tuning.grating_gain": "response to the best grating",
    "visual_tuning.angle": "angle of the best grating",
    "visual_tuning.angle_selectivity": "angle selectivity",
    "visual_tuning.period_px": "period of the best grating, in pixels",
    "visual_tuning.cycles_per_receptive_field": "cycles per receptive field",
    "visual_tuning.phase": "phase of the best grating",
    "visual_tuning.phase_modulation": "phase modulation",
    "visual_tuning.hue": "best hue",
    "visual_tuning.hue_gain": "response to the best hue",
    "visual_tuning.hue_opponent": "suppression by the opposite hue",
    "visual_tuning.brightness_gain": "response to white above black",
}
"""What `TABLE.COLUMN` is called where units are sorted by it; others, such as those of tables that programs of one's own add, by their names."""


def sort_key(spec: TableSpec, column: Column) -> SortKey:
    """That of a column of an added table."""
    name = f"{spec.name}.{column.name}"
    label = LABELS.get(name, f"{_in_words(column.name)} ({_in_words(spec.name)})")
    return SortKey(name, label, column.description, _in_words(spec.name).capitalize())


def added_columns(sort_keys: Iterable[SortKey]) -> list[str]:
    """Those that are of added tables."""
    return [key.column for key in sort_keys if key.table]


def _in_words(name: str) -> str:
    return name.replace("_", " ")
