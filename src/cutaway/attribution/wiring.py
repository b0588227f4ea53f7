"""Wiring, divided: what each writer contributes, and where contributions meet.

The wiring into a read is a small graph of ops over several writes. As long as a value depends on one write alone it is
that write's contribution (a head's output through the out-projection, say); the last such value is the end of a stem.
Stems are shared by all readers, so a contribution is computed once however many readers see it; what is left to do for
each reader is to merge contributions (add, normalise, project).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..lift import ops
from ..lift.flow import Flow
from ..lift.frozen import unguarded
from ..lift.ops import sort_name
from ..run.replay import Plan, plan
from ..run.tape import Tape


@dataclass(frozen=True, eq=False)
class Stem:
    """The contribution `value` of the write `feed`: `steps` make it, or nothing does if it is the write itself."""

    feed: int
    value: int
    steps: Plan | None
    linear: bool


class Wiring:
    """Divides the wiring of reads into stems and merges, each stem made once. Values in `held` are given to all."""

    def __init__(self, flow: Flow, held: Iterable[int] = ()) -> None:
        self.flow = flow
        self.tape: Tape = flow.tape
        self.held = set(held)
        self._stems: dict[tuple[int, int], Stem] = {}

    def divide(self, read: int, feeds: Sequence[int], stops: set[int]) -> tuple[tuple[Stem, ...], Plan]:
        """The stems that meet in `read`, and the plan that merges them."""
        whole = self._plan(read, stops)
        owners: dict[int, frozenset[int]] = {feed: frozenset({feed}) for feed in feeds}
        ends: dict[int, None] = {}
        for step in whole.steps:
            op = self.tape.graph.ops[step.op]
            if sort_name(op) in ops.SHAPE_ONLY:  # nothing of a write is in zeros of its shape
                continue
            sources = [value for value in op.inputs if value in owners]
            together = frozenset().union(*(owners[value] for value in sources))
            if len(together) > 1:
                ends.update((value, None) for value in sources if len(owners[value]) == 1)
            owners |= {value: together for value in op.outputs if together and value not in self.held}
        if len(owners.get(read, ())) == 1:
            ends[read] = None
        stems = tuple(self._stem(next(iter(owners[value])), value) for value in ends)
        return stems, self._plan(read, ends)

    def _stem(self, feed: int, value: int) -> Stem:
        key = (feed, value)
        if key not in self._stems:
            steps = self._plan(value, [feed]) if value != feed else None
            linear = steps is None or all(self.flow.linear[step.op] for step in steps.steps)
            self._stems[key] = Stem(feed, value, steps, linear)
        return self._stems[key]

    def _plan(self, read: int, stops: Iterable[int]) -> Plan:
        return unguarded(self.tape, plan(self.tape, [], [read], {*stops, *self.held}))
