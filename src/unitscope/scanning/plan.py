"""What is to be scanned, cut into shards."""

from collections.abc import Iterator
from dataclasses import dataclass

from unitscope.arguments import whole_number
from unitscope.errors import UnitscopeError
from unitscope.images import FILE_BITS
from unitscope.records import Shard

SHARD_BATCHES = 2


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Everything that the bytes of an atlas depend on beside network, images and preprocessing.

    `sample` is how many images are drawn by the hash of their keys. There are `images` that are numbered one by one or, where that is 0, `files` that hold many.

    Raises `UnitscopeError` for numbers that make no sense.
    """

    images: int
    k: int = 9
    per_image: int = 1
    batch_size: int = 32
    precision: str = "fp32"
    files: int = 0
    sample: int = 200

    def __post_init__(self) -> None:
        for name in ("k", "per_image", "batch_size", "sample"):
            whole_number(name, getattr(self, name))
        if self.precision not in ("fp32", "bf16"):
            raise UnitscopeError(f"precision is fp32 or bf16, not {self.precision!r}")

    @property
    def shard_images(self) -> int:
        """How many images a shard of numbered ones has."""
        return self.batch_size * SHARD_BATCHES

    def shards(self) -> Iterator[Shard]:
        """Runs of a few batches, or one file each, in order."""
        if self.files:
            return (Shard(number, number << FILE_BITS, (number + 1) << FILE_BITS) for number in range(self.files))
        starts = range(0, self.images, self.shard_images)
        return (Shard(number, start, min(start + self.shard_images, self.images)) for number, start in enumerate(starts))
