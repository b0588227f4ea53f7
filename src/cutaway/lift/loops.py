"""What loops hand on, beyond whole repeated steps: partial steps at either end, shrinking batches, projected states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..graph import Graph
from . import ops
from .ops import active, sort_name

if TYPE_CHECKING:
    from .flow import Flow


def with_partial_steps(flow: Flow, carried: set[int]) -> set[int]:
    """`carried` and the values that are made in the same way from the same parameters.

    Such are the last step when a loop's first step differs (a cell that begins with no state), and the steps of packed
    sequences, whose batch shrinks. Two values are made alike if the ops between them and the nearest contractions,
    carried values and constants are the same; contractions are the same if their parameters are.
    """
    found = set(carried)
    if found:
        _marks(flow, found, set(_marks(flow, found, set()).values()))
    return found


def _marks(flow: Flow, carried: set[int], known: set[int]) -> dict[int, int]:
    """A number for how each carried value is made, where parameters take part; values with a `known` one are added to
    `carried`."""
    table: dict[object, int] = {}
    weighted: set[int] = set()
    marks: dict[int, int] = {}
    made: dict[int, int] = {}
    for op in flow.graph.ops:
        if not any(value in flow.activations for value in op.outputs):
            continue
        parameters = parameters_of(flow, op) if sort_name(op) in ops.CONTRACTION else ()
        parts = () if parameters else tuple(made.get(value, 0) for value in op.inputs)
        for port, value in enumerate(op.outputs):
            if not any(parts) and not parameters and sort_name(op) in ops.LAYOUT:
                if known and op.inputs[0] in carried and value in flow.packed:
                    carried.add(value)  # the rows of a state whose sequences go on
                continue  # a rearrangement of what was carried is the same
            key = (sort_name(op), port, flow.graph.modules[op.module].path, flow.shape(value)[1:], parameters, parts)
            mark = table.setdefault(key, len(table) + 1)
            if parameters or any(part in weighted for part in parts):
                weighted.add(mark)
            if mark in known:
                carried.add(value)
            if value not in carried:
                made[value] = mark
            elif mark in weighted:
                marks[value] = mark
    return marks


def parameters_of(flow: Flow, op: ops.Op) -> tuple[int, ...]:
    """The parameters that an op is given, as they are or made into something without any activation."""
    found: set[int] = set()
    waiting = [value for value in op.inputs if value not in flow.activations]
    while waiting:
        value = waiting.pop()
        if flow.graph.values[value].kind in ("param", "buffer"):
            found.add(value)
        elif (maker := flow.maker(value)) is not None:
            waiting.extend(maker.inputs)
    return tuple(sorted(found))


def projected(flow: Flow) -> set[int]:
    """What a nonlinearity makes whose linear image is carried on, as in an LSTM with projections."""
    found: set[int] = set()
    for value in flow.carried:
        for end in flow.back(value, flow.is_soft):
            op = flow.maker(end)
            if op is None or sort_name(op) not in ops.CONTRACTION or not flow.linear[op.index]:
                continue
            for source in active(op, flow.activations):
                for start in flow.back(source, flow.is_layout):
                    maker = flow.maker(start)
                    if maker is not None and flow.is_bend(maker):
                        found.add(start)
    return found - flow.carried


def closing(flow: Flow) -> set[int]:
    """Sums and scales, not residual, that lead into a carried value through soft ops alone: the end of an update."""
    found: set[int] = set()
    for value in flow.carried:
        waiting = [value]
        while waiting:
            current = waiting.pop()
            op = flow.maker(current)
            if op is None or not flow.is_soft(op) or op.index in found:
                continue
            if current in flow.carried and current != value:
                continue
            moving = active(op, flow.activations)
            if sort_name(op) in ops.ADDITIVE or sort_name(op) in ops.SCALING:
                found.add(op.index)
            waiting.extend(moving)
    return found


def packed(graph: Graph) -> set[int]:
    """Values whose first axis runs over packed sequences, sorted by their length."""
    ends = {"pack_padded_sequence": set[int](), "pad_packed_sequence": set[int]()}
    for op in graph.ops:
        if sort_name(op) in ends:
            ends[sort_name(op)].update(op.outputs[:1])
    return graph.cone(ends["pack_padded_sequence"]) - graph.cone(ends["pad_packed_sequence"])


def sequences(graph: Graph) -> set[tuple[int, ...]]:
    """The first two sizes of what has an axis of positions: token ids, and values of three axes."""
    ids = {graph.values[value].shape for value in graph.inputs if not graph.values[value].dtype.startswith("float")}
    return {shape for shape in ids if len(shape) == 2} | {v.shape[:2] for v in graph.values if len(v.shape) == 3}
