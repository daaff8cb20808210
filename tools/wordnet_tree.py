"""Makes the class tree that unitscope ships: WordNet's nouns above the 1,000 classes of ImageNet.

    apt-get install wordnet-base && pip install timm
    python tools/wordnet_tree.py

WordNet 3.0 is read from Debian's package, the ids of the classes in the order of a network's outputs come with timm.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDNET = Path("/usr/share/wordnet")
TREE = Path(__file__).parents[1] / "src" / "unitscope" / "wordnet" / "imagenet.parquet"
PARENT_POINTERS = ("@", "@i")
"""How `data.noun` marks a hypernym, and what a noun is an instance of (wndb(5WN))."""


@dataclass(frozen=True, slots=True)
class Synonyms:
    """One set of them."""

    words: str
    parents: list[str]
    definition: str


def nouns(lines: Iterable[str]) -> Iterator[tuple[str, Synonyms]]:
    """Every noun by its id."""
    for line in lines:
        if line.startswith(" "):
            continue  # the licence
        data, _, gloss = line.partition(" | ")
        offset, _, _, word_count, *fields = data.split()
        words = fields[: 2 * int(word_count, 16) : 2]
        pointers = fields[2 * int(word_count, 16) + 1 :]
        parents = [f"n{pointers[i + 1]}" for i in range(0, len(pointers), 4) if pointers[i] in PARENT_POINTERS]
        text = ", ".join(word.replace("_", " ") for word in words)
        yield f"n{offset}", Synonyms(text, parents, re.split(r'; "', gloss.strip())[0])


def first_senses(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each word in lower case, and the id of what it means most (index.noun: the senses come in the order of how often they are meant)."""
    for line in lines:
        if not line.startswith(" "):
            word, _, senses, *rest = line.split()
            yield word.replace("_", " "), f"n{rest[-int(senses)]}"


def tree(by_id: dict[str, Synonyms], first_sense: dict[str, str], classes: list[str]) -> pa.Table:
    """The classes and all that is above them."""
    found, waiting = set(), list(classes)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += by_id[node].parents
    nodes = sorted(found)
    positions = {node: position for position, node in enumerate(classes)}
    columns = {
        "node": pa.array(nodes, pa.string()),
        "words": pa.array([by_id[node].words for node in nodes], pa.string()),
        "parents": pa.array([by_id[node].parents for node in nodes], pa.list_(pa.string())),
        "class": pa.array([positions.get(node) for node in nodes], pa.int32()),
        "definition": pa.array([by_id[node].definition for node in nodes], pa.string()),
        "first_sense_of": pa.array(
            [[word for word in by_id[node].words.split(", ") if first_sense.get(word.lower()) == node] for node in nodes],
            pa.list_(pa.string()),
        ),
    }
    return pa.table(columns)


def main() -> None:
    from timm.data import ImageNetInfo

    read = (WORDNET / "data.noun").read_text().splitlines(), (WORDNET / "index.noun").read_text().splitlines()
    table = tree(dict(nouns(read[0])), dict(first_senses(read[1])), list(ImageNetInfo().label_names()))
    pq.write_table(table, TREE, compression="zstd")
    several = sum(len(parents) > 1 for parents in table["parents"].to_pylist())
    print(f"{len(table):,} nodes, {several} with more than one parent, in {TREE}")


if __name__ == "__main__":
    main()
