"""A tree of classes: which labels each of its nodes stands for. A node may have several parents."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unitscope.errors import UnitscopeError
from unitscope.files import os_error_text
from unitscope.images import valid_text
from unitscope.images.labels import decoded
from unitscope.wordnet import imagenet_nouns

HEADING = ("child", "parent")


@dataclass(frozen=True, slots=True)
class Concepts:
    """What a unit may be named after: a label, or a node of a tree with some labels below it.

    `nodes` are their ids, `names` what people call them; `members` is true where a label belongs to a concept, of shape (concept, label).
    No two concepts have the same labels. `outside` are the labels that the tree doesn't have: each is a concept of its own.
    """

    nodes: tuple[str, ...]
    names: tuple[str, ...]
    members: NDArray[np.bool_]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class ClassTree:
    """Nodes by id. `parents` of a node are ids too; `words` has what a node is called, synonyms behind commas, where that isn't its id.

    A label that is a word means the node that it is one of the `label_words` of; without those, any of the node's words.
    """

    parents: Mapping[str, Sequence[str]]
    words: Mapping[str, str] = field(default_factory=dict)
    label_words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of_imagenet(cls) -> "ClassTree":
        """WordNet's nouns above ImageNet's classes."""
        nouns = imagenet_nouns()
        return cls(
            {node: noun.parents for node, noun in nouns.items()},
            {node: noun.words for node, noun in nouns.items()},
            {node: noun.first_sense_of for node, noun in nouns.items()},
        )

    @classmethod
    def read(cls, file: Path) -> "ClassTree":
        """A tree from a CSV file with a child and one of its parents a line. Raises `UnitscopeError` where it is none."""
        try:
            lines = decoded(file.read_bytes()).splitlines()
        except OSError as error:
            raise UnitscopeError(f"the tree {str(file)!r} can't be read: {os_error_text(error)}") from error
        parents: dict[str, list[str]] = {}
        for number, row in enumerate(_rows(lines, file), start=1):
            names = [valid_text(name.strip()) for name in row]
            if not row or (number == 1 and tuple(map(str.lower, names)) == HEADING):
                continue
            if len(names) != 2 or not all(names):
                raise UnitscopeError(f"line {number} of the tree {str(file)!r} must have two columns, a child and its parent")
            child, parent = names
            parents.setdefault(parent, [])
            parents.setdefault(child, []).append(parent)
        if not parents:
            raise UnitscopeError(f"the tree {str(file)!r} is empty; it needs a line with two columns, child and parent, a link")
        tree = cls(parents)
        if cycle := tree.cycle():
            raise UnitscopeError(f"the tree {str(file)!r} has a cycle: {' → '.join(cycle)}")
        return tree

    def cycle(self) -> list[str]:
        """The nodes on some way from a node up to itself, that node first and last; empty where there is none."""
        done: set[str] = set()
        for start in self.parents:
            path, waiting = [start], [iter(self.parents[start])]
            while waiting and path[-1] not in done:
                node = next(waiting[-1], None)
                if node is None:
                    done.add(path.pop())
                    waiting.pop()
                elif node in path:
                    return [*path[path.index(node) :], node]
                elif node not in done:
                    path.append(node)
                    waiting.append(iter(self.parents[node]))
        return []

    def node_of(self, label: str) -> str | None:
        """The node that a label means: by its id, by its words as they are written, or by one of them that no other node has."""
        if label in self.parents:
            return label
        return self._node_by_words.get(label.casefold().replace("_", " "))

    def concepts(self, labels: Sequence[str]) -> Concepts:
        """Everything that units may be named after where images have these labels."""
        nodes = [self.node_of(label) for label in labels]
        rows: dict[str, set[int]] = {}
        for column, (label, node) in enumerate(zip(labels, nodes, strict=True)):
            for concept in [label] if node is None else self._with_ancestors(node):
                rows.setdefault(concept, set()).add(column)
        by_members: dict[frozenset[int], str] = {}
        for concept in sorted(
            rows, key=lambda node: (-self._depth(node), node)
        ):  # the most specific of those with the same labels
            by_members.setdefault(frozenset(rows[concept]), concept)
        kept = sorted(by_members.values())
        members = np.zeros((len(kept), len(labels)), dtype=bool)
        for row, concept in enumerate(kept):
            members[row, sorted(rows[concept])] = True
        outside = tuple(label for label, node in zip(labels, nodes, strict=True) if node is None)
        return Concepts(tuple(kept), tuple(map(self.name, kept)), members, outside)

    def name(self, node: str) -> str:
        """What people call a node: the first of its words."""
        return self.words.get(node, node).partition(", ")[0]

    @cached_property
    def _node_by_words(self) -> dict[str, str]:
        """Nodes by all of their words as one text where they are several, and by each label word that one node alone has."""
        nodes_by_word: dict[str, set[str]] = {}
        for node in self.parents:
            words = self.words.get(node, node)
            several = {words} if ", " in words else set()
            for word in several | set(self.label_words.get(node, words.split(", "))):
                nodes_by_word.setdefault(word.casefold(), set()).add(node)
        return {word: next(iter(nodes)) for word, nodes in nodes_by_word.items() if len(nodes) == 1}

    def _with_ancestors(self, node: str) -> Iterator[str]:
        """The node, and all that is above it, each once."""
        seen, waiting = {node}, [node]
        while waiting:
            yield (current := waiting.pop())
            new = [parent for parent in self.parents.get(current, ()) if parent not in seen]
            seen.update(new)
            waiting += new

    def _depth(self, node: str) -> int:
        """The number of links on the longest way up."""
        return self._depths.get(node, 0)

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}
        for node in _parents_first(self.parents):
            depths[node] = 1 + max((depths[parent] for parent in self.parents[node] if parent in depths), default=-1)
        return depths


def _rows(lines: list[str], file: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        raise UnitscopeError(f"the tree {str(file)!r} is no CSV file: {error}") from error


def _parents_first(parents: Mapping[str, Iterable[str]]) -> list[str]:
    """All nodes, each behind all that is above it."""
    ordered: dict[str, None] = {}
    for start in parents:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            missing = [parent for parent in parents.get(node, ()) if parent not in ordered and parent in parents]
            if missing and node not in ordered:
                waiting += missing
            else:
                ordered.setdefault(waiting.pop())
    return list(ordered)
