"""The linear map from one value of a run to another, as a matrix of units, by the cheapest way there is.

`lift/responses.py` sends one impulse at a time. Where wiring treats positions alike and apart (no positions mixed, no
norm's scale of a position), which two probes show, every position carries a row of its own; and where the end has fewer
units than the start, rows are carried back from the end instead (the wiring is linear, so its gradient is its
transpose).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..lift.frozen import Frozen, unguarded
from ..lift.responses import Units, arrivals, leads
from ..run.replay import Plan
from ..run.worlds import over

_NUMBERS = 8_000_000  # numbers in one batch of rows
_CLOSE = 1e-4  # of the largest number: what two ways of computing the same may differ by


def linear_map(frozen: Frozen, start: Units, end: Units, position: int) -> Tensor | None:
    """[start's units, end's units], in float32: what `end` reads, summed over positions, for a one at each unit of
    `start` at `position`; None where no wiring leads there. The units of several axes (head, dimension) are one axis.
    """
    if start.value == end.value:
        return torch.eye(_count(start))
    if not leads(frozen, start.value, end.value):
        return None
    answer, back = ways(frozen, start, end)
    few = _count(end) < _count(start)
    if _apart(frozen, start, end, position, answer):
        made = _packed(back, end, start, _count(end)) if few else _packed(answer, start, end, _count(start))
        return made.mT.contiguous() if few else made
    if few:
        return _pulled(back, start, end, position)
    return arrivals(frozen, start, start.impulses(position, None), [end])[0].flatten(1).float()


def factors(frozen: Frozen, start: Units, ends: list[Units], position: int) -> list[float | None]:
    """For each end, the factor, where the map between equally many units is the identity times one; NaN where it is
    anything else, and None where no wiring leads there."""
    found: list[float | None] = [None if end.value != start.value else 1.0 for end in ends]
    others = [at for at, end in enumerate(ends) if end.value != start.value]
    open_ends = [at for at in others if leads(frozen, start.value, ends[at].value)]
    if not open_ends:
        return found
    rows = torch.randn(2, _count(start), generator=torch.Generator().manual_seed(0))
    steps = frozen.plan([ends[at].value for at in open_ends], _apart_from(frozen, start.value))
    steps = unguarded(frozen.tape, steps)
    dtype = getattr(torch, frozen.flow.graph.values[start.value].dtype)
    given = torch.stack([torch.zeros(frozen.flow.shape(start.value)), *(_placed(start, row, position) for row in rows)])
    with torch.no_grad():
        made = [frozen.run(steps, {start.value: value.to(dtype)}) for value in given]
    for at in open_ends:
        end = ends[at]
        zero, *got = (end.gathered(world[end.value], None).flatten().float() for world in made)
        found[at] = _factor(rows, torch.stack(got) - zero)
    return found


def _factor(rows: Tensor, got: Tensor) -> float:
    if rows.shape != got.shape:
        return float("nan")
    factor = float((got * rows).sum() / rows.square().sum())
    return factor if (got - factor * rows).abs().max() <= _CLOSE * got.abs().max() else float("nan")


def _apart_from(frozen: Frozen, start: int) -> set[int]:
    """Activations that wiring does not lead to from `start`. They are zero in a linear map, and need not be made."""
    flow, reached, waiting = frozen.flow, {start}, [start]
    while waiting:
        for op in flow.users(waiting.pop()):
            for value in op.outputs:
                if value not in reached:
                    reached.add(value)
                    if value not in frozen.writes:
                        waiting.append(value)
    return (flow.activations - reached) | set(frozen.writes) | {start}


def _count(units: Units) -> int:
    return prod(units.shape[axis] for axis in units.axes)


def _placed(units: Units, row: Tensor, position: int) -> Tensor:
    """A value of zeros with a row of units at one position."""
    value = torch.zeros(units.shape)
    where: list[int | slice] = [0] * len(units.shape)
    for axis in units.places:
        where[axis] = units.shape[axis] // 2 if len(units.places) > 1 else position % units.shape[axis]
    for axis in units.axes:
        where[axis] = slice(None)
    value[tuple(where)] = row.view([units.shape[axis] for axis in sorted(units.axes)])
    return value.flatten(0, 1) if units.tiled else value


def ways(frozen: Frozen, start: Units, end: Units) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A linear map and its transpose as functions of many values at once [rows, *shape]."""
    steps: Plan = unguarded(frozen.tape, frozen.plan([end.value], _apart_from(frozen, start.value) - {end.value}))
    dtype = getattr(torch, frozen.flow.graph.values[start.value].dtype)
    shapes = frozen.flow.shape(start.value)
    zero = torch.zeros(shapes, dtype=dtype)
    with torch.no_grad():
        constant = frozen.run(steps, {start.value: zero})[end.value]

    def answer(rows: Tensor) -> Tensor:
        with torch.no_grad():
            made = over(lambda world: frozen.run(steps, world)[end.value], {start.value: rows.to(dtype)})
        return (made - constant).float()

    def back(rows: Tensor) -> Tensor:
        with torch.enable_grad():
            x = zero.clone().requires_grad_()
            out = frozen.run(steps, {start.value: x})[end.value]
            rows = rows.to(out.dtype)
            try:
                with warnings.catch_warnings():  # torch loads decompositions of some gradients by a deprecated way
                    warnings.simplefilter("ignore")
                    found = torch.autograd.grad(out, x, rows, is_grads_batched=True, retain_graph=True)[0]
            except RuntimeError:  # an op whose gradient has no batching rule
                found = torch.stack([torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows])
        return found.float()

    return answer, back


