"""Labels from a file of their own: a table of two columns, the key of an image and its label."""

import csv
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from unitscope.errors import ImagesError
from unitscope.files import os_error_text
from unitscope.images.labels import decoded, label_text, written_label
from unitscope.images.protocol import ImageSource, valid_text

Labels = Mapping[str, str | None]
"""The label of each image, by key."""


def as_labels(labels: Any) -> Labels | None:
    """Labels by key, from a mapping or from the path of a file (`read_labels`); None for None. Raises `ImagesError`."""
    if labels is None:
        return None
    if isinstance(labels, (str, os.PathLike)):
        return read_labels(Path(labels))
    if isinstance(labels, Mapping):
        return {valid_text(str(key)): label_text(label) for key, label in labels.items()}
    raise ImagesError(f"labels are the path of a file, or a mapping from keys to labels, not a {type(labels).__name__}")


def read_labels(file: Path) -> Labels:
    """The labels in a file: text in UTF-8 or UTF-16, a line an image, with its key and its label behind a comma or a tab. A heading may
    stand above them. Raises `ImagesError` for a line of another form, and for a key with two labels."""
    try:
        lines = decoded(file.read_bytes()).splitlines()
    except OSError as error:
        raise ImagesError(f"the labels {str(file)!r} can't be read: {os_error_text(error)}") from error
    labels: dict[str, str | None] = {}
    for number, row in enumerate(_rows(lines, file), start=1):
        if not row:
            continue
        if len(row) != 2:
            raise ImagesError(
                f"line {number} of the labels {str(file)!r} has {len(row)} columns; it needs two, a key and a label"
            )
        key, label = valid_text(row[0].strip()), written_label(valid_text(row[1]))
        if labels.setdefault(key, label) != label:
            raise ImagesError(f"the labels {str(file)!r} give two for {key!r}, {labels[key]!r} and {label!r}")
    if not labels:
        raise ImagesError(f"the labels {str(file)!r} are empty; they need a line an image, with its key and its label")
    return labels


def _rows(lines: list[str], file: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    except csv.Error as error:
        raise ImagesError(f"the labels {str(file)!r} are no table of two columns: {error}") from error


def labels_hash(labels: Labels) -> str:
    """SHA-256 of all keys and labels."""
    digest = sha256()
    for key in sorted(labels):
        digest.update(f"{key}\0{labels[key]}\0".encode())
    return digest.hexdigest()


def check_labels(labels: Labels, source: ImageSource) -> None:
    """Raises `ImagesError` where the labels are of other images. Of a source whose images nobody has counted that can't be told."""
    count = source.count()
    if count and not any(valid_text(source.key(image)) in labels for image in range(count)):
        raise ImagesError(
            f"none of the images has a label: labels are of {next(iter(labels))!r} and others, images are {source.key(0)!r} and others"
        )
