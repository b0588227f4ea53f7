"""Gradients at a run's own points: gradient × difference, attribution patching, AtP*, and direct logit attribution."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from .alone import alone
from .eap import Carried, Known, at_shares, check_moved, sources_at
from .edges import EdgeGraph, Part, Port
from .local import reader_cost, through_readers
from .methods import scoring
from .metric import Metric
from .rules import LN_RULE, ruled
from .scores import Scores

_POINTS = {"clean": [1.0], "corrupted": [0.0], "both": [0.0, 1.0]}


@scoring(
    "gradient",
    levels=("edge", "node"),
    paper="Shrikumar et al. 2016 (gradient × input, arXiv:1605.01713); Nanda 2023, attribution patching",
    passes=lambda graph, options: 2.0 * len(_POINTS.get(options.get("at", "clean"), "x")),
)
def gradient(graph: EdgeGraph, metric: Metric, *, at: str = "clean") -> Scores:
    """Gradient times difference, with gradients at the clean run, the corrupted one, or the mean of both.

    Raises InputError for another `at`, MetricError when the metric's gradient is zero everywhere.
    """
    if at not in _POINTS:
        raise InputError(f"Gradients are taken at 'clean', 'corrupted' or 'both', not at {at!r}; choose one of these.")
    return at_shares(graph, metric, _POINTS[at], f"gradient × difference at {at}", {"at": at})


@scoring(
    "attribution-patching",
    levels=("node",),
    paper="Nanda 2023, attribution patching; GradDrop: Kramár et al. 2024 (arXiv:2403.00745)",
    passes=lambda graph, options: 2.0 * len(_drops(graph, options.get("grad_drop", False))),
)
def attribution_patching(graph: EdgeGraph, metric: Metric, *, grad_drop: bool = False) -> Scores:
    """Nodes alone: the gradient at each write of the clean run times the write's difference.

    `grad_drop`: see `atp_star`. Raises MetricError when the metric's gradient is zero everywhere.
    """
    return replace(_patched(graph, metric, "attribution patching", grad_drop, exact=False), edges=None)


@scoring(
    "atp*",
    levels=("edge", "node"),
    paper="Kramár, Lieberum, Shah, Nanda 2024 (AtP*, arXiv:2403.00745)",
    passes=lambda graph, options: (
        (2 + reader_cost(graph, _in_pattern)) * len(_drops(graph, options.get("grad_drop", False)))
    ),
)
def atp_star(graph: EdgeGraph, metric: Metric, *, grad_drop: bool = False) -> Scores:
    """Attribution patching with attention patterns made again for each edge into a query or a key, so that none hides
    behind a saturated softmax; a node's score changes by what those of its edges change.

    `grad_drop`: the mean of absolute scores over passes in each of which one layer is passed by, so that effects which
    cancel are seen; these scores have no sign. Raises InputError when there are not two layers for it, MetricError when
    the metric's gradient is zero everywhere.
    """
    return _patched(graph, metric, "AtP*", grad_drop, exact=True)


@scoring(
    "direct",
    levels=("edge", "node"),
    paper="nostalgebraist 2020 (logit lens); Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    passes=lambda graph, options: 2,
)
def direct(graph: EdgeGraph, metric: Metric) -> Scores:
    """What each writer adds to the metric by linear paths to the output alone, the scale of the final norm held; less
    what it adds when it is ablated, so with baseline="zero" direct logit attribution.

    Edges into other readers score zero. `facts["constant"]` is the metric with every writer ablated so: the scores and
    it add up to the clean metric; where the metric is not linear they do so to first order. Raises MetricError when no
    writer that differs adds anything.
    """
    held = ruled(graph, LN_RULE)
    edges, nodes, _ = _carried_back(held, metric, {value: graph.clean[value] for value in graph.writes})
    check_moved(edges, metric)
    edges = edges * graph.valid[:, :, None] / graph.batch
    whole = metric(graph.clean_trace.logits, graph.net).mean()
    facts = {"baseline": graph.baseline, "constant": float(whole - edges.sum())}
    return Scores(edges, edges.sum(0), "direct attribution", 2.0, facts)


def _carried_back(
    graph: EdgeGraph, metric: Metric, given: dict[int, Tensor], dropped: frozenset[int] = frozenset()
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """(edges, nodes, gradients at writes) by one pass; scores are sums over examples."""
    edges, nodes = torch.zeros(graph.shape()), torch.zeros(len(graph.writers), graph.positions)
    one = Carried(graph, given, Known(graph, alone(graph, metric)), dropped)
    one.run(metric, edges, nodes)
    return edges, nodes, one.slopes


def _in_pattern(part: Part, port: Port) -> bool:
    """Whether a read is of what makes an attention's pattern: queries, keys and gates."""
    names = {read.value: read.port for read in part.block.reads}
    return part.block.kind == "attention" and names[port.value] != "v"


def _drops(graph: EdgeGraph, grad_drop: bool) -> list[frozenset[int]]:
    """The writes whose blocks are passed by in each pass: none, or a layer's."""
    layers: dict[str, set[int]] = {}
    for value, block in graph.writes.items():
        layers.setdefault(block.name.partition(".")[0], set()).add(value)
    named = [frozenset(writes) for name, writes in layers.items() if name[:1] == "L" and name[1:].isdecimal()]
    return named if grad_drop else [frozenset()]


def _patched(graph: EdgeGraph, metric: Metric, method: str, grad_drop: bool, exact: bool) -> Scores:
    """Gradients at the clean run; `exact`: edges into queries and keys up to what the attention writes."""
    edges, nodes = torch.zeros(graph.shape()), torch.zeros(len(graph.writers), graph.positions)
    drops = _drops(graph, grad_drop)
    if grad_drop and len(drops) < 2:
        raise InputError("GradDrop passes by one layer at a time and this network has no two; leave grad_drop out.")
    for dropped in drops:
        made, sums, slopes = _carried_back(graph, metric, sources_at(graph, 1.0), dropped)
        if exact:
            slopes = {write: slope[None] for write, slope in slopes.items() if write not in dropped}
            again = through_readers(graph, metric, slopes, _in_pattern)[0]
            sums += (again - made).nan_to_num(0.0).sum(0)
            made = torch.where(again.isnan(), made, again)
        for write in dropped:  # what a layer that is passed by writes reaches nothing
            made[:, graph.columns[write]], sums[graph.columns[write]] = 0.0, 0.0
        edges, nodes = (edges + made.abs(), nodes + sums.abs()) if grad_drop else (made, sums)
    check_moved(edges, metric)
    scale = 1.0 / (graph.batch * max(len(drops) - 1, 1))
    facts = {"baseline": graph.baseline, "grad_drop": grad_drop}
    passes = len(drops) * (2 + (reader_cost(graph, _in_pattern) if exact else 0))
    return Scores(edges * scale * graph.valid[:, :, None], nodes * scale, method, float(passes), facts)
