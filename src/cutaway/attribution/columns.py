"""The last contraction before a read, taken slot by slot.

A head reads a few columns of a projection. Carrying each head's gradient back through the whole projection would do the
work of all columns for every head; here each head's gradient goes through the rows of weights that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lift import Slots, ops
from ..lift.blocks import slot_mask
from ..lift.flow import Flow
from ..lift.ops import sort_name
from ..run.replay import Plan, plan, stored
from ..run.structure import Ref

Run = Callable[[Plan, dict[int, Tensor]], Tensor]  # the one target of a plan from given values

_WORTH = 0.5  # the share of columns that a slot may read for this to pay
# Contractions of rows with a matrix of parameters: the positions of the rows and of the matrix among the arguments, and
# whether the matrix has an output a row.
ROWS = {"linear": (0, 1, True), "addmm": (1, 2, False), "matmul": (0, 1, False), "mm": (0, 1, False)}


@dataclass(frozen=True, eq=False)
class Through:
    """`made` is what the contraction `op` makes of `source`; `before` gives both, `after` the read from `made`.

    `layout`: nothing but the arrangement of numbers changes after it.
    """

    op: int
    source: int
    made: int
    weight: int
    by_row: bool
    before: Plan
    after: Plan
    layout: bool

    def picks(self, flow: Flow, shape: torch.Size, slots: Slots, run: Run) -> Picks | None:
        """Which numbers of `made`, of this shape, each slot of the read is; None where it is made of them otherwise."""
        if not self.layout:
            return None
        places = torch.arange(shape.numel(), dtype=torch.float64).view(shape)
        read = run(self.after, {self.made: places})
        if read.dtype is not torch.float64:
            return None
        orders, columns = [], []
        for row in torch.eye(slots.count, dtype=torch.bool):
            mine = slot_mask(row[:, None], read, slots, None).expand_as(read).flatten().nonzero()[:, 0]
            where = read.flatten()[mine].long()
            if len(where) % (shape.numel() // shape[-1]):
                return None
            order = where.argsort()
            orders.append(mine[order])
            columns.append((where[order] % shape[-1]).view(shape.numel() // shape[-1], -1))
            rows = torch.arange(len(columns[-1])).repeat_interleave(columns[-1].shape[1])
            if not torch.equal(where[order] // shape[-1], rows):
                return None
        if any(not torch.equal(one, one[:1].expand_as(one)) or one.shape != columns[0].shape for one in columns):
            return None
        chosen = torch.stack([one[0] for one in columns])
        return Picks(torch.stack(orders).view(len(orders), *columns[0].shape), chosen, self._rows_of(flow, chosen))

    def touched(self, flow: Flow, gradients: Tensor) -> Picks | None:
        """The columns that each slot's gradient [slots, …, columns] touches; None if too many."""
        found = gradients.flatten(1, -2).ne(0).any(1)
        most = int(found.sum(1).max())
        if most > _WORTH * found.shape[1]:
            return None
        columns = found.float().topk(most).indices.sort().values  # padded with columns of zero gradient
        return Picks(None, columns, self._rows_of(flow, columns))

    def _rows_of(self, flow: Flow, columns: Tensor) -> Tensor:
        """[slots, columns, width of the source]: the weights of the columns of each slot."""
        weight = stored(flow.tape, self.weight).detach()
        weight = weight if self.by_row else weight.T
        listed = columns.flatten()
        first, count = int(listed[0]), len(listed)
        side_by_side = torch.equal(listed, torch.arange(first, first + count))  # then no copy is needed
        chosen = weight[first : first + count] if side_by_side else weight[listed]
        return chosen.unflatten(0, columns.shape)


@dataclass(frozen=True, eq=False)
class Picks:
    """The columns of a contraction that slots read, with their weights [slots, columns, width]; `order` [slots, rows,
    columns] says where in the read they lie, where it holds nothing but them."""

    order: Tensor | None
    columns: Tensor
    weights: Tensor

    def of_read(self, gradient: Tensor) -> Tensor:
        """[slots, rows, columns] of the gradient at the read."""
        assert self.order is not None
        return gradient.reshape(-1)[self.order]

    def of_made(self, gradients: Tensor) -> Tensor:
        """[slots, rows, columns] of gradients [slots, …, columns] at what the contraction made."""
        rows = gradients.flatten(1, -2)
        return rows.gather(2, self.columns[:, None, :].expand(-1, rows.shape[1], -1))

    def back(self, picked: Tensor, shape: torch.Size) -> Tensor:
        """[slots, *source]: the gradients at the source."""
        made = torch.bmm(picked, self.weights)
        return made.view(len(made), *shape)


def through(flow: Flow, read: int, merge: Plan) -> Through | None:
    """The last contraction of a merge, if all that the read gets of what is merged goes through it."""
    graph, tape = flow.graph, flow.tape
    made = {value for step in merge.steps for value in graph.ops[step.op].outputs}
    last = next((step.op for step in reversed(merge.steps) if sort_name(graph.ops[step.op]) in ops.CONTRACTION), None)
    if last is None or sort_name(graph.ops[last]) not in ROWS:
        return None
    place, matrix, by_row = ROWS[sort_name(graph.ops[last])]
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
    layout = all(sort_name(graph.ops[step.op]) in ops.LAYOUT for step in after.steps)
    return Through(last, source, out, weight, by_row, before, after, layout)
