"""The format of an atlas: its version, the name of its manifest, and how large things may be. `tables` declares its tables."""

FORMAT = 2
MANIFEST = "atlas.json"
MAX_RANK = (1 << 15) - 1
"""The highest rank that the tables can hold."""
MAX_INPUT_VALUES = 1 << 28
"""How many numbers one input of the network may have: a gigabyte in float32."""
