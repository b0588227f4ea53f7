"""Ground truth by training: dense networks aligned to small causal programs, node by node and edge by edge.

`program` is what a program is, `programs` those that are bundled, `network` the transformer, `alignment` the training.
"""

from __future__ import annotations

from ..training import Recipe
from .alignment import recipe
from .programs import PROGRAMS

__all__ = ["PROGRAMS", "recipe_named"]


def recipe_named(name: str) -> Recipe:
    """How the network of a program is made and trained. KeyError for a program that is not bundled."""
    if name not in PROGRAMS:
        raise KeyError(f"no network is aligned to {name!r}; the programs are {', '.join(PROGRAMS)}")
    return recipe(PROGRAMS[name])
