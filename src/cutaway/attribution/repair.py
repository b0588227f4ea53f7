"""Self-repair: later nodes that make up for one that is ablated.

A node's direct effect is what the metric loses when the output alone reads its ablated values; its total effect is what
it loses when all its readers do. Where the total is smaller than the direct effect, later nodes have changed so as to
make up for the rest (McGrath et al. 2023, "The Hydra effect", arXiv:2307.15771; Rushing, Nanda 2024, arXiv:2402.15390).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .edges import EdgeGraph
from .exact import WORLDS, units
from .metric import Metric, as_metric
from .mixture import evaluate


@dataclass(frozen=True)
class Repair:
    """One node, in units of the metric, means over examples. `repaired`: direct - total, with its standard error over
    examples; `share`: that part of the direct effect, None where there is none to speak of."""

    node: str
    direct: float
    total: float
    repaired: float
    error: float | None
    share: float | None


def self_repair(
    graph: EdgeGraph, metric: Metric | Callable[[Tensor], Tensor], nodes: str | Iterable[str] | None = None
) -> list[Repair]:
    """Direct effect, total effect and what is repaired, for each node (all that have an edge to the output if `nodes`
    is None), the most repaired first.

    Two passes a node. Raises InputError for a node that is not there.
    """
    metric = as_metric(metric)
    nodes = [nodes] if isinstance(nodes, str) else nodes
    ends = graph.parts[-1].ports[0].rows
    reach = graph.valid[ends].any(0)
    chosen = list(dict.fromkeys(unit[0] for unit in units(graph, "node", nodes) if nodes is not None or reach[unit[0]]))
    whole = torch.ones(graph.shape(), dtype=torch.bool)
    before = evaluate(graph, metric, whole[None])[0]
    rows: list[Repair] = []
    for start in range(0, len(chosen), WORLDS // 2):
        some = chosen[start : start + WORLDS // 2]
        masks = whole.repeat(2 * len(some), 1, 1, 1)
        for place, column in enumerate(some):
            masks[2 * place, ends, column] = False
            masks[2 * place + 1, :, column] = False
        effects = (before - evaluate(graph, metric, masks)).view(len(some), 2, -1)
        rows += [_row(graph.writers[column], *pair) for column, pair in zip(some, effects, strict=True)]
    least = 1e-3 * max((abs(row.direct) for row in rows), default=0.0)
    rows = [row if abs(row.direct) > least else replace(row, share=None) for row in rows]
    return sorted(rows, key=lambda row: -abs(row.repaired))


def _row(node: str, direct: Tensor, total: Tensor) -> Repair:
    apart = direct - total
    error = float(apart.std()) / len(apart) ** 0.5 if len(apart) > 1 else None
    straight, repaired = float(direct.mean()), float(apart.mean())
    return Repair(node, straight, float(total.mean()), repaired, error, repaired / straight if straight else None)
