"""Automatic circuit discovery: from the output back, every edge goes whose removal changes too little.

Conmy et al. 2023 (arXiv:2304.14997). The decisions are those of the sequential algorithm; they are measured in batches:
the edges into one reader are first removed alone, which predicts the decisions, and the circuits that the algorithm
would come to if they were all right are measured together. Whatever stands behind a wrong one is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..attribution.metric import Metric, kl_divergence
from ..attribution.scores import Scores
from ..errors import InputError
from .searches import searching
from .task import Task, Unit

_TAUS = 8  # thresholds tried for a target


@searching(
    "acdc",
    paper="Conmy et al. 2023 (arXiv:2304.14997)",
    forwards=lambda units, options: 6 * units * (1 if options["tau"] is not None else _TAUS) + 1,
    needs_scores=False,
)
def acdc(task: Task, *, tau: float | None = None, measure: str = "metric") -> Tensor:
    """Remove, reader by reader from the output back, what changes the loss by less than `tau`.

    The loss is |1 - faithfulness| with measure="metric", and the KL divergence from the clean output in nats with
    measure="kl". Without `tau`, the largest one that reaches the target is found by bisection.

    Raises InputError for a tau that is not above 0 and for an unknown measure.
    """
    if measure not in ("metric", "kl") or (tau is not None and not 0 < tau < math.inf):
        raise InputError("The search 'acdc' needs tau above 0, and measure='metric' or 'kl'.")
    loss = kl_divergence(task.graph.clean_trace) if measure == "kl" else None
    if tau is not None:
        found = _once(task, tau, loss)
    else:
        low, high = 1e-6, 4.0
        tau, found = low, task.full
        for _ in range(_TAUS):
            middle = math.sqrt(low * high)
            mask = _once(task, middle, loss)
            good = task.faithful(mask) if task.goal.size is None else task.count(mask) > task.goal.size
            if task.goal.size is None and good or task.goal.size is not None and not good:
                tau, found = middle, mask
            low, high = (middle, high) if good else (low, middle)
        if task.goal.size is not None and task.count(found) > task.goal.size:
            found = _once(task, high, loss)
    task.facts["tau"] = tau
    return found


def _score(task: Task, mask: Tensor, tau: float) -> None:
    """An edge's (or node's) score is the largest tau that keeps it."""
    table = tau * (mask if task.level == "edge" else mask.any(0)).float()
    if task.scores is not None:
        table = torch.maximum(table, task.scores.of(task.level))
    edges, nodes = (table, None) if task.level == "edge" else (None, table)
    task.scores = Scores(edges, nodes, "ACDC", task.forwards, {"baseline": task.graph.baseline})


def removals(task: Task) -> Iterator[list[Unit]]:
    """The units that are tried one after another: edges by reader, nodes by block, from the output back."""
    universe = task.universe
    column_of = 1 if task.level == "edge" else 0
    for part in reversed(task.graph.parts):
        if task.level == "node" and part.block.write >= 0:
            groups = [task.graph.columns[part.block.write].tolist()]
        else:
            groups = [[row] for port in part.ports for row in port.rows.tolist()] if task.level == "edge" else []
        for group in groups:
            members = set(group)
            some = [unit for unit in universe if unit[0] in members]
            if some:
                yield sorted(some, key=lambda unit: (-unit[column_of], unit))


def _once(task: Task, tau: float, metric: Metric | None) -> Tensor:
    """The circuit of one threshold."""
    kept = task.inside(task.full)
    done: set[Unit] = set()
    if task.scores is None:
        _score(task, task.full, 0.0)
    now = _losses(task, [kept], metric)[0]
    for number, group in enumerate(removals(task)):
        task.report("removing edges" if task.level == "edge" else "removing nodes", number, len(task.graph.readers))
        live = set(task.inside(task.masks([kept])[0]))
        kept = [unit for unit in kept if unit in live]  # what leads nowhere goes unmeasured
        some = [unit for unit in group if unit in live and unit not in done]  # steps of one cell share their readers
        done.update(some)
        kept, now = _decided(task, kept, some, now, tau, metric)
    mask = task.masks([kept])[0]
    _score(task, mask, tau)
    return mask


def _decided(
    task: Task, kept: list[Unit], some: list[Unit], now: float, tau: float, metric: Metric | None
) -> tuple[list[Unit], float]:
    """(what is left when each of `some` was decided on in turn, its loss)."""
    while some:
        alone = _losses(task, [[other for other in kept if other != unit] for unit in some], metric)
        predicted = [loss - now < tau for loss in alone]
        tried: list[list[Unit]] = []
        left = kept
        for unit, goes in zip(some, predicted, strict=True):
            tried.append([other for other in left if other != unit])
            left = tried[-1] if goes else left
        decided = 0
        for fewer, goes, loss in zip(tried, predicted, _losses(task, tried, metric), strict=True):
            really = loss - now < tau
            decided += 1
            if really:
                kept, now = fewer, loss
            if really != goes:
                break
        some = some[decided:]
    return kept, now


def _losses(task: Task, choices: list[list[Unit]], metric: Metric | None) -> list[float]:
    masks = task.masks(choices)
    found = -task.measure(masks, metric) if metric is not None else (1 - task.faithfulness(masks)).abs()
    losses: list[float] = found.tolist()
    return losses
