"""The atlas: a folder of Parquet tables that a scan writes once, to which other commands add tables, and which everything else reads."""

from unitscope.atlas.atlas import Atlas
from unitscope.atlas.layer_pieces import tables_by_layer
from unitscope.atlas.packing import Packed, pack
from unitscope.atlas.schema import FORMAT
from unitscope.atlas.tables import ADDED_TABLES, CORE_TABLES, Column, TableSpec, added_table
from unitscope.atlas.writing import check_table_writable, new_atlas_folder, table_writer, write_atlas, write_table

__all__ = [
    "ADDED_TABLES",
    "CORE_TABLES",
    "FORMAT",
    "Atlas",
    "Column",
    "Packed",
    "TableSpec",
    "added_table",
    "check_table_writable",
    "new_atlas_folder",
    "pack",
    "table_writer",
    "tables_by_layer",
    "write_atlas",
    "write_table",
]
