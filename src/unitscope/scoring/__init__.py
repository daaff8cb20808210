"""Scoring: how far to believe a unit's patches, judged by an embedder that isn't the scanned network."""

from unitscope.scoring.scores import score_units

__all__ = ["score_units"]
