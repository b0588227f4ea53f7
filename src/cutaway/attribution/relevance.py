"""Relevance propagation: attribution patching with gradients that follow rules (see rules.py).

What a write receives is a coefficient in place of a gradient; an edge's or node's score is the difference between clean
and ablated values times it. "relp" holds attention patterns, so queries and keys receive nothing; "lrp" shares a
pattern's relevance out between queries, keys and values.
"""

from __future__ import annotations

from .eap import at_shares
from .edges import EdgeGraph
from .methods import scoring
from .metric import Metric
from .rules import ATTNLRP, RELP, ruled
from .scores import Scores


@scoring(
    "relp",
    levels=("edge", "node"),
    paper="Jafari, Eberle, Khakzar, Nanda 2025 (RelP, arXiv:2508.21258)",
    passes=lambda graph, options: 2,
)
def relp(graph: EdgeGraph, metric: Metric) -> Scores:
    """Relevance patching: coefficients at the clean run, with norms' scales and attention patterns held, nonlinearities
    as the quotient f(x)/x and half to each factor of a product.

    Raises MetricError when nothing that differs receives relevance.
    """
    return at_shares(ruled(graph, RELP), metric, [1.0], "RelP", {})


@scoring(
    "lrp",
    levels=("edge", "node"),
    paper="Achtibat et al. 2024 (AttnLRP, arXiv:2402.05602); Bach et al. 2015 (LRP)",
    passes=lambda graph, options: 2,
)
def lrp(graph: EdgeGraph, metric: Metric) -> Scores:
    """AttnLRP: as RelP, but a pattern's softmax is carried by its gradient, and the products around it by halves.

    Raises MetricError when nothing that differs receives relevance.
    """
    return at_shares(ruled(graph, ATTNLRP), metric, [1.0], "AttnLRP", {})
