"""What every source of images gives, and what it raises where it can't."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from unitscope.errors import first_line
from unitscope.records import Shard

Pixels = np.ndarray[Any, np.dtype[Any]]


class Skipped(Exception):
    """An image that can't be read; its text, which is valid, is the reason."""

    def __str__(self) -> str:
        return valid_text(super().__str__())


class Changed(Skipped):
    """An image that is there, but isn't the one that was scanned."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as its source gives it.

    `pixels` is the picture as displayed or, where a data set holds tensors that are already preprocessed, an array of shape
    (channel, y, x). `content` is a 64-bit hash of the file's bytes or, where there is no file, of the pixels; None where nobody
    has computed it. The label becomes valid text here, whatever source it is from: Arrow takes no other.
    """

    pixels: Image.Image | Pixels
    label: str | None = None
    content: int | None = None

    def __post_init__(self) -> None:
        if self.label is not None:
            object.__setattr__(self, "label", valid_text(self.label))


@dataclass(frozen=True, slots=True)
class Item:
    """One image on its way to be read, which may happen in another thread where its source is `thread_safe`. Its key is valid text."""

    image: int
    key: str
    read: Callable[[], SourceImage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", valid_text(self.key))


class ShardUnreadable(Exception):
    """A shard whose images can't be read to the last, now or ever."""


@runtime_checkable
class ImageSource(Protocol):
    """A collection of images with numbers that never change for the same source; a key says the same to a person.

    To write one of your own, subclass `NumberedSource`, which needs `__len__` and `read` alone. Code outside `images` knows this protocol
    and no kind of source.

    Where a method takes a `limit`, it is about the first `limit` images only; None is about all. A source that can't tell which those are
    raises `UnitscopeError` for any limit.
    """

    @property
    def description(self) -> Mapping[str, Any]:
        """What an atlas keeps, so that `reopen` can find the images again: plain data, with a `kind`."""
        ...

    @property
    def thread_safe(self) -> bool:
        """True where several threads may read at once. Otherwise a scan reads in the thread of its caller, and the source itself makes
        other threads wait: the explorer draws in several."""
        ...

    @property
    def passed_over(self) -> Mapping[str, str]:
        """What was met and is no image of the source, by its name, with the reason."""
        ...

    @property
    def noun(self) -> str:
        """What messages call its images: `files` or `items`."""
        ...

    def count(self, limit: int | None = None) -> int | None:
        """How many images there are; None where nobody has counted them, which only a source of pictures, not of tensors, may say."""
        ...

    def shards(self, images_per_shard: int, limit: int | None = None) -> Iterator[Shard]:
        """The images in runs that are scanned as one piece, in order. Each has as many images as that, the last one may have fewer.

        A source that hasn't counted its images cuts them as it can. Whatever has a number from `start` to `stop - 1` is in that shard.
        """
        ...

    def items(self, shard: Shard) -> Iterator[Item]:
        """The images of a shard in order. Raises `ShardUnreadable` where they don't come to an end, maybe after some of them."""
        ...

    def key(self, image: int) -> str:
        """The stable name of an image. Raises `Skipped` where there is no such image."""
        ...

    def label(self, image: int) -> str | None:
        """The class of an image, None without one. Raises as `read` does."""
        ...

    def labels(self) -> Sequence[str | None] | None:
        """The label of every image in order, where no image must be read for that; None otherwise."""
        ...

    def content(self, image: int) -> int | None:
        """The hash that `read` gives, which may cost less than to read; None where it can't be had, or costs far more."""
        ...

    def read(self, image: int) -> SourceImage:
        """An image with its label and its hash. Raises `Skipped` with the reason where it can't be read; any other error skips it too."""
        ...

    def find(self, key: str) -> int | None:
        """The number of the image with that key; None where there is none."""
        ...

    def has(self, image: int, key: str) -> bool:
        """True where the image of that number has that key."""
        ...

    def hash(self, limit: int | None = None) -> str:
        """SHA-256 over what the images are called, in order. It tells two lists apart; what they hold, `fingerprint` tells."""
        ...

    def fingerprint(self, limit: int | None = None) -> dict[str, str | None]:
        """The hashes of a few images by their numbers, None for those that can't be read: enough to tell two collections apart."""
        ...

    def fingerprint_labels(self, limit: int | None = None) -> dict[str, str | None]:
        """The labels of the same images, empty for those without one, None for those that can't be read."""
        ...

    def unscanned_text(self, shards: Sequence[Shard]) -> str:
        """What a person is told of shards, one at least, that could not be scanned: how many images or files, and which."""
        ...

    def empty_text(self) -> str:
        """What a person is told where there was no image at all."""
        ...


@contextmanager
def skipping_errors(what: str = "can't be read:") -> Iterator[None]:
    """Whatever goes wrong with one image becomes `Skipped`, with type and text of the error; what stops a program, such as
    `SystemExit`, too, unless a person did."""
    try:
        yield
    except (Skipped, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        logging.getLogger(__name__).debug("an image: %s", what, exc_info=True)
        raise Skipped(f"{what} {type(error).__name__}: {first_line(error)}") from error


def valid_text(text: str) -> str:
    """A file's name, or a label, as valid Unicode: bytes that aren't UTF-8, and lone surrogates, are written out.

    >>> valid_text("caf\\udce9"), valid_text("\\ud800x")
    ('caf\\\\xe9', '\\\\ud800x')
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
