"""The atlas: a folder of Parquet tables that a scan writes once and everything else reads."""

from unitscope.atlas.reading import Atlas
from unitscope.atlas.schema import FORMAT, TABLES
from unitscope.atlas.writing import new_atlas_folder, write_atlas

__all__ = ["FORMAT", "TABLES", "Atlas", "new_atlas_folder", "write_atlas"]
