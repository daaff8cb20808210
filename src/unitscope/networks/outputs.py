"""What a network returns: where class scores are in it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

SCORE_NAMES = ("logits", "out")
"""Under which a network that returns a mapping has its scores: those of transformers, and torchvision's of segmentation."""


def class_scores(output: Any) -> Tensor | None:
    """The scores, of shape (image, class), in what a network returned; None where it doesn't classify images.

    They are the tensor itself, an entry named `logits` or `out`, or the first of several outputs, as of networks with auxiliary heads.
    """
    if isinstance(output, Mapping):
        return next((scores for name in SCORE_NAMES if (scores := class_scores(output.get(name))) is not None), None)
    if isinstance(output, tuple | list):
        return class_scores(output[0]) if output else None
    return output if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1 else None


def describe_output(output: Any) -> str:
    """The shape of a tensor, or what else a network returned, for an error message."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    names = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) and output else ""
    return f"a {type(output).__name__}{names}"
