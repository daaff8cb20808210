"""Embedding: how much alike pictures, or pictures and texts, are by a network of its own, and the pictures of an atlas as it sees them."""

from unitscope.embedding.embedders import Embedder, open_embedder
from unitscope.embedding.texts import TextEmbedder, open_text_embedder

__all__ = ["Embedder", "TextEmbedder", "open_embedder", "open_text_embedder"]
