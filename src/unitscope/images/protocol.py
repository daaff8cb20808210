"""What every source of images gives, and what it raises where it can't."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from unitscope.errors import first_line

Pixels = np.ndarray[Any, np.dtype[Any]]


class Skipped(Exception):
    """An image that can't be read; its text, which is valid, is the reason."""

    def __str__(self) -> str:
        return as_text(super().__str__())


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
            object.__setattr__(self, "label", as_text(self.label))


@dataclass(frozen=True, slots=True)
class Item:
    """One image on its way to be read, which may happen in another thread where its source is `thread_safe`. Its key is valid text."""

    image: int
    key: str
    read: Callable[[], SourceImage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", as_text(self.key))


@runtime_checkable
class ImageSource(Protocol):
    """A numbered collection of images.

    `read` gives an image with its label and its hash; it raises `Skipped` with the reason where an image can't be read, and whatever
    else it raises skips that image too. `content` gives the hash alone, which may be cheaper. Both may be called from several
    threads; one that is not `thread_safe` lets one thread read at a time, and a scan reads it in the thread of its caller.

    `description` is what is written into an atlas, so that `reopened` can find the images again. `passed_over` says what was met and
    is no image of the source, and why.
    """

    @property
    def description(self) -> Mapping[str, Any]: ...

    @property
    def thread_safe(self) -> bool: ...

    @property
    def passed_over(self) -> Mapping[str, str]: ...

    def __len__(self) -> int: ...

    def key(self, image: int) -> str: ...

    def content(self, image: int) -> int | None: ...

    def read(self, image: int) -> SourceImage: ...


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


def as_text(said: str) -> str:
    """A file's name, or a label, as valid text: bytes, and halves of characters, that are none are written out.

    >>> as_text("caf\\udce9"), as_text("\\ud800x")
    ('caf\\\\xe9', '\\\\ud800x')
    """
    try:
        return said.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return said.encode("utf-8", "backslashreplace").decode()
