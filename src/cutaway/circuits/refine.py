"""The search of this package: cheap scores for everything, exact ones where it matters, and then minimality.

The best units by cheap scores are scored again by the exact effect of corrupting each alone. Of several orders (exact,
cheap, connected from the output back) the shortest faithful beginning is taken, then everything that it does not need
is dropped, as measured. For a size, what is needed least goes until the size is reached, and single exchanges follow.
Each circuit on the way is measured exactly; the best one by the task's goal is the answer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InputError, MetricError
from .ranked import connected, fitting, shortest
from .searches import searching
from .task import WORLDS, Task, Unit

_SHARES = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.05)  # of the parts that could go, how many are tried together
_EXACT = 0.4  # of the passes that are left, what exact effects may take
_EXCHANGES = 6  # how many units are considered for going out and for coming in


def most(units: int, options: dict[str, Any]) -> int:
    """The forward passes that `refine` keeps to."""
    return 8 * min(units, options["refine"]) + 400


@searching("refine", paper="this package: exact patching and backward elimination", forwards=most)
def refine(task: Task, *, refine: int = 200) -> Tensor:
    """Exact effects of the `refine` best by cheap score, the shortest faithful circuit, and only what it needs.

    Raises InputError for a `refine` below 1, MetricError when nothing that differs moves the metric.
    """
    if refine < 1:
        raise InputError("The search 'refine' needs refine of at least 1.")
    size, cheap = task.goal.size, task.ranked()
    if size is not None:  # a circuit of this size stands before anything else, whatever the bound
        task.faithfulness(fitting(task, cheap, size)[None])
    shortest(task, cheap)
    orders = _orders(task, cheap, max(8, min(refine, int((task.limit - task.forwards) * _EXACT))))
    if size is not None:
        task.faithfulness(task.masks([task.inside(fitting(task, order, size)) for order in orders]))
    found = min((shortest(task, order) for order in orders), key=task.count)
    task.faithfulness(found[None])
    units = _needed(task, task.inside(found))
    if size is not None:
        if len(units) > size:
            units = _down_to(task, units, size)
        _exchange(task, orders[0], size)
    return task.best[1]


def _orders(task: Task, cheap: list[Unit], refine: int) -> list[list[Unit]]:
    """All units, the best first: by exact effect where it was measured and cheap score behind, by cheap score alone,
    and from the output back."""
    strength = task.strength()
    front = cheap[:refine]  # those whose score is 0 too: what is flat here has no gradient and may have an effect
    whole = float(task.faithfulness(task.full[None])[0])
    effects: dict[Unit, float] = {}
    for start in range(0, len(front), WORLDS):
        task.report("exact patching", start, len(front))
        some = front[start : start + WORLDS]
        lost = (whole - task.faithfulness(task.without(task.full, some))) * task.gap
        effects |= dict(zip(some, lost.tolist(), strict=True))
    if not any(effects.values()):
        raise MetricError(f"The metric '{task.metric.name}' is reached by nothing that differs between the runs.")
    if task.level == "edge":
        task.exact |= effects
    exact = sorted(front, key=lambda unit: -abs(effects[unit])) + [unit for unit in cheap if unit not in effects]
    orders = [exact, cheap]
    if task.level == "edge":
        # What was not measured comes behind all that was.
        rest = min(abs(effect) for effect in effects.values()) / (strength[cheap[0]] or 1.0)
        orders.append(connected(task, {u: abs(effects[u]) if u in effects else rest * strength[u] for u in exact}))
    return orders


def _needed(task: Task, units: list[Unit]) -> list[Unit]:
    """Drop what the circuit does not need, in ever smaller groups, and single units last.

    Each round measures what each group is needed for, then drops as many of the least needed groups together as
    leave the circuit faithful. Rounds of single units go on until none can be dropped.
    """
    groups = 8
    while len(units) > 1:
        single = groups >= len(units)
        task.report("minimality", 0, len(units))
        size = 1 if single else -(-len(units) // groups)
        chunks = [units[start : start + size] for start in range(0, len(units), size)]
        fewer = _drop(task, units, chunks)
        if fewer is None and single:
            break
        if fewer is not None:
            units = task.inside(task.masks([fewer])[0])
        if fewer is None or not single:
            groups *= 2
    return units


def _drop(task: Task, units: list[Unit], chunks: list[list[Unit]]) -> list[Unit] | None:
    """The units without as many chunks as stay faithful, or None when no chunk can go."""
    loss = abs(1 - float(task.faithfulness(task.masks([units]))[0]))
    need = _losses(task, units, chunks)
    limit = max(task.goal.slack, loss)
    spare = [place for place in sorted(range(len(chunks)), key=need.__getitem__) if need[place] <= limit]
    counts = sorted({max(1, round(len(spare) * share)) for share in _SHARES} | {1, 2}, reverse=True)
    trials = []
    for count in counts:
        gone = {unit for place in spare[:count] for unit in chunks[place]}
        if count <= len(spare) and len(gone) < len(units):
            trials.append([unit for unit in units if unit not in gone])
    if not trials:
        return None
    found = (1 - task.faithfulness(task.masks(trials))).abs().tolist()
    return next((trial for trial, value in zip(trials, found, strict=True) if value <= limit), None)


def _losses(task: Task, units: list[Unit], chunks: list[list[Unit]]) -> list[float]:
    """How far from 1 the faithfulness is without each chunk."""
    without = [[unit for unit in units if unit not in set(chunk)] for chunk in chunks]
    losses: list[float] = (1 - task.faithfulness(task.masks(without))).abs().tolist()
    return losses


def _down_to(task: Task, units: list[Unit], size: int) -> list[Unit]:
    """What is needed least goes, an eighth of the surplus at a time, until the size is reached."""
    while len(units) > size:
        task.report("shrinking", 0, len(units) - size)
        losses = _losses(task, units, [[unit] for unit in units])
        order = sorted(range(len(units)), key=losses.__getitem__)
        gone = set(order[: max(1, (len(units) - size) // 8)])
        units = task.inside(task.masks([[unit for place, unit in enumerate(units) if place not in gone]])[0])
    if units:
        task.faithfulness(task.masks([units]))
    return units


def _exchange(task: Task, order: list[Unit], size: int) -> None:
    """Units come in and go out as long as that brings the best circuit closer to faithfulness 1."""
    while True:
        before = task.best[0]
        units = task.inside(task.best[1])
        task.report("exchanging", len(units), size)
        kept = set(units)
        outside = [unit for unit in order if unit not in kept][: 4 * _EXCHANGES]
        if not outside or not units:
            return
        tried = [units + [unit] for unit in outside]
        if len(units) >= size:
            losses = _losses(task, units, [[unit] for unit in units])
            weakest = sorted(range(len(units)), key=losses.__getitem__)[:_EXCHANGES]
            rests = [[unit for place, unit in enumerate(units) if place != gone] for gone in weakest]
            tried = [rest + [unit] for rest in rests for unit in outside[:_EXCHANGES]]
        task.faithfulness(task.masks(tried))
        if not task.best[0] < before:
            return
