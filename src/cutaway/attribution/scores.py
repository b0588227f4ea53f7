"""Scores of the edges and nodes of a graph, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Scores:
    """What a scoring method gives: means over examples, in units of the metric; None for a level it does not score.

    Positive: the edge or node carries the behaviour (ablating it lowers the metric). `passes` is what it took, in
    forward and backward passes; `facts` are the method's options and the baseline, JSON-able.
    """

    edges: Float[Tensor, "readers writers positions"] | None
    nodes: Float[Tensor, "writers positions"] | None
    method: str
    passes: float
    facts: dict[str, Any] = field(default_factory=dict)

    def of(self, level: str) -> Tensor:
        """The table of a level, "edge" or "node". Raises InputError when the method does not score it."""
        table = {"edge": self.edges, "node": self.nodes}.get(level)
        if table is None:
            raise InputError(f"The method '{self.method}' gives no scores of {level}s; choose another method or level.")
        return table
