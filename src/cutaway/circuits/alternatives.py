"""Other circuits for the same behaviour: found again where the edges of the circuits so far are forbidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .circuit import Circuit
from .search import plan_of, search_graph
from .task import Goal, Progress, Task, Unit

_SAME = 0.9  # circuits that share more than this are one circuit


def alternatives(
    circuit: Circuit, count: int = 3, *, refine: int = 100, progress: Progress | None = None
) -> list[Circuit]:
    """Up to `count` other circuits as faithful as this one's target, each without the edges (nodes) of all earlier
    ones that the behaviour can do without. Empty when there are none.

    Each one's settings["overlap"] are the Jaccard indices of its parts with those of the circuit and of the earlier
    alternatives. What they share is what no faithful circuit found does without.

    Raises InputError for a count below 1.
    """
    if count < 1:
        raise InputError(f"At least one alternative has to be asked for, and it is {count}.")
    target = circuit.settings.get("target_faithfulness") or 0.9
    plan = plan_of(circuit.level, "refine", "eap-ig", {"refine": refine}, min(target, circuit.faithfulness), None)
    goal = Goal(max(plan.goal.slack, abs(1 - circuit.faithfulness)))
    found: list[Circuit] = []
    task = Task(circuit.graph, circuit.metric, circuit.level, circuit.scores, goal)
    for number in range(count):
        if progress is not None:
            progress("alternatives", number, count)
        allowed = _without(task, [circuit, *found])
        if allowed is None:
            break
        other = search_graph(circuit.graph, circuit.metric, plan, progress=progress, allowed=allowed)
        shared = [overlap(other, earlier) for earlier in (circuit, *found)]
        if abs(1 - other.faithfulness) > goal.slack or max(shared) > _SAME:
            break
        other.settings["overlap"] = shared
        found.append(other)
    return found


def overlap(one: Circuit, other: Circuit) -> float:
    """The Jaccard index of two circuits' edges (their nodes, where they are made of nodes): shared of all."""
    masks = [circuit.mask if circuit.level == "edge" else circuit.mask.any(0) for circuit in (one, other)]
    either = int((masks[0] | masks[1]).sum())
    return int((masks[0] & masks[1]).sum()) / either if either else 1.0


def _without(task: Task, circuits: list[Circuit]) -> Tensor | None:
    """What is left when as much of earlier circuits as can go is forbidden; None when nothing can.

    All of it goes if the rest stays faithful; else part after part, those that are needed least first, as long as the
    rest does.
    """
    listed: dict[Unit, None] = {}
    for circuit in circuits:
        listed |= dict.fromkeys(task.inside(circuit.mask & task.full))
    units = list(listed)
    left, changed = task.full, False
    while units:
        rest = left.clone()
        for unit in units:
            rest &= task.without(left, [unit])[0]
        several = torch.stack([rest, *task.without(left, units)])
        losses = (1 - task.faithfulness(several)).abs().tolist()
        if losses[0] <= task.goal.slack:
            return rest
        best = min(range(len(units)), key=lambda place: losses[1 + place])
        if losses[1 + best] > task.goal.slack:
            break
        left, changed = several[1 + best], True
        units.pop(best)
    return left if changed else None
