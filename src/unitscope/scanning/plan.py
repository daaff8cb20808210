"""What is to be scanned, cut into shards."""

from dataclasses import dataclass

from unitscope.arguments import whole_number
from unitscope.errors import UnitscopeError

SHARD_BATCHES = 2
"""So that a shard that fails costs little, and statistics are added in few pieces."""


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Everything that the bytes of an atlas depend on beside network, images and preprocessing.

        `images` is how many there are, None where nobody has counted them; `sample` is how many are drawn by the hash of their keys.

    Raises `UnitscopeError` for numbers that make no sense.
    """

    images: int | None
    k: int = 9
    per_image: int = 1
    batch_size: int = 32
    precision: str = "fp32"
    sample: int = 200

    def __post_init__(self) -> None:
        for name in ("k", "per_image", "batch_size", "sample"):
            whole_number(name, getattr(self, name))
        if self.precision not in ("fp32", "bf16"):
            raise UnitscopeError(f"precision is fp32 or bf16, not {self.precision!r}")

    @property
    def shard_images(self) -> int:
        """How many images a shard has, where they are counted."""
        return self.batch_size * SHARD_BATCHES
