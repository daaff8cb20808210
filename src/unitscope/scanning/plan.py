"""What is to be scanned, cut into shards."""

from dataclasses import dataclass

from unitscope.arguments import whole_number
from unitscope.errors import UnitscopeError
from unitscope.scanning.tuning import FixedPoint

SHARD_BATCHES = 2
"""So that a shard that fails costs little, and statistics are added in few pieces."""

CANDIDATES = 50


def default_candidates(k: int, precision: str) -> int:
    """How many of the highest values of each unit are kept: fifty, and a third more than k at least. Under bf16, where each of them has to run
    again in float32, that third alone."""
    return max(k + k // 3, CANDIDATES if precision == "fp32" else 0)


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Everything that the bytes of an atlas depend on beside network, images and preprocessing.

    `images` is how many there are, None where nobody has counted them; `candidates` is how many of the highest values of each unit are kept,
    of which the k first without near-duplicates are its peaks; `sample` is how many images are drawn by the hash of their keys.
    With `troughs` the lowest values are kept, too, of layers that nothing rectifies.
    `fixed_point` is that of the sums by label; None where there are to be no such sums.

    Raises `UnitscopeError` for numbers that make no sense.
    """

    images: int | None
    k: int = 9
    candidates: int = CANDIDATES
    per_image: int = 1
    batch_size: int = 32
    precision: str = "fp32"
    sample: int = 200
    troughs: bool = False
    fixed_point: FixedPoint | None = None

    def __post_init__(self) -> None:
        for name in ("k", "candidates", "per_image", "batch_size", "sample"):
            whole_number(name, getattr(self, name))
        if self.candidates < self.k:
            raise UnitscopeError(f"candidates must be at least k, {self.k}, not {self.candidates}")
        if self.precision not in ("fp32", "bf16"):
            raise UnitscopeError(f"precision is fp32 or bf16, not {self.precision!r}")
        if self.troughs and self.precision == "bf16":
            raise UnitscopeError(
                "a scan in bf16 screens for the highest values alone, so it has no troughs; scan in fp32 for them, or without"
            )

    @property
    def shard_images(self) -> int:
        """How many images a shard has, where they are counted."""
        return self.batch_size * SHARD_BATCHES
