"""Makes the vocabulary that units are named by where a model joins images and texts, and no texts are given.

    apt-get install wordnet-base
    python tools/vocabulary.py

The nouns are those of WordNet 3.0 for what can be seen (animals, things made, bodies, food, plants, substances, places, shapes, weather) that
texts marked with WordNet's senses have them twice or more, and the groups of ImageNet's classes. Adjectives of colour, pattern and surface are listed here.
"""

from pathlib import Path

from unitscope.wordnet import imagenet_nouns

WORDNET = Path("/usr/share/wordnet")
VOCABULARY = Path(__file__).parents[1] / "src" / "unitscope" / "wordnet" / "vocabulary.txt"
MIN_COUNT = 2
VISIBLE = {5, 6, 8, 13, 15, 17, 19, 20, 25, 27}
"""Lexicographer files (lexnames(5WN)): animal, artifact, body, food, location, object, phenomenon, plant, shape, substance."""
ADJECTIVES = """
red orange yellow green blue purple violet pink brown black white grey beige turquoise gold silver crimson navy teal olive
striped dotted spotted checkered plaid zigzag spiralled wavy grid-like honeycombed woven knitted laced meshed braided perforated
cracked crystalline marbled veined speckled freckled flecked smeared stained swirling paisley pleated frilly fibrous gauzy
grooved lined matted porous bumpy wrinkled scaly furry hairy feathery fluffy fuzzy smooth rough glossy shiny metallic
wooden leathery rusty sandy grassy leafy snowy icy foamy bubbly cloudy misty transparent translucent blurred bright dark
colourful faded pale
"""
SHAPES = """
round, square, triangular, rectangular, oval, pointed, curved, straight, parallel lines, crossing lines, diagonal lines,
horizontal lines, vertical lines, concentric circles, a corner, an edge, a curve, a spiral, a star, an arc, a cross, a row of things,
many small things, a plain surface, a white background, a black background, a blue sky, a face, eyes, a pair of eyes, a snout, a beak,
an ear, a paw, a wing, a tail, a leg, a wheel, a window, a handle, a text, letters, digits, a grid, a net, a fence, a horizon, a shadow,
a reflection
"""


def visible_nouns() -> list[str]:
    """By how often a sense that can be seen was marked, the commonest first."""
    counts: dict[str, int] = {}
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        sense, _, count = line.split()
        lemma, _, rest = sense.partition("%")
        part_of_speech, lexicographer_file, *_ = rest.split(":")
        if part_of_speech == "1" and int(lexicographer_file) in VISIBLE and len(lemma) > 2 and lemma.replace("_", "").isalpha():
            counts[lemma] = counts.get(lemma, 0) + int(count)
    common = (lemma for lemma, count in counts.items() if count >= MIN_COUNT)
    return [lemma.replace("_", " ") for lemma in sorted(common, key=lambda lemma: (-counts[lemma], lemma))]


def groups_of_classes() -> list[str]:
    """What is above the classes of ImageNet."""
    nouns = imagenet_nouns()
    parents = {parent for noun in nouns.values() for parent in noun.parents}
    return sorted({nouns[node].words.partition(", ")[0] for node in parents if node in nouns})


if __name__ == "__main__":
    shapes = [" ".join(shape.split()) for shape in SHAPES.split(",")]
    words = dict.fromkeys([*ADJECTIVES.split(), *shapes, *visible_nouns(), *groups_of_classes()])
    VOCABULARY.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    print(f"{len(words):,} words in {VOCABULARY}")
