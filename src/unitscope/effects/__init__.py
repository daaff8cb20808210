"""Effects: what units do to a network's output (`measuring`, `knockouts`), and what feeds them (`circuits`).

`gradients` is the one pass forward and back, `replay` runs copies of a batch from a layer on, `outputs` says what counts of an output.
"""

from unitscope.effects.circuits import find_circuits
from unitscope.effects.knockouts import knock_out
from unitscope.effects.measuring import measure_effects
from unitscope.effects.opening import EffectOptions

__all__ = ["EffectOptions", "find_circuits", "knock_out", "measure_effects"]
