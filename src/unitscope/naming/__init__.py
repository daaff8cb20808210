"""Naming: what a unit's response goes with (`names`), chosen on one half of the images and tested on the other, and the angle and the colour
that shallow units are tuned to (`visual`)."""

from unitscope.naming.class_tree import ClassTree
from unitscope.naming.names import ClassNaming, Naming, check_rate, name_units
from unitscope.naming.texts import TextNaming
from unitscope.naming.visual import stimulus_count, tune_visually

__all__ = ["ClassNaming", "ClassTree", "Naming", "TextNaming", "check_rate", "name_units", "stimulus_count", "tune_visually"]