def _spread(units: Units) -> tuple[int, list[int]]:
    """How many positions a value has, examples counted, and the order of axes that puts them before its units."""
    outer = [axis for axis in range(len(units.shape)) if axis not in units.axes]
    return prod(units.shape[axis] for axis in outer), [*outer, *sorted(units.axes)]


def _filled(units: Units, rows: Tensor) -> Tensor:
    """Values [batches, *shape] whose positions hold one row of units each; rows [batches × positions, units]."""
    places, order = _spread(units)
    shape = [units.shape[axis] for axis in order]
    whole = rows.view(-1, *shape)
    return whole.permute(0, *[order.index(axis) + 1 for axis in range(len(order))])


def _read(units: Units, values: Tensor) -> Tensor:
    """[batches × positions, units]: the rows that values [batches, *shape] hold."""
    places, order = _spread(units)
    return values.permute(0, *[axis + 1 for axis in order]).reshape(len(values) * places, -1)


def _apart(frozen: Frozen, start: Units, end: Units, position: int, answer: Callable[[Tensor], Tensor]) -> bool:
    """Whether every position of `start` goes to the same position of `end` alone, and all by the same map."""
    places = _spread(start)[0]
    outer = [start.shape[axis] for axis in range(len(start.shape)) if axis not in start.axes]
    if places < 2 or start.tiled or end.tiled or len(start.places) > 1:
        return False
    if outer != [end.shape[axis] for axis in range(len(end.shape)) if axis not in end.axes]:
        return False
    row = torch.randn(_count(start), generator=torch.Generator().manual_seed(0))
    alone = torch.zeros(places, len(row))
    here = position % places
    alone[here] = row
    other = torch.randn(places, len(row), generator=torch.Generator().manual_seed(1))
    mixed = other.clone()
    mixed[here] = row
    made = answer(torch.cat([_filled(start, rows) for rows in (alone, row.expand(places, -1), mixed)]))
    one, same, many = _read(end, made).unflatten(0, (3, places))
    wanted = one[here]
    limit = _CLOSE * float(wanted.abs().max())
    rest = torch.cat([one[:here], one[here + 1 :]])
    found = max(float(rest.abs().max()), float((same - wanted).abs().max()), float((many[here] - wanted).abs().max()))
    return 0 < limit and found <= limit


def _packed(way: Callable[[Tensor], Tensor], start: Units, end: Units, count: int) -> Tensor:
    """[count, end's units]: rows of the identity sent through, one a position."""
    places, width = _spread(start)[0], _count(start)
    size = max(1, _NUMBERS // max(prod(start.shape) + prod(end.shape), 1))
    found = []
    for first in range(0, count, size * places):
        last = min(first + size * places, count)
        rows = torch.zeros(-(-(last - first) // places) * places, width)
        rows[torch.arange(last - first), torch.arange(first, last)] = 1
        found.append(_read(end, way(_filled(start, rows)))[: last - first])
    return torch.cat(found)


def _pulled(back: Callable[[Tensor], Tensor], start: Units, end: Units, position: int) -> Tensor:
    """[start's units, end's units]: each unit of the end, at all its positions, carried back to one of the start."""
    shape = [end.shape[axis] if axis in end.axes else 1 for axis in range(len(end.shape))]
    size = max(1, _NUMBERS // max(prod(start.shape) + prod(end.shape), 1))
    found = []
    for rows in torch.eye(_count(end)).split(size):
        ones = rows.view(-1, *shape).expand(-1, *end.shape).clone()
        values = back(ones.flatten(1, 2) if end.tiled else ones)
        values = values.unflatten(1, start.shape[:2]) if start.tiled else values
        found.append(_at(start, values, position))
    return torch.cat(found).mT.contiguous()


def _at(units: Units, values: Tensor, position: int) -> Tensor:
    """[values, units]: what values hold at one position of the first example."""
    where: list[int | slice] = [slice(None)] + [0] * len(units.shape)
    for axis in units.places:
        where[axis + 1] = units.shape[axis] // 2 if len(units.places) > 1 else position % units.shape[axis]
    for axis in units.axes:
        where[axis + 1] = slice(None)
    return values[tuple(where)].flatten(1)
