"""Circuits: subgraphs of a lifted graph that carry a behaviour."""
