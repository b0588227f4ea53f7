"""Learned edge masks, and learned values for what is ablated.

Bhaskar et al. 2024, "Finding transformer circuits with edge pruning" (arXiv:2406.16778): each edge has a hard-concrete
gate (Louizos et al. 2018, arXiv:1712.01312); the gates are trained so that the gated network gives the clean run's
output, under a Lagrangian that draws their expected number to a target. Li, Janson 2024, "Optimal ablation for
interpretability" (arXiv:2409.09951): the constants that an ablated part carries are those that do the least harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..attribution.baselines import place_name
from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, as_metric, check_gradient, kl_divergence
from ..attribution.scores import Scores
from ..errors import InputError
from .ranked import of_size
from .searches import searching
from .soft import soft_run
from .task import Task

_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # the temperature and the stretch of the hard-concrete distribution
_RATE, _MULTIPLIER_RATE = 0.2, 0.2
_SHARE = 0.1  # of the units that gates are drawn to, where no size is given

Loss = Callable[[Tensor], Tensor]


@searching(
    "edge-pruning",
    paper="Bhaskar et al. 2024 (arXiv:2406.16778); optimal ablation: Li, Janson 2024 (arXiv:2409.09951)",
    forwards=lambda units, options: 2 * options["steps"] + 60,
    needs_scores=False,
    whole=True,
)
def edge_pruning(task: Task, *, steps: int = 200, loss: str = "metric", optimal: bool = False, seed: int = 0) -> Tensor:
    """Gates trained for `steps` steps, then the `size` highest, or the fewest of the highest that are faithful.

    `loss` is the "metric"'s squared distance from the clean run, in units of the behaviour, or "kl", the divergence of
    outputs. `optimal` learns what ablated writers carry with the gates; the circuit's graph then has these constants.

    Raises InputError for fewer than one step or another loss, MetricError when the metric has no gradient.
    """
    if steps < 1 or loss not in ("metric", "kl"):
        raise InputError("The search 'edge-pruning' needs steps of at least 1, and loss='metric' or 'kl'.")
    constants = Constants(task.graph) if optimal else None
    if constants is not None:  # whatever is not constant can be ablated, also what is the same in both runs
        task.on(_with(task.graph, constants))
    graph, generator = task.graph, torch.Generator().manual_seed(seed)
    open_units = task.full if task.level == "edge" else task.full.any(0)
    strength = torch.full(open_units.shape, 1.0).requires_grad_()
    learned = [strength, *(constants.values.values() if constants else ())]
    multipliers = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam(learned, lr=_RATE)
    dual = torch.optim.Adam([multipliers], lr=_MULTIPLIER_RATE, maximize=True)
    apart = _loss(graph, task.metric, loss, task.gap)
    units = int(open_units.sum())
    goal = (task.goal.size or max(1.0, _SHARE * units)) / units
    for step in range(steps):
        task.report("learning masks", step, steps)
        gates = torch.where(open_units, _sample(strength, generator), 1.0)
        if task.level == "node":
            gates = gates.expand(graph.shape())
        wanted = 1 + (goal - 1) * min(1.0, 2 * (step + 1) / steps)  # half of the steps for the way there
        over_target = torch.sigmoid(strength - _BETA * math.log(-_LOW / _HIGH))[open_units].mean() - wanted
        total = apart(soft_run(graph, gates, constants.spread() if constants else None))
        total = total + multipliers[0] * over_target + multipliers[1] * over_target**2
        _step(total, [*learned, multipliers], optimiser, dual)
        task.forwards += 2
    table = torch.sigmoid(strength.detach()) * open_units
    if constants is not None:
        task.on(_with(graph, constants))
    edges, nodes = (table, None) if task.level == "edge" else (None, table)
    task.scores = Scores(edges, nodes, f"edge pruning, {steps} steps", 2 * steps, {"baseline": graph.baseline})
    return of_size(task, task.ranked())


def optimal_baseline(
    graph: EdgeGraph,
    metric: Metric | Callable[[Tensor], Tensor],
    mask: Tensor,
    *,
    steps: int = 100,
    loss: str = "metric",
) -> dict[str, Tensor]:
    """Constants, by writer, with which everything outside a circuit is ablated with the least harm, for
    `EdgeGraph(baseline=...)`. `mask` [readers, writers, positions] is the circuit's. Li, Janson 2024
    (arXiv:2409.09951).

    Raises InputError for a mask that does not fit, fewer than one step or another loss, MetricError for a metric
    without a gradient.
    """
    if tuple(mask.shape) != graph.shape() or steps < 1 or loss not in ("metric", "kl"):
        raise InputError(
            f"Optimal constants need a mask of shape {graph.shape()}, steps of at least 1, and loss='metric' or 'kl'."
        )
    metric, constants = as_metric(metric), Constants(graph)
    with torch.no_grad():
        zero = torch.zeros(graph.shape())
        clean = metric(graph.clean_trace.logits, graph.net).mean()
        gap = float(clean - metric(soft_run(graph, zero), graph.net).mean())
    apart = _loss(graph, metric, loss, gap or 1.0)
    optimiser = torch.optim.Adam(list(constants.values.values()), lr=1.0)
    best, least = constants.named(), math.inf
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for _ in range(steps):
        total = apart(soft_run(graph, mask.float(), constants.spread()))
        if float(total.detach()) < least:
            best, least = constants.named(), float(total.detach())
        _step(total, list(constants.values.values()), optimiser)
        schedule.step()
    return best


class Constants:
    """What each write carries when it is ablated: the same for all examples and positions, from the mean on, in units
    of the write's spread."""

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.start, self.scale, self.values = {}, {}, {}
        for write, block in graph.writes.items():
            value, axis = graph.clean[write], graph.position_axis(write)
            # Where examples and slots lie on one axis, or one axis is both, only the mean over positions is taken.
            axes = {axis} if axis is not None else set()
            if not block.slots.tiled and block.slots.first != block.slots.axis:
                axes.add(block.slots.first)
            mean = value.mean(sorted(axes), keepdim=True) if axes else value
            self.start[write] = mean.detach()
            self.scale[write] = float((value - mean).std()) * 0.1 or 0.1
            self.values[write] = torch.zeros_like(mean).requires_grad_()

    def spread(self) -> dict[int, Tensor]:
        """By write, over examples and positions, with a gradient."""
        made = {}
        for write, moved in self.values.items():
            whole = self.graph.clean[write]
            made[write] = (self.start[write] + self.scale[write] * moved).expand_as(whole)
        return made

    def named(self) -> dict[str, Tensor]:
        """By writer's name."""
        return {
            place_name(block): (self.start[write] + self.scale[write] * self.values[write]).detach().clone()
            for write, block in self.graph.writes.items()
        }


def _with(graph: EdgeGraph, constants: Constants) -> EdgeGraph:
    return graph.on(graph.clean_trace, graph.corrupted_trace, baseline=constants.named())


def _sample(strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gates between 0 and 1, many of them exactly 0 or 1."""
    noise = torch.rand(strength.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((noise.logit() + strength) / _BETA)
    return (soft * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _loss(graph: EdgeGraph, metric: Metric, kind: str, gap: float) -> Loss:
    """How far an output is from the clean run's."""
    measured = kl_divergence(graph.clean_trace) if kind == "kl" else metric
    wanted = measured(graph.clean_trace.logits, graph.net).detach()

    def apart(output: Tensor) -> Tensor:
        found = measured(output, graph.net)
        check_gradient(measured, found)
        return -found.mean() if kind == "kl" else ((found - wanted) / gap).square().mean()

    return apart


def _step(total: Tensor, learned: list[Tensor], *optimisers: Any) -> None:
    found: Iterable[Tensor | None] = torch.autograd.grad(total, learned, allow_unused=True)
    for value, gradient in zip(learned, found, strict=True):
        value.grad = torch.zeros_like(value) if gradient is None else gradient
    for optimiser in optimisers:
        optimiser.step()
