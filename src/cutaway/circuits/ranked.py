"""Circuits by scores alone: a threshold, the best so many, and the best so many that hang together."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from .searches import searching
from .task import Task, Unit

_SIZES = 60  # circuits measured at most to find a faithful size


@searching("threshold", paper="Syed, Rager, Conmy 2023 (arXiv:2310.10348)", forwards=lambda units, options: 1)
def threshold(task: Task, *, threshold: float = 0.02) -> Tensor:
    """Everything whose score is at least `threshold` of the whole behaviour (the metric, clean minus corrupted).

    Raises InputError for a threshold below 0, and with a size, which a threshold does not keep to.
    """
    if threshold < 0 or task.goal.size is not None:
        raise InputError("The search 'threshold' needs a threshold of 0 or more and no size; search='top-n' has one.")
    least = threshold * abs(task.gap)
    return task.masks([[unit for unit, score in task.strength().items() if score >= least]])[0]


@searching("top-n", paper="Hanna, Pezzelle, Belinkov 2024 (arXiv:2403.17806)", forwards=lambda units, options: _SIZES)
def top_n(task: Task) -> Tensor:
    """The `size` highest scores, dead ends left out and made up for; without a size, the fewest that are faithful."""
    return of_size(task, task.ranked())


@searching(
    "greedy",
    paper="Hanna, Pezzelle, Belinkov 2024 (arXiv:2403.17806)",
    forwards=lambda units, options: _SIZES,
    levels=("edge",),
)
def greedy(task: Task) -> Tensor:
    """From the output back, always the highest score among edges into what is already reached, up to `size` edges;
    without a size, the fewest that are faithful."""
    return of_size(task, connected(task, task.strength()))


def connected(task: Task, strength: dict[Unit, float]) -> list[Unit]:
    """Edges in the order in which they are reached from the output, the strongest first; the others are left out."""
    graph = task.graph
    into: dict[int, list[Unit]] = {}
    for unit in strength:
        into.setdefault(unit[0], []).append(unit)
    heap: list[tuple[float, Unit]] = []
    open_rows = graph.parts[-1].ports[0].rows.tolist()
    reached: set[int] = set()
    order: list[Unit] = []
    while open_rows or heap:
        for row in open_rows:
            for unit in into.pop(row, ()):
                heapq.heappush(heap, (-strength[unit], unit))
        if not heap:
            break
        unit = heapq.heappop(heap)[1]
        order.append(unit)
        new = unit[1] not in reached
        reached.add(unit[1])
        open_rows = graph.leads[:, unit[1]].nonzero()[:, 0].tolist() if new else []
    return order


def fitting(task: Task, order: Sequence[Unit], size: int) -> Tensor:
    """The mask of the longest beginning of an order that has at most `size` units when its dead ends are cut off."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if task.count(task.masks([order[:middle]])[0]) <= size else (low, middle - 1)
    return task.masks([order[:low]])[0]


def of_size(task: Task, order: list[Unit]) -> Tensor:
    """The beginning of an order of the task's size, or the shortest one tried that is faithful."""
    return shortest(task, order) if task.goal.size is None else fitting(task, order, task.goal.size)


def shortest(task: Task, order: list[Unit]) -> Tensor:
    """The shortest beginning of an order whose faithfulness is within the task's slack, of those tried."""
    sizes, size = [], 1
    while size < len(order):
        sizes.append(size)
        size = max(size + 1, int(size * 1.4))
    sizes.append(len(order))
    for start in range(0, len(sizes), 6):
        task.report("choosing a size", start, len(sizes))
        good = _first_good(task, order, sizes[start : start + 6])
        if good is None:
            continue
        before = max((count for count in sizes if count < good), default=0)
        between = list(range(before + 1, good))[:: max(1, (good - before) // 8)]
        finer = _first_good(task, order, between) if between else None
        return task.masks([order[: finer or good]])[0]
    return task.masks([order])[0]


def _first_good(task: Task, order: list[Unit], sizes: list[int]) -> int | None:
    masks = task.masks([order[:size] for size in sizes])
    found = task.faithfulness(masks).tolist()
    task.curve += [(task.count(mask), value) for mask, value in zip(masks, found, strict=True)]
    return next((size for size, value in zip(sizes, found, strict=True) if abs(1 - value) <= task.goal.slack), None)
