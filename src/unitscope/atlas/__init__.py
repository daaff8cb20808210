"""The atlas: a folder of Parquet tables that a scan writes once and everything else reads."""

from unitscope.atlas.reading import Atlas
from unitscope.atlas.schema import FORMAT, TABLES
from unitscope.atlas.writing import place_for, write_atlas

__all__ = ["FORMAT", "TABLES", "Atlas", "place_for", "write_atlas"]
