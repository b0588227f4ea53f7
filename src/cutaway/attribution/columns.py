"""The last contraction before a read, taken slot by slot.

A head reads a few columns of a projection. Carrying each head's gradient back through the whole projection would do the
work of all columns for every head; here each head's gradient goes through the rows of weights that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lift import ops
from ..lift.flow import Flow
from ..lift.ops import sort_name
from ..run.replay import Plan, plan, stored
from ..run.structure import Ref

_WORTH = 0.5  # the share of columns that a slot may read for this to pay
# Contractions of rows with a matrix of parameters: the positions of the rows and of the matrix among the arguments, and
# whether the matrix has an output a row.
_ROWS = {"linear": (0, 1, True), "addmm": (1, 2, False), "matmul": (0, 1, False), "mm": (0, 1, False)}


@dataclass(frozen=True, eq=False)
class Through:
    """`made` is what the contraction `op` makes of `source`; `before` gives both, `after` the read from `made`."""

    op: int
    source: int
    made: int
    weight: int
    by_row: bool
    before: Plan
    after: Plan

    def columns(self, gradients: Tensor) -> Tensor | None:
        """[slots, columns]: the columns that each slot's gradient [slots, …, columns] touches; None if too many."""
        touched = gradients.flatten(1, -2).ne(0).any(1)
        most = int(touched.sum(1).max())
        if most > _WORTH * touched.shape[1]:
            return None
        return touched.float().topk(most).indices.sort().values  # padded with columns of zero gradient

    def back(self, flow: Flow, gradients: Tensor, columns: Tensor, shape: torch.Size) -> Tensor:
        """[slots, *source]: the gradients at the source from those at what is made of it."""
        weight = stored(flow.tape, self.weight).detach()
        weight = weight if self.by_row else weight.T
        rows = gradients.flatten(1, -2)
        picked = rows.gather(2, columns[:, None, :].expand(-1, rows.shape[1], -1))
        listed = columns.flatten()
        first, count = int(listed[0]), len(listed)
        side_by_side = torch.equal(listed, torch.arange(first, first + count))  # then no copy is needed
        chosen = weight[first : first + count] if side_by_side else weight[listed]
        made = torch.bmm(picked, chosen.unflatten(0, columns.shape))
        return made.view(len(made), *shape)


def through(flow: Flow, read: int, merge: Plan) -> Through | None:
    """The last contraction of a merge, if all that the read gets of what is merged goes through it."""
    graph, tape = flow.graph, flow.tape
    made = {value for step in merge.steps for value in graph.ops[step.op].outputs}
    last = next((step.op for step in reversed(merge.steps) if sort_name(graph.ops[step.op]) in ops.CONTRACTION), None)
    if last is None or sort_name(graph.ops[last]) not in _ROWS:
        return None
    place, matrix, by_row = _ROWS[sort_name(graph.ops[last])]
    args = tape.calls[last].args
    if len(args) <= max(place, matrix) or not all(isinstance(args[at], Ref) for at in (place, matrix)):
        return None
    source, weight = args[place].id, args[matrix].id
    if weight in made or source not in flow.activations or len(flow.shape(weight)) != 2:
        return None
    if graph.values[weight].op >= 0 or len(graph.ops[last].outputs) != 1:
        return None
    out = graph.ops[last].outputs[0]
    after = plan(tape, [], [read], [*merge.stored, out])
    moving = set(merge.stored) & flow.activations
    if read == out or any(value in moving for value in after.stored if value != out):
        return None
    before = plan(tape, [], [source, out], merge.stored)
    return Through(last, source, out, weight, by_row, before, after)
