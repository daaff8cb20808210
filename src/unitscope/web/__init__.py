"""The explorer: every unit of an atlas has a page, served by the application of `create_explorer` or written by `export`."""

from unitscope.web.app import ExplorerOptions, create_explorer
from unitscope.web.static_site import export

__all__ = ["ExplorerOptions", "create_explorer", "export"]
