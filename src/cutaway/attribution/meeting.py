"""How contributions meet in a read, when many mixtures of them are made at once.

Two things spare work. Where linear contributions are added up, a mixture is a base plus the slots' differences that a
mask lets through, so many masks are one product of matrices. And where a read comes out of a projection, each slot's
columns are made from that slot's mixture alone, not the whole projection from each mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lift.blocks import by_slot, slot_mask
from ..lift.frozen import unguarded
from ..lift.ops import sort_name
from ..run.replay import Plan, execute, plan, stored
from ..run.worlds import over
from .columns import through
from .edges import EdgeGraph, Port

_ADDS = frozenset({"add", "iadd", "add_"})
_SPREAD = 4_000_000  # numbers of a batch of gradients that say which columns slots read


@dataclass(frozen=True, eq=False)
class Total:
    """The value `at` is the sum of all contributions and of constants: `to` makes it of them, `rest` the target of
    it."""

    at: int
    to: Plan
    rest: Plan


@dataclass(frozen=True, eq=False)
class Sliced:
    """A value by way of a projection: `enter` makes its `source`, `weight` [out, in] and `offset` what is `made`, and
    `after` the value. `columns` are those of each slot: outputs for a read, inputs for a contribution."""

    source: int
    made: int
    enter: Plan
    after: Plan
    weight: Tensor
    offset: Tensor
    columns: tuple[Tensor, ...]

    def run(self, graph: EdgeGraph, port: Port, arrived: Tensor, combinations: Tensor) -> Tensor:
        """[versions, …]: the read, each slot from its own row of `arrived`. combinations: [versions, slots]."""
        made = arrived.new_zeros(len(combinations), *arrived.shape[1:-1], len(self.weight))
        patterns, group, sizes = torch.unique(combinations, dim=1, return_inverse=True, return_counts=True)
        for number in sizes.argsort(descending=True).tolist():  # what most slots see, and then the others on top of it
            slots = range(port.slots.count)
            if 2 * int(sizes[number]) <= port.slots.count:
                slots = (group == number).nonzero()[:, 0].tolist()
            columns = torch.cat([self.columns[slot] for slot in slots])
            place = _side_by_side(columns)
            rows, back = torch.unique(patterns[:, number], return_inverse=True)
            picked = arrived if len(rows) == len(arrived) else arrived[rows]
            found = torch.nn.functional.linear(picked, self.weight[place], self.offset[place])
            made[..., place] = found if torch.equal(back, torch.arange(len(rows))) else found[back]
        return over(lambda world: graph.run(self.after, world)[port.value], {self.made: made})


def sliced(graph: EdgeGraph, port: Port) -> Sliced | None:
    """How to make a read slot by slot; None where slots share columns or there is no projection."""
    last, tape = port.through, graph.tape
    if last is None or port.slots.count < 2:
        return None
    given = plan(tape, [], [last.source, last.made])
    now = execute(tape, given)
    source, made = now[last.source], now[last.made].detach()
    weight = stored(tape, last.weight).detach()
    weight = weight if last.by_row else weight.T
    if weight.dtype != source.dtype or made.shape != (*source.shape[:-1], len(weight)):
        return None
    touched = _touched(graph, port, made)
    if touched is None or int(touched.sum(0).max()) > 1:
        return None
    op = unguarded(tape, plan(tape, [], [last.made], [last.source]))
    offset = graph.run(op, {last.source: torch.zeros_like(source)})[last.made].flatten(0, -2)[0]
    enter = unguarded(tape, plan(tape, [], [last.source], port.merge.stored))
    return Sliced(
        last.source, last.made, enter, last.after, weight, offset, tuple(row.nonzero()[:, 0] for row in touched)
    )


def _touched(graph: EdgeGraph, port: Port, made: Tensor) -> Tensor | None:
    """[slots, columns]: the columns that each slot of a read depends on, by gradients of noise."""
    last, slots = port.through, port.slots
    assert last is not None
    with torch.enable_grad():
        leaf = made.clone().requires_grad_()
        read = graph.run(last.after, {last.made: leaf})[port.value]
        noise = torch.randn(read.shape, generator=torch.Generator().manual_seed(0)).to(read)
        found = []
        for some in torch.eye(slots.count, dtype=torch.bool).split(max(1, _SPREAD // made.numel())):
            rows = torch.stack([noise * slot_mask(row[:, None], noise, slots, None) for row in some])
            try:
                got = torch.autograd.grad(read, [leaf], rows, is_grads_batched=True, retain_graph=True)[0]
            except RuntimeError:  # an op without a batching rule
                return None
            found.append(got.flatten(1, -2).ne(0).any(1))
    return torch.cat(found)


def total(graph: EdgeGraph, port: Port, target: int) -> Total | None:
    """Where all contributions to a read are added up on the way to `target`; None where they are not, are not linear,
    or positions are told apart."""
    tape, ends = graph.tape, [stem.value for stem in port.stems]
    if graph.positions > 1 or not all(stem.linear for stem in port.stems):
        return None
    parts: dict[int, frozenset[int]] = {end: frozenset({end}) for end in ends}
    moving = set(ends)
    found = ends[0] if len(ends) == 1 else None
    values = graph.wiring.flow.graph.values
    for step in unguarded(tape, plan(tape, [], [target], port.merge.stored)).steps:
        op = graph.wiring.flow.graph.ops[step.op]
        arriving = [value for value in op.inputs if value in moving]
        moving.update(op.outputs if arriving else ())
        if not arriving or sort_name(op) not in _ADDS or len(op.outputs) != 1 or tape.calls[step.op].kwargs:
            continue
        out, together = op.outputs[0], [parts.get(value, frozenset()) for value in arriving]
        whole = frozenset().union(*together)
        alike = all(values[value].shape == values[out].shape for value in arriving)
        if alike and all(together) and len(whole) == sum(map(len, together)) and len(tape.calls[step.op].args) == 2:
            parts[out] = whole
            found = out if len(whole) == len(ends) else found
    if found is None:
        return None
    rest = unguarded(tape, plan(tape, [], [target], [*port.merge.stored, found]))
    if any(value in moving for value in rest.stored if value != found):
        return None
    return Total(found, unguarded(tape, plan(tape, [], [found], port.merge.stored)), rest)


def differences(graph: EdgeGraph, feed: int, steps: Plan | None, value: int, versions: Tensor) -> Tensor:
    """[versions, slots, …]: how each slot's difference from its ablated values changes a linear contribution."""
    slots, change = graph.writes[feed].slots, versions - graph.corrupted[feed]
    if steps is None:
        return torch.stack([by_slot(row, slots) for row in change])
    split = known(graph, value, "spread", lambda: _spread(graph, feed, steps, value))
    if split is None:
        parts = torch.stack([by_slot(row, slots) for row in change])
        made = over(lambda world: graph.run(steps, world)[value], {feed: parts.flatten(0, 1)})
        zero = graph.run(steps, {feed: torch.zeros_like(change[0])})[value]
        return (made - zero).unflatten(0, parts.shape[:2])
    source = over(lambda world: graph.run(split.enter, world)[split.source], {feed: change}) - split.offset
    places = map(_side_by_side, split.columns)
    made = torch.stack([torch.nn.functional.linear(source[..., p], split.weight[:, p]) for p in places], 1)
    if split.made == value:
        return made
    rest = over(lambda world: graph.run(split.after, world)[value], {split.made: made.flatten(0, 1)})
    zero = graph.run(split.after, {split.made: torch.zeros_like(made[0, 0])})[value]
    return (rest - zero).unflatten(0, made.shape[:2])


