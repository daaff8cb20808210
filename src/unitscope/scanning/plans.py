"""What is to be scanned, cut into shards."""

from collections.abc import Iterator
from dataclasses import dataclass

from unitscope.errors import UnitscopeError
from unitscope.records import Shard

SHARD_BATCHES = 2


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Everything that the bytes of an atlas depend on beside network, images and preprocessing.

    Raises `UnitscopeError` for numbers that make no sense.
    """

    layers: tuple[str, ...]
    images: int
    k: int = 9
    per_image: int = 1
    batch_size: int = 32
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("k", "per_image", "batch_size"):
            if getattr(self, name) < 1:
                raise UnitscopeError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.precision != "fp32":
            raise UnitscopeError(f"precision {self.precision!r} isn't supported; the only one is 'fp32'")

    def shards(self) -> Iterator[Shard]:
        """Runs of a few batches, in order."""
        length = self.batch_size * SHARD_BATCHES
        starts = range(0, self.images, length)
        return (Shard(number, start, min(start + length, self.images)) for number, start in enumerate(starts))
