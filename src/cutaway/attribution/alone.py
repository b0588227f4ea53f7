"""The output at the metric's position alone: to unembed every other position would be work for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lift import ops
from ..lift.frozen import unguarded
from ..lift.ops import sort_name
from ..run.replay import Plan, execute, plan
from .edges import EdgeGraph
from .meeting import known
from .metric import Metric

_AGREE = 1e-4  # relative: how far the output at one position may be from the same position of the whole output


@dataclass(frozen=True, eq=False)
class Alone:
    """`before` gives `source`, what the last contraction reads; `after` makes the output of its row at `place`."""

    source: int
    output: int
    place: int
    before: Plan
    after: Plan

    def run(self, graph: EdgeGraph, met: dict[int, Tensor]) -> Tensor:
        """[batch, 1, classes]: the output at the position, from the contributions that meet in it."""
        row = graph.run(self.before, met)[self.source][:, self.place : self.place + 1]
        return graph.run(self.after, {self.source: row})[self.output]


def alone(graph: EdgeGraph, metric: Metric) -> Alone | None:
    """How to make the output at the metric's position alone; None where that cannot be done.

    Whether what follows the last contraction treats positions one by one is tried on the run, once for a graph.
    """
    logits, position = graph.clean_trace.logits, metric.position
    if position is None or logits.ndim != 3 or not -logits.shape[1] <= position < logits.shape[1]:
        return None
    place = position % logits.shape[1]
    return known(graph, graph.parts[-1].ports[0].value, f"alone at {place}", lambda: _found(graph, place))


def _found(graph: EdgeGraph, place: int) -> Alone | None:
    port, logits = graph.parts[-1].ports[0], graph.clean_trace.logits
    flow, steps = graph.wiring.flow, port.merge.steps
    last = next((step.op for step in reversed(steps) if sort_name(flow.graph.ops[step.op]) in ops.CONTRACTION), None)
    if last is None:
        return None
    sources = [value for value in flow.graph.ops[last].inputs if value in flow.activations]
    if len(sources) != 1 or flow.shape(sources[0])[:2] != tuple(logits.shape[:2]) or len(flow.shape(sources[0])) != 3:
        return None
    source = sources[0]
    before = unguarded(graph.tape, plan(graph.tape, [], [source], port.merge.stored))
    after = unguarded(graph.tape, plan(graph.tape, [], [port.value], [*port.merge.stored, source]))
    if any(value in flow.activations for value in after.stored if value != source):
        return None
    found = Alone(source, port.value, place, before, after)
    return found if _agrees(graph, found, logits) else None


@torch.no_grad()
def _agrees(graph: EdgeGraph, found: Alone, logits: Tensor) -> bool:
    place = found.place
    whole = execute(graph.tape, plan(graph.tape, [], [found.source]))[found.source]
    want = logits[:, place : place + 1]
    try:
        got = graph.run(found.after, {found.source: whole[:, place : place + 1]})[found.output]
    except (RuntimeError, IndexError, ValueError):  # a call that holds the number of positions
        return False
    return got.shape == want.shape and float((got - want).abs().max()) <= _AGREE * float(want.abs().max())
