"""Sources whose images have the numbers 0, 1, 2, …: what folders, lists and data sets have in common, and a user's own source too."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

from unitscope.images.content import evenly_spaced
from unitscope.images.protocol import ImageSource, Item, Skipped, SourceImage, skipping_errors, valid_text
from unitscope.records import Shard


class NumberedSource(ImageSource):
    """A source with a length: subclass it for images of your own, and give `__len__` and `read`.

    The rest follows from these two: keys are the numbers, a label and a hash of the content are those that `read` gives. Override what
    your source knows better or cheaper, `key` above all where images have names, since an atlas finds its images by key.

    A scan reads in the thread of its caller unless the class says `thread_safe = True`. The explorer draws in several threads, so a source
    that can't be read by two at once holds a lock in `read`.

    >>> from PIL import Image
    >>> class Greys(NumberedSource):
    ...     def __len__(self):
    ...         return 3
    ...     def read(self, image):
    ...         return SourceImage(Image.new("L", (8, 8), 100 * image), label="grey")
    >>> [item.key for shard in Greys().shards(images_per_shard=2) for item in Greys().items(shard)]
    ['0', '1', '2']
    """

    noun = "items"

    @property
    def thread_safe(self) -> bool:
        return False

    @property
    def passed_over(self) -> Mapping[str, str]:
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def read(self, image: int) -> SourceImage: ...

    @property
    def description(self) -> Mapping[str, Any]:
        kind = type(self)
        return {"kind": "source", "type": f"{kind.__module__}.{kind.__qualname__}", "length": len(self)}

    def count(self, limit: int | None = None) -> int:
        return len(self) if limit is None else min(limit, len(self))

    def shards(self, images_per_shard: int, limit: int | None = None) -> Iterator[Shard]:
        count = self.count(limit)
        for number, start in enumerate(range(0, count, images_per_shard)):
            yield Shard(number, start, min(start + images_per_shard, count))

    def items(self, shard: Shard) -> Iterator[Item]:
        for image in range(shard.start, shard.stop):
            yield Item(image, self.key(image), partial(self.read, image))

    def key(self, image: int) -> str:
        return str(image)

    def label(self, image: int) -> str | None:
        return self.read(image).label

    def labels(self) -> Sequence[str | None] | None:
        return None

    def content(self, image: int) -> int | None:
        return self.read(image).content

    def find(self, key: str) -> int | None:
        """The image of that key. An image whose folder was given from further up, or further down, is found by the end of its path,
        where only one has it."""
        if key in self._numbers:
            return self._numbers[key]
        matches = [
            candidate
            for candidate in self._keys_by_name.get(_name_of(key), ())
            if f"/{key}".endswith(f"/{candidate}") or f"/{candidate}".endswith(f"/{key}")
        ]
        return self._numbers[matches[0]] if len(matches) == 1 else None

    def has(self, image: int, key: str) -> bool:
        try:
            return image < len(self) and valid_text(self.key(image)) == key
        except Skipped:
            return False

    def hash(self, limit: int | None = None) -> str:
        digest = sha256()
        for image in range(self.count(limit)):
            digest.update(valid_text(self.key(image)).encode() + b"\0")
        return digest.hexdigest()

    def fingerprint(self, limit: int | None = None) -> dict[str, str | None]:
        hashes: dict[str, str | None] = {}
        for image in evenly_spaced(self.count(limit)):
            content = None
            with suppress(Skipped), skipping_errors():  # whoever scans it says why
                content = self.content(image)
            hashes[str(image)] = None if content is None else f"{content:016x}"
        return hashes

    def fingerprint_labels(self, limit: int | None = None) -> dict[str, str | None]:
        labels: dict[str, str | None] = {}
        for image in evenly_spaced(self.count(limit)):
            labels[str(image)] = None
            with suppress(Skipped), skipping_errors():  # whoever scans it says why
                labels[str(image)] = self.label(image) or ""
        return labels

    def unscanned_text(self, shards: Sequence[Shard]) -> str:
        images = sum(shard.stop - shard.start for shard in shards)
        keys = " to ".join(repr(self.key(image)) for image in (shards[0].start, shards[0].stop - 1))
        return f"{images:,} images in {len(shards)} shards could not be scanned, among them {keys}"

    def empty_text(self) -> str:
        return "there are no images"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The number of every image by its key."""
        return {valid_text(self.key(image)): image for image in range(len(self))}

    @cached_property
    def _keys_by_name(self) -> dict[str, list[str]]:
        """The keys that end in the same file name, by that name."""
        keys: dict[str, list[str]] = {}
        for key in self._numbers:
            keys.setdefault(_name_of(key), []).append(key)
        return keys


def _name_of(key: str) -> str:
    return key.rpartition("/")[2]