def _spread(graph: EdgeGraph, feed: int, steps: Plan, value: int) -> Sliced | None:
    """The projection of a contribution, of which each slot of the write fills columns of its own (here of the source).

    None where there is none, or slots share columns.
    """
    last, slots = through(graph.wiring.flow, value, steps), graph.writes[feed].slots
    if last is None or slots.count < 2:
        return None
    enter = unguarded(graph.tape, plan(graph.tape, [], [last.source], steps.stored))
    noise = torch.randn(graph.clean[feed].shape, generator=torch.Generator().manual_seed(0)).to(graph.clean[feed])
    zero = graph.run(enter, {feed: torch.zeros_like(noise)})[last.source]
    if zero.ndim < 2 or by_slot(noise, slots).numel() > 8 * _SPREAD:
        return None
    found = over(lambda world: graph.run(enter, world)[last.source], {feed: by_slot(noise, slots)}) - zero
    touched = found.flatten(1, -2).ne(0).any(1)
    weight = stored(graph.tape, last.weight).detach()
    weight = weight if last.by_row else weight.T
    if int(touched.sum(0).max()) > 1 or weight.dtype != found.dtype:
        return None
    columns = tuple(row.nonzero()[:, 0] for row in touched)
    return Sliced(last.source, last.made, enter, last.after, weight, zero, columns)


def _side_by_side(places: Tensor) -> Tensor | slice:
    """Places as a slice where they are neighbours, so that no weights are copied."""
    if len(places) and torch.equal(places, torch.arange(int(places[0]), int(places[0]) + len(places))):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def known(graph: EdgeGraph, value: int, what: str, find: Callable[[], Any]) -> Any:
    """What was found out about a read or a contribution, once for a graph."""
    if (value, what) not in graph.meetings:
        graph.meetings[value, what] = find()
    return graph.meetings[value, what]
