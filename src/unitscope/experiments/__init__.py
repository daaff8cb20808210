"""The experiments of Zeiler & Fergus 2014 beside the patches themselves; each reads images again and writes a table of its own.

`changing`: colour or shape? `moving`: how far features move with the image. `covering`: what covering hides from the classifier.
`probing`: what a layer's features are good for. `evolving`: how units came to be; `recording`: the same while a network is trained.
"""

from unitscope.experiments.colour_shape import colour_or_shape
from unitscope.experiments.evolution import Evolution, evolve
from unitscope.experiments.linear_probe import probe
from unitscope.experiments.occlusion import occlude
from unitscope.experiments.recorder import Recorder
from unitscope.experiments.transformations import invariance

__all__ = ["Evolution", "Recorder", "colour_or_shape", "evolve", "invariance", "occlude", "probe"]
