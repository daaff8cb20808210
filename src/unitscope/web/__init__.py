"""The explorer: every unit of an atlas has a page, served by `explorer` or written by `export`."""

from unitscope.web.app import Offer, explorer
from unitscope.web.static_site import export

__all__ = ["Offer", "explorer", "export"]
