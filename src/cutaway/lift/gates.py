"""Sites inside a recurrent cell: gates before and after their nonlinearity, and the projected state."""

from __future__ import annotations

from collections.abc import Iterator

from ..graph import Op
from . import ops
from .blocks import Block
from .flow import Flow
from .ops import sort_name

_NO_GATES = frozenset({"carry", "cell", "in"})


def inside(flow: Flow, block: Block) -> Iterator[tuple[str, int]]:
    """Name and value of each site inside one step of a recurrent cell.

    A gate's own name is the gate; with `_pre` it is what the gate's nonlinearity reads. Ports without a nonlinearity of
    their own (carry, cell) are what is read. `state` is the image of the cell's units that the loop carries on, where
    that is another value than the units (an LSTM with projections).
    """
    gates: dict[str, Op] = {}
    for read in block.reads:
        bend = None if read.port in _NO_GATES else _first_bend(flow, block, read.value)
        if bend is not None:
            gates.setdefault(read.port, bend)
    for port, bend in gates.items():
        yield port, bend.outputs[0]
        yield f"{port}_pre", next(value for value in bend.inputs if value in flow.activations)
    for read in block.reads:
        if read.port not in gates:
            yield read.port, read.value
    if block.write not in flow.carried and (image := _image(flow, block.write)) is not None:
        yield "state", image


def _first_bend(flow: Flow, block: Block, value: int) -> Op | None:
    """The elementwise nonlinearity that a read comes to through soft ops alone, inside its block."""
    for op in flow.users(value):
        if op.index not in block.members:
            continue
        if flow.is_bend(op):
            return op if sort_name(op) in ops.ELEMENTWISE else None
        for made in op.outputs:
            if (found := _first_bend(flow, block, made)) is not None:
                return found
    return None


def _image(flow: Flow, write: int) -> int | None:
    """The carried value that a contraction and soft ops make of a write."""
    waiting = [(write, False)]
    seen: set[tuple[int, bool]] = set()
    while waiting:
        value, contracted = waiting.pop(0)
        if contracted and value in flow.carried:
            return value
        if (value, contracted) in seen:
            continue
        seen.add((value, contracted))
        for op in flow.users(value):
            contracts = sort_name(op) in ops.CONTRACTION and flow.linear[op.index]
            if (contracts and not contracted) or flow.is_soft(op):
                waiting += [(made, contracted or contracts) for made in op.outputs]
    return None
