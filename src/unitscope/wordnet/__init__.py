"""WordNet's nouns above the 1,000 classes of ImageNet (Fellbaum 1998; Russakovsky et al. 2015), as `tools/wordnet_tree.py` made them.

WordNet is by Princeton University; its licence lies beside this file.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO

import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class Noun:
    """One set of synonyms, by its WordNet id. `position` is that of its class among ImageNet's, None for what is above them.

    Of the words in `first_sense_of` it is what is meant most: "cup" is a vessel first, and a punch only in the sixth place.
    """

    node: str
    words: str
    parents: tuple[str, ...]
    position: int | None
    definition: str
    first_sense_of: tuple[str, ...]

    @property
    def word(self) -> str:
        """The first of its words."""
        return self.words.partition(", ")[0]


@cache
def imagenet_nouns() -> dict[str, Noun]:
    """All of them, by id."""
    table = pq.read_table(BytesIO(files("unitscope.wordnet").joinpath("imagenet.parquet").read_bytes()))
    columns = (table[name].to_pylist() for name in ("node", "words", "parents", "class", "definition", "first_sense_of"))
    return {row[0]: Noun(row[0], row[1], tuple(row[2]), row[3], row[4], tuple(row[5])) for row in zip(*columns, strict=True)}


@cache
def imagenet_classes() -> tuple[Noun, ...]:
    """The 1,000 classes in the order of a network's outputs."""
    classes = {noun.position: noun for noun in imagenet_nouns().values() if noun.position is not None}
    return tuple(classes[position] for position in range(len(classes)))


def in_words(label: str) -> str:
    """A label as people read it: WordNet's word for one of its ids, others as they are.

    >>> in_words("n02084071"), in_words("cat")
    ('dog', 'cat')
    """
    noun = imagenet_nouns().get(label)
    return noun.word if noun else label
