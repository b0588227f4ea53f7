"""Scores for nodes and edges of a lifted graph."""
