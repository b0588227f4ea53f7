"""Gradients along the way from a write's clean to its ablated value, everything before it as in the clean run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from .alone import alone
from .eap import Carried, Known, check_moved, sources_at
from .edges import EdgeGraph
from .local import reader_cost, through_readers
from .methods import scoring
from .metric import Metric
from .mixture import evaluate
from .scores import Scores

_LESS = 1e-3  # how much less a score's size counts than what averaging changed, when some are measured


@scoring(
    "ig-activations",
    levels=("edge", "node"),
    paper="Marks et al. 2024 (arXiv:2403.19647); Hanna, Pezzelle, Belinkov 2024 (arXiv:2403.17806)",
    passes=lambda graph, options: 2 * options.get("steps", 5) * _share_after(graph),
)
def ig_activations(graph: EdgeGraph, metric: Metric, *, steps: int = 5) -> Scores:
    """Gradients averaged over `steps` values of the writer, from ablated to clean, the rest as in the clean run; the
    slots of a write move together.

    The sum over a write's slots is what ablating them all does, to the accuracy of the steps. Raises InputError for
    fewer than one step, MetricError when the gradients are zero everywhere.
    """
    if steps < 1:
        raise InputError(f"There are {steps} steps to integrate over; give 1 or more.")
    edges, nodes = torch.zeros(graph.shape()), torch.zeros(len(graph.writers), graph.positions)
    known = Known(graph, alone(graph, metric))
    for write, before in _writes(graph):
        for step in range(steps):
            at = torch.lerp(graph.corrupted[write], graph.clean[write], (step + 0.5) / steps)
            Carried(graph, {**before, write: at}, known, scored=write).run(metric, edges, nodes)
    check_moved(edges, metric)
    scale = 1.0 / (steps * graph.batch)
    facts = {"baseline": graph.baseline, "steps": steps}
    passes = 2 * steps * _share_after(graph)
    return Scores(
        edges * scale * graph.valid[:, :, None], nodes * scale, f"IG over activations, {steps} steps", passes, facts
    )


@scoring(
    "local",
    levels=("edge", "node"),
    paper="this package; its parts: Kramár et al. 2024 (arXiv:2403.00745), Marks et al. 2024 (arXiv:2403.19647)",
    passes=lambda graph, options: _local_passes(graph, options.get("steps", 2), options.get("exact", 64)),
    least=0,
)
def local(graph: EdgeGraph, metric: Metric, *, steps: int = 2, exact: int = 64) -> Scores:
    """The reader's block run again with the edge ablated, times the gradient behind it, averaged along the way that the
    block's write goes; then the `exact` edges and nodes for which averaging changed most are measured.

    `steps` points besides the clean one; with 0 there is one gradient for all. Nodes: the mean gradient along their own
    way. Raises InputError for negative numbers, MetricError when nothing that differs moves the metric.
    """
    if steps < 0 or exact < 0:
        raise InputError(f"steps={steps} and exact={exact}: neither can be negative; give 0 or more.")
    (along, at_clean), slopes = _slopes(graph, metric, steps)
    found = through_readers(graph, metric, slopes, lambda part, port: True)
    edges, plain = found.nan_to_num(0.0) / graph.batch * graph.valid[:, :, None]
    check_moved(edges, metric)
    edges = _measured(graph, metric, edges, plain, graph.testable("edge"), exact)
    nodes = _measured(graph, metric, along / graph.batch, at_clean / graph.batch, graph.testable("node"), exact)
    facts = {"baseline": graph.baseline, "steps": steps, "exact": exact}
    return Scores(edges, nodes, f"local, {steps} steps, {exact} exact", _local_passes(graph, steps, exact), facts)


def _writes(graph: EdgeGraph) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Each write that differs, with the clean values of those before it and of sources."""
    before = sources_at(graph, 1.0)
    for write in (part.block.write for part in graph.parts if part.block.write >= 0):
        before = {**before, write: graph.clean[write]}
        if not torch.equal(graph.clean[write], graph.corrupted[write]):
            yield write, before


def _share_after(graph: EdgeGraph) -> float:
    """The shares of the network behind the writes that differ, added up."""
    return sum(1 - len(before) / len(graph.parts) for _, before in _writes(graph))


def _slopes(graph: EdgeGraph, metric: Metric, steps: int) -> tuple[tuple[Tensor, Tensor], dict[int, Tensor]]:
    """((scores of nodes along their ways, scores at the clean run), gradients [points, *write] along each way); scores
    are sums over examples."""
    edges, nodes = torch.zeros(graph.shape()), torch.zeros(len(graph.writers), graph.positions)
    known = Known(graph, alone(graph, metric))
    clean = Carried(graph, sources_at(graph, 1.0), known)
    clean.run(metric, edges, nodes)
    if not steps:
        return (nodes, nodes), {write: slope[None] for write, slope in clean.slopes.items()}
    slopes = {write: slope.detach()[None] for write, slope in clean.slopes.items()}
    along = nodes / (2 * steps)
    for write, before in _writes(graph):
        if write not in slopes:
            continue
        for step in range(1, steps + 1):
            weight = 1 / (2 * steps) if step == steps else 1 / steps
            at = torch.lerp(graph.clean[write], graph.corrupted[write], step / steps)
            one = Carried(graph, {**before, write: at}, known, scored=write)
            some = torch.zeros_like(nodes)
            one.run(metric, edges, some)
            along += weight * some
            slope = one.slopes.get(write, torch.zeros_like(at)).detach()
            slopes[write] = torch.cat([slopes[write], slope[None]])
    return (along, nodes), slopes


def _measured(graph: EdgeGraph, metric: Metric, scores: Tensor, plain: Tensor, valid: Tensor, count: int) -> Tensor:
    """Scores with `count` of the valid ones made exact: those that differ most from `plain` ones, then the largest."""
    worth = torch.where(valid, (scores - plain).abs() + _LESS * scores.abs(), -1.0).flatten()
    places = worth.topk(min(count, int(valid.sum()))).indices
    if not len(places):
        return scores
    masks = torch.ones(len(places) + 1, *graph.shape(), dtype=torch.bool)
    rows = torch.arange(len(places))
    if scores.ndim == 3:
        masks.flatten(1)[rows, places] = False
    else:
        masks.flatten(2)[rows, :, places] = False
    found = evaluate(graph, metric, masks).mean(1)
    return scores.flatten().index_put((places,), (found[-1] - found[:-1]).to(scores)).view_as(scores)


def _local_passes(graph: EdgeGraph, steps: int, exact: int) -> float:
    """Passes by gradient along ways, blocks run again, and worlds of which half the network is run."""
    measured = min(exact, int(graph.valid.sum())) + min(exact, int(graph.valid.any(0).sum()))
    return 2 + 2 * steps * _share_after(graph) + reader_cost(graph, lambda part, port: True) + measured / 2
